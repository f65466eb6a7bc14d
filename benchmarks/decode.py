"""From a compressed EIGER frame to its crop in a slab: whole frames decoded, or only the blocks that hold cropped rows.

1065 × 1030 frames as a detector sends them, 256 × 256 cropped, one core; milliseconds per frame (median of rounds that take
turns, so that a noisy machine meets all alike) and bytes written per frame. 'whole' decodes all of it into new memory, as a
library call does; 'kept' into memory that the thread keeps; 'rows' only what the crop needs, which is what a session does.
Beside it what the header and the wire cost: one stream2 or version 1 message to an event. `--peers` adds dectris-compression
and bitshuffle where they are installed.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from ptystream.codecs import backends, decode, decode_rows, encode
from ptystream.detectors.dectris.protocol import DectrisDecoder
from ptystream.detectors.dectris.simulator import Camera
from ptystream.events import Payload
from ptystream.scan.parameters import PtyScanParameters
from ptystream.scan.prepare import Preparation, decide
from ptystream.transport import Message

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one core for everybody
SHAPE, SIDE, ROUNDS, LEAST = (1065, 1030), 256, 9, 8
REACH = {"bslz4": 2.5, "lz4": 0.9, "none": 0.9}
"""How many times faster 'rows' is than 'whole', at least, where both are decoded by the library that hdf5plugin ships."""


def frame_of(dtype: str, photons: float, seed: int = 0) -> np.ndarray:
    """Speckle under a power law, gaps at the largest value, as a strongly scattering sample gives."""
    random = np.random.default_rng(seed)
    y, x = np.indices(SHAPE)
    radius = np.hypot(y - SHAPE[0] / 2, x - SHAPE[1] / 2) + 4.0
    wave = np.fft.fft2(random.normal(size=SHAPE) * np.exp(-((y - 60) ** 2 + (x - 60) ** 2) / 2000.0))
    intensity = np.abs(wave) ** 2 / radius**3.5
    counts = random.poisson(np.minimum(intensity * photons / intensity.sum(), 60000.0)).astype(dtype)
    counts[510:547] = np.iinfo(dtype).max
    return counts


def timed(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Milliseconds of each, in turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            for _ in range(LEAST):
                call()
            times[name].append((time.perf_counter() - began) / LEAST * 1e3)
    return {name: statistics.median(found[1:]) for name, found in times.items()}


def ways(payload: Payload, preparation: Preparation, kept: np.ndarray, out: np.ndarray) -> dict[str, Callable[[], object]]:
    """What takes a payload to its crop in `out`."""
    return {
        "whole": lambda: preparation.into(decode(payload), out),
        "kept": lambda: preparation.into(decode(payload, kept), out),
        "rows": lambda: preparation.into(decode_rows(payload, kept, preparation.rows), out),
    }


def written(codec: str, frame: np.ndarray, preparation: Preparation) -> dict[str, int]:
    """Bytes that each way decodes or copies before the crop."""
    if codec == "none":
        return {"whole": 0, "kept": frame.nbytes, "rows": 0}
    block, row = 8192 if codec == "bslz4" else 1 << 20, frame.shape[1] * frame.itemsize
    part = min(-(-preparation.rows.stop * row // block) * block, frame.nbytes) - preparation.rows.start * row // block * block
    return {"whole": frame.nbytes, "kept": frame.nbytes, "rows": part}


def main() -> int:
    """Print the tables; 1 where something is not reached."""
    missed = False
    print(f"backends: {', '.join(backends())}; frames {SHAPE}, crop {SIDE}²; ms per frame and MB written per frame")
    print(f"{'frame':12} {'codec':7} {'sent kB':>8} {'whole':>15} {'kept':>15} {'rows':>15} {'times':>6}")
    for dtype, photons in (("u4", 1e6), ("u4", 3e7), ("u2", 1e6), ("u2", 3e7)):
        frame = frame_of(dtype, photons)
        parameters = PtyScanParameters(shape=SIDE)
        preparation = Preparation(parameters, decide(parameters, [frame]))
        kept, out = np.empty(SHAPE, dtype), np.empty((SIDE, SIDE), preparation.dtype)
        for codec in ("bslz4", "lz4", "none"):
            name = "raw" if codec == "none" else codec
            payload = Payload(encode(frame, name), name, frame.dtype, SHAPE)
            calls = ways(payload, preparation, kept, out) | (peers(payload, preparation, out) if "--peers" in sys.argv else {})
            found, wrote = timed(calls), written(codec, frame, preparation)
            times = found["whole"] / found["rows"]
            missed |= times < REACH[codec] and next(iter(backends())) == "library"
            cells = "".join(f" {found[k]:8.3f} {(wrote[k] + out.nbytes) / 1e6:6.2f}" for k in wrote)
            others = "".join(f"  {k} {v:.3f}" for k, v in found.items() if k not in wrote)
            print(f"{dtype} {photons:8.0e}  {codec:7} {len(payload.buffer) / 1e3:8.0f}{cells} {times:6.2f}{others}")
    frame = frame_of("u4", 3e7)
    for kind in ("v1", "stream2"):
        for compression in ("bslz4", "none"):
            message = Message(0, "s/data", tuple(Camera(kind, compression).image(1, 0, frame)))
            feed = partial(DectrisDecoder().feed, message)
            copied = 0 if kind == "v1" else sum(map(len, message.parts))
            print(f"message to event, {kind} {compression}: {timed({'': feed})['']:.3f} ms, {copied / 1e6:.2f} MB copied")
    return int(missed)


def peers(payload: Payload, preparation: Preparation, out: np.ndarray) -> dict[str, Callable[[], object]]:
    """The same through other libraries, where they are there."""
    found: dict[str, Callable[[], object]] = {}
    if payload.codec == "raw":
        return found
    try:
        from dectris.compression import decompress
    except ImportError:
        pass
    else:

        def ask() -> object:
            pixels = decompress(payload.buffer, payload.codec, elem_size=payload.dtype.itemsize)
            return preparation.into(np.frombuffer(pixels, payload.dtype).reshape(payload.shape), out)

        found["dectris-compression"] = ask
    try:
        import bitshuffle
    except ImportError:
        pass
    else:
        if payload.codec == "bslz4":
            stream = np.frombuffer(payload.buffer, np.uint8)[12:]

            def shuffle() -> object:
                size = 8192 // payload.dtype.itemsize
                return preparation.into(bitshuffle.decompress_lz4(stream, payload.shape, payload.dtype, size), out)

            found["bitshuffle"] = shuffle
    return found


if __name__ == "__main__":
    sys.exit(main())
