"""ML against finite differences and the oracle; what each parameter does; frames that come, move and go."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from oracle import Problem
from oracle_ml import Model, ml
from test_dm import FRAMES, SIDE, add, problem
from test_dm import Store as PlainStore

from ptystream.engine import Context
from ptystream.engines.constraints import disc
from ptystream.engines.likelihood import LIKELIHOODS
from ptystream.engines.ml import ML
from ptystream.reconstruction import PodTable, Reconstruction, Storage

OFFSET = (-7, 5)


class Store(PlainStore):
    """With statistical weights."""

    weights: np.ndarray | None = None


def parameters(**changed: Any) -> dict[str, Any]:
    return ML.Parameters(**({"probe_update_start": 1, "subpix": None} | changed)).model_dump()


def near(q: Problem, share: float = 0.3) -> Problem:
    """Closer to a solution, where parabolas open upwards."""
    r = np.random.default_rng(5)
    noise = r.normal(size=q.probe.shape) + 1j * r.normal(size=q.probe.shape)
    q.probe = q.probe + share * noise
    for j, (y, x) in enumerate(q.corner):
        f = Model(q, parameters()).waves(j, q.probe, q.object)
        assert f.shape[1:] == (SIDE, SIDE) and y >= 0 and x >= 0
        q.counts[j] = r.poisson(np.abs(f).__pow__(2).sum(axis=0) * r.uniform(0.9, 1.1))
    q.counts[~q.valid] = 65535
    return q


def start(
    q: Problem,
    precision: str = "double",
    threads: int = 1,
    rows: int | None = None,
    device: str = "cpu",
    weights: np.ndarray | None = None,
    **given: Any,
) -> ML:
    """The engine on a problem, or on its first rows; the lattice does not begin at zero."""
    pods = [(k, m) for k in range(len(q.probe)) for m in range(len(q.object))]
    made = Reconstruction(
        {"p": Storage(q.probe.copy(), None, (0, 0), 0.0)}, {"o": Storage(q.object.copy(), None, OFFSET, 1.0)}, PodTable(len(pods))
    )
    engine = ML(ML.Parameters(**given))
    mask = np.ones(q.counts.shape[1:], np.uint8)
    mask[~(q.valid | (q.counts >= 65535)).all(axis=0)] = 0
    engine.everything = (q, pods, made)
    add(engine, np.arange(len(q.counts) if rows is None else rows))
    store = Store(np.minimum(q.counts, 65535), mask)
    store.weights = weights
    engine.start(made, {0: store}, Context(device=device, threads=threads, precision=precision))
    return engine


def held(engine: ML) -> tuple[np.ndarray, np.ndarray]:
    shot = engine.snapshot()
    return shot.probes["p"].data, shot.objects["o"].data


def gradient_of(engine: ML) -> tuple[np.ndarray, np.ndarray]:
    """(by object, by probe), prior included."""
    engine.likelihood.configure(engine.p)
    engine.sight.subpix = engine._subpix()
    found = engine.likelihood.descend(engine.tiles, probes=True)
    by_object = found.objects[0][0]
    if engine.p.reg_del2:
        smoothness, amplitude = engine._prior(np.concatenate([tile.rows for tile in engine.tiles]))
        by_object = by_object + smoothness.gradients([engine.reconstruction.objects["o"].data], amplitude)[0]
    return by_object, found.probes[0][0]


kinds = pytest.mark.parametrize("kind", LIKELIHOODS)


@kinds
@pytest.mark.parametrize("floating", [True, False])
@pytest.mark.parametrize("prior", [True, False])
@pytest.mark.parametrize("modes", [(1, 1), (2, 2)])
@pytest.mark.parametrize("subpix", [None, "linear", "fourier"])
def test_gradients_are_those_of_the_cost(
    kind: str, floating: bool, prior: bool, modes: tuple[int, int], subpix: str | None
) -> None:
    q = problem(*modes)
    weights = np.random.default_rng(1).uniform(0.5, 2, (SIDE, SIDE)).astype("f4")
    p = parameters(
        ML_type=kind,
        floating_intensities=floating,
        reg_del2=prior,
        subpix=subpix,
        intensity_renormalization=0.7,
        reg_del2_amplitude=1.0,
    )
    engine = start(q, weights=weights, **p)
    by_object, by_probe = gradient_of(engine)
    model = Model(q, p, weights.astype(float))
    r = np.random.default_rng(2)
    for size, which in ((by_object, "object"), (by_probe, "probe")):
        direction = r.normal(size=size.shape) + 1j * r.normal(size=size.shape)
        h = 1e-5

        def cost(t: float, which: str = which, direction: np.ndarray = direction) -> float:
            probe, obj = (q.probe + t * direction, q.object) if which == "probe" else (q.probe, q.object + t * direction)
            return model.costs(probe, obj).sum() + model.prior(obj)

        slope = (cost(h) - cost(-h)) / (2 * h)
        # The factor of floating intensities is the best one only up to the 1e-6 photons that are added.
        assert 2 * np.vdot(size, direction).real == pytest.approx(slope, rel=2e-4)


@kinds
@pytest.mark.parametrize("prior", [True, False])
@pytest.mark.parametrize("modes", [(1, 1), (2, 2)])
@pytest.mark.parametrize("subpix", [None, "linear", "fourier"])
def test_the_polynomial_is_the_cost_along_the_line(kind: str, prior: bool, modes: tuple[int, int], subpix: str | None) -> None:
    q = problem(*modes)
    p = parameters(ML_type=kind, subpix=subpix, reg_del2=prior, reg_del2_amplitude=3.0)
    engine = start(q, **p)
    gradient_of(engine)
    r = np.random.default_rng(2)
    dp, do = (r.normal(size=x.shape) + 1j * r.normal(size=x.shape) for x in (q.probe, q.object))
    c = engine.likelihood.along(engine.tiles, [do], [dp], every=True)
    if prior:
        smoothness, amplitude = engine._prior(np.concatenate([tile.rows for tile in engine.tiles]))
        c[1:3] += smoothness.line([q.object], [do], amplitude)
    model = Model(q, p)
    zero = model.costs(q.probe, q.object).sum() + model.prior(q.object)

    def cost(t: float) -> float:
        return model.costs(q.probe + t * dp, q.object + t * do).sum() + model.prior(q.object + t * do) - zero

    h = 1e-4 if kind == "gaussian" else 1e-6
    assert c[1] == pytest.approx((cost(h) - cost(-h)) / (2 * h), rel=1e-4)
    if kind == "gaussian":
        nodes = np.cos(np.pi * (np.arange(9) + 0.5) / 9)
        fitted = np.linalg.solve(np.vander(nodes, increasing=True), [cost(t) for t in nodes])
        np.testing.assert_allclose(c[1:], fitted[1:], rtol=1e-5, atol=1e-7 * np.abs(fitted).max())
        assert cost(0.7) == pytest.approx(np.polyval([*c[:0:-1], 0], 0.7), rel=1e-9)
    np.testing.assert_allclose(c[1:], model.line(q.probe, q.object, dp, do, [1.0] * FRAMES)[1:], rtol=1e-7)
    np.testing.assert_array_equal(engine.likelihood.along(engine.tiles, [do], None, every=True)[5:] > 0, [False] * 4)


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "linear": {"subpix": "linear"},
    "fourier": {"subpix": "fourier"},
    "late sub-pixels": {"subpix": "linear", "subpix_start": 2},
    "poisson": {"ML_type": "poisson"},
    "euclid": {"ML_type": "euclid"},
    "floating": {"floating_intensities": True},
    "level": {"intensity_renormalization": 0.3},
    "prior": {"reg_del2": True, "reg_del2_amplitude": 2.0},
    "stronger prior": {"reg_del2": True, "reg_del2_amplitude": 8.0},
    "smooth": {"smooth_gradient": 1.2},
    "less and less smooth": {"smooth_gradient": 1.2, "smooth_gradient_decay": 0.4},
    "scaled": {"scale_precond": True},
    "probe scale": {"scale_probe_object": 30.0},
    "wave field": {"wavefield_precond": True},
    "wave field, object": {"wavefield_precond": True, "wavefield_delta_object": 50.0},
    "wave field, probe": {"wavefield_precond": True, "wavefield_delta_probe": 5.0},
    "late probe": {"probe_update_start": 3},
    "probe at once": {"probe_update_start": 0},
    "no support": {"probe_support": None},
    "Fourier support": {"probe_fourier_support": 0.5},
    "all": {"poly_line_coeffs": "all"},
    "all, poisson": {"poly_line_coeffs": "all", "ML_type": "poisson"},
    "all, euclid": {"poly_line_coeffs": "all", "ML_type": "euclid"},
}


@pytest.mark.parametrize("name", sorted(CASES))
@pytest.mark.parametrize("modes", [(1, 1), (2, 2)])
def test_iterations_agree_with_the_oracle(name: str, modes: tuple[int, int]) -> None:
    q, p = near(problem(*modes)), parameters(**CASES[name])
    weights = np.random.default_rng(1).uniform(0.5, 2, (SIDE, SIDE)).astype("f4")
    engine = start(q, weights=weights, **p)
    progress = engine.iterate(4)
    q = ml(q, 4, p, weights.astype(float))
    np.testing.assert_allclose(progress.errors, q.errors, rtol=1e-6)
    probe, obj = held(engine)
    np.testing.assert_allclose(probe, q.probe, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(obj, q.object, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in CASES if n != "plain"])
def test_every_case_differs_from_the_plain_one(name: str) -> None:
    base = {
        k: v
        for k, v in CASES[name].items()
        if len(CASES[name]) > 1 and k in ("wavefield_precond", "subpix", "ML_type", "reg_del2", "smooth_gradient")
    }
    plain, changed = (start(near(problem(2)), **parameters(**case)) for case in (base, CASES[name]))
    plain.iterate(4)
    changed.iterate(4)
    apart = max(np.abs(a - b).max() for a, b in zip(held(plain), held(changed), strict=True))
    assert apart > 1e-4


@pytest.mark.parametrize("subpix", [None, "linear", "fourier"])
def test_the_number_of_threads_does_not_change_a_bit(subpix: str | None) -> None:
    found = []
    for threads in (1, 2, 3):
        engine = start(problem(2, 2, frames=40), "single", threads, **parameters(subpix=subpix, reg_del2=True))
        progress = engine.iterate(4)
        found.append((progress.errors, progress.misfit, *held(engine)))
        engine.finish()
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@kinds
@pytest.mark.parametrize("line", ["quadratic", "all"])
def test_single_precision_follows_double(kind: str, line: str) -> None:
    p = parameters(ML_type=kind, poly_line_coeffs=line, subpix="linear", scale_precond=True)
    single, double = (start(near(problem(2)), precision, **p) for precision in ("single", "double"))
    a, b = single.iterate(4), double.iterate(4)
    np.testing.assert_allclose(a.errors, b.errors, rtol=1e-3)
    assert held(single)[1].dtype == np.complex64
    assert np.abs(held(single)[1] - held(double)[1]).max() < 1e-2


def test_the_coverage_is_the_illumination_that_the_last_gradient_saw() -> None:
    engine, q = start(problem(2), **parameters()), problem(2)
    wanted = Model(q, parameters()).gradient(q.probe, q.object)[2]

    def found() -> np.ndarray:
        return engine.snapshot(("coverage",)).objects["o"].data

    np.testing.assert_allclose(found(), wanted.sum(axis=0, keepdims=True), rtol=1e-9)
    engine.iterate(1)
    engine.overlap.coverage = None  # nobody sums it again
    np.testing.assert_allclose(found(), wanted.sum(axis=0, keepdims=True), rtol=1e-9)


def test_the_error_is_the_cost_per_pixel_and_the_misfit_that_of_probe_times_object() -> None:
    q, p = problem(2), parameters(record_local_error=True)
    engine = start(q, **p)
    progress = engine.iterate(1)
    model = Model(q, p)
    costs = model.costs(q.probe, q.object) / SIDE**2
    assert progress.local is not None
    np.testing.assert_allclose(progress.local, np.stack([0 * costs, costs, 0 * costs], axis=1), rtol=1e-9)
    np.testing.assert_allclose(progress.errors, [[0, costs.mean(), 0]], rtol=1e-9)
    amplitude, photon = [], []
    for j in range(FRAMES):
        m, n = (np.abs(model.waves(j, q.probe, q.object)) ** 2).sum(axis=0), model.counts[j]
        amplitude.append(((np.sqrt(m) - np.sqrt(n)) ** 2)[q.valid[j]].mean())
        photon.append(((m - n) ** 2 / (n + 1))[q.valid[j]].mean())
    np.testing.assert_allclose(progress.misfit[0, :2], [np.mean(amplitude), np.mean(photon)], rtol=1e-9)
    assert 0 < progress.misfit[0, 2] < 1.1
    assert start(q, **parameters()).iterate(1).local is None


@pytest.mark.parametrize("batch", [1, 4, FRAMES - 1])
@kinds
def test_frames_that_come_in_blocks_end_in_the_same_state_as_at_once(batch: int, kind: str) -> None:
    q = problem(2)
    p = parameters(ML_type=kind, reg_del2=True, floating_intensities=True)
    whole, parts = start(q, **p), start(q, rows=1, **p)
    for first in range(1, FRAMES, batch):
        parts.extend(add(parts, np.arange(first, min(first + batch, FRAMES))))
    np.testing.assert_allclose(whole.iterate(4).errors, parts.iterate(4).errors, rtol=1e-8)
    np.testing.assert_allclose(held(whole)[1], held(parts)[1], rtol=1e-6, atol=1e-7)


def test_growing_the_canvas_while_running_changes_nothing_but_its_size() -> None:
    p = parameters(reg_del2=True, reg_del2_amplitude=2.0)
    grown, plain = start(problem(), **p), start(problem(), **p)
    for engine in (grown, plain):
        engine.iterate(2)
    storage = grown.reconstruction.objects["o"]
    assert storage.grow((-60, -40), (90, 80))
    np.testing.assert_allclose(grown.iterate(3).errors, plain.iterate(3).errors, rtol=1e-9)
    y, x = OFFSET[0] - storage.offset[0], OFFSET[1] - storage.offset[1]
    np.testing.assert_allclose(storage.data[:, y : y + 30, x : x + 31], held(plain)[1], rtol=1e-8)
    rest = storage.data.copy()
    rest[:, y : y + 30, x : x + 31] = 1
    np.testing.assert_array_equal(rest, 1)


@pytest.mark.parametrize("kind", ["gaussian", "poisson"])
def test_a_withdrawn_frame_leaves_the_sums_and_a_moved_one_counts_at_its_new_place(kind: str) -> None:
    q, without, straight = problem(), problem(), problem()
    p = parameters(ML_type=kind, reg_del2=True)
    for name in ("counts", "valid", "corner", "remainder", "weight"):
        setattr(without, name, getattr(without, name)[:-1])
    short, long = start(without, **p), start(q, **p)
    long.revise(np.array([FRAMES - 1]), "withdrawn")
    np.testing.assert_allclose(short.iterate(3).errors, long.iterate(3).errors, rtol=1e-8)
    moved = start(problem(), **p)
    straight.corner[4] = (3, 9)
    moved.reconstruction.pods.address[4, :, 4:] = np.array([3, 9]) + OFFSET
    moved.revise(np.array([4]), "position")
    np.testing.assert_allclose(moved.iterate(3).errors, start(straight, **p).iterate(3).errors, rtol=1e-8)


def test_from_its_first_update_on_a_probe_is_inside_its_support() -> None:
    """Not its gradient alone: what it began with outside of it goes."""
    engine = start(problem(), **parameters(probe_update_start=1, probe_support=0.4))
    outside = disc(held(engine)[0].shape[-2:], 0.4, np.dtype(float)) == 0
    engine.iterate(1)
    assert np.abs(held(engine)[0][:, outside]).min() > 0
    engine.iterate(2)
    assert not held(engine)[0][:, outside].any()
    engine.restart()
    assert held(engine)[0][:, outside].any()
    engine.iterate(1)
    assert not held(engine)[0][:, outside].any()
    engine.configure(engine.Parameters(**parameters(probe_update_start=1, probe_support=0.2)))
    engine.iterate(1)
    assert not held(engine)[0][:, disc(outside.shape, 0.2, np.dtype(float)) == 0].any()


@pytest.mark.parametrize("what", ["frame", "mask"])
def test_counts_and_masks_that_change_are_seen_at_the_next_iteration(what: str) -> None:
    p = parameters(ML_type="poisson", reg_del2=True, probe_support=None)
    engine, q = start(problem(), **p), problem()
    engine.iterate(1)
    if what == "frame":
        engine.frames[0].slab(1)[1] = 7
        q.counts[5], q.valid[5] = 7, q.valid.any(axis=0)
        engine.revise(np.array([5]), what)
    else:
        engine.frames[0].mask[2:5] = 0
        q.valid[:, 2:5] = False
        engine.revise(np.arange(FRAMES), what)
    q.probe, q.object = held(engine)
    np.testing.assert_allclose(engine.iterate(1).errors, start(q, **p).iterate(1).errors, rtol=1e-9)


def test_the_old_direction_counts_as_far_as_its_frames_are_still_the_same() -> None:
    shares = []

    def watched(engine: ML) -> ML:
        turn = engine.conjugate.turn

        def asked(*arguments: Any) -> Any:
            shares.append(arguments[-1])
            return turn(*arguments)

        engine.conjugate.turn = asked  # type: ignore[method-assign]
        return engine

    engine = watched(start(near(problem(frames=40)), rows=30, **parameters()))
    engine.iterate(2)
    engine.extend(add(engine, np.arange(30, 40)))
    engine.iterate(2)
    engine.revise(np.array([3, 4]), "position")
    engine.iterate(1)
    engine.revise(np.array([7]), "withdrawn")
    engine.iterate(1)
    np.testing.assert_allclose(shares, [0, 1, 30 / 40, 1, 38 / 40, 39 / 40])
    shares.clear()
    engine.iterate(2, np.arange(4))
    engine.iterate(2)
    assert shares == [0, 0, 0, 1]


def test_an_iteration_over_some_frames_goes_along_their_gradient() -> None:
    engine, alone = start(problem(frames=40), **parameters()), problem(frames=40)
    engine.iterate(3)
    alone.probe, alone.object = held(engine)
    progress = engine.iterate(1, np.arange(4))
    visited = engine.tiles[0].rows
    assert progress.frames == len(visited) < 40
    for name in ("counts", "valid", "corner", "remainder", "weight"):
        setattr(alone, name, getattr(alone, name)[visited])
    few = start(alone, **parameters(probe_update_start=0))
    np.testing.assert_allclose(progress.errors, few.iterate(1).errors, rtol=1e-9)
    np.testing.assert_allclose(held(engine)[1], held(few)[1], rtol=1e-9)


@pytest.mark.parametrize("grown", [False, True])
def test_a_step_that_made_the_cost_larger_is_taken_back_in_part(grown: bool) -> None:
    engine = start(near(problem()), **parameters())
    engine.iterate(2)
    before, taken = held(engine)[1], engine._taken
    assert taken is not None
    engine._move(taken.steps, 20 * taken.length)
    engine._taken = type(taken)(taken.cost, taken.slope, 21 * taken.length, taken.steps)
    too_far = np.abs(held(engine)[1] - before).max()
    if grown:  # where the canvas grew the step is not at hand, and the next one is left to repair it
        assert engine.reconstruction.objects["o"].grow((-60, -40), (90, 80))
    costs = [engine.iterate(1).errors[0, 1] for _ in range(3)]
    assert costs[1] < costs[0]
    if not grown:
        assert np.abs(held(engine)[1] - before).max() < 0.6 * too_far


def test_the_last_step_is_judged_with_the_shifts_that_it_was_made_with(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, seen = start(problem(), **parameters(subpix="linear", subpix_start=3)), []
    engine.iterate(3)
    engine.snapshot(("coverage",))
    descend = engine.likelihood.descend
    monkeypatch.setattr(engine.likelihood, "descend", lambda *a, **k: seen.append(engine.sight.subpix) or descend(*a, **k))
    engine.finish()
    assert seen and set(seen) == {None}


def test_a_restart_takes_the_first_probe_and_keeps_the_object() -> None:
    q = problem()
    engine = start(q, **parameters(probe_update_start=0))
    engine.iterate(3)
    kept = held(engine)[1]
    assert np.abs(held(engine)[0] - q.probe).max() > 0.01
    engine.restart()
    np.testing.assert_array_equal(held(engine)[0], q.probe)
    np.testing.assert_array_equal(held(engine)[1], kept)
    fresh = problem()
    fresh.object = kept
    np.testing.assert_allclose(engine.iterate(2).errors, start(fresh, **parameters(probe_update_start=0)).iterate(2).errors)


def test_the_mean_of_the_last_iterates_is_what_finish_leaves() -> None:
    engine, single = start(problem(), **parameters()), start(problem(), **parameters())
    engine.iterate(2)
    engine.average()
    engine.iterate(3)
    engine.finish()
    single.iterate(2)
    seen = []
    for _ in range(3):
        single.iterate(1)
        seen.append(held(single)[1])
    np.testing.assert_allclose(engine.reconstruction.objects["o"].data, np.mean(seen, axis=0), rtol=1e-9)


def test_new_parameters_count_from_the_next_iteration_on_and_a_resumed_engine_keeps_the_probes_scale() -> None:
    p = parameters(scale_precond=True)
    engine, q = start(near(problem()), **p), near(problem())
    engine.iterate(3)
    q.probe, q.object = held(engine)
    state = engine.state()
    assert state["iteration"] == 3
    engine.configure(ML.Parameters(**(p | {"scale_probe_object": 7.0})))
    resumed = start(q, **(p | {"scale_probe_object": 7.0}))
    resumed.curiter, resumed.precondition.scale = state["iteration"], state["scale"]
    np.testing.assert_allclose(engine.iterate(2).errors, resumed.iterate(2).errors, rtol=1e-9)


def test_intensities_that_fluctuate_are_found() -> None:
    q = problem(frames=30)
    dose = np.random.default_rng(4).uniform(0.5, 1.5, 30)
    model = Model(q, parameters())
    for j in range(30):
        q.counts[j] = np.round(1000 * dose[j] * (np.abs(model.waves(j, q.probe, q.object)) ** 2).sum(axis=0))
    q.probe = q.probe * np.sqrt(1000)
    q.counts = np.where(q.valid, np.minimum(q.counts, 65534), 65535)
    q.valid &= q.counts < 65534
    engine = start(q, **parameters(floating_intensities=True, probe_update_start=0, probe_support=None))
    engine.iterate(2)
    found = engine.state()["float_intensities"]
    np.testing.assert_allclose(found / found.mean(), dose / dose.mean(), rtol=2e-3)
    assert "float_intensities" not in start(q, **parameters()).state()


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("smooth_gradient", -1.0, "0 or more"),
        ("smooth_gradient_decay", -0.1, "from 0"),
        ("smooth_gradient_decay", 1.1, "to 1"),
        ("ML_type", "cash", "gaussian"),
        ("poly_line_coeffs", "cubic", "quadratic"),
        ("reg_del2_amplitude", -1.0, "greater than or equal to 0"),
    ],
)
def test_what_cannot_be_is_refused_with_what_would_do(name: str, value: Any, remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy):
        ML.Parameters(**{name: value})
