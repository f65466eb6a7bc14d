"""Frames devices of both libraries in a real RunEngine: the session writes the file, the run's documents refer to it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import bluesky.plan_stubs as bps
import h5py
import numpy as np
import pytest
from bluesky import RunEngine
from bluesky.utils import FailedStatus
from event_model import schema_validators
from event_model.documents import DocumentType
from problems import BEAM, GEOMETRY, PATTERNS, PLACES

from ptystream.detectors.ophyd import asynchronous, classic
from ptystream.detectors.zmq.sender import Sender
from ptystream.metrics import Metrics
from ptystream.params.load import load
from ptystream.plan import make_plan
from ptystream.publish.publisher import Publisher
from ptystream.session import Session
from ptystream.steering.client import Steering
from ptystream.steering.desk import Refused
from ptystream.steering.server import Server
from ptystream.storage.frames import FrameFiles

assert DocumentType is not None


class Beamline:
    """A detector, and a session that receives its frames and writes them to files."""

    def __init__(self, folder: Path, *, files: bool = True) -> None:
        self.frames, self.places = Sender("tcp://127.0.0.1:*"), Sender("tcp://127.0.0.1:*")
        source = {"name": "ZmqScan", "address": self.frames.address}
        data = {**source, "shape": BEAM.side, **GEOMETRY, "positions": {"name": "ZmqScan", "address": self.places.address}}
        given = {
            "run": "t",
            "io": {"home": str(folder), "rfile": "%(run)s.ptyr"},
            "scans": {"s": {"name": "Full", "data": data, "illumination": {"aperture": {"size": 4e-7}}}},
            "engines": {"e": {"name": "DM", "numiter": 5}},
        }
        self.publisher = Publisher()
        written = FrameFiles(lambda scan, epoch: folder / f"{scan}_{epoch}.h5", "t") if files else None
        self.session = Session(make_plan(load(given)), metrics=Metrics(), publisher=self.publisher, frame_files=written)
        self.server = Server(self.session.desk)
        self.thread = threading.Thread(target=self.session.run, daemon=True)
        self.thread.start()
        self.sent = 0
        for sender in (self.frames, self.places):
            sender.start("a")

    def send(self, count: int) -> None:
        """The next frames of the scan."""
        for k in range(self.sent, self.sent + count):
            self.frames.frames(k, PATTERNS[k][None])
            self.places.samples(k, y=PLACES[k, :1], x=PLACES[k, 1:])
        self.sent += count

    def end(self) -> None:
        for sender in (self.frames, self.places):
            sender.end(self.sent)
        self.thread.join(60)

    def close(self) -> None:
        self.session.stop()
        self.thread.join(60)
        self.server.close()
        self.publisher.close()
        self.frames.close()
        self.places.close()


@pytest.fixture
def beamline(tmp_path: Path) -> Iterator[Beamline]:
    made = Beamline(tmp_path)
    yield made
    made.close()


@pytest.fixture
def engine() -> Iterator[RunEngine]:
    made = RunEngine(call_returns_result=True)
    yield made
    made.loop.call_soon_threadsafe(made.loop.stop)
    made._th.join(60)
    made.loop.close()


def device(kind: str, beamline: Beamline, engine: RunEngine, **more: Any) -> Any:
    given = {"name": "eiger", "steering": beamline.server.endpoint, **more}
    if kind == "classic":
        return classic.Frames(beamline.publisher.endpoint, **given)
    from ophyd_async.core import init_devices

    with init_devices():
        return asynchronous.Frames(beamline.publisher.endpoint, **given)


def referred(documents: list[tuple[str, dict[str, Any]]]) -> np.ndarray[Any, Any]:
    """The frames that a run's documents refer to, in order; each document is what its schema says."""
    for name, document in documents:
        schema_validators[next(kind for kind in schema_validators if kind.name == name)].validate(document)
    (resource,) = (d for name, d in documents if name == "stream_resource")
    (key,) = (k for d in (d for name, d in documents if name == "descriptor") for k in d["data_keys"] if k.endswith("image"))
    (descriptor,) = (d for name, d in documents if name == "descriptor")
    per_event, *shape = descriptor["data_keys"][key]["shape"]
    assert shape == list(PATTERNS.shape[1:]) and resource["data_key"] == key
    ranges = [d["indices"] for name, d in documents if name == "stream_datum"]
    assert [r["start"] for r in ranges[1:]] == [r["stop"] for r in ranges[:-1]]
    with h5py.File(urlparse(resource["uri"]).path, "r", libver="v110", swmr=True) as file:
        rows = file[resource["parameters"]["dataset"]]
        return np.concatenate([rows[r["start"] * per_event : r["stop"] * per_event] for r in ranges])


