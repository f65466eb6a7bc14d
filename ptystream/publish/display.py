"""From complex images to bytes that a screen can show: amplitude over its covered median, phase without its ramp."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ptystream.publish.snapshot import Image, Snapshot
from ptystream.quality import fit_ramp

VISIBLE_COVERAGE = 0.1
"""Object pixels that saw less than this share of the peak illumination are drawn transparent."""

PHASE_STEPS = 256
"""Phase code v stands for -π + 2π v / 256: the circle closes without a seam."""

PERCENTILES = (0.5, 99.5)
"""Of the covered amplitudes: the automatic limits of the grey scale."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A complex image as two bytes per pixel."""

    amplitude: NDArray[np.uint8]
    """Code v stands for lower + (upper - lower) v / 255, by the limits of its layer. Shape (layer, y, x)."""
    phase: NDArray[np.uint8]
    """Phase with the ramp removed: code v stands for -π + 2π v / 256 radians. Shape (layer, y, x)."""
    limits: tuple[tuple[float, float], ...]
    """(lower, upper) of each layer, in units of `scale`."""
    scale: tuple[float, ...]
    """Amplitude of each layer that stands for 1: the covered median of an object, the maximum of a probe's strongest mode."""
    power: tuple[float, ...]
    """Share of each layer in the summed |.|² of all layers."""
    pixel_size_m: tuple[float, float] | None
    """(y, x); None where only object pixels are known."""
    offset: tuple[int, int]
    """Lattice coordinates of [:, 0, 0]."""
    ramp: tuple[float, float, float]
    """What was removed: phase = a + b·row + c·column. Adding it to the phase codes gives the raw phase back."""
    depths_m: tuple[float, ...] = ()
    """As of `Image`."""


@dataclass(frozen=True, slots=True)
class Display:
    """A snapshot that is ready to be drawn."""

    about: Snapshot
    """Everything but the images: its `probe` and `object` are empty, its coverage is exact to 1/255."""
    probe: Mapping[str, Picture]
    object: Mapping[str, Picture]
    coverage: Mapping[str, NDArray[np.uint8]]
    """Coverage × 255. Shape (y, x)."""


def with_ramps(snapshot: Snapshot) -> Snapshot:
    """The snapshot with the phase ramp of each covered object fitted: of a thick one to its slices together, and each
    has its share."""
    fitted = {
        name: replace(image, ramp=_ramp(image, snapshot.coverage[name]))
        for name, image in snapshot.object.items()
        if name in snapshot.coverage
    }
    return replace(snapshot, object={**snapshot.object, **fitted})


def _ramp(image: Image, coverage: NDArray[np.float32]) -> tuple[float, float, float]:
    slices = max(1, len(image.depths_m))
    whole = image.data[0] if slices == 1 else np.prod(image.data[:slices], axis=0)
    a, b, c = fit_ramp(whole, coverage)
    return a / slices, b / slices, c / slices


def display(snapshot: Snapshot) -> Display:
    """Reduce a snapshot to what a screen can show."""
    coverage = {name: coverage_codes(seen) for name, seen in snapshot.coverage.items()}
    return Display(
        about=replace(snapshot, probe={}, object={}),
        probe={name: probe_picture(image) for name, image in snapshot.probe.items()},
        object={name: object_picture(image, coverage.get(name)) for name, image in snapshot.object.items()},
        coverage=coverage,
    )


def coverage_codes(coverage: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Coverage (0 to 1) as bytes."""
    return np.rint(np.clip(np.nan_to_num(coverage), 0.0, 1.0) * 255).astype(np.uint8)


def visible(coverage: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which object pixels are drawn, from the coverage codes. Shape (y, x)."""
    return coverage >= np.uint8(np.ceil(VISIBLE_COVERAGE * 255))


def object_picture(image: Image, coverage: NDArray[np.uint8] | None = None) -> Picture:
    """Amplitude over its covered median, between robust limits; `coverage` codes of shape (y, x), None: all is covered."""
    amplitude = np.abs(image.data)
    covered = np.ones(amplitude.shape[-2:], bool) if coverage is None else visible(coverage)
    if not covered.any():
        covered = np.ones_like(covered)
    scale, limits = [], []
    for layer in amplitude:
        values = layer[covered]
        values = values[np.isfinite(values)]
        median = float(np.median(values)) if values.size else 1.0
        median = median if median > 0 else 1.0
        low, high = (float(v) / median for v in np.percentile(values, PERCENTILES)) if values.size else (0.0, 1.0)
        scale.append(median)
        limits.append((low, high) if high > low else (low, low + 1.0))
    return _picture(image, amplitude, scale, limits)


def probe_picture(image: Image) -> Picture:
    """Amplitude of all modes over the maximum of the strongest, so that their brightness can be compared."""
    amplitude = np.abs(image.data)
    peak = float(np.max(amplitude, where=np.isfinite(amplitude), initial=0.0)) or 1.0
    layers = len(amplitude)
    return _picture(image, amplitude, [peak] * layers, [(0.0, 1.0)] * layers)


def phase_codes(image: Image) -> NDArray[np.uint8]:
    """Phase without the image's ramp as codes, nearest. Shape (layer, y, x)."""
    a, b, c = image.ramp
    rows, columns = (np.arange(n, dtype=np.float32) for n in image.data.shape[-2:])
    removed = np.float32(a) + np.float32(b) * rows[:, None] + np.float32(c) * columns
    turns = (np.nan_to_num(np.angle(image.data)) - removed) / np.float32(2 * np.pi) + np.float32(0.5)
    codes: NDArray[np.uint8] = (np.rint(turns * PHASE_STEPS).astype(np.int64) % PHASE_STEPS).astype(np.uint8)
    return codes


def _picture(image: Image, amplitude: NDArray[np.floating], scale: list[float], limits: list[tuple[float, float]]) -> Picture:
    codes = np.empty(amplitude.shape, np.uint8)
    for layer, unit, (low, high), out in zip(amplitude, scale, limits, codes, strict=True):
        level = (np.nan_to_num(layer) / unit - low) * (255.0 / (high - low))
        out[:] = np.rint(np.clip(level, 0, 255))
    power = np.nansum(amplitude.astype(np.float64) ** 2, axis=(1, 2))
    total = float(power.sum()) or 1.0
    return Picture(
        codes,
        phase_codes(image),
        tuple(limits),
        tuple(scale),
        tuple(float(p) / total for p in power),
        image.pixel_size_m,
        image.offset,
        image.ramp,
        image.depths_m,
    )
