"""Comparing reconstructions: what two of them share once shift, phase ramp and a complex constant are taken out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_cdt, spline_filter
from scipy.ndimage import shift as spline

COVERED = 0.1
"""Share of the peak coverage from which on a pixel counts as covered."""
FITS = 12
"""Least-squares fits of a shift at most; a few do."""
GAIN = 1e-3
"""Part of the difference by which a fit must make it smaller for another to follow."""
STEP = 0.25
"""Pixels by which an image is moved to see how it changes."""
SEARCH_START = 0.06
"""Part of the Nyquist frequency below which crossings of the Fourier ring correlation do not count."""


def fit_ramp(image: NDArray[Any], weight: NDArray[Any]) -> tuple[float, float, float]:
    """(a, b, c) of the plane a + b·row + c·column in the phase of a complex image (y, x).

    b and c from the mean phase step between neighbours (weighted products, so wraps do not matter), a from what is left.
    """
    lit = np.asarray(weight, image.real.dtype)
    lit = lit * (lit > COVERED * float(np.max(weight, initial=0.0)))
    down = np.sum(image[1:] * image[:-1].conj() * lit[1:] * lit[:-1])
    right = np.sum(image[:, 1:] * image[:, :-1].conj() * lit[:, 1:] * lit[:, :-1])
    b, c = float(np.angle(down)), float(np.angle(right))
    y, x = (np.arange(length) for length in image.shape)
    a = float(np.angle(np.exp(-1j * b * y) @ (image * lit) @ np.exp(-1j * c * x)))
    return a, b, c


def remove_ramp(image: NDArray[Any], ramp: tuple[float, float, float]) -> NDArray[Any]:
    """The image without that plane of phase."""
    y, x = np.ogrid[: image.shape[0], : image.shape[1]]
    return np.asarray(image * np.exp(-1j * (ramp[0] + ramp[1] * y + ramp[2] * x)))


@dataclass(frozen=True, slots=True)
class Aligned:
    """Two images made comparable."""

    first: NDArray[np.complex128]
    second: NDArray[np.complex128]
    """Shifted, and multiplied by the phase ramp and constant that bring it closest to `first`."""
    weight: NDArray[np.float64]
    shift: tuple[float, float]
    """How far `second` was moved, pixels (y, x)."""

    @property
    def phase_std(self) -> float:
        """Standard deviation of the phase difference, radians."""
        turn = self.first * self.second.conj()
        angle = np.angle(turn)
        mean = float(np.sum(angle * self.weight) / self.weight.sum())
        return float(np.sqrt(np.sum(self.weight * (angle - mean) ** 2) / self.weight.sum()))

    @property
    def complex_rms(self) -> float:
        """√(Σ w |a - b|² / Σ w |a|²)."""
        apart = np.sum(self.weight * np.abs(self.first - self.second) ** 2)
        return float(np.sqrt(apart / np.sum(self.weight * np.abs(self.first) ** 2)))


def align(first: NDArray[Any], second: NDArray[Any], weight: NDArray[Any]) -> Aligned:
    """Bring `second` onto `first`, all of shape (y, x), by the sub-pixel shift, ramp and constant that leave the smallest
    `complex_rms`.

    Cross-correlation finds the shift to a few hundredths of a pixel, for the end of the weight pulls it towards 0. That much
    alone is a difference of a percent between images that have details; least squares find the rest.
    """
    w = np.asarray(weight, float)
    w = np.where(w > COVERED * w.max(), w, 0.0)
    a = remove_ramp(np.asarray(first, complex), fit_ramp(np.asarray(first), w))
    b = remove_ramp(np.asarray(second, complex), fit_ramp(np.asarray(second), w))
    image, shift = spline_filter(b.real, mode="nearest") + 1j * spline_filter(b.imag, mode="nearest"), np.zeros(2)
    for _ in range(8):
        further = _shift_between(_centred(a, w), _centred(b, w))
        shift = shift + further
        b = spline(image, shift, mode="nearest", prefilter=False)
        if np.hypot(*further) < 1e-2:
            break
    places = [place - np.sum(place * w) / w.sum() for place in np.indices(a.shape)]

    def brought(pose: NDArray[Any]) -> NDArray[Any]:
        """`second` after this shift, and with these slopes of its phase: all four in `pose`."""
        turn = np.exp(1j * (pose[2] * places[0] + pose[3] * places[1]))
        return np.asarray(spline(image, pose[:2], mode="nearest", prefilter=False) * turn)

    pose, best = np.array([*shift, *np.negative(fit_ramp(b * a.conj(), w)[1:])]), None
    for _ in range(FITS):
        b = brought(pose)
        scale = np.sum(w * b.conj() * a) / np.sum(w * np.abs(b) ** 2)
        found = Aligned(a, b * scale, w, (float(pose[0]), float(pose[1])))
        left = np.inf if best is None else best.complex_rms
        if best is None or found.complex_rms < left:
            best = found
        if not found.complex_rms < (1 - GAIN) * left:  # also where there are pixels that are no numbers
            break
        moves = STEP * np.eye(2, 4)
        slopes = [scale * (brought(pose + move) - brought(pose - move)) / (2 * STEP) for move in moves]
        slopes += [1j * place * found.second for place in places] + [found.second, 1j * found.second]
        pose = pose + _least_squares(slopes, a - found.second, w)[:4]
    assert best is not None
    return best


def _least_squares(columns: Sequence[NDArray[Any]], wanted: NDArray[Any], w: NDArray[np.float64]) -> NDArray[np.float64]:
    """Real factors of complex images that together come closest to `wanted`, weighted."""
    here = w > 0
    values = np.stack([np.sqrt(w[here]) * image[here] for image in (*columns, wanted)])
    products = (values.conj() @ values.T).real
    return np.asarray(np.linalg.lstsq(products[:-1, :-1], products[:-1, -1], rcond=None)[0])


def _centred(image: NDArray[Any], w: NDArray[np.float64]) -> NDArray[Any]:
    """Without its mean, so that the frame of the weight does not correlate."""
    return np.asarray((image - np.sum(image * w) / w.sum()) * w)


def _shift_between(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """Shift that takes b to a: peak of the cross-correlation, refined by a parabola through its neighbours."""
    product = scipy.fft.fft2(a) * scipy.fft.fft2(b).conj()
    peak = np.abs(scipy.fft.ifft2(product))
    top = np.unravel_index(int(np.argmax(peak)), peak.shape)
    moved = []
    for axis, n in enumerate(peak.shape):
        values = [float(np.take(np.take(peak, [top[1 - axis]], 1 - axis).ravel(), (top[axis] + k) % n)) for k in (-1, 0, 1)]
        bend = values[0] - 2 * values[1] + values[2]
        part = 0.0 if bend == 0 else 0.5 * (values[0] - values[2]) / bend
        moved.append((top[axis] + n // 2) % n - n // 2 + part)
    return np.array(moved)


@dataclass(frozen=True, slots=True)
class Frc:
    """A Fourier ring correlation; frequencies as a part of the Nyquist frequency."""

    frequency: NDArray[np.float64]
    correlation: NDArray[np.float64]
    threshold: NDArray[np.float64]
    """Half-bit, with half of each ring's pixels as independent ones."""
    resolution: float
    """First crossing above 0.06; infinity where there is none: the images agree up to Nyquist, and beyond nothing is known."""


