"""A running session against hostile input: alive, everything counted, the result unaffected."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import hostile
import numpy as np
import pytest
from memory import Memory, messages
from problems import BEAM, GEOMETRY, PATTERNS

from ptystream.detectors.zmq.protocol import NativeDecoder, frames_parts
from ptystream.engines.raar import RAAR
from ptystream.events import Rejected
from ptystream.metrics import Metrics
from ptystream.params.load import load
from ptystream.plan import make_plan
from ptystream.routing import MAX_PENDING
from ptystream.run import Run
from ptystream.session import Session, SessionError
from ptystream.storage import ptyr
from ptystream.transport import Message


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


def said(caplog: pytest.LogCaptureFixture) -> Counter[tuple[str, str]]:
    """How often each (channel or scan, reason) was named."""
    lines = [re.match(r"(\S+): (\S+) \(logged once per reason\): .", record.getMessage()) for record in caplog.records]
    return Counter((line[1], line[2]) for line in lines if line)


def gauges(metrics: Metrics, name: str) -> dict[str, float]:
    """Label → value of a metric with one label, without zeros and times of creation."""
    family = next(m for m in metrics.registry.collect() if m.name == name)
    samples = [s for s in family.samples if not s.name.endswith("_created")]
    return {next(iter(s.labels.values())): s.value for s in samples if s.value}


def test_hostile_messages_are_counted_and_change_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
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

    metrics, feeds = Metrics(), [damaged(frames), damaged(places)]
    with caplog.at_level("WARNING", logger="ptystream"):
        (path,) = session(dirty, Memory("s/data", feeds[0]), Memory("s/positions", feeds[1]), metrics).run()
    result = ptyr.read(path)
    assert result.ledger["used"] == BEAM.frames
    for name, storage in wanted.object.items():
        np.testing.assert_array_equal(result.object[name].data, storage.data)
    for name, storage in wanted.probe.items():
        np.testing.assert_array_equal(result.probe[name].data, storage.data)
    told: Counter[str] = Counter()
    for feed in feeds:
        decoder, reasons = NativeDecoder(), set()
        for parts in feed:
            for event in decoder.feed(Message(0, "x", tuple(parts))):
                if isinstance(event, Rejected):
                    told[event.reason] += event.count
                    reasons.add(event.reason)
        assert len(reasons) > 4
        channel = ("s/data", "s/positions")[feed is feeds[1]]
        assert {reason: count for (who, reason), count in said(caplog).items() if who == channel} == dict.fromkeys(reasons, 1)
    assert gauges(metrics, "ptystream_rejected") == told


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
        positions = Memory("s/positions", mixed(places))
        data = Memory("s/data", mixed(frames), last_after=positions)
        running = session(tmp_path / "absurd", data, positions, metrics)
        (path,) = running.run()
    result = ptyr.read(path)
    assert result.ledger["used"] == BEAM.frames
    # An absurd message may have changed the order in which frames were ready: the same frames and positions in that order,
    # without the absurd ones, must give the same bits.
    order = [int(np.flatnonzero((wanted.positions_m == place).all(axis=1))[0]) for place in result.positions_m]
    assert sorted(order) == list(range(BEAM.frames))
    same = [[good[0], *(good[1 + k] for k in order), good[-1]] for good in (frames, places)]
    (path,) = session(tmp_path / "same", Memory("s/data", same[0]), Memory("s/positions", same[1]), Metrics()).run()
    again = ptyr.read(path)
    np.testing.assert_array_equal(result.object["SsG00"].data, again.object["SsG00"].data)
    np.testing.assert_array_equal(result.probe["SsG00"].data, again.probe["SsG00"].data)
    np.testing.assert_allclose(result.misfit[-1, :2], wanted.misfit[-1, :2], rtol=1e-4)
    assert running.current is not None
    ledger = running.current.scans["s"].buffer.ledger
    notes = ledger.notes()
    assert notes["frames_not_configured"] == 14
    assert notes["samples_not_configured"] == 10
    assert result.ledger["wrong_shape"] + result.ledger.get("duplicate", 0) == 14
    named = {reason: count for (who, reason), count in said(caplog).items() if who == "s"}
    assert set(named.values()) == {1}
    assert ledger.reason_counts().keys() | notes.keys() <= named.keys()
    assert gauges(metrics, "ptystream_notes") == notes
    assert gauges(metrics, "ptystream_frames") == {state: count for state, count in ledger.counts().items() if count}
    assert gauges(metrics, "ptystream_rejected") == {"unknown_scan": 4}
    assert said(caplog)["s/data", "unknown_scan"] + said(caplog)["s/positions", "unknown_scan"] == 1


@pytest.mark.parametrize("stray", ["an end that nobody began", "everything strange once more"])
def test_what_comes_between_two_scans_begins_no_run_and_costs_none(tmp_path: Path, stray: str) -> None:
    both = [messages("a"), messages("b")]
    absurd = [[bytes(p) for p in parts] for _, parts in hostile.strange("a")]
    between = absurd[-1:] if stray.startswith("an end") else absurd

    class Between(Memory):
        """What comes after the first scan comes when that has been saved."""

        def receive(self, timeout_s: float) -> Message | None:
            if self._left == len(between) + len(both[1][0]):
                deadline = time.monotonic() + 60
                while running.finished == 0:
                    assert time.monotonic() < deadline
                    threading.Event().wait(0.01)
            return super().receive(timeout_s)

    frames, places = ([*both[0][k], *between, *both[1][k]] for k in (0, 1))
    metrics = Metrics()
    running = session(tmp_path, Between("s/data", frames), Between("s/positions", places), metrics, live={"runs": 2})
    first, second = (ptyr.read(path) for path in running.run())
    np.testing.assert_array_equal(first.object["SsG00"].data, second.object["SsG00"].data)
    late = 2 * (len(between) - 1)
    assert gauges(metrics, "ptystream_rejected") == {"unknown_scan": 2} | ({"scan_over": late} if late else {})


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
    thread.join(60)
    assert not thread.is_alive()
    assert running.results == []


def test_the_decoder_alone_survives_the_corpus() -> None:
    for _, parts in hostile.malformed():
        NativeDecoder().feed(Message(0, "s/data", tuple(parts)))


def test_sources_that_end_in_mid_scan_end_the_run_and_the_session(tmp_path: Path) -> None:
    frames, places = messages()
    running = session(tmp_path, Memory("s/data", frames[:50]), Memory("s/positions", places[:50]), Metrics(), live={"runs": None})
    (path,) = running.run()
    result = ptyr.read(path)
    assert result.ledger["used"] == 49
    assert any(entry["do"] == "end" and "every source has ended" in entry["reason"] for entry in result.schedule)


def test_a_failure_is_the_state_of_the_result(tmp_path: Path) -> None:
    frames, places = messages()
    running = session(tmp_path, Memory("s/data", frames[:50], OSError("out")), Memory("s/positions", places), Metrics())
    with pytest.raises(SessionError, match="out"):
        running.run()
    assert running.current is None or running.current.state == "failed"


def test_so_it_is_of_one_that_still_waits_for_its_frames(tmp_path: Path) -> None:
    class Late(Memory):
        """Fails when the run is known to wait."""

        def receive(self, timeout_s: float) -> Message | None:
            deadline = time.monotonic() + 60
            while not self._left and running.current is None and time.monotonic() < deadline:
                time.sleep(0.01)
            return super().receive(timeout_s)

    frames, places = messages()
    running = session(tmp_path, Late("s/data", frames[:3], OSError("out")), Stalled("s/positions", places), Metrics())
    with pytest.raises(SessionError, match="out"):
        running.run()
    assert running.current is not None and running.current.state == "failed"


@pytest.mark.parametrize("disk", ["fine", "full"])
def test_an_engine_that_cannot_start_is_what_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, disk: str
) -> None:
    """And neither that there is nothing to ask of it, nor that nothing could be saved."""
    frames, places = messages()
    engines = {"one": {"name": "DM", "numiter": 2}, "two": {"name": "RAAR", "numiter": 2}}
    running = session(tmp_path, Memory("s/data", frames), Memory("s/positions", places), Metrics(), engines=engines)
    save = running.plan.save

    def start(self: RAAR, *arguments: object) -> None:
        raise MemoryError("no more")

    def fail(run: Run) -> Path | None:
        if disk == "full" and run.state == "failed":
            raise OSError("disk full")
        return save(run)

    monkeypatch.setattr(RAAR, "start", start)
    running.plan = replace(running.plan, warm_up=lambda: None, save=fail)
    with pytest.raises(MemoryError, match="no more"):
        running.run()
    assert ptyr.read(running.results[0]).iter_info[-1]["iteration"] == 2
    assert ("could not be saved: disk full" in caplog.text) == (disk == "full")


def test_scan_after_scan_makes_run_after_run_without_a_restart(tmp_path: Path) -> None:
    both = [messages("a"), messages("b")]
    frames, places = ([m for pair in both for m in pair[k]] for k in (0, 1))
    running = session(tmp_path, Memory("s/data", frames), Memory("s/positions", places), Metrics(), live={"runs": 2})
    paths = running.run()
    assert [p.name for p in paths] == ["t.ptyr", "t_0002.ptyr"]
    first, second = (ptyr.read(p) for p in paths)
    assert first.ledger["used"] == second.ledger["used"] == BEAM.frames
    np.testing.assert_array_equal(first.object["SsG00"].data, second.object["SsG00"].data)


class After(Memory):
    """Begins when another's messages are all delivered."""

    def __init__(self, channel: str, messages: list[list[bytes]], *, after: Memory) -> None:
        super().__init__(channel, messages)
        self._after = after

    def receive(self, timeout_s: float) -> Message | None:
        assert self._after.given.wait(60)
        return super().receive(timeout_s)


