"""Terms of the loss: gradients against finite differences, values against what they are of pictures one can count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.fft

from ptystream.engines.multislice import regularisers as r

RNG = np.random.default_rng(0)
OBJECT = np.exp(0.5j * RNG.normal(size=(3, 2, 9, 8)) - 0.3 * RNG.random((3, 2, 9, 8)))
PROBE = RNG.normal(size=(2, 2, 8, 6)) + 1j * RNG.normal(size=(2, 2, 8, 6))
PLACES = RNG.normal(size=(20, 2))
SCAN = 4, 5
OUTSIDE = RNG.random((8, 6)) > 0.5

TERMS: dict[str, tuple[Any, Callable[[Any], r.Term]]] = {
    "phase": (OBJECT, lambda o: r.phase_norm(np, o)),
    "absorption": (OBJECT, lambda o: r.absorption_norm(np, o)),
    "total variation": (OBJECT, lambda o: r.total_variation(np, o, 2, 1)),
    "total variation, p 1.5, q 0.8": (OBJECT, lambda o: r.total_variation(np, o, 1.5, 0.8)),
    "mixed variance": (OBJECT, lambda o: r.mixed_variance(np, scipy.fft, o, 0.2)),
    "probe outside": (PROBE, lambda p: r.probe_outside(np, scipy.fft, p, OUTSIDE)),
    "window": (PROBE, lambda p: r.window(np, p, r.window_between((8, 6), 0.3, 0.8))),
    "fast axis": (PLACES, lambda x: r.fast_axis(np, x, SCAN)),
    "slow axis": (PLACES, lambda x: r.slow_axis(np, x, SCAN)),
    "deformation": (PLACES, lambda x: r.deformation(np, x, SCAN)),
}


@pytest.mark.parametrize("name", TERMS)
def test_gradients_are_what_finite_differences_say(name: str) -> None:
    at, term = TERMS[name]
    gradient = term(at)[1]
    for _ in range(4):
        direction = RNG.normal(size=at.shape) + (1j * RNG.normal(size=at.shape) if np.iscomplexobj(at) else 0)
        step = 1e-5
        f = [term(at + h * step * direction)[0] for h in (-2, -1, 1, 2)]
        found = (2 if np.iscomplexobj(at) else 1) * (gradient.conj() * direction).real.sum()
        assert found == pytest.approx((f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * step), rel=1e-6)


def test_what_they_are_not_to_change_costs_nothing() -> None:
    i, j = np.meshgrid(np.arange(4.0), np.arange(5.0), indexing="ij")
    affine = np.stack([3 * i - 2 * j + 1, 0.5 * j + 7], axis=-1).reshape(20, 2)
    for term in (r.fast_axis, r.slow_axis, r.deformation):
        value, gradient = term(np, affine, SCAN)
        assert value == pytest.approx(0, abs=1e-20) and np.abs(gradient).max() < 1e-10
    assert r.phase_norm(np, np.abs(OBJECT) + 0j)[0] == 0
    assert r.absorption_norm(np, np.exp(1j * np.angle(OBJECT)))[0] == pytest.approx(0, abs=1e-12)
    same = np.repeat(OBJECT[:1], 3, axis=0)
    assert r.mixed_variance(np, scipy.fft, same, 0.2)[0] == pytest.approx(0, abs=1e-20)
    flat = np.full((1, 1, 6, 6), 0.3 + 0.4j)
    assert r.total_variation(np, flat, 2, 1)[0] == pytest.approx(36e-10)
    stripes = np.zeros((1, 1, 4, 4), complex)
    stripes[..., 1::2] = 2j
    assert r.total_variation(np, stripes, 2, 1)[0] == pytest.approx(2 * 16)


def test_the_window_keeps_the_middle_and_damps_the_edge() -> None:
    penalty = r.window_between((16, 16), 0.25, 0.75)
    assert penalty[8, 8] == 0 and penalty[6, 10] == 0 and penalty[0, 8] == 1 and 0 < penalty[8, 12] < 1
