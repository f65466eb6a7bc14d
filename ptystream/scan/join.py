"""From samples of slow channels to one reading per frame: by sample number or by time, never by order of arrival."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ptystream.events import Samples
from ptystream.scan.parameters import PositionsParameters

MAX_INDEX = 1 << 48
"""Frame and sample numbers lie below."""

Floats: TypeAlias = NDArray[np.float64]


class SamplesError(ValueError):
    """Samples that cannot be used; the first word of the text is the reason."""


@dataclass(frozen=True, slots=True)
class Readings:
    """What is now known about some frames."""

    indices: NDArray[np.int64]
    """Frame numbers, each once. Shape (frame,)."""
    values: Floats
    """Mean or interpolated readings, one column per role. Shape (frame, role)."""
    spread: Floats
    """Largest distance of a sample from the frame's position, either axis. Shape (frame,)."""
    repeated: int = 0
    """Samples that had come before with the same values."""
    changed: int = 0
    """Samples that had come before with other values."""


class Join:
    """Joins the samples of one source to frames. Roles: 'y', 'x' after the matrix, 'z', 'angle', 'dose', 'shutter'."""

    def __init__(self, parameters: PositionsParameters, max_samples: int) -> None:
        self.parameters = parameters
        channels = parameters.channels
        self.roles = tuple(role for role in ("y", "x", "z", "angle", "dose", "shutter") if getattr(channels, role) is not None)
        self.positions = "y" in self.roles
        self._names = [getattr(channels, role) for role in self.roles]
        self._matrix = np.asarray(parameters.matrix, float)
        self._straight = bool((self._matrix == np.eye(2)).all())
        self._max = max_samples

    def add(self, samples: Samples) -> Readings:
        """Take samples over; returns the frames whose reading is complete or has changed.

        Raises `SamplesError` for a missing channel, unequal lengths, numbers out of range, or too many samples.
        """
        raise NotImplementedError

    def frames(self, indices: NDArray[np.int64], times_ns: NDArray[np.int64]) -> Readings | None:
        """Frames have come; returns what is known about them beside what `add` has said already."""
        return None

    def flush(self) -> Readings | None:
        """The source has ended: readings of frames of which some but not all samples came."""
        return None

    def _columns(self, samples: Samples) -> Floats:
        """Readings after the matrix, shape (sample, role)."""
        columns = []
        for name in self._names:
            if name not in samples.channels:
                raise SamplesError(f"channel_missing: {name!r}; the source sends {sorted(samples.channels)}")
            columns.append(np.asarray(samples.channels[name], np.float64))
        if any(c.ndim != 1 or len(c) != len(columns[0]) for c in columns):
            raise SamplesError(f"wrong_shape: channels of {[c.shape for c in columns]} samples")
        if not 0 <= samples.first < MAX_INDEX:
            raise SamplesError(f"bad_index: first sample {samples.first}")
        values = np.stack(columns, axis=1)
        if self.positions and not self._straight:
            with np.errstate(invalid="ignore", over="ignore"):
                values[:, :2] = values[:, :2] @ self._matrix.T
        return values


