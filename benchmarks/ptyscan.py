"""Cost of adding and taking 100 frames 128² uint16 with 0, 5,000 and 20,000 frames present, in touched slabs.

The copy of the same pixels into the same slabs stands beside it. Medians of several rounds within one process.
"""

from __future__ import annotations

import statistics
import time

import numpy as np

from ptystream.events import Event, Frames, Payload, Samples
from ptystream.scan.memory import Budget
from ptystream.scan.parameters import PositionsParameters, PtyScanParameters
from ptystream.scan.ptyscan import PtyScan

SIDE, GROUP, ROUNDS = 128, 100, 15
LIMIT_MS = 0.05


def events(first: int, count: int, per_message: int, pixels: np.ndarray) -> list[tuple[str, Event]]:
    """Messages of `per_message` frames and their positions."""
    dtype = pixels.dtype
    result: list[tuple[str, Event]] = []
    for k in range(first, first + count, per_message):
        payloads = tuple(Payload(pixels.data, "raw", dtype, pixels.shape) for _ in range(per_message))
        result.append(("data", Frames("1", np.arange(k, k + per_message), payloads)))
        y = 1e-9 * np.arange(k, k + per_message)
        result.append(("positions", Samples("1", k, {"y": y, "x": y % 1e-6})))
    return result


def measure(present: int, per_message: int) -> float:
    """Median ms per frame to feed and take `GROUP` frames with `present` frames there."""
    pixels = np.random.default_rng(0).poisson(5.0, (SIDE, SIDE)).astype(np.uint16)
    scan = PtyScan("bench", PtyScanParameters(shape=SIDE), PositionsParameters(), budget=Budget(4 << 30))
    for source, event in events(0, present, GROUP, pixels) if present else ():
        scan.feed(source, event, 1)
    scan.take(1 << 40)
    spent = []
    for k in range(ROUNDS):
        first = present + k * GROUP
        batch = events(first, GROUP, per_message, pixels)
        started = time.perf_counter()
        for source, event in batch:
            scan.feed(source, event, 1)
        block = scan.take(1 << 40)
        spent.append((time.perf_counter() - started) * 1e3 / GROUP)
        assert len(block) == GROUP
    scan.release()
    return statistics.median(spent)


def copying() -> float:
    """Median ms per frame of the bare copy, as four quadrants, into touched memory."""
    pixels = np.random.default_rng(0).poisson(5.0, (SIDE, SIDE)).astype(np.uint16)
    slab = np.zeros((GROUP, SIDE, SIDE), np.uint16)
    slab += 1
    half = SIDE // 2
    spent = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for frame in slab:
            frame[:half, :half] = pixels[half:, half:]
            frame[:half, half:] = pixels[half:, :half]
            frame[half:, :half] = pixels[:half, half:]
            frame[half:, half:] = pixels[:half, :half]
        spent.append((time.perf_counter() - started) * 1e3 / GROUP)
    return statistics.median(spent)


def main() -> bool:
    """Print the table; returns whether the reach is met."""
    good = True
    print(f"PtyScan: feed + take of {GROUP} frames {SIDE}² uint16 and their positions, ms per frame (reach {LIMIT_MS})")
    print(f"{'present':>10} {'100 per message':>16} {'1 per message':>15}")
    for present in (0, 5_000, 20_000):
        many, single = measure(present, GROUP), measure(present, 1)
        good &= many <= LIMIT_MS
        print(f"{present:>10,} {many:>16.4f} {single:>15.4f}")
    print(f"{'bare copy':>10} {copying():>16.4f}")
    return good


if __name__ == "__main__":
    raise SystemExit(0 if main() else 1)
