"""A publisher's signs of life over real ZeroMQ, and what is made of such a message."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq
from memory import Memory, messages
from problems import BEAM, GEOMETRY
from snapshots import snapshot

from ptystream.engines.dm import DM
from ptystream.metrics import Metrics
from ptystream.params.load import load
from ptystream.plan import make_plan
from ptystream.publish import heartbeat
from ptystream.publish.heartbeat import Heartbeat, RunBeat
from ptystream.publish.publisher import Publisher, topic_of
from ptystream.publish.schema import SchemaError
from ptystream.publish.subscribing import listener
from ptystream.session import Session

DATA = {"name": "ZmqScan", "shape": BEAM.side, **GEOMETRY, "positions": {"name": "ZmqScan"}}
GOOD = {"format": "ptystream.heartbeat", "version": 1, "number": 3, "sent_ns": 10**18, "started_ns": 5, "state": "alive"}
GOOD |= {"runs": [{"run": "a", "state": "running", "iteration": 7}]}


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    made = Publisher()
    yield made
    made.close()


def heard(socket: zmq.Socket[bytes]) -> Heartbeat:
    assert socket.poll(60_000), "no heartbeat came"
    topic, part = socket.recv_multipart()
    assert topic == b"heartbeat/"
    return heartbeat.decode(part)


def test_it_beats_by_itself_and_says_goodbye(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptystream.publish.publisher.INTERVAL_S", 0.05)
    publisher.offer(snapshot(1, run="a"))
    socket = listener(publisher.endpoint)
    beats = [heard(socket) for _ in range(4)]
    numbers = [beat.number for beat in beats]
    assert numbers == list(range(numbers[0], numbers[0] + 4))
    assert beats[-1].runs == (RunBeat("a", "running", snapshot(1).iteration),)
    assert abs(beats[-1].sent_ns - time.time_ns()) < 60e9
    publisher.runs = lambda: [RunBeat("b", "paused", 5)]
    while (beat := heard(socket)).runs != (RunBeat("b", "paused", 5),):
        assert beat.state == "alive"
    publisher.close()
    while (beat := heard(socket)).state == "alive":
        pass
    assert beat.state == "ended" and beat.started_ns == beats[0].started_ns
    socket.close()


def test_who_comes_is_told_at_once(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptystream.publish.publisher.INTERVAL_S", 1000.0)
    time.sleep(0.1)  # the first one, of the thread's own accord
    socket = listener(publisher.endpoint)
    assert heard(socket).state == "alive"
    assert publisher.viewers == 0  # of snapshots
    socket.close()


def test_a_viewer_that_hangs_keeps_none_back_and_old_ones_see_none(publisher: Publisher) -> None:
    hung = zmq.Context.instance().socket(zmq.SUB)
    hung.rcvhwm = 1
    hung.subscribe(topic_of("complex64"))
    hung.connect(publisher.endpoint)
    socket = listener(publisher.endpoint)
    heard(socket)
    for number in range(40):
        publisher.offer(snapshot(number, side=256))
        time.sleep(0.01)
    began = time.monotonic()
    first = heard(socket)
    while heard(socket).number < first.number + 2:
        pass
    assert time.monotonic() - began < 20
    late = zmq.Context.instance().socket(zmq.SUB)
    late.subscribe(topic_of("complex64"))
    late.connect(publisher.endpoint)
    assert late.poll(60_000)
    while late.poll(1500):  # longer than between two heartbeats
        assert late.recv_multipart()[0] == topic_of("complex64", "test")
    for one in (hung, late, socket):
        one.close(linger=0)


def test_what_is_sent_is_what_was_meant() -> None:
    beat = Heartbeat(3, 10**18, 5, "ended", (RunBeat("a", "running", 7), RunBeat("b", "waiting", 0)))
    topic, part = heartbeat.encode(beat)
    assert topic == heartbeat.TOPIC and heartbeat.decode(part) == beat
    assert heartbeat.decode(msgpack.packb(GOOD | {"later": 1})) == Heartbeat(3, 10**18, 5, "alive", beat.runs[:1])
    many = Heartbeat(0, 0, 0, "alive", tuple(RunBeat(str(k), "running", k) for k in range(100)))
    assert heartbeat.decode(heartbeat.encode(many)[1]).runs == many.runs[-64:]


@pytest.mark.parametrize(
    "wrong",
    [
        {"format": "other"},
        {"version": 2},
        {"number": True},
        {"sent_ns": 1.5},
        {"started_ns": None},
        {"state": "asleep"},
        {"runs": {}},
        {"runs": [1]},
        {"runs": [{"run": "a", "state": "running"}]},
        {"runs": GOOD["runs"] * 65},
    ],
)
def test_what_is_none_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SchemaError):
        heartbeat.decode(msgpack.packb(GOOD | wrong))


def test_neither_is_what_is_too_large_or_no_map() -> None:
    for part in (b"", b"\xc1", msgpack.packb([1]), os.urandom(1 << 17)):
        with pytest.raises(SchemaError):
            heartbeat.decode(part)


def test_a_session_beats_while_an_iteration_takes_long(
    publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ptystream.publish.publisher.INTERVAL_S", 0.05)
    begun, go, before = threading.Event(), threading.Event(), DM.iterate

    def slow(engine: Any, *given: Any, **more: Any) -> Any:
        if session.current is not None and session.current.frames:  # not while it is compiled
            begun.set()
            assert go.wait(60)
        return before(engine, *given, **more)

    monkeypatch.setattr(DM, "iterate", slow)
    frames, places = messages()
    given = {
        "run": "t",
        "io": {"home": str(tmp_path), "rfile": "%(run)s.ptyr"},
        "scans": {"s": {"name": "Full", "data": DATA, "illumination": {"aperture": {"size": 4e-7}}}},
        "engines": {"e": {"name": "DM", "numiter": 3}},
    }
    transports = {"s/data": Memory("s/data", frames), "s/positions": Memory("s/positions", places)}
    session = Session(make_plan(load(given), transports=transports), metrics=Metrics(), publisher=publisher)
    socket = listener(publisher.endpoint)
    thread = threading.Thread(target=session.run)
    thread.start()
    assert begun.wait(60)
    deadline = time.monotonic() + 60
    while (runs := heard(socket).runs) != (RunBeat("t", "running", 0),):
        assert time.monotonic() < deadline, runs
    for _ in range(5):
        assert heard(socket).runs == (RunBeat("t", "running", 0),)
    go.set()
    thread.join(60)
    deadline = time.monotonic() + 60
    while (last := heard(socket).runs)[0].state != "finished":  # the last there was is told further on
        assert time.monotonic() < deadline
    assert last[0].run == "t" and last[0].iteration >= 3
    socket.close()
