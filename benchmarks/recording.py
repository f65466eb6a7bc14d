"""Recording beside plain writing of the same bytes into a file on the same disk: GB/s, medians of rounds that take turns.

Plain: `os.write` in pieces of 16 MiB from one thread, no checksum, nothing else; both until the bytes are with the operating
system, and with `fsync` until the disk has them. Reading back (which checks every byte) is shown beside. `folder` may be on the
disk in question; the default is that of temporary files.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from ptystream.recording import Recorder, Recording
from ptystream.transport import Message

PIECE = 16 << 20
MESSAGES = {"one 256² u16 frame": 1 << 17, "eight of them": 1 << 20, "one 4 M frame, u16": 8 << 20}
REACH_GB_S = 1.0


def plain(path: Path, blob: memoryview, total: int, fsync: bool) -> float:
    """GB/s of writing `total` bytes."""
    began = time.perf_counter()
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for _ in range(total // PIECE):
        left = blob[:PIECE]
        while left:
            left = left[os.write(file, left) :]
    if fsync:
        os.fsync(file)
    os.close(file)
    return total / (time.perf_counter() - began) / 1e9


def recorded(path: Path, blob: memoryview, size: int, total: int, fsync: bool) -> tuple[float, float]:
    """GB/s of recording messages of `size`, and the share of the writing thread's time that the caller was held up."""
    count, places = total // size, len(blob) // size
    began, held = time.perf_counter(), 0.0
    recorder = Recorder(path, fsync=fsync)
    for k in range(count):
        at = k % places * size
        message = Message(k, "s/data", (b"header", blob[at : at + size]))
        before = time.perf_counter()
        recorder.write(message)
        held += time.perf_counter() - before
    recorder.flush(600.0)
    took = time.perf_counter() - began
    recorder.close(finished=True)
    return total / took / 1e9, held / took


def read(path: Path, total: int) -> float:
    """GB/s of reading and checking a recording."""
    began = time.perf_counter()
    assert sum(1 for _ in Recording(path))
    return total / (time.perf_counter() - began) / 1e9


def main(folder: str | None = None, rounds: int = 5, total: int = 1 << 30) -> int:
    """Print the table; 1 where neither 1 GB/s nor half of what plain writing does is reached."""
    blob = memoryview(np.random.default_rng(0).integers(0, 256, 64 << 20, np.uint8).data)
    missed = 0
    with tempfile.TemporaryDirectory(dir=folder) as name:
        path = Path(name) / "r"
        print(f"GB/s, medians of {rounds} rounds of {total / 1e9:.1f} GB in {Path(name).parent}")
        for fsync in (False, True):
            for told, size in MESSAGES.items():
                figures: list[tuple[float, float, float]] = []
                for _ in range(rounds):
                    one = plain(path, blob, total, fsync)
                    path.unlink()
                    ours, _ = recorded(path, blob, size, total, fsync)
                    figures.append((one, ours, read(path, total)))
                    path.unlink()
                base, mine, again = (statistics.median(column) for column in zip(*figures, strict=True))
                share = statistics.median(b / a for a, b, _ in figures)
                bad = not fsync and mine < REACH_GB_S and share < 0.5  # plain writing waits for the disk once, at its end
                missed += bad
                how = "fsync" if fsync else "     "
                print(
                    f"  {how} {told:20} plain {base:5.2f}  recorded {mine:5.2f} ({share:4.0%})  read back {again:5.2f}"
                    + ("  missed" if bad else ""),
                    flush=True,
                )
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
