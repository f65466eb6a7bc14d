"""A raster of scan points, and the frequencies of a picture on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Raster:
    """Points in rows, equally spaced."""

    shape: tuple[int, int]
    """(rows, columns)."""
    step_m: tuple[float, float]
    """(y, x)."""

    @property
    def points(self) -> int:
        """How many."""
        return self.shape[0] * self.shape[1]

    def places_m(self) -> NDArray[np.float64]:
        """(point, 2), (y, x), the middle of the raster at 0."""
        y, x = ((np.arange(n) - (n - 1) / 2) * s for n, s in zip(self.shape, self.step_m, strict=True))
        return np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1).reshape(-1, 2)

    def frequencies(self, shape: tuple[int, int] | None = None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(y (y, 1), x (1, x)) in 1/metres, zero at [0, 0], of a picture of this shape on the same steps."""
        y, x = (np.asarray(np.fft.fftfreq(n, s), np.float64) for n, s in zip(shape or self.shape, self.step_m, strict=True))
        return y[:, None], x[None]


def pattern_frequencies(shape: tuple[int, int], pixel_m: tuple[float, float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(y (y, 1), x (1, x)) in 1/metres, zero at [0, 0], of patterns whose wave has pixels of `pixel_m` on the sample."""
    y, x = (np.asarray(np.fft.fftfreq(n, p), np.float64) for n, p in zip(shape, pixel_m, strict=True))
    return y[:, None], x[None]


def turned(field: NDArray[np.float64], angle: float) -> NDArray[np.float64]:
    """Vectors (…, 2: y, x) turned by an angle, radians, from x towards y."""
    y, x = field[..., 0], field[..., 1]
    return np.stack([np.cos(angle) * y + np.sin(angle) * x, np.cos(angle) * x - np.sin(angle) * y], axis=-1)
