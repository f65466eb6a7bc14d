"""What a RunEngine's own documents become: step scans, files, fly scans, of classic ophyd and of ophyd-async."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from beamline import BEAMLINE, FLY, STEP, Documents, decoder, feed, lines, plan_of, rejected, run, stage

from ptystream.events import FileRows, Frames, Payload, Rows, SampleRows, Samples, ScanEnded, ScanStarted
from ptystream.files import Reader
from ptystream.transport import Message

COUNT = 12


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Documents]:
    """The documents of each kind of plan."""
    folder = tmp_path_factory.mktemp("documents")
    return {
        "step": run(plan_of("step", folder, COUNT)),
        "files": run(plan_of("files", folder, COUNT)),
        "fly": run(plan_of("fly", folder)),
    }


def resolved(events: list[Any]) -> list[Any]:
    """With what lies in files read."""
    reader = Reader(0.2)
    made = [each for event in events for each in reader.resolve(event)]
    reader.close()
    return made


def pixels(events: list[Any]) -> dict[int, np.ndarray]:
    from ptystream.codecs import decode

    return {int(i): decode(p) for e in events if isinstance(e, Frames) for i, p in zip(e.indices, e.payloads, strict=True)}


def positions(events: list[Any]) -> np.ndarray:
    """(sample, 2), metres."""
    parts = {}
    for event in events:
        if isinstance(event, Samples):
            for k in range(len(event.channels["y"])):
                parts[event.first + k] = (event.channels["y"][k], event.channels["x"][k])
    assert sorted(parts) == list(range(len(parts)))
    return np.array([parts[k] for k in sorted(parts)])


@pytest.mark.parametrize("kind", ["step", "files", "fly"])
def test_frames_and_positions_of_a_real_run(recorded: dict[str, Documents], kind: str) -> None:
    events = feed(decoder(find=FLY if kind == "fly" else STEP), recorded[kind])
    assert rejected(events) == {}
    count = BEAMLINE.frames if kind == "fly" else COUNT
    begun, ended = events[0], events[-1]
    assert isinstance(begun, ScanStarted) and isinstance(ended, ScanEnded)
    assert begun.epoch == ended.epoch == recorded[kind][0][1]["uid"]
    assert (ended.count, ended.reason) == (count, "completed")
    if kind != "fly":
        assert begun.metadata["num_frames"] == COUNT
        assert begun.metadata["plan_name"] == "list_scan"
    read = resolved(events)
    place = stage()
    seen = pixels(read)
    assert sorted(seen) == list(range(count))
    for number, (y, x) in enumerate(place.path_um()[:count]):
        place.exposures = number
        np.testing.assert_array_equal(seen[number], place.frame(y, x))
    np.testing.assert_allclose(positions(read), BEAMLINE.positions_m()[:count], atol=1e-12)


def test_frames_by_reference_are_read_as_they_are_encoded(recorded: dict[str, Documents]) -> None:
    events = feed(decoder(find=FLY), recorded["fly"])
    frames = next(e for e in events if isinstance(e, Frames))
    assert isinstance(frames.payloads[0], FileRows)
    payload = resolved([frames])[0].payloads[0]
    assert isinstance(payload, Payload)
    assert payload.codec == "bslz4"


@pytest.mark.parametrize("kind", ["step", "fly"])
def test_positions_alone_for_frames_that_come_otherwise(recorded: dict[str, Documents], kind: str) -> None:
    find = FLY if kind == "fly" else STEP
    events = feed(decoder("positions", find=find), recorded[kind])
    assert rejected(events) == {}
    assert not any(isinstance(e, Frames) for e in events)
    per = 4 if kind == "fly" else 1
    count = BEAMLINE.frames if kind == "fly" else COUNT
    assert events[-1].count == per * count
    read = positions(resolved(events)).reshape(count, per, 2)
    np.testing.assert_allclose(read.mean(axis=1), BEAMLINE.positions_m()[:count], atol=1e-12)
    if kind == "fly":
        assert read.std(axis=1).min() > 0, "each encoder reading is a sample"
    else:
        stamps = [e.timestamps_ns[0] for e in events if isinstance(e, Samples)]
        assert stamps == sorted(stamps) and stamps[0] > 1e18


def test_event_pages_say_what_events_say(recorded: dict[str, Documents]) -> None:
    from event_model import pack_event_page

    documents = recorded["step"]
    single = [d for name, d in documents if name == "event"]
    paged = [
        *documents[:2],
        *(("event_page", dict(pack_event_page(*single[k : k + 5]))) for k in range(0, COUNT, 5)),
        documents[-1],
    ]
    events, wanted = feed(decoder(find=STEP), paged), feed(decoder(find=STEP), documents)
    assert rejected(events) == {}
    np.testing.assert_array_equal(positions(events), positions(wanted))
    assert len([e for e in events if isinstance(e, Samples)]) == 3, "one event per page"
    for number, frame in pixels(wanted).items():
        np.testing.assert_array_equal(pixels(events)[number], frame)
    assert events[-1] == wanted[-1]


def test_datum_pages_and_datums_that_come_after_their_events(recorded: dict[str, Documents]) -> None:
    from event_model import pack_datum_page

    documents = recorded["files"]
    wanted = pixels(resolved(feed(decoder(find=STEP), documents)))
    datums = [d for name, d in documents if name == "datum"]
    rest = [(name, d) for name, d in documents if name != "datum"]
    for late in (
        [*rest[:3], ("datum_page", dict(pack_datum_page(*datums))), *rest[3:]],
        [*rest[:-1], *(("datum", d) for d in datums), rest[-1]],
    ):
        events = feed(decoder(find=STEP), late)
        assert rejected(events) == {}
        found = pixels(resolved(events))
        assert sorted(found) == list(range(COUNT))
        for number, frame in wanted.items():
            np.testing.assert_array_equal(found[number], frame)


def stream_documents(tmp_path: Path, kind: str = "one") -> tuple[Documents, np.ndarray]:
    """Documents of a fly scan with `collections_per_event` 3, or with a second file; and the frames, by number."""
    import h5py

    stack = np.arange(12 * 6 * 5, dtype="<u2").reshape(12, 6, 5)
    per, split = (3, 4) if kind == "collections" else (1, 7)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["/data"] = stack if kind == "collections" else stack[:split]
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["/data"] = stack[split:]
    image = {"source": "x", "dtype": "array", "shape": [per, 6, 5], "external": "STREAM:"}
    made: Documents = [
        ("start", {"uid": "run", "time": 1.0}),
        ("descriptor", {"uid": "d", "run_start": "run", "name": "primary", "time": 1.0, "data_keys": {"im": image}}),
    ]

    def resource(uid: str) -> tuple[str, dict[str, Any]]:
        uri = f"file://localhost/there/{uid}.h5"
        told = {"uid": uid, "run_start": "run", "data_key": "im", "mimetype": "application/x-hdf5", "uri": uri}
        return "stream_resource", {**told, "parameters": {"dataset": "/data", "join_method": "concat"}}

    def rows(uid: str, start: int, stop: int) -> tuple[str, dict[str, Any]]:
        told = {"uid": f"{uid}/{start}", "stream_resource": uid, "descriptor": "d"}
        span = {"indices": {"start": start, "stop": stop}, "seq_nums": {"start": start + 1, "stop": stop + 1}}
        return "stream_datum", {**told, **span}

    if kind == "collections":
        made += [resource("a"), rows("a", 0, 1), rows("a", 1, 4)]
    else:
        made += [resource("a"), rows("a", 0, 3), rows("a", 3, 7), resource("b"), rows("b", 7, 9), rows("b", 9, 12)]
    made.append(("stop", {"run_start": "run", "exit_status": "success", "num_events": {"primary": 12 // per}}))
    return made, stack


@pytest.mark.parametrize("kind", ["collections", "two files"])
def test_several_frames_of_an_event_and_files_that_follow_each_other(tmp_path: Path, kind: str) -> None:
    documents, stack = stream_documents(tmp_path, kind)
    events = feed(decoder(path_map={"/there": str(tmp_path)}), documents)
    assert rejected(events) == {}
    assert events[-1].count == 12
    found = pixels(resolved(events))
    assert sorted(found) == list(range(12))
    for number in range(12):
        np.testing.assert_array_equal(found[number], stack[number])


def test_rows_of_a_second_file_are_not_guessed(tmp_path: Path) -> None:
    documents, stack = stream_documents(tmp_path, "two files")
    del documents[3]  # rows 0 to 2 …
    del documents[5]  # … and the first ones of the second file
    events = feed(decoder(path_map={"/there": str(tmp_path)}), documents)
    assert rejected(events)["gap"] >= 3 + 2
    for number, frame in pixels(resolved(events)).items():
        np.testing.assert_array_equal(frame, stack[number], err_msg=f"frame {number} is another one")


def test_gaps_are_counted_exactly(recorded: dict[str, Documents]) -> None:
    documents = [d for k, d in enumerate(recorded["step"]) if k not in (5, 6, 9, 12, 13)]
    events = feed(decoder(find=STEP), documents)
    assert rejected(events) == {"gap": 5}
    assert events[-1].count == COUNT
    assert len(pixels(events)) == COUNT - 5
    rows = recorded["fly"]
    where = [k for k, (name, d) in enumerate(rows) if name == "stream_datum" and "indices" in d]
    lost = where[3]
    size = rows[lost][1]["indices"]["stop"] - rows[lost][1]["indices"]["start"]
    events = feed(decoder(find=FLY), rows[:lost] + rows[lost + 1 :])
    assert rejected(events).get("gap", 0) in (0, size)
    assert rejected(events).get("gap", 0) or rejected(events).get("sample_incomplete") == size


def test_joined_late(recorded: dict[str, Documents]) -> None:
    documents = recorded["step"]
    without_start = feed(decoder(find=STEP), documents[1:])
    assert rejected(without_start) == {"no_start": 1}
    assert len(pixels(without_start)) == COUNT
    assert isinstance(without_start[1], ScanStarted) and without_start[-1].count == COUNT
    middle = feed(decoder(find=STEP), [documents[1], *documents[7:]])
    assert rejected(middle) == {"no_start": 1, "joined_late": 5}
    assert sorted(pixels(middle)) == list(range(5, COUNT))
    nothing = feed(decoder(find=STEP), documents[3:])
    assert rejected(nothing) == {"unknown_descriptor": COUNT - 1, "unknown_run": 1}
    assert not pixels(nothing)


def test_runs_without_frames_begin_nothing_and_only_chooses_runs(recorded: dict[str, Documents], tmp_path: Path) -> None:
    from bluesky.plans import scan
    from ophyd.sim import det, motor

    aligning = run(scan([det], motor, -1, 1, 5))
    assert feed(decoder(find=STEP), aligning) == []
    assert feed(decoder(find=STEP, only={"plan_name": "grid_scan"}), recorded["step"]) == []
    assert len(pixels(feed(decoder(find=STEP, only={"plan_name": "list_scan"}), recorded["step"]))) == COUNT
    assert feed(decoder(find=FLY, only={"plan_name": "grid_scan"}), recorded["fly"]) == []
    held = decoder(find=STEP)
    feed(held, recorded["step"])
    assert rejected(feed(held, recorded["step"][3:4])) == {"after_stop": 1}
    assert rejected(feed(held, recorded["step"][:1])) == {"duplicate_document": 1}
    mixed = [d for pair in zip(recorded["step"], recorded["files"], strict=False) for d in pair]
    held = decoder(find=STEP)
    epochs = {e.epoch for e in feed(held, mixed) if isinstance(e, Frames)}
    assert len(epochs) == 2, "runs that overlap are kept apart"


def test_stream_and_frames_and_dataset_choose_what_is_read(recorded: dict[str, Documents]) -> None:
    assert feed(decoder(find=STEP, stream="monitor"), recorded["step"]) == []
    documents = copy.deepcopy(recorded["step"])
    keys = documents[1][1]["data_keys"]
    keys["other"] = keys["camera"]
    assert "ambiguous_frames" in rejected(feed(decoder(find=STEP), documents))
    assert len(pixels(feed(decoder(find=STEP, frames="camera"), documents))) == COUNT
    assert not pixels(feed(decoder(find=STEP, frames="nothing"), documents))
    events = feed(decoder(find=STEP, dataset="/another"), recorded["files"])
    assert {p.dataset for e in events if isinstance(e, Frames) for p in e.payloads} == {"/another"}


def test_metadata_by_locators(recorded: dict[str, Documents]) -> None:
    find = {
        **STEP,
        "energy": ["start:energy", "config:camera:photon_energy"],
        "distance": "config:camera:detector_distance; unit=m; offset=1 mm",
        "psize": "config:camera:pixel",
        "center_y": "const:15.5",
        "center_x": "start:beam.x",
        "num_frames": (),
    }
    documents = copy.deepcopy(recorded["step"])
    documents[0][1]["beam"] = {"x": 16}
    documents[0][1]["distance"] = 77.0
    told = feed(decoder(find=find), documents)[0].metadata
    known = BEAMLINE.geometry()
    assert told["energy"] == pytest.approx(known["energy"])
    assert told["distance"] == pytest.approx(known["distance"] + 1e-3)
    assert told["psize"] == pytest.approx(known["psize"])
    assert told["center"] == (15.5, 16.0)
    assert "num_frames" not in told
    bare = feed(decoder(find=STEP), documents)[0].metadata
    assert "distance" not in bare, "an entry of the start document without a locator is no distance"
    missing = feed(decoder(find={**STEP, "energy": ["baseline:energy", "start:e"]}), documents)
    assert rejected(missing) == {"quantity_missing": 1}


def test_baseline_readings_and_units_that_are_missing(tmp_path: Path) -> None:
    from bluesky.preprocessors import SupplementalData
    from ophyd.sim import SynAxis

    energy = SynAxis(name="energy", value=8.5)
    plan = SupplementalData(baseline=[energy])(plan_of("step", tmp_path, 2))
    documents = run(plan)
    assert [name for name, _ in documents].count("descriptor") == 2
    told = feed(decoder(find={**STEP, "energy": "baseline:energy; unit=keV"}), documents)
    assert told[0].metadata["energy"] == 8.5
    assert [e.count for e in told if isinstance(e, ScanEnded)] == [2]
    bare = feed(decoder(find={**STEP, "energy": "baseline:energy"}), documents)
    assert rejected(bare) == {"unit_missing": 1, "quantity_missing": 1}


def test_all_kinds_of_body(recorded: dict[str, Documents]) -> None:
    orjson = pytest.importorskip("orjson", reason="orjson is not installed")
    wanted = positions(feed(decoder(find=STEP), recorded["step"]))
    for body in (
        lambda d: json.dumps(json.loads(lines([("x", d)]))[1]).encode(),
        lambda d: orjson.dumps(d, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS),
    ):
        held = decoder(find=STEP, via="zmq", prefix="here")
        events = []
        for name, document in recorded["step"]:
            events += held.feed(Message(0, "s/data", (b"here " + name.encode() + b" " + body(document),)))
        assert rejected(events) == {}
        np.testing.assert_array_equal(positions(events), wanted)
        assert len(pixels(events)) == COUNT


def test_ophyd_async_step_and_fly(tmp_path: Path) -> None:
    pytest.importorskip("ophyd_async", reason="ophyd-async is not installed")
    import bluesky.plan_stubs as bps
    import bluesky.plans as bp
    import bluesky.preprocessors as bpp
    from beamline import engine
    from ophyd_async.core import StaticPathProvider, TriggerInfo, UUIDFilenameProvider, init_devices
    from ophyd_async.sim import PatternGenerator, SimBlobDetector, SimMotor

    engine()
    with init_devices():
        pattern = PatternGenerator()
        y, x = SimMotor(instant=True), SimMotor(instant=True)
        det = SimBlobDetector(StaticPathProvider(UUIDFilenameProvider(), tmp_path), pattern)
    find = {"y": "event:y; unit=um", "x": "event:x; unit=um"}
    documents = run(bp.grid_scan([det], y, 0, 1, 2, x, 0, 2, 3))
    assert {"stream_resource", "stream_datum", "event"} <= {name for name, _ in documents}
    held = decoder(find=find, frames="det")
    events = feed(held, documents)
    assert rejected(events) == {}
    read = resolved(events)
    assert sorted(pixels(read)) == list(range(6))
    np.testing.assert_allclose(positions(read) * 1e6, [(a, b) for a in (0, 1) for b in (0, 1, 2)], atol=1e-9)

    @bpp.stage_decorator([det])
    @bpp.run_decorator()
    def fly() -> Any:
        yield from bps.prepare(det, TriggerInfo(number_of_events=7, livetime=0.002), wait=True)
        yield from bps.declare_stream(det, name="primary", collect=True)
        yield from bps.kickoff(det, wait=True)
        yield from bps.collect_while_completing([det], [det], flush_period=0.1, stream_name="primary")

    documents = run(fly())
    assert not [name for name, _ in documents if name == "event"]
    events = feed(decoder(frames="det"), documents)
    assert rejected(events) == {}
    assert events[-1].count == 7
    assert sorted(pixels(resolved(events))) == list(range(7))


def test_rows_of_readings_carry_scale_and_offset(recorded: dict[str, Documents]) -> None:
    find = {"y": "event:fly-y; sign=-1; scale=2; offset=3 mm", "x": "const:1 um", "dose": "event:fly-x; unit=counts"}
    events = feed(decoder("positions", find=find), recorded["fly"])
    assert rejected(events) == {}
    rows = next(e for e in events if isinstance(e, SampleRows))
    content = rows.channels["y"]
    assert isinstance(content, Rows)
    assert (content.scale, content.offset, content.average) == (pytest.approx(-2e-6), pytest.approx(3e-3), 1)
    (samples,) = resolved([rows])
    np.testing.assert_allclose(samples.channels["x"], 1e-6)
    np.testing.assert_allclose(
        samples.channels["dose"], np.repeat(stage().path_um()[:, 1], 4)[: len(samples.channels["dose"])], atol=5e-3
    )


def test_axes_by_the_hints_of_a_grid(tmp_path: Path) -> None:
    from bluesky.plans import grid_scan
    from ophyd.sim import SynAxis

    from ptystream.detectors.bluesky.simulator import Camera, motors

    slow, fast = motors(("slow", "fast"))
    other = SynAxis(name="z")
    documents = run(grid_scan([Camera(stage(), (slow, fast)), other], slow, 0.0, 0.1, 2, fast, 0.0, 0.2, 3))
    events = feed(decoder(find={"y": "hint:0", "x": "hint:1"}), documents)
    assert rejected(events) == {}
    wanted = [(a * 1e-6, b * 1e-6) for a in (0.0, 0.1) for b in (0.0, 0.1, 0.2)]
    np.testing.assert_allclose(positions(events), wanted, atol=1e-15)
    find = {"y": "hint:0", "x": "hint:1", "z": "event:z; unit=mm; offset=2 mm", "angle": "const:0.1 rad", "dose": "event:z"}
    first = next(e for e in feed(decoder("positions", find=find), documents) if isinstance(e, Samples))
    assert first.channels["z"][0] == pytest.approx(2e-3)
    assert first.channels["angle"][0] == pytest.approx(np.rad2deg(0.1))
    assert first.channels["dose"][0] == 0.0
    alone = next(e for e in feed(decoder(find=find), documents) if isinstance(e, Samples))
    assert set(alone.channels) == {"y", "x"}, "with the frames, only where they are"


def test_an_aborted_run_ends_its_scan_and_says_so(recorded: dict[str, Documents]) -> None:
    stop = {**recorded["step"][-1][1], "exit_status": "abort", "num_events": {"primary": 4}}
    events = feed(decoder(find=STEP), [*recorded["step"][:6], ("stop", stop)])
    assert rejected(events) == {}
    assert (events[-1].count, events[-1].reason) == (4, "abort")


def test_an_event_taken_again_after_a_pause_keeps_its_number(recorded: dict[str, Documents]) -> None:
    """A RunEngine that rewinds repeats numbers: the frame is the same one, and counts once."""
    documents = recorded["step"]
    events = feed(decoder(find=STEP), [*documents[:6], *documents[4:]])
    assert rejected(events) == {}
    assert sorted(pixels(events)) == list(range(COUNT))
