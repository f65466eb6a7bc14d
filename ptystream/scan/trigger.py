"""Samples to frames by the number that a channel gives them: the trigger that the detector counted too."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ptystream.events import Samples
from ptystream.scan.join import MAX_INDEX, Join, Readings, SamplesError
from ptystream.scan.parameters import PositionsParameters


class TriggerJoin(Join):
    """A sample belongs to the frame that its trigger channel names; a frame gets the mean of its `samples_per_frame` samples.

    What a sample number said before is replaced by what it says now, the trigger included. Samples without a trigger (not
    finite, or below 0 after `first_frame` was added) belong to no frame.
    """

    def __init__(self, parameters: PositionsParameters, max_samples: int) -> None:
        super().__init__(parameters, max_samples)
        self._per = parameters.samples_per_frame
        self._of: dict[int, dict[int, NDArray[np.float64]]] = {}
        """Frame → sample number → reading."""
        self._frame: dict[int, int] = {}
        """Sample number → frame."""
        self._told: set[int] = set()
        """Frames whose reading was told."""

    def add(self, samples: Samples) -> Readings:
        values = self._columns(samples)
        name = self.parameters.channels.trigger or ""
        if name not in samples.channels:
            raise SamplesError(f"channel_missing: {name!r}; the source sends {sorted(samples.channels)}")
        triggers = np.asarray(samples.channels[name], np.float64)
        if triggers.shape != (len(values),):
            raise SamplesError(f"wrong_shape: {len(values)} samples, triggers of shape {triggers.shape}")
        if len(self._frame) + len(values) > self._max:
            raise SamplesError(f"too_many: more than {self._max} samples")
        with np.errstate(invalid="ignore"):
            triggers = np.rint(triggers) + self.parameters.first_frame
        repeated = changed = 0
        touched: dict[int, None] = {}
        for k, (trigger, reading) in enumerate(zip(triggers.tolist(), values, strict=True)):
            if not 0 <= trigger < MAX_INDEX:
                continue
            number, frame = samples.first + k, int(trigger)
            before = self._frame.get(number)
            if before is not None:
                if before == frame and self._of[frame][number].tobytes() == reading.tobytes():
                    repeated += 1
                    continue
                changed += 1
                del self._of[before][number]
                self._told.discard(before)
                touched[before] = None
            self._frame[number] = frame
            self._of.setdefault(frame, {})[number] = reading
            touched[frame] = None
        ready = [f for f in touched if len(self._of[f]) >= self._per]
        return self._readings(ready, repeated, changed)

    def flush(self) -> Readings | None:
        return self._readings([f for f, held in self._of.items() if held and f not in self._told])

    def _readings(self, frames: list[int], repeated: int = 0, changed: int = 0) -> Readings:
        self._told.update(frames)
        values = np.zeros((len(frames), len(self.roles)))
        spread = np.zeros(len(frames))
        for row, frame in enumerate(frames):
            held = self._of[frame]
            readings = np.stack([held[number] for number in sorted(held)])
            values[row] = readings.mean(axis=0)
            if self.positions:
                spread[row] = np.abs(readings[:, :2] - values[row, :2]).max()
        return Readings(np.array(frames, np.int64), values, spread, repeated, changed)
