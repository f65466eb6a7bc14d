"""What stays the same for all frames on their way from the probe to the detector: frequencies, band limit, propagators.

Arrays over frequencies have zero frequency at [0, 0]. Lengths in metres, angles in radians (used as tangents).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

ANGSTROM = 1e-10


def band(
    shape: tuple[int, int],
    pixel_m: tuple[float, float],
    cutoff: float,
    rolloff: float = 0.0,
    aside: tuple[float, float] = (0.0, 0.0),
) -> NDArray[np.float64]:
    """1 for frequencies |q| <= cutoff × the largest positive one along x, 0 beyond; with `rolloff` a raised cosine in q² from
    (cutoff - rolloff) on. `aside`: pixels by which zero frequency lies beside [0, 0]. Shape (y, x)."""
    y, x = ((np.fft.fftfreq(n) * n - a) / (n * p) for n, p, a in zip(shape, pixel_m, aside, strict=True))
    squared, limit = y[:, None] ** 2 + x**2, float(np.fft.fftfreq(shape[1], pixel_m[1]).max())
    outer, inner = (limit * cutoff) ** 2, (limit * max(cutoff - rolloff, 0.0)) ** 2
    inside = (squared <= outer).astype(float)
    if outer > inner and rolloff > 0:
        inside *= 0.5 * (1 + np.cos(np.pi * np.clip((squared - inner) / (outer - inner), 0, 1)))
    return inside


def beside(pixels: int, bin: int) -> float:
    """The middle of a detector's pixel N // 2, in pixels of a model with `bin` times as many, from the model's [N // 2]."""
    return (bin - 1) / 2 + bin * (pixels // bin // 2) - pixels // 2


@dataclass(frozen=True, slots=True)
class Optics:
    """The set-up of one reconstruction, on the engine's device."""

    shape: tuple[int, int]
    """(y, x) of the waves."""
    pixel_m: tuple[float, float]
    wavelength_m: float
    limit: Any
    """Band limit M of waves and slices. Shape (y, x), real."""
    frequency: tuple[Any, Any]
    """(y (y, 1), x (1, x)): 1/metres, real."""
    place: tuple[Any, Any]
    """(y (y, 1), x (1, x)): metres from the middle of the frame, pixel [N // 2], real."""
    propagators: tuple[Any, ...]
    """From each slice to the next, band limited. Shape (y, x), complex."""
    distances_m: tuple[float, ...]
    """Of these propagators."""
    near: bool = False
    """Whether the detector sees an image plane `defocus_m` away instead of the far field."""
    spherical_m: float = 0.0
    """Cs of the lens between."""
    spread: float = 0.0
    """Half-width of the illumination angles that blur an image plane, radians."""
    squared: Any = field(default=None)
    """q², 1/metres². Shape (y, x), real."""
    edge: Any = field(default=None)
    """Band limit on the detector, where zero frequency is in the middle of a pixel. Shape (y, x), real."""
    middle: Any = field(default=None)
    """Factor that brings it there: on the exit wave, in the near field on its spectrum; None: a pixel's middle is the model's.
    Shape (y, x), complex."""

    @classmethod
    def of(
        cls,
        shape: tuple[int, int],
        pixel_m: tuple[float, float],
        wavelength_m: float,
        distances_m: Sequence[float],
        *,
        cutoff: float,
        real: np.dtype[Any],
        put: Any = np.asarray,
        near: bool = False,
        spherical_m: float = 0.0,
        spread: float = 0.0,
        bin: int = 1,
    ) -> Optics:
        """`distances_m`: from each slice to the next; `cutoff`: of the band limit, as of `band`; `bin`: pixels on a side of a
        detector's."""
        limit = band(shape, pixel_m, cutoff)
        qy, qx = (np.fft.fftfreq(n, p) for n, p in zip(shape, pixel_m, strict=True))
        squared = qy[:, None] ** 2 + qx**2
        ways = [np.exp(-1j * np.pi * d * wavelength_m * squared) * limit for d in distances_m]
        y, x = ((np.arange(n) - n // 2) * p for n, p in zip(shape, pixel_m, strict=True))
        wave = np.result_type(real, np.complex64)
        aside = beside(shape[0], bin), beside(shape[1], bin)
        edge = limit if near else band(shape, pixel_m, cutoff, aside=aside)
        steps = [np.fft.fftfreq(n) if near else -(np.arange(n) - n // 2) / n for n in shape]
        turn = -2 * np.pi * (aside[0] * steps[0][:, None] + aside[1] * steps[1])
        return cls(
            shape,
            pixel_m,
            wavelength_m,
            put(limit.astype(real)),
            (put(qy[:, None].astype(real)), put(qx[None].astype(real))),
            (put(y[:, None].astype(real)), put(x[None].astype(real))),
            tuple(put(way.astype(wave)) for way in ways),
            tuple(float(d) for d in distances_m),
            near,
            spherical_m,
            spread,
            put(squared.astype(real)),
            put(edge.astype(real)),
            put(np.exp(1j * turn).astype(wave)) if any(aside) else None,
        )

    def turned(self, xp: Any, angles: Any) -> Any:
        """Factor exp(2πi/λ (x t_x + y t_y)) of a wave whose beam is tilted by `angles` (frame, 2: y, x). (frame, y, x)."""
        turn = 2 * np.pi / self.wavelength_m
        y, x = (xp.exp(1j * turn * angles[:, k, None, None] * self.place[k]) for k in (0, 1))
        return y * x

    def moved(self, xp: Any, pixels: Any) -> Any:
        """Factor exp(-2πi (f_y c_y + f_x c_x)) on a spectrum that shifts its wave by `pixels` (frame, 2). (frame, y, x)."""
        y, x = (xp.exp(-2j * np.pi * self.pixel_m[k] * pixels[:, k, None, None] * self.frequency[k]) for k in (0, 1))
        return y * x

    def oblique(self, xp: Any, angles: Any, distance_m: float) -> Any:
        """Factor exp(-2πi d (q_y t_y + q_x t_x)) of a propagator along a tilted path. (frame, y, x)."""
        y, x = (xp.exp(-2j * np.pi * distance_m * angles[:, k, None, None] * self.frequency[k]) for k in (0, 1))
        return y * x
