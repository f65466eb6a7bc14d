"""L-BFGS and its line search on functions whose minimum is known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from ptystream.engines.multislice.memory import History
from ptystream.engines.multislice.quantities import combined, product
from ptystream.engines.multislice.search import Limits, search


class Bowl:
    """½ (x - a)ᵀ A (x - a), over a real and a complex array that are coupled."""

    def __init__(self, seed: int, n: int = 6) -> None:
        rng = np.random.default_rng(seed)
        root = rng.normal(size=(3 * n, 3 * n))
        self.matrix, self.n = root @ root.T + np.eye(3 * n), n
        self.minimum = rng.normal(size=3 * n)

    def flat(self, x: dict) -> np.ndarray:
        return np.concatenate([x["real"], x["wave"].real, x["wave"].imag])

    def __call__(self, x: dict) -> tuple[float, dict]:
        away = self.flat(x) - self.minimum
        pull = self.matrix @ away
        n = self.n
        return float(away @ pull) / 2, {"real": pull[:n], "wave": 0.5 * (pull[n : 2 * n] + 1j * pull[2 * n :])}

    def start(self) -> dict:
        return {"real": np.zeros(self.n), "wave": np.zeros(self.n, complex)}


def descend(bowl: Bowl, length: float, steps: int, limits: Limits = Limits()) -> list[float]:  # noqa: B008
    history, x, curve = History(), bowl.start(), []
    value, gradient = bowl(x)
    for _ in range(steps):
        curve.append(value)
        if value < 1e-12 * curve[0]:
            break
        step = history.direction(gradient, {"real": 0.01, "wave": 0.01})
        slope = product(gradient, step)
        assert slope < 0

        def evaluate(t: float, x: dict = x, step: dict = step) -> tuple[float, float, tuple]:
            at = combined(x, t, step)
            found, pull = bowl(at)
            return found, product(pull, step), (at, pull)

        taken = search(evaluate, value, slope, 1.0, limits).taken
        if taken is None:
            break
        at, pull = taken.at
        history.learn(combined(at, -1, x), combined(pull, -1, gradient), length)
        x, value, gradient = at, taken.value, pull
    return [*curve, value]


@pytest.mark.parametrize("length", [1, 5, math.inf])
def test_it_finds_the_minimum_and_with_more_memory_sooner(length: float) -> None:
    curve = descend(Bowl(0), length, 300)
    assert all(b <= a for a, b in itertools.pairwise(curve))
    assert curve[-1] < 1e-8 * curve[0]


def test_memory_pays() -> None:
    none, some, all_of_it = (descend(Bowl(1), length, 40)[-1] for length in (0, 4, math.inf))
    assert all_of_it < some < none


def test_pairs_without_curvature_are_passed_over() -> None:
    history, s = History(), {"real": np.ones(3)}
    assert not history.learn(s, {"real": -np.ones(3)}, 5)
    assert not history.learn(s, {"real": np.zeros(3)}, 5)
    assert not history.pairs and not history.scale
    assert history.learn(s, {"real": 2 * np.ones(3)}, 0)
    assert not history.pairs and history.scale == {"real": 0.5}


def test_what_has_moved_by_rounding_alone_tells_no_scale() -> None:
    """Positions over a flat object have no gradient; their first step is noise, and the next gradient is not."""
    history = History()
    assert history.learn(
        {"object": np.ones(3), "positions": np.full(3, 1e-17)}, {"object": np.ones(3), "positions": np.ones(3)}, 5
    )
    assert history.scale == {"object": 1.0}


def test_the_scale_of_a_complex_array_is_the_same_as_of_its_parts() -> None:
    rng = np.random.default_rng(2)
    s, y = (rng.normal(size=4) + 1j * rng.normal(size=4) for _ in range(2))
    y = y if (s.conj() * y).real.sum() > 0 else -y
    wave, parts = History(), History()
    wave.learn({"a": s}, {"a": y / 2}, 1)  # a gradient is ∂L/∂conj(X): half of those of the parts
    parts.learn({"a": np.concatenate([s.real, s.imag])}, {"a": np.concatenate([y.real, y.imag])}, 1)
    assert wave.scale["a"] == pytest.approx(2 * parts.scale["a"])


@pytest.mark.parametrize("first", [1e-6, 0.3, 1.0, 1e6])
def test_both_conditions_are_met(first: float) -> None:
    def f(t: float) -> tuple[float, float, None]:
        return (t - 2) ** 2 + 0.3 * math.sin(5 * t), 2 * (t - 2) + 1.5 * math.cos(5 * t), None

    value, slope, _ = f(0.0)
    limits = Limits(c1=1e-4, c2=0.5, most=60)
    found = search(f, value, slope, first, limits)
    assert found.taken is not None
    assert found.taken.value <= value + limits.c1 * found.taken.t * slope
    assert found.taken.slope >= limits.c2 * slope


def test_limits_are_kept() -> None:
    def uphill(t: float) -> tuple[float, float, None]:
        return 1.0 + t, 1.0, None

    found = search(uphill, 1.0, -1.0, 1.0, Limits(most=7))
    assert found.taken is None and found.trials == 7
    found = search(uphill, 1.0, -1.0, 1.0, Limits(least=1e-3, most=math.inf))
    assert found.taken is None and found.trials == 4
    tried: list[float] = []

    def deep(t: float) -> tuple[float, float, None]:
        tried.append(t)
        return -t, -1.0, None

    assert search(deep, 0.0, -1.0, 1.0, Limits(most=4, optimism=5)).taken is None
    assert tried == [1, 5, 25, 125]
    tried.clear()

    def broken(t: float) -> tuple[float, float, None]:
        tried.append(t)
        return math.nan, math.nan, None

    assert search(broken, 0.0, -1.0, 1.0, Limits(most=3, reduce=0.5)).taken is None
    assert tried == [1, 0.5, 0.25]


def test_a_loss_that_falls_without_end_ends_the_search() -> None:
    found = search(lambda t: (-math.sqrt(t), -1.0, None), 0.0, -1.0, 1.0, Limits(c1=1e-300, c2=0.5, most=math.inf))
    assert found.taken is None and found.trials < 1000
