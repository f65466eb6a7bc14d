"""Bluesky's documents of runs: valid, in order, over every way out, and what is wrong with a way out costs nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bluesky.plans as bp
import event_model
import h5py
import msgpack
import numpy as np
import pytest
import zmq
from bluesky import RunEngine
from bluesky.callbacks.best_effort import BestEffortCallback
from bluesky.callbacks.zmq import RemoteDispatcher
from event_model import DocumentNames, DocumentRouter, RunRouter, schema_validators
from memory import Memory, messages
from problems import BEAM, end, feed, make_run
from rich.console import Console
from test_ptycho import parameters, sources

from ptystream import Ptycho, archives
from ptystream.detectors.bluesky import Documents as FromPlan
from ptystream.detectors.bluesky.simulator import Camera, Stage, motors
from ptystream.detectors.simulated.simulator import Beamline
from ptystream.launch import launch
from ptystream.loop import Loop, LoopSettings, Step
from ptystream.metrics import Metrics
from ptystream.params.errors import ConfigurationError
from ptystream.params.load import load
from ptystream.params.plain import Param
from ptystream.publish.documenting import Documents, Published, as_json
from ptystream.run import Run
from ptystream.session import SessionError
from ptystream.storage import ptyr

Documented = list[tuple[str, dict[str, Any]]]


def given(home: Path, **documents: Any) -> Param:
    """A small configuration with `io.documents`."""
    p = parameters(home, e={"numiter": 6})
    p.io.documents.update(documents)
    return p


def valid(documents: Documented) -> Documented:
    """The same, each held against Bluesky's own schema."""
    for name, document in documents:
        schema_validators[DocumentNames[name]].validate(json.loads(as_json(document)))
    return documents


def read(path: Path) -> Documented:
    return [tuple(json.loads(line)) for line in path.read_text().splitlines()]


def test_a_run_leaves_valid_documents_that_lead_to_its_result(tmp_path: Path) -> None:
    heard: Documented = []
    P = Ptycho(given(tmp_path, file="documents/%(run)s.jsonl", interval_s=0.0), transports=sources())
    P.subscribe(lambda name, document: heard.append((name, document)))
    P.run()
    documents = valid(read(tmp_path / "documents" / "t.jsonl"))
    assert [name for name, _ in documents] == [name for name, _ in heard]
    assert json.loads(as_json(heard)) == json.loads(as_json(documents))
    names = [name for name, _ in documents]
    assert names[:2] == ["start", "descriptor"] and names[-1] == "stop"
    start, stop = documents[0][1], documents[-1][1]
    saved = ptyr.read(P.results[0])
    assert start["uid"] == stop["run_start"] == saved.uid
    assert start["scan_uid"] == "of MF" and start["parents"] == ["of MF"] and start["run"] == "t"
    assert stop["exit_status"] == "success"
    progress = [d["data"] for n, d in documents if n == "event" and "iteration" in d["data"]]
    assert progress[-1]["iteration"] == 6 and progress[-1]["frames_used"] == BEAM.frames
    assert progress[-1]["misfit"] == pytest.approx(saved.misfit[-1, 0]) and progress[-1]["error_kind"] == "fourier error"
    assert stop["num_events"] == {"primary": len(progress), "result": 1}
    (told,) = [d["data"] for n, d in documents if n == "event" and "result_file" in d["data"]]
    assert told["result_file"] == str(P.results[0])
    resources = {d["data_key"]: d for n, d in documents if n == "stream_resource"}
    assert set(resources) == {"object_SMFG00", "probe_SMFG00"}
    (keys,) = [d["data_keys"] for n, d in documents if n == "descriptor" and d["name"] == "result"]
    for key, resource in resources.items():
        with h5py.File(resource["uri"].removeprefix("file://localhost")) as file:
            data = file[resource["parameters"]["dataset"]]
            assert list(data.shape) == keys[key]["shape"] and data.dtype.str == keys[key]["dtype_numpy"]
            wanted = saved.object if key.startswith("object") else saved.probe
            np.testing.assert_array_equal(data[()], wanted["SMFG00"].data)


