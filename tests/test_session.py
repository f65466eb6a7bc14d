"""A running session against hostile input: alive, everything counted, the result unaffected."""

from __future__ import annotations

import threading
from pathlib import Path

import hostile
import numpy as np
import pytest
from problems import BEAM, GEOMETRY, PATTERNS, PLACES

from ptystream.detectors.zmq.protocol import NativeDecoder, frames_parts, header, samples_parts
from ptystream.metrics import Metrics
from ptystream.params.load import load
from ptystream.plan import make_plan
from ptystream.session import Session, SessionError
from ptystream.storage import ptyr
from ptystream.transport import Message, TransportClosed


class Memory:
    """A transport that gives out a list of messages."""

    def __init__(self, channel: str, messages: list[list[bytes]], failure: Exception | None = None) -> None:
        self.channel, self._messages, self._failure = channel, iter(messages), failure
        self.acknowledged = 0

    def open(self) -> None:
        pass

    def receive(self, timeout_s: float) -> Message | None:
        parts = next(self._messages, None)
        if parts is None:
            if self._failure is not None:
                raise self._failure
            raise TransportClosed("no more")
        return Message(1, self.channel, tuple(parts))

    def acknowledge(self, message: Message) -> None:
        self.acknowledged += 1

    def close(self) -> None:
        pass


def messages() -> tuple[list[list[bytes]], list[list[bytes]]]:
    """The frames and the positions of a small scan."""
    frames = [[header("start", scan="a", meta={"num_frames": BEAM.frames})]]
    places = [[header("start", scan="a", meta={})]]
    for k, pattern in enumerate(PATTERNS):
        frames.append(frames_parts("a", k, [pattern.tobytes()], 1, pattern.shape, pattern.dtype, "raw"))
        places.append(samples_parts("a", k, {"y": PLACES[k, :1], "x": PLACES[k, 1:]}, None))
    frames.append([header("end", scan="a", count=BEAM.frames, reason="completed")])
    places.append([header("end", scan="a", count=BEAM.frames, reason="completed")])
    return frames, places


def session(folder: Path, frames: Memory, places: Memory, metrics: Metrics) -> Session:
    source = {"name": "ZmqScan"}
    data = {**source, "shape": BEAM.side, **GEOMETRY, "positions": source}
    given = {
        "run": "t",
        "min_frames_for_recon": BEAM.frames,
        "threads": 1,
        "io": {"home": str(folder), "rfile": "t.ptyr"},
        "scans": {"s": {"name": "Full", "data": data, "illumination": {"aperture": {"size": 4e-7}}}},
        "engines": {"e": {"name": "DM", "numiter": 5}},
    }
    return Session(make_plan(load(given), transports={"s/data": frames, "s/positions": places}), metrics=metrics)


def test_hostile_messages_are_counted_and_change_nothing(tmp_path: Path) -> None:
    frames, places = messages()
    plain, dirty = tmp_path / "plain", tmp_path / "dirty"
    (path,) = session(plain, Memory("s/data", frames), Memory("s/positions", places), Metrics()).run()
    wanted = ptyr.read(path)
    random = np.random.default_rng(0)

    def damaged(good: list[list[bytes]]) -> list[list[bytes]]:
        mixed = [[bytes(p) for p in parts] for _, parts in hostile.malformed()]
        order = [good[0], *mixed[: len(mixed) // 2]]
        for message in good[1:-1]:
            order.append(message)
            if random.random() < 0.3:
                order.append(mixed[int(random.integers(len(mixed)))])
        return [*order, good[-1]]

    metrics = Metrics()
    (path,) = session(dirty, Memory("s/data", damaged(frames)), Memory("s/positions", damaged(places)), metrics).run()
    result = ptyr.read(path)
    assert result.ledger["used"] == BEAM.frames
    for name, storage in wanted.object.items():
        np.testing.assert_array_equal(result.object[name].data, storage.data)
    rejected = next(m for m in metrics.registry.collect() if m.name == "ptystream_rejected")
    assert sum(s.value for s in rejected.samples if s.name.endswith("_total")) > 20


def test_a_source_that_dies_ends_the_session_with_its_error_after_saving(tmp_path: Path) -> None:
    frames, places = messages()
    broken = Memory("s/data", frames[:50], OSError("the cable is out"))
    running = session(tmp_path, broken, Memory("s/positions", places), Metrics())
    with pytest.raises(SessionError, match="the cable is out"):
        running.run()
    if running.results:
        assert ptyr.read(running.results[0]).ledger["used"] > 0


def test_messages_are_acknowledged_once_each(tmp_path: Path) -> None:
    frames, places = messages()
    data, positions = Memory("s/data", frames), Memory("s/positions", places)
    session(tmp_path, data, positions, Metrics()).run()
    assert data.acknowledged == len(frames)
    assert positions.acknowledged == len(places)


def test_stop_ends_a_waiting_session(tmp_path: Path) -> None:
    class Silent(Memory):
        def receive(self, timeout_s: float) -> Message | None:
            threading.Event().wait(timeout_s)
            return None

    running = session(tmp_path, Silent("s/data", []), Silent("s/positions", []), Metrics())
    thread = threading.Thread(target=running.run)
    thread.start()
    running.stop()
    thread.join(20)
    assert not thread.is_alive()
    assert running.results == []


def test_the_decoder_alone_survives_the_corpus() -> None:
    for _, parts in hostile.malformed():
        NativeDecoder().feed(Message(0, "s/data", tuple(parts)))
