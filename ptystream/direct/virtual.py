"""Virtual detectors: sums over rings of a pattern."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def annulus(
    frequency: tuple[NDArray[np.float64], NDArray[np.float64]], inner: float, outer: float, centre: tuple[float, float] = (0, 0)
) -> NDArray[np.float64]:
    """1 where inner <= |q - centre| < outer. Shape (y, x). Raises `ValueError` for a ring that holds no pixel."""
    radius = np.hypot(frequency[0] - centre[0], frequency[1] - centre[1])
    ring = ((radius >= inner) & (radius < outer)).astype(float)
    if not ring.any():
        raise ValueError(f"detector: no pixel between {inner:g} and {outer:g}; patterns reach to {radius.max():g}")
    return ring


def signal(frames: Any, detector: NDArray[np.float64], valid: Any = None) -> NDArray[np.float64]:
    """Σ detector × pattern of each frame, (frame,); where pixels are not `valid`, scaled up by what they would have weighed."""
    seen = np.tensordot(np.asarray(frames, float) * (1 if valid is None else valid), detector, axes=((1, 2), (0, 1)))
    if valid is None:
        return np.asarray(seen)
    share = np.tensordot(np.broadcast_to(valid, np.shape(frames)), detector, axes=((1, 2), (0, 1))) / detector.sum()
    return np.asarray(np.divide(seen, share, out=np.zeros_like(seen), where=share > 0))