def test_blueskys_own_callbacks_take_them(tmp_path: Path) -> None:
    best, seen = BestEffortCallback(), list[str]()
    best.disable_plots()

    class Counted(DocumentRouter):
        def event(self, doc: Any) -> Any:
            seen.append("event")
            return super().event(doc)

        def stream_datum(self, doc: Any) -> Any:
            seen.append("stream_datum")
            return super().stream_datum(doc)

    router = RunRouter([lambda name, doc: ([Counted()], [])])
    P = Ptycho(given(tmp_path, interval_s=0.0), transports=sources())
    failures: list[str] = []

    def guarded(name: str, document: dict[str, Any]) -> None:
        try:
            best(name, document)
            router(name, document)
        except BaseException as error:
            failures.append(repr(error))

    P.subscribe(guarded)
    P.run()
    assert not failures
    assert seen.count("stream_datum") == 2 and seen.count("event") >= 2


@pytest.mark.parametrize(("form", "loads"), [("msgpack", msgpack.loads), ("json", json.loads)])
def test_a_remote_dispatcher_hears_them(form: str, loads: Callable[[bytes], Any]) -> None:
    published = Published("tcp://127.0.0.1:*", form=form, prefix="ptycho")
    dispatcher = RemoteDispatcher(published.endpoint.removeprefix("tcp://"), prefix=b"ptycho", deserializer=loads)
    heard: Documented = []
    over, ready = threading.Event(), threading.Event()

    def hear(name: str, document: dict[str, Any]) -> None:
        if name == "stop" and document["run_start"] == "nobody":
            ready.set()
            return
        heard.append((name, document))
        if name == "stop":
            over.set()

    dispatcher.subscribe(hear)
    thread = threading.Thread(target=lambda: _until_stopped(dispatcher), daemon=True)
    thread.start()
    greeting = {"run_start": "nobody", "uid": "x", "time": 0.0, "exit_status": "success"}
    for _ in range(600):  # a publisher does not say when somebody is there
        published.put("stop", greeting)
        if ready.wait(0.05):
            break
    assert ready.is_set()
    documents = Documents([published], 0.0)
    run = done(documents)
    documents.close()
    assert over.wait(30)
    dispatcher.loop.call_soon_threadsafe(dispatcher._task.cancel)  # `stop` is for its own thread
    thread.join(10)
    assert not thread.is_alive()
    valid(heard)
    assert heard[0][0] == "start" and heard[0][1]["uid"] == run.uid and heard[-1][1]["run_start"] == run.uid


def _until_stopped(dispatcher: RemoteDispatcher) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        dispatcher.start()


def done(documents: Documents, run: Run | None = None) -> Run:
    """A run that is told of until it is over."""
    run = run or make_run(engines=[{"numiter": 4}])
    feed(run, 0, BEAM.frames)
    end(run)
    loop, step = Loop(run, LoopSettings()), Step.WORKED
    deadline = time.monotonic() + 60
    while step is not Step.DONE and time.monotonic() < deadline:
        step = loop.step()
        documents.tell(run)
    documents.over(run)
    return run


def test_events_come_no_faster_than_they_are_wanted_and_the_last_one_always() -> None:
    for interval, most in ((0.0, 4), (1e6, 2)):
        heard: Documented = []
        documents = Documents(interval_s=interval)
        documents.subscribe(lambda name, document, heard=heard: heard.append((name, document)))
        run = done(documents)
        documents.close()
        events = [document["data"]["iteration"] for name, document in valid(heard) if name == "event"]
        assert events[-1] == run.iterations == 4
        assert events == sorted(set(events)) and len(events) <= most


def test_a_callback_that_fails_is_told_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    heard, counted = [], []
    documents = Documents(count=lambda place, good: counted.append((place, good)))

    def bad(name: str, document: dict[str, Any]) -> None:
        raise RuntimeError("no good")

    documents.subscribe(bad)
    documents.subscribe(lambda name, document: heard.append(name))
    leave = documents.subscribe(lambda name, document: pytest.fail("it had left"))
    leave()
    done(documents)
    documents.close()
    assert heard[0] == "start" and heard[-1] == "stop"
    assert counted == [("documents", False)]
    assert "no good" in caplog.text


def test_a_disk_that_is_full_costs_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Full:
        def put(self, name: str, document: dict[str, Any]) -> None:
            raise OSError(28, "No space left on device")

        def close(self) -> None:
            pass

    heard, counted = [], []
    documents = Documents([Full()], 0.0, lambda place, good: counted.append(good))
    documents.subscribe(lambda name, document: heard.append(name))
    done(documents)
    documents.close()
    assert heard[-1] == "stop" and counted == [False]
    assert caplog.text.count("No space left") == 1, "once, not with each document"


