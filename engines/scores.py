"""What an iteration measures of the frames that it visits one after another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Scores:
    """What an iteration measures, in the order in which frames are visited. Arrays (frame,)."""

    def __init__(self, xp: Any, count: int) -> None:
        self.rows = np.zeros(count, np.int64)
        """Of the pod table; on the host. The others lie on the device, float64."""
        self.pixels = np.ones(count)
        """Of the detector, valid or not; on the host."""
        self.fourier, self.change, self.amplitude, self.photon, self.valid = (xp.zeros(count) for _ in range(5))
        self.expected: dict[int, Any] = {}
        """The Poisson expectation where it was asked, by place in the order."""

    def fill(self, get: Callable[[Any], NDArray[Any]], local: NDArray[np.float64], known: NDArray[np.float64]) -> None:
        """Each frame's errors into `local` and its misfits into `known`, (row of the pod table, 3) both, as of `tiled.means`.

        `get` brings arrays to the host.
        """
        fourier, change, amplitude, photon, valid = (
            get(v) for v in (self.fourier, self.change, self.amplitude, self.photon, self.valid)
        )
        local[self.rows] = np.stack([fourier, photon / self.pixels, change], axis=1)
        valid = np.maximum(valid, 1)
        known[self.rows, 0], known[self.rows, 1] = amplitude / valid, photon / valid
        for place, value in self.expected.items():
            known[self.rows[place], 2] = float(value)
