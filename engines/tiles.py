"""Tiles: frames of one slab with their waves, and the threads that sweep over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ptystream.reconstruction import COLUMN, OBJECT, OBJECT_LAYER, PROBE, PROBE_LAYER, ROW, PodTable
from ptystream.scan.block import FrameStore

TILE_BYTES = 1 << 19
"""Waves of a tile on a CPU: with the transform's copy they share a core's cache."""
PARTIAL_SUMS = 4
"""Sums that tiles belong to on a CPU: as many threads find work in them."""

T = TypeVar("T")


@dataclass(slots=True)
class Pod:
    """What one pod of a tile sees; arrays live on the engine's device.

    Of a volume a frame sees slices one after the other: each is a view of its own, and `frame` below means view.
    """

    probe: int
    """Number of the probe."""
    object: int
    """Number of the object."""
    object_layer: int
    layer: Any
    """Layer of the probe for each frame. Shape (frame,), int64."""
    corner: Any
    """Lattice coordinates of each frame's first object pixel. Shape (frame, 2), int64."""
    remainder: Any
    """Sub-pixel part of the corner. Shape (frame, 2), real."""
    weight: Any
    """Factor on the model amplitude. Shape (frame,), real."""
    slice: Any = None
    """Lattice coordinate r3 of each view, where the object is a volume. Shape (view,), int64."""


@dataclass(slots=True)
class Tile:
    """Frames of one slab that see the same storages."""

    rows: NDArray[np.int64]
    """Rows of the pod table. Shape (frame,)."""
    scan: int
    number: int
    """Number of the slab in the scan."""
    waves: Any
    """Exit waves. Shape (pod, frame, y, x), complex, of volumes (pod, frame · slice, y, x); None where they are no state."""
    counts: Any
    """Where the counts are: the slab itself, or the tile's frames on the device. Shape (frame of it, y, x)."""
    row: Any
    """Frame of `counts` for each row of the tile. Shape (frame,), int64."""
    index: Any
    """`rows` on the device."""
    counting: Any
    """0, 1, 2, … on the device, one for each wave of a pod. Int64."""
    pods: list[Pod]

    def __len__(self) -> int:
        return len(self.rows)


Key = tuple[int, int, tuple[tuple[int, ...], ...]]
"""(scan, slab, ((probe, object, object layer) of each pod))."""


def key_of(table: PodTable, row: int, frames: Mapping[int, FrameStore]) -> Key:
    """What the frames of a tile have in common."""
    scan, slot = (int(v) for v in table.frame[row])
    seen = table.address[row][:, [PROBE, OBJECT, OBJECT_LAYER]]
    return scan, slot // frames[scan].slab_frames, tuple(tuple(pod) for pod in seen.tolist() if pod[0] >= 0)


def runs(
    table: PodTable, rows: NDArray[np.int64], frames: Mapping[int, FrameStore], size: int
) -> list[tuple[Key, NDArray[np.int64]]]:
    """Rows in order, cut where their key changes and after `size` of them."""
    keys = [key_of(table, int(row), frames) for row in rows]
    found, start = [], 0
    for stop in range(1, len(rows) + 1):
        if stop == len(rows) or stop - start == size or keys[stop] != keys[start]:
            found.append((keys[start], rows[start:stop]))
            start = stop
    return found


def pods_of(
    table: PodTable, rows: NDArray[np.int64], real: np.dtype[Any], put: Callable[[Any], Any], slices: int = 1
) -> list[Pod]:
    """The pods of rows that form a tile; `slices`: of the probe, where it is a volume."""
    pods = []
    step = np.tile(np.arange(slices), len(rows))
    rows = np.repeat(rows, slices)
    for k in range(table.pods):
        address = table.address[rows, k]
        probe, obj, layer = (int(v) for v in address[0, [PROBE, OBJECT, OBJECT_LAYER]])
        if probe < 0:
            break
        pods.append(
            Pod(
                probe,
                obj,
                layer,
                put(address[:, PROBE_LAYER].astype(np.int64) + step),
                put(np.ascontiguousarray(address[:, ROW : COLUMN + 1], np.int64)),
                put(table.remainder[rows, k].astype(real)),
                put(table.weight[rows, k].astype(real)),
                put(table.depth[rows] + step),
            )
        )
    return pods


def part_of(tile: Tile, places: Sequence[int], put: Callable[[Any], Any]) -> Tile:
    """Some frames of a tile as a tile of their own; waves of a single frame are a view of the tile's, of several a copy."""
    first = places[0]
    one = slice(first, first + 1)
    chosen = one if len(places) == 1 else put(np.asarray(places))
    pods = [
        Pod(p.probe, p.object, p.object_layer, p.layer[chosen], p.corner[chosen], p.remainder[chosen], p.weight[chosen])
        for p in tile.pods
    ]
    waves = tile.waves
    if waves is not None:  # a plain index of several would leave strides behind
        waves = waves[:, one] if len(places) == 1 else waves.take(chosen, axis=1)
    rows = tile.rows[one if len(places) == 1 else np.asarray(places)]
    index, counting = tile.index[chosen], tile.counting[: len(places)]
    return Tile(rows, tile.scan, tile.number, waves, tile.counts, tile.row[chosen], index, counting, pods)


class Sweeper:
    """Runs one function over all tiles on a few threads.

    Tiles belong to a fixed number of partial sums, reduced in this order: the number of threads changes the time and not
    the bits.
    """

    def __init__(self, threads: int, partial_sums: int) -> None:
        self.partial_sums = partial_sums
        self._pool = ThreadPoolExecutor(threads, "tiles") if threads > 1 else None

    def sweep(self, items: Sequence[Any], work: Callable[[int, Sequence[Any]], T]) -> list[T]:
        """Call work(partial sum, its share of the items) once per partial sum; results in the order of the sums."""
        shares = [items[part :: self.partial_sums] for part in range(self.partial_sums)]
        if self._pool is None or len(items) == 1:
            return [work(part, share) for part, share in enumerate(shares)]
        return list(self._pool.map(work, range(self.partial_sums), shares))

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()
