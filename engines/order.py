"""The order in which frames are visited: random, and the same however they arrived.

Each frame draws a number from (seed, purpose, iteration) and from what it is: its scan and the number that its source gave
it. So a frame's number depends on no other frame and not on its place, which refinement may change; a share of the frames, or
those that are there so far, are visited in the order in which the whole scan would be.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ptystream.chance import uniform
from ptystream.reconstruction import PodTable


def random_order(table: PodTable, rows: NDArray[np.int64], seed: int, purpose: str, iteration: int) -> NDArray[np.int64]:
    """`rows` of the pod table in random order."""
    rows = np.sort(rows)
    drawn = np.zeros(len(rows))
    scans = table.frame[rows, 0]
    for scan in np.unique(scans):
        own = scans == scan
        drawn[own] = uniform(seed, purpose, iteration, int(scan), table.index[rows[own]], 1)[:, 0, 0]
    return rows[np.argsort(drawn, kind="stable")]
