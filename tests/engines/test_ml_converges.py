"""ML on a small simulated scan (moon and flower), from the model's own start to noise: all at once, and as it grows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from problems import BEAM, end, feed, make_scan
from test_refinement import METHODS, Lost

from ptystream.engine import Context
from ptystream.engines.dm import DM
from ptystream.engines.epie import EPIE
from ptystream.engines.likelihood import LIKELIHOODS
from ptystream.engines.line import step_length
from ptystream.engines.ml import ML
from ptystream.engines.sdr import SDR
from ptystream.loop import Loop, LoopSettings, Step
from ptystream.quality import align
from ptystream.run import Run
from ptystream.run_state import EngineEntry


def reconstruct(*, step: int = BEAM.frames, first: int = 0, **parameters: Any) -> Run:
    """A run to its end; `step` frames come between two passes of the loop; `first`: iterations of DM before those of ML."""
    engines = [EngineEntry("e1", "ML", ML.Parameters(**parameters), ML)]
    if first:
        engines.insert(0, EngineEntry("e0", "DM", DM.Parameters(numiter=first), DM))
    made = Run("test", [make_scan("s", 0)], engines, Context())
    loop, fed = Loop(made, LoopSettings()), 0
    while True:
        if fed < BEAM.frames:
            feed(made, fed, min(BEAM.frames, fed + step))
            fed = min(BEAM.frames, fed + step)
            if fed == BEAM.frames:
                end(made)
        if loop.step() is Step.DONE:
            return made


def misfit(run: Run) -> np.ndarray:
    return np.concatenate(run.misfit)


def middle(run: Run) -> np.ndarray:
    """The object around physical zero, where every pixel is well lit."""
    assert run.reconstruction is not None
    held = next(iter(run.reconstruction.objects.values()))
    y, x = (-24 - o for o in held.offset)
    return held.data[0, y : y + 48, x : x + 48]


def apart(first: Run, second: Run) -> float:
    y, x = np.mgrid[-24:24, -24:24]
    return align(middle(first), middle(second), (np.hypot(y, x) < 18).astype(float)).complex_rms


@pytest.mark.slow
@pytest.mark.parametrize("line", ["quadratic", "all"])
@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_the_misfit_falls_towards_that_of_noise(kind: str, line: str) -> None:
    """From a flat disc. The logarithm to second order holds close to a model without dark pixels only: 'all' with 'poisson'
    begins with short steps."""
    slow = (kind, line) == ("poisson", "all")
    asked: Any = {"ML_type": kind, "poly_line_coeffs": line, "numiter": 90 if slow else 60}
    plain, better = reconstruct(**asked), reconstruct(**asked, scale_precond=True, wavefield_precond=True)
    errors = np.concatenate(plain.errors)[:, 1]
    assert errors[-1] < (0.9 if slow else 0.3) * errors[0]
    assert misfit(better)[-1, 0] < (0.3 if slow else 0.1) * misfit(better)[0, 0]
    if kind == "gaussian":
        assert misfit(better)[-1, 1] < 2.5 * misfit(better)[-1, 2]


def test_no_iteration_along_the_whole_polynomial_makes_the_gaussian_cost_larger() -> None:
    errors = np.concatenate(reconstruct(poly_line_coeffs="all", numiter=40, scale_precond=True).errors)[:, 1]
    assert (np.diff(errors) <= 1e-5 * errors[1:]).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gaussian", "euclid"])
def test_a_scan_that_grows_ends_like_one_that_is_complete(kind: str) -> None:
    """No further from it than twice the iterations are, up to what a fixed number of them leaves open."""
    given = {"ML_type": kind, "scale_precond": True}
    whole, longer = (reconstruct(numiter=n, **given) for n in (100, 200))
    growing = reconstruct(numiter=100, step=8, **given)
    assert len(misfit(growing)) > len(misfit(whole))
    assert misfit(growing)[-1, 0] == pytest.approx(misfit(whole)[-1, 0], rel=0.03)
    assert apart(whole, growing) < 1.2 * apart(whole, longer) + 0.03


@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_after_the_difference_map_it_comes_close_to_noise(kind: str) -> None:
    run = reconstruct(first=40, numiter=30, ML_type=kind, wavefield_precond=True)
    errors, found = np.concatenate(run.errors)[40:, 1], misfit(run)
    assert errors[-1] < 0.75 * errors[0]
    if kind != "poisson":  # which weighs the counts otherwise
        assert found[-1, 1] < 0.75 * found[39, 1]
        assert found[-1, 1] < 2.5 * found[-1, 2]


def test_a_schedule_of_growth_repeats_to_the_same_bits() -> None:
    given = {"numiter": 6, "step": 20, "ML_type": "poisson", "reg_del2": True, "floating_intensities": True}
    np.testing.assert_array_equal(middle(reconstruct(**given)), middle(reconstruct(**given)))


def test_the_prior_makes_the_object_smoother() -> None:
    def rough(run: Run) -> float:
        held = middle(run)
        return float((np.abs(np.diff(held, axis=0)) ** 2).mean() + (np.abs(np.diff(held, axis=1)) ** 2).mean())

    free, weak, strong = (
        reconstruct(numiter=40, scale_precond=True, reg_del2=amplitude > 0, reg_del2_amplitude=amplitude)
        for amplitude in (0.0, 0.1, 1.0)
    )
    assert rough(free) > rough(weak) > rough(strong)


@pytest.mark.slow
def test_offsets_of_two_pixels_are_found() -> None:
    lost = Lost(2.0)
    lost.weights = None
    refine = {**METHODS["Annealing"], "start": 10, "max_shift": 6.0}
    engine = lost.engine(ML, numiter=100, position_refinement=refine, scale_precond=True)
    assert lost.apart(engine) == pytest.approx(2.0, abs=1e-4)
    engine.complete()
    engine.iterate(100)
    assert lost.apart(engine) <= 0.4


@pytest.mark.parametrize("prior", [False, True])
def test_a_last_step_that_made_the_cost_larger_is_taken_back(prior: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"numiter": 1, "probe_update_start": 0, "reg_del2": prior, "reg_del2_amplitude": 0.1}
    far = reconstruct(**given)
    monkeypatch.setattr("ptystream.engines.ml.step_length", lambda curve, every: 6 * step_length(curve, every=every))
    too_far = reconstruct(**given)
    monkeypatch.undo()

    def cost(run: Run) -> float:
        """Of what a run ended with, as a new engine finds it."""
        assert run.reconstruction is not None
        engine = ML(ML.Parameters(**given))
        engine.start(run.reconstruction, run._stores, Context())
        return float(engine.iterate(1).errors[0, 1])

    assert cost(too_far) < float(too_far.history()[0][0, 1])
    assert cost(far) < float(far.history()[0][0, 1])


@pytest.mark.parametrize(("name", "settings"), [("EPIE", {}), ("SDR", {"sigma": 0.5, "tau": 0.1}), ("DM", {}), ("ML", {})])
def test_an_engine_goes_on_where_the_difference_map_has_left_wild_pixels_in_the_dark(name: str, settings: dict[str, Any]) -> None:
    kind = {"EPIE": EPIE, "SDR": SDR, "DM": DM, "ML": ML}[name]
    first = EngineEntry("e0", "DM", DM.Parameters(numiter=60), DM)
    made = Run(
        "test", [make_scan("s", 0)], [first, EngineEntry("e1", name, kind.Parameters(numiter=4, **settings), kind)], Context()
    )
    feed(made, 0, BEAM.frames)
    end(made)
    loop = Loop(made, LoopSettings())
    while loop.step() is not Step.DONE:
        pass
    found = misfit(made)[:, 1]
    assert found[60:].max() < 3 * found[59]
