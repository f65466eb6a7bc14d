"""What it is worth to keep the curvature when frames come: passes over all frames until a growing scan is reconstructed, with the
pairs always begun anew, kept as the engine does, and kept however many frames come. The same scans and steps in each column.

    python benchmarks/growing.py [--rates 1 2 3 …]

A figure is a count, not a time: it is the same on every machine but for rounding.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np

from ptystream.detectors.simulated.simulator import Beamline
from ptystream.engine import Context
from ptystream.engines.multislice import growth
from ptystream.engines.multislice.objective import Objective
from ptystream.engines.multislice.pypty import PyPty
from ptystream.events import Frames, Payload, Samples, ScanEnded, ScanStarted
from ptystream.loop import Loop, LoopSettings
from ptystream.model.geometry import Geometry
from ptystream.model.scan_model import Full
from ptystream.run import Run
from ptystream.run_state import EngineEntry, Scan
from ptystream.scan.parameters import PositionsParameters, PtyScanParameters
from ptystream.scan.ptyscan import PtyScan

BEAM = Beamline(frames=92, side=32, photons=2e5, step_px=3.0, samples_per_frame=1)
FIRST = 32
REACHED = 1.2
"""Photon misfit at which a reconstruction counts as there: the noise alone gives 0.91."""
MOST = 300
"""Epochs after which it is given up."""
PROBLEMS: dict[str, dict[str, Any]] = {
    "one slice": {},
    "three slices": {"num_slices": 3, "slice_distances": [1e6]},
    "positions refined": {"update_probe_pos": 1},
}
RULES = {"begun anew": 0.0, "as the engine does": growth.LARGEST, "kept however many come": np.inf}
"""Frames that may come, part of those there are, for pairs to be kept."""
REACH = 1.15
"""What the engine does may take so many times as many passes as beginning anew, at most."""


def patterns() -> np.ndarray:
    """Counts, shape (frame, y, x)."""
    truth = BEAM.probe(), BEAM.object()
    return np.stack([BEAM.pattern(k, truth) for k in range(BEAM.frames)])


def beginning(parameters: dict[str, Any]) -> Run:
    """A run without frames."""
    known = BEAM.geometry()
    given = PtyScanParameters(name="ZmqScan", shape=BEAM.side, **known)
    buffer = PtyScan("s", given, PositionsParameters(), decide_after=FIRST)
    geometry = Geometry((BEAM.side,) * 2, known["energy"], known["distance"], (known["psize"],) * 2)
    illumination = {"aperture": {"size": 0.42 * BEAM.side * BEAM.pixel_m}}
    pixel_a = BEAM.pixel_m * 1e10
    asked = {"pixel_size_x_A": pixel_a, "pixel_size_y_A": pixel_a, "damping_cutoff_multislice": 2.0, "epoch_max": MOST}
    engine = EngineEntry("e", "PyPty", PyPty.Parameters(**asked, **parameters, default_dtype="double"), PyPty)
    return Run(
        "growing", [Scan("s", 0, buffer, Full("s", 0, Full.Parameters(illumination=illumination), geometry))], [engine], Context()
    )


@contextmanager
def counted() -> Iterator[list[int]]:
    """Frames of all the losses and gradients that are asked for meanwhile."""
    count, real = [0], Objective.evaluate

    def counting(self: Objective, at: Any, batches: Any, *given: Any, **more: Any) -> Any:
        count[0] += sum(len(batch.rows) for batch in batches)
        return real(self, at, batches, *given, **more)

    with patch.object(Objective, "evaluate", counting):
        yield count


def until_reached(frames: np.ndarray, rate: int, share: float, parameters: dict[str, Any]) -> tuple[float, int]:
    """(passes over all frames, epochs) until the misfit is `REACHED` with all frames there; NaN where it is not."""
    run, there = beginning(parameters), 0
    loop, buffer, places = Loop(run, LoopSettings(min_frames_for_recon=FIRST)), run.scans["s"].buffer, BEAM.positions_m()
    buffer.feed("data", ScanStarted("a"), 0)
    with counted() as count, patch.object(growth, "LARGEST", share):
        for epoch in range(1, MOST):
            if there < len(frames):
                part = slice(there, min(len(frames), there + rate if there else FIRST))
                payloads = tuple(Payload(p.tobytes(), "raw", np.dtype("<u2"), p.shape) for p in frames[part])
                buffer.feed("data", Frames("a", np.arange(part.start, part.stop), payloads), 0)
                buffer.feed("positions", Samples("a", there, {"y": places[part, 0], "x": places[part, 1]}), 0)
                there = part.stop
                if there == len(frames):
                    for source in ("data", "positions"):
                        buffer.feed(source, ScanEnded("a", there), 0)
            loop.step()
            if there == len(frames) and run.misfit[-1][-1, 1] < REACHED:
                return count[0] / len(frames), epoch
    return np.nan, MOST


def main() -> int:
    """Print a table of geometric means over the problems; 1 where it is not what should be reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=int, nargs="+", default=[1, 2, 3, 4, 6, 8, 12, 16])
    rates = parser.parse_args().rates
    logging.disable(logging.WARNING)
    frames = patterns()
    print(f"passes (epochs) until the misfit is {REACHED}, {FIRST} of {len(frames)} frames at first")
    print("| frames an epoch | " + " | ".join(RULES) + " |")
    print("| --- |" + " --- |" * len(RULES))
    missed = False
    for rate in rates:
        cells, each = [], []
        for share in RULES.values():
            done = np.array([until_reached(frames, rate, share, parameters) for parameters in PROBLEMS.values()])
            passes, epochs = np.exp(np.log(done).mean(axis=0))
            cells.append(f"{passes:.0f} ({epochs:.0f})")
            each.append(passes)
        missed |= not each[1] <= REACH * each[0]
        print(f"| {rate} | " + " | ".join(cells) + " |", flush=True)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
