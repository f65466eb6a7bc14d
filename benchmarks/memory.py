"""Memory of a session above the idle process, against what it must hold; and whether scan after scan leaves it flat.

Must hold: raw counts, exit waves, and the canvases of the partial sums.
"""

from __future__ import annotations

import gc
import resource
import tempfile
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np

from ptystream.detectors.zmq import Sender
from ptystream.engine import Context
from ptystream.engines.dm import DM
from ptystream.engines.tiles import PARTIAL_SUMS
from ptystream.events import Frames, Payload, Samples, ScanEnded, ScanStarted
from ptystream.loop import Loop, LoopSettings, Step
from ptystream.metrics import Metrics
from ptystream.model.geometry import Geometry
from ptystream.model.scan_model import Full
from ptystream.params.load import load
from ptystream.plan import make_plan, recorder_of
from ptystream.publish.publisher import Publisher
from ptystream.run import Run
from ptystream.run_state import EngineEntry, Scan
from ptystream.scan.parameters import PositionsParameters, PtyScanParameters
from ptystream.scan.positions import fermat_scan
from ptystream.scan.ptyscan import PtyScan
from ptystream.session import Session

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


def session_after_scans(count: int, frames: int = 200, side: int = 64) -> list[float]:
    """MB after each of `count` scans of one session that is never restarted: wire, recording, results and publisher on."""
    pixels = np.random.default_rng(0).poisson(3.0, (frames, side, side)).astype("<u2")
    place = np.stack(np.divmod(np.arange(frames), 15), axis=1) * 5e-7
    saved, after = threading.Semaphore(0), []
    with tempfile.TemporaryDirectory() as folder, Sender() as data, Sender() as positions:
        source = {"name": "ZmqScan", "address": data.address, "shape": side, "energy": 7.2, "distance": 2.0, "psize": 75e-6}
        configuration = load(
            {
                "run": "r",
                "min_frames_for_recon": 32,
                "io": {"home": folder, "rfile": "%(run)s.ptyr"},
                "live": {"runs": count},
                "scans": {
                    "s": {"name": "Full", "data": source | {"positions": {"name": "ZmqScan", "address": positions.address}}}
                },
                "engines": {"e": {"name": "DM", "numiter": 3}},
            }
        )

        def send() -> None:
            for number in range(count):
                data.start(f"scan {number}", num_frames=frames)
                positions.start(f"scan {number}")
                for first in range(0, frames, 20):
                    part = slice(first, first + 20)
                    data.frames(first, pixels[part])
                    positions.samples(first, y=place[part, 0], x=place[part, 1])
                data.end(frames)
                positions.end(frames)
                saved.acquire(timeout=60)

        sender = threading.Thread(target=send)
        recorder, _ = recorder_of(configuration)
        publisher = Publisher()
        plan = make_plan(configuration, recorder=recorder)

        def save(run: Run) -> Path | None:
            path = plan.save(run)
            after.append(resident())
            saved.release()
            return path

        session = Session(replace(plan, save=save), metrics=Metrics(), publisher=publisher, tap=recorder, on_ready=sender.start)
        session.run()
        sender.join(60)
        publisher.close()
        if recorder is not None:
            recorder.close(finished=True)
    return after


def main() -> None:
    """Print all three."""
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
    after = session_after_scans(100)
    print("one session, after 10, 20, … 100 scans, MB: " + " ".join(f"{value:.0f}" for value in after[9::10]))


if __name__ == "__main__":
    main()
