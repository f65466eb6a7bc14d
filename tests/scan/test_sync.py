"""Every rule that joins samples to frames, over random losses, orders, repetitions, ratios, offsets and clocks, against plain
dictionaries; and what is put in the place of samples that are late."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptystream.events import Frames, Payload, Samples, ScanEnded
from ptystream.scan.block import EOS, WAIT, Signal
from ptystream.scan.ledger import GUESSED
from ptystream.scan.parameters import ChannelsParameters, PositionsParameters, PtyScanParameters
from ptystream.scan.ptyscan import PtyScan

SIDE = 4
FRAMES = PtyScanParameters(shape=SIDE, psize=1e-4, distance=1.0, energy=1.0)
STEP = 1e-9


class Clock:
    """Time that passes where a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def payload() -> Payload:
    return Payload(np.ones((SIDE, SIDE), np.uint16).tobytes(), "raw", np.dtype(np.uint16), (SIDE, SIDE))


def frames(indices: Any, times: Any = None) -> Frames:
    indices = np.asarray(indices, np.int64)
    return Frames("e", indices, tuple(payload() for _ in indices), times)


def made(clock: Clock | None = None, **rules: Any) -> PtyScan:
    return PtyScan("s", FRAMES, PositionsParameters(**rules), clock=clock or Clock())


def everything(scan: PtyScan, seen: dict[int, np.ndarray]) -> None:
    """Take what is there, with what was revised; to the end where the scan has ended."""
    of_slot = {}
    while not isinstance(block := scan.take(1000), Signal):
        for index, where in zip(block.indices.tolist(), block.positions_m, strict=True):
            assert index not in seen
            seen[index] = where.copy()
    of_slot = {scan.slot_of(index): index for index in seen}
    for revision in scan.revisions():
        assert revision.what == "position"
        seen[of_slot[revision.slot]] = np.asarray(revision.value)


def end(scan: PtyScan) -> None:
    for source in ("positions", "data"):
        scan.feed(source, ScanEnded("e", None), 1)


@dataclass
class Acquisition:
    """Messages in the order of arrival, and what must come of them."""

    rules: dict[str, Any]
    messages: list[tuple[str, Any]]
    came: set[int]
    expected: dict[int, np.ndarray]


def chunks(draw: st.DrawFn, count: int) -> list[np.ndarray]:
    """Consecutive numbers below `count` in packets of any length."""
    cuts = sorted(draw(st.lists(st.integers(1, max(1, count - 1)), max_size=6)))
    return [np.arange(a, b) for a, b in zip([0, *cuts], [*cuts, count], strict=True) if b > a]


def travelled(draw: st.DrawFn, packets: list[Any]) -> list[Any]:
    """Packets after a bad network: some lost, some twice, in any order."""
    kept = [p for p in packets if draw(st.integers(0, 4)) != 0]
    return list(draw(st.permutations(kept + [p for p in kept if draw(st.integers(0, 4)) == 0])))


