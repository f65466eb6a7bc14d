"""What is kept of each pattern for pictures that need all of them at once: its middle, in sums of neighbouring pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .brightfield import bright_disk

MOST = {"tcbf": 25, "wdd": 33}
"""Numbers along each side that are kept, at the most."""
REACH = {"tcbf": 1.0, "wdd": 1.6}
"""How far out, in radii of the bright disk: what interferes within the disk, and beside it."""
SPARE = 2
"""Pixels more, for a disk that wanders."""


@dataclass(frozen=True, slots=True)
class Window:
    """2 `half` + 1 sums of `bin` × `bin` pixels along each side, the middle one about zero frequency. `bin` is odd."""

    half: int
    bin: int
    shape: tuple[int, int]
    """(y, x) of whole patterns."""

    @classmethod
    def about(cls, mean: NDArray[np.float64], kind: str) -> Window:
        """For the disk of a mean pattern (y, x), zero frequency at [0, 0]. Raises `ValueError` where there is none."""
        disk = bright_disk(mean)
        if not mean.max() > 0 or not disk.any():
            raise ValueError("no bright disk: nothing reaches the detector")
        away = [np.abs(np.rint(np.fft.fftfreq(n, 1 / n)))[at] for n, at in zip(mean.shape, np.nonzero(disk), strict=True)]
        wanted = max(int(a.max()) for a in away) * REACH[kind] + SPARE
        wanted = min(wanted, (min(mean.shape) - 1) // 2)
        bin = 1
        while 2 * (wanted / bin) + 1 > MOST[kind]:
            bin += 2
        half = max(1, int((wanted - (bin - 1) // 2) // bin))
        return cls(half, bin, (mean.shape[0], mean.shape[1]))

    @property
    def side(self) -> int:
        """How many numbers are kept along each side."""
        return 2 * self.half + 1

    def of(self, frames: Any) -> NDArray[np.float32]:
        """What is kept of frames (frame, y, x): (frame, side, side), zero frequency at [0, 0]."""
        pixels = np.arange(self.side * self.bin) - self.half * self.bin - (self.bin - 1) // 2
        part = np.asarray(frames)[:, pixels % self.shape[0]][:, :, pixels % self.shape[1]].astype(np.float32)
        edges = np.arange(self.side) * self.bin
        if self.bin > 1:
            part = np.add.reduceat(np.add.reduceat(part, edges, axis=1), edges, axis=2)
        return np.asarray(np.fft.ifftshift(part, axes=(1, 2)), np.float32)

    def frequencies(self, pixel_per_m: tuple[float, float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(y (y, 1), x (1, x)) of what is kept, 1/metres, where pixels of patterns are `pixel_per_m` apart."""
        y, x = (np.asarray(np.fft.fftfreq(self.side, 1 / (self.side * self.bin * p))) for p in pixel_per_m)
        return y[:, None], x[None]
