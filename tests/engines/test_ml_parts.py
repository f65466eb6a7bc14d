"""What ML is made of: the length of a step, pixels seen, the prior, the conjugate direction."""

from __future__ import annotations

import numpy as np
import pytest

from ptystream.engine import Context
from ptystream.engines.backend import cpu
from ptystream.engines.conjugate import Conjugate
from ptystream.engines.fields import inner
from ptystream.engines.line import Taken, step_length
from ptystream.engines.smoothness import Smoothness, seen
from ptystream.reconstruction import PodTable, Reconstruction, Storage


def test_a_step_goes_to_the_minimum_of_the_parabola() -> None:
    assert step_length([1.0, -6.0, 3.0, 0, 0, 0, 0, 0, 0], every=False) == pytest.approx(1.0)


def test_a_parabola_that_opens_downwards_is_given_a_curvature() -> None:
    assert step_length([2.0, -6.0, -3.0, 0, 0, 0, 0, 0, 0], every=False) == pytest.approx(15.0)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize("seed", range(8))
def test_the_whole_polynomial_is_followed_to_its_smallest_value(scale: float, seed: int) -> None:
    r = np.random.default_rng(seed)
    a = r.normal(size=(5, 30))
    c = np.zeros(9)  # Σ (a0 + a1 t + … + a4 t⁴)²
    for k in range(5):
        for l in range(5):
            c[k + l] += (a[k] * a[l]).sum()
    t = np.linspace(-3, 3, 200001)
    wanted = t[np.argmin(np.polyval(c[::-1], t))]
    found = step_length(np.array([(a[1] ** 2).sum(), *c[1:]]) * scale ** np.arange(9), every=True)
    assert found * scale == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("every", [True, False])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_not_followed(every: bool, bad: float) -> None:
    assert step_length([1.0, bad, 1.0, 0, 0, 0, 0, 0, 0], every=every) == 0
    assert step_length(np.zeros(9), every=every) == 0


def test_a_step_is_shortened_to_the_minimum_between_two_costs() -> None:
    taken = Taken(10.0, -4.0, 2.0, {})
    assert taken.shortened(9.0) is None
    assert taken.shortened(10.00001) is None
    assert taken.shortened(14.0) == pytest.approx(2 / 3)  # 10 - 4 t + 3 t²
    assert taken.shortened(1e9) == pytest.approx(0.2)
    assert taken.shortened(np.inf) == pytest.approx(0.2)


def test_pixels_seen_are_those_in_any_view() -> None:
    r = np.random.default_rng(0)
    probes = {"p": Storage(np.ones((1, 10, 7), complex), None), "q": Storage(np.ones((1, 4, 5), complex), None)}
    made = Reconstruction(probes, {"a": Storage(np.ones((2, 40, 50), complex), None, (-5, 3))}, PodTable(2))
    address = np.zeros((9, 2, 6), np.int32)
    address[:, 1, 0] = 1
    address[:, :, 3] = r.integers(0, 2, (9, 2))
    address[:, :, 4:] = r.integers(0, 30, (9, 2, 2)) + np.array([-5, 3])
    made.pods.append(address, np.zeros((9, 2, 2), "f4"), np.ones((9, 2), "f4"), np.zeros((9, 2), np.int64))
    rows = np.array([0, 3, 4, 8])
    wanted = np.zeros((2, 40, 50), bool)
    for probe, _, _, layer, y, x in address[rows].reshape(-1, 6) - np.array([0, 0, 0, 0, -5, 3]):
        height, width = ((10, 7), (4, 5))[probe]
        wanted[layer, y : y + height, x : x + width] = True
    np.testing.assert_array_equal(seen(made, rows)[0], wanted)


def test_the_prior_and_its_derivatives() -> None:
    r = np.random.default_rng(0)
    o, h = (r.normal(size=(2, 12, 9)) + 1j * r.normal(size=(2, 12, 9)) for _ in range(2))
    here = r.random(o.shape) > 0.3
    prior = Smoothness(cpu(Context()), [here], np.dtype(float))
    assert prior.pixels == here.sum()
    total = sum(
        abs(o[k, y, x] - o[k, y + dy, x + dx]) ** 2
        for dy, dx in ((0, 1), (1, 0))
        for k, y, x in np.ndindex(2, 12 - dy, 9 - dx)
        if here[k, y, x] and here[k, y + dy, x + dx]
    )
    assert prior.value([o], 0.7) == pytest.approx(1.4 * total)
    slope, bend = prior.line([o], [h], 0.7)
    for t in (-2.0, 0.3):
        assert prior.value([o + t * h], 0.7) == pytest.approx(prior.value([o], 0.7) + slope * t + bend * t**2)
    assert 2 * inner(cpu(Context()), prior.gradients([o], 0.7)[0], h) == pytest.approx(slope)


class Halves:
    """A diagonal preconditioner."""

    def __init__(self, weight: object, scale: float) -> None:
        self.weight, self.scale = weight, scale

    def half(self, gradient: dict) -> dict:
        return {k: v * self.weight for k, v in gradient.items()}

    other_half = half

    def scales(self, gradient: dict) -> dict:
        return dict.fromkeys(gradient, self.scale)


def test_conjugate_directions_solve_a_quadratic_problem_in_as_many_steps_as_it_has_unknowns() -> None:
    r = np.random.default_rng(0)
    matrix = r.normal(size=(6, 6)) + 1j * r.normal(size=(6, 6))
    matrix = matrix.conj().T @ matrix + np.eye(6)
    right = r.normal(size=6) + 1j * r.normal(size=6)
    storages = {"object o": Storage(np.zeros((1, 1, 6), complex), None)}
    conjugate, x = Conjugate(cpu(Context())), np.zeros(6, complex)
    halves = Halves(r.uniform(0.5, 2.0, 6), 3.0)
    for _ in range(6):
        g = {"object o": (matrix @ x - right).reshape(1, 1, 6)}
        h = conjugate.turn(g, halves, storages, 1.0)["object o"].ravel()
        x = x - np.vdot(h, matrix @ x - right).real / np.vdot(h, matrix @ h).real * h
    np.testing.assert_allclose(matrix @ x, right, rtol=1e-8)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_the_share_is_a_factor_on_the_old_direction(share: float) -> None:
    r = np.random.default_rng(0)
    first, second = (r.normal(size=(1, 4, 4)) + 1j * r.normal(size=(1, 4, 4)) for _ in range(2))
    storages = {"object o": Storage(np.zeros((1, 4, 4), complex), None)}
    conjugate = Conjugate(cpu(Context()))

    def turn(g: np.ndarray) -> np.ndarray:
        return conjugate.turn({"object o": g}, Halves(1.0, 1.0), storages, share)["object o"]

    turn(first)
    beta = max(0.0, np.vdot(second, second - first).real / np.vdot(first, first).real)
    np.testing.assert_allclose(turn(second), -second - share * beta * first)
