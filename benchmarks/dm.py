"""One DM iteration against its own transforms: same library, tile and threads, in one run.

The ratio says how far the engine is from the floor that its Fourier transforms set; the second floor is memory: waves read
twice and written once, and counts, at the bandwidth of a plain copy. Medians; compare within a run only. Then pty-chi's
difference map on the same problem, in an environment of its own that `--peers` makes (1.6 GB with a CPU build of torch).
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
REACH = 2.5
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


def timed(work: Callable[[], Any]) -> list[float]:
    """Seconds of each repeat."""
    spent = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        spent.append(time.perf_counter() - began)
    return spent


def median(work: Callable[[], Any]) -> float:
    """Seconds."""
    return float(np.median(timed(work)))


def bare(frames: int, side: int, threads: int, count: int) -> float:
    """Seconds of `count` transforms per frame in tiles that stay in cache."""
    forward, _ = transforms("scipy")
    tile = max(1, TILE_BYTES // (side * side * 8))
    buffers = [np.ones((tile, side, side), np.complex64) for _ in range(threads)]
    rounds = max(1, count * frames // tile // threads)

    def work(buffer: Any) -> None:
        for _ in range(rounds):
            forward(buffer)

    with ThreadPoolExecutor(threads) as pool:
        return median(lambda: list(pool.map(work, buffers))) * count * frames / (rounds * tile * threads)


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


def resting(threads: int, visited: int = 100) -> None:
    """Print what a pass over some of the frames costs, as `live.latency` makes them, while a scan grows."""
    for frames in (400, 1600, 4000):
        started = engine(frames, 128, threads)
        started.iterate(1)
        spent = median(lambda e=started: e.iterate(1, np.arange(visited)))  # type: ignore[misc]
        whole = median(lambda e=started: e.iterate(1))  # type: ignore[misc]
        started.finish()
        print(f" 128²   {threads:5d}   {visited} of {frames} frames: {1e3 * spent:.0f} ms, all {1e3 * whole:.0f} ms", flush=True)


def peers(make: bool) -> Path | None:
    """The interpreter of the peers' environment; None where it is not there and not to be made, or cannot be."""
    python, done = PEERS / "bin" / "python", PEERS / "packages"
    wanted = "\n".join(PEER_PACKAGES)
    if done.exists() and done.read_text() == wanted:
        return python
    if not make:
        print("pty-chi is not beside it: there is no environment for it; `make bench-peers` makes one")
        return None
    print(f"making {PEERS} with {', '.join(PEER_PACKAGES)}", flush=True)
    venv.create(PEERS, with_pip=True)
    if subprocess.run([python, "-m", "pip", "install", "--quiet", *PEER_PACKAGES]).returncode:
        print("pty-chi is not beside it: it could not be installed (see above)")
        return None
    done.write_text(wanted)
    return python


def ptychi(python: Path, frames: int, side: int, threads: int) -> dict[str, Any]:
    """What `peers/ptychi_dm.py` found on our problem. Raises `RuntimeError` with what it said."""
    corner, probe = places(frames, side)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "problem.npz"
        np.savez(file, counts=Store(frames, side).slab(0), probe=probe, corner=corner, size=corner.max(axis=0) + side)
        command = [python, HERE / "peers" / "ptychi_dm.py", file, str(threads), str(REPEATS)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"pty-chi's environment {PEERS}: {done.stderr.strip()[-500:]}")
    held: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return held


def beside(python: Path, frames: int, side: int, threads: int) -> None:
    """Print pty-chi's iterations as multiples of ours: 1 overlap pass, no log-likelihood, which is what its DM does.

    Ours is measured before and after, since what else the machine does changes in between. The corners are whole pixels, so
    every way to interpolate gives the same waves: the ratio is to our `subpix: None`, then to ours interpolated the same way.
    """
    ways = {None: "whole pixels", "linear": "linear", "fourier": "fourier"}
    engines = {
        way: engine(frames, side, threads, subpix=way, overlap_max_iterations=1, compute_log_likelihood=False) for way in ways
    }
    spent = {way: timed(lambda e=made: e.iterate(1)) for way, made in engines.items()}
    theirs = ptychi(python, frames, side, threads)
    for way, made in engines.items():
        spent[way] += timed(lambda e=made: e.iterate(1))
        made.finish()
    ours = {way: (1e3 * float(np.median(s)) / frames, 1e3 * min(s) / frames) for way, s in spent.items()}
    versions = ", ".join(f"{name} {number}" for name, number in theirs["versions"].items())
    print(f"{side:4d}², {frames} frames, {threads} threads, {versions}; ms/frame-iteration: median (fastest)")
    for way, (usual, fastest) in ours.items():
        print(f"  ours, subpix {way!s:8s}                {usual:8.3f} ({fastest:.3f})")
    for row in theirs["rows"]:
        usual, fastest = row["median"], row["fastest"]
        same = ours["linear" if row["shift"] == "bilinear" else "fourier"]
        told = f"{usual:8.3f} ({fastest:.3f}): {usual / ours[None][0]:5.1f} ({fastest / ours[None][1]:.1f}) x ours"
        print(f"  pty-chi, {row['shift']:8s} {row['options']:16s} {told}, {usual / same[0]:5.1f} x ours interpolated", flush=True)


def main(*arguments: str) -> int:
    """Print the tables; 1 where an iteration of one overlap pass is more than `REACH` times its transforms."""
    refining = {"start": 0, "amplitude": 2.0, "max_shift": 4.0, "amplitude_decay": False}
    cases = (
        ("1 overlap pass, no log-likelihood", 2, {"subpix": None, "overlap_max_iterations": 1, "compute_log_likelihood": False}),
        ("1 overlap pass", 3, {"subpix": None, "overlap_max_iterations": 1}),
        ("subpix None", 3, {"subpix": None}),
        ("defaults (subpix linear)", 3, {}),
        ("subpix fourier", 3, {"subpix": "fourier"}),
        ("defaults, refining, 4 shifts", 8, {"position_refinement": refining}),
    )
    cores = len(os.sched_getaffinity(0))
    missed = False
    print(f"ms per frame and iteration; one overlap pass on all cores should be at most {REACH} x its transforms")
    print("side  threads  case                                      ms  transforms  ratio  memory floor")
    for side, frames in SIZES:
        for threads in sorted({1, cores}):
            moved = side * side * (3 * 8 + 2) * 1e3 / copying(threads)
            for name, count, parameters in cases:
                started = engine(frames, side, threads, **parameters)
                spent, floor = (
                    1e3 / frames * s for s in (median(lambda e=started: e.iterate(1)), bare(frames, side, threads, count))
                )
                started.finish()
                missed |= threads == cores and "1 overlap pass" in name and spent / floor > REACH
                print(
                    f"{side:4d}²   {threads:5d}   {name:34s} {spent:9.3f} {floor:11.3f} {spent / floor:6.2f} {moved:13.3f}",
                    flush=True,
                )
            share = extending(frames, side, threads)
            print(f"{side:4d}²   {threads:5d}   taking frames in: {share:.0%} of an iteration over them", flush=True)
    resting(cores)
    python = peers("--peers" in arguments)
    if python is not None:
        for side, frames in SIZES:
            beside(python, frames, side, cores)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
