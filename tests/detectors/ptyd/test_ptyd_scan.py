"""`.ptyd` files as a source: ptypy's and ours, finished and growing, processed and as they are, sound and hostile."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from problems import BEAM, GEOMETRY, PATTERNS, PLACES
from samples import sample
from test_session import Memory, messages

from ptystream.codecs import decode
from ptystream.detectors.ptyd import PtydScan, PtydTransport
from ptystream.detectors.ptyd.protocol import PtydDecoder, counts, wire_dtype
from ptystream.events import Event, Frames, Samples, ScanEnded, ScanStarted
from ptystream.metrics import Metrics
from ptystream.params.errors import ConfigurationError
from ptystream.params.load import load
from ptystream.plan import make_plan
from ptystream.session import Session
from ptystream.storage import h5, ptyd, ptyr
from ptystream.transport import Message, TransportClosed

FRAMES = 25
META = {
    "version": 0.1,
    "num_frames": FRAMES,
    "label": None,
    "shape": np.array([BEAM.side, BEAM.side]),
    "psize": np.array([GEOMETRY["psize"]] * 2),
    "energy": GEOMETRY["energy"],
    "center": np.array([BEAM.side / 2.0] * 2),
    "distance": GEOMETRY["distance"],
}


def chunk(first: int, stop: int, dtype: str = "u2") -> ptyd.Chunk:
    data = PATTERNS[first:stop].astype(dtype)
    return ptyd.Chunk(data, np.ones(data.shape, bool), PLACES[first:stop], np.arange(first, stop))


def written(folder: Path, mode: ptyd.Mode = "link", frames: int = FRAMES, **meta: Any) -> Path:
    """A file with the first frames of the small beamline in chunks of ten."""
    writer = ptyd.PtydWriter(folder / "a.ptyd", mode, ".part%03d")
    for first in range(0, frames, 10):
        writer.add(chunk(first, min(first + 10, frames)), META | meta, {})
    writer.finish(META | meta, {})
    return folder / "a.ptyd"


def transport(path: Path, decoder: PtydDecoder | None = None, idle_s: float | None = None) -> PtydTransport:
    return PtydTransport(path, idle_s, "s/data", decoder or PtydDecoder())


def everything(source: PtydTransport, decoder: PtydDecoder | None = None) -> list[Event]:
    """Events of all messages until the transport ends."""
    decoder, events = decoder or PtydDecoder(), []
    source.open()
    deadline = time.monotonic() + 60
    try:
        while time.monotonic() < deadline:
            message = source.receive(0.05)
            if message is not None:
                events += decoder.feed(message)
    except TransportClosed:
        return events
    raise AssertionError("the transport does not end")


def drain(source: PtydTransport) -> None:
    """Take what comes for a minute."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        source.receive(0.1)


