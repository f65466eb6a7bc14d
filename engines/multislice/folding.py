"""Corrections of positions as part of the pod table, where all others read them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.reconstruction import COLUMN, PROBE, ROW, PodTable, Stack, nearest


def fold(pods: PodTable, stack: Stack, places: NDArray[np.float64], moved: NDArray[Any], shape: tuple[int, int]) -> None:
    """What frames see, views of this `shape`, begins at `places` (row, 2), lattice pixels (y, x), which are `moved` (row, 2)
    pixels from where it began, and the object has room for it."""
    present = np.flatnonzero(pods.address[:, 0, PROBE] >= 0)
    corner, rest = nearest(places[present])
    pods.address[present, :, ROW : COLUMN + 1] = corner[:, None].astype(np.int32)
    pods.remainder[present] = rest[:, None]
    pods.moved[present] += moved[present] * np.asarray(stack.pixel_size_m or (1.0, 1.0))
    if len(present):
        low, high = corner.min(axis=0).astype(int), corner.max(axis=0).astype(int) + np.asarray(shape)
        stack.grow((int(low[0]), int(low[1])), (int(high[0]), int(high[1])), margin=1)