@st.composite
def acquisitions(draw: st.DrawFn) -> Acquisition:
    n, rule = draw(st.integers(1, 20)), draw(st.sampled_from(["index", "time", "trigger"]))
    first_frame = 0 if rule == "time" else draw(st.sampled_from([0, 1, 7]))
    per = 1 if rule == "time" else draw(st.sampled_from([1, 1, 2, 5]))
    repeat = draw(st.sampled_from([1, 1, 3])) if rule == "index" and per == 1 else 1
    first = draw(st.sampled_from([0, 3, -2])) if rule == "index" else 0
    rules: dict[str, Any] = {"interpolate": rule, "samples_per_frame": per, "frames_per_sample": repeat}
    rules |= {"first_sample": first, "first_frame": first_frame}
    numbers = first_frame + np.arange(n)
    exposure = 1_000_000
    clock = draw(st.integers(-(10**12), 10**12)) if rule == "time" else 0
    frame_times = 2 * 10**12 + exposure * np.arange(n)
    if rule == "time":
        rules["time_offset_s"] = clock * 1e-9
        count = n + draw(st.integers(0, 6))
        sample_times = 2 * 10**12 + clock + exposure * np.arange(count) - draw(st.integers(0, 3)) * exposure // 2
    else:
        count = max(0, first) + -(-n * per // repeat)
        sample_times = None
    shuffled = draw(st.permutations(range(count))) if rule == "trigger" else range(count)
    trigger = np.asarray(shuffled, float) // per  # in any order of exposure
    values = np.random.default_rng(draw(st.integers(0, 99))).normal(size=(count, 2)) * STEP
    rules["channels"] = ChannelsParameters(trigger="t" if rule == "trigger" else None)
    packets = []
    for part in chunks(draw, count) if count else []:
        channels = {"y": values[part, 0], "x": values[part, 1], "t": trigger[part]}
        packets.append(Samples("e", int(part[0]), channels, None if sample_times is None else sample_times[part]))
    arrived = travelled(draw, packets)
    exposures = [frames(numbers[part], frame_times[part]) for part in chunks(draw, n)]
    shown = travelled(draw, exposures)
    order = draw(st.permutations(["data"] * len(shown) + ["positions"] * len(arrived)))
    queues = {"data": iter(shown), "positions": iter(arrived)}
    came = {int(i) for event in shown for i in event.indices}
    have = {int(event.first) + k for event in arrived for k in range(len(event.channels["y"]))}
    expected: dict[int, np.ndarray] = {}
    for index in came:
        if rule == "time":
            at = frame_times[index] + clock
            behind = int(np.searchsorted(sample_times, at))
            low = behind if behind < count and sample_times[behind] == at else behind - 1
            if not {low, behind} <= have:
                continue
            expected[index] = np.array([np.interp(at - at, sample_times - at, values[:, k]) for k in (0, 1)])
            continue
        if rule == "trigger":
            own = [k for k in have if trigger[k] == index - first_frame]
        else:
            own = [k for k in have if k - first >= 0 and (k - first) // per == (index - first_frame) // repeat]
        if own:
            expected[index] = values[own].mean(axis=0)
    return Acquisition(rules, [(source, next(queues[source])) for source in order], came, expected)


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(acquisitions(), st.data())
def test_a_frame_has_the_mean_of_its_own_samples_or_none_whatever_the_network_did(acquisition: Acquisition, data: Any) -> None:
    scan = made(**acquisition.rules)
    seen: dict[int, np.ndarray] = {}
    for source, event in acquisition.messages:
        scan.feed(source, event, 1)
        if data.draw(st.booleans()):
            everything(scan, seen)
    end(scan)
    everything(scan, seen)
    assert scan.take(1) is EOS
    assert set(seen) == set(acquisition.expected)
    for index, where in acquisition.expected.items():
        np.testing.assert_allclose(seen[index], where, rtol=0, atol=1e-17)
    counts = scan.ledger.counts()
    assert counts.get("position_missing", 0) == len(acquisition.came) - len(acquisition.expected)
    assert counts["received"] == counts["used"] + sum(scan.ledger.reason_counts().values())


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(
    st.integers(3, 30),
    st.sets(st.integers(0, 29), max_size=12),
    st.sets(st.integers(0, 29), max_size=12),
    st.integers(1, 4),
    st.permutations(range(30)),
    st.data(),
)
def test_lost_samples_delay_their_own_frames_are_interpolated_and_put_right(
    n: int, lost: set[int], returning: set[int], over: int, order: list[int], data: Any
) -> None:
    """A curved path, so that an interpolation is not the truth; what returns comes in any order, even after the end."""
    path = np.stack([np.arange(n) ** 2, -3.0 * np.arange(n)], axis=1) * STEP
    clock = Clock()
    scan = made(clock, interpolate_after_s=2.0, interpolate_over=over)
    lost, arrival = {k for k in lost if k < n}, [k for k in order if k < n]

    def sample(k: int) -> None:
        scan.feed("positions", Samples("e", k, {"y": path[k, :1], "x": path[k, 1:]}), 1)

    for k in arrival:
        scan.feed("data", frames([k]), 1)
        if k not in lost:
            sample(k)
    seen: dict[int, np.ndarray] = {}
    everything(scan, seen)
    assert set(seen) == set(range(n)) - lost, "only the lost ones wait"
    clock.now = 1.9
    assert scan.take(10) is WAIT

    def between(k: int) -> np.ndarray | None:
        low = next((j for j in range(k - 1, -1, -1) if j not in lost), None)
        high = next((j for j in range(k + 1, n) if j not in lost), None)
        if low is None or high is None or high - low - 1 > over:
            return None
        return path[low] + (k - low) / (high - low) * (path[high] - path[low])

    clock.now = 2.1
    everything(scan, seen)
    guessed = {k: where for k in lost if (where := between(k)) is not None}
    assert set(seen) == set(range(n)) - lost | set(guessed)
    for k, where in guessed.items():
        np.testing.assert_allclose(seen[k], where, rtol=0, atol=1e-18)
    flags = scan.ledger.flags[: scan.ledger.length] & GUESSED != 0
    assert set(scan.ledger.index[: scan.ledger.length][flags].tolist()) == set(guessed)
    assert scan.ledger.notes().get("samples_interpolated", 0) == len(guessed)
    back = [k for k in order if k in lost & returning]
    late = data.draw(st.integers(0, len(back)))
    for k in back[:late]:
        sample(k)
    end(scan)
    everything(scan, seen)
    after = {k: seen[k] for k in seen}
    for k in back[late:]:
        sample(k)
    everything(scan, seen)
    for k in back[late:]:
        assert (k in seen) == (k in after), "after the end nothing new comes in"
    own = set(back[:late]) | {k for k in back[late:] if k in after}
    for k in set(seen) & own | set(range(n)) - lost:
        np.testing.assert_allclose(seen[k], path[k], rtol=0, atol=1e-18)
    assert scan.ledger.counts()["waiting"] == 0


def test_what_is_interpolated_at_the_end_does_not_depend_on_when_it_was_interpolated_first() -> None:
    """So a repetition from a recording, in which no time passes, has the same positions."""
    path = np.stack([np.arange(9.0) ** 2, np.zeros(9)], axis=1) * STEP
    told = []
    for wait_s in (1.0, 100.0):
        clock, seen = Clock(), {}
        scan = made(clock, interpolate_after_s=wait_s)
        scan.feed("data", frames(range(9)), 1)
        for k in (0, 1, 5, 8):
            scan.feed("positions", Samples("e", k, {"y": path[k, :1], "x": path[k, 1:]}), 1)
            clock.now += 2.0
            everything(scan, seen)
        scan.feed("positions", Samples("e", 3, {"y": path[3, :1], "x": path[3, 1:]}), 1)
        end(scan)
        everything(scan, seen)
        told.append([seen[k].tolist() for k in range(9)])
    assert told[0] == told[1]


def test_dose_and_shutter_are_interpolated_with_the_position() -> None:
    channels = ChannelsParameters(dose="i0", shutter="open")
    clock = Clock()
    scan = made(clock, channels=channels, interpolate_after_s=1.0)
    scan.feed("data", frames(range(5)), 1)
    for k, (i0, shut) in enumerate([(2.0, 1.0), (2.0, 1.0), (np.nan, np.nan), (6.0, 1.0), (4.0, 0.0)]):
        if k != 2:
            one = {"y": np.array([k * STEP]), "x": np.zeros(1), "i0": np.array([i0]), "open": np.array([shut])}
            scan.feed("positions", Samples("e", k, one), 1)
    clock.now = 2.0
    end(scan)
    block = scan.take(10)
    assert not isinstance(block, Signal)
    assert block.indices.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(scan.ledger.dose[:4], [2, 2, 4, 6])
    assert scan.ledger.reason_counts() == {"shutter_closed": 1}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"samples_per_frame": 2, "frames_per_sample": 2}, "frames_per_sample"),
        ({"interpolate": "time", "frames_per_sample": 2}, "frames_per_sample"),
        ({"interpolate": "time", "first_frame": 1}, "time_offset_s"),
        ({"interpolate": "trigger"}, "channels.trigger"),
        ({"channels": {"trigger": "t"}}, "channels.trigger"),
    ],
)
def test_rules_that_contradict_each_other_are_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        PositionsParameters(**given)


