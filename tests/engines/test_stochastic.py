"""EPIE and SDR against the oracle, with modes, masks, batches and sub-pixel positions; and what each parameter does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from oracle import Problem
from oracle_stochastic import stochastic
from test_dm import FRAMES, Store, add
from test_dm import problem as dm_problem

from ptystream.engine import Context
from ptystream.engines.epie import EPIE
from ptystream.engines.order import random_order
from ptystream.engines.sdr import SDR
from ptystream.reconstruction import PodTable, Reconstruction, Storage

ENGINES = {"EPIE": EPIE, "SDR": SDR}
ITERATIONS = 3


def problem(probes: int = 1, objects: int = 1, seed: int = 0, frames: int = FRAMES) -> Problem:
    """As for the difference map; the brightest pixel of the object is one that no frame sees."""
    q = dm_problem(probes, objects, seed, frames)
    q.object[:, 29, 30] = 3
    return q


def start(
    name: str,
    q: Problem,
    precision: str = "double",
    threads: int = 1,
    rows: int | None = None,
    device: str = "cpu",
    seed: int = 0,
    **parameters: Any,
) -> Any:
    """The engine on the same problem; the lattice does not begin at zero."""
    pods = [(k, m) for k in range(len(q.probe)) for m in range(len(q.object))]
    made = Reconstruction(
        {"p": Storage(q.probe.copy(), None, (0, 0), 0.0)},
        {"o": Storage(q.object.copy(), None, (-7, 5), 1.0)},
        PodTable(len(pods)),
    )
    engine = ENGINES[name](ENGINES[name].Parameters(**{"subpix": None} | parameters))
    mask = np.ones(q.counts.shape[1:], np.uint8)
    mask[~(q.valid | (q.counts >= 65535)).all(axis=0)] = 0
    engine.everything = (q, pods, made)
    add(engine, np.arange(len(q.counts) if rows is None else rows))
    context = Context(device=device, threads=threads, seed=seed, precision=precision)
    engine.start(made, {0: Store(np.minimum(q.counts, 65535), mask)}, context)
    return engine


def wanted(name: str, q: Problem, engine: Any, iterations: int = ITERATIONS) -> Problem:
    """The oracle's result, for the orders in which the engine visits."""
    table = engine.reconstruction.pods
    rows = np.arange(table.length)
    orders = [random_order(table, rows, engine.context.seed, "visit", k) for k in range(iterations)]
    return stochastic(q, orders, engine.p.model_dump())


def images(engine: Any) -> tuple[np.ndarray, np.ndarray]:
    shot = engine.snapshot()
    return shot.probes["p"].data, shot.objects["o"].data


def apart(one: Any, other: Any) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(images(one), images(other), strict=True))


COMMON = {
    "plain": {},
    "linear": {"subpix": "linear"},
    "fourier": {"subpix": "fourier"},
    "late sub-pixels": {"subpix": "linear", "subpix_start": 2},
    "batch": {"batch": 4},
    "batch, linear": {"batch": 3, "subpix": "linear"},
    "batch, fourier": {"batch": FRAMES - 1, "subpix": "fourier"},
    "one batch": {"batch": FRAMES + 5},
    "support": {"probe_support": 0.3},
    "fourier support": {"probe_fourier_support": 0.3},
    "no support": {"probe_support": None},
    "late probe": {"probe_update_start": 2},
}
CASES = {
    "EPIE": COMMON
    | {
        "alpha": {"alpha": 0.3},
        "beta": {"beta": 0.2},
        "held object": {"alpha": 0.0},
        "global": {"object_norm_is_global": True},
        "global, batch": {"object_norm_is_global": True, "batch": 4, "subpix": "linear"},
    },
    "SDR": {name: {"sigma": 0.5, "tau": 0.3} | more for name, more in COMMON.items()}
    | {
        "defaults": {},
        "sigma": {"sigma": 0.1, "tau": 0.3},
        "tau": {"sigma": 0.5, "tau": 0.8},
        "beta_probe": {"sigma": 0.5, "tau": 0.3, "beta_probe": 0.7},
        "beta_object": {"sigma": 0.5, "tau": 0.3, "beta_object": 0.2},
    },
}
EACH = [(name, case) for name, cases in CASES.items() for case in cases]


@pytest.mark.parametrize(("name", "case"), EACH)
@pytest.mark.parametrize("modes", [(1, 1), (2, 2), (3, 1)])
def test_iterations_agree_with_the_oracle(name: str, case: str, modes: tuple[int, int]) -> None:
    engine = start(name, problem(*modes), **CASES[name][case])
    progress = engine.iterate(ITERATIONS)
    q = wanted(name, problem(*modes), engine)
    probe, obj = images(engine)
    np.testing.assert_allclose(probe, q.probe, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(obj, q.object, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(progress.errors, q.errors, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(("name", "case"), [(n, c) for n, c in EACH if c != "plain"])
def test_every_case_differs_from_the_plain_one(name: str, case: str) -> None:
    plain, changed = (start(name, problem(2, 1), **CASES[name][c]) for c in ("plain", case))
    plain.iterate(ITERATIONS)
    changed.iterate(ITERATIONS)
    assert apart(plain, changed) > 1e-3