class IndexJoin(Join):
    """Sample k belongs to frame first_frame + (k - first_sample) // samples_per_frame, and the frame gets the mean; or to
    `frames_per_sample` frames, which all get its reading."""

    def __init__(self, parameters: PositionsParameters, max_samples: int) -> None:
        super().__init__(parameters, max_samples)
        self._per, self._repeat = parameters.samples_per_frame, parameters.frames_per_sample
        self._row: dict[int, int] = {}
        self._frame = np.zeros(0, np.int64)
        self._values = np.zeros((0, self._per, len(self.roles)))
        self._have = np.zeros((0, self._per), np.bool_)
        self._complete = np.zeros(0, np.bool_)

    def add(self, samples: Samples) -> Readings:
        values = self._columns(samples)
        first = samples.first - self.parameters.first_sample
        if first < 0:
            values, first = values[-first:], 0
        if not len(values):
            return self._readings(np.zeros(0, np.int64))
        numbers = np.arange(first, first + len(values))
        frames, place = np.divmod(numbers, self._per)
        distinct = range(int(frames[0]), int(frames[-1]) + 1)
        new = sum(i not in self._row for i in distinct)
        if (len(self._row) + new) * self._per > self._max:
            raise SamplesError(f"too_many: more than {self._max} samples")
        of_frame = np.array([self._row.setdefault(i, len(self._row)) for i in distinct], np.int64)
        self._extend(len(self._row))
        self._frame[of_frame] = distinct
        rows = of_frame[frames - frames[0]]
        had = self._have[rows, place]
        changed = 0
        if had.any():
            differs = had & (_bits(self._values[rows, place]) != _bits(values)).any(axis=1)
            self._complete[rows[differs]] = False
            changed = int(np.count_nonzero(differs))
        self._values[rows, place] = values
        self._have[rows, place] = True
        news = of_frame[self._have[of_frame].all(axis=1) & ~self._complete[of_frame]]
        self._complete[news] = True
        return self._readings(news, int(np.count_nonzero(had)) - changed, changed)

    def flush(self) -> Readings | None:
        n = len(self._row)
        rows = np.flatnonzero(self._have[:n].any(axis=1) & ~self._complete[:n])
        self._complete[rows] = True
        return self._readings(rows)

    def _readings(self, rows: NDArray[np.int64], repeated: int = 0, changed: int = 0) -> Readings:
        values, have = self._values[rows], self._have[rows][:, :, None]
        if self._per == 1:
            frames, readings = self._frame[rows], values[:, 0]
            if self._repeat > 1:
                frames = (frames[:, None] * self._repeat + np.arange(self._repeat)).ravel()
                readings = np.repeat(readings, self._repeat, axis=0)
            return self._told(Readings(frames, readings, np.zeros(len(frames)), repeated, changed))
        with np.errstate(invalid="ignore", over="ignore"):
            count = np.maximum(have.sum(axis=1), 1)
            mean = np.where(have, values, 0.0).sum(axis=1) / count
            off = np.where(have, np.abs(values - mean[:, None]), 0.0)
        spread = off[:, :, :2].max(axis=(1, 2)) if self.positions and len(rows) else np.zeros(len(rows))
        return self._told(Readings(self._frame[rows], mean, spread, repeated, changed))

    def _told(self, readings: Readings) -> Readings:
        """With the numbers that the source of the frames gives them; frames below 0 are none."""
        if not self.parameters.first_frame:
            return readings
        frames = readings.indices + self.parameters.first_frame
        real = frames >= 0
        return replace(readings, indices=frames[real], values=readings.values[real], spread=readings.spread[real])

    def _extend(self, length: int) -> None:
        if length > len(self._frame):
            capacity = max(1024, 2 * len(self._frame), length)
            for name in ("_frame", "_values", "_have", "_complete"):
                old = getattr(self, name)
                grown = np.zeros((capacity, *old.shape[1:]), old.dtype)
                grown[: len(old)] = old
                setattr(self, name, grown)


