"""Every engine on every model it fits: does the misfit fall, is the object found, does a growing scan end as a complete one?

`make matrix` prints all of it; the tests take a part in which every pair of choices occurs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations, pairwise, product
from typing import Any

import numpy as np

from ptystream.detectors.simulated.exposure import Experiment
from ptystream.detectors.simulated.simulator import Beamline
from ptystream.engine import Context
from ptystream.events import Frames, Payload, Samples, ScanEnded, ScanStarted
from ptystream.loop import Loop, LoopSettings, Step
from ptystream.model.geometry import Geometry
from ptystream.model.models import MODELS
from ptystream.params.load import plugins
from ptystream.quality import align
from ptystream.run import Run
from ptystream.run_state import EngineEntry, Scan
from ptystream.scan.parameters import PositionsParameters, PtyScanParameters
from ptystream.scan.ptyscan import PtyScan

BEAM = Beamline(frames=96, side=64, step_px=6.0, samples_per_frame=1)
ENGINES: dict[str, dict[str, Any]] = {
    "DM": {"numiter": 120, "average_last": 20},
    "RAAR": {"numiter": 150, "beta": 0.9, "average_last": 20},
    "EPIE": {"numiter": 120},
    "SDR": {"numiter": 150, "sigma": 1.0, "tau": 0.5, "beta_object": 0.5, "beta_probe": 0.5, "average_last": 20},
    "ML": {"numiter": 150, "scale_precond": True},
    "DMOPR": {"numiter": 120, "average_last": 20, "subspace_dim": 2, "subspace_start": 60},
    "MLOPR": {"numiter": 150, "scale_precond": True, "subspace_dim": 2, "subspace_start": 60},
}
"""Engines and what is not a default of theirs."""
PHASE_RAD = {
    1e5: {"DM": 0.29, "RAAR": 0.22, "EPIE": 0.13, "SDR": 0.2, "ML": 0.09, "DMOPR": 0.26, "MLOPR": 0.095},
    1e8: {"DM": 0.12, "RAAR": 0.16, "EPIE": 0.1, "SDR": 0.08, "ML": 0.05, "DMOPR": 0.16, "MLOPR": 0.07},
}
"""Standard deviation of the phase against the truth, without its ramp, that an engine must reach, by photons: about one and a
half times the worst that docs/reference/matrix.md has. An object that was never touched has 0.45, one blurred by 2 pixels 0.2."""
APART = 0.2
"""Complex rms between the objects of a growing and of a complete scan that is allowed."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One place in the matrix."""

    engine: str
    model: str
    growing: bool
    modes: int
    photons: float

    @property
    def name(self) -> str:
        """For a person."""
        return f"{self.engine}-{self.model}-{'growing' if self.growing else 'complete'}-{self.modes}-{self.photons:.0e}"


def cells() -> Iterator[Cell]:
    """All that make sense."""
    known = [name for name in ENGINES if name in plugins("engines")]
    for engine, model, growing, modes, photons in product(known, MODELS, (False, True), (1, 3), (1e5, 1e8)):
        plain = model in ("Vanilla", "Full", "OPRModel")  # the others are the same classes, which a test shows
        fits = (model == "OPRModel") == engine.endswith("OPR") and not (model == "Vanilla" and modes > 1)
        if plain and fits and not (model == "OPRModel" and modes > 1):
            yield Cell(engine, model, growing, modes, photons)


def cover() -> list[Cell]:
    """Few cells in which every pair of choices of the matrix occurs."""

    def pairs(cell: Cell) -> set[Any]:
        values = [(field, getattr(cell, field)) for field in ("engine", "model", "growing", "modes", "photons")]
        return set(combinations(values, 2))

    left, chosen, everything = set().union(*(pairs(c) for c in cells())), [], list(cells())
    while left:
        best = max(everything, key=lambda c: len(pairs(c) & left))
        chosen.append(best)
        left -= pairs(best)
    return chosen


