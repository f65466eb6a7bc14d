"""A probe for each frame, and the subspace that an engine keeps them in."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from cuda import COMPILER
from device import device
from problems import BEAM, PATTERNS, end, feed, make_run

from ptystream.engine import Context
from ptystream.engines import opr
from ptystream.engines.backend import BACKENDS, Backend
from ptystream.engines.dm import DM
from ptystream.engines.ml import ML
from ptystream.engines.opr import DMOPR, MLOPR, keep_tangent, products, project
from ptystream.loop import Loop, LoopSettings, Step
from ptystream.model.opr import OPR, OPRParameters
from ptystream.model.subspace import leading
from ptystream.params.load import load
from ptystream.reconstruction import Storage
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


def projected(on: Backend, probes: np.ndarray, dimensions: int) -> np.ndarray:
    made = probes.copy()
    project(on, made, dimensions)
    return made


def tangent(on: Backend, probes: np.ndarray, change: np.ndarray, dimensions: int) -> np.ndarray:
    made = change.copy()
    keep_tangent(on, leading(products(on), probes.reshape(len(probes), -1), dimensions), made, dimensions)
    return made


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_subspace_widens_when_it_is_to() -> None:
    def rank(iterations: int) -> int:
        parameters = {"numiter": iterations, "subspace_dim": 3, "subspace_start": 4, **SETTINGS}
        run = reconstructed(make_run(engines=[parameters], engine=DMOPR, model=OPR), PATTERNS)
        values = np.linalg.svd(next(iter(run.reconstruction.probes.values())).data.reshape(BEAM.frames, -1), compute_uv=False)
        return int((values > 1e-4 * values[0]).sum())

    assert rank(4) == 1
    assert rank(6) == 3


@pytest.mark.slow
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


# ------------------------------------------------------------------ maximum likelihood


LIKELY = {"numiter": 60, "probe_update_start": 1, "subpix": "linear"}


def singular_values(run: Run) -> np.ndarray:
    """Of the probes of all frames, over the largest."""
    probes = next(iter(run.reconstruction.probes.values())).data
    values: np.ndarray = np.linalg.svd(probes.reshape(len(probes), -1), compute_uv=False)
    return values / values[0]


def random(r: np.random.Generator, *shape: int) -> np.ndarray:
    return r.normal(size=shape) + 1j * r.normal(size=shape)


@pytest.mark.parametrize("dimensions", [1, 3])
def test_along_the_tangent_probes_stay_in_the_subspace_to_first_order(dimensions: int) -> None:
    r, on = np.random.default_rng(1), BACKENDS["cpu"](Context(precision="double"))
    probes = (random(r, 12, dimensions) @ random(r, dimensions, 63)).reshape(12, 7, 9)
    change = random(r, 12, 7, 9)
    along = tangent(on, probes, change, dimensions)
    left = [np.abs(projected(on, probes + e * along, dimensions) - probes - e * along).max() for e in (1e-2, 1e-3)]
    assert left[1] < 0.02 * left[0]
    np.testing.assert_allclose(tangent(on, probes, along, dimensions), along, atol=1e-9)
    for _ in range(5):  # what is left out is orthogonal to every such change
        other = tangent(on, probes, random(r, 12, 7, 9), dimensions)
        assert abs(np.vdot(other, change - along)) < 1e-9
    assert np.abs(change - along).max() > 0.1


def test_probes_of_too_few_dimensions_go_where_the_change_is_largest() -> None:
    r, on = np.random.default_rng(2), BACKENDS["cpu"](Context(precision="double"))
    probes, change = np.tile(random(r, 7, 9), (12, 1, 1)), random(r, 12, 7, 9)
    one, three = (tangent(on, probes, change, d).reshape(12, -1) for d in (1, 3))
    rest = change.reshape(12, -1) - one
    left, values, right = np.linalg.svd(rest, full_matrices=False)
    np.testing.assert_allclose(three - one, (left[:, :2] * values[:2]) @ right[:2], atol=1e-9)
    np.testing.assert_array_equal(tangent(on, probes[:3], change[:3], 3), change[:3])


@pytest.mark.slow
def test_likely_probes_that_wander_fit_in_a_subspace_and_not_in_one_probe() -> None:
    patterns = drifting()
    one = reconstructed(make_run(engines=[{"scale_precond": True, **LIKELY}], engine=ML), patterns)
    flat = reconstructed(make_run(engines=[LIKELY], engine=MLOPR, model=OPR), patterns)
    relaxed = reconstructed(make_run(engines=[{"subspace_dim": 3, **LIKELY}], engine=MLOPR, model=OPR), patterns)
    assert misfit(flat) < 1.05 * misfit(one)
    assert misfit(relaxed) < 0.3 * misfit(one)
    assert singular_values(flat)[1] < 1e-4
    assert singular_values(relaxed)[2] > 1e-2
    assert singular_values(relaxed)[3] < 1e-4


@pytest.mark.slow
def test_the_cost_sinks_from_step_to_step() -> None:
    run = reconstructed(make_run(engines=[{"subspace_dim": 3, **LIKELY}], engine=MLOPR, model=OPR), drifting())
    cost = run.history()[0][:, 1]
    assert np.count_nonzero(np.diff(cost) > 1e-4 * cost[:-1]) <= 3
    assert cost[-1] < 0.1 * cost[0]


@pytest.mark.slow
@pytest.mark.parametrize("modes", [1, 2])
def test_the_subspace_of_likely_probes_widens_when_it_is_to(modes: int) -> None:
    def ranks(iterations: int) -> list[int]:
        given = {**LIKELY, "numiter": iterations, "subspace_dim": 3, "subspace_start": 4}
        parameters = staticmethod(partial(OPRParameters, coherence={"num_probe_modes": modes}))
        model = type("Modes", (OPR,), {"Parameters": parameters})
        run = reconstructed(make_run(engines=[given], engine=MLOPR, model=model), drifting())
        data = next(iter(run.reconstruction.probes.values())).data
        assert len(data) == modes * BEAM.frames
        values = [np.linalg.svd(data[m::modes].reshape(BEAM.frames, -1), compute_uv=False) for m in range(modes)]
        return [int((v > 1e-5 * v[0]).sum()) for v in values]

    assert ranks(4) == [1] * modes
    assert ranks(8) == [3] * modes


@pytest.mark.slow
@pytest.mark.parametrize("latency", [None, 1e-9])
def test_frames_that_come_get_likely_probes_as_good_as_at_once(latency: float | None) -> None:
    patterns, given = drifting(), {"subspace_dim": 3, **LIKELY}
    whole = reconstructed(make_run(engines=[given], engine=MLOPR, model=OPR), patterns)
    run = make_run(engines=[given], engine=MLOPR, model=OPR)
    loop, first = Loop(run, LoopSettings(min_frames_for_recon=20, latency_s=latency)), 0
    for stop in (30, 31, 60, 92):
        feed(run, first, stop, patterns=patterns)
        first = stop
        loop.step()
    end(run)
    while loop.step() is not Step.DONE:
        pass
    assert misfit(run) < 1.2 * misfit(whole)
    assert singular_values(run)[3] < 1e-4


def begun(threads: int = 1, iterations: int = 6, **given: object) -> tuple[Run, Loop]:
    """A run of all frames after some iterations."""
    run = make_run(engines=[{**LIKELY, "subspace_dim": 3, **given}], engine=MLOPR, model=OPR, threads=threads)
    loop = Loop(run, LoopSettings(min_frames_for_recon=20))
    feed(run, 0, BEAM.frames, patterns=drifting())
    loop.step()
    run.engine.iterate(iterations)
    return run, loop


@pytest.mark.slow
def test_a_shorter_step_leads_from_the_same_start() -> None:
    engine = begun()[0].engine
    storage, taken, start = engine.reconstruction.probes["SsG00"], engine._taken, engine._started["probe SsG00"].copy()
    sample = next(iter(engine.reconstruction.objects.values()))
    (name,) = (name for name in taken.steps if name.startswith("object"))
    before = sample.data - taken.length * taken.steps[name]
    assert taken.length > 0
    for part in (0.5, 0.2):
        engine._move_again(engine._taken, part * taken.length)
        engine._taken = type(taken)(taken.cost, taken.slope, part * taken.length, taken.steps)
        wanted = projected(engine.on, start + np.float32(part * taken.length) * taken.steps["probe SsG00"], 3)
        np.testing.assert_allclose(storage.data, wanted, atol=1e-4 * np.abs(wanted).max())
        np.testing.assert_allclose(sample.data, before + part * taken.length * taken.steps[name], atol=1e-4)


def test_probes_that_moved_are_projected_to_the_closest_weak_dimensions_included(monkeypatch: pytest.MonkeyPatch) -> None:
    r, on, sought = np.random.default_rng(5), BACKENDS["cpu"](Context()), []
    left, right = (np.linalg.qr(random(r, *shape))[0] for shape in ((60, 2), (400, 2)))
    before = ((left * [1, 1e-4]) @ right.T).reshape(60, 20, 20).astype(np.complex64)
    step = tangent(on, before, random(r, *before.shape).astype(np.complex64), 2)
    moved = before + 1e-4 * step / np.linalg.norm(step)
    u, values, v = np.linalg.svd(moved.reshape(60, -1).astype(complex), full_matrices=False)
    best = ((u[:, :2] * values[:2]) @ v[:2]).reshape(moved.shape)
    engine = MLOPR(MLOPR.Parameters(subspace_dim=2))
    engine.on, engine.curiter, storage = on, 0, Storage(moved.copy(), None, modes_per_frame=1)
    monkeypatch.setattr(opr, "project", lambda *given: sought.append(given[3].copy()) or project(*given))
    engine._retract("probe", storage)
    np.testing.assert_array_equal(sought[0], moved)  # among the moved ones, which have what is new
    assert np.linalg.norm(storage.data - best) < 1e-2 * values[1]


@pytest.mark.slow
def test_fewer_dimensions_are_taken_while_it_runs() -> None:
    run, _ = begun()
    assert singular_values(run)[2] > 1e-3
    run.engine.configure(MLOPR.Parameters(**{**LIKELY, "subspace_dim": 1}))
    cost = run.engine.iterate(8).errors[:, 1]
    assert singular_values(run)[1] < 1e-4
    assert cost[-1] < 0.99 * cost[0]


@pytest.mark.slow
@pytest.mark.parametrize("subpix", [None, "linear", "fourier"])
def test_the_gradient_of_each_frames_probe_is_the_slope_of_the_cost(subpix: str | None) -> None:
    engine, r = begun(threads=3, subpix=subpix)[0].engine, np.random.default_rng(3)
    found = engine.likelihood.descend(engine.tiles, probes=True)
    ((num, _),) = found.probes
    step = random(r, *num.shape).astype(np.complex64)
    still = [np.zeros_like(storage.data) for storage in engine.reconstruction.objects.values()]
    slope = engine.likelihood.along(engine.tiles, still, [step], every=False)[1]
    inner = 2 * np.vdot(num.astype(np.complex128), step).real
    assert slope == pytest.approx(inner, rel=2e-3)


@pytest.mark.slow
def test_the_number_of_threads_does_not_change_a_bit_of_likely_probes() -> None:
    one, three = (begun(threads)[0] for threads in (1, 3))
    np.testing.assert_array_equal(*(next(iter(run.reconstruction.probes.values())).data for run in (one, three)))


def test_maximum_likelihood_without_a_probe_for_each_frame_says_what_it_needs() -> None:
    run = make_run(engine=MLOPR)
    feed(run, 0, 92)
    with pytest.raises(ValueError, match="MLOPR: needs a scan with `name: OPRModel`"):
        Loop(run, LoopSettings(min_frames_for_recon=20)).step()


def test_the_engine_is_found_by_its_name() -> None:
    source = {"name": "ZmqScan", "address": "tcp://127.0.0.1:5570"}
    scan = {"name": "OPRModel", "data": {**source, "shape": 32, "positions": {**source, "unit": "px"}}}
    held = load({"scans": {"s": scan}, "engines": {"a": {"name": "MLOPR", "subspace_dim": 4}}}).engines[0]
    assert held.engine is MLOPR
    assert (held.parameters.subspace_dim, held.parameters.subspace_start, held.parameters.scale_precond) == (4, 0, True)


@pytest.mark.slow
def test_likely_probes_of_a_device_are_those_of_the_cpu(
    monkeypatch: pytest.MonkeyPatch, require: Callable[[str, bool], None]
) -> None:
    require("c++", COMPILER is not None)
    monkeypatch.setitem(BACKENDS, "gpu", device)
    results = []
    for where in ("cpu", "gpu"):
        run = make_run(engines=[{**LIKELY, "subspace_dim": 2, "numiter": 3}], engine=MLOPR, model=OPR)
        run.context = replace(run.context, device=where, precision="double")
        run = reconstructed(run, drifting())
        results.append((run.history()[0][:, 1], next(iter(run.reconstruction.probes.values())).data))
    for cpu, gpu in zip(*results, strict=True):
        np.testing.assert_allclose(gpu, cpu, rtol=1e-5, atol=1e-5 * np.abs(cpu).max())
