"""The order in which frames are visited: random, and the same however they arrived.

Each frame draws a number from (seed, purpose, iteration) and from what it is: its scan and the number that its source gave
it. So a frame's number depends on no other frame and not on its place, which refinement may change; a share of the frames, or
those that are there so far, are visited in the order in which the whole scan would be. The mixing is the finaliser of
SplitMix64: Steele, Lea & Flood, OOPSLA 2014.
"""

from __future__ import annotations

from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from ptystream.reconstruction import PodTable


def random_order(table: PodTable, rows: NDArray[np.int64], seed: int, purpose: str, iteration: int) -> NDArray[np.int64]:
    """`rows` of the pod table in random order."""
    if not len(rows):
        return rows
    rows = np.sort(rows)
    key = np.zeros(1, np.uint64)
    for part in (seed, crc32(purpose.encode()), iteration):
        key = _mixed(key, np.uint64(part & 0xFFFFFFFFFFFFFFFF))
    drawn = np.full(len(rows), key)
    for column in (table.frame[rows, 0], table.index[rows]):
        drawn = _mixed(drawn, column.astype(np.uint64))
    return rows[np.argsort(drawn, kind="stable")]


def _mixed(state: NDArray[np.uint64], value: np.uint64 | NDArray[np.uint64]) -> NDArray[np.uint64]:
    """64 bits that depend on all bits of both."""
    z: NDArray[np.uint64] = (state ^ value) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
