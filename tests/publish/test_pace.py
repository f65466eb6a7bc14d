"""How often snapshots are made: by interval, and by the share of the engine's time that they take."""

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptystream.publish.pace import Pace
from ptystream.telling import Teller


def made_in(seconds: float, takes: list[float], interval_s: float, share: float) -> tuple[int, float]:
    """Snapshots of a loop that looks every millisecond, the n-th taking `takes[n % len]`, and the time spent on them."""
    pace, now, spent, count = Pace(), 0.0, 0.0, 0
    while now < seconds:
        if pace.due(now, interval_s):
            took = takes[count % len(takes)]
            pace.made(now, now + took, share)
            now, spent, count = now + took, spent + took, count + 1
        now += 0.001
    return count, spent


@given(st.floats(0.0005, 0.1), st.floats(0.01, 0.5))
@settings(max_examples=50, deadline=None)
def test_making_them_takes_its_share_of_the_time_and_no_more(took: float, share: float) -> None:
    seconds = 100 * took / share
    _, spent = made_in(seconds, [took], 0.0, share)
    assert spent <= share * seconds + took
    assert spent >= share * seconds * (took / share) / (took / share + 0.002) - 2 * took


def test_cheap_ones_are_made_at_the_interval() -> None:
    assert made_in(10.0, [0.0001], 0.1, 0.02)[0] == pytest.approx(100, abs=2)


def test_one_that_was_held_up_stops_nothing() -> None:
    assert made_in(10.0, [0.001, 2.0, 0.001], 0.1, 0.02)[0] > 10


def test_a_slow_first_one_does_not_hold_up_the_second_and_the_share_is_kept() -> None:
    assert made_in(2.0, [0.4] + 1000 * [0.002], 0.1, 0.02)[0] >= 10
    count, spent = made_in(100.0, [0.4], 0.0, 0.02)  # where all of them are as slow
    assert count == 5 and spent == pytest.approx(2.0)


@pytest.mark.parametrize(("share", "fewest", "most"), [(0.5, 8, 26), (0.05, 2, 3)])
def test_a_run_that_is_expensive_to_copy_is_told_less_often(share: float, fewest: int, most: int) -> None:
    offered: list[Any] = []
    metrics: Any = SimpleNamespace(run=lambda *_, **__: None, viewers=lambda n: None)
    publisher: Any = SimpleNamespace(offer=offered.append, viewers=0)

    def snapshot(rates: Any) -> str:
        threading.Event().wait(0.02)
        return "a picture"

    run: Any = SimpleNamespace(looks={}, ledger=dict, newest_arrival_ns=None, snapshot=snapshot, iterations=1, name="r")
    teller = Teller(metrics, publisher, None, 0.0, share=share)
    began = time.monotonic()
    while time.monotonic() - began < 1.0:
        teller.of(run).tell(run, force=False)
    assert fewest <= len(offered) <= most
    before = len(offered)
    teller.of(run).tell(run, force=True)
    assert len(offered) == before + 1


def test_runs_that_are_reconstructed_together_have_the_share_together() -> None:
    teller = Teller(SimpleNamespace(forget=lambda run: None), None, None, 0.0, share=0.02)  # type: ignore[arg-type]
    one, other = SimpleNamespace(), SimpleNamespace()
    teller.of(one)  # type: ignore[arg-type]
    assert teller.runs == 1
    teller.of(other)  # type: ignore[arg-type]
    assert teller.runs == 2
    teller.forget(one)  # type: ignore[arg-type]
    assert teller.runs == 1
