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
        smoothness, amplitude = engine._prior(sum(len(t) for t in engine.tiles))
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
        smoothness, amplitude = engine._prior(FRAMES)
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
