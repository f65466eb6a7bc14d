"""One DM iteration against its own transforms: same library, tile and threads, in one run.

The ratio says how far the engine is from the floor that its Fourier transforms set; the second floor is memory: waves read
twice and written once, and counts, at the bandwidth of a plain copy. Medians; compare within a run only. With `--peers` also
pty-chi's difference map on the same problem, from an environment of its own that is made on the first call (1.6 GB).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ptystream.engine import Context
from ptystream.engines.dm import DM
from ptystream.engines.tiles import TILE_BYTES
from ptystream.model.fft import transforms
from ptystream.reconstruction import PodTable, Reconstruction, Storage

REPEATS = 7
SIZES = ((128, 400), (256, 100))
HERE = Path(__file__).parent
PEERS = HERE / ".venv-peers"
PEER_PACKAGES = ("ptychi==2.2.0", "torch==2.13.0")


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


def places(frames: int, side: int) -> tuple[Any, Any]:
    """(corners of a raster with steps of an eighth of a frame (frame, 2), probe (y, x))."""
    steps = int(np.ceil(np.sqrt(frames)))
    corner = np.stack(np.divmod(np.arange(frames), steps), axis=1) * (side // 8)
    probe = 50 * np.exp(-((np.indices((side, side)) - side / 2) ** 2).sum(axis=0) / (side / 5) ** 2)
    noise = np.random.default_rng(2).normal(size=(2, side, side))  # as in every measured probe; no denormal numbers far out
    return corner, (probe + 0.05 * (noise[0] + 1j * noise[1])).astype(np.complex64)


def engine(frames: int, side: int, threads: int, rows: int | None = None, **parameters: Any) -> DM:
    """A started engine; with `rows` it has these first frames alone."""
    corner, probe = places(frames, side)
    size = int(corner.max()) + side
    made = Reconstruction(
        {"S": Storage(probe[None], None)}, {"S": Storage(np.ones((1, size, size), np.complex64), None)}, PodTable(1)
    )
    address = np.zeros((frames, 1, 6), np.int32)
    address[:, 0, 4:] = corner
    remainder = np.random.default_rng(1).uniform(-0.5, 0.5, (frames, 1, 2)).astype("f4")
    slots = np.stack([np.zeros(frames, int), np.arange(frames)], axis=1)
    first = slice(0, rows)
    made.pods.append(address[first], remainder[first], np.ones((frames, 1), "f4")[first], slots[first])
    started = DM(DM.Parameters(probe_update_start=0, **parameters))
    started.start(made, {0: Store(frames, side)}, Context(threads=threads))
    started.iterate(2)
    if rows is not None:
        made.pods.append(address[rows:], remainder[rows:], np.ones((frames - rows, 1), "f4"), slots[rows:])
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


def copying(threads: int) -> float:
    """Bytes per second read and written by a plain copy of arrays that fit no cache."""
    pairs = [(np.ones(1 << 26, np.uint8), np.ones(1 << 26, np.uint8)) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        spent = median(lambda: list(pool.map(lambda pair: np.copyto(*pair), pairs)))
    return threads * 2 * (1 << 26) / spent


def extending(frames: int, side: int, threads: int) -> float:
    """Taking in half of the frames, as a share of one iteration over as many; defaults."""
    shares = []
    for _ in range(REPEATS):
        started = engine(frames, side, threads, rows=frames // 2)
        half = median(lambda e=started: e.iterate(1))
        began = time.perf_counter()
        started.extend(np.arange(frames // 2, frames))
        shares.append((time.perf_counter() - began) / half)
        started.finish()
    return float(np.median(shares))


def peers() -> Path:
    """The interpreter of the peers' environment, made where it is missing."""
    python = PEERS / "bin" / "python"
    if not python.exists():
        print(f"making {PEERS} with {', '.join(PEER_PACKAGES)}", flush=True)
        venv.create(PEERS, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PEER_PACKAGES], check=True)
    return python


def ptychi(frames: int, side: int, threads: int) -> dict[str, float]:
    """Milliseconds per frame and iteration of pty-chi's DM, by what was varied."""
    corner, probe = places(frames, side)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "problem.npz"
        np.savez(file, counts=Store(frames, side).slab(0), probe=probe, corner=corner, size=corner.max(axis=0) + side)
        command = [peers(), HERE / "peers" / "ptychi_dm.py", file, str(threads), "5"]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    held: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return held


def main(arguments: tuple[str, ...] = ()) -> None:
    """Print the table."""
    cases = (
        ("1 overlap pass, no log-likelihood", 2, {"subpix": None, "overlap_max_iterations": 1, "compute_log_likelihood": False}),
        ("1 overlap pass", 3, {"subpix": None, "overlap_max_iterations": 1}),
        ("subpix None", 3, {"subpix": None}),
        ("defaults (subpix linear)", 3, {}),
        ("subpix fourier", 3, {"subpix": "fourier"}),
    )
    all_threads = sorted({1, len(os.sched_getaffinity(0))})
    print("frames  threads  case                          ms/frame-iteration  transforms  ratio  memory floor")
    best: dict[int, float] = {}
    for side, frames in SIZES:
        for threads in all_threads:
            moved = side * side * (3 * 8 + 2) * 1e3 / copying(threads)
            for name, count, parameters in cases:
                started = engine(frames, side, threads, **parameters)
                spent, floor = median(lambda e=started: e.iterate(1)), bare(frames, side, threads, count)
                started.finish()
                ms = 1e3 / frames
                best[side] = min(best.get(side, np.inf), spent * ms)
                row = f"{side:4d}²   {threads:5d}   {name:34s} {spent * ms:13.3f} {floor * ms:11.3f} {spent / floor:6.2f}"
                print(f"{row} {moved:13.3f}", flush=True)
            print(
                f"{side:4d}²   {threads:5d}   taking frames in: {extending(frames, side, threads):.0%} of an iteration over them"
            )
    if "--peers" not in arguments:
        print("pty-chi beside it: benchmarks/dm.py --peers")
        return
    for side, frames in SIZES:
        print(f"{side:4d}²   pty-chi's DM, {all_threads[-1]} threads, against our 1 overlap pass without log-likelihood")
        for name, ms in ptychi(frames, side, all_threads[-1]).items():
            print(f"          patches {name:28s} {ms:8.3f} ms/frame-iteration, {ms / best[side]:6.1f} x ours", flush=True)


if __name__ == "__main__":
    main(tuple(sys.argv[1:]))