class Paced(Memory):
    """As `Stalled`, one scan after another as fast as results come."""

    def receive(self, timeout_s: float) -> Message | None:
        threading.Event().wait(0.001)
        return Stalled.receive(self, timeout_s)


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


def test_a_scan_from_which_nothing_came_at_all_ends_a_session_of_one(tmp_path: Path) -> None:
    frames, places = messages()
    begun = Stalled("s/data", frames[:1]), Stalled("s/positions", places[:1])
    running = session(tmp_path, *begun, Metrics(), live={"timeout_s": 0.3})
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    assert running.results == []


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
    deadline, spent = time.monotonic() + 60, 2.0
    while spent >= 0.4 and time.monotonic() < deadline:  # when what came is prepared
        before = time.process_time()
        threading.Event().wait(2.0)
        spent = time.process_time() - before
    running.stop()
    thread.join(60)
    assert spent < 0.4


def test_a_scan_that_never_gets_its_frames_keeps_nobody_waiting(tmp_path: Path) -> None:
    """One good frame of an acquisition that nobody goes on with, before the real one."""
    frames, places = messages("a")
    stray = [frames_parts("stray", 0, [PATTERNS[0].tobytes()], 1, PATTERNS[0].shape, PATTERNS[0].dtype, "raw")]
    running = session(tmp_path, Stalled("s/data", stray + frames), Stalled("s/positions", places), Metrics())
    (path,) = running.run()
    assert ptyr.read(path).ledger["used"] == BEAM.frames


