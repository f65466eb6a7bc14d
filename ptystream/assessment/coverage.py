"""Where frames were taken: do neighbours overlap, and is anything left out?"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import ConvexHull, QhullError, cKDTree

TOO_LITTLE = 0.1
"""Share of the median illumination inside the hull below which a pixel saw too little."""
SOME = 20000
"""Positions whose nearest neighbour is looked for, at most: the median needs no more."""


def diameter(power: NDArray[np.float64]) -> float:
    """Pixels: diameter of the uniform disc that has half of its power within the same circle as this beam.

    Half, because what lies far out in a reconstructed probe is noise; about the centre of mass. A Gaussian has √2 of its FWHM.
    """
    total = float(power.sum())
    if not total > 0:
        return 0.0
    y, x = np.ogrid[: power.shape[0], : power.shape[1]]
    middle = float((power * y).sum()) / total, float((power * x).sum()) / total
    squares = ((y - middle[0]) ** 2 + (x - middle[1]) ** 2).ravel()
    order = np.argsort(squares)
    inside = np.cumsum(power.ravel()[order])
    place = int(np.searchsorted(inside, 0.5 * total))
    # The circle's area is the number of pixels inside it, without the steps that radii on a lattice have.
    return float(2 * np.sqrt(2 * (place + 0.5) / np.pi))


def coverage(
    positions: NDArray[np.float64],
    corner: tuple[int, int],
    seen: NDArray[np.floating[Any]],
    beam: float,
) -> dict[str, Any]:
    """`overlap`, `holes` and `frames_per_beam`: of positions (frame, 2) and an illumination (y, x) whose first pixel is `corner`,
    both on the lattice, and a beam of so many pixels. {} where frames are too few, or lie on a line: nothing is between them.

    Overlap: 1 - step / beam, the step being the median distance to the nearest other position; at least 0. Holes: share of the
    hull of the positions that saw less than `TOO_LITTLE` of the median there. Frames per beam: so many for the area of one beam.
    """
    places = np.unique(positions, axis=0)
    if len(places) < 4 or beam <= 0:
        return {}
    try:
        hull = ConvexHull(places)
    except QhullError:
        return {}
    some = places[:: -(-len(places) // SOME)]
    step = float(np.median(cKDTree(places).query(some, k=2)[0][:, 1]))
    inside = seen[within(places[hull.vertices] - corner, (seen.shape[0], seen.shape[1]))]
    dark = float(np.mean(inside < TOO_LITTLE * np.median(inside))) if inside.size and np.median(inside) > 0 else 0.0
    return {
        "overlap": max(0.0, 1 - step / beam),
        "holes": dark,
        "frames_per_beam": len(positions) * np.pi / 4 * beam**2 / float(hull.volume),
    }


def within(corners: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels of an image inside a convex polygon, whose corners (corner, 2) are in order. Row by row: a row is one stretch."""
    rows = np.arange(shape[0])
    left, right = np.full(len(rows), np.inf), np.full(len(rows), -np.inf)
    for (y, x), (y2, x2) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        low, high = min(y, y2), max(y, y2)
        crossed = (rows >= low) & (rows <= high)
        if not crossed.any():
            continue
        at = np.full(int(crossed.sum()), x) if high == low else x + (rows[crossed] - y) * (x2 - x) / (y2 - y)
        left[crossed] = np.minimum(left[crossed], np.minimum(at, x2) if high == low else at)
        right[crossed] = np.maximum(right[crossed], np.maximum(at, x2) if high == low else at)
    columns = np.arange(shape[1])
    return np.asarray((columns >= left[:, None]) & (columns <= right[:, None]))
