"""Centres of patterns: where the bright disk is, and how it wanders over a scan (descan)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


def centres(frames: Any, frequency: tuple[NDArray[np.float64], NDArray[np.float64]], valid: Any = None) -> NDArray[np.float64]:
    """Centre of mass of each pattern, (frame, 2: y, x), in the unit of `frequency`; NaN for one without counts.

    `valid`: weight of pixels, of a pattern's shape or that of the frames.
    """
    seen = np.asarray(frames, float) if valid is None else np.asarray(frames, float) * valid
    rows, columns = seen.sum(axis=2), seen.sum(axis=1)
    total = rows.sum(axis=1)
    moments = np.stack([rows @ frequency[0].ravel(), columns @ frequency[1].ravel()], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(total[:, None] > 0, moments / total[:, None], np.nan))


def disk_centres(
    frames: Any, frequency: tuple[NDArray[np.float64], NDArray[np.float64]], threshold: float = 0.5, valid: Any = None
) -> NDArray[np.float64]:
    """Centre of the bright disk of each pattern: of the pixels above `threshold` × their 98th percentile, each counting alike.

    So what the sample does to the inside of the disk counts less than in `centres`. (frame, 2: y, x).
    """
    seen = np.asarray(frames, float) if valid is None else np.asarray(frames, float) * valid
    bright = np.percentile(seen, 98, axis=(1, 2))[:, None, None]
    return centres((seen > threshold * bright).astype(float), frequency)


@dataclass(frozen=True, slots=True)
class Plane:
    """Descan: centre(place) = offset + slope · place."""

    offset: NDArray[np.float64]
    """(2: y, x), where the pattern of place 0 has its centre."""
    slope: NDArray[np.float64]
    """(2, 2): by how much centre (y, x) moves along place (y, x)."""

    @classmethod
    def of(cls, places: NDArray[np.float64], found: NDArray[np.float64], rounds: int = 5) -> Plane:
        """Fitted to centres (frame, 2) at places (frame, 2); what lies far off the plane counts little, NaN not at all.

        Raises `ValueError` for fewer than three points, or points on a line.
        """
        known = np.isfinite(found).all(axis=1)
        design = np.column_stack([np.ones(int(known.sum())), places[known]])
        scale = np.maximum(np.abs(design).max(axis=0, initial=0), 1e-300)
        if len(design) < 3 or np.linalg.matrix_rank(design / scale) < 3:
            raise ValueError("descan: a plane needs three places with counts that do not lie on a line")
        weight, wanted = np.ones(len(design)), found[known]
        for _ in range(rounds):
            fit = np.linalg.lstsq(design / scale * weight[:, None], wanted * weight[:, None], rcond=None)[0] / scale[:, None]
            off = np.hypot(*(wanted - design @ fit).T)
            weight = 1 / np.sqrt(1 + (off / max(3 * float(np.median(off)), 1e-300)) ** 2)  # Cauchy
        return cls(fit[0], fit[1:].T)

    def __call__(self, places: NDArray[np.float64]) -> NDArray[np.float64]:
        """Centres (frame, 2) at places (frame, 2)."""
        return np.asarray(self.offset + places @ self.slope.T)


def without_descan(frames: Any, pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Patterns moved back by `pixels` (frame, 2: y, x), to fractions of one by a ramp on their transform; not below 0."""
    seen = np.asarray(frames, float)
    y, x = (np.fft.fftfreq(n) for n in seen.shape[1:])
    ramps = np.exp(2j * np.pi * (pixels[:, 0, None, None] * y[:, None] + pixels[:, 1, None, None] * x))
    return np.maximum(np.fft.ifft2(np.fft.fft2(seen) * ramps).real, 0.0)


def tilts_after(centre: NDArray[np.float64], wavelength_m: float) -> NDArray[np.float64]:
    """Tilts after the sample, radians, that move patterns to centres in 1/metres."""
    return np.asarray(centre * wavelength_m)