def test_a_scan_of_the_same_name_may_begin_while_the_first_is_reconstructed(tmp_path: Path) -> None:
    both = [messages("always the same"), messages("always the same")]
    frames, places = ([m for pair in both for m in pair[k]] for k in (0, 1))
    running = session(tmp_path, Memory("s/data", frames), Memory("s/positions", places), Metrics(), live={"runs": 2})
    first, second = (ptyr.read(path) for path in running.run())
    assert first.ledger["used"] == second.ledger["used"] == BEAM.frames
    assert "late" not in first.ledger
    np.testing.assert_array_equal(first.object["SsG00"].data, second.object["SsG00"].data)


def start_and(scan: str, frames: int) -> list[list[bytes]]:
    """The start of a scan and its first frames."""
    return messages(scan)[0][: 1 + frames]


@pytest.mark.parametrize("frames", [0, 1])
def test_of_scans_beyond_those_that_can_wait_one_that_has_nothing_gives_way(
    tmp_path: Path, frames: int, caplog: pytest.LogCaptureFixture
) -> None:
    given, places = messages("a")
    others = [m for k in range(MAX_PENDING + 2) for m in start_and(f"other {k}", frames)]
    metrics = Metrics()
    with caplog.at_level("WARNING", logger="ptystream"):
        data = Memory("s/data", others + given)
        positions = After("s/positions", places, after=data)
        running = session(tmp_path, data, positions, metrics)
        thread = threading.Thread(target=running.run)
        thread.start()
        assert positions.given.wait(60)
        if frames:  # it waits for the others
            running.stop()
        thread.join(60)
        assert not thread.is_alive()
    refused = gauges(metrics, "ptystream_rejected").get("too_many_scans", 0)
    if frames:
        assert refused + gauges(metrics, "ptystream_rejected")["scan_over"] > BEAM.frames
        assert said(caplog)["s/data", "too_many_scans"] == 1
        assert running.results == []
    else:
        assert refused == 0
        assert ptyr.read(running.results[0]).ledger["used"] == BEAM.frames


def test_a_scan_whose_end_was_lost_is_ended_where_another_has_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptystream.session.SUPERSEDED_S", 2.0)
    broken, good = messages("broken"), messages("good")
    feeds = [broken[k][:40] + good[k] for k in (0, 1)]
    sources = Stalled("s/data", feeds[0]), Stalled("s/positions", feeds[1])
    running = session(tmp_path, *sources, Metrics(), live={"runs": 2}, min_frames_for_recon=16)
    first, second = (ptyr.read(path) for path in sorted(running.run()))
    assert first.ledger["used"] == 39
    assert any(entry["do"] == "end" and "another acquisition" in entry["reason"] for entry in first.schedule)
    assert second.ledger["used"] == BEAM.frames


