"""Samples to frames: by number against a dictionary, by time against `numpy.interp`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ptystream.events import Samples
from ptystream.scan.join import Join, SamplesError
from ptystream.scan.joins import join
from ptystream.scan.parameters import ChannelsParameters, PositionsParameters


def made(max_frames: int = 100_000, **settings: Any) -> Join:
    return join(PositionsParameters(**settings), max_frames)


def samples(first: int, y: Any, times: Any = None) -> Samples:
    values = np.asarray(y, float)
    return Samples("e", first, {"y": values, "x": 2.0 * values}, None if times is None else np.asarray(times))


def test_several_samples_per_frame_give_their_mean_once_all_are_there() -> None:
    source = made(samples_per_frame=3, first_sample=2)
    assert source.add(samples(0, [9.0, 9.0, 1.0, 2.0])).indices.tolist() == []
    readings = source.add(samples(4, [6.0, 4.0]))
    assert readings.indices.tolist() == [0]
    assert readings.values.tolist() == [[3.0, 6.0]]
    assert readings.spread.tolist() == [6.0], "x of the third sample is 6 from its mean"
    rest = source.flush()
    assert rest is not None
    assert rest.indices.tolist() == [1]
    assert rest.values.tolist() == [[4.0, 8.0]]


def test_the_matrix_swaps_turns_and_scales_the_stage_readings() -> None:
    source = made(matrix=((0.0, -1.0), (2.0, 0.5)))
    readings = source.add(Samples("e", 0, {"y": np.array([3.0]), "x": np.array([5.0])}))
    assert readings.values.tolist() == [[-5.0, 8.5]]


def test_channels_are_taken_by_their_configured_names_and_dose_is_not_turned() -> None:
    source = made(channels=ChannelsParameters(y="sy", x="sx", dose="i0"), matrix=((-1.0, 0.0), (0.0, -1.0)))
    one = np.ones(1)
    readings = source.add(Samples("e", 4, {"sy": one, "sx": 2 * one, "i0": 7 * one, "other": one}))
    assert readings.values.tolist() == [[-1.0, -2.0, 7.0]]


def test_a_repetition_says_nothing_and_a_change_says_the_new_value() -> None:
    source = made()
    source.add(samples(0, [1.0, np.nan, 3.0]))
    again = source.add(samples(1, [np.nan, 3.0]))
    assert (again.indices.tolist(), again.repeated, again.changed) == ([], 2, 0)
    changed = source.add(samples(1, [2.0, 3.0]))
    assert (changed.indices.tolist(), changed.repeated, changed.changed) == ([1], 1, 1)


@pytest.mark.parametrize("seed", range(5))
def test_interpolation_in_time_agrees_with_numpy_in_any_order_of_arrival(seed: int) -> None:
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.integers(50, 150, 200))
    y = rng.normal(size=200)
    source = made(interpolate="time", time_offset_s=1e-9 * 40)
    at = np.sort(rng.integers(times[0], times[-1], 60)) - 40
    at[3] = times[17] - 40
    indices = rng.permutation(60)
    events = [("s", part) for part in np.array_split(np.arange(200), 23)]
    events += [("f", part) for part in np.array_split(np.arange(60), 9)]
    got: dict[int, np.ndarray] = {}
    for k in rng.permutation(len(events)):
        kind, part = events[k]
        if kind == "s":
            readings = source.add(samples(int(part[0]), y[part], times[part]))
        else:
            readings = source.frames(indices[part], at[part])
        assert readings is not None
        for index, value in zip(readings.indices.tolist(), readings.values, strict=True):
            assert index not in got
            got[index] = value
    expected = np.interp(at + 40, times, y)
    assert sorted(got) == list(range(60))
    for place, index in enumerate(indices.tolist()):
        np.testing.assert_allclose(got[index], [expected[place], 2 * expected[place]], rtol=1e-12, atol=1e-12)


def test_nothing_is_interpolated_over_samples_that_are_missing() -> None:
    source = made(interpolate="time")
    readings = source.frames(np.array([0, 1]), np.array([150, 250]))
    assert readings is not None
    source.add(samples(0, [0.0, 1.0], [100, 200]))
    assert source.add(samples(3, [3.0], [400])).indices.tolist() == []
    late = source.add(samples(2, [2.0], [300]))
    assert late.indices.tolist() == [1]
    assert late.values[0, 0] == 1.5


def test_a_sample_that_changes_afterwards_corrects_the_frames_beside_it() -> None:
    source = made(interpolate="time")
    source.add(samples(0, [0.0, 1.0, 2.0, 3.0], [100, 200, 300, 400]))
    source.frames(np.array([5, 6, 7]), np.array([150, 250, 350]))
    changed = source.add(samples(1, [9.0], [200]))
    assert changed.changed == 1
    assert dict(zip(changed.indices.tolist(), changed.values[:, 0].tolist(), strict=True)) == {5: 4.5, 6: 5.5}


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (Samples("e", 0, {"y": np.zeros(2)}), "channel_missing"),
        (Samples("e", 0, {"y": np.zeros(2), "x": np.zeros(3)}), "wrong_shape"),
        (Samples("e", 0, {"y": np.zeros((2, 1)), "x": np.zeros((2, 1))}), "wrong_shape"),
        (samples(-1, [0.0], [1]), "bad_index"),
        (samples(1 << 48, [0.0], [1]), "bad_index"),
        (samples(0, [0.0, 1.0]), "no_timestamps"),
        (samples(0, [0.0, 1.0], [2, 1]), "bad_timestamps"),
        (samples(9, [0.0], [50]), "bad_timestamps"),
        (samples(10, np.zeros(2000), np.arange(300, 2300)), "too_many"),
    ],
)
def test_unusable_samples_are_refused_with_a_reason_and_change_nothing(event: Samples, reason: str) -> None:
    source = made(interpolate="time", max_frames=10)
    source.add(samples(5, [1.0, 2.0], [100, 200]))
    with pytest.raises(SamplesError, match=reason):
        source.add(event)
    readings = source.frames(np.array([0]), np.array([150]))
    assert readings is not None
    assert readings.values[0, 0] == 1.5


def test_memory_for_samples_is_bounded() -> None:
    source = made(max_frames=10)
    source.add(samples(0, np.zeros(8)))
    with pytest.raises(SamplesError, match="too_many"):
        source.add(samples(6, np.zeros(6)))
    assert source.add(samples(6, np.zeros(4))).indices.tolist() == [8, 9]
