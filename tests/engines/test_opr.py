"""A probe for each frame, and the subspace that an engine keeps them in."""

import numpy as np
import pytest
from problems import BEAM, PATTERNS, end, feed, make_run

from ptystream.engine import Context
from ptystream.engines.backend import BACKENDS
from ptystream.engines.dm import DM
from ptystream.engines.opr import DMOPR, projected
from ptystream.loop import Loop, LoopSettings, Step
from ptystream.model.opr import OPR
from ptystream.run import Run

SETTINGS = {"overlap_max_iterations": 2, "probe_update_start": 1, "subpix": "linear"}


def drifting() -> np.ndarray:
    """Patterns of a beam whose probe wanders between three shapes."""
    probe, sample = BEAM.probe(), BEAM.object()
    phase = 2 * np.pi * np.arange(BEAM.frames) / BEAM.frames
    others = np.roll(probe, 5, axis=0), np.roll(probe, -4, axis=1)
    shapes = [probe + 0.4 * np.sin(p) * others[0] + 0.4 * np.cos(2 * p) * others[1] for p in phase]
    return np.stack([BEAM.pattern(k, (shape, sample)) for k, shape in enumerate(shapes)])


def reconstructed(run: Run, patterns: np.ndarray, blocks: tuple[int, ...] = (BEAM.frames,)) -> Run:
    loop, first = Loop(run, LoopSettings(min_frames_for_recon=20)), 0
    for stop in blocks:
        feed(run, first, stop, patterns=patterns)
        first = stop
        if stop < BEAM.frames:
            loop.step()
    end(run)
    for _ in range(300):
        if loop.step() is Step.DONE:
            return run
    pytest.fail("the run does not end")


def misfit(run: Run) -> float:
    return float(run.history()[1][-1, 0])


@pytest.mark.parametrize(("frames", "dimensions"), [(12, 1), (12, 3), (5, 7)])
def test_the_subspace_is_that_of_a_singular_value_decomposition(frames: int, dimensions: int) -> None:
    r = np.random.default_rng(0)
    probes = r.normal(size=(frames, 7, 9)) + 1j * r.normal(size=(frames, 7, 9))
    left, values, right = np.linalg.svd(probes.reshape(frames, -1), full_matrices=False)
    values[dimensions:] = 0
    on = BACKENDS["cpu"](Context(precision="double"))
    np.testing.assert_allclose(
        projected(on, probes, dimensions), ((left * values) @ right).reshape(probes.shape), rtol=1e-9, atol=1e-9
    )


def test_probes_that_wander_fit_in_a_subspace_and_not_in_one_probe() -> None:
    patterns = drifting()
    one = reconstructed(make_run(engines=[{"numiter": 25, **SETTINGS}]), patterns)
    flat = reconstructed(make_run(engines=[{"numiter": 25, **SETTINGS}], engine=DMOPR, model=OPR), patterns)
    wide = {"numiter": 25, "subspace_dim": 3, "subspace_start": 5, **SETTINGS}
    relaxed = reconstructed(make_run(engines=[wide], engine=DMOPR, model=OPR), patterns)
    assert misfit(flat) < 1.05 * misfit(one)
    assert misfit(relaxed) < 0.6 * misfit(one)
    probes = next(iter(relaxed.reconstruction.probes.values()))
    values = np.linalg.svd(probes.data.reshape(BEAM.frames, -1), compute_uv=False)
    assert values[3] < 1e-4 * values[0]
    assert values[2] > 1e-2 * values[0]


def test_the_subspace_widens_when_it_is_to() -> None:
    def rank(iterations: int) -> int:
        parameters = {"numiter": iterations, "subspace_dim": 3, "subspace_start": 4, **SETTINGS}
        run = reconstructed(make_run(engines=[parameters], engine=DMOPR, model=OPR), PATTERNS)
        values = np.linalg.svd(next(iter(run.reconstruction.probes.values())).data.reshape(BEAM.frames, -1), compute_uv=False)
        return int((values > 1e-4 * values[0]).sum())

    assert rank(4) == 1
    assert rank(6) == 3


@pytest.mark.parametrize("latency", [None, 1e-9])
def test_frames_that_come_while_it_runs_bring_probes_of_their_own(latency: float | None) -> None:
    patterns = drifting()
    parameters = {"numiter": 25, "subspace_dim": 3, **SETTINGS}
    whole = reconstructed(make_run(engines=[parameters], engine=DMOPR, model=OPR), patterns)
    run = make_run(engines=[parameters], engine=DMOPR, model=OPR)
    loop, first = Loop(run, LoopSettings(min_frames_for_recon=20, latency_s=latency)), 0
    for stop in (30, 31, 60, 92):
        feed(run, first, stop, patterns=patterns)
        first = stop
        loop.step()
    end(run)
    while loop.step() is not Step.DONE:
        pass
    (storage,) = run.reconstruction.probes.values()
    assert len(storage.data) == BEAM.frames
    assert run.reconstruction.pods.address[:, 0, 1].tolist() == list(range(BEAM.frames))
    assert misfit(run) < 1.2 * misfit(whole)
    assert run.snapshot({}).probe["SsG00"].data.shape == (1, BEAM.side, BEAM.side)


def test_a_restart_gives_every_frame_the_first_probe() -> None:
    run = make_run(engines=[{"numiter": 5, **SETTINGS}], engine=DMOPR, model=OPR)
    loop = Loop(run, LoopSettings(min_frames_for_recon=20, restart_probe=True))
    feed(run, 0, 50)
    loop.step()
    first = run.engine._first_probes["SsG00"].copy()
    feed(run, 50, 92)
    loop.step()
    run.engine.restart()
    assert (run.reconstruction.probes["SsG00"].data == first).all()


def test_without_a_probe_for_each_frame_the_engine_says_what_it_needs() -> None:
    run = make_run(engine=DMOPR)
    feed(run, 0, 92)
    with pytest.raises(ValueError, match="OPRModel"):
        Loop(run, LoopSettings(min_frames_for_recon=20)).step()


def test_the_difference_map_takes_probes_of_each_frame_as_they_are() -> None:
    run = reconstructed(make_run(engines=[{"numiter": 5, "probe_inertia": 1.0, **SETTINGS}], engine=DM, model=OPR), PATTERNS)
    assert len(run.reconstruction.probes["SsG00"].data) == BEAM.frames
