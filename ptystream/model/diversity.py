"""What makes modes differ: noise of a feature size, relative power, lateral shift. Every random number is keyed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from ptystream.chance import generator
from ptystream.model.blur import widths

FWHM = 2.0 * math.sqrt(2.0 * math.log(2.0))
"""Full width at half maximum of a Gaussian of unit standard deviation."""

PROBE_MODES, DIFFUSER, OBJECT_MODES = "probe modes", "diffuser", "object modes"
"""Purposes of random numbers, parts of their key."""


def noise(shape: tuple[int, int], rms: float, feature: float, random: np.random.Generator) -> NDArray[np.float64]:
    """Normal noise (y, x) of mean 0 and standard deviation `rms`, with features of about `feature` pixels."""
    values = random.normal(0.0, 1.0, shape)
    if feature > 0:
        values = gaussian_filter(values, widths(feature / FWHM, shape), mode="wrap")
    values -= values.mean()
    return np.asarray(rms * values / max(float(values.std()), 1e-12))


def diffuser(
    shape: tuple[int, int], given: Sequence[float] | None, seed: int, purpose: str, *numbers: int
) -> NDArray[np.complex128]:
    """exp(i noise), (y, x), for (rms, feature) of the phase; times 1 + noise for (…, rms, feature) of the modulus as well.

    Always the same for the same key (seed, purpose, numbers).
    """
    if given is None:
        return np.ones(shape, complex)
    factor = np.exp(1j * noise(shape, given[0], given[1], generator(seed, purpose, *numbers, 0)))
    if len(given) == 4:
        factor = factor * (1 + noise(shape, given[2], given[3], generator(seed, purpose, *numbers, 1)))
    return np.asarray(factor)


def powers(modes: int, given: float | Sequence[float]) -> NDArray[np.float64]:
    """Power of each mode, sum 1, from those of modes 1, 2, … relative to mode 0; the last one is repeated."""
    relative = (1.0, *np.atleast_1d(np.asarray(given, float)).tolist())
    found = np.array([relative[min(mode, len(relative) - 1)] for mode in range(modes)])
    return np.asarray(found / found.sum())


def direction(mode: int) -> tuple[float, float]:
    """Where mode 1, 2, … is shifted to, (y, x), in units of `shift`: right, left, down, up, and so on at twice the distance."""
    y, x = ((0, 1), (0, -1), (1, 0), (-1, 0))[(mode - 1) % 4]
    far = 1 + (mode - 1) // 4
    return float(y * far), float(x * far)


def shifted(wave: NDArray[np.complex128], by: tuple[float, float]) -> NDArray[np.complex128]:
    """The wave (y, x) moved by (y, x) pixels, periodic, by a phase ramp."""
    y, x = (np.fft.fftfreq(n) * d for n, d in zip(wave.shape, by, strict=True))
    return np.asarray(np.fft.ifft2(np.fft.fft2(wave) * np.exp(-2j * np.pi * (y[:, None] + x[None]))))


def check_noise(value: Sequence[float] | None) -> None:
    """Raises `ValueError` for what is neither None, a pair nor four numbers."""
    if value is not None and (len(value) not in (2, 4) or any(v < 0 for v in value)):
        raise ValueError("must be None, (rms, minimum feature size) or (rms, mfs, rms_mod, mfs_mod), none below 0")
