"""What moves that should not: the probe away from where it began, and the positions under refinement."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.reconstruction import Storage


def middle(probe: NDArray[np.complexfloating[Any, Any]]) -> NDArray[np.float64]:
    """Centre of mass (y, x) of the power of a probe (layer, y, x), pixels; NaN where it has none."""
    power = (np.abs(probe.astype(np.complex128)) ** 2).sum(axis=0)
    total = power.sum()
    if not (np.isfinite(total) and total > 0):
        return np.full(2, np.nan)
    return np.array([(power.sum(axis=1 - axis) * np.arange(power.shape[axis])).sum() / total for axis in (0, 1)])


def drift(began: Storage, now: Storage, moved: NDArray[np.float64] | None, index: NDArray[np.int64]) -> dict[str, Any]:
    """`probe_m`: where the probe's centre of mass is, seen from where it began. And of what refinement `moved` the frames of
    these indices by, (frame, 2) metres: `positions_m`, the mean, `rms_m` about zero, and `trend_m`, how far the straight line
    through all of them goes from the first frame to the last. None: they are not refined."""
    found: dict[str, Any] = {}
    pixel = now.pixel_size_m or (1.0, 1.0)
    away = (middle(now.mean_over_frames()) - middle(began.mean_over_frames())) * pixel
    if np.isfinite(away).all():
        found["probe_m"] = away.tolist()
    if moved is not None and len(moved):
        found["positions_m"] = moved.mean(axis=0).tolist()
        found["rms_m"] = float(np.sqrt((moved**2).sum(axis=1).mean()))
        spread = index - index.mean()
        if np.any(spread):
            slope = spread @ moved / (spread @ spread)
            found["trend_m"] = (slope * float(np.ptp(index))).tolist()
    return found