def test_a_shutter_that_is_closed_excludes_the_frame_and_the_limit_decides() -> None:
    for limit, used in ((0.5, [0, 1]), (0.1, [0, 1, 2]), (0.9, [0])):
        scan = made(channels=ChannelsParameters(shutter="open"), samples_per_frame=2, shutter_limit=limit)
        scan.feed("data", frames(range(4)), 1)
        open_ = np.array([1.0, 1.0, 0.6, 0.8, 0.0, 0.4, 0.0, 0.0])
        scan.feed("positions", Samples("e", 0, {"y": np.zeros(8), "x": np.zeros(8), "open": open_}), 1)
        end(scan)
        block = scan.take(10)
        assert not isinstance(block, Signal)
        assert block.indices.tolist() == used
        assert scan.ledger.reason_counts() == {"shutter_closed": 4 - len(used)}
        assert not scan.has_beam


def test_by_time_what_is_lost_is_interpolated_between_the_time_stamps_of_the_frames() -> None:
    """Exposures at uneven times: by number it would be another position."""
    clock = Clock()
    scan = made(clock, interpolate="time", time_offset_s=2e-3, interpolate_after_s=1.0)
    exposed = np.array([10, 20, 30, 35, 60, 70]) * 1_000_000
    scan.feed("data", frames(range(6), exposed), 1)
    times = np.arange(5, 85, 5) * 1_000_000
    y = (times - 2_000_000) * 1e-15
    for part in (slice(0, 4), slice(9, 16)):  # samples around frames 2 and 3 are lost
        scan.feed("positions", Samples("e", part.start, {"y": y[part], "x": 0 * y[part]}, times[part]), 1)
    seen: dict[int, np.ndarray] = {}
    everything(scan, seen)
    assert sorted(seen) == [0, 4, 5]
    clock.now = 1.5
    everything(scan, seen)
    assert sorted(seen) == [0, 1, 2, 3, 4, 5]
    np.testing.assert_allclose([seen[k][0] for k in range(6)], exposed * 1e-15, rtol=1e-9)
    assert scan.ledger.notes()["samples_interpolated"] == 3


