"""Whole sessions: simulated detector, socket, session, result; the geometry comes from the header."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from problems import BEAM, GEOMETRY, PATTERNS, PLACES

from ptystream.cli.check import check
from ptystream.cli.replay import replay
from ptystream.detectors.dectris.simulator import Camera, Detector, series_of
from ptystream.dryrun import dry_run
from ptystream.events import Frames, Payload, ScanStarted
from ptystream.metrics import Metrics
from ptystream.params.errors import ConfigurationError
from ptystream.params.load import load
from ptystream.plan import make_plan, recorder_of
from ptystream.reconstruction import PodTable, Reconstruction
from ptystream.recording import Recording
from ptystream.scan.block import Block
from ptystream.session import Session
from ptystream.storage import ptyr
from ptystream.transport import Message, TransportClosed
from ptystream.warming import Sample

RAW = np.zeros((BEAM.frames, 70, 90), "u4")
RAW[:, 20:52, 30:62] = PATTERNS
RAW[:, 25, 35] = 2**32 - 1  # a gap
MASK = np.zeros(RAW.shape[1:], "u4")
MASK[25, 35], MASK[30, 40] = 1, 2
RAW[:, 30, 40] = 4_000_000  # a hot pixel that the detector knows
SET_UP: dict[str, Any] = {
    "energy_kev": GEOMETRY["energy"],
    "distance_m": GEOMETRY["distance"],
    "psize_m": (GEOMETRY["psize"],) * 2,
    "center": (36, 46),
    "pixel_mask": MASK,
    "saturation": 3_900_000,
}
FORMATS = ("v1", "stream2")
ILLUMINATION = {"aperture": {"size": 0.42 * BEAM.side * BEAM.pixel_m}}


def given(folder: Path, address: Any, numiter: int = 30, scan: dict[str, Any] | None = None, **data: Any) -> dict[str, Any]:
    """A configuration that says nothing of the geometry but the crop."""
    source = {"name": "DectrisScan", "address": address, "shape": BEAM.side, "positions_theory": PLACES, **data}
    return {
        "run": "t",
        "threads": 1,
        "min_frames_for_recon": BEAM.frames + 1,
        "io": {"home": str(folder), "rfile": "%(run)s.ptyr"},
        "scans": {"s": {"name": "Full", "data": source, "illumination": ILLUMINATION} | (scan or {})},
        "engines": {"e": {"name": "DM", "numiter": numiter}},
    }


def run(tree: dict[str, Any], send: Callable[[], object] | None = None, **more: Any) -> Session:
    """A session to its end, with something sending."""
    session = Session(make_plan(load(tree)), metrics=Metrics(), **more)
    thread = threading.Thread(target=send) if send is not None else None
    if thread is not None:
        thread.start()
    session.run()
    if thread is not None:
        thread.join()
    return session


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> ptyr.Result:
    """The same frames with the geometry in the configuration, over one connection."""
    folder = tmp_path_factory.mktemp("plain")
    with Detector() as detector:
        tree = given(folder, detector.address, **GEOMETRY, center=(36, 46), mask=(MASK == 0).astype("u1"))
        tree["scans"]["s"]["data"]["header"] = False
        run(tree, lambda: detector.send(series_of(Camera(**SET_UP), 1, RAW)))
    return ptyr.read(folder / "t.ptyr")


@pytest.mark.parametrize("compression", ["bslz4", "none"])
@pytest.mark.parametrize("format", FORMATS)
def test_a_configuration_without_geometry_gives_what_one_with_it_gives(
    tmp_path: Path, format: str, compression: str, plain: ptyr.Result
) -> None:
    camera = Camera(format, compression, **SET_UP)  # type: ignore[arg-type]
    with Detector() as detector:
        session = run(given(tmp_path, detector.address), lambda: detector.send(series_of(camera, 3, RAW)))
    result = ptyr.read(tmp_path / "t.ptyr")
    assert result.ledger["used"] == BEAM.frames
    (name,) = result.object
    assert result.object[name].pixel_size_m == pytest.approx((BEAM.pixel_m,) * 2)
    np.testing.assert_array_equal(result.object[name].data, plain.object[name].data)
    np.testing.assert_array_equal(result.probe[name].data, plain.probe[name].data)
    told = result.decisions["s"]["header"]
    assert told["energy"] == pytest.approx(GEOMETRY["energy"])
    assert told["center"] == [36.0, 46.0]
    assert result.scans["s"]["energy"] == pytest.approx(GEOMETRY["energy"])
    assert session.current is not None
    assert session.current.scans["s"].buffer.ended in ("completed", "num_frames reached")


@pytest.mark.parametrize("format", FORMATS)
def test_positions_come_with_the_images_and_missed_counts_are_put_back(tmp_path: Path, format: str, plain: ptyr.Result) -> None:
    places = [json.dumps({"sy": float(-y * 1e6), "sx": float(-x * 1e6)}) for y, x in PLACES]
    doubled = np.array([[0, 0], [4e9, 8e9]])
    camera = Camera(format, **SET_UP, image_appendix=places, count_rates=doubled, count_rate_applied=False)  # type: ignore[arg-type]
    light = []
    for count_rate in (True, False):
        entries = {"y": "sy in um", "x": "sx in um"}
        with Detector() as detector:
            tree = given(tmp_path, detector.address, 3, positions_theory=None, appendix=entries, count_rate=count_rate)
            run(tree, lambda detector=detector: detector.send(series_of(camera, 3, RAW)))  # type: ignore[misc]
        result = ptyr.read(tmp_path / "t.ptyr")
        assert result.ledger["used"] == BEAM.frames
        np.testing.assert_allclose(result.positions_m, -PLACES, atol=1e-12)
        light.append(float((np.abs(next(iter(result.probe.values())).data) ** 2).sum()))
    assert light[0] / light[1] == pytest.approx(2.0, rel=0.02)


def test_what_the_configuration_says_wins_and_a_difference_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Detector() as detector, caplog.at_level(logging.WARNING, logger="ptystream"):
        tree = given(tmp_path, detector.address, numiter=2, energy=7.4, distance=None)
        run(tree, lambda: detector.send(series_of(Camera(**SET_UP), 3, RAW)))
    result = ptyr.read(tmp_path / "t.ptyr")
    assert result.object["SsG00"].pixel_size_m[0] == pytest.approx(BEAM.pixel_m * GEOMETRY["energy"] / 7.4)
    lines = [r.getMessage() for r in caplog.records if "the configuration says" in r.getMessage()]
    assert len(lines) == 1
    assert "scans.s.data.energy: the configuration says 7.4" in lines[0]


def test_several_connections_share_a_series(tmp_path: Path, plain: ptyr.Result) -> None:
    camera = Camera(**SET_UP)
    with Detector(high_water_mark=3) as detector:
        tree = given(tmp_path, detector.address, connections=3, late_s=5.0)

        def send() -> None:
            time.sleep(0.3)  # until all three pull
            detector.send(series_of(camera, 3, RAW))

        session = run(tree, send)
    result = ptyr.read(tmp_path / "t.ptyr")
    assert result.ledger["used"] == BEAM.frames
    assert session.current is not None
    assert session.current.scans["s"].buffer.ended in ("completed", "num_frames reached")
    quality = np.abs(result.misfit[-1, 1] / plain.misfit[-1, 1] - 1)
    assert quality < 0.2


@pytest.mark.slow
def test_several_addresses_and_an_image_that_never_comes(tmp_path: Path) -> None:
    camera, messages = Camera(**SET_UP), list(series_of(Camera(**SET_UP), 3, RAW))
    assert camera.end(3) == messages[-1]
    with Detector() as one, Detector() as two:
        tree = given(tmp_path, [one.address, two.address], numiter=2, late_s=3.0)

        def send() -> None:
            one.send([messages[0], *messages[1:40], messages[-1]])
            time.sleep(0.2)  # the end overtakes images of the other half
            two.send([*messages[40:60], *messages[61:-1]])

        session = run(tree, send)
    assert session.current is not None
    assert session.current.scans["s"].buffer.ended == f"ended early: {BEAM.frames - 1} of {BEAM.frames} images"
    ledger = ptyr.read(tmp_path / "t.ptyr").ledger
    assert (ledger["used"], ledger["expected"]) == (BEAM.frames - 1, BEAM.frames)


@pytest.mark.parametrize(("running", "used"), [("join", BEAM.frames - 30), ("drain", None)])
def test_a_series_that_was_going_on(tmp_path: Path, running: str, used: int | None) -> None:
    """With the geometry configured it is joined, or left for the next."""
    camera = Camera(**SET_UP)
    with Detector() as detector:
        tree = given(tmp_path, detector.address, numiter=2, running=running, **GEOMETRY, center=(36, 46))

        def send() -> None:
            detector.send(series_of(camera, 3, RAW, first=30, header=False))
            if running == "drain":
                detector.send(series_of(camera, 4, RAW))

        session = run(tree, send)
    assert session.current is not None
    assert ptyr.read(tmp_path / "t.ptyr").ledger["used"] == (used or BEAM.frames)


def test_a_geometry_that_nobody_tells_is_the_failure_of_the_scan(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Detector() as detector, caplog.at_level(logging.WARNING, logger="ptystream"):
        tree = given(tmp_path, detector.address, energy=None, center=(36, 46))
        session = Session(make_plan(load(tree)), metrics=Metrics())
        thread = threading.Thread(target=session.run)
        thread.start()
        detector.send(series_of(Camera(), 3, RAW))
        deadline = time.monotonic() + 60
        while "without a usable frame" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        session.stop()  # it would wait for the next series
        thread.join()
    assert "scans.s.data.energy: left to the header of the source" in caplog.text
    assert not (tmp_path / "t.ptyr").exists()


def test_two_series_at_once_are_two_runs_each_with_its_own_header(tmp_path: Path) -> None:
    other = Camera(**{**SET_UP, "energy_kev": 2 * GEOMETRY["energy"]})
    with Detector() as detector:
        tree = given(tmp_path, detector.address, numiter=2) | {"live": {"runs": 2}}

        def send() -> None:
            detector.send(series_of(Camera(**SET_UP), 3, RAW))
            detector.send(series_of(other, 4, RAW))

        session = run(tree, send)
    first, second = (ptyr.read(path).object["SsG00"].pixel_size_m[0] for path in session.results)
    assert first == pytest.approx(BEAM.pixel_m)
    assert second == pytest.approx(BEAM.pixel_m / 2)


# ------------------------------------------------------------------ recorded


class Feed:
    """Messages of a list, in place of a socket; waits after `until` of them."""

    channel = "s/data"

    def __init__(self, messages: list[list[bytes]], until: int | None = None) -> None:
        self._messages, self._until = iter(messages[:until]), until

    def open(self) -> None: ...

    def receive(self, timeout_s: float) -> Message | None:
        parts = next(self._messages, None)
        if parts is None and self._until is None:
            raise TransportClosed
        if parts is None:
            time.sleep(timeout_s)
            return None
        return Message(time.time_ns(), self.channel, tuple(parts))

    def acknowledge(self, message: Message) -> None: ...

    def close(self) -> None: ...


@pytest.mark.parametrize("format", FORMATS)
def test_a_session_that_was_cut_off_goes_on_with_the_header_it_recorded(tmp_path: Path, format: str, plain: ptyr.Result) -> None:
    messages = list(series_of(Camera(format, **SET_UP), 3, RAW))  # type: ignore[arg-type]
    tree = given(tmp_path, "tcp://127.0.0.1:1") | {"min_frames_for_recon": 20}
    tree["io"] = {**tree["io"], "recording": {"active": True}, "autosave": {"active": True, "interval": 3}}
    configuration = load(tree)
    recorder, before = recorder_of(configuration)
    assert recorder is not None
    assert before is None
    feed: Any = Feed(messages, 60)
    session = Session(make_plan(configuration, recorder=recorder, transports={"s/data": feed}), metrics=Metrics(), tap=recorder)
    thread = threading.Thread(target=session.run)
    thread.start()
    deadline = time.monotonic() + 60
    while session.status()["iteration"] < 8:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    session.stop()
    thread.join()
    recorder.close(finished=False)
    (tmp_path / "t.ptyr").unlink()
    path = recorder.path
    recording = Recording(path)
    kept = [m for m in recording if m.channel == "s/data"]
    assert len(kept) == 60
    # As if it had been killed: its note of a finished run is not there.
    recorder, before = recorder_of(configuration)
    assert before is not None
    rest: Any = Feed(messages[60:])
    again = Session(
        make_plan(configuration, recorder=recorder, transports={"s/data": rest}, interrupted=True),
        metrics=Metrics(),
        tap=recorder,
        recorded=kept,
    )
    again.run()
    assert recorder is not None
    recorder.close()
    result = ptyr.read(tmp_path / "t.ptyr")
    assert result.ledger["used"] == BEAM.frames
    assert result.object["SsG00"].pixel_size_m == pytest.approx((BEAM.pixel_m,) * 2)
    assert any(entry["do"] == "resume" for entry in result.schedule)
    assert result.misfit[-1, 1] < 1.3 * plain.misfit[-1, 1]


# ------------------------------------------------------------------ before it runs


@pytest.mark.slow
def test_before_it_runs_the_geometry_is_said_to_come(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "c.json"
    with Detector() as detector:
        file.write_text(
            f'{{"scans": {{"s": {{"name": "Full", "data": {{"name": "DectrisScan", "address": ["{detector.address}"], '
            f'"distance": 1.5, "shape": null}}}}}}, "engines": {{"e": {{"name": "DM", "numiter": 2}}}}}}'
        )
        assert check(str(file)) == 0
    said = capsys.readouterr().out
    assert "energy, psize, shape: to be told by the source's header" in said
    assert "object pixel not known yet" in said
    assert f"{detector.address}: answers" in said
    needs = dry_run(load(file))
    assert needs.scans[0].shape == (256, 256)


NEEDY: list[dict[str, Any]] = [
    {"propagation": "nearfield"},
    {"resolution": 2e-8},
    {"illumination": {"aperture": {"size": 1e-5}}},
]


@pytest.mark.parametrize("model", NEEDY)
def test_what_needs_lengths_may_wait_for_them(tmp_path: Path, model: dict[str, Any]) -> None:
    null = dict.fromkeys(("energy", "distance", "psize"))
    make_plan(load(given(tmp_path, "tcp://127.0.0.1:1", scan=model, **null)))


@pytest.mark.parametrize("address", ["31001", "tcp://host", "tcp://:1", "udp://a:1", []])
def test_addresses_are_checked(tmp_path: Path, address: Any) -> None:
    with pytest.raises(ConfigurationError, match="address"):
        load(given(tmp_path, address))


def test_positions_cannot_come_from_a_detector(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no positions"):
        load(given(tmp_path, "tcp://127.0.0.1:1", positions={"name": "DectrisScan"}))


# ------------------------------------------------------------------ models


def settled(tree: dict[str, Any], **told: Any) -> tuple[Any, Any]:
    """Buffer and model of a configuration when a header and the frames have come."""
    buffer, model = make_plan(load(tree)).scans[0].make(None)
    buffer.feed("data", ScanStarted("1", told), 0)
    for k in range(20):
        frame = RAW[k]
        buffer.feed("data", Frames("1", np.array([k]), (Payload(frame.tobytes(), "raw", frame.dtype, frame.shape),)), k)
    buffer.end("enough")
    deadline = time.monotonic() + 60
    while not (buffer.failure or buffer.ledger.prepared == 20):
        assert time.monotonic() < deadline
        buffer.changed(-1, 0.01)
    return buffer, model


TOLD = {"energy": GEOMETRY["energy"], "distance": GEOMETRY["distance"], "psize": GEOMETRY["psize"], "center": (36, 46)}


def test_a_near_field_waits_for_its_lengths(tmp_path: Path) -> None:
    tree = given(tmp_path, "tcp://127.0.0.1:1", scan={"propagation": "nearfield", "resample": 2}, psize=None)
    buffer, model = settled(tree, **TOLD)
    assert buffer.failure is None
    assert model.geometry.near
    assert model.geometry.pixel_size_m == pytest.approx((GEOMETRY["psize"] / 2,) * 2)
    assert model.geometry.energy_kev == GEOMETRY["energy"]


def test_a_beginning_that_does_not_fit_the_header_is_the_failure_of_the_scan(tmp_path: Path) -> None:
    tree = given(tmp_path, "tcp://127.0.0.1:1", scan={"illumination": {"model": [[1.0, 2.0]]}})
    buffer, _ = settled(tree, **TOLD)
    assert "illumination.model" in buffer.failure


def test_rocking_curves_wait_for_their_lengths(tmp_path: Path) -> None:
    rocking = {"n_rocking_positions": 4, "rocking_step": 0.01, "theta_bragg": 33.5}
    positions = {"name": "ZmqScan", "channels": {"angle": "angle"}}
    scan = {"name": "Bragg3dModel", "rocking": rocking, "illumination": {}}
    tree = given(tmp_path, "tcp://127.0.0.1:1", scan=scan, positions=positions, positions_theory=None, energy=None)
    tree["engines"] = {"e": {"name": "DM_3dBragg", "numiter": 2}}
    _, model = settled(tree, **TOLD)
    assert model.geometry.energy_kev == GEOMETRY["energy"]
    assert model.bragg.energy_kev == GEOMETRY["energy"]


def test_the_whole_frame_where_no_crop_is_given(tmp_path: Path) -> None:
    buffer, model = settled(given(tmp_path, "tcp://127.0.0.1:1", shape=None), **TOLD)
    assert model.geometry.shape == buffer.frames.shape == (70, 70)


def test_scans_that_share_an_object_must_see_the_same_pixel(tmp_path: Path) -> None:
    tree = given(tmp_path, "tcp://127.0.0.1:1")
    tree["scans"]["t"] = {**tree["scans"]["s"], "share": {"object": "s"}}
    made = Reconstruction({}, {}, PodTable(1))
    block = Block("s", np.arange(2), np.arange(2), PLACES[:2], np.ones(2), np.zeros(2, int))
    first, second = (entry.make(None)[1] for entry in make_plan(load(tree)).scans)
    store = Sample(first.geometry.shape, "u2")
    first.start(made, block, store)
    second.stand(replace(second.geometry, energy_kev=7.9))  # as its header says
    with pytest.raises(ValueError, match=r"scans\.t\.share\.object"):
        second.start(made, block, store)
    second.stand(first.geometry)
    second.start(made, block, store)


@pytest.mark.parametrize("format", FORMATS)
def test_a_recording_given_back_on_the_wire_gives_the_same_bits(tmp_path: Path, format: str) -> None:
    with Detector() as detector:
        tree = given(tmp_path, detector.address, numiter=5)
        recorder, _ = recorder_of(load(tree))
        assert recorder is not None
        series = series_of(Camera(format, **SET_UP), 1, RAW)  # type: ignore[arg-type]
        run(tree, lambda: detector.send(series), tap=recorder)
        recorder.close(finished=True)
    before = ptyr.read(tmp_path / "t.ptyr")
    address = f"ipc://{tmp_path}/d"
    again = given(tmp_path, address, numiter=5) | {"run": "again"}
    run(again, lambda: replay(str(recorder.path), float("inf"), None, [f"s/data={address}"], None, None, {}))
    result = ptyr.read(tmp_path / "again.ptyr")
    assert result.ledger["used"] == BEAM.frames
    for name, storage in before.object.items():
        np.testing.assert_array_equal(result.object[name].data, storage.data)
