"""Every parameter of every engine, and every choice of it, changes what a growing run comes to: none is dead.

What it changes, and whether that is right, is the matter of the tests of each engine. A parameter that is declared and has no
line here is an error, so that a new one cannot be forgotten.
"""

from __future__ import annotations

import math
from ast import literal_eval
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest
from every import Cases, digest, laid, leaves
from problems import BEAM, end, feed, make_run
from test_bragg import GEOMETRY, Store, add, problem, volumes

from ptystream.engine import Context
from ptystream.loop import Loop, LoopSettings, Step
from ptystream.model.opr import OPR
from ptystream.model.scan_model import Full
from ptystream.params.load import plugins
from ptystream.run import Run
from ptystream.run_state import EngineEntry
from ptystream.scan.block import EOS, WAIT

FRAMES, FIRST_FRAMES = 28, 17
PIXEL = BEAM.pixel_m
REFINED = {"position_refinement": {"start": 1, "stop": 6, "amplitude": 1.5 * PIXEL, "max_shift": 3 * PIXEL}}
"""Beside what is changed, where that only matters while positions are refined."""


def refinement(pixel: float = PIXEL) -> Cases:
    beside = {"position_refinement": {**REFINED["position_refinement"], "amplitude": 1.5 * pixel, "max_shift": 3 * pixel}}
    values = {
        "method": ["GridSearch"],
        "start": [3, {"after_last_frame": 1}],
        "stop": [3, None, {"after_last_frame": 2}],
        "interval": [2],
        "nshifts": [8],
        "amplitude": [0.7 * pixel],
        "amplitude_decay": [False],
        "max_shift": [0.3 * pixel],
        "metric": ["photon"],
        "record": [True],
    }
    return {f"position_refinement.{name}": (given, beside) for name, given in values.items()}


COMMON: Cases = {
    "numiter": ([4], {}),
    "numiter_contiguous": ([2], {}),
    "probe_support": ([0.1, None], {}),
    "probe_fourier_support": ([0.1], {}),
    "record_local_error": ([True], {}),
    "average_last": ([2], {}),
    "subpix": (["fourier", None], {}),
    "subpix_start": ([4], {}),
    **refinement(),
}
PROJECTION: Cases = {
    **COMMON,
    "probe_update_start": ([4], {}),
    "update_object_first": ([False], {}),
    "overlap_converge_factor": ([0.9], {}),
    "overlap_max_iterations": ([1], {}),
    "probe_inertia": ([0.5], {}),
    "object_inertia": ([0.5], {}),
    "fourier_power_bound": ([100.0], {}),
    "fourier_relax_factor": ([1.0], {}),
    "obj_smooth_std": ([2.0], {}),
    "clip_object": ([(0.9, 0.95)], {}),
    "probe_center_tol": ([1e-3], {}),
    "compute_log_likelihood": ([False], {}),
}
STOCHASTIC: Cases = {
    **COMMON,
    "batch": ([4], {}),
    "probe_update_start": ([4], {}),
    "probe_center_tol": ([1e-3], {}),
    "compute_log_likelihood": ([False], {}),
}
DM: Cases = {**PROJECTION, "alpha": ([0.5], {})}
ML: Cases = {
    **COMMON,
    "probe_update_start": ([4], {}),
    "ML_type": (["poisson", "euclid"], {}),
    "floating_intensities": ([True], {}),
    "intensity_renormalization": ([0.01], {}),
    "reg_del2": ([True], {}),
    "reg_del2_amplitude": ([1.0], {"reg_del2": True}),
    "smooth_gradient": ([2.0], {}),
    "smooth_gradient_decay": ([0.5], {"smooth_gradient": 2.0}),
    "scale_precond": ([True], {}),
    "scale_probe_object": ([0.1], {}),
    "wavefield_precond": ([True], {}),
    "wavefield_delta_object": ([1e3], {"wavefield_precond": True}),
    "wavefield_delta_probe": ([1e3], {"wavefield_precond": True}),
    "poly_line_coeffs": (["all"], {}),
}
SUBSPACE: Cases = {"subspace_dim": ([3], {}), "subspace_start": ([4], {"subspace_dim": 3})}
SHRINKING = {"sample_support": {"shrinkwrap": {"start": 1, "cutoff": 0.8}}}
BRAGG: Cases = {
    **DM,
    **refinement(0.1 * math.hypot(*GEOMETRY.resolution_m[1:])),
    "sample_support.type": (["rod"], SHRINKING),
    "sample_support.size": ([1e-7], {"sample_support": {"shrinkwrap": None}}),
    "sample_support.coefficient": ([0.5], SHRINKING),
    "sample_support.shrinkwrap.smooth": ([None, 2.0], SHRINKING),
    "sample_support.shrinkwrap.cutoff": ([0.3], SHRINKING),
    "sample_support.shrinkwrap.monotonic": ([False], {"sample_support": {"shrinkwrap": {"start": 1, "cutoff": 0.1}}}),
    "sample_support.shrinkwrap.start": ([3], SHRINKING),
    "sample_support.shrinkwrap.plot": ([True], SHRINKING),
    "extruded": ([False], {}),
}
ENGINES: Mapping[str, Cases] = {
    "DM": DM,
    "RAAR": {**PROJECTION, "beta": ([0.9], {})},
    "EPIE": {**STOCHASTIC, "alpha": ([0.5], {}), "beta": ([0.5], {}), "object_norm_is_global": ([True], {})},
    "SDR": {**STOCHASTIC, **{name: ([0.3], {}) for name in ("sigma", "tau", "beta_probe", "beta_object")}},
    "ML": ML,
    "DM_3dBragg": BRAGG,
    "DMOPR": {**SUBSPACE, "probe_inertia": ([0.5], {})},
    "MLOPR": {**SUBSPACE, "scale_precond": ([False], {})},
}
ALIKE = {"DMOPR": "DM", "MLOPR": "ML"}
"""Engines that are another one and what they have here."""
BASE: Mapping[str, dict[str, Any]] = {"SDR": {"sigma": 0.5, "tau": 0.5}}
"""What every run of an engine is given."""