class TimeJoin(Join):
    """A frame gets the linear interpolation between the samples before and after it, whose numbers must be consecutive.

    So nothing is interpolated over samples that are late or lost: such frames wait for them.
    """

    def __init__(self, parameters: PositionsParameters, max_samples: int) -> None:
        super().__init__(parameters, max_samples)
        self._number = np.zeros(0, np.int64)
        self._time = np.zeros(0, np.int64)
        self._values = np.zeros((0, len(self.roles)))
        self._length = 0
        self._offset_ns = round(parameters.time_offset_s * 1e9)
        self._known: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        """(indices, times) of all frames, for samples that change afterwards."""
        self._open = (np.zeros(0, np.int64), np.zeros(0, np.int64))
        """(indices, times) of the frames that wait for samples."""

    def add(self, samples: Samples) -> Readings:
        values = self._columns(samples)
        if samples.timestamps_ns is None:
            raise SamplesError("no_timestamps: 'interpolate: time' needs samples with time stamps")
        times = np.asarray(samples.timestamps_ns, np.int64)
        if times.shape != (len(values),) or (np.diff(times) <= 0).any():
            raise SamplesError("bad_timestamps: one per sample is needed, each later than the one before")
        if self._length + len(values) > self._max:
            raise SamplesError(f"too_many: more than {self._max} samples")
        numbers = samples.first + np.arange(len(values), dtype=np.int64)
        n = self._length
        repeated = changed = 0
        corrected = numbers[:0], values[:0]
        candidates = self._open
        if len(values) and n and numbers[0] <= self._number[n - 1]:
            old = np.searchsorted(self._number[:n], numbers)
            same = (old < n) & (self._number[np.minimum(old, n - 1)] == numbers)
            differs = same.copy()
            differs[same] = (_bits(self._values[old[same]]) != _bits(values[same])).any(axis=1)
            repeated, changed = int(np.count_nonzero(same & ~differs)), int(np.count_nonzero(differs))
            corrected = numbers[differs], values[differs]
            values, times, numbers = values[~same], times[~same], numbers[~same]
        if len(values):
            self._insert(numbers, times, values)  # raises before anything is changed
        if changed:
            rows = np.searchsorted(self._number[: self._length], corrected[0])
            self._values[rows] = corrected[1]
            candidates = self._around(rows)
        return self._interpolate(*candidates, repeated=repeated, changed=changed)

    def frames(self, indices: NDArray[np.int64], times_ns: NDArray[np.int64]) -> Readings | None:
        stamped = times_ns != 0
        pair = (indices[stamped], times_ns[stamped] + self._offset_ns)
        self._known.append(pair)
        before = self._open
        readings = self._interpolate(*pair)
        self._open = tuple(np.concatenate(p) for p in zip(before, self._open, strict=True))  # type: ignore[assignment]
        return readings

    def _interpolate(self, indices: NDArray[np.int64], times: NDArray[np.int64], repeated: int = 0, changed: int = 0) -> Readings:
        n = self._length
        time, number, values = self._time[:n], self._number[:n], self._values[:n]
        high = np.searchsorted(time, times)
        exact = high < n
        exact[exact] = time[high[exact]] == times[exact]
        between = (high > 0) & (high < n) & ~exact
        between[between] = number[high[between]] == number[high[between] - 1] + 1
        ready = exact | between
        high = high[ready]
        low = np.where(exact[ready], high, high - 1)
        step = np.where(high == low, 1, time[high] - time[low])
        with np.errstate(invalid="ignore", over="ignore"):
            part = ((times[ready] - time[low]) / step)[:, None]
            mean = values[low] + part * (values[high] - values[low])
            off = np.maximum(np.abs(values[low] - mean), np.abs(values[high] - mean))
        spread = off[:, :2].max(axis=1) if self.positions and len(off) else np.zeros(len(off))
        self._open = (indices[~ready], times[~ready])
        return Readings(indices[ready], mean, spread, repeated, changed)

    def _around(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Frames between the neighbours of changed samples, and those that wait."""
        n = self._length
        low = self._time[max(0, int(rows.min()) - 1)]
        high = self._time[min(n - 1, int(rows.max()) + 1)]
        indices = np.concatenate([p[0] for p in self._known]) if self._known else self._open[0]
        times = np.concatenate([p[1] for p in self._known]) if self._known else self._open[1]
        chosen = ((times >= low) & (times <= high)) | np.isin(indices, self._open[0])
        return indices[chosen], times[chosen]

    def _insert(self, numbers: NDArray[np.int64], times: NDArray[np.int64], values: Floats) -> None:
        n, stop = self._length, self._length + len(numbers)
        if stop > len(self._number):
            capacity = max(1024, 2 * len(self._number), stop)
            for name in ("_number", "_time", "_values"):
                old = getattr(self, name)
                grown = np.zeros((capacity, *old.shape[1:]), old.dtype)
                grown[:n] = old[:n]
                setattr(self, name, grown)
        self._number[n:stop], self._time[n:stop], self._values[n:stop] = numbers, times, values
        order = slice(0, stop)
        if n and numbers[0] < self._number[n - 1]:
            order = np.argsort(self._number[:stop])  # type: ignore[assignment]
        first = 0 if isinstance(order, np.ndarray) else max(0, n - 1)
        if (np.diff(self._time[order][first:]) <= 0).any():
            raise SamplesError("bad_timestamps: they must grow with the sample number over the whole scan")
        self._length = stop
        if isinstance(order, np.ndarray):
            for array in (self._number, self._time, self._values):
                array[:stop] = array[order]


def _bits(values: Floats) -> NDArray[np.int64]:
    """For comparing floats so that NaN equals NaN."""
    return np.ascontiguousarray(values).view(np.int64)
