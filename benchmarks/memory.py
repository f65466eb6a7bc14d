"""Memory of a session above the idle process, against what it must hold; and whether scan after scan leaves it flat.

Must hold: raw counts, exit waves, and the canvases of the partial sums.
"""

from __future__ import annotations

import gc
import resource
from pathlib import Path

import numpy as np

from ptystream.engine import Context
from ptystream.engines.dm import DM
from ptystream.engines.tiles import PARTIAL_SUMS
from ptystream.events import Frames, Payload, Samples, ScanEnded, ScanStarted
from ptystream.loop import Loop, LoopSettings, Step
from ptystream.model.geometry import Geometry
from ptystream.model.scan_model import Full
from ptystream.run import EngineEntry, Run, Scan
from ptystream.scan.parameters import PositionsParameters, PtyScanParameters
from ptystream.scan.positions import fermat_scan
from ptystream.scan.ptyscan import PtyScan

SIDE = 128
PAGE = resource.getpagesize()


def resident() -> float:
    """MB of this process."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 1e6


def scan(frames: int, iterations: int) -> tuple[Run, float]:
    """Feed and reconstruct one scan; (run, MB that it must hold)."""
    given = {"name": "ZmqScan", "shape": SIDE}
    buffer = PtyScan("s", PtyScanParameters(**given), PositionsParameters(unit="px"), decide_after=16)
    model = Full("s", 0, Full.Parameters(), Geometry((SIDE, SIDE)))
    entry = EngineEntry("e", "DM", DM.Parameters(numiter=iterations), DM)
    run = Run("memory", [Scan("s", 0, buffer, model)], [entry], Context(threads=2))
    loop = Loop(run, LoopSettings(min_frames_for_recon=16))
    random = np.random.default_rng(0)
    places = fermat_scan(6.0, frames)
    buffer.feed("data", ScanStarted("a"), 0)
    for first in range(0, frames, 100):
        stop = min(first + 100, frames)
        counts = random.poisson(20.0, (stop - first, SIDE, SIDE)).astype("<u2")
        payloads = tuple(Payload(memoryview(c).cast("B"), "raw", np.dtype("<u2"), (SIDE, SIDE)) for c in counts)
        buffer.feed("data", Frames("a", np.arange(first, stop), payloads), first)
        buffer.feed("positions", Samples("a", first, {"y": places[first:stop, 0], "x": places[first:stop, 1]}), first)
    for source in ("data", "positions"):
        buffer.feed(source, ScanEnded("a", frames), 0)
    while loop.step() is Step.WORKED:
        if run.iterations == iterations - 1:
            break
    assert run.reconstruction is not None
    canvas = next(iter(run.reconstruction.objects.values())).data
    held = frames * SIDE * SIDE * (2 + 8) + canvas.size * (8 + PARTIAL_SUMS * 12)
    return run, held / 1e6


def main() -> None:
    """Print both."""
    run, _ = scan(100, 2)
    del run
    idle = resident()
    run, held = scan(5000, 3)
    used = resident() - idle
    print(f"5000 frames {SIDE}²: {used:.0f} MB above idle, {held:.0f} MB must be held: {used / held:.2f} (reach <= 1.15)")
    for part in run.scans.values():
        part.buffer.release()
    del run, part
    after = []
    for _ in range(8):
        run, _ = scan(1000, 3)
        for part in run.scans.values():
            part.buffer.release()
        del run, part
        after.append(resident())
    print("after each of 8 further scans of 1000 frames, MB: " + " ".join(f"{value:.0f}" for value in after))


if __name__ == "__main__":
    main()
