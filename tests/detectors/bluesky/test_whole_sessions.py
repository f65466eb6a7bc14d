"""A real RunEngine on one side, a reconstruction on the other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from beamline import BEAMLINE, FLY, STEP, Documents, lines, plan_of, run, stage

from ptystream.detectors.bluesky import Documents as Feed
from ptystream.detectors.bluesky.simulator import publisher
from ptystream.detectors.zmq import Sender
from ptystream.metrics import Metrics
from ptystream.params.load import load
from ptystream.plan import make_plan, recorder_of
from ptystream.session import Session
from ptystream.storage import ptyr

GEOMETRY = BEAMLINE.geometry()


class Running:
    """A session in a thread."""

    def __init__(self, folder: Path, data: dict[str, Any], **root: Any) -> None:
        given = {
            "run": "t",
            "threads": 1,
            "io": {"home": str(folder), "rfile": "%(run)s.ptyr", **root.pop("io", {})},
            "scans": {"s": {"name": "Full", "data": {"shape": 32, **GEOMETRY, **data}}},
            "engines": {"e": {"name": "DM", "numiter": 30}},
            **root,
        }
        given["scans"]["s"]["illumination"] = {"aperture": {"size": 4e-7}}
        ready = threading.Event()
        self.metrics = Metrics()
        configuration = load(given)
        self.recorder, interrupted = recorder_of(configuration)
        assert interrupted is None
        plan = make_plan(configuration, recorder=self.recorder)
        self.session = Session(plan, metrics=self.metrics, tap=self.recorder, on_ready=ready.set)
        self.results: list[Path] = []
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert ready.wait(60), self.failure

    def _run(self) -> None:
        try:
            self.results = self.session.run()
        except BaseException as error:
            self.failure = error

    def address(self, channel: str) -> str:
        """Where a bound source listens."""
        source = next(s for s in self.session._sources if s.transport.channel == channel)
        text: str = source.transport._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        return text

    def result(self, timeout_s: float = 60.0) -> Any:
        """What was saved."""
        self._thread.join(timeout_s)
        if self.failure is not None:
            raise self.failure
        assert not self._thread.is_alive(), self.session.status()
        if self.recorder is not None:
            self.recorder.close()
        return ptyr.read(self.results[0])


def sound(result: Any, count: int = BEAMLINE.frames) -> None:
    """All frames at their places, and a picture that explains them."""
    assert result.ledger["used"] == result.ledger["expected"] == count
    places = {tuple(p) for p in np.round(result.positions_m, 10).tolist()}
    assert places == {tuple(p) for p in np.round(BEAMLINE.positions_m(), 10).tolist()}
    assert result.misfit[-1, 0] < 3.0, "the truth has 1"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["step", "files", "fly"])
def test_a_run_engine_in_the_same_process(tmp_path: Path, kind: str) -> None:
    feed = Feed(f"process {kind}")
    running = Running(
        tmp_path, {"name": "BlueskyScan", "via": "process", "feed": feed.name, "find": FLY if kind == "fly" else STEP}
    )
    run(plan_of(kind, tmp_path), feed)
    sound(running.result())


def connected(sender: Any, running: Running) -> None:
    """Wait until what `sender` publishes arrives."""
    deadline = time.monotonic() + 60
    decoder = running.session._sources[0].decoder
    while not decoder.documents:
        sender("stop", {"uid": "nobody", "run_start": "nothing"})
        time.sleep(0.02)
        assert time.monotonic() < deadline


@pytest.mark.slow
def test_fly_scan_over_zeromq_while_its_files_grow(tmp_path: Path) -> None:
    find = {**FLY, "num_frames": "start:frames"}
    data = {"name": "BlueskyScan", "address": "tcp://127.0.0.1:*", "bind": True, "prefix": "ptycho", "find": find}
    running = Running(tmp_path, data)
    sender = publisher(running.address("s/data"), b"ptycho")
    connected(sender, running)

    def send(name: str, document: dict[str, Any]) -> None:
        if name == "stop":  # frames are used while the scan goes on
            until(lambda: running.session.status()["used"] > 0)
        sender(name, document)

    run(plan_of("fly", tmp_path, rate_hz=60.0), send)
    sender.close()
    sound(running.result())


@pytest.mark.slow
def test_frames_by_zeromq_and_positions_by_documents(tmp_path: Path) -> None:
    """Other names for the same scan on both sides: the start document tells the detector's."""
    feed = Feed("positions")
    positions = {"name": "BlueskyScan", "via": "process", "feed": "positions", "find": STEP}
    with Sender() as sender:
        data = {"name": "ZmqScan", "address": sender.address, "positions": positions}
        running = Running(tmp_path, data, live={"epochs": "metadata:series"})
        place = stage()
        path = place.path_um()
        sender.start("series 17")
        for number, (y, x) in enumerate(path):
            sender.frames(number, place.frame(y, x)[None])
        run(plan_of("step", tmp_path, series="series 17"), feed)
        sender.end(len(path))
        result = running.result()
    sound(result)


