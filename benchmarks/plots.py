"""What plotting costs the engine: seconds of an iteration without plots, with a process that draws, and with the engine's thread.

400 frames of 128², DM; every iteration is due. Reach: with a process of its own, at most 10 % more than without, where a core is
free for it; it runs at a low priority, so that on fewer cores it comes second.
"""

from __future__ import annotations

import tempfile
import threading

import numpy as np

from ptystream import Param, Ptycho
from ptystream.detectors.simulated.simulator import Beamline, run
from ptystream.detectors.zmq import Sender

BEAM = Beamline(frames=400, rate_hz=1e6, frames_per_message=8)


def iterations(threads: int, numiter: int, **autoplot: object) -> tuple[float, float]:
    """(median seconds of an iteration, seconds of the whole engine's thread in iterations and what lies between them)."""
    with tempfile.TemporaryDirectory() as home, Sender(timeout_s=120) as frames, Sender(timeout_s=120) as positions:
        p = Param(run="bench", threads=threads, verbose_level="CRITICAL", min_frames_for_recon=10 * BEAM.frames)
        p.io = Param(home=home, rfile=None, recording=Param(active=False), autoplot=Param(autoplot))
        data = Param(name="ZmqScan", address=frames.address, shape=BEAM.side, **BEAM.geometry())
        data.positions = Param(name="ZmqScan", address=positions.address, samples_per_frame=BEAM.samples_per_frame)
        p.scans.s = Param(name="Full", data=data, illumination=Param(aperture=Param(size=0.42 * BEAM.side * BEAM.pixel_m)))
        p.engines.e = Param(name="DM", numiter=numiter)
        detector = threading.Thread(target=run, args=(BEAM, frames, positions))
        detector.start()
        info = Ptycho(p).run().runtime.iter_info
        detector.join()
    took = [i.duration for i in info]
    return float(np.median(took)), float(np.sum(took))


def main(numiter: int = 60) -> None:
    """Print the table."""
    for threads in (1, 2):
        base, _ = iterations(threads, numiter, active=False)
        for what, settings in (
            ("a process draws", {"dump": True}),
            ("the engine's thread draws", {"dump": True, "threaded": False}),
        ):
            if settings.get("threaded") is False:
                settings["interval"] = 10
            median, _ = iterations(threads, numiter, **settings)
            print(
                f"{threads} threads: {1e3 * base:6.1f} ms an iteration without plots; {what}: {1e3 * median:6.1f} ms", flush=True
            )


if __name__ == "__main__":
    main()
