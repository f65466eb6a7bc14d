"""HDF5 files as sources: finished and growing, whole sessions, damaged files, and every parameter."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest
from problems import BEAM, GEOMETRY, PATTERNS, PLACES

from ptystream.codecs import decode
from ptystream.detectors.hdf5 import Hdf5Scan
from ptystream.detectors.hdf5.paths import Place, parse
from ptystream.detectors.hdf5.simulator import FRAMES, write
from ptystream.events import Frames, Rejected, Samples, ScanEnded, ScanStarted
from ptystream.metrics import Metrics
from ptystream.params.errors import ConfigurationError
from ptystream.params.load import load, source_parameters
from ptystream.plan import make_plan
from ptystream.scan.parameters import PositionsParameters, PtyScanParameters
from ptystream.session import Session
from ptystream.storage import ptyr
from ptystream.transport import TransportClosed

YX = {"y": "/entry/stage/y", "x": "/entry/stage/x"}


def source(common: Any = PtyScanParameters, **given: Any) -> tuple[Any, Any]:
    p = source_parameters(Hdf5Scan, common)(**given)
    decoder = Hdf5Scan.decoder(p, "s/data")
    return Hdf5Scan.transport(p, "s/data", decoder), decoder


def events_of(transport: Any, decoder: Any, limit_s: float = 60.0, messages: list[Any] | None = None) -> list[Any]:
    """All events until the transport closes or (of a pattern) one scan has ended."""
    transport.open()
    events: list[Any] = []
    deadline = time.monotonic() + limit_s
    try:
        while time.monotonic() < deadline and not any(isinstance(e, ScanEnded) for e in events):
            message = transport.receive(0.1)
            if message is not None:
                if messages is not None:
                    messages.append(message)
                events += decoder.feed(message)
        assert any(isinstance(e, ScanEnded) for e in events), events[-2:]
    finally:
        transport.close()
    return events


def pixels_of(events: list[Any]) -> dict[int, Any]:
    return {int(i): decode(p).copy() for e in events if isinstance(e, Frames) for i, p in zip(e.indices, e.payloads, strict=True)}


def channels_of(events: list[Any]) -> dict[str, Any]:
    found = sorted((e for e in events if isinstance(e, Samples)), key=lambda e: e.first)
    return {name: np.concatenate([e.channels[name] for e in found]) for name in found[0].channels} if found else {}


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    for codec in ("bslz4", "lz4", "gzip", "none"):
        write(folder / f"{codec}.h5", BEAM, codec=codec, together=40, wait=lambda s: False)
    return folder


def configuration(folder: Path, path: Path, /, **data: Any) -> dict[str, Any]:
    given = {"name": "Hdf5Scan", "file": str(path), "frames": FRAMES, "samples": YX, "shape": BEAM.side, **GEOMETRY, **data}
    given = {key: value for key, value in given.items() if value is not ...}
    return {
        "run": "t",
        "min_frames_for_recon": BEAM.frames + 1,
        "threads": 1,
        "io": {"home": str(folder), "rfile": "%(run)s.ptyr"},
        "scans": {"s": {"name": "Full", "data": given, "illumination": {"aperture": {"size": 4e-7}}}},
        "engines": {"e": {"name": "DM", "numiter": 5}},
    }


@pytest.mark.parametrize("codec", ["bslz4", "lz4", "gzip", "none"])
def test_a_finished_file_comes_whole_and_known_codecs_as_they_are_stored(scans: Path, codec: str) -> None:
    events = events_of(*source(file=str(scans / f"{codec}.h5"), frames=FRAMES, samples=YX))
    got = pixels_of(events)
    np.testing.assert_array_equal([got[k] for k in range(BEAM.frames)], PATTERNS)
    kinds = {p.codec for e in events if isinstance(e, Frames) for p in e.payloads}
    assert kinds == {codec if codec in ("bslz4", "lz4") else "raw"}
    channels = channels_of(events)
    np.testing.assert_allclose(np.stack([channels["y"], channels["x"]], axis=1), PLACES, rtol=1e-12)
    assert isinstance(events[0], ScanStarted) and events[0].metadata["at_once"] is True
    assert events[-1] == ScanEnded(f"{codec}.h5", BEAM.frames, "completed")


@pytest.mark.slow
def test_a_session_reconstructs_while_another_process_writes(tmp_path: Path) -> None:
    file = tmp_path / "scan.h5"
    given = configuration(tmp_path, file) | {"min_frames_for_recon": 20}
    ready = threading.Event()
    running = Session(make_plan(load(given)), metrics=Metrics(), on_ready=ready.set)
    thread = threading.Thread(target=running.run)
    thread.start()
    assert ready.wait(60)
    code = (  # every frame after the first thirty waits for a line
        "import sys\nfrom dataclasses import replace\nfrom pathlib import Path\nsys.path[:0] = sys.argv[2:]\n"
        "from problems import BEAM\nfrom ptystream.detectors.hdf5.simulator import write\nturns = iter(range(1000))\n"
        "write(Path(sys.argv[1]), replace(BEAM, rate_hz=0.001), wait=lambda s: next(turns) >= 30 and not sys.stdin.readline())"
    )
    command = [sys.executable, "-P", "-c", code, str(file), str(Path(__file__).parents[2])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        deadline = time.monotonic() + 60
        while not running.status()["used"]:  # it reconstructs before the writer is done
            assert time.monotonic() < deadline and child.poll() is None
            time.sleep(0.01)
        child.stdin.write("\n" * BEAM.frames)
        child.stdin.close()
        thread.join(60)
        assert not thread.is_alive()
    assert child.returncode == 0
    (path,) = running.results
    result = ptyr.read(path)
    assert result.ledger["used"] == BEAM.frames
    finished = Session(make_plan(load(configuration(tmp_path / "again", file))), metrics=Metrics())
    (path,) = finished.run()
    again = ptyr.read(path)
    assert again.ledger["used"] == BEAM.frames
    order = np.lexsort(again.positions_m.T), np.lexsort(result.positions_m.T)
    np.testing.assert_allclose(again.positions_m[order[0]], result.positions_m[order[1]], rtol=1e-12)


def test_positions_from_one_file_and_frames_from_another(tmp_path: Path, scans: Path) -> None:
    both = scans / "gzip.h5"
    positions = {"name": "Hdf5Scan", "file": str(both), "samples": YX}
    given = configuration(tmp_path, both, samples=..., positions=positions)
    (path,) = Session(make_plan(load(given)), metrics=Metrics()).run()
    assert ptyr.read(path).ledger["used"] == BEAM.frames


def test_what_the_file_knows_stands_in_for_what_the_configuration_leaves_out(tmp_path: Path, scans: Path) -> None:
    places = {
        "energy_from": "/entry/beam/energy",
        "distance_from": "/entry/detector/distance",
        "psize_from": "/entry/detector/pixel_size in m",
        "mask_from": "/entry/detector/mask",
        "expected": "/entry/detector/number",
    }
    left_out = dict.fromkeys(GEOMETRY, ...)
    p = load(configuration(tmp_path, scans / "lz4.h5", **left_out, **places)).scans[0].data.parameters
    for name, value in GEOMETRY.items():
        assert getattr(p, name) == pytest.approx(value), name
    assert p.mask.shape == (32, 32) and p.mask.all()
    p = load(configuration(tmp_path, scans / "lz4.h5", **GEOMETRY, **places) | {}).scans[0].data.parameters
    assert p.energy == GEOMETRY["energy"]
    start = events_of(*source(file=str(scans / "lz4.h5"), frames=FRAMES, **places))[0]
    assert start.metadata["energy"] == pytest.approx(GEOMETRY["energy"])
    assert start.metadata["distance"] == pytest.approx(GEOMETRY["distance"])
    assert start.metadata["num_frames"] == BEAM.frames
    assert start.metadata["mask"].shape == (32, 32) and start.metadata["mask"].all()


def test_a_file_that_appears_later_tells_the_geometry_of_its_scan(tmp_path: Path, scans: Path) -> None:
    places = {"energy_from": "/entry/beam/energy", "distance_from": "/entry/detector/distance"}
    left_out = dict.fromkeys(GEOMETRY, ...)
    given = configuration(tmp_path, tmp_path / "scan_*.h5", **left_out, **places, psize_from="/entry/detector/pixel_size in m")
    ready = threading.Event()
    running = Session(make_plan(load(given)), metrics=Metrics(), on_ready=ready.set)
    thread = threading.Thread(target=running.run)
    thread.start()
    assert ready.wait(60)
    (tmp_path / ".new").write_bytes((scans / "bslz4.h5").read_bytes())
    (tmp_path / ".new").rename(tmp_path / "scan_1.h5")
    thread.join(60)
    assert not thread.is_alive()
    told, known = ptyr.read(running.results[0]), tmp_path / "known"
    (path,) = Session(make_plan(load(configuration(known, scans / "bslz4.h5"))), metrics=Metrics()).run()
    for name, storage in ptyr.read(path).object.items():
        assert told.object[name].data.shape == storage.data.shape
        np.testing.assert_allclose(told.object[name].pixel_size_m, storage.pixel_size_m, rtol=1e-9)


def test_the_mask_names_the_pixels_that_are_bad_and_two_places_make_a_pair(tmp_path: Path) -> None:
    file = tmp_path / "a.h5"
    bad = np.zeros((6, 5), "u4")
    bad[2, 3] = 4
    with h5py.File(file, "w", libver="v110") as f:
        f["d"], f["mask"], f["y"], f["x"] = np.ones((3, 6, 5), "u2"), bad, 2.5, 3.5
    given = {
        "file": str(file),
        "frames": "/d",
        "mask_from": "/mask",
        "center_from": ("/y", "/x"),
        "psize_from": ("/y in um", "/x in um"),
    }
    start = events_of(*source(**given))[0]
    np.testing.assert_array_equal(start.metadata["mask"], bad == 0)
    assert list(start.metadata["center"]) == [2.5, 3.5]
    assert start.metadata["psize"] == pytest.approx([2.5e-6, 3.5e-6])


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("/a/b", Place("/a/b")),
        ("/a/b[:,1]", Place("/a/b", component=1)),
        ("/a/b[2, :] in um", Place("/a/b", component=2, axis=0, factor=1e-6)),
        ("/a@n", Place("/a", attribute="n")),
        ("/a in J", Place("/a", factor=1 / 1.602176634e-16)),
    ],
)
def test_places_are_read_as_they_are_written(text: str, place: Place) -> None:
    assert parse(text) == place


@pytest.mark.slow
@pytest.mark.parametrize("text", ["", "/", "a/b", "/a[1]", "/a[:,:]", "/a[:,x]", "/a in furlongs", "/a@", "/a[0,1]"])
def test_what_is_no_place_is_refused_when_the_configuration_is_read(tmp_path: Path, scans: Path, text: str) -> None:
    for name in ("times", "energy_from", "expected", "finished", "mask_from"):
        with pytest.raises(ConfigurationError, match=f"scans.s.data.{name}"):
            load(configuration(tmp_path, scans / "lz4.h5", **{name: text}))
    with pytest.raises(ConfigurationError, match=r"scans.s.data.samples"):
        load(configuration(tmp_path, scans / "lz4.h5", samples={"y": text, "x": "/x"}))


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"frames": "/entry/nothing"}, r"there is no 'nothing' in /entry \(beam, data"),
        ({"frames": "/entry"}, "is a group"),
        ({"frames": "/entry/stage/y"}, "frames need three axes"),
        ({"frames": "/entry/data/data[:,1]"}, "without attribute, index or unit"),
        ({"frames": ...}, "a source of frames needs the path"),
        ({"samples": {"y": "/entry/sample/translation[:,7]", "x": "/entry/stage/x"}}, "has no component 7"),
        ({"file": ""}, "name of a file"),
        ({"idle_s": -1.0}, "greater than or equal"),
    ],
)
def test_what_cannot_be_is_told_before_anything_runs(tmp_path: Path, scans: Path, changed: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        load(configuration(tmp_path, scans / "lz4.h5", **changed))
    with pytest.raises(ConfigurationError, match="a source of positions needs channels"):
        load(configuration(tmp_path, scans / "lz4.h5", positions={"name": "Hdf5Scan", "file": "x.h5"}))


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("codec", ["bslz4", "gzip", "none"])
def test_awkward_growth_gives_every_frame_once(tmp_path: Path, chunk: int, codec: str) -> None:
    file = tmp_path / "grow.h5"
    asked = threading.Semaphore(0)
    code = (
        "import sys\nfrom pathlib import Path\nsys.path[:0] = sys.argv[4:]\nfrom problems import BEAM\n"
        "from ptystream.detectors.hdf5.simulator import write\n"
        "write(Path(sys.argv[1]), BEAM, codec=sys.argv[2], frames_per_chunk=int(sys.argv[3]), together=7,"
        " wait=lambda s: print('step', flush=True) or not sys.stdin.readline())"
    )
    folder = str(Path(__file__).parents[2])
    command = [sys.executable, "-P", "-c", code, str(file), codec, str(chunk), folder]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None and child.stdout is not None

    def listen() -> None:
        for _ in child.stdout:  # type: ignore[union-attr]
            asked.release()

    thread = threading.Thread(target=listen)
    thread.start()
    transport, decoder = source(file=str(file), frames=FRAMES, samples=YX, idle_s=None)
    transport.open()
    events: list[Any] = []
    seen = set()
    try:
        while True:
            message = transport.receive(0.06)
            if message is not None:
                events += decoder.feed(message)
            elif asked.acquire(blocking=False):
                child.stdin.write("\n")
                child.stdin.flush()
                seen.add(len(pixels_of(events)))
    except TransportClosed:
        pass
    finally:
        child.stdin.close()
        child.wait(60)
        thread.join(60)
        child.stdout.close()
        transport.close()
    assert len(seen) > 3, seen
    indices = [int(i) for e in events if isinstance(e, Frames) for i in e.indices]
    assert indices == list(range(BEAM.frames))
    got = pixels_of(events)
    np.testing.assert_array_equal([got[k] for k in indices], PATTERNS)
    channels = channels_of(events)
    np.testing.assert_allclose(np.stack([channels["y"], channels["x"]], axis=1), PLACES, rtol=1e-12)


def test_after_a_restart_reading_goes_on_behind_what_was_recorded(scans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptystream.detectors.hdf5.follow.MESSAGE_BYTES", 10 * 2048)
    transport, decoder = source(file=str(scans / "bslz4.h5"), frames=FRAMES, samples=YX)
    messages: list[Any] = []
    wanted = events_of(transport, decoder, messages=messages)
    for cut in (1, 2, 5, len(messages) - 1):
        transport, decoder = source(file=str(scans / "bslz4.h5"), frames=FRAMES, samples=YX)
        before = [event for message in messages[:cut] for event in decoder.feed(message)]
        rest = events_of(transport, decoder)
        indices = [int(i) for e in [*before, *rest] if isinstance(e, Frames) for i in e.indices]
        assert indices == list(range(BEAM.frames))
        assert sum(isinstance(e, ScanStarted) for e in [*before, *rest]) == 1
        assert rest[-1] == wanted[-1]
        assert len(channels_of([*before, *rest])["y"]) == BEAM.frames


def test_the_next_file_that_appears_is_the_next_scan(tmp_path: Path, scans: Path) -> None:
    def names(events: list[Any]) -> list[str]:
        return [e.epoch for e in events if isinstance(e, ScanEnded)]

    def put(name: str) -> None:
        (tmp_path / f".{name}").write_bytes((scans / "lz4.h5").read_bytes())
        (tmp_path / f".{name}").rename(tmp_path / name)

    put("scan_1.h5")
    put("other.h5")
    for existing, expected in ((False, ["scan_2.h5", "scan_3.h5"]), (True, ["scan_1.h5", "scan_2.h5", "scan_3.h5"])):
        transport, decoder = source(file=str(tmp_path / "scan_*.h5"), frames=FRAMES, existing=existing)
        transport.open()
        events: list[Any] = []
        deadline, written = time.monotonic() + 60, 2
        while len(names(events)) < len(expected) and time.monotonic() < deadline:
            message = transport.receive(0.05)
            events += decoder.feed(message) if message is not None else []
            if len(names(events)) == written - (1 if existing else 2) and written < 4:
                put(f"scan_{written}.h5")
                written += 1
        assert names(events) == expected
        assert transport.receive(0.1) is None
        transport.close()
        for number in (2, 3):
            (tmp_path / f"scan_{number}.h5").unlink()


def test_links_and_virtual_datasets_are_followed_within_the_folder_only(tmp_path: Path, scans: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    data = (scans / "gzip.h5").read_bytes()
    for folder in (inside, outside):
        (folder / "raw.h5").write_bytes(data)
    for name, target in (("near", "raw.h5"), ("far", str(outside / "raw.h5"))):
        with h5py.File(inside / f"{name}.h5", "w", libver="v110") as f:
            f["d"] = h5py.ExternalLink(target, FRAMES)
            f["soft"] = h5py.SoftLink("/d")
            layout = h5py.VirtualLayout((BEAM.frames, 32, 32), "u2")
            layout[:] = h5py.VirtualSource(target, FRAMES, (BEAM.frames, 32, 32))
            f.create_virtual_dataset("v", layout)
    for path in ("/d", "/soft", "/v"):
        got = pixels_of(events_of(*source(file=str(inside / "near.h5"), frames=path)))
        np.testing.assert_array_equal([got[k] for k in range(BEAM.frames)], PATTERNS)
        allowed = pixels_of(events_of(*source(file=str(inside / "far.h5"), frames=path, folders=(str(outside),))))
        assert len(allowed) == BEAM.frames
    with pytest.raises(ConfigurationError, match="only files below"):
        load(configuration(tmp_path, inside / "far.h5", frames="/d", samples=...))


def test_a_virtual_dataset_waits_for_the_sources_that_are_missing(tmp_path: Path, scans: Path) -> None:
    half = BEAM.frames // 2
    for number in range(2):
        with h5py.File(tmp_path / f".part{number}.h5", "w", libver="v110") as f:
            f["d"] = PATTERNS[number * half : (number + 1) * half]
    with h5py.File(tmp_path / "v.h5", "w", libver="v110") as f:
        layout = h5py.VirtualLayout((2 * half, 32, 32), "u2")
        for number in range(2):
            layout[number * half : (number + 1) * half] = h5py.VirtualSource(f"part{number}.h5", "d", (half, 32, 32))
        f.create_virtual_dataset("v", layout)
    from ptystream.detectors.hdf5.reading import FrameDataset
    from ptystream.storage.opened import Opened

    with Opened(tmp_path / "v.h5") as file:
        frames = FrameDataset(file, "/v")
        assert frames.written(0, False) == 0
        (tmp_path / ".part0.h5").rename(tmp_path / "part0.h5")
        assert frames.written(0, False) == half
        (tmp_path / ".part1.h5").rename(tmp_path / "part1.h5")
        assert frames.written(half, False) == 2 * half


def patterned(path: Path, file: str, dataset: str, per: int) -> None:
    """A closed file whose frames '/v', `per` to a block, lie in files or datasets that a pattern names."""
    with h5py.File(path, "w", libver="v110") as f:
        whole = h5py.h5s.create_simple((0, 32, 32), (h5py.h5s.UNLIMITED, 32, 32))
        whole.select_hyperslab((0, 0, 0), (h5py.h5s.UNLIMITED, 1, 1), (per, 1, 1), (per, 32, 32))
        source = h5py.h5s.create_simple((per, 32, 32))
        made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        made.set_virtual(whole, file.encode(), dataset.encode(), source)
        h5py.h5d.create(f.id, b"v", h5py.h5t.STD_U16LE, whole, made)


@pytest.mark.parametrize(("file", "dataset"), [("raw%%_%b.h5", "d"), ("raw.h5", "d%b"), ("%b/raw_%b.h5", "d")])
def test_sources_that_a_pattern_names_come_block_by_block(tmp_path: Path, file: str, dataset: str) -> None:
    patterned(tmp_path / "v.h5", file, dataset, 4)
    transport, decoder = source(file=str(tmp_path / "v.h5"), frames="/v", idle_s=3.0)
    transport.open()
    events: list[Any] = []

    def there() -> int:
        return len(pixels_of(events))

    for block in range(3):
        path = tmp_path / file.replace("%%", "%").replace("%b", str(block))
        path.parent.mkdir(exist_ok=True)
        with h5py.File(path, "a", libver="v110") as f:
            # The second is made with room for all of its frames, and one of them is never written.
            data = f.create_dataset(dataset.replace("%b", str(block)), (4, 32, 32), "u2", chunks=(1, 32, 32))
            for row in range(4):
                if (block, row) != (1, 2):
                    data[row] = PATTERNS[4 * block + row]
        if block == 0:
            come(transport, decoder, events, lambda: there() == 4)
    come(transport, decoder, events, lambda: any(isinstance(e, ScanEnded) for e in events))
    got = pixels_of(events)
    assert sorted(got) == [k for k in range(12) if k != 6]
    for k, frame in got.items():
        np.testing.assert_array_equal(frame, PATTERNS[k])
    assert events[-1].count == 12


def test_a_pattern_leads_to_no_other_folder(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    patterned(inside / "v.h5", str(outside / "raw%b.h5"), "d", 4)
    with h5py.File(outside / "raw0.h5", "w") as f:
        f["d"] = PATTERNS[:4]
    from ptystream.detectors.hdf5.reading import FrameDataset
    from ptystream.storage.opened import Opened, RefusedError

    with Opened(inside / "v.h5") as file, pytest.raises(RefusedError, match=str(outside)):
        FrameDataset(file, "/v").written(0, True)


@pytest.mark.parametrize("chunks", [(1, 32, 32), (2, 32, 32), (1, 16, 32), None])
def test_what_a_closed_source_never_got_is_missing_and_not_dark(tmp_path: Path, chunks: Any) -> None:
    written = {None: [], (2, 32, 32): [0, 1, 4, 5]}.get(chunks, [0, 2, 5])
    with h5py.File(tmp_path / "part.h5", "w", libver="v110") as f:
        data = f.create_dataset("d", (6, 32, 32), "u2", chunks=chunks)
        for row in written:
            data[row] = PATTERNS[row]
    with h5py.File(tmp_path / "v.h5", "w", libver="v110") as f:
        layout = h5py.VirtualLayout((6, 32, 32), "u2")
        layout[:] = h5py.VirtualSource("part.h5", "d", (6, 32, 32))
        f.create_virtual_dataset("v", layout)
    events = events_of(*source(file=str(tmp_path / "v.h5"), frames="/v"))
    assert sorted(pixels_of(events)) == written
    assert isinstance(events[-1], ScanEnded) and events[-1].count == 6


def master_of(path: Path, parts: int, rows: int) -> None:
    """A closed file whose frames '/v' and readings '/y' lie in `parts` others of so many rows: every `parts`-th is of one."""
    with h5py.File(path, "w", libver="v110") as f:
        frames, numbers = h5py.VirtualLayout((parts * rows, 32, 32), "u2"), h5py.VirtualLayout((parts * rows,), "f8")
        for number in range(parts):
            frames[number::parts] = h5py.VirtualSource(f"part{number}.h5", "d", (rows, 32, 32))
            numbers[number::parts] = h5py.VirtualSource(f"part{number}.h5", "y", (rows,))
        f.create_virtual_dataset("v", frames)
        f.create_virtual_dataset("y", numbers)
        f["d"] = h5py.ExternalLink("part0.h5", "d")


def part_of(path: Path, number: int, parts: int, rows: int) -> Any:
    """A file in which room was made and which is still open."""
    f = h5py.File(path / f"part{number}.h5", "w", libver="v110", locking=False)
    f.create_dataset("d", (rows, 32, 32), "u2", chunks=(1, 32, 32))
    f.create_dataset("y", (rows,), "f8", chunks=(1,))
    f.swmr_mode = True
    return f


def fill(f: Any, number: int, parts: int, rows: range) -> None:
    for row in rows:
        f["d"][row] = PATTERNS[number + parts * row]
        f["y"][row] = 1.0 + number + parts * row
    f.flush()


def come(transport: Any, decoder: Any, events: list[Any], until: Any, limit_s: float = 60.0) -> None:
    """Receive until `until()`, then for some looks more."""
    deadline, more = time.monotonic() + limit_s, 6
    while more:
        assert time.monotonic() < deadline, events[-2:]
        try:
            message = transport.receive(0.06)
        except TransportClosed:
            return
        if message is not None:
            events += decoder.feed(message)
        more -= until()


@pytest.mark.slow
@pytest.mark.parametrize("readings", [False, True])
def test_a_closed_master_waits_for_the_files_behind_it(tmp_path: Path, readings: bool) -> None:
    """Sources that are missing, begun, half full and closed at last, interleaved row by row."""
    master_of(tmp_path / "v.h5", 2, 4)
    given = {"frames": "/v", "samples": {"y": "/y in m"}} if readings else {"frames": "/v"}
    transport, decoder = source(file=str(tmp_path / "v.h5"), **given, idle_s=None)
    transport.open()
    events: list[Any] = []

    def there() -> int:
        assert not any(isinstance(e, (ScanEnded, Rejected)) for e in events), events[-1]
        return len(pixels_of(events))

    come(transport, decoder, events, lambda: there() == 0)
    first = part_of(tmp_path, 0, 2, 4)
    fill(first, 0, 2, range(4))
    first.close()
    come(transport, decoder, events, lambda: there() == 1)  # the second row is the other file's
    second = part_of(tmp_path, 1, 2, 4)
    come(transport, decoder, events, lambda: there() == 1)
    fill(second, 1, 2, range(2))
    come(transport, decoder, events, lambda: there() == 5)
    fill(second, 1, 2, range(2, 4))
    come(transport, decoder, events, lambda: there() == 8)
    second.close()
    come(transport, decoder, events, lambda: isinstance(events[-1], ScanEnded))
    transport.close()
    assert events[-1] == ScanEnded("v.h5", 8, "completed")
    got = pixels_of(events)
    np.testing.assert_array_equal([got[k] for k in range(8)], PATTERNS[:8])
    if readings:
        assert channels_of(events)["y"].tolist() == list(range(1, 9))


def test_readings_alone_wait_for_the_files_behind_them(tmp_path: Path) -> None:
    master_of(tmp_path / "v.h5", 1, 4)
    transport, decoder = source(PositionsParameters, file=str(tmp_path / "v.h5"), samples={"y": "/y in m"}, idle_s=None)
    transport.open()
    events: list[Any] = []
    come(transport, decoder, events, lambda: not any(isinstance(e, (Samples, ScanEnded)) for e in events))
    part = part_of(tmp_path, 0, 1, 4)
    fill(part, 0, 1, range(3))
    come(transport, decoder, events, lambda: len(channels_of(events).get("y", ())) == 3)
    assert not isinstance(events[-1], ScanEnded)
    fill(part, 0, 1, range(3, 4))
    part.close()
    come(transport, decoder, events, lambda: isinstance(events[-1], ScanEnded))
    transport.close()
    assert channels_of(events)["y"].tolist() == [1, 2, 3, 4]


WRITER = """
import sys, h5py
f = h5py.File(sys.argv[1], "w", libver="v110")
d = f.create_dataset("d", (0, 32, 32), "u2", chunks=(1, 32, 32), maxshape=(None, 32, 32))
y = f.create_dataset("y", (0,), "f8", chunks=(64,), maxshape=(None,))
f.swmr_mode = True
for row, _ in enumerate(sys.stdin, 1):
    d.resize(row, axis=0)
    y.resize(row, axis=0)
    d[-1] = y[-1] = row
    f.flush()