def crop_to_cover(weight: NDArray[Any], largest: int | None = None) -> tuple[slice, slice]:
    """The largest square inside the covered area, of at most `largest` pixels on a side about the same middle; empty where
    nothing is covered."""
    lit = np.pad(np.asarray(weight) > COVERED * float(np.max(weight, initial=0.0)), 1)
    room = distance_transform_cdt(lit, metric="chessboard")
    y, x = np.unravel_index(int(np.argmax(room)), room.shape)
    half = int(room[y, x])
    if largest is not None:
        half = min(half, (largest + 1) // 2)
    low = int(y) - half, int(x) - half  # without the frame that was put round it
    side = max(0, 2 * half - 1)
    return slice(low[0], low[0] + side), slice(low[1], low[1] + side)


def fourier_ring_correlation(first: NDArray[Any], second: NDArray[Any], *, taper: float = 0.25) -> Frc:
    """Correlation of two independent images of equal shape (y, x), ring by ring (one Fourier pixel each).

    Means are subtracted and the edges tapered by cosines over `taper` of each side: otherwise a common offset or the
    frame's edges correlate by themselves and prove nothing. van Heel & Schatz, J. Struct. Biol. 151, 250 (2005).
    """
    window = np.outer(*(_taper(n, taper) for n in first.shape)) if taper else np.ones(first.shape)
    means = [np.sum(i * window) / window.sum() if taper else 0.0 for i in (first, second)]
    a, b = (scipy.fft.fft2((i - m) * window) for i, m in zip((first, second), means, strict=True))
    fy, fx = (np.fft.fftfreq(n) * min(first.shape) for n in first.shape)
    ring = np.rint(np.hypot(fy[:, None], fx[None])).astype(int)
    count = min(first.shape) // 2
    inside = ring <= count

    def per_ring(values: NDArray[Any]) -> NDArray[Any]:
        return np.bincount(ring[inside], values[inside], count + 1)

    cross = per_ring((a * b.conj()).real)
    power = np.sqrt(per_ring(np.abs(a) ** 2) * per_ring(np.abs(b) ** 2))
    correlation = cross / np.maximum(power, 1e-300)
    n = np.maximum(per_ring(np.ones(first.shape)) / 2, 1)
    threshold = (0.2071 + 1.9102 / np.sqrt(n)) / (1.2071 + 0.9102 / np.sqrt(n))
    frequency = np.arange(count + 1) / count
    below = np.flatnonzero((correlation < threshold) & (frequency > SEARCH_START))
    return Frc(frequency, correlation, threshold, float(frequency[below[0]]) if len(below) else math.inf)


def _taper(n: int, part: float) -> NDArray[np.float64]:
    edge = max(1, round(n * part))
    window = np.ones(n)
    window[:edge] = 0.5 - 0.5 * np.cos(np.pi * (np.arange(edge) + 0.5) / edge)
    window[-edge:] = window[:edge][::-1]
    return window
