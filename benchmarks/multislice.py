"""A pass of the multislice engine (one loss and gradient over all patterns), against its own transforms run alone.

The transforms of a pass are counted as they are called, and then run alone: as many, of the same shapes, on as many threads, in
turn with passes, so that what else the machine does enters both alike. Ratios are medians over the pairs.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from ptystream.engine import Context
from ptystream.engines.backend import Backend, cpu
from ptystream.engines.multislice.detector import Detector
from ptystream.engines.multislice.journey import View, Wanted
from ptystream.engines.multislice.objective import Batch, Objective
from ptystream.engines.multislice.optics import Optics
from ptystream.engines.tiles import TILE_BYTES
from ptystream.model.electrons import electron_wavelength

REACH = 3.0
FRAMES = {64: 144, 128: 64}
BEFORE = {
    (64, 1, 1, "double"): 0.48,
    (64, 1, 1, "single"): 0.31,
    (64, 8, 1, "double"): 4.05,
    (128, 1, 1, "double"): 2.0,
    (128, 1, 1, "single"): 1.33,
}
"""Milliseconds a pattern that PyPty 2.2 needed, one core, integer positions, on another day."""


def problem(
    on: Backend, side: int, slices: int, modes: int, precision: str
) -> tuple[Objective, dict[str, Any], list[Batch], int]:
    """Random patterns of a scan of integer positions."""
    rng = np.random.default_rng(0)
    kind, real = (np.dtype(np.complex128), np.dtype(float)) if precision == "double" else (np.dtype("c8"), np.dtype("f4"))
    pixel = (2e-11, 2e-11)
    optics = Optics.of((side, side), pixel, electron_wavelength(60), [1e-9] * (slices - 1), cutoff=2 / 3, real=real)
    count = FRAMES[side]
    across = round(np.sqrt(count))
    corner = np.array([(5 * (k // across), 5 * (k % across)) for k in range(count)])
    canvas = tuple(int(n) + side for n in corner.max(axis=0))
    patterns = rng.poisson(20.0, (count, side, side)).astype(real)
    at = {
        "object": np.exp(0.1j * rng.normal(size=(1, slices, *canvas))).astype(kind),
        "probe": (rng.normal(size=(1, modes, side, side)) + 1j).astype(kind),
    }
    size = max(1, TILE_BYTES // (side * side * kind.itemsize * modes * slices))
    batches = []
    for first in range(0, count, size):
        rows = np.arange(first, min(first + size, count))
        view = View(rows, corner[rows], np.zeros(len(rows), np.int64))
        measured = patterns[rows], np.ones((1, 1, 1), real)
        batches.append(Batch(rows, lambda at, view=view: view, lambda measured=measured: measured))  # type: ignore[misc]
    return Objective(on, optics, Detector.of(on, optics, (side, side)), "lsq_sqrt", 0.01), at, batches, count


def counted(on: Backend) -> tuple[Backend, Counter[tuple[Any, ...]]]:
    """The backend, and the transforms that it is asked for by their shape and type."""
    seen: Counter[tuple[Any, ...]] = Counter()

    def counting(transform: Any) -> Any:
        def call(array: Any) -> Any:
            seen[array.shape, array.dtype.str] += 1
            return transform(array)

        return call

    return replace(on, fft2=counting(on.fft2), ifft2=counting(on.ifft2)), seen


def alone(on: Backend, seen: Counter[tuple[Any, ...]], threads: int) -> float:
    """Seconds that these transforms take by themselves."""
    jobs = [(shape, dtype) for (shape, dtype), count in seen.items() for _ in range(count)]
    shares = [jobs[k::threads] for k in range(threads)]

    def work(share: list[tuple[Any, ...]]) -> None:
        held = {job: np.ones(job[0], job[1]) for job in set(share)}
        for job in share:
            on.fft2(held[job])

    began = time.perf_counter()
    if threads == 1:
        work(shares[0])
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, shares))
    return time.perf_counter() - began


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--sides", type=int, nargs="+", default=[64, 128])
    given = parser.parse_args()
    print("| side | slices | modes | precision | threads | ms a pattern | × its transforms | PyPty 2.2, one core |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for side in given.sides:
        for slices in (1, 8):
            for modes in (1, 3):
                for precision in ("single", "double"):
                    for threads in sorted({1, min(2, len(os.sched_getaffinity(0)))}):
                        print(row(side, slices, modes, precision, threads, given.repeats), flush=True)


def row(side: int, slices: int, modes: int, precision: str, threads: int, repeats: int) -> str:
    """One line of the table."""
    plain = cpu(Context(precision=precision, threads=threads))
    on, seen = counted(plain)
    objective, at, batches, count = problem(on, side, slices, modes, precision)
    objective.evaluate(at, batches, Wanted(), count)
    transforms = Counter(seen)
    objective.on = plain
    objective = replace(objective, on=plain, detector=replace(objective.detector, on=plain))
    times, ratios = [], []
    for _ in range(repeats):
        began = time.perf_counter()
        objective.evaluate(at, batches, Wanted(), count)
        took = time.perf_counter() - began
        times.append(took)
        ratios.append(took / alone(plain, transforms, threads))
    plain.sweeper.close()
    ratio = float(np.median(ratios))
    before = BEFORE.get((side, slices, modes, precision)) if threads == 1 else None
    told = "" if before is None else f"{before:g}"
    mark = "" if ratio <= REACH else f" (asked {REACH:g})"
    each = f"{1e3 * np.median(times) / count:.3f}"
    return f"| {side} | {slices} | {modes} | {precision} | {threads} | {each} | {ratio:.2f}{mark} | {told} |"


if __name__ == "__main__":
    main()
