"""Files that documents name, and what lies in them: read from the folders allowed, and no more memory taken than fits."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import test_files
import yaml
from beamline import BEAMLINE, FLY, lines, plan_of, run
from rich.console import Console

from ptystream.cli.check import check
from ptystream.codecs import decode
from ptystream.detectors.bluesky import BlueskyScan
from ptystream.detectors.hdf5 import follow, reading
from ptystream.detectors.hdf5.paths import Place
from ptystream.events import FileRows, Frames, Payload, Rejected, Rows, SampleRows, Samples
from ptystream.files import FileError, Reader
from ptystream.launch import launch
from ptystream.params.load import load
from ptystream.storage import opened, ptyr, virtual
from ptystream.storage.h5 import H5Error
from ptystream.storage.opened import Opened, RefusedError

STACK = test_files.STACK


def why(where: FileRows, patience_s: float = 5.0) -> str:
    """Why a frame is not read; it must be told at once."""
    reader, began = Reader(patience_s), time.monotonic()
    (event,) = reader.resolve(Frames("e", np.array([0]), (where,)))
    reader.close()
    assert isinstance(event, Frames) and isinstance(event.payloads[0], FileRows)
    assert time.monotonic() - began < patience_s / 2
    return event.payloads[0].why


def written(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w", libver="v110") as file:
        file["data"], file["y"] = STACK, np.arange(6.0)
    return path


def test_a_file_outside_the_folders_is_refused_with_the_way_out(tmp_path: Path) -> None:
    inside, outside = written(tmp_path / "in" / "a.h5"), written(tmp_path / "out" / "a.h5")
    (tmp_path / "in" / "link.h5").symlink_to(outside)
    np.save(tmp_path / "out" / "a.npy", STACK)
    allowed = (str(tmp_path / "in"),)
    assert isinstance(test_files.frame(FileRows(str(inside), "data", 0, allowed)), Payload)
    for file, dataset in (
        (outside, "data"),
        (tmp_path / "in" / "link.h5", "data"),
        (tmp_path / "in" / ".." / "out" / "a.h5", "data"),
        (tmp_path / "out" / "a.npy", ""),
    ):
        told = why(FileRows(str(file), dataset, 0, allowed))
        assert f"only files below {allowed[0]} are opened" in told and f"name {tmp_path / 'out'} in `folders`" in told
        assert isinstance(test_files.frame(FileRows(str(file), dataset, 0)), Payload)
    reader = Reader(0.1)
    (said,) = reader.resolve(SampleRows("e", 0, {"y": Rows(str(outside), "y", 0, 3, folders=allowed)}))
    assert isinstance(said, Rejected) and "`folders`" in said.detail
    (read,) = reader.resolve(SampleRows("e", 0, {"y": Rows(str(inside), "y", 0, 3, folders=allowed)}))
    assert isinstance(read, Samples)
    reader.close()


def leading_file(folder: Path, target: str) -> Path:
    """A file that leads to another, in every way that there is."""
    with h5py.File(folder / "master.h5", "w", libver="v110") as file:
        file["link"] = h5py.ExternalLink(target, "data")
        file["group"] = h5py.ExternalLink(target, "/")
        file["soft"] = h5py.SoftLink("/group/data")
        layout = h5py.VirtualLayout(STACK.shape, STACK.dtype)
        layout[:] = h5py.VirtualSource(target, "data", STACK.shape)
        file.create_virtual_dataset("virtual", layout)
        numbers = h5py.VirtualLayout((6,), "f8")
        numbers[:] = h5py.VirtualSource(target, "y", (6,))
        file.create_virtual_dataset("y", numbers)
    return folder / "master.h5"


WAYS = ("link", "group/data", "soft", "virtual")


@pytest.mark.parametrize("way", WAYS)
def test_links_lead_to_the_folder_of_their_file_and_to_those_allowed(tmp_path: Path, way: str) -> None:
    written(tmp_path / "in" / "near.h5")
    outside = written(tmp_path / "out" / "far.h5")
    near = leading_file(tmp_path / "in", "near.h5")
    for row in range(6):
        np.testing.assert_array_equal(decode(test_files.frame(FileRows(str(near), way, row))), STACK[row])
    far = leading_file(tmp_path / "in", str(outside))
    told = why(FileRows(str(far), way, 0))
    assert str(outside) in told and f"name {tmp_path / 'out'} in `folders`" in told
    allowed = (str(tmp_path / "in"), str(tmp_path / "out"))
    np.testing.assert_array_equal(decode(test_files.frame(FileRows(str(far), way, 2, allowed))), STACK[2])
    reader = Reader(0.1)
    for folders, kind in ((None, Rejected), (allowed, Samples)):
        (event,) = reader.resolve(SampleRows("e", 0, {"y": Rows(str(far), "y", 0, 6, folders=folders)}))
        assert isinstance(event, kind)
        reader.close()


def test_what_a_source_of_a_virtual_dataset_leads_to_is_held_to_the_same(tmp_path: Path) -> None:
    outside = written(tmp_path / "out" / "far.h5")
    (tmp_path / "in").mkdir()
    middle = leading_file(tmp_path / "in", str(outside)).rename(tmp_path / "in" / "middle.h5")
    with h5py.File(middle, "r+") as file:
        file.create_dataset("stored", STACK.shape, "<u2", external=[(str(outside), 0, STACK.nbytes)])
    for dataset, said in (("link", "`folders`"), ("virtual", "`folders`"), ("stored", "no HDF5 file")):
        master = tmp_path / "in" / "master.h5"
        with h5py.File(master, "w", libver="v110") as file:
            layout = h5py.VirtualLayout(STACK.shape, STACK.dtype)
            layout[:] = h5py.VirtualSource("middle.h5", dataset, STACK.shape)
            file.create_virtual_dataset("virtual", layout)
        assert said in why(FileRows(str(master), "virtual", 0)), dataset


def test_rows_of_a_virtual_dataset_are_waited_for_and_never_zeros(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "v.h5", "w", libver="v110") as file:
        layout = h5py.VirtualLayout(STACK.shape, STACK.dtype)
        for part in range(2):
            layout[3 * part : 3 * part + 3] = h5py.VirtualSource(f"part{part}.h5", "data", (3, 20, 12))
        file.create_virtual_dataset("v", layout)
    reader = Reader(0.2)

    def read(row: int) -> Any:
        return reader.resolve(Frames("e", np.array([row]), (FileRows(str(tmp_path / "v.h5"), "v", row),)))[0].payloads[0]

    assert isinstance(read(0), FileRows)
    for part in (1, 0):
        with h5py.File(tmp_path / f"part{part}.h5", "w", libver="v110") as file:
            file["data"] = STACK[3 * part : 3 * part + 3]
        for row in range(3 * part, 3 * part + 3):
            np.testing.assert_array_equal(decode(read(row)), STACK[row])
        if part:
            assert isinstance(read(2), FileRows)
    reader.close()


def test_single_numbers_and_masks_are_held_to_the_same(tmp_path: Path) -> None:
    outside = written(tmp_path / "out" / "far.h5")
    (tmp_path / "in").mkdir()
    path = leading_file(tmp_path / "in", str(outside))
    with h5py.File(path, "r+") as file:
        layout = h5py.VirtualLayout((20, 12), STACK.dtype)
        layout[:] = h5py.VirtualSource("later.h5", "mask", (20, 12))
        file.create_virtual_dataset("mask", layout)
        file.attrs["units"] = "m"
    with Opened(path) as file:
        for place in ("/y", "/group/y"):
            with pytest.raises(RefusedError, match="`folders`"):
                reading.number(file, Place(place))
            with pytest.raises(RefusedError, match="`folders`"):
                reading.marks(file, Place(place.replace("/y", "/data"))) if "group" in place else file.has("/group/data")
        with pytest.raises(H5Error, match="is not there yet"):
            follow.mask_of(file, follow.Wanted(mask=Place("/mask")))
        assert reading.number(file, Place("/mask")) is None
    with h5py.File(tmp_path / "in" / "later.h5", "w", libver="v110") as file:
        file["mask"] = STACK[0] > 2
    with Opened(path, (tmp_path / "out",)) as file:
        np.testing.assert_array_equal(follow.mask_of(file, follow.Wanted(mask=Place("/mask"))), STACK[0] <= 2)
        assert reading.number(file, Place("/y")) == 0.0


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.h5")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = h5py.ExternalLink("pipe.h5", "data")
    for name in ("a.h5", "pipe.h5"):
        assert "no regular file" in why(FileRows(str(tmp_path / name), "data", 0))


# ---------------------------------------------------------------------- memory


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """Small files that announce much: one stored piece of 3 GiB that deflates to nearly nothing, and more rows than there are."""
    with h5py.File(tmp_path / "a.h5", "w", libver="v110") as file:
        file.create_dataset("frames", (1, 20, 12), "<u2", maxshape=(None, 20, 12), chunks=(1 << 22, 20, 12), compression="gzip")
        file.create_dataset("numbers", (6,), "f8", maxshape=(None,), chunks=(1 << 28,), compression="gzip")
        file.create_dataset("one", (1,), "u1", maxshape=(None,), chunks=((1 << 30) + 1,), compression="gzip")
        file.create_dataset("wide", (6, 1 << 20, 1 << 20), "f8", chunks=(1, 1024, 1024))
        file.create_dataset("picture", (1 << 15, 1 << 15), "f8", chunks=(1024, 1024))
        layout = h5py.VirtualLayout((1 << 40, 20, 12), "<u2")
        layout[:6] = h5py.VirtualSource(".", "frames", (6, 20, 12))
        file.create_virtual_dataset("virtual", layout)
        file.attrs.create("huge", np.zeros(1 << 18))
    return tmp_path / "a.h5"


def test_nothing_is_read_in_pieces_that_are_too_large(hostile: Path) -> None:
    reader = Reader(5.0)
    for where, said in (
        (FileRows(str(hostile), "frames", 0), "write it in smaller chunks"),
        (Rows(str(hostile), "numbers", 0, 3), "write it in smaller chunks"),
        (FileRows(str(hostile), "virtual", 0), "rows are announced"),
        (FileRows(str(hostile), "picture", 0), "frames of 32768 × 32768"),
    ):
        with pytest.raises(FileError, match=said):
            reader.read(where)
    reader.close()
    with Opened(hostile) as file:
        for attempt, said in (
            (lambda: reading.FrameDataset(file, "/frames"), "smaller chunks"),
            (lambda: reading.NumberDataset(file, Place("/numbers")), "smaller chunks"),
            (lambda: reading.number(file, Place("/numbers")), "smaller chunks"),
            (lambda: reading.marks(file, Place("/one")), "smaller chunks"),
            (lambda: reading.marks(file, Place("/", "huge")), "huge: 2097152 bytes"),
            (lambda: reading.number(file, Place("/", "huge")), "huge: 2097152 bytes"),
            (lambda: reading.NumberDataset(file, Place("/wide")), "numbers in a row"),
            (lambda: reading.FrameDataset(file, "/virtual").written(0, False), "rows are announced"),
        ):
            with pytest.raises(RefusedError, match=said):
                attempt()
    assert opened.MAX_CHUNK_BYTES < 3 << 30 and virtual.MAX_ROWS < 1 << 40


# ---------------------------------------------------------------------- Bluesky


def bluesky(folder: Path, **data: Any) -> dict[str, Any]:
    source = {"name": "BlueskyScan", "via": "file", "file": str(folder / "run.jsonl"), "find": FLY, "shape": 32}
    return {
        "run": "t",
        "threads": 1,
        "min_frames_for_recon": BEAMLINE.frames + 1,
        "io": {"home": str(folder), "rfile": "%(run)s.ptyr", "recording": {"active": False}},
        "scans": {
            "s": {
                "name": "Full",
                "data": {**source, **BEAMLINE.geometry(), **data},
                "illumination": {"aperture": {"size": 4e-7}},
            }
        },
        "engines": {"e": {"name": "DM", "numiter": 2}},
    }


@pytest.fixture(scope="module")
def flown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flown")
    (folder / "files").mkdir()
    (folder / "run.jsonl").write_text(lines(run(plan_of("fly", folder / "files"))))
    return folder


def test_documents_are_followed_into_the_folders_allowed(flown: Path, caplog: Any, capsys: Any) -> None:
    for folders, used in (("files", BEAMLINE.frames), ("elsewhere", 0)):
        (flown / folders).mkdir(exist_ok=True)
        given = bluesky(flown, folders=[folders])
        (flown / "c.yaml").write_text(yaml.safe_dump(given))
        (flown / "t.ptyr").unlink(missing_ok=True)
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="ptystream"):
            launch(load(given), Console(quiet=True), talkative=True)
        done = check(str(flown / "c.yaml"))
        said = capsys.readouterr().out
        if used:
            assert ptyr.read(flown / "t.ptyr").ledger["used"] == used
            assert done == 0 and ".h5: can be read" in said
            continue
        assert not (flown / "t.ptyr").exists()
        remedy = f"only files below {flown / 'elsewhere'} are opened; name {flown / 'files'} in `folders`"
        assert any(remedy in r.getMessage() and "unreadable_file" in r.getMessage() for r in caplog.records)
        assert sum(remedy in r.getMessage() for r in caplog.records) <= 3  # not once per frame
        assert done == 1 and f"scans.s.data: {flown / 'files'}" in said and remedy in said


@pytest.mark.parametrize(
    ("given", "folders"),
    [
        ({}, None),
        ({"via": "file", "file": "x.jsonl"}, None),
        ({"via": "process"}, None),
        ({"address": "ipc:///tmp/x"}, None),
        ({"address": "tcp://10.0.0.1:5578"}, ()),
        ({"address": "tcp://10.0.0.1:5578", "peer_keys": "proxy.key"}, None),
        ({"address": "tcp://0.0.0.0:5578", "bind": True, "insecure": True}, ()),
        ({"via": "kafka", "topics": ["t"]}, None),
        ({"via": "kafka", "topics": ["t"], "servers": "127.0.0.1:9092, broker:9092"}, ()),
        ({"folders": ["/data"]}, ("/data",)),
        ({"address": "tcp://10.0.0.1:5578", "folders": ["/data"], "path_map": {"/ioc": "/mnt/ioc"}}, ("/data", "/mnt/ioc")),
        ({"path_map": {"/ioc": "file://localhost/mnt/a%20b"}}, ("/mnt/a b",)),
    ],
)
def test_which_folders_are_read_where_nothing_is_said(given: dict[str, Any], folders: Any) -> None:
    assert BlueskyScan.Parameters(**given).readable == folders