def frames_of(events: list[Event]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices, counts and positions (by index) of the events."""
    frames = [e for e in events if isinstance(e, Frames)]
    places = np.full((1000, 2), np.nan)
    for e in events:
        if isinstance(e, Samples):
            places[e.first : e.first + len(e.channels["y"])] = np.stack([e.channels["y"], e.channels["x"]], axis=1)
    indices = np.concatenate([e.indices for e in frames])
    return indices, np.stack([decode(p) for e in frames for p in e.payloads]), places[indices]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["moonflower_append.ptyd", "moonflower_link.ptyd"])
def test_ptypys_files_give_their_frames_in_order(name: str) -> None:
    path = sample(name)
    events = everything(transport(path))
    assert isinstance(events[0], ScanStarted) and events[0].metadata["num_frames"] == 25
    assert events[-1] == ScanEnded(name, 25, "completed")
    indices, data, places = frames_of(events)
    with h5py.File(path) as file:
        wanted = np.concatenate([file["chunks"][str(k)]["data"][()] for k in range(3)])
        positions = np.concatenate([file["chunks"][str(k)]["positions"][()] for k in range(3)])
    np.testing.assert_array_equal(indices, np.arange(25))
    np.testing.assert_array_equal(data, wanted)
    assert data.dtype == wanted.dtype
    np.testing.assert_array_equal(places, positions)


@pytest.mark.parametrize("mode", ["append", "link", "merge"])
def test_our_files_give_their_frames(tmp_path: Path, mode: ptyd.Mode) -> None:
    indices, data, places = frames_of(everything(transport(written(tmp_path, mode))))
    np.testing.assert_array_equal(indices, np.arange(FRAMES))
    np.testing.assert_array_equal(data, PATTERNS[:FRAMES])
    np.testing.assert_array_equal(places, PLACES[:FRAMES])


def test_a_link_file_that_was_moved_with_its_parts_is_read(tmp_path: Path) -> None:
    path = written(tmp_path)
    with h5py.File(path, "r+") as file:  # as ptypy writes links
        for k in range(3):
            del file["chunks"][str(k)]
            file["chunks"][str(k)] = h5py.ExternalLink(f"/somewhere/else/a.ptyd.part{k:03d}", "/")
    assert len(frames_of(everything(transport(path)))[0]) == FRAMES


def test_weights_mask_pixels_and_withdrawn_frames_stay_out(tmp_path: Path) -> None:
    path = written(tmp_path, "append")
    with h5py.File(path, "r+") as file:
        file["chunks/0/weights"][3, 5, 6] = False
        file["chunks/0/weights"][7] = False
    indices, data, _ = frames_of(everything(transport(path)))
    np.testing.assert_array_equal(indices, np.delete(np.arange(FRAMES), 7))
    assert data[3, 5, 6] == 65535
    assert np.count_nonzero(data == 65535) == 1


@pytest.mark.parametrize(
    ("dtype", "wire"),
    [
        ("bool", "u1"),
        ("i2", "i4"),
        (">i4", "i4"),
        ("i8", "i4"),
        ("u8", "u4"),
        ("f8", "f4"),
        (">u2", "u2"),
        ("f4", "f4"),
        ("u1", "u1"),
    ],
)
def test_every_kind_of_counts_has_a_form_on_the_wire(dtype: str, wire: str) -> None:
    data = np.ones((1, 2, 2), dtype)
    weights = np.array([[[True, True], [True, False]]])
    made = counts(ptyd.Chunk(data, weights, np.zeros((1, 2)), np.arange(1)))
    assert made.dtype == wire_dtype(np.dtype(dtype)) == np.dtype(wire)
    assert made[0, 0].tolist() == [1, 1]
    assert np.isnan(made[0, 1, 1]) if wire[0] == "f" else made[0, 1, 1] == np.iinfo(wire).max


def test_indices_that_make_no_sense_are_counted_instead(tmp_path: Path) -> None:
    path = written(tmp_path, "append")
    with h5py.File(path, "r+") as file:
        file["chunks/1/indices"][:] = 3
        del file["chunks/2/indices"]
    np.testing.assert_array_equal(frames_of(everything(transport(path)))[0], np.arange(FRAMES))


# ---------------------------------------------------------------------- growing files


@pytest.mark.parametrize("mode", ["append", "link"])
def test_a_growing_file_is_followed(tmp_path: Path, mode: ptyd.Mode) -> None:
    writer = ptyd.PtydWriter(tmp_path / "a.ptyd", mode, ".chunk%02d")
    writer.add(chunk(0, 10), META, {})
    source, decoder, events = transport(tmp_path / "a.ptyd"), PtydDecoder(), list[Event]()
    source.open()

    def read(count: int) -> None:
        deadline = time.monotonic() + 60
        while sum(len(e.indices) for e in events if isinstance(e, Frames)) < count and time.monotonic() < deadline:
            message = source.receive(0.1)
            events.extend(decoder.feed(message) if message is not None else [])

    read(10)
    assert source.receive(0.05) is None
    for first, stop in ((10, 14), (14, FRAMES)):
        writer.add(chunk(first, stop), META, {})
        read(stop)
    np.testing.assert_array_equal(frames_of(events)[1], PATTERNS[:FRAMES])
    with pytest.raises(TransportClosed):
        drain(source)


WRITER = """
import sys, time, numpy as np
from pathlib import Path
from test_ptyd_scan import FRAMES, META, chunk
from ptystream.storage import ptyd
path, mode = Path(sys.argv[1]), sys.argv[2]
writer = ptyd.PtydWriter(path, mode, ".chunk%02d")
for k in range(FRAMES):
    writer.add(chunk(k, k + 1), META | {"num_frames": None}, {})
    time.sleep(0.02)
writer.finish(META, {})
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["append", "link"])
def test_a_writer_in_another_process_is_followed_to_the_last_frame(tmp_path: Path, mode: str) -> None:
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), str(here.parents[1])])
    command = [sys.executable, "-P", "-c", WRITER, str(tmp_path / "a.ptyd"), mode]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}, stderr=subprocess.PIPE, text=True) as writer:
        while not (tmp_path / "a.ptyd").exists() and writer.poll() is None:
            time.sleep(0.01)
        indices, data, _ = frames_of(everything(transport(tmp_path / "a.ptyd")))
        _, said = writer.communicate(timeout=60)
        assert writer.returncode == 0, said
    np.testing.assert_array_equal(indices, np.arange(FRAMES))
    np.testing.assert_array_equal(data, PATTERNS[:FRAMES])


