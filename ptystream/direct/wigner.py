"""Wigner distribution deconvolution: the object of a thin sample from a raster of patterns and the probe, in one go.

The inverse transform over the detector of what varies with Q over the scan is χ_O(r, Q) χ_P(r, -Q), with
χ_A(r, Q) = ∫ A*(x) A(x + r) exp(-2πi Q·x) dx. Divided by the probe's, and summed over r, it is conj(Ô(-Q)) Ô(0).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from .raster import Raster, turned


def deconvolved(
    frames: Any,
    raster: Raster,
    probe: NDArray[np.complex128],
    pixel_m: tuple[float, float],
    epsilon: float = 1e-3,
    angle: float = 0.0,
) -> NDArray[np.complex128]:
    """The object on the raster, (y, x), of mean modulus near 1 and phase against the mean wave.

    `frames`: (point, y, x) in the raster's order, zero frequency at [0, 0]; `probe`: (y, x), centred, in pixels of `pixel_m`,
    along the patterns' axes; `angle`: by which `raster.turned` brings these to the raster's, radians; `epsilon`: what is added to
    |χ_P|², part of its largest value. Raises `ValueError`.
    """
    seen = np.asarray(frames, np.float64)
    if len(seen) != raster.points or seen.shape[1:] != probe.shape:
        raise ValueError(f"wdd: frames {seen.shape} for {raster.points} points and a probe {probe.shape}")
    rows, columns = raster.shape
    varying = scipy.fft.fft2(seen.reshape(rows, columns, *probe.shape), axes=(0, 1))
    y, x = ((np.arange(n) - n // 2) * p for n, p in zip(probe.shape, pixel_m, strict=True))
    ky, kx = np.broadcast_arrays(*raster.frequencies())
    own_axes = turned(np.stack([ky, kx], axis=-1), -angle)  # of the scan's frequencies, along the patterns' axes
    there = scipy.fft.fft2(probe)
    largest = float(np.abs(scipy.fft.ifft2(np.abs(there) ** 2)).max()) ** 2
    spectrum = np.zeros(raster.shape, complex)
    for i in range(rows):
        # P̂(k + Q), for a row of Q at once; the ramp's origin is the frame's middle for both, and cancels
        ramp_y, ramp_x = (np.exp(-2j * np.pi * own_axes[i, :, k, None] * at) for k, at in enumerate((y, x)))
        moved = scipy.fft.fft2(probe * ramp_y[:, :, None] * ramp_x[:, None, :])
        own = scipy.fft.ifft2(there * moved.conj())
        both = scipy.fft.ifft2(varying[i])
        # Σ over r, which is the deconvolved pattern at zero frequency
        spectrum[i] = (both * own.conj() / (np.abs(own) ** 2 + epsilon * largest)).sum(axis=(1, 2))
    found = scipy.fft.ifft2(spectrum).conj()
    mean = found.mean()
    if mean == 0:
        raise ValueError("wdd: nothing reaches the detector")
    return np.asarray(found / mean)
