"""Frames per second that a whole session accepts: acknowledged wire, decoding, pairing, slabs; engine idle and engine busy.

128² uint16 with positions, 8 frames a message, as fast as the sender can, on the same cores. Recording off and on.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import threading
import time
from multiprocessing.connection import Connection

import numpy as np

from ptystream.detectors.zmq import Sender
from ptystream.metrics import Metrics
from ptystream.params.load import load
from ptystream.plan import make_plan, recorder_of
from ptystream.session import Session

SIDE, BATCH = 128, 8


def send(pipe: Connection, frames: int) -> None:
    """Process body: a beamline without a clock."""
    pixels = np.random.default_rng(0).poisson(3.0, (BATCH, SIDE, SIDE)).astype("<u2")
    step = 16 * 1e-8
    side = int(np.ceil(np.sqrt(frames)))
    with Sender(timeout_s=120) as data, Sender(timeout_s=120) as positions:
        pipe.send((data.address, positions.address))
        pipe.recv()
        data.start("s", num_frames=frames)
        positions.start("s")
        for first in range(0, frames, BATCH):
            numbers = np.arange(first, first + BATCH)
            positions.samples(first, y=step * (numbers // side), x=step * (numbers % side))
            data.frames(first, pixels, copy=False)
        data.end(frames)
        positions.end(frames)
        pipe.recv()


def accepted(frames: int, *, busy: bool, record: bool) -> float:
    """Frames per second from the first frame received to the last."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=send, args=(theirs, frames))
    process.start()
    data, positions = ours.recv()
    with tempfile.TemporaryDirectory() as folder:
        source = {"name": "ZmqScan", "address": data, "shape": SIDE, "energy": 7.2, "distance": 2.0, "psize": 75e-6}
        configuration = load(
            {
                "run": "bench",
                "min_frames_for_recon": 32 if busy else 10 * frames,
                "io": {"home": folder, "rfile": None, "recording": {"active": record}},
                "scans": {"s": {"name": "Full", "data": source | {"positions": {"name": "ZmqScan", "address": positions}}}},
                "engines": {"dm": {"name": "DM", "numiter": 1}},
            }
        )
        recorder, _ = recorder_of(configuration)
        session = Session(
            make_plan(configuration, recorder=recorder), metrics=Metrics(), tap=recorder, on_ready=lambda: ours.send("go")
        )
        runner = threading.Thread(target=session.run)
        runner.start()
        began, received, deadline = 0.0, 0, time.monotonic() + 120
        while received < frames and time.monotonic() < deadline:
            time.sleep(0.002)
            received = session.current.ledger().get("received", 0) if session.current is not None else 0
            if received and not began:
                began, first = time.perf_counter(), received
        rate = (received - first) / (time.perf_counter() - began)
        session.stop()
        runner.join(120)
        ours.send("done")
        process.join()
        if recorder is not None:
            recorder.close(finished=True)
    return rate


def main(frames: int = 8000, rounds: int = 3) -> None:
    """Print the table."""
    for record in (False, True):
        for busy in (False, True):
            rate = float(np.median([accepted(frames, busy=busy, record=record) for _ in range(rounds)]))
            what = f"engine {'busy' if busy else 'idle'}, recording {'on' if record else 'off'}"
            print(f"{what:32s} {rate:8.0f} frames/s of {SIDE}², {rate * SIDE * SIDE * 2 / 1e6:6.0f} MB/s", flush=True)


if __name__ == "__main__":
    main()
