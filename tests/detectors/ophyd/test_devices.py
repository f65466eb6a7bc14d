"""Devices that follow a session, in a real RunEngine."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import bluesky.plan_stubs as bps
import numpy as np
import pytest
from bluesky import RunEngine
from bluesky.utils import FailedStatus
from snapshots import snapshot

from ptystream.detectors.ophyd import asynchronous, classic
from ptystream.detectors.ophyd.following import Counted, Numbers
from ptystream.detectors.ophyd.plans import until_converged
from ptystream.publish.publisher import Publisher
from ptystream.publish.snapshot import Snapshot


def told(number: int, *, error: float = 1.0, received: int = 0, state: str = "running") -> Snapshot:
    """A snapshot with a known error."""
    made = snapshot(number, state=state)
    return replace(
        made,
        iteration=number + 1,
        misfit=np.array([[error, 1.0, 1.0]]),
        ledger={"received": received, "used": received // 2},
        rates={"latency_seconds": 0.25},
    )


class Talker(threading.Thread):
    """Offers snapshots, each a little better than the one before, until it is stopped."""

    def __init__(self, publisher: Publisher, errors: Iterator[float]) -> None:
        super().__init__(daemon=True)
        self.publisher, self.errors, self.over = publisher, errors, threading.Event()
        self.received = 0

    def run(self) -> None:
        for number, error in enumerate(self.errors):
            if self.over.wait(0.01):
                return
            self.publisher.offer(told(number, error=error, received=self.received))


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    made = Publisher()
    yield made
    made.close()


@pytest.fixture
def engine() -> Iterator[RunEngine]:
    made = RunEngine(call_returns_result=True)
    yield made
    made.loop.call_soon_threadsafe(made.loop.stop)
    made._th.join(60)
    made.loop.close()


@pytest.fixture
def talker(publisher: Publisher) -> Iterator[Talker]:
    errors = (0.1 + 2.0 * math.exp(-0.01 * k) for k in range(10**6))
    made = Talker(publisher, errors)
    made.start()
    yield made
    made.over.set()
    made.join(60)


def device(kind: str, endpoint: str, engine: RunEngine, name: str = "Reconstruction", **more: Any) -> Any:
    """Of one library or the other."""
    if kind == "classic":
        return getattr(classic, name)(endpoint, name="live", **more)
    from ophyd_async.core import init_devices

    with init_devices():
        made = getattr(asynchronous, name)(endpoint, name="live", **more)
    return made


def test_numbers_are_those_of_the_snapshot() -> None:
    numbers = Numbers.of(replace(told(4, error=0.5, received=9), misfit=np.array([[0.7, 1, 1], [0.5, 1, 1], [np.nan, 1, 1]])))
    assert (numbers.iteration, numbers.error, numbers.frames_received, numbers.frames_used) == (5, 0.5, 9, 4)
    assert numbers.latency == 0.25 and numbers.state == "running"
    assert math.isnan(Numbers.of(replace(snapshot(0), misfit=np.zeros((0, 3)))).error)


@pytest.mark.parametrize("kind", ["classic", "async"])
def test_a_plan_reads_the_numbers_of_a_reconstruction(kind: str, publisher: Publisher, talker: Talker, engine: RunEngine) -> None:
    live, events = device(kind, publisher.endpoint, engine), []
    talker.received = 8

    def plan() -> Any:
        yield from bps.stage(live, wait=True)
        yield from bps.open_run()
        for _ in range(3):
            yield from bps.trigger_and_read([live])
        yield from bps.close_run()
        yield from bps.unstage(live, wait=True)

    engine(plan(), lambda name, doc: events.append(doc) if name == "event" else None)
    errors = [e["data"]["live-error" if kind == "async" else "live_error"] for e in events]
    assert len(errors) == 3
    assert errors == sorted(errors, reverse=True) and len(set(errors)) == 3
    (used,) = {e["data"]["live-frames_used" if kind == "async" else "live_frames_used"] for e in events[1:]}
    assert used == 4


@pytest.mark.parametrize("kind", ["classic", "async"])
def test_a_run_that_is_still_refined_says_nothing_of_the_newest(kind: str, publisher: Publisher, engine: RunEngine) -> None:
    """The earlier one has a small error all along, the newer one never: nothing has converged."""
    over = threading.Event()

    def talk() -> None:
        for number in range(10**6):
            if over.wait(0.005):
                return
            publisher.offer(replace(told(number, error=9.0), run="t_0002", started_ns=2))
            publisher.offer(replace(told(number, error=0.1), run="t", started_ns=1))

    live, talking = device(kind, publisher.endpoint, engine), threading.Thread(target=talk, daemon=True)

    def plan() -> Any:
        yield from bps.stage(live, wait=True)
        while (yield from bps.rd(live.error)) != 9.0:  # it has heard of the newer one
            yield from bps.trigger(live, wait=True)
        count = yield from until_converged(range(8), lambda _: bps.null(), live, error=1.0, steady=1)
        yield from bps.unstage(live, wait=True)
        return count

    talking.start()
    try:
        assert engine(plan()).plan_result == 8
    finally:
        over.set()
        talking.join(30)


@pytest.mark.parametrize("kind", ["classic", "async"])
def test_a_scan_ends_when_the_reconstruction_is_good_enough(
    kind: str, publisher: Publisher, talker: Talker, engine: RunEngine
) -> None:
    live, measured = device(kind, publisher.endpoint, engine), []

    def plan() -> Any:
        yield from bps.stage(live, wait=True)
        count = yield from until_converged(iter(int, 1), point, live, error=1.0, least=5, steady=2)
        yield from bps.unstage(live, wait=True)
        return count

    def point(_: int) -> Any:
        measured.append(time.monotonic())
        yield from bps.null()

    count = engine(plan()).plan_result
    assert count == len(measured) >= 5


def test_a_scan_that_does_not_get_better_ends_after_the_most_points(publisher: Publisher, engine: RunEngine) -> None:
    talker = Talker(publisher, (5.0 for _ in range(10**6)))
    talker.start()
    live = device("classic", publisher.endpoint, engine)

    def plan() -> Any:
        yield from bps.stage(live, wait=True)
        count = yield from until_converged(range(100), lambda _: bps.null(), live, error=1.0, most=4)
        yield from bps.unstage(live, wait=True)
        return count

    assert engine(plan()).plan_result == 4
    talker.over.set()
    talker.join(60)


@pytest.mark.parametrize("wrong", [{"error": 0.0}, {"error": 1.0, "steady": 0}, {"error": 1.0, "least": 5, "most": 4}])
def test_what_cannot_be_reached_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="error > 0"):
        next(iter(until_converged([1], lambda _: bps.null(), None, **wrong)))


@pytest.mark.parametrize("kind", ["classic", "async"])
def test_a_session_that_is_silent_fails_the_plan_after_the_time_out(kind: str, publisher: Publisher, engine: RunEngine) -> None:
    live = device(kind, publisher.endpoint, engine, timeout_s=0.3)

    def plan() -> Any:
        yield from bps.stage(live, wait=True)
        try:
            yield from bps.trigger(live, wait=True)
        finally:
            yield from bps.unstage(live, wait=True)

    with pytest.raises((FailedStatus, TimeoutError)):
        engine(plan())


def test_unstaging_tells_those_who_wait(publisher: Publisher) -> None:
    live = device("classic", publisher.endpoint, RunEngine)
    live.stage()
    status = live.when(lambda numbers: False)
    live.unstage()
    assert isinstance(status.exception(60), RuntimeError)


def test_frames_of_the_scan_before_are_not_counted_for_this_one(publisher: Publisher) -> None:
    publisher.offer(told(0, received=400, state="finished"))
    frames = classic.Frames(publisher.endpoint, name="frames")
    frames.stage()
    status = frames.trigger()
    time.sleep(0.3)  # the last one of the scan before has come
    assert not status.done
    publisher.offer(told(1, received=1))
    status.wait(60)
    frames.unstage()


def numbers(run: str, received: int, *, state: str = "running", newest: int | None = None, created: int | None = None) -> Numbers:
    now = time.time_ns()
    return Numbers(run, state, 1, 1.0, received, received, 0.1, now if created is None else created, newest)


def test_a_run_that_is_still_refined_is_not_the_acquisition() -> None:
    long_ago = time.time_ns() - 10**9
    counted = Counted(1)
    counted.wanted = 1
    assert not counted.hear(numbers("a", 60, newest=long_ago))  # iterates on frames from before the staging
    assert not counted.hear(numbers("b", 5, state="waiting", created=long_ago))  # left over, and never to begin
    assert not counted.hear(numbers("b", 5, state="waiting"))
    assert not counted.look(numbers("b", 5))
    assert counted.hear(numbers("c", 0, state="waiting")) and not counted.look(numbers("c", 0))
    assert not counted.hear(numbers("a", 60, newest=long_ago)) and not counted.look(numbers("a", 60))
    assert counted.hear(numbers("c", 1, state="waiting")) and counted.look(numbers("c", 1))
    assert not counted.hear(numbers("a", 60, newest=long_ago, state="finished"))
    assert counted.hear(numbers("c", 1, newest=time.time_ns(), state="finished")) and counted.events == 1


def test_a_session_that_was_started_again_gives_its_runs_the_same_names() -> None:
    long_ago = time.time_ns() - 10**9
    counted = Counted(1)
    assert not counted.hear(numbers("a", 60, created=long_ago))
    assert not counted.hear(numbers("a", 60))
    assert counted.hear(numbers("a", 2, state="waiting"))
    counted.begin()
    assert not counted.hear(numbers("a", 60, state="finished"))
    assert counted.hear(numbers("a", 70, state="waiting"))


@pytest.mark.parametrize("kind", ["classic", "async"])
def test_a_staging_beside_a_run_that_is_refined_waits_for_frames_of_its_own(
    kind: str, publisher: Publisher, engine: RunEngine
) -> None:
    eiger = device(kind, publisher.endpoint, engine, "Frames", timeout_s=1.0)
    over, long_ago = threading.Event(), time.time_ns()

    def refining() -> None:
        while not over.wait(0.01):
            publisher.offer(replace(told(0, received=60), newest_frame_ns=long_ago))

    talker = threading.Thread(target=refining, daemon=True)
    talker.start()
    try:
        engine(bps.stage(eiger, wait=True))
        with pytest.raises(FailedStatus):
            engine(bps.trigger(eiger, wait=True))
        engine(bps.unstage(eiger, wait=True))
    finally:
        over.set()
        talker.join(60)
