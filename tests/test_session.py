"""A running session against hostile input: alive, everything counted, the result unaffected."""

from __future__ import annotations

import threading
import time
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


def messages(scan: str = "a") -> tuple[list[list[bytes]], list[list[bytes]]]:
    """The frames and the positions of a small scan."""
    frames = [[header("start", scan=scan, meta={"num_frames": BEAM.frames})]]
    places = [[header("start", scan=scan, meta={})]]
    for k, pattern in enumerate(PATTERNS):
        frames.append(frames_parts(scan, k, [pattern.tobytes()], 1, pattern.shape, pattern.dtype, "raw"))
        places.append(samples_parts(scan, k, {"y": PLACES[k, :1], "x": PLACES[k, 1:]}, None))
    frames.append([header("end", scan=scan, count=BEAM.frames, reason="completed")])
    places.append([header("end", scan=scan, count=BEAM.frames, reason="completed")])
    return frames, places


def session(folder: Path, frames: Memory, places: Memory, metrics: Metrics, **root: object) -> Session:
    source = {"name": "ZmqScan"}
    data = {**source, "shape": BEAM.side, **GEOMETRY, "positions": source}
    given = {
        "run": "t",
        "min_frames_for_recon": BEAM.frames + 1,  # begin with the end: the schedule does not depend on the machine
        "threads": 1,
        "io": {"home": str(folder), "rfile": "%(run)s.ptyr"},
        "scans": {"s": {"name": "Full", "data": data, "illumination": {"aperture": {"size": 4e-7}}}},
        "engines": {"e": {"name": "DM", "numiter": 5}},
        **root,
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


@pytest.mark.parametrize("when", ["before the good ones", "after them", "among them"])
def test_sound_messages_that_say_something_absurd_change_nothing_either(
    tmp_path: Path, when: str, caplog: pytest.LogCaptureFixture
) -> None:
    frames, places = messages()
    (path,) = session(tmp_path / "plain", Memory("s/data", frames), Memory("s/positions", places), Metrics()).run()
    wanted = ptyr.read(path)
    absurd = [[bytes(p) for p in parts] for _, parts in hostile.strange("a")]
    place = {"before the good ones": 1, "after them": -1, "among them": 40}[when]

    def mixed(good: list[list[bytes]]) -> list[list[bytes]]:
        return [*good[:place], *absurd, *absurd, *good[place:]]

    metrics = Metrics()
    with caplog.at_level("WARNING", logger="ptystream"):
        data, places = Memory("s/data", mixed(frames)), Memory("s/positions", mixed(places))
        running = session(tmp_path / "absurd", data, places, metrics)
        (path,) = running.run()
    result = ptyr.read(path)
    assert result.ledger["used"] == BEAM.frames
    order, before = (np.lexsort(r.positions_m.T) for r in (result, wanted))
    np.testing.assert_array_equal(result.positions_m[order], wanted.positions_m[before])
    np.testing.assert_allclose(result.object["SsG00"].data, wanted.object["SsG00"].data, rtol=0.02, atol=0.02 * 40)
    assert running.current is not None
    notes = running.current.scans["s"].buffer.ledger.notes()
    assert notes["frames_not_configured"] == 14
    assert notes["samples_not_configured"] == 10
    assert result.ledger["wrong_shape"] + result.ledger.get("duplicate", 0) == 14
    said = [record.getMessage() for record in caplog.records]
    assert len([text for text in said if "wrong_shape" in text]) <= 1
    assert len([text for text in said if "channel_missing" in text]) <= 1


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


def test_scan_after_scan_makes_run_after_run_without_a_restart(tmp_path: Path) -> None:
    both = [messages("a"), messages("b")]
    frames, places = ([m for pair in both for m in pair[k]] for k in (0, 1))
    running = session(tmp_path, Memory("s/data", frames), Memory("s/positions", places), Metrics(), live={"runs": 2})
    paths = running.run()
    assert [p.name for p in paths] == ["t.ptyr", "t_0002.ptyr"]
    first, second = (ptyr.read(p) for p in paths)
    assert first.ledger["used"] == second.ledger["used"] == BEAM.frames
    np.testing.assert_array_equal(first.object["SsG00"].data, second.object["SsG00"].data)


class Stalled(Memory):
    """Gives out its messages and then stays silent."""

    def receive(self, timeout_s: float) -> Message | None:
        parts = next(self._messages, None)
        if parts is None:
            threading.Event().wait(timeout_s)
            return None
        return Message(1, self.channel, tuple(parts))


def test_a_scan_from_which_nothing_comes_any_more_is_ended_after_the_time_out(tmp_path: Path) -> None:
    frames, places = messages()
    cut = Stalled("s/data", frames[:60]), Stalled("s/positions", places[:60])
    running = session(tmp_path, *cut, Metrics(), live={"timeout_s": 1.0}, min_frames_for_recon=20)
    (path,) = running.run()
    result = ptyr.read(path)
    assert result.ledger["used"] == 59
    assert any(entry["do"] == "end" and "nothing came" in entry["reason"] for entry in result.schedule)


@pytest.mark.parametrize(("precision", "dtype"), [("single", "complex64"), ("double", "complex128")])
def test_the_precision_asked_for_is_that_of_the_result(tmp_path: Path, precision: str, dtype: str) -> None:
    frames, places = messages()
    running = session(tmp_path, Memory("s/data", frames), Memory("s/positions", places), Metrics(), data_type=precision)
    (path,) = running.run()
    assert ptyr.read(path).object["SsG00"].data.dtype == dtype


def test_a_waiting_session_uses_no_cpu(tmp_path: Path) -> None:
    frames, places = messages()
    running = session(tmp_path, Stalled("s/data", frames[:40]), Stalled("s/positions", places[:40]), Metrics())
    thread = threading.Thread(target=running.run)
    thread.start()
    threading.Event().wait(3.0)
    before = time.process_time()
    threading.Event().wait(2.0)
    spent = time.process_time() - before
    running.stop()
    thread.join(30)
    assert spent < 0.4
