"""Pictures while frames arrive: each frame costs the same, in whatever order they come.

`add(frames, indices)` takes frames (frame, y, x), zero frequency at [0, 0], and their numbers in the raster; a number that comes
again replaces what it gave before (`Deflection`) or is left out (`BrightField`). `picture()` may be asked for at any time.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from . import dpc
from .brightfield import Fit, Pair
from .moments import centres
from .raster import Raster, turned


class QuickLook(Protocol):
    """A picture that grows."""

    def add(self, frames: Any, indices: Any) -> None:
        """Take frames, of these numbers."""

    def picture(self) -> NDArray[np.float64]:
        """What is there so far, (y, x)."""


def _numbers(indices: Any, frames: Any, raster: Raster) -> NDArray[np.int64]:
    numbers = np.asarray(indices, np.int64).ravel()
    if len(numbers) != len(frames):
        raise ValueError(f"{len(frames)} frames with {len(numbers)} numbers")
    if len(numbers) and (numbers.min() < 0 or numbers.max() >= raster.points):
        raise ValueError(f"frame {numbers.max()}: the raster has points 0 to {raster.points - 1}")
    return numbers


class Deflection:
    """Integrated centre of mass (iCOM)."""

    def __init__(self, raster: Raster, frequency: Pair, angle: float = 0.0, valid: Any = None, highpass: float = 0.0) -> None:
        """`frequency`: of the patterns, 1/metres; `angle`: as of `raster.turned`; `highpass`: as of `dpc.integrated`."""
        self.raster, self.angle, self.highpass = raster, angle, highpass
        self._frequency, self._valid = frequency, valid
        self._field = np.full((raster.points, 2), np.nan)

    def add(self, frames: Any, indices: Any) -> None:
        """See `QuickLook`."""
        self._field[_numbers(indices, frames, self.raster)] = centres(frames, self._frequency, self._valid)

    @property
    def field(self) -> NDArray[np.float64]:
        """Centres of mass, 1/metres along the patterns' axes, (y, x, 2); NaN where there is none yet."""
        return self._field.reshape(*self.raster.shape, 2)

    def picture(self) -> NDArray[np.float64]:
        """The phase, radians. Where no frame is yet, as if the beam went straight there."""
        field = turned(self.field, self.angle)
        there = np.asarray(np.isfinite(field).all(axis=2))
        if not there.any():
            return np.zeros(self.raster.shape)
        straight = field[there].mean(axis=0)
        return dpc.integrated(np.where(there[..., None], field - straight, 0.0), self.raster, self.highpass)


class BrightField:
    """Tilt-corrected bright field on a grid finer than the raster."""

    def __init__(
        self, raster: Raster, frequency: Pair, disk: NDArray[np.float64], fit: Fit, finer: int = 1, valid: Any = None
    ) -> None:
        """`disk`: mean pattern within the bright disk, 0 beyond, (y, x); `finer`: pixels of the picture for one step."""
        if finer < 1:
            raise ValueError(f"finer: {finer}: must be 1 or more")
        self.raster, self.finer = raster, finer
        seen = disk * (1 if valid is None else valid)
        self._at = np.nonzero(seen > 0)
        if not len(self._at[0]):
            raise ValueError("bright field: the bright disk is empty")
        self._mean = np.asarray(seen, float)[self._at]
        q = np.stack([frequency[0].ravel()[self._at[0]], frequency[1].ravel()[self._at[1]]], axis=1)
        self._moved = fit.shifts(q) / np.asarray(raster.step_m) * finer
        self._shape = (raster.shape[0] * finer, raster.shape[1] * finer)
        self._light, self._share = np.zeros(self._shape), np.zeros(self._shape)
        self._seen = np.zeros(raster.points, bool)

    def add(self, frames: Any, indices: Any) -> None:
        """See `QuickLook`. What leaves the raster is left out."""
        numbers = _numbers(indices, frames, self.raster)
        for frame, number in zip(frames, numbers.tolist(), strict=True):
            if self._seen[number]:
                continue
            self._seen[number] = True
            place = np.array(divmod(number, self.raster.shape[1])) * self.finer + self._moved
            first = np.floor(place).astype(np.int64)
            part = place - first
            counts = np.asarray(frame)[self._at].astype(float)
            for y in (0, 1):
                for x in (0, 1):
                    share = (part[:, 0] if y else 1 - part[:, 0]) * (part[:, 1] if x else 1 - part[:, 1])
                    self._put(first + np.array([y, x]), share, counts)

    def _put(self, at: NDArray[np.int64], share: NDArray[np.float64], counts: NDArray[np.float64]) -> None:
        inside = ((at >= 0) & (at < np.array(self._shape))).all(axis=1)
        y, x = at[inside].T
        np.add.at(self._light, (y, x), share[inside] * counts[inside])
        np.add.at(self._share, (y, x), share[inside] * self._mean[inside])

    def picture(self) -> NDArray[np.float64]:
        """Counts relative to the mean pattern's; 1 where nothing is yet."""
        least = 1e-3 * max(float(self._share.max()), 1e-300)
        return np.asarray((self._light + least) / (self._share + least))