def test_one_that_hangs_holds_nobody_up_and_memory_does_not_grow() -> None:
    hung = threading.Event()
    documents = Documents(interval_s=0.0)
    documents.subscribe(lambda name, document: hung.wait(60))
    began = time.monotonic()
    run = make_run(engines=[{"numiter": 40}])
    done(documents, run)
    documents.close(0.1)
    assert time.monotonic() - began < 50
    assert len(documents._waiting) <= 1
    hung.set()
    documents.close()


def test_a_run_that_failed_or_was_stopped_says_so(tmp_path: Path) -> None:
    p = given(tmp_path, file="d.jsonl")
    transports = sources()
    transports["MF/data"] = Memory("MF/data", messages()[0][:40], OSError("the cable is out"))
    with pytest.raises(SessionError, match="the cable is out"):
        Ptycho(p, transports=transports).run()
    stop = valid(read(tmp_path / "d.jsonl"))[-1][1]
    assert stop["exit_status"] == "fail" and "session ended" in stop["reason"]
    documents, heard = Documents(), list[dict[str, Any]]()
    documents.subscribe(lambda name, document: heard.append(document))
    run = make_run(engines=[{"numiter": 4}])
    feed(run, 0, 40)
    run.scans["s"].buffer.end("stopped on request")
    loop = Loop(run, LoopSettings())
    while loop.step() is not Step.DONE:
        documents.tell(run)
    documents.over(run)
    documents.close()
    assert heard[-1]["exit_status"] == "abort" and heard[-1]["reason"] == "stopped on request"


def test_one_for_which_nothing_came_is_not_told_of() -> None:
    heard: list[str] = []
    documents = Documents()
    documents.subscribe(lambda name, document: heard.append(name))
    run = make_run()
    documents.tell(run)
    documents.over(run)
    documents.close()
    assert heard == []


def test_every_parameter_of_the_socket_reaches_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, dict[str, Any]]] = []

    class Seen:
        def __init__(self, address: str, **given: Any) -> None:
            made.append((address, given))

        def put(self, name: str, document: dict[str, Any]) -> None:
            pass

        def close(self) -> None:
            pass

    monkeypatch.setattr("ptystream.archives.Published", Seen)
    asked = {"address": "tcp://127.0.0.1:5577", "bind": False, "prefix": "p", "keys": "a.key_secret", "peer_keys": "b.key"}
    archives.documents_of(load(given(tmp_path, **asked, format="json", insecure=True)), Metrics(), None).close()
    ((address, options),) = made
    keys = {"keys": str(tmp_path / "a.key_secret"), "peer_keys": str(tmp_path / "b.key")}
    assert address == "tcp://127.0.0.1:5577"
    assert options == {"bind": False, "form": "json", "prefix": "p", "insecure": True, **keys}
    assert archives.documents_of(load(given(tmp_path, interval_s=7.0)), Metrics(), print).interval_s == 7.0
    assert archives.documents_of(load(given(tmp_path)), Metrics(), None) is None


