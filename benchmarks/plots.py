"""What plotting costs a session: without plots, with a process that draws, and with the engine's thread; every iteration is due.

400 frames of 128², DM. CPU time of the session's process, from the first iteration to the end, is what plots take from it; wall
time also shows the cores that are shared with the drawing process, which runs at a low priority. Reach: with a process of its
own, at most 10 % more CPU time in the session's.
"""

from __future__ import annotations

import tempfile
import threading
import time
from contextlib import AbstractContextManager
from unittest import mock

import numpy as np

from ptystream import Param, Ptycho
from ptystream.detectors.simulated.simulator import Beamline, run
from ptystream.detectors.zmq import Sender
from ptystream.stopwatch import Stopwatch

BEAM = Beamline(frames=400, rate_hz=1e6, frames_per_message=8)


def session(threads: int, numiter: int, **autoplot: object) -> tuple[float, float]:
    """(median wall time of an iteration, CPU time of the session's process for each iteration), seconds."""
    with tempfile.TemporaryDirectory() as home, Sender(timeout_s=120) as frames, Sender(timeout_s=120) as positions:
        p = Param(run="bench", threads=threads, verbose_level="CRITICAL", min_frames_for_recon=10 * BEAM.frames)
        p.io = Param(home=home, rfile=None, recording=Param(active=False), autoplot=Param(autoplot))
        data = Param(name="ZmqScan", address=frames.address, shape=BEAM.side, **BEAM.geometry())
        data.positions = Param(name="ZmqScan", address=positions.address, samples_per_frame=BEAM.samples_per_frame)
        p.scans.s = Param(name="Full", data=data, illumination=Param(aperture=Param(size=0.42 * BEAM.side * BEAM.pixel_m)))
        p.engines.e = Param(name="DM", numiter=numiter)
        detector = threading.Thread(target=run, args=(BEAM, frames, positions))
        detector.start()
        before: list[float] = []
        started = Stopwatch.measure

        def measured(watch: Stopwatch, part: str) -> AbstractContextManager[None]:
            if part == "engine_iterate" and not before:
                before.append(time.process_time())
            return started(watch, part)

        with mock.patch.object(Stopwatch, "measure", measured):
            info = Ptycho(p).run().runtime.iter_info
        spent = time.process_time() - before[0]
        detector.join()
    return float(np.median([i.duration for i in info])), spent / numiter


def main(numiter: int = 60) -> None:
    """Print the table."""
    cases = {
        "no plots": {"active": False},
        "a process draws": {"dump": True},
        "the engine's thread draws": {"dump": True, "threaded": False},
    }
    for threads in (1, 2):
        for what, settings in cases.items():
            wall, cpu = session(threads, numiter, **settings)
            print(f"{threads} threads, {what:26s} {1e3 * wall:7.1f} ms an iteration, {1e3 * cpu:7.1f} ms of CPU", flush=True)


if __name__ == "__main__":
    main()