@cache
def truth(modes: int, photons: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(probe (mode, y, x), object (y, x), counts (frame, y, x))."""
    probe = BEAM.probe() / np.sqrt(BEAM.photons)
    y, x = np.mgrid[:64, :64] / 64 - 0.5
    shapes = np.stack([probe, 0.45 * probe * 4 * y, 0.3 * probe * np.sin(9 * x)])[:modes]
    shapes = shapes * np.sqrt(photons / (np.abs(shapes) ** 2).sum())
    sample = BEAM.object()
    experiment = Experiment(
        shapes, sample[None], (-(sample.shape[0] // 2), -(sample.shape[1] // 2)), BEAM.positions_m() / BEAM.pixel_m
    )
    counts = [np.random.default_rng([k, modes, int(photons)]).poisson(experiment.intensity(k)) for k in range(BEAM.frames)]
    return shapes, sample, np.stack(counts).astype("<u4")


@cache
def reconstructed(cell: Cell) -> Run:
    """The cell's run at its end."""
    counts, places, given = truth(cell.modes, cell.photons)[2], BEAM.positions_m(), BEAM.geometry()
    buffer = PtyScan("s", PtyScanParameters(name="ZmqScan", shape=64, **given), PositionsParameters(), decide_after=24)
    geometry = Geometry((64, 64), given["energy"], given["distance"], (given["psize"],) * 2)
    size, kind = 0.45 * 64 * BEAM.pixel_m, MODELS[cell.model]
    settings: dict[str, Any] = {"illumination": {"size": size}}
    if cell.model != "Vanilla":
        diversity = {"power": 0.1, "noise": (0.5, 1.0)}
        settings = {
            "illumination": {"aperture": {"size": size}, "diversity": diversity},
            "coherence": {"num_probe_modes": cell.modes},
        }
    model, make = kind("s", 0, kind.Parameters(**settings), geometry, 1), plugins("engines")[cell.engine]
    entry = EngineEntry("e", cell.engine, make.Parameters(**ENGINES[cell.engine]), make)
    run = Run("matrix", [Scan("s", 0, buffer, model)], [entry], Context(threads=1, seed=1))
    loop = Loop(run, LoopSettings(min_frames_for_recon=24, restart_probe=cell.growing))
    for source in ("data", "positions"):
        buffer.feed(source, ScanStarted("a"), 0)
    for first, stop in pairwise((0, 24, 40, 41, 70, 96) if cell.growing else (0, 96)):
        part = tuple(Payload(c.tobytes(), "raw", c.dtype, c.shape) for c in counts[first:stop])
        buffer.feed("positions", Samples("a", first, {"y": places[first:stop, 0], "x": places[first:stop, 1]}), 0)
        buffer.feed("data", Frames("a", np.arange(first, stop), part), 0)
        for _ in range(3 if stop < BEAM.frames else 0):
            loop.step()
    for source in ("data", "positions"):
        buffer.feed(source, ScanEnded("a", BEAM.frames), 0)
    while loop.step() is not Step.DONE:
        pass
    return run


def middle(run: Run) -> np.ndarray:
    """The object's part that every frame set covers well, 64 pixels a side about physical zero."""
    (storage,) = run.reconstruction.objects.values()
    y, x = (-o - 32 for o in storage.offset)
    return np.asarray(storage.data[0, y : y + 64, x : x + 64])


def phase_error(sample: np.ndarray, found: np.ndarray) -> float:
    """Of 64 × 64 pixels in the middle of the truth, and of what was found there."""
    y, x = (n // 2 - 32 for n in sample.shape)
    return float(align(sample[y : y + 64, x : x + 64], found, np.ones((64, 64))).phase_std)


def figures(cell: Cell) -> dict[str, float]:
    """What a cell came to."""
    run, sample = reconstructed(cell), truth(cell.modes, cell.photons)[1]
    errors = run.history()[1]
    flat = np.ones((64, 64))
    found = {
        "first": float(errors[0, 0]),
        "misfit": float(errors[-1, 0]),
        "phase_rad": phase_error(sample, middle(run)),
    }
    if cell.growing:
        whole = reconstructed(Cell(cell.engine, cell.model, False, cell.modes, cell.photons))
        found["apart"] = align(middle(whole), middle(run), flat).complex_rms
    return found


def main(*engines: str) -> int:
    """Print the matrix, or its part of some engines; 1 where a cell misses what it must reach."""
    missed = 0
    print("| engine | model | scan | modes | photons | misfit, first → last | phase error, rad | growing against complete |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for cell in cells():
        if engines and cell.engine not in engines:
            continue
        f = figures(cell)
        bad = f["phase_rad"] > PHASE_RAD[cell.photons][cell.engine] or f.get("apart", 0) > APART or f["misfit"] > 0.3 * f["first"]
        missed += bad
        scan, apart = "growing" if cell.growing else "complete", f"{f['apart']:.3f}" if cell.growing else ""
        line = (
            f"| {cell.engine} | {cell.model} | {scan} | {cell.modes} | {cell.photons:.0e} | {f['first']:.3g} → {f['misfit']:.3g} "
        )
        print(f"{line}| {f['phase_rad']:.3f} | {apart} |{' missed' if bad else ''}", flush=True)
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