def test_a_part_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    path = written(tmp_path)
    part, aside = tmp_path / "a.ptyd.part001", tmp_path / "aside"
    part.rename(aside)
    threading.Timer(0.6, lambda: aside.rename(part)).start()
    indices, _, _ = frames_of(everything(transport(path)))
    np.testing.assert_array_equal(indices, np.arange(FRAMES))


@pytest.mark.parametrize(("count", "idle_s"), [(None, 0.3), (40, 0.3)])
def test_a_file_that_grows_no_more_ends(tmp_path: Path, count: int | None, idle_s: float) -> None:
    events = everything(transport(written(tmp_path, num_frames=count), idle_s=idle_s))
    assert isinstance(events[-1], ScanEnded)
    assert (events[-1].count, events[-1].reason) == (FRAMES, "nothing was added to the file for 0.3 s")


def test_a_file_that_promises_more_is_waited_for(tmp_path: Path) -> None:
    source = transport(written(tmp_path, num_frames=40))
    source.open()
    got = [source.receive(0.05) for _ in range(20)]
    assert got[-1] is None


def test_after_a_restart_reading_goes_on_where_the_recording_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptystream.storage.ptyd_reading.PIECE_BYTES", 3 * 32 * 32 * 8)
    path = written(tmp_path)
    whole = everything(transport(path))
    for cut in range(1, 9):
        decoder, source, events = PtydDecoder(), transport(path), list[Event]()
        source.open()
        for _ in range(cut):
            message = source.receive(60)
            assert message is not None
            events += decoder.feed(message)
        events += everything(transport(path, decoder), decoder)
        np.testing.assert_array_equal(frames_of(events)[0], np.arange(FRAMES))
        np.testing.assert_array_equal(frames_of(events)[1], frames_of(whole)[1])
        assert events[-1] == whole[-1]
    ended = transport(path, decoder)
    ended.open()
    with pytest.raises(TransportClosed):
        ended.receive(0.1)


# ---------------------------------------------------------------------- damaged and hostile files


def _link(to: str, path: str = "/") -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file["chunks/1"]
        file["chunks/1"] = h5py.ExternalLink(to, path)

    return change


def _data(**how: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file["chunks/1/data"]
        file["chunks/1"].create_dataset("data", **how)

    return change


def _soft(file: h5py.File) -> None:
    del file["chunks/1/data"]
    file["chunks/1/data"] = h5py.ExternalLink("/etc/passwd", "/")


def _weights(file: h5py.File) -> None:
    del file["chunks/1/weights"]
    file["chunks/1/weights"] = np.ones((3, 3))


def _positions(file: h5py.File) -> None:
    del file["chunks/1/positions"]
    file["chunks/1/positions"] = np.zeros((3, 2))


def _missing(file: h5py.File) -> None:
    del file["chunks/1/data"]


def _virtual(file: h5py.File) -> None:
    del file["chunks/1/data"]
    layout = h5py.VirtualLayout((10, 32, 32), "u2")
    layout[:] = h5py.VirtualSource("/etc/passwd", "a", (10, 32, 32))
    file["chunks/1"].create_virtual_dataset("data", layout)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_link("../../etc/passwd"), "lies outside"),
        (_link("/etc/passwd"), "lies outside"),
        (_link("a.ptyd.part001", "/inner"), "at its root"),
        (_soft, "link to another file"),
        (_virtual, "other files"),
        (_missing, "leads to nothing"),
        (_weights, "the data have"),
        (_positions, r"not \(10, 2\)"),
        (_data(data=np.zeros((10, 16, 32), "u2")), "/meta says"),
        (_data(data=np.zeros((10, 32), "u2")), "must be real numbers"),
        (_data(data=np.zeros((2, 32, 32), "c8")), "must be real numbers"),
        (_data(shape=(10, 1 << 20, 1 << 20), dtype="u2", chunks=(1, 64, 64)), "nothing is stored|more than"),
        (_data(shape=(1 << 40, 32, 32), dtype="u2", chunks=(1, 32, 32)), "nothing is stored|allowed"),
        (_data(shape=(10, 32, 32), dtype="u2", chunks=(1, 32, 32)), "nothing is stored"),
        (_data(shape=(2,), dtype=h5py.special_dtype(vlen=np.dtype("u1"))), "must be real numbers"),
    ],
)
def test_a_hostile_file_is_refused_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[h5py.File], None], said: str
) -> None:
    monkeypatch.setattr("ptystream.detectors.ptyd.source.PATIENCE_S", 0.2)
    path = written(tmp_path, "append")
    with h5py.File(path, "r+") as file:
        change(file)
    source = transport(path)
    source.open()
    with pytest.raises(OSError, match=said) as raised:
        drain(source)
    assert str(raised.value).startswith("s/data: ") and "a.ptyd" in str(raised.value)