def grown(engine: str, given: dict[str, Any]) -> Run:
    """A run whose frames come in two parts."""
    run = make_run(
        engines=[{"numiter": 3, **BASE.get(engine, {}), **given}],
        engine=plugins("engines")[engine],
        model=OPR if engine.endswith("OPR") else Full,
    )
    loop = Loop(run, LoopSettings(min_frames_for_recon=FIRST_FRAMES))
    feed(run, 0, FIRST_FRAMES)
    loop.step()
    loop.step()
    feed(run, FIRST_FRAMES, FRAMES)
    loop.step()
    end(run, FRAMES)
    return to_the_end(loop)


def to_the_end(loop: Loop) -> Run:
    for _ in range(20):
        if loop.step() is Step.DONE:
            return loop.run
    pytest.fail("the run does not end")


class Curves:
    """A scan of rocking curves in memory, in the place of buffer and model."""

    label, number, waiting, ended, at_once = "s", 0, (), False, False

    def __init__(self) -> None:
        self.buffer, self.over = self, False

    def revisions(self) -> tuple[()]:
        return ()

    def take(self, limit: int, ranks: int = 1) -> Any:
        return EOS if self.over else WAIT


def grown_bragg(given: dict[str, Any]) -> Run:
    """The same of rocking curves."""
    q, scan, engine = problem(5), Curves(), plugins("engines")["DM_3dBragg"]
    entry = EngineEntry("e", "DM_3dBragg", engine.Parameters(**{"numiter": 3, **given}), engine)
    run = Run("test", [scan], [entry], Context())  # type: ignore[list-item]
    photons = {"mean_photons": float(q.photons.mean() / q.counts[0].size), "brightest_photons": float(q.photons.max())}
    run.decisions, run._stores, run.reconstruction = {"s": photons}, {0: Store(q)}, volumes(q)
    loop = Loop(run, LoopSettings(min_frames_for_recon=3))
    add(run.reconstruction, q, np.arange(3))
    loop.step()
    loop.step()
    run.engine.extend(add(run.reconstruction, q, np.arange(3, 5)))
    loop.step()
    scan.over = scan.buffer.ended = True
    run.engine.complete()
    return to_the_end(loop)


@cache
def outcome(engine: str, text: str) -> str:
    """What a run came to, in short; parameters as text, so that runs with nothing changed are made once."""
    given = literal_eval(text)
    run = grown_bragg(given) if engine == "DM_3dBragg" else grown(engine, given)
    made = run.reconstruction
    infos = [{k: v for k, v in info.items() if k not in ("duration", "numiter")} for info in run.iter_info]
    done = [e for e in run.schedule if e["do"] != "engine"]
    held = [storage.data for storage in (*made.probes.values(), *made.objects.values())]
    return digest(held, run.history(), infos, done, run.refined(), run.local_errors(), run.positions())


def test_every_engine_has_its_lines_here() -> None:
    assert set(plugins("engines")) == {*ENGINES, "PyPty"}  # its own: multislice/test_every_pypty_parameter.py


@pytest.mark.parametrize("engine", ENGINES)
def test_every_parameter_of_an_engine_has_a_line_here(engine: str) -> None:
    declared = set(leaves(plugins("engines")[engine].Parameters)) - {"name"}
    alike = set(ENGINES[ALIKE[engine]]) if engine in ALIKE else set()
    assert declared == set(ENGINES[engine]) | alike


@pytest.mark.parametrize("engine", ENGINES)
def test_the_same_parameters_come_to_the_same(engine: str) -> None:
    outcome.cache_clear()
    first = outcome(engine, "{}")
    outcome.cache_clear()
    assert outcome(engine, "{}") == first


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "path"), [(engine, path) for engine, cases in ENGINES.items() for path in cases])
def test_every_value_makes_a_difference(engine: str, path: str) -> None:
    values, beside = ENGINES[engine][path]
    came = [outcome(engine, repr(beside))] + [outcome(engine, repr(laid(beside, path, value))) for value in values]
    assert len(set(came)) == len(came), f"{path}: {values}"