f.close()
"""
"""Writes one row for every line that it is sent."""


def test_a_closed_master_is_read_while_another_process_writes_the_file_behind_it(tmp_path: Path) -> None:
    """The writer's flags in a file do not keep the library from reading it through the master."""
    master_of(tmp_path / "v.h5", 1, 4)
    transport, decoder = source(file=str(tmp_path / "v.h5"), frames="/v", samples={"y": "/y in m"}, idle_s=None)
    transport.open()
    events: list[Any] = []
    command = [sys.executable, "-P", "-c", WRITER, str(tmp_path / "part0.h5")]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, text=True)
    assert child.stdin is not None
    try:
        for count in range(1, 5):
            child.stdin.write("\n")
            child.stdin.flush()
            come(transport, decoder, events, lambda count=count: len(pixels_of(events)) == count)  # type: ignore[misc]
            assert child.poll() is None and not isinstance(events[-1], ScanEnded)
    finally:
        child.stdin.close()
        assert child.wait(60) == 0
    come(transport, decoder, events, lambda: isinstance(events[-1], ScanEnded))
    transport.close()
    assert events[-1] == ScanEnded("v.h5", 4, "completed")
    assert [int(pixels_of(events)[k].min()) for k in range(4)] == [1, 2, 3, 4]
    assert channels_of(events)["y"].tolist() == [1, 2, 3, 4]


