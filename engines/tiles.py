"""Tiles: a few frames whose waves stay in a core's cache while a sweep works on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ptystream.reconstruction import OBJECT, PROBE, PodTable
from ptystream.scan.block import FrameStore

PARTIAL_SUMS = 4
"""Tiles belong to this many sums, reduced in this order: the number of threads changes the time and not the bits."""
TILE_BYTES = 1 << 19
"""Waves of a tile: with the transform's copy they share a core's cache."""

T = TypeVar("T")


@dataclass(slots=True)
class Tile:
    """Frames of one slab that see the same storages."""

    rows: NDArray[np.int64]
    """Rows of the pod table. Shape (frame,)."""
    waves: Any
    """Exit waves, zero frequency irrelevant: real space. Shape (pod, frame, y, x), complex."""
    slab: Any
    """The slab that holds the counts, (frame of the slab, y, x)."""
    in_slab: NDArray[np.int64]
    """Frame of the slab for each row. Shape (frame,)."""
    scan: int
    probe: tuple[int, ...]
    """Probe number of each pod."""
    object: tuple[int, ...]
    """Object number of each pod."""

    def __len__(self) -> int:
        return len(self.rows)


def cut(
    pods: PodTable,
    rows: NDArray[np.int64],
    frames: dict[int, FrameStore],
    shape: tuple[int, int],
    dtype: np.dtype[Any],
) -> list[Tile]:
    """Group rows into tiles, in order: a tile ends where the slab or a storage changes, or when it is full."""
    size = max(1, TILE_BYTES // (pods.pods * shape[0] * shape[1] * dtype.itemsize))
    tiles = []
    start = 0
    keys = [_key(pods, int(row), frames) for row in rows]
    for stop in range(1, len(rows) + 1):
        if stop < len(rows) and stop - start < size and keys[stop] == keys[start]:
            continue
        scan, slab, probe, obj = keys[start]
        chosen = rows[start:stop]
        store = frames[scan]
        tiles.append(
            Tile(
                chosen,
                np.empty((pods.pods, len(chosen), *shape), dtype),
                store.slab(slab),
                pods.frame[chosen, 1] % store.slab_frames,
                scan,
                probe,
                obj,
            )
        )
        start = stop
    return tiles


def _key(pods: PodTable, row: int, frames: dict[int, FrameStore]) -> tuple[int, int, tuple[int, ...], tuple[int, ...]]:
    scan, slot = (int(v) for v in pods.frame[row])
    address = pods.address[row]
    return scan, slot // frames[scan].slab_frames, tuple(address[:, PROBE].tolist()), tuple(address[:, OBJECT].tolist())


class Sweeper:
    """Runs one function over all tiles on the tile pipeline's threads."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, "tiles") if threads > 1 else None

    def sweep(self, tiles: Sequence[Tile], work: Callable[[int, Sequence[tuple[int, Tile]]], T]) -> list[T]:
        """Call work(partial sum, [(number, tile), …]) once per partial sum; results in the order of the sums."""
        numbered = list(enumerate(tiles))
        return self.run(work, [numbered[part::PARTIAL_SUMS] for part in range(PARTIAL_SUMS)])

    def run(self, work: Callable[[int, Any], T], shares: Sequence[Any]) -> list[T]:
        """Call work(partial sum, its share) for each share; results in the order of the sums."""
        if self._pool is None:
            return [work(part, share) for part, share in enumerate(shares)]
        return list(self._pool.map(work, range(len(shares)), shares))

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()