def test_a_symbolic_link_out_of_the_folder_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptystream.detectors.ptyd.source.PATIENCE_S", 0.2)
    (tmp_path / "in").mkdir()
    path = written(tmp_path / "in")
    shutil.move(tmp_path / "in" / "a.ptyd.part001", tmp_path / "outside")
    os.symlink(tmp_path / "outside", tmp_path / "in" / "a.ptyd.part001")
    source = transport(path)
    source.open()
    with pytest.raises(OSError, match="lies outside"):
        drain(source)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"shape": np.array([1 << 20, 4])}, "/meta/shape"),
        ({"psize": np.array([0.0, 1.0])}, "/meta/psize"),
        ({"energy": -1.0}, "/meta/energy"),
        ({"distance": np.nan}, "/meta/distance"),
        ({"num_frames": -5}, "/meta/num_frames"),
        ({"shape": None}, "damaged"),
    ],
)
def test_meta_that_cannot_be_is_refused(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    path = written(tmp_path, "append", **changed)
    with pytest.raises(ConfigurationError, match=said):
        load(configuration(path))


def test_a_file_that_is_cut_off_or_none_is_named_at_load_time(tmp_path: Path) -> None:
    path = written(tmp_path, "append")
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ConfigurationError, match=r"scans\.s\.data\.dfile: .*a\.ptyd.*not a whole one"):
        load(configuration(path))
    with pytest.raises(ConfigurationError, match=r"no such file \(yet\): begin when"):
        load(configuration(tmp_path / "b.ptyd"))
    with pytest.raises(ConfigurationError, match="needs the name"):
        load(configuration(None))


# ---------------------------------------------------------------------- parameters and whole sessions


def configuration(dfile: Path | str | None, home: Path | str = ".", **data: Any) -> dict[str, Any]:
    return {
        "run": "t",
        "min_frames_for_recon": BEAM.frames + 1,
        "threads": 1,
        "io": {"home": str(home), "rfile": "%(run)s.ptyr", "autosave": {"active": False}},
        "scans": {
            "s": {
                "name": "Full",
                "data": {"name": "PtydScan", "dfile": None if dfile is None else str(dfile), **data},
                "illumination": {"aperture": {"size": 4e-7}},
            }
        },
        "engines": {"e": {"name": "DM", "numiter": 5}},
    }


def parameters(given: dict[str, Any]) -> Any:
    return load(given).scans[0].data.parameters


def test_as_they_are_the_files_geometry_holds_and_nothing_is_processed(tmp_path: Path) -> None:
    path = written(tmp_path, energy=9.0, label="S7")
    given = {"shape": 8, "psize": 1.0, "rebin": 2, "orientation": 3, "auto_center": True, "save": "append", "energy": 5.0}
    for source in ({}, {"source": None}, {"source": "file"}):
        p = parameters(configuration(path, **given, **source))
        assert (p.shape, p.center, p.energy, p.label) == ((32, 32), (16.0, 16.0), 9.0, "S7")
        assert (p.rebin, p.orientation, p.auto_center, p.save) == (None, None, False, None)
        np.testing.assert_allclose(p.psize, GEOMETRY["psize"])


def test_reprocessed_what_is_given_holds_and_the_file_says_the_rest(tmp_path: Path) -> None:
    path = written(tmp_path)
    p = parameters(configuration("out.ptyd", tmp_path, source="a.ptyd", shape=16, rebin=2, save="link", energy=5.0))
    assert (p.shape, p.energy, p.rebin, p.save, p.distance) == (16, 5.0, 2, "link", GEOMETRY["distance"])
    assert (p.source, p.dfile) == (str(path), str(tmp_path / "out.ptyd"))
    same = parameters(configuration("a.ptyd", tmp_path, source="a.ptyd", save="link"))
    assert same.dfile == str(tmp_path / "a_n.ptyd")


