"""Every detector's wire, from messages in memory to slabs: decoder, ledger, decoding threads. 256² uint16, whole frames.

Sockets are left out (`ingest.py` has them), so what stands beside is what a source costs a core, and how many frames a
second the rest of the pipe takes. *Floor*: the same frames as plain arrays, copied into a slab by one thread.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from ptystream.detectors.areadetector.simulator import messages as areadetector
from ptystream.detectors.dectris.simulator import Camera
from ptystream.detectors.maxiv.simulator import messages as maxiv
from ptystream.detectors.psi.simulator import messages as psi
from ptystream.detectors.zmq.protocol import frames_parts, header
from ptystream.params.load import load
from ptystream.plan import make_plan
from ptystream.transport import Message

SIDE = 256


def pictures(count: int) -> Any:
    """Counts of speckles, (frame, y, x): a few different ones, again and again."""
    random = np.random.default_rng(0)
    few = random.poisson(random.exponential(3.0, (8, SIDE, SIDE))).astype("u2")
    return few[np.arange(count) % len(few)]


def native(frames: Any) -> Iterator[list[Any]]:
    yield [header("start", scan="a", meta={"num_frames": len(frames)})]
    for k, frame in enumerate(frames):
        yield frames_parts("a", k, [frame.tobytes()], 1, frame.shape, frame.dtype, "raw")
    yield [header("end", scan="a", count=len(frames), reason="completed")]


def dectris(frames: Any, kind: str, codec: str, detail: str = "basic") -> Iterator[list[Any]]:
    camera = Camera(kind, codec, detail=detail, energy_kev=8.0, distance_m=3.0, psize_m=(75e-6, 75e-6))
    yield list(camera.header(1, len(frames), frames[0].shape, frames.dtype))
    for k, frame in enumerate(frames):
        yield list(camera.image(1, k, frame))
    yield list(camera.end(1))


CASES: dict[str, tuple[str, Callable[[Any], Iterator[list[Any]]]]] = {
    "native wire, raw": ("ZmqScan", native),
    "DECTRIS v1, raw": ("DectrisScan", partial(dectris, kind="v1", codec="none")),
    "DECTRIS v1, flat field": ("DectrisScan", partial(dectris, kind="v1", codec="none", detail="all")),
    "DECTRIS v1, bslz4": ("DectrisScan", partial(dectris, kind="v1", codec="bslz4")),
    "DECTRIS stream2, raw": ("DectrisScan", partial(dectris, kind="stream2", codec="none")),
    "DECTRIS stream2, bslz4": ("DectrisScan", partial(dectris, kind="stream2", codec="bslz4")),
    "areaDetector, raw": ("AdZmqScan", areadetector),
    "areaDetector, bslz4": ("AdZmqScan", partial(areadetector, codec="bslz4")),
    "MAX IV, bslz4": ("MaxivScan", maxiv),
    "slsDetectorPackage": ("SlsScan", psi),
}


def through(plugin: str, messages: list[list[Any]], count: int) -> tuple[float, float]:
    """(frames a second, milliseconds of the process' cores per frame) until every frame is in its slab."""
    places = np.random.default_rng(0).normal(size=(count, 2)) * 1e-6
    data = {"name": plugin, "shape": SIDE, "energy": 8.0, "distance": 3.0, "psize": 7.5e-5, "num_frames": count}
    given = {"scans": {"s": {"name": "Full", "data": {**data, "positions_theory": places}}}, "engines": {"e": {"name": "DM"}}}
    plan = make_plan(load(given))
    buffer, _ = plan.scans[0].make(None)
    decoder = plan.channels[0].decoder
    began, cpu = time.perf_counter(), time.process_time()
    for parts in messages:
        for event in decoder.feed(Message(time.time_ns(), "s/data", tuple(parts))):
            buffer.feed("data", event, time.time_ns())
    seen = buffer.changed(-1, 0.0)
    while buffer.ledger.prepared < count:
        if time.perf_counter() - began > 60:
            raise RuntimeError(f"{buffer.ledger.prepared} of {count} frames arrived: {buffer.ledger.counts()}")
        seen = buffer.changed(seen, 0.05)
    spent = time.perf_counter() - began, time.process_time() - cpu
    buffer.release()
    return count / spent[0], 1e3 * spent[1] / count


def floor(frames: Any) -> float:
    """Milliseconds of a plain copy of one frame into a slab."""
    slab = np.zeros_like(frames)
    began = time.process_time()
    for k, frame in enumerate(frames):
        slab[k] = frame
    return 1e3 * (time.process_time() - began) / len(frames)


def main() -> int:
    """Print the table."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--frames", type=int, default=2000)
    asked.add_argument("--repeats", type=int, default=3)
    given = asked.parse_args()
    frames = pictures(given.frames)
    print(f"plain copy into a slab: {statistics.median(floor(frames) for _ in range(5)):.3f} ms a frame; {os.cpu_count()} cores")
    print("source                    frames/s   ms of a core   bytes on the wire, a frame")
    for name, (plugin, make) in CASES.items():
        messages = list(make(frames))
        through(plugin, list(make(frames[:20])), 20)  # imports
        size = sum(len(memoryview(part).cast("B")) for parts in messages for part in parts) / given.frames
        found = [through(plugin, messages, given.frames) for _ in range(given.repeats)]
        rate, cost = (statistics.median(values) for values in zip(*found, strict=True))
        print(f"{name:24s} {rate:9.0f} {cost:14.3f} {size:14.0f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