def test_a_closed_master_with_a_link_to_a_file_that_grows_is_not_at_its_end(tmp_path: Path) -> None:
    master_of(tmp_path / "v.h5", 1, 4)
    part = part_of(tmp_path, 0, 1, 4)
    fill(part, 0, 1, range(1))
    transport, decoder = source(file=str(tmp_path / "v.h5"), frames="/d", idle_s=None)
    transport.open()
    events: list[Any] = []
    come(transport, decoder, events, lambda: len(pixels_of(events)) == 1)
    assert not any(isinstance(e, ScanEnded) for e in events)
    fill(part, 0, 1, range(1, 4))
    part.close()
    come(transport, decoder, events, lambda: isinstance(events[-1], ScanEnded))
    transport.close()
    assert events[-1] == ScanEnded("v.h5", 4, "completed") and sorted(pixels_of(events)) == [0, 1, 2, 3]


def test_frames_whose_source_never_comes_are_left_out_when_nothing_is_added_any_more(tmp_path: Path) -> None:
    master_of(tmp_path / "v.h5", 2, 4)
    second = part_of(tmp_path, 1, 2, 4)
    fill(second, 1, 2, range(4))
    second.close()
    events = events_of(*source(file=str(tmp_path / "v.h5"), frames="/v", idle_s=0.4))
    assert sorted(pixels_of(events)) == [1, 3, 5, 7], "zeros stand for what is missing"
    assert events[-1].reason == "nothing was added to the file for 0.4 s"