def run(given: dict[str, Any], **inputs: Any) -> ptyr.Result:
    (path,) = Session(make_plan(load(given), transports=inputs), metrics=Metrics()).run()
    return ptyr.read(path)


def test_a_center_outside_the_files_frames_is_told_at_load_time(tmp_path: Path) -> None:
    written(tmp_path)
    with pytest.raises(
        ConfigurationError, match=r"scans\..*\.data\.center: \(3\.0, 400\.0\): lies outside the frames of \(32, 32\)"
    ):
        load(configuration("out.ptyd", tmp_path, source="a.ptyd", center=(3.0, 400.0)))


def test_what_a_session_saves_another_reconstructs_to_the_same_image(tmp_path: Path) -> None:
    frames, places = messages()
    first = configuration("a.ptyd", tmp_path / "one", save="link")
    source = {"name": "ZmqScan"}
    first["scans"]["s"]["data"] |= {**source, "shape": BEAM.side, **GEOMETRY, "positions": source}
    wanted = run(first, **{"s/data": Memory("s/data", frames), "s/positions": Memory("s/positions", places)})
    file = tmp_path / "one" / "a.ptyd"
    with h5py.File(file) as held:
        assert held["meta/num_frames"][()] == BEAM.frames
    found = run(configuration(file, tmp_path / "two"))
    assert found.ledger["used"] == found.ledger["received"] == BEAM.frames
    np.testing.assert_array_equal(found.object["SsG00"].data, wanted.object["SsG00"].data)
    np.testing.assert_array_equal(found.positions_m, wanted.positions_m)
    assert found.used["scans"]["s"]["data"]["energy"] == GEOMETRY["energy"]


def test_a_reprocessed_file_is_saved_anew(tmp_path: Path) -> None:
    written(tmp_path)
    result = run(configuration("b.ptyd", tmp_path, source="a.ptyd", save="merge", rebin=2))
    assert result.ledger["used"] == FRAMES
    assert result.probe["SsG00"].shape == (16, 16)
    with h5py.File(tmp_path / "b.ptyd") as file:
        data = file["chunks/0/data"][()]
        np.testing.assert_array_equal(data, PATTERNS[:FRAMES].reshape(-1, 16, 2, 16, 2).astype(int).sum(axis=(2, 4)))
        np.testing.assert_allclose(file["meta/psize"][()], 2 * GEOMETRY["psize"])


@pytest.mark.slow
def test_ptypys_frames_are_reconstructed_as_ptypy_did(tmp_path: Path) -> None:
    """DM on ptypy's own prepared file, from ptypy's own probe: its last errors are met."""
    for name in ("moonflower_link.ptyd", *(f"moonflower_link.ptyd.part{k:03d}" for k in range(3))):
        shutil.copy(sample(name), tmp_path / name)
    given = configuration("moonflower_link.ptyd", tmp_path)
    given["engines"]["e"]["numiter"] = 20
    result = run(given)
    assert result.ledger["used"] == 25
    theirs = ptyr.read(sample("moonflower_minimal.ptyr")).object["SMFG00"]
    ours = result.object["SsG00"]
    np.testing.assert_allclose(ours.pixel_size_m, theirs.pixel_size_m, rtol=1e-9)
    assert result.misfit[-1, 0] < 0.5 * result.misfit[0, 0]


def test_used_params_can_be_written_for_this_source_too(tmp_path: Path) -> None:
    given = configuration(written(tmp_path), tmp_path)
    given["io"]["rformat"] = "used_params"
    run(given)
    with h5py.File(tmp_path / "t.ptyr") as file:
        pars = h5.read(file["content/pars/scans/s/data"])
    assert pars["energy"] == GEOMETRY["energy"] and pars["shape"] == (32, 32) and pars["source"] == "file"


def test_the_decoder_counts_nothing_but_what_it_understood() -> None:
    decoder = PtydDecoder()
    decoder.feed(Message(0, "s/data", (b"nonsense",)))
    assert (decoder.chunk, decoder.row, decoder.read, decoder.sent, decoder.ended) == (0, 0, 0, 0, False)
    assert isinstance(PtydScan.decoder(None, "s/data"), PtydDecoder)
