"""Every engine against its own transforms: ms per frame and iteration on one core, defaults, with 1 and 3 probe modes.

Engines are those of the entry points. Each iteration is measured beside the same number of transforms in the same tile, in
turn, by the time of the process on its core, so that what else the machine does enters both alike; the ratio is the median of
the pairs. `EPIE` takes its misfit from the wave that it projects anyway: two transforms; others need a third for it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np

from ptystream.engine import Context
from ptystream.engines.tiles import TILE_BYTES
from ptystream.model.fft import transforms
from ptystream.reconstruction import PodTable, Reconstruction, Storage

sys.path.insert(0, str(Path(__file__).parent))
from dm import Store, places

REPEATS = 7
REACH = {"EPIE": 3.0, "SDR": 3.0}
"""At most so many times the transforms."""
SIZES = ((128, 200), (256, 60))
CASES: dict[str, list[tuple[int, dict[str, Any]]]] = {
    "EPIE": [(2, {}), (2, {"subpix": None}), (2, {"batch": 8})],
    "SDR": [(3, {}), (2, {"compute_log_likelihood": False})],
}
"""For each engine transforms per frame and mode, and parameters that differ from the defaults."""
USUAL: list[tuple[int, dict[str, Any]]] = [(3, {})]


def started(make: Any, frames: int, side: int, modes: int, threads: int, parameters: dict[str, Any]) -> Any:
    """A started engine that has seen every frame."""
    corner, probe = places(frames, side)
    size, random = int(corner.max()) + side, np.random.default_rng(1)
    probes = np.stack([probe * 0.5**k for k in range(modes)])
    probes += 0.05 * random.normal(size=probes.shape)
    made = Reconstruction(
        {"S": Storage(probes.astype(np.complex64), None)},
        {"S": Storage(np.ones((1, size, size), np.complex64), None)},
        PodTable(modes),
    )
    address = np.zeros((frames, modes, 6), np.int32)
    address[:, :, 1], address[:, :, 4:] = np.arange(modes), corner[:, None]
    remainder = np.repeat(random.uniform(-0.5, 0.5, (frames, 1, 2)).astype("f4"), modes, axis=1)
    slots = np.stack([np.zeros(frames, int), np.arange(frames)], axis=1)
    made.pods.append(address, remainder, np.ones((frames, modes), "f4"), slots)
    engine = make(make.Parameters(**parameters))
    engine.start(made, {0: Store(frames, side)}, Context(threads=threads))
    engine.iterate(3)
    return engine


def bare(frames: int, side: int, count: int) -> Callable[[], None]:
    """`count` transforms per frame, a tile at a time."""
    forward, _ = transforms("scipy")
    tile = max(1, TILE_BYTES // (side * side * 8))
    buffer = np.ones((tile, side, side), np.complex64)
    rounds = max(1, count * frames // tile)

    def work() -> None:
        for _ in range(rounds):
            forward(buffer)

    return work


def paired(one: Callable[[], Any], other: Callable[[], Any]) -> tuple[float, float]:
    """(seconds of one, ratio of one to other): medians over pairs measured in turn, time on the core."""
    spent, ratios = [], []
    for _ in range(REPEATS):
        began = time.process_time()
        one()
        between = time.process_time()
        other()
        spent.append(between - began)
        ratios.append(spent[-1] / (time.process_time() - between))
    return float(np.median(spent)), float(np.median(ratios))


def batches(make: Any, frames: int = 200, side: int = 128) -> None:
    """Print what batches make of several cores: ms per frame and iteration on the clock, fastest of the repeats."""
    cores = len(os.sched_getaffinity(0))
    for batch in (1, 8, 32):
        spent = []
        for threads in sorted({1, cores}):
            engine = started(make, frames, side, 1, threads, {"batch": batch})
            times = []
            for _ in range(REPEATS):
                began = time.perf_counter()
                engine.iterate(1)
                times.append(time.perf_counter() - began)
            engine.finish()
            spent.append(f"{1e3 * min(times) / frames:.3f} on {threads}")
        print(f"{make.__name__:7s} {side:4d}      1  batch {batch:3d}, ms on cores: {', '.join(spent)}", flush=True)


def main(*names: str) -> int:
    """Print the table; 1 where an engine with its defaults is further from its transforms than it should be."""
    missed = False
    print("engine  side  modes    ms  x transforms  parameters")
    for point in sorted(entry_points(group="ptystream.engines"), key=lambda p: p.name):
        if names and point.name not in names:
            continue
        make, reach = point.load(), REACH.get(point.name)
        for side, frames in SIZES:
            for modes in (1, 3):
                for count, parameters in CASES.get(point.name, USUAL):
                    try:
                        engine = started(make, frames, side, modes, 1, parameters)
                    except ValueError as error:
                        print(f"{point.name:7s} {side:4d} {modes:6d}  not on this problem: {error}", flush=True)
                        continue
                    spent, ratio = paired(lambda e=engine: e.iterate(1), bare(frames, side, count * modes))  # type: ignore[misc]
                    engine.finish()
                    late = reach is not None and not parameters and ratio > reach
                    missed |= late
                    note = f"  should be at most {reach}" if late else ""
                    told = f"{1e3 * spent / frames:8.3f} {ratio:8.2f}  {parameters or 'defaults'}{note}"
                    print(f"{point.name:7s} {side:4d} {modes:6d} {told}", flush=True)
        if "batch" in make.Parameters.model_fields:
            batches(make)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