def test_positions_that_are_not_waited_for_any_longer_end_a_scan_that_cannot_start(tmp_path: Path) -> None:
    frames, places = messages("a")
    positions = {"name": "ZmqScan", "wait_s": 1.5}
    data = {"name": "ZmqScan", "shape": BEAM.side, **GEOMETRY, "positions": positions}
    scans = {"s": {"name": "Full", "data": data, "illumination": {"aperture": {"size": 4e-7}}}}
    running = session(tmp_path, Stalled("s/data", frames), Stalled("s/positions", places[:30]), Metrics(), scans=scans)
    (path,) = running.run()
    assert ptyr.read(path).ledger["used"] == 29


class Tap:
    """A recorder that keeps messages in a list."""

    lost, full = 0, False

    def __init__(self) -> None:
        self.kept: list[Message] = []

    def write(self, message: Message, recorded: Callable[[Message], None] | None = None) -> None:
        self.kept.append(message)
        if recorded is not None:
            recorded(message)

    def index(self, message: Message, epoch: str, indices: np.ndarray) -> None:
        pass

    def flush(self, timeout_s: float) -> None:
        pass


def test_what_came_last_is_recorded_and_acknowledged_before_the_sockets_close(tmp_path: Path) -> None:
    class Late(Tap):
        """Keeps messages when it is asked to."""

        def __init__(self) -> None:
            super().__init__()
            self.queued: list[tuple[Message, Callable[[Message], None] | None]] = []

        def write(self, message: Message, recorded: Callable[[Message], None] | None = None) -> None:
            self.queued.append((message, recorded))

        def flush(self, timeout_s: float) -> None:
            for queued in self.queued:
                super().write(*queued)

    class Socket(Stalled):
        closed = False

        def acknowledge(self, message: Message) -> None:
            self.acknowledged += not self.closed

        def close(self) -> None:
            self.closed = True

    frames, places = messages()
    data, positions = Socket("s/data", frames), Socket("s/positions", places)
    running = session(tmp_path, data, positions, Metrics())
    running._tap = Late()
    for source in running._sources:
        source._tap = running._tap
    running.run()
    assert data.closed and positions.closed
    assert (data.acknowledged, positions.acknowledged) == (len(frames), len(places))


def test_a_scan_that_a_failure_cut_off_is_not_noted_as_done(tmp_path: Path) -> None:
    frames, places = messages()

    class Breaks(Memory):
        """Fails when the engine has begun."""

        def receive(self, timeout_s: float) -> Message | None:
            deadline = time.monotonic() + 60
            while self._left == 0 and not (running.current and running.current.iterations):
                assert time.monotonic() < deadline
                threading.Event().wait(0.01)
            return super().receive(timeout_s)

    broken = Breaks("s/data", frames[:60], OSError("the cable is out"))
    running = session(tmp_path, broken, Stalled("s/positions", places), Metrics(), min_frames_for_recon=20)
    tap = running._tap = Tap()
    for source in running._sources:
        source._tap = tap
    with pytest.raises(SessionError, match="the cable is out"):
        running.run()
    assert len(running.results) == 1
    assert [message for message in tap.kept if message.channel == "session"] == []


def test_a_restart_leaves_out_the_scans_that_have_a_result(tmp_path: Path) -> None:
    """As many as come in a night, and the one under way when the power went."""
    all_of_them = [messages(f"scan {k}" if k % 2 else "again") for k in range(8)]
    frames, places = ([m for pair in all_of_them for m in pair[k]] for k in (0, 1))
    cut = len(all_of_them[0][0]) * 7 + 60
    settings = {"live": {"runs": None}, "engines": {"e": {"name": "DM", "numiter": 1}}}
    first = session(tmp_path, Paced("s/data", frames[:cut]), Paced("s/positions", places[:cut]), Metrics(), **settings)
    tap = first._tap = Tap()
    kept = tap.kept
    for source in first._sources:
        source._tap = tap
    thread = threading.Thread(target=first.run)
    thread.start()
    deadline = time.monotonic() + 60
    while first.finished < 7 or len(kept) < 2 * cut + 7:
        assert time.monotonic() < deadline
        threading.Event().wait(0.02)
    interrupted = list(kept)
    first.stop()
    thread.join(60)
    again = session(tmp_path, Memory("s/data", frames[cut:]), Memory("s/positions", places[cut:]), Metrics(), **settings)
    again._recorded = interrupted
    (path,) = again.run()
    assert path.name == "t_0008.ptyr"
    assert ptyr.read(path).ledger["used"] == BEAM.frames