@pytest.mark.parametrize(
    ("documents", "path"),
    [
        ({"address": "tcp://0.0.0.0:5577"}, "io.documents"),
        ({"prefix": "two words"}, "io.documents.prefix"),
        ({"file": "../d.jsonl"}, "io.documents.file"),
        ({"file": "%(engine)s.jsonl"}, "io.documents.file"),
        ({"format": "pickle"}, "io.documents.format"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_loaded(documents: dict[str, Any], path: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Ptycho(given(tmp_path, **documents))
    (fault,) = caught.value.faults
    assert fault.path.startswith(path)
    assert Ptycho(given(tmp_path, address="tcp://0.0.0.0:5577", insecure=True)).configuration


def test_a_place_that_is_taken_is_told_before_anything_begins(tmp_path: Path) -> None:
    with zmq.Context() as context, context.socket(zmq.PUB) as socket:
        socket.bind("tcp://127.0.0.1:*")
        address = socket.getsockopt_string(zmq.LAST_ENDPOINT)
        with pytest.raises(ConfigurationError, match=r"io\.documents\.address"):
            Ptycho(given(tmp_path, address=address), transports=sources()).run()
    (tmp_path / "there").write_text("a file")
    with pytest.raises(ConfigurationError, match=r"io\.documents\.file"):
        Ptycho(given(tmp_path, file="there/d.jsonl"), transports=sources()).run()


def test_with_keys_only_those_who_know_the_sessions_hear_them(tmp_path: Path) -> None:
    from zmq.auth import create_certificates, load_certificate

    public, secret = create_certificates(tmp_path, "session")
    published = Published("tcp://127.0.0.1:*", keys=str(secret), form="json")
    document = {"uid": "x"}
    with zmq.Context() as context, context.socket(zmq.SUB) as open_one, context.socket(zmq.SUB) as knows:
        for socket in (open_one, knows):
            socket.linger = 0
            socket.subscribe(b"")
        knows.curve_publickey, knows.curve_secretkey = zmq.curve_keypair()
        knows.curve_serverkey = load_certificate(public)[0]
        for socket in (open_one, knows):
            socket.connect(published.endpoint)
        for _ in range(600):
            published.put("start", document)
            if knows.poll(50):
                break
        assert knows.recv() == b' start {"uid": "x"}'
        assert not open_one.poll(0)
    published.close()


def test_a_proxy_is_connected_to(tmp_path: Path) -> None:
    with zmq.Context() as context, context.socket(zmq.SUB) as proxy:
        proxy.linger = 0
        proxy.subscribe(b"")
        proxy.bind("tcp://127.0.0.1:*")
        published = Published(proxy.getsockopt_string(zmq.LAST_ENDPOINT), bind=False, form="json")
        for _ in range(600):
            published.put("start", {"uid": "x"})
            if proxy.poll(50):
                break
        assert proxy.recv().startswith(b" start {")
        published.close()


def test_metrics_count_what_was_told(tmp_path: Path) -> None:
    metrics = Metrics()
    documents = Documents(count=metrics.archived)
    done(documents)
    documents.close()
    labels = {"target": "documents", "outcome": "done"}
    assert metrics.registry.get_sample_value("ptystream_archived_total", labels) == 1
    assert event_model.__version__


def test_one_that_goes_on_before_its_first_iteration_is_told_of() -> None:
    heard: list[tuple[str, dict[str, Any]]] = []
    documents = Documents(interval_s=0.0)
    documents.subscribe(lambda name, document: heard.append((name, document)))
    run = make_run()
    run.state, run.errors, run.misfit = "running", [np.zeros((0, 3))], [np.zeros((0, 3))]
    documents.tell(run)
    documents.over(run)
    documents.close()
    assert [name for name, _ in valid(heard)] == ["start", "descriptor", "stop"]


@pytest.mark.slow
def test_a_plan_and_its_reconstruction_are_linked(tmp_path: Path) -> None:
    stage = Stage(Beamline(frames=64, side=32, photons=1e6, step_px=4.5))
    y, x = motors()
    data = {
        "name": "BlueskyScan",
        "via": "process",
        "feed": "linked",
        "shape": 32,
        **stage.beamline.geometry(),
        "find": {"y": "event:stage_y; sign=-1", "x": "event:stage_x; sign=-1"},
    }
    configuration = {
        "run": "linked",
        "io": {"home": str(tmp_path), "documents": {"file": "d.jsonl"}},
        "scans": {"s": {"name": "Full", "data": data, "illumination": {"aperture": {"size": 4e-7}}}},
        "engines": {"e": {"name": "DM", "numiter": 3}},
    }
    measured, heard, ready = FromPlan("linked"), list[tuple[str, dict[str, Any]]](), threading.Event()
    P = Ptycho(configuration)
    P.subscribe(lambda name, document: heard.append((name, document)))
    reconstruction = threading.Thread(
        target=lambda: launch(P.configuration, Console(quiet=True), on_document=P._told, on_ready=ready.set), daemon=True
    )
    reconstruction.start()
    assert ready.wait(120)
    engine: Any = RunEngine({})
    engine.subscribe(measured)
    (uid,) = engine(bp.grid_scan([Camera(stage, (y, x))], y, -0.3, 0.3, 6, x, -0.3, 0.3, 6))
    reconstruction.join(120)
    assert not reconstruction.is_alive()
    start = valid(read(tmp_path / "d.jsonl"))[0][1]
    assert start["scan_uid"] == uid and start["parents"] == [uid]
    assert heard[-1][1]["exit_status"] == "success"
