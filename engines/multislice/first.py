"""From the frames that are there when an engine starts to its first probe, and from parameters to lenses."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.model.aberrations import functions
from ptystream.parallel import ALONE

from .beam import FIRST, Frame, Total, Wave, applied_tilts, mean_of, of_signals, prepared, starting
from .optics import ANGSTROM, Optics


def frame_of(p: Any, optics: Optics, shape: tuple[int, int], cutoff: float) -> Frame:
    """How patterns of this shape lie in the model of `optics`. Raises `ValueError` where they do not fit."""
    bin = int(p.upsample_pattern)
    made = Frame(shape, optics.pixel_m, optics.wavelength_m, cutoff, bin, int(p.data_pad) // bin, optics.near)
    if made.shape != tuple(optics.shape):
        raise ValueError(f"data_pad, upsample_pattern: patterns {shape} make waves of {made.shape}, the model has {optics.shape}")
    return made


def first_probe(
    p: Any,
    optics: Optics,
    frames: Any,
    valid: Any = None,
    index: NDArray[np.int64] | None = None,
    shape: Any = None,
    total: Total = ALONE.total,
) -> Wave:
    """The probe to begin with, (subscan, mode, y, x), complex128 on the host; see `beam.starting`.

    `frames`: the first ones as they lie in slabs, (frame, y, x), zero frequency (near field: the middle) at [0, 0], or signals
    (frame, mask); None where there are none, then `shape` is theirs. `valid`: where pixels count; `index`: which measurements
    they are, for `tilts`; `total`: sum over all who have a part of them. Raises `ValueError`.
    """
    multiplier = float(p.data_multiplier)
    there, pattern = frames is not None and total(np.array([len(frames)]))[0] > 0, None
    if p.masks is not None:
        shape = p.masks.shape[1:]
        if there:
            pattern = of_signals(frames, p.masks, total) * multiplier
    elif frames is not None:
        shape = frames.shape[1:]
    at = frame_of(p, optics, (int(shape[0]), int(shape[1])), float(p.damping_cutoff_multislice))
    if pattern is None and there:
        seen = np.fft.fftshift(np.asarray(frames[:FIRST], float), axes=(1, 2)) * multiplier
        good = None if valid is None else np.fft.fftshift(np.broadcast_to(valid, np.shape(frames))[:FIRST], axes=(1, 2))
        lines = np.atleast_2d(np.asarray(p.tilts, float))
        numbers = np.arange(len(seen)) if index is None else np.asarray(index)[:FIRST]
        tilts = applied_tilts(lines[np.minimum(numbers, len(lines) - 1)], int(p.tilt_mode))
        pattern = mean_of(seen, at, tilts, good, total)
    counts = None if pattern is None else float(pattern.sum())
    if counts is None and p.mean_pattern is not None:
        counts = float(prepared(p.mean_pattern, p, at.pattern).sum())
    return starting(p, at, pattern, counts)


def lens_functions(p: Any, optics: Optics) -> NDArray[np.float64]:
    """A_j = ∂χ/∂C_j of `aberrations_array`, radians per Å, on the host: (coefficient, y, x), zero frequency at [0, 0].

    χ of subscan k is Σ aberrations_array[k, j] A_j; the journey's `lenses` are exp(-iχ) × the band limit, its `functions` these.
    """
    count = np.atleast_2d(np.asarray(p.aberrations_array, float)).shape[1]
    y, x = (np.fft.fftfreq(n, d) for n, d in zip(optics.shape, optics.pixel_m, strict=True))
    return functions(count, (y[:, None], x[None]), optics.wavelength_m) * ANGSTROM
