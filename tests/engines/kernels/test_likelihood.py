"""The kernels of a likelihood in each form against plain NumPy and finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_kernels import HEIGHT, WIDTH, Case, form, precisions, sizes

from ptystream.engines.kernels.gpu import COUNTS

__all__ = ["form"]

KINDS = ("gaussian", "poisson", "euclid")
kinds = pytest.mark.parametrize("kind", KINDS)
EPSILON = 1e-6


def cost(kind: str, m: np.ndarray, n: np.ndarray, w: np.ndarray, level: float) -> np.ndarray:
    """Of each pixel."""
    w = level * w
    if kind == "gaussian":
        return w * (m - n) ** 2 / (1 / level + n)
    m = m + EPSILON
    if kind == "poisson":
        return w * (m - n - np.where(n > 0, n * np.log(m / np.where(n > 0, n, 1)), 0))
    return w * (np.sqrt(m) - np.sqrt(n)) ** 2


class Weighted(Case):
    """With a statistical weight of each pixel."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.trust = (self.mask * self.r.uniform(0.5, 2.0, self.mask.shape)).astype(self.real)
        self.scale = self.r.uniform(0.7, 1.4, self.frames).astype(self.real)
        self.n = self.wanted**2
        self.w = np.where(self.good, self.trust.astype(float), 0)

    def data(self) -> list[Any]:
        return self.sent("counts", "row", "trust")


@pytest.mark.slow
@sizes
@precisions
@kinds
@pytest.mark.parametrize("floating", [True, False])
@pytest.mark.parametrize("pods", [1, 3])
def test_costs_and_slopes(form: Any, frames: int, precision: str, kind: str, floating: bool, pods: int) -> None:
    q = Weighted(form, frames, precision, pods=pods)
    level, number = 1.3, KINDS.index(kind)
    f, scale, found = q.put(q.f.copy()), q.put(q.scale.copy()), q.put(np.ones(frames))
    q.k.likelihood(f, *q.data(), q.limit, number, level, floating, scale, found)
    m = (np.abs(q.f.astype(complex)) ** 2).sum(axis=0)
    c = q.scale.astype(float)
    if floating:
        v = q.w / (1 / level + q.n) if kind == "gaussian" else q.w
        sums = {
            "gaussian": lambda: (v * m * q.n).sum(axis=(1, 2)) / (v * m**2).sum(axis=(1, 2)),
            "poisson": lambda: (v * q.n).sum(axis=(1, 2)) / (v * m).sum(axis=(1, 2)),
            "euclid": lambda: ((v * np.sqrt(m * q.n)).sum(axis=(1, 2)) / (v * m).sum(axis=(1, 2))) ** 2,
        }
        c = sums[kind]()
        for near in (0.99, 1.01):  # it is the best factor, up to what the 1e-6 photons do
            worse = cost(kind, (near * c)[:, None, None] * m, q.n, q.w, level).sum(axis=(1, 2))
            assert (worse >= cost(kind, c[:, None, None] * m, q.n, q.w, level).sum(axis=(1, 2))).all()
    q.same(scale, c)
    c = c[:, None, None]
    np.testing.assert_allclose(q.get(found), cost(kind, c * m, q.n, q.w, level).sum(axis=(1, 2)), rtol=2e-4)
    h = 1e-5 * (m + 1e-3)
    slope = (cost(kind, c * (m + h), q.n, q.w, level) - cost(kind, c * (m - h), q.n, q.w, level)) / (2 * h)
    close = {"rtol": 1e-3, "atol": 1e-3} if precision == "single" else {"rtol": 1e-6, "atol": 1e-6}
    np.testing.assert_allclose(q.get(f), slope * q.f.astype(complex), **close)


@pytest.mark.slow
@sizes
@precisions
@kinds
@pytest.mark.parametrize("every", [True, False])
@pytest.mark.parametrize("bent", [True, False])
def test_the_polynomial_along_a_line(form: Any, frames: int, precision: str, kind: str, every: bool, bent: bool) -> None:
    q = Weighted(form, frames, precision)
    level, number = 0.7, KINDS.index(kind)
    a, b = q.wave(*q.f.shape), q.wave(*q.f.shape) if bent else None
    found = q.put(np.ones((frames, 9)))
    sent = q.put(q.f), q.put(a), None if b is None else q.put(b)
    q.k.line(*sent, *q.data(), q.limit, number, level, q.put(q.scale), every, found)
    f, c = q.f.astype(complex), q.scale.astype(float)[:, None, None]
    grown = np.zeros_like(f) if b is None else b.astype(complex)

    def intensity(t: float) -> np.ndarray:
        return c * (np.abs(f + t * a + t**2 * grown) ** 2).sum(axis=0)

    # Coefficients of the intensity's polynomial by interpolation, and l' and l''/2 by differences.
    nodes = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
    stack = np.array([intensity(t) for t in nodes])
    powers = np.einsum("kt,tjyx->kjyx", np.linalg.inv(np.vander(nodes, increasing=True)), stack)
    m, h = powers[0], 1e-4 * (powers[0] + 1e-3)
    low, mid, high = (cost(kind, m + d, q.n, q.w, level) for d in (-h, 0, h))
    slope, half = (high - low) / (2 * h), (high - 2 * mid + low) / (2 * h**2)
    powers[0] = 0
    wanted = np.zeros((9, frames))
    for k in range(1, 5):
        wanted[k] += (slope * powers[k]).sum(axis=(1, 2))
        for l in range(1, 5):
            wanted[k + l] += (half * powers[k] * powers[l]).sum(axis=(1, 2))
    wanted[0] = (half * powers[1] ** 2).sum(axis=(1, 2))
    if not every:
        wanted[3:] = 0
    size = np.abs(wanted).max(axis=1, keepdims=True)
    np.testing.assert_allclose(q.get(found).T, wanted, rtol=5e-4, atol=5e-4 * size.max())


@pytest.mark.slow
@kinds
@pytest.mark.parametrize("counts", sorted(COUNTS))
def test_every_count_type_counts(form: Any, counts: str, kind: str) -> None:
    q = Weighted(form, 5, "single", counts)
    f, scale, found = q.put(q.f.copy()), q.put(q.scale), q.put(np.zeros(5))
    q.k.likelihood(f, *q.data(), q.limit, KINDS.index(kind), 1.0, True, scale, found)
    c = q.get(scale).astype(float)[:, None, None]
    m = c * (np.abs(q.f.astype(complex)) ** 2).sum(axis=0)
    np.testing.assert_allclose(q.get(found), cost(kind, m, q.n, q.w, 1.0).sum(axis=(1, 2)), rtol=1e-4)
    np.testing.assert_array_equal(q.get(f)[:, ~q.good], 0)
    lines = q.put(np.zeros((5, 9)))
    q.k.line(q.put(q.f), q.put(q.f), None, *q.data(), q.limit, KINDS.index(kind), 1.0, scale, True, lines)
    assert np.isfinite(q.get(lines)).all()


@kinds
def test_a_frame_without_a_valid_pixel_costs_nothing(form: Any, kind: str) -> None:
    q = Weighted(form, 3, "single")
    q.trust[:] = 0
    f, scale, found = q.put(q.f.copy()), q.put(q.scale), q.put(np.ones(3))
    q.k.likelihood(f, *q.data(), q.limit, KINDS.index(kind), 1.0, True, scale, found)
    np.testing.assert_array_equal(q.get(found), 0)
    np.testing.assert_array_equal(q.get(f), 0)
    np.testing.assert_array_equal(q.get(scale), 1)
    assert q.get(f).shape[2:] == (HEIGHT, WIDTH)
