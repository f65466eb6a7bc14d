"""The update under linear dispersion against a least-squares solver, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest

from ptystream.engines.dispersion import disperse
from ptystream.reconstruction import Dispersion


@pytest.mark.parametrize("count", [2, 3, 5])
def test_values_become_the_weighted_fit_of_each_pixel(count: int) -> None:
    r = np.random.default_rng(count)
    t = tuple(r.uniform(-0.3, 0.3, count).tolist())
    values = [r.normal(size=(2, 3, 4)) + 1j * r.normal(size=(2, 3, 4)) for _ in t]
    weights = [r.uniform(0.1, 2.0, (2, 3, 4)) for _ in t]
    for w in weights:
        w[0, 0, 0] = 0  # nobody looked
    for w in weights[1:]:
        w[1, 1, 1] = 0  # one energy alone
    before = [v.copy() for v in values]
    names = [f"o{k}" for k in range(count)]
    disperse(
        np, [Dispersion(tuple(names), t)], ["other", *names], [(np.zeros(1), np.ones(1)), *zip(values, weights, strict=True)]
    )
    for pixel in np.ndindex(2, 3, 4):
        got = np.array([v[pixel] for v in values])
        old, w = np.array([v[pixel] for v in before]), np.sqrt([x[pixel] for x in weights])
        if pixel == (0, 0, 0):
            np.testing.assert_array_equal(got, old)
        elif pixel == (1, 1, 1):
            np.testing.assert_allclose(got, old[0])
        else:
            matrix = np.stack([np.ones(count), t], axis=1)
            fit, *_ = np.linalg.lstsq(matrix * w[:, None], old * w, rcond=None)
            np.testing.assert_allclose(got, matrix @ fit, rtol=1e-9)


def test_nothing_is_touched_without_a_group() -> None:
    value = np.ones((1, 2, 2), complex)
    disperse(np, [], ["o"], [(value, np.ones((1, 2, 2)))])
    assert (value == 1).all()
