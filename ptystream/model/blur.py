"""How wide a Gaussian blur is worth computing: memory and time grow with its width, and what it does ends at a flat picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FLAT = 4.0
"""Standard deviation in units of an axis from which on a blur that keeps the light inside leaves nothing but the mean: the
slowest cosine on that axis passes with exp(-(π · 4)² / 2), 1e-34, less than what a filter cuts off at its own ends."""


def widths(sigma: float | Sequence[float], shape: Sequence[int]) -> tuple[float, ...]:
    """The standard deviations that a blur of pictures of `shape` is computed with: none beyond the flat."""
    return tuple(min(float(s), FLAT * n) for s, n in zip(np.broadcast_to(np.asarray(sigma), len(shape)), shape, strict=True))
