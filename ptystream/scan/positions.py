"""Scan patterns: where the beam is meant to go, (y, x) in metres. Pure functions; shape (frame, 2)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

GOLDEN_ANGLE = math.pi * (3.0 - math.sqrt(5.0))
"""Radians between neighbours of a Fermat spiral."""


def round_scan(spacing: float, shells: int) -> NDArray[np.float64]:
    """Concentric shells around (0, 0): radius i * spacing with 5 i equidistant points, i = 1 … `shells`, and the
    centre."""
    _positive(spacing=spacing, shells=shells)
    parts = [np.zeros((1, 2))]
    for i in range(1, shells + 1):
        angle = 2.0 * np.pi * np.arange(5 * i) / (5 * i)
        parts.append(i * spacing * np.stack([np.sin(angle), np.cos(angle)], axis=1))
    return np.concatenate(parts)


def spiral_scan(spacing: float, extent: float) -> NDArray[np.float64]:
    """Archimedean spiral, r = spacing θ / 2π at θ = √(4πk), out to a diameter of `extent`: about one point per
    spacing²."""
    _positive(spacing=spacing, extent=extent)
    count = int((math.pi * extent / spacing) ** 2 / (4.0 * math.pi)) + 2
    theta = np.sqrt(4.0 * np.pi * np.arange(count))
    radius = spacing * theta / (2.0 * np.pi)
    points = radius[:, None] * np.stack([np.sin(theta), np.cos(theta)], axis=1)
    inside: NDArray[np.float64] = points[radius <= extent / 2.0]
    return inside


def raster_scan(steps: tuple[int, int], spacing: tuple[float, float], *, snake: bool = False) -> NDArray[np.float64]:
    """Rows × columns from (0, 0) upwards, row after row; `snake` turns every second row round."""
    _positive(rows=steps[0], columns=steps[1], spacing_y=spacing[0], spacing_x=spacing[1])
    row, column = np.divmod(np.arange(steps[0] * steps[1]), steps[1])
    if snake:
        column = np.where(row % 2, steps[1] - 1 - column, column)
    return np.stack([row * spacing[0], column * spacing[1]], axis=1).astype(np.float64)


def fermat_scan(spacing: float, count: int) -> NDArray[np.float64]:
    """Fermat spiral of `count` points, r = spacing √(k/π), golden angle between neighbours: one point per spacing².

    Huang et al., Opt. Express 22, 12634 (2014).
    """
    _positive(spacing=spacing, count=count)
    k = np.arange(count)
    radius = spacing * np.sqrt(k / np.pi)
    angle = k * GOLDEN_ANGLE
    points: NDArray[np.float64] = radius[:, None] * np.stack([np.sin(angle), np.cos(angle)], axis=1)
    return points


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0 or not math.isfinite(value):
            raise ValueError(f"{name}: {value!r}: must be a positive number")
