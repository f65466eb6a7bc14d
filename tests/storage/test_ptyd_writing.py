"""Prepared frames saved while the scan goes on: ptypy's layout node by node, the frames that were prepared, whole files."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from problems import BEAM, GEOMETRY, PATTERNS, PLACES
from samples import sample

from ptystream.events import Frames, Payload, Samples, ScanEnded, ScanStarted
from ptystream.params.errors import ConfigurationError
from ptystream.params.load import load
from ptystream.plan import make_plan
from ptystream.scan.block import Block, Signal
from ptystream.scan.parameters import PositionsParameters, PtyScanParameters
from ptystream.scan.ptyscan import PtyScan
from ptystream.scan.saver import Saver
from ptystream.storage import ptyd

FRAMES = 25


def scan_of(folder: Path, save: str, max_frames: int = 10, **data: Any) -> tuple[PtyScan, Saver]:
    given = {"shape": BEAM.side, **GEOMETRY, "save": save, "dfile": "a.ptyd", "num_frames": FRAMES, **data}
    parameters = PtyScanParameters(**given)
    saver = Saver("s", parameters, folder / "a.ptyd", max_frames=max_frames)
    return PtyScan("s", parameters, PositionsParameters(), saver=saver), saver


def feed(scan: PtyScan, first: int, stop: int, patterns: np.ndarray = PATTERNS) -> None:
    payloads = tuple(Payload(p.tobytes(), "raw", p.dtype, p.shape) for p in patterns[first:stop])
    scan.feed("data", Frames("a", np.arange(first, stop), payloads), 1)
    part = PLACES[first:stop]
    scan.feed("positions", Samples("a", first, {"y": part[:, 0], "x": part[:, 1]}), 1)


def take(scan: PtyScan) -> list[Block]:
    blocks = []
    while not isinstance(block := scan.take(10), Signal):
        blocks.append(block)
    return blocks


def saved(folder: Path, save: str, **settings: Any) -> Path:
    """A whole scan, saved."""
    scan, saver = scan_of(folder, save, **settings)
    feed(scan, 0, FRAMES)
    take(scan)
    scan.release()
    saver.wait(60)
    assert saver.failure is None
    return folder / "a.ptyd"


def nodes(path: Path) -> dict[str, Any]:
    """name → (type, dtype class, rank), or what a link says; numbers of chunks and of parts replaced."""
    found: dict[str, Any] = {}

    def visit(group: h5py.Group, name: str) -> None:
        for key in group:
            link = group.get(key, getlink=True)
            here = f"{name}/{key}"
            if isinstance(link, h5py.ExternalLink):
                found[f"{here}@"] = (link.filename.removeprefix(path.name), link.path)
            node = group[key]
            kind = node.attrs.get("type", "")
            shown = None if isinstance(node, h5py.Group) else (node.dtype.kind, node.ndim)
            found[here] = (kind, shown)
            if isinstance(node, h5py.Group):
                visit(node, here)

    with h5py.File(path) as file:
        visit(file, "")
        assert {"ctime", "mtime", "h5rw_version"} <= set(file.attrs)
    return found


@pytest.mark.parametrize("save", ["append", "link"])
def test_every_node_of_ptypys_layout_is_there_with_its_type(tmp_path: Path, save: str) -> None:
    theirs = nodes(sample(f"moonflower_{save}.ptyd"))
    ours = nodes(saved(tmp_path, save, chunk_format=".part%03d", auto_center=None))
    loader = ("add_poisson_noise", "block_wait_count", "density", "load_parallel", "model", "photons", "psf")
    for name, node in theirs.items():
        if name.removeprefix("/info/") in loader:
            continue  # parameters of ptypy's simulated source
        if name.endswith("/weights"):
            assert node == ("array", ("f", 3)) and ours[name] == ("array", ("b", 3))  # ptypy writes either
        elif name.endswith("/data"):
            assert ours[name][0] == node[0] and ours[name][1][1] == 3 and ours[name][1][0] in "iuf"
        else:
            assert ours.get(name) == node, name
    assert {n for n in ours if not n.startswith("/info/")} == {n for n in theirs if not n.startswith("/info/")}


@pytest.mark.parametrize("save", ["append", "link", "merge"])
def test_what_was_prepared_is_what_is_saved(tmp_path: Path, save: str) -> None:
    patterns = PATTERNS.copy()
    patterns[3, 5, 6] = 65535  # saturated in this frame alone
    mask = np.ones(patterns.shape[1:], np.uint8)
    mask[0, :4] = 0
    scan, saver = scan_of(tmp_path, save, mask=mask)
    feed(scan, 0, FRAMES, patterns)
    take(scan)
    scan.release()
    saver.wait(60)
    with h5py.File(tmp_path / "a.ptyd") as file:
        chunks = [file["chunks"][str(k)] for k in range(len(file["chunks"]))]
        assert [len(c["data"]) for c in chunks] == ([25] if save == "merge" else [10, 10, 5])
        data, weights, positions, indices = (
            np.concatenate([c[name][()] for c in chunks]) for name in ("data", "weights", "positions", "indices")
        )
        assert file["meta/num_frames"][()] == FRAMES
        np.testing.assert_allclose(file["meta/psize"][()], GEOMETRY["psize"])
        np.testing.assert_array_equal(file["info/positions_scan"][()], PLACES[:FRAMES])
    valid = np.broadcast_to(mask.astype(bool), data.shape).copy()
    valid[3, 5, 6] = False
    np.testing.assert_array_equal(weights, valid)
    np.testing.assert_array_equal(data, np.where(valid, patterns[:FRAMES], 0))
    np.testing.assert_array_equal(positions, PLACES[:FRAMES])
    np.testing.assert_array_equal(indices, np.arange(FRAMES))
    expected = {"a.ptyd"} | ({f"a.ptyd.chunk{k:02d}" for k in range(3)} if save == "link" else set())
    assert {file.name for file in tmp_path.iterdir()} == expected


def test_rebinned_frames_are_saved_with_their_own_pixel(tmp_path: Path) -> None:
    with h5py.File(saved(tmp_path, "append", rebin=2)) as file:
        assert file["chunks/0/data"].shape == (10, 16, 16)
        assert file["meta/shape"][()].tolist() == [16, 16]
        assert file["meta/center"][()].tolist() == [8.0, 8.0]
        np.testing.assert_allclose(file["meta/psize"][()], 2 * GEOMETRY["psize"])
        np.testing.assert_array_equal(
            file["chunks/0/data"][()], PATTERNS[:10].reshape(10, 16, 2, 16, 2).astype(int).sum(axis=(2, 4))
        )


def test_name_version_and_label_are_kept(tmp_path: Path) -> None:
    with h5py.File(saved(tmp_path, "append", experimentID="mt1234", version=0.2, label="S1")) as file:
        assert file["info/experimentID"][()] == b"mt1234"
        assert file["meta/version"][()] == file["info/version"][()] == 0.2
        assert file["meta/label"][()] == b"S1"


@pytest.mark.parametrize("save", ["append", "link", "merge"])
def test_positions_that_change_and_frames_that_go_are_put_right(tmp_path: Path, save: str) -> None:
    scan, saver = scan_of(tmp_path, save, max_frames=10)
    feed(scan, 0, 20)
    take(scan)
    deadline = time.monotonic() + 60
    while saver.saved < 20 and time.monotonic() < deadline:
        time.sleep(0.01)
    new = PLACES[4] + 1e-8
    scan.feed("positions", Samples("a", 4, {"y": new[:1], "x": new[1:]}), 1)
    assert [r.what for r in scan.revisions()] == ["position"]
    scan.refuse(np.array([scan.slot_of(12)]), "off_canvas", PLACES[12:13])
    feed(scan, 20, FRAMES)
    take(scan)
    scan.release()
    saver.wait(60)
    assert saver.failure is None
    with h5py.File(tmp_path / "a.ptyd") as file:
        chunks = [file["chunks"][str(k)] for k in range(len(file["chunks"]))]
        positions = np.concatenate([c["positions"][()] for c in chunks])
        weights = np.concatenate([c["weights"][()] for c in chunks])
        np.testing.assert_array_equal(positions[4], new)
        np.testing.assert_array_equal(file["info/positions_scan"][4], new)
        np.testing.assert_array_equal(np.delete(positions, 4, 0), np.delete(PLACES[:FRAMES], 4, 0))
        assert not weights[12].any() and np.delete(weights, 12, 0).all()


@pytest.mark.parametrize("save", ["append", "link", "merge"])
def test_a_file_that_is_there_is_renamed_with_its_parts(tmp_path: Path, save: str) -> None:
    for count in range(3):
        saved(tmp_path, save, label=f"S{count}")
    for name, label in (("a.ptyd", b"S2"), ("a.ptyd.old2", b"S1"), ("a.ptyd.old", b"S0")):
        with h5py.File(tmp_path / name) as file:
            assert file["meta/label"][()] == label
            np.testing.assert_array_equal(file["chunks/0/data"][:10], PATTERNS[:10])
    if save == "link":
        with h5py.File(tmp_path / "a.ptyd.old") as file:
            assert file["chunks"].get("1", getlink=True).filename == "a.ptyd.old.chunk01"


def test_while_the_scan_goes_on_the_master_is_whole_and_says_what_is_known(tmp_path: Path) -> None:
    scan, saver = scan_of(tmp_path, "link", num_frames=None)
    feed(scan, 0, 10)
    take(scan)
    deadline = time.monotonic() + 60
    while saver.saved < 10 and time.monotonic() < deadline:
        time.sleep(0.01)
    while not (tmp_path / "a.ptyd").exists():
        time.sleep(0.01)
    with h5py.File(tmp_path / "a.ptyd") as file:
        assert list(file["chunks"]) == ["0"]
        assert file["meta/num_frames"].attrs["type"] == "None"
    scan.release()
    saver.wait(60)
    with h5py.File(tmp_path / "a.ptyd") as file:
        assert file["meta/num_frames"][()] == 10


def test_a_reader_that_has_the_file_open_is_waited_for(tmp_path: Path) -> None:
    scan, saver = scan_of(tmp_path, "append")
    feed(scan, 0, 10)
    take(scan)
    while not (tmp_path / "a.ptyd").exists():
        time.sleep(0.01)

    code = "import h5py, sys; f = h5py.File(sys.argv[1]); print('open', flush=True); sys.stdin.readline()"
    command = [sys.executable, "-c", code, str(tmp_path / "a.ptyd")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None and reader.stdout.readline() == "open\n"
        feed(scan, 10, FRAMES)
        take(scan)
        scan.release()
        saver.wait(0.5)
        assert saver.is_alive()
        reader.communicate("\n")
    saver.wait(60)
    assert saver.failure is None and saver.saved == FRAMES


def test_where_nothing_can_be_written_the_scan_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.ptyd").mkdir()
    (tmp_path / "a.ptyd" / "file").touch()
    (tmp_path / "a.ptyd.old").touch()
    scan, saver = scan_of(tmp_path / "a.ptyd" / "file", "link")
    feed(scan, 0, 10)
    assert len(take(scan)) == 1
    saver.close()
    saver.wait(60)
    assert isinstance(saver.failure, OSError)
    assert "not saved any more" in caplog.text
    feed(scan, 10, FRAMES)
    assert take(scan)
    scan.release()


def test_a_file_that_cannot_be_finished_leaves_no_half_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = ptyd.PtydWriter(tmp_path / "a.ptyd", "link", ".chunk%02d")
    chunk = ptyd.Chunk(np.ones((1, 4, 4), "u2"), np.ones((1, 4, 4), bool), np.zeros((1, 2)), np.arange(1))
    writer.add(chunk, {"num_frames": 1}, {})
    before = (tmp_path / "a.ptyd").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        writer.add(chunk, {"num_frames": 2}, {})
    assert (tmp_path / "a.ptyd").read_bytes() == before
    assert {file.name for file in tmp_path.iterdir()} == {"a.ptyd", "a.ptyd.chunk00"}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"chunk_format": ".chunk"}, "one whole number"),
        ({"chunk_format": "/%d"}, "one whole number"),
        ({"chunk_format": "%d%d"}, "one whole number"),
        ({"dfile": None}, "needs the name of a file"),
        ({"save": "split"}, "'append', 'link' or 'merge'"),
    ],
)
def test_settings_that_cannot_work_are_told_at_load_time(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        load(_configuration(**changed))


def _configuration(positions: dict[str, Any] | None = None, twice: bool = False, **data: Any) -> dict[str, Any]:
    source = {"name": "ZmqScan"}
    whole = {**source, "shape": 32, "save": "link", "dfile": "a.ptyd", "positions": {**source, **(positions or {})}, **data}
    entry = {"name": "Full", "data": whole}
    return {"scans": {"s": entry} | ({"t": entry} if twice else {}), "engines": {"e": {"name": "DM"}}}


def test_two_scans_cannot_have_one_file_and_pixels_cannot_be_saved() -> None:
    with pytest.raises(ConfigurationError, match=r"scans\.t\.data\.dfile: 'a\.ptyd': is that of scans\.s\.data too"):
        make_plan(load(_configuration(twice=True)))
    with pytest.raises(ConfigurationError, match="metres"):
        make_plan(load(_configuration(positions={"unit": "px"})))


def test_the_ends_of_sources_are_not_needed(tmp_path: Path) -> None:
    scan, saver = scan_of(tmp_path, "append")
    scan.feed("data", ScanStarted("a"), 0)
    feed(scan, 0, 3)
    for source in ("data", "positions"):
        scan.feed(source, ScanEnded("a", 3), 0)
    take(scan)
    scan.release()
    saver.wait(60)
    with h5py.File(tmp_path / "a.ptyd") as file:
        assert file["meta/num_frames"][()] == 3