@pytest.mark.parametrize("kind", ["classic", "async"])
@pytest.mark.parametrize("per", [1, 3])
def test_a_step_scan_refers_to_the_frames_that_the_session_wrote(
    kind: str, per: int, beamline: Beamline, engine: RunEngine
) -> None:
    eiger, documents = device(kind, beamline, engine, expose=lambda: beamline.send(per), frames_per_trigger=per), []

    def plan() -> Any:
        yield from bps.stage(eiger, wait=True)
        yield from bps.open_run()
        for _ in range(4):
            yield from bps.trigger_and_read([eiger])
        yield from bps.close_run()
        yield from bps.unstage(eiger, wait=True)

    engine(plan(), lambda name, document: documents.append((name, document)))
    np.testing.assert_array_equal(referred(documents), PATTERNS[: 4 * per])
    assert len([1 for name, _ in documents if name == "event"]) == 4
    beamline.end()
    assert len(beamline.session.results) == 1


@pytest.mark.parametrize("kind", ["classic", "async"])
def test_a_fly_scan_does_so_while_it_runs(kind: str, beamline: Beamline, engine: RunEngine) -> None:
    given = {"shape": PATTERNS.shape[1:], "expose": lambda: beamline.send(len(PATTERNS))}
    eiger, documents = device(kind, beamline, engine, **given), []

    def plan() -> Any:
        yield from bps.stage(eiger, wait=True)
        yield from bps.open_run()
        yield from bps.prepare(eiger, len(PATTERNS), wait=True)
        yield from bps.declare_stream(eiger, name="primary", collect=True)
        yield from bps.kickoff(eiger, wait=True)
        yield from bps.complete(eiger, wait=True)
        yield from bps.collect(eiger, name="primary")
        yield from bps.close_run()
        yield from bps.unstage(eiger, wait=True)

    engine(plan(), lambda name, document: documents.append((name, document)))
    np.testing.assert_array_equal(referred(documents), PATTERNS)


@pytest.mark.parametrize("kind", ["classic", "async"])
def test_staging_without_a_session_or_without_files_fails_at_once(kind: str, tmp_path: Path, engine: RunEngine) -> None:
    beamline = Beamline(tmp_path, files=False)
    try:
        for steering, why, limit_s in (
            (beamline.server.endpoint, "io.frames.active", 60.0),
            ("tcp://127.0.0.1:9", "no answer", 1.0),
        ):
            eiger = device(kind, beamline, engine, steering=steering, timeout_s=limit_s)
            with pytest.raises((RuntimeError, TimeoutError, FailedStatus)) as failed:
                engine(bps.stage(eiger, wait=True))
            assert why in f"{failed.value} {failed.value.__cause__}"
    finally:
        beamline.close()


def test_what_a_session_is_asked(beamline: Beamline, tmp_path: Path) -> None:
    with Steering(beamline.server.endpoint) as steering:
        assert steering.ask("status")["state"] == "waiting"
        with pytest.raises(Refused, match="nothing is reconstructed yet"):
            steering.ask("save")
        steering.ask("pause")
        assert steering.ask("status")["paused"]
        steering.ask("resume")
        beamline.send(len(PATTERNS))
        deadline = threading.Event()
        for _ in range(600):
            if steering.ask("status")["iteration"] > 0:
                break
            deadline.wait(0.05)
        assert steering.ask("save") == str(tmp_path / "t.ptyr")
        assert steering.ask("end", reason="enough") == "t"
        beamline.thread.join(60)
        assert not beamline.thread.is_alive()
        with pytest.raises(Refused, match="the session has ended"):
            steering.ask("save")
        assert steering.ask("status")["results"] == [str(tmp_path / "t.ptyr")]
        told = {entry["action"]: entry for entry in steering.ask("actions")}
        assert told["end"]["with"]["reason"] == {"type": "str", "needed": False} and told["status"]["role"] == "viewer"
        (file,) = steering.ask("frames")
        assert file["written"] == len(PATTERNS)


def test_stop_over_the_wire_saves_what_is_there(beamline: Beamline) -> None:
    beamline.send(len(PATTERNS))
    with Steering(beamline.server.endpoint) as steering:
        while steering.ask("status")["iteration"] == 0:
            threading.Event().wait(0.05)
        steering.ask("stop")
    beamline.thread.join(60)
    assert not beamline.thread.is_alive() and len(beamline.session.results) == 1