def test_positions_from_files_with_several_samples_a_frame(tmp_path: Path) -> None:
    feed = Feed("encoders")
    positions = {"name": "BlueskyScan", "via": "process", "feed": "encoders", "find": FLY, "samples_per_frame": 4}
    data = {"name": "BlueskyScan", "via": "process", "feed": "encoders", "positions": positions}
    running = Running(tmp_path, data)
    run(plan_of("fly", tmp_path), feed)
    sound(running.result())


@pytest.mark.slow
def test_lost_documents_are_in_the_ledger_and_the_rest_is_reconstructed(tmp_path: Path) -> None:
    feed = Feed("lossy")
    running = Running(tmp_path, {"name": "BlueskyScan", "via": "process", "feed": "lossy", "find": STEP})

    def lossy(name: str, document: dict[str, Any]) -> None:
        if not (name == "event" and document["seq_num"] in (7, 30, 31, 92)):
            feed(name, document)

    run(plan_of("step", tmp_path), lossy)
    result = running.result()
    assert result.ledger["used"] == BEAMLINE.frames - 4
    assert result.ledger["expected"] == BEAMLINE.frames
    gaps = [
        s.value
        for m in running.metrics.registry.collect()
        for s in m.samples
        if s.labels.get("reason") == "gap" and "_created" not in s.name
    ]
    assert max(gaps) == 4


def test_jsonl_of_a_fly_scan_recorded_and_given_back(tmp_path: Path) -> None:
    documents: Documents = run(plan_of("fly", tmp_path))
    file = tmp_path / "run.jsonl"
    file.write_text(lines(documents))
    data = {"name": "BlueskyScan", "via": "file", "file": str(file), "find": FLY}
    io = {"recording": {"active": True, "file": "r.ptyrec"}}
    sound(Running(tmp_path, data, io=io).result())
    from ptystream.recording import Recording
    from ptystream.replay import Replay

    configuration = load(
        {
            "run": "again",
            "threads": 1,
            "io": {"home": str(tmp_path), "rfile": "%(run)s.ptyr"},
            "scans": {"s": {"name": "Full", "data": {**data, "shape": 32, **GEOMETRY}}},
            "engines": {"e": {"name": "DM", "numiter": 30}},
        }
    )
    replay = Replay(Recording(tmp_path / "r.ptyrec"), ["s/data"])
    session = Session(make_plan(configuration, transports={"s/data": replay.transport("s/data")}), metrics=Metrics())
    (path,) = session.run()
    assert ptyr.read(path).ledger["used"] == BEAMLINE.frames


@pytest.mark.slow
def test_files_that_never_come_are_counted_and_end_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptystream.files.PATIENCE_S", 0.3)
    feed = Feed("elsewhere")
    data = {"name": "BlueskyScan", "via": "process", "feed": "elsewhere", "find": STEP}
    running = Running(tmp_path, data | {"path_map": {str(tmp_path): str(tmp_path / "not here")}}, live={"runs": 2})
    run(plan_of("files", tmp_path, 20), feed)
    deadline = time.monotonic() + 60
    while not (
        running.session.finished or (running.session.current and running.session.current.ledger().get("unreadable_file") == 20)
    ):
        time.sleep(0.02)
        assert time.monotonic() < deadline, running.session.status()
    run(plan_of("step", tmp_path), feed)
    feed.close()
    result = running.result()
    sound(result)


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        time.sleep(0.01)
        assert time.monotonic() < deadline


def test_a_session_that_continues_reads_the_files_again(tmp_path: Path) -> None:
    """The recording holds the documents; the frames are read from the files that they name."""
    documents = run(plan_of("fly", tmp_path))
    file = tmp_path / "run.jsonl"
    half = next(k for k, (name, d) in enumerate(documents) if name == "stream_datum" and d["indices"]["stop"] > 40)
    file.write_text(lines(documents[:half]))
    data = {"name": "BlueskyScan", "via": "file", "file": str(file), "find": FLY, "shape": 32, **GEOMETRY}
    given = {
        "run": "t",
        "threads": 1,
        "io": {"home": str(tmp_path), "rfile": "%(run)s.ptyr", "recording": {"active": True, "file": "r.ptyrec"}},
        "scans": {"s": {"name": "Full", "data": data, "illumination": {"aperture": {"size": 4e-7}}}},
        "engines": {"e": {"name": "DM", "numiter": 30}},
    }
    configuration = load(given)
    recorder, _ = recorder_of(configuration)
    assert recorder is not None
    decoder = configuration.scans[0].data.plugin.decoder(configuration.scans[0].data.parameters, "s/data")
    transport = configuration.scans[0].data.plugin.transport(configuration.scans[0].data.parameters, "s/data", decoder)
    transport.open()
    for _ in range(half):
        message = transport.receive(1.0)
        assert message is not None
        recorder.write(message)
        decoder.feed(message)
    transport.close()
    recorder.flush()
    path = tmp_path / "r.ptyrec"
    recorder.close()
    raw = path.read_bytes()
    from ptystream.recording import Recording

    interrupted = list(Recording(path))
    assert len(interrupted) == half and raw
    file.write_text(lines(documents))
    session = Session(make_plan(configuration), metrics=Metrics(), recorded=interrupted)
    (saved,) = session.run()
    sound(ptyr.read(saved))
