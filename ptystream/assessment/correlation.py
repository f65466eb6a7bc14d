"""The Fourier ring correlation of two halves, as a figure of a snapshot's quality."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ptystream.quality import align, crop_to_cover, fourier_ring_correlation
from ptystream.reconstruction import Storage

LARGEST = 1024
"""Pixels on a side of the part that is compared, at most: more would take seconds and tell the same."""
SMALLEST = 24
"""Fewer make too few rings to tell anything."""


def correlate(first: tuple[Storage, Storage], second: tuple[Storage, Storage]) -> dict[str, Any]:
    """`frequency_per_m`, `correlation`, `threshold` and `resolution_m` of two (object, illumination) pairs, from their first
    layers, of a stack all its slices together; {} where no square of `SMALLEST` pixels is covered in both.

    The resolution is half a period: a pixel, where it is that of the Nyquist frequency.
    """
    (one, one_seen), (other, other_seen) = first, second
    low = np.maximum(one.offset, other.offset)
    high = np.minimum(np.add(one.offset, one.shape), np.add(other.offset, other.shape))
    if (high <= low).any():
        return {}
    mine, its = (tuple(slice(*pair) for pair in zip(low - s.offset, high - s.offset, strict=True)) for s in (one, other))
    seen = np.minimum(np.abs(one_seen.data[0][mine]), np.abs(other_seen.data[0][its]))
    crop = crop_to_cover(seen, LARGEST)
    if seen[crop].shape[0] < SMALLEST:
        return {}
    a, b, weight = one.through()[mine][crop], other.through()[its][crop], seen[crop]
    if not (np.isfinite(a).all() and np.isfinite(b).all() and np.any(a) and np.any(b)):
        return {}
    made = align(a, b, weight)
    rings = fourier_ring_correlation(made.first, made.second)
    pixel = max(one.pixel_size_m or (1.0, 1.0))
    return {
        "frequency_per_m": (rings.frequency / (2 * pixel)).tolist(),
        "correlation": rings.correlation.tolist(),
        "threshold": rings.threshold.tolist(),
        "resolution_m": None if math.isinf(rings.resolution) else pixel / rings.resolution,
    }
