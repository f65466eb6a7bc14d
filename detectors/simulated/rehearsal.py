"""A simulated scan that fits a configuration: what the simulators of its sources play, each on its own wire.

The configuration says what comes out of the frames (crop, orientation, pixel, geometry, how readings become positions); here it
is gone through backwards, so that a session of the same configuration reconstructs the flower.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.chance import of_drawing
from ptystream.scan.parameters import load_array
from ptystream.simulating import Unsimulated

from .simulator import Beamline

MAX_BYTES = 4 << 30
"""Frames are computed before the first is sent, so that the rate is the detector's: they must fit here."""
MAX_SIDE = 1 << 14
"""Of the simulated object, pixels."""

LAG_S = 0.05
"""Readings begin so much later than frames, which is what the rule 'order' wants."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Readings of slow channels, in the order in which they are taken, numbered from 0."""

    channels: Mapping[str, NDArray[np.float64]]
    """Metres (object pixels where the positions' `unit` is 'px')."""
    times_s: NDArray[np.float64]
    """Since the scan began."""
    frames: NDArray[np.int64]
    """The frame that was exposed then."""


@dataclass(slots=True)
class Rehearsal:
    """One simulated scan, as often as it is wanted."""

    beamline: Beamline
    parameters: Any
    """Of the frames."""
    geometry: Mapping[str, float | None]
    """`energy` keV, `distance` m and `psize` m of the beamline; None where it is not known."""
    has_positions: bool
    """Whether a source of its own, or the configuration, tells the positions."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Key → what the scan is called there, for the rule that joins acquisitions ('{}' is its number)."""
    _frames: NDArray[Any] | None = None

    @classmethod
    def of(
        cls,
        parameters: Any,
        positions: Any,
        pixel_m: float,
        geometry: Mapping[str, float | None],
        *,
        frames: int | None,
        rate_hz: float,
        seed: int,
        metadata: Mapping[str, str] | None = None,
    ) -> Rehearsal:
        """For the parameters of frames and (or None) positions; `pixel_m` is the object's pixel, 1 where positions are pixels.

        Raises `Unsimulated`.
        """
        theory = parameters.planned()
        dark, each = parameters.dark_frames, 1 if positions is None else positions.frames_per_sample
        count = frames or (None if theory is None else len(theory)) or parameters.num_frames or 400
        if theory is not None and count > len(theory):
            raise Unsimulated("positions_theory", f"{len(theory)} positions", f"no more frames than that; {count} are asked for")
        side = _side(parameters.shape)
        noise = 0.07 * pixel_m
        beamline = Beamline(
            count, side, rate_hz, pixel_m=pixel_m, step_px=9 / 128 * side, encoder_noise_m=noise, seed=seed, scan_id="1"
        )
        if theory is None:
            theory = beamline.positions_m()[: max(1, -(-(count - dark) // each))]
            theory = np.concatenate([np.repeat(theory[:1], dark, axis=0), np.repeat(theory, each, axis=0)])[:count]
        beamline = replace(beamline, places_m=np.asarray(theory[:count], float))
        reach = 2 * np.abs(theory).max() / pixel_m + side
        if not reach <= MAX_SIDE:
            text = f"positions reach over {reach:.3g} object pixels, {MAX_SIDE} can be simulated; in another unit, or geometry?"
            raise Unsimulated("shape", parameters.shape, text)
        told = positions is not None and positions.channels.y is not None
        made = cls(beamline, parameters, geometry, told or parameters.planned() is not None, metadata or {})
        size = count * math.prod(made.raw_shape()) * 2
        if size > MAX_BYTES:
            text = (
                f"{count} frames of {made.raw_shape()} are {size >> 20} MiB, {MAX_BYTES >> 20} are possible: ask for fewer frames"
            )
            raise Unsimulated("shape", parameters.shape, text)
        return made

    # ------------------------------------------------------------------ frames

    @property
    def rate_hz(self) -> float:
        """Frames a second."""
        return self.beamline.rate_hz

    def names(self, number: int) -> dict[str, str]:
        """What acquisition `number` says of itself, for the rule that joins acquisitions."""
        return {key: text.format(number) for key, text in self.metadata.items()}

    def raw_shape(self) -> tuple[int, int]:
        """(y, x) of a raw frame: that of the calibrations, otherwise one that holds the crop around its centre."""
        p, n = self.parameters, self.beamline.side
        for array in (load_array(p.dark), load_array(p.flat)):
            if array is not None:
                return int(array.shape[0]), int(array.shape[1])
        if not isinstance(p.center, tuple):
            return n, n
        y, x = (max(n, math.floor(c + 0.5) - own + n) for c, own in zip(p.center, self._own_center(), strict=True))
        return y, x

    def center(self) -> tuple[int, int]:
        """Raw pixel (y, x) that zero frequency is on."""
        p, shape = self.parameters, self.raw_shape()
        if isinstance(p.center, tuple) and not p.auto_center:
            return math.floor(p.center[0] + 0.5), math.floor(p.center[1] + 0.5)
        if p.center == "geometric":
            return int(shape[0] / 2), int(shape[1] / 2)
        return shape[0] // 2, shape[1] // 2

    def frames(self) -> NDArray[np.uint16]:
        """Raw frames (frame, y, x): counts, the largest value never among them."""
        if self._frames is None:
            b, p = self.beamline, self.parameters
            truth, shape = (b.probe(), b.object()), self.raw_shape()
            made = np.zeros((b.frames, *shape), np.uint16)
            dark, flat = load_array(p.dark), load_array(p.flat)
            for k in range(b.frames):
                raw = np.zeros(shape)
                if k >= p.dark_frames:
                    self._lay(b.pattern(k, truth), raw)
                raw *= p.counts_per_photon * (1.0 if flat is None else np.nan_to_num(flat))
                raw += 0.0 if dark is None else np.nan_to_num(dark)
                made[k] = np.clip(np.rint(raw), 0, 65534)
            self._frames = made
        return self._frames

    def _lay(self, pattern: NDArray[Any], raw: NDArray[Any]) -> None:
        """Put a pattern, as it is to come out of the preparation, on a raw frame; what lies outside is lost."""
        transpose, flipud, fliplr = self.parameters.operations()
        pattern = pattern[::-1] if flipud else pattern
        pattern = pattern[:, ::-1] if fliplr else pattern
        pattern = pattern.T if transpose else pattern
        wraps = self.parameters.center == "fft" and not self.parameters.auto_center
        inner, outer = [], []
        for center, own, side, length in zip(
            (0, 0) if wraps else self.center(), self._own_center(), pattern.shape, raw.shape, strict=True
        ):
            index = center - own + np.arange(side)
            inside = np.ones(side, bool) if wraps else (index >= 0) & (index < length)
            inner.append(np.flatnonzero(inside))
            outer.append(index[inside] % length)
        raw[np.ix_(*outer)] = pattern[np.ix_(*inner)]

    def _own_center(self) -> tuple[int, int]:
        """Pixel of the raw crop that zero frequency is on: n // 2 after orientation."""
        n = self.beamline.side
        transpose, flipud, fliplr = self.parameters.operations()
        y, x = (n - 1 - n // 2 if flip else n // 2 for flip in (flipud, fliplr))
        return (x, y) if transpose else (y, x)

    # ------------------------------------------------------------------ readings

    def samples(self, positions: Any) -> Samples:
        """The readings of a source with these parameters (of `positions` or `also`)."""
        p, b, names = positions, self.beamline, positions.channels
        per, each = p.samples_per_frame, p.frames_per_sample
        own = np.arange(p.first_frame if p.interpolate != "time" else 0, b.frames, each)
        frames = np.repeat(own, per)
        within = (np.tile(np.arange(per), len(own)) + 0.5) / per - 0.5
        noise = of_drawing(b.seed, 3).normal(0.0, b.encoder_noise_m, (len(own), per, 2))
        noise -= noise.mean(axis=1, keepdims=True)
        beam = b.positions_m()[own][:, None] + noise
        stage = (beam.reshape(-1, 2) @ np.linalg.inv(np.asarray(p.matrix, float)).T).T
        times = (frames + within) / b.rate_hz + p.time_offset_s
        table: dict[str, NDArray[np.float64]] = {}
        if names.y is not None:
            table |= {names.y: stage[0], names.x: stage[1]}
        ones = np.ones(len(frames))
        table |= {name: 0.0 * ones for name in (names.z, names.angle) if name is not None}
        if names.dose is not None:
            table[names.dose] = max(1.0, 2.0 * (p.dose_limit or 0.0)) * ones
        if names.shutter is not None:
            table[names.shutter] = (p.shutter_limit + 1.0) * ones
        if names.trigger is not None:
            table[names.trigger] = (frames - p.first_frame).astype(float)
        # Readings before those of the first frame, or none of the first ones.
        first = p.first_sample if p.interpolate == "index" else 0
        rows = np.concatenate([np.zeros(max(0, first), int), np.arange(max(0, -first), len(frames))])
        if p.interpolate == "time":  # each frame needs a reading on either side
            rows = np.concatenate([[0], rows, [len(frames) - 1]])
            times = np.concatenate([[times[0] - 1 / b.rate_hz], times, [times[-1] + 1 / b.rate_hz]])
        else:
            times = times[rows]
        return Samples({name: column[rows] for name, column in table.items()}, times, frames[rows])


def pieces(samples: Samples, rate_hz: float, together_s: float = 0.05) -> Iterator[tuple[float, slice]]:
    """(when it is due, seconds since the scan began; rows) of pieces of samples that are sent together."""
    step = max(1, round(together_s * rate_hz))
    last = int(samples.frames[-1]) if len(samples.frames) else -1
    edges = np.searchsorted(samples.frames, np.arange(0, last + 1 + step, step))
    for low, high in pairwise(edges):
        if high > low:
            yield max(LAG_S, (int(samples.frames[high - 1]) + 1) / rate_hz), slice(int(low), int(high))


def _side(shape: int | tuple[int, int] | None) -> int:
    if shape is None:
        raise Unsimulated("shape", None, "give the side of the crop in pixels, so that it is known what to simulate")
    side = shape if isinstance(shape, int) else min(shape)
    if side < 16:
        raise Unsimulated("shape", shape, "16 pixels at least can be simulated")
    return side


__all__ = ["LAG_S", "Rehearsal", "Samples", "pieces"]
