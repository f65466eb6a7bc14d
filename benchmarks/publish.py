"""Publishing 10 snapshots a second to 20 viewers, three of which never read: what it costs the engine's thread."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np

from ptystream.publish.publisher import Publisher
from ptystream.publish.snapshot import Image, Snapshot

READER = """
import sys
from ptystream.viewers.client import Client
with Client(sys.argv[1], form="uint8", timeout_s=30) as client:
    if sys.argv[2] == "hang":
        print("up", flush=True); sys.stdin.readline()
    else:
        print("up", flush=True)
        count = sum(1 for _ in client)
        print(count, flush=True)
"""


def main(seconds: float = 5.0, viewers: int = 20, hung: int = 3) -> None:
    """Print the share of time."""
    publisher = Publisher()
    random = np.random.default_rng(0)
    wave = (random.normal(size=(1, 400, 400)) + 1j).astype("c8")
    held = Image(wave, (1e-8, 1e-8), (0, 0))
    table = np.ones((100, 3))

    def snapshot(number: int, state: str) -> Snapshot:
        return Snapshot(
            "bench",
            number,
            time.time_ns(),
            "DM",
            number,
            state,
            {"p": Image(wave[:, :128, :128], None, (0, 0))},
            {"o": held},
            {"o": np.ones((400, 400), "f4")},
            np.zeros((400, 2), "f4"),
            table,
            table,
            {"used": 400},
            np.zeros((400, 3), "f4"),
            time.time_ns(),
            {},
        )

    kinds = ["hang"] * hung + ["read"] * (viewers - hung)
    processes = [
        subprocess.Popen(
            [sys.executable, "-P", "-c", READER, publisher.endpoint, kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for kind in kinds
    ]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    spent, number, began = 0.0, 0, time.monotonic()
    while (now := time.monotonic()) - began < seconds:
        value = snapshot(number, "running")
        start = time.thread_time()
        publisher.offer(value)
        spent += time.thread_time() - start
        number += 1
        time.sleep(max(0.0, began + number * 0.1 - now))
    connected = publisher.viewers
    publisher.offer(snapshot(number, "finished"))
    got = []
    for process, kind in zip(processes, kinds, strict=True):
        out, _ = process.communicate("\n", timeout=60)
        if kind == "read":
            got.append(int(out.split()[-1]))
    publisher.close()
    print(f"{number} snapshots to {viewers} viewers ({hung} hung): {connected} were connected")
    print(f"the engine's thread spent {100 * spent / seconds:.3f} % of its time on it (reach <= 2 %)")
    print(f"the reading viewers got {min(got)} to {max(got)} of {number + 1}")


if __name__ == "__main__":
    main()