def make(path: Path, **options: Any) -> None:
    with h5py.File(path, "w", libver="v110") as f:
        f.create_dataset("d", **options)


def damaged(folder: Path) -> dict[str, Path]:
    """Files of which nothing good can come."""
    rng = np.random.default_rng(0)
    files = {
        name: folder / f"{name}.h5" for name in ("empty", "random", "cut", "text", "huge", "compound", "ring", "bombs", "pickle")
    }
    files["empty"].write_bytes(b"")
    files["random"].write_bytes(rng.bytes(5000))
    make(files["cut"], data=np.ones((9, 16, 16), "u2"), chunks=(1, 16, 16))
    files["cut"].write_bytes(files["cut"].read_bytes()[:900])
    make(files["text"], data=np.array([[["a"]]], "S1"))
    make(files["huge"], shape=(10, 1 << 20, 1 << 20), dtype="u2", chunks=(1, 64, 64))
    make(files["compound"], data=np.zeros((3, 4, 4), [("a", "u2")]))
    with h5py.File(files["ring"], "w", libver="v110") as f:
        f["d"] = h5py.SoftLink("/e")
        f["e"] = h5py.SoftLink("/d")
    make(files["bombs"], shape=(10, 1 << 15, 1 << 15), dtype="u4", chunks=(2, 1 << 14, 1 << 15))
    files["pickle"].write_bytes(b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.")
    return files


def test_a_damaged_file_ends_its_scan_with_a_reason_and_the_next_one_is_read(
    tmp_path: Path, scans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ptystream.detectors.hdf5.source.PATIENCE_S", 0.05)
    files = damaged(tmp_path)
    with h5py.File(tmp_path / "z_good.h5", "w", libver="v110") as f:
        f["d"] = PATTERNS
    transport, decoder = source(file=str(tmp_path / "*.h5"), frames="/d", existing=True)
    transport.open()
    events: list[Any] = []
    deadline = time.monotonic() + 60
    while sum(isinstance(e, ScanEnded) for e in events) < len(files) + 1 and time.monotonic() < deadline:
        message = transport.receive(0.05)
        events += decoder.feed(message) if message is not None else []
    transport.close()
    ends = {e.epoch: e for e in events if isinstance(e, ScanEnded)}
    assert set(ends) == {path.name for path in files.values()} | {"z_good.h5"}
    for name, path in files.items():
        assert "cannot be read" in ends[path.name].reason, (name, ends[path.name])
    assert ends["z_good.h5"].reason == "completed"
    assert len(pixels_of(events)) == BEAM.frames


def test_a_damaged_file_named_in_the_configuration_ends_the_source_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ptystream.detectors.hdf5.source.PATIENCE_S", 0.05)
    for path in damaged(tmp_path).values():
        transport, decoder = source(file=str(path), frames="/d")
        with pytest.raises(OSError, match=path.name):
            events_of(transport, decoder)


def test_the_end_is_told_by_count_by_mark_and_by_silence(tmp_path: Path) -> None:
    def grown(name: str) -> Any:
        f = h5py.File(tmp_path / name, "w", libver="v110", locking=False)
        f.create_dataset("d", (0, 4, 4), "u2", chunks=(1, 4, 4), maxshape=(None, 4, 4))
        f["n"] = 3
        f["done"] = 0
        f.swmr_mode = True
        f["d"].resize(3, axis=0)
        f["d"][:] = 1
        f.flush()
        return f

    with grown("count.h5"):
        end = events_of(*source(file=str(tmp_path / "count.h5"), frames="/d", expected="/n", idle_s=None))[-1]
        assert end == ScanEnded("count.h5", 3, "completed")
    with grown("mark.h5") as f:
        transport, decoder = source(file=str(tmp_path / "mark.h5"), frames="/d", finished="/done", idle_s=None)
        transport.open()
        events: list[Any] = []
        deadline = time.monotonic() + 60
        while not any(isinstance(e, ScanEnded) for e in events) and time.monotonic() < deadline:
            message = transport.receive(0.05)
            events += decoder.feed(message) if message is not None else []
            if len(pixels_of(events)) == 3 and message is None:
                f["done"][()] = 1
                f.flush()
        transport.close()
        assert events[-1] == ScanEnded("mark.h5", 3, "completed")
    with grown("silence.h5"):
        began = time.monotonic()
        end = events_of(*source(file=str(tmp_path / "silence.h5"), frames="/d", idle_s=0.4))[-1]
        assert end == ScanEnded("silence.h5", 3, "nothing was added to the file for 0.4 s")
        assert time.monotonic() - began > 0.4


def test_room_that_is_not_filled_yet_is_no_frame_and_gaps_are_left_out_in_the_end(tmp_path: Path) -> None:
    file = tmp_path / "room.h5"
    f = h5py.File(file, "w", libver="v110", locking=False)
    f.create_dataset("d", (2, 4, 5, 6), "u2", chunks=(1, 1, 5, 6))
    f.swmr_mode = True
    for row in (0, 1, 2, 5):
        f["d"][row // 4, row % 4] = row + 1
    f.flush()
    transport, decoder = source(file=str(file), frames="/d", idle_s=None)
    transport.open()
    events: list[Any] = []
    come(transport, decoder, events, lambda: sorted(pixels_of(events)) == [0, 1, 2])
    f.close()
    while not any(isinstance(e, ScanEnded) for e in events):
        message = transport.receive(0.05)
        events += decoder.feed(message) if message is not None else []
    got = pixels_of(events)
    assert {k: int(v[0, 0]) for k, v in got.items()} == {0: 1, 1: 2, 2: 3, 5: 6}
    assert events[-1].count == 8


def test_time_stamps_other_types_and_readings_several_per_frame(tmp_path: Path) -> None:
    file = tmp_path / "t.h5"
    wide = np.arange(3 * 4 * 4, dtype="<u8").reshape(3, 4, 4)
    wide[1, 2, 3] = 1 << 40
    with h5py.File(file, "w", libver="v110") as f:
        f["wide"], f["big"] = wide, np.arange(48).reshape(3, 4, 4).astype(">u2")
        f["t"] = np.array([1.5, 2.5, 3.5])
        f["y"] = np.arange(30.0).reshape(3, 10)
        f["x"] = -np.arange(30.0).reshape(3, 10)
    events = events_of(*source(file=str(file), frames="/wide", times="/t"))
    frames = next(e for e in events if isinstance(e, Frames))
    assert frames.timestamps_ns is not None and frames.timestamps_ns.tolist() == [1_500_000_000, 2_500_000_000, 3_500_000_000]
    assert pixels_of(events)[1][2, 3] == 2**32 - 1, "what the type does not hold is 'no data'"
    assert pixels_of(events)[2][0, 0] == 32
    np.testing.assert_array_equal(
        pixels_of(events_of(*source(file=str(file), frames="/big")))[2], np.arange(32, 48).reshape(4, 4)
    )
    positions = {"file": str(file), "samples": {"y": "/y in nm", "x": "/x in nm"}}
    events = events_of(*source(PositionsParameters, **positions, samples_per_frame=10))
    assert channels_of(events)["y"].tolist() == pytest.approx((np.arange(30.0) * 1e-9).tolist())
    assert events[-1].count == 30


@pytest.mark.parametrize("part", [b"", b"\0", b"\xff" * 200])
def test_a_mask_that_does_not_fit_is_rejected(part: bytes) -> None:
    from ptystream.detectors.zmq.protocol import header
    from ptystream.transport import Message

    for shape in ([40, 41], [0, 3], [-1, 2], "x", [2], [1 << 20, 1 << 20]):
        told = header("start", scan="s", meta={"mask_shape": shape})
        (event,) = Hdf5Scan.decoder(None, "s/data").feed(Message(0, "s/data", (told, part)))
        assert isinstance(event, Rejected) and event.reason == "malformed_mask"


@pytest.mark.parametrize("filters", [hdf5plugin.Bitshuffle(cname="lz4"), hdf5plugin.LZ4()])
def test_frames_that_are_stored_without_their_filter_are_read_among_the_others(tmp_path: Path, filters: Any) -> None:
    """A writer may leave a filter out for a frame that it does not make smaller; the piece's mask says so."""
    file = tmp_path / "mixed.h5"
    with h5py.File(file, "w", libver="v110") as f:
        data = f.create_dataset("d", data=PATTERNS[:5], chunks=(1, 32, 32), **filters)
        for row in (1, 4):
            data.id.write_direct_chunk((row, 0, 0), PATTERNS[row].tobytes(), filter_mask=1)
    events = events_of(*source(file=str(file), frames="/d"))
    got = pixels_of(events)
    np.testing.assert_array_equal([got[k] for k in range(5)], PATTERNS[:5])
    assert events[-1] == ScanEnded("mixed.h5", 5, "completed")


def test_filters_that_a_file_asks_for_are_those_of_the_plug_in(tmp_path: Path) -> None:
    """Bitshuffle without LZ4 (or with Zstandard) is not taken for the codec of the same filter number."""
    file = tmp_path / "z.h5"
    with h5py.File(file, "w", libver="v110") as f:
        f.create_dataset("d", data=PATTERNS, chunks=(1, 32, 32), **hdf5plugin.Bitshuffle(cname="zstd"))
    events = events_of(*source(file=str(file), frames="/d"))
    assert {p.codec for e in events if isinstance(e, Frames) for p in e.payloads} == {"raw"}
    np.testing.assert_array_equal(pixels_of(events)[5], PATTERNS[5])