def test_a_repetition_that_asks_for_a_frame_gets_it_interpolated_while_the_scan_goes_on() -> None:
    """As a session does that goes on after a crash: nothing but the wait for the frame looks at the clock."""
    scan = PtyScan("s", FRAMES, PositionsParameters(interpolate_after_s=0.3))
    scan.feed("data", frames(range(3)), 1)
    for k in (0, 2):
        scan.feed("positions", Samples("e", k, {"y": np.array([k * STEP]), "x": np.zeros(1)}), 1)
    block = scan.take_exactly(np.array([1, 0]), timeout_s=60.0)
    np.testing.assert_allclose(block.positions_m[:, 0], [STEP, 0.0])


def test_a_source_that_is_silent_costs_no_look_at_every_frame_that_waits() -> None:
    clock = Clock()
    scan = made(clock, interpolate_after_s=1.0)
    scan.feed("data", frames(range(2000)), 1)
    looked: list[int] = []
    gaps = scan._pairing._gaps["positions"]
    neighbours = gaps._neighbours
    gaps._neighbours = lambda index, step: looked.extend(index) or neighbours(index, step)  # type: ignore[method-assign]
    for k in range(20):
        clock.now += 0.5
        scan.look()
        scan.feed("positions", Samples("e", k, {"y": np.array([k * STEP]), "x": np.zeros(1)}), 1)
    assert not looked, "no frame lies before one that has samples and lacks its own"


def test_a_sample_that_comes_again_with_another_reading_is_put_right_by_trigger_too() -> None:
    scan = made(interpolate="trigger", channels=ChannelsParameters(trigger="t"))
    scan.feed("data", frames([4]), 1)
    seen: dict[int, np.ndarray] = {}
    for y in (1.0, 1.0, 3.0):
        one = {"y": np.array([y * STEP]), "x": np.zeros(1), "t": np.array([4.0])}
        scan.feed("positions", Samples("e", 9, one), 1)
        everything(scan, seen)
        assert seen[4].tolist() == [y * STEP, 0.0]
    assert scan.ledger.notes() == {"samples_repeated": 1, "samples_changed": 1}


def test_the_own_sample_of_an_interpolated_frame_counts_even_where_it_is_not_believed() -> None:
    """A frame whose position is absurd is left out; an interpolation must not hide that."""
    clock = Clock()
    scan = made(clock, interpolate_after_s=1.0)
    scan.feed("data", frames(range(40)), 1)
    for k in set(range(40)) - {20}:
        scan.feed("positions", Samples("e", k, {"y": np.array([k * STEP]), "x": np.zeros(1)}), 1)
    clock.now = 2.0
    seen: dict[int, np.ndarray] = {}
    everything(scan, seen)
    assert 20 in seen
    scan.feed("positions", Samples("e", 20, {"y": np.array([1.0]), "x": np.zeros(1)}), 1)
    assert [(revision.what, revision.slot) for revision in scan.revisions()] == [("withdrawn", scan.slot_of(20))]
    assert scan.ledger.reason_counts() == {"position_refused": 1}
