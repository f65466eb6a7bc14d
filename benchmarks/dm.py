"""One DM iteration against its own transforms: same library, tile and threads, in one run.

The ratio says how far the engine is from the floor that its Fourier transforms set. Medians; compare within a run only.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ptystream.engine import Context
from ptystream.engines.dm import DM
from ptystream.engines.tiles import TILE_BYTES
from ptystream.model.fft import transforms
from ptystream.reconstruction import PodTable, Reconstruction, Storage

REPEATS = 7


class Store:
    """Poisson counts in one slab."""

    limit = 65535.0

    def __init__(self, frames: int, side: int) -> None:
        self.slab_frames, self.shape, self.dtype = frames, (side, side), np.dtype("u2")
        self.mask = np.ones((side, side), np.uint8)
        self._counts = np.random.default_rng(0).poisson(30.0, (frames, side, side)).astype("u2")

    def slab(self, number: int) -> Any:
        """The only one."""
        return self._counts


def engine(frames: int, side: int, threads: int, **parameters: Any) -> DM:
    """A started engine on a raster with 75 % overlap."""
    random = np.random.default_rng(1)
    steps = int(np.ceil(np.sqrt(frames)))
    corner = np.stack(np.divmod(np.arange(frames), steps), axis=1) * (side // 8)
    probe = np.exp(-((np.indices((side, side)) - side / 2) ** 2).sum(axis=0) / (side / 5) ** 2).astype(np.complex64)
    size = int(corner.max()) + side
    made = Reconstruction(
        {"S": Storage(probe[None] * 50, None)}, {"S": Storage(np.ones((1, size, size), np.complex64), None)}, PodTable(1)
    )
    address = np.zeros((frames, 1, 6), np.int32)
    address[:, 0, 4:] = corner
    remainder = random.uniform(-0.5, 0.5, (frames, 1, 2)).astype("f4")
    slots = np.stack([np.zeros(frames, int), np.arange(frames)], axis=1)
    made.pods.append(address, remainder, np.ones((frames, 1), "f4"), slots)
    started = DM(DM.Parameters(probe_update_start=0, **parameters))
    started.start(made, {0: Store(frames, side)}, Context(threads=threads))
    started.iterate(2)
    return started


def median(work: Callable[[], Any]) -> float:
    """Seconds."""
    spent = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        spent.append(time.perf_counter() - began)
    return float(np.median(spent))


def bare(frames: int, side: int, threads: int, count: int) -> float:
    """Seconds of `count` transforms per frame in tiles that stay in cache."""
    forward, _ = transforms("scipy")
    tile = max(1, TILE_BYTES // (side * side * 8))
    buffers = [np.ones((tile, side, side), np.complex64) for _ in range(threads)]

    def work(buffer: Any) -> None:
        for _ in range(count * frames // tile // threads):
            forward(buffer)

    with ThreadPoolExecutor(threads) as pool:
        return median(lambda: list(pool.map(work, buffers)))


def main() -> None:
    """Print the table."""
    cases = (
        ("1 overlap pass, no log-likelihood", 2, {"subpix": None, "overlap_max_iterations": 1, "compute_log_likelihood": False}),
        ("1 overlap pass", 3, {"subpix": None, "overlap_max_iterations": 1}),
        ("subpix None", 3, {"subpix": None}),
        ("defaults (subpix linear)", 3, {}),
        ("subpix fourier", 3, {"subpix": "fourier"}),
    )
    print("frames  threads  case                                ms/frame-iteration  transforms alone  ratio")
    for side, frames in ((128, 400), (256, 100)):
        for threads in sorted({1, len(os.sched_getaffinity(0))}):
            for name, count, parameters in cases:
                started = engine(frames, side, threads, **parameters)
                spent, floor = median(lambda e=started: e.iterate(1)), bare(frames, side, threads, count)
                started.finish()
                ms = 1e3 / frames
                print(f"{side:4d}²   {threads:5d}   {name:38s} {spent * ms:10.3f} {floor * ms:18.3f} {spent / floor:10.2f}")


if __name__ == "__main__":
    main()
