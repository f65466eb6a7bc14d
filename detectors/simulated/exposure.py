"""What reaches a detector: probe and object, laid upon each other at a position and propagated. No noise, no detector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.signal import fftconvolve

from ptystream.model.blur import widths


@dataclass(frozen=True, slots=True)
class Experiment:
    """Light, matter and where they meet."""

    probe: NDArray[np.complex128]
    """(mode, y, x), centred on pixel N // 2; Σ|P|² is the number of photons of an exposure."""
    object: NDArray[np.complex128]
    """(mode, y, x)."""
    offset: tuple[int, int]
    """Lattice pixel of the object's first row and column; physical zero is lattice pixel (0, 0)."""
    places: NDArray[np.float64]
    """Where the beam is, (frame, 2), (y, x) in object pixels."""
    near_field: NDArray[np.complex128] | None = None
    """Transfer function of the way to the detector, zero frequency at [0, 0]; None: far field."""

    def intensity(self, number: int) -> NDArray[np.float64]:
        """Expected photons of a frame, (y, x), zero frequency (near field: the beam) in the middle.

        The probe is moved by the fraction of a pixel with a phase ramp; modes add up as intensities.
        """
        side = np.array(self.probe.shape[-2:])
        place = self.places[number]
        nearest = np.floor(place + 0.5).astype(int)
        first = nearest - side // 2 - self.offset
        if (first < 0).any() or (first + side > self.object.shape[-2:]).any():
            raise ValueError(f"position {number}: {place} px lies outside the simulated object")
        seen = self.object[:, first[0] : first[0] + side[0], first[1] : first[1] + side[1]]
        waves = shifted(self.probe, place - nearest)[:, None] * seen[None]
        if self.near_field is None:
            there = scipy.fft.fftshift(scipy.fft.fft2(waves, norm="ortho"), axes=(-2, -1))
        else:
            there = scipy.fft.ifft2(scipy.fft.fft2(waves) * self.near_field)
        return np.asarray((np.abs(there) ** 2).sum(axis=(0, 1)))


def shifted(probe: NDArray[np.complex128], by: NDArray[np.float64]) -> NDArray[np.complex128]:
    """The probe (…, y, x) moved by a fraction of a pixel, by a phase ramp."""
    y, x = (np.fft.fftfreq(n) * d for n, d in zip(probe.shape[-2:], by, strict=True))
    return np.asarray(scipy.fft.ifft2(scipy.fft.fft2(probe) * np.exp(-2j * np.pi * (y[:, None] + x[None]))))


def canvas(places: NDArray[np.float64], side: tuple[int, int], margin: int = 2) -> tuple[tuple[int, int], tuple[int, int]]:
    """(offset, shape) of an object that all views of `side` at `places` (object pixels) lie in, with a `margin` around it."""
    half = np.array(side) // 2
    low = np.floor(places.min(axis=0) + 0.5).astype(int) - half - margin
    high = np.floor(places.max(axis=0) + 0.5).astype(int) - half + side + margin
    return (int(low[0]), int(low[1])), (int(high[0] - low[0]), int(high[1] - low[1]))


def blurred(intensity: NDArray[np.float64], psf: Any) -> NDArray[np.float64]:
    """Convolved with a Gaussian of standard deviation `psf` (pixels, one number or (y, x)), or with a kernel (y, x).

    Light that would leave the frame comes back in (half-sample symmetry), so that a symmetric blur keeps the photons; a kernel
    is scaled to sum 1.
    """
    kernel = np.asarray(psf, float)
    if kernel.ndim < 2:
        sigma = np.broadcast_to(kernel, 2)
        wide = widths(sigma.tolist(), intensity.shape)
        return intensity if not sigma.any() else np.asarray(gaussian_filter(intensity, wide, mode="reflect"))
    before = [n // 2 for n in kernel.shape]
    after = [n - 1 - b for n, b in zip(kernel.shape, before, strict=True)]
    padded = np.pad(intensity, list(zip(after, before, strict=True)), mode="symmetric")
    return np.asarray(np.maximum(fftconvolve(padded, kernel / kernel.sum(), mode="valid"), 0.0))
