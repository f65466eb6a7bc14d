"""The support of the sample: what lies inside, and what a profile shrinks it to."""

from __future__ import annotations

import numpy as np
import pytest

from ptystream.engines.sample_support import Lattice, bounds, inside, layer_profile, rod_profile, smoothed_profile

AT = Lattice((-6, -30, -9), (12, 60, 19), (40e-9, 20e-9, 30e-9), 30.0)


def coordinates() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, z, y of every voxel, from the definition."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in AT.shape), indexing="ij"), axis=-1)
    r3, r1, r2 = np.moveaxis((index + AT.corner) * AT.pixel_m, -1, 0)
    return r3 * np.cos(np.pi / 6), r1 + r3 * 0.5, r2


X, Z, Y = coordinates()
LIT = np.ones(AT.shape)


def test_inside_of_layer_and_rod() -> None:
    layer = np.broadcast_to(inside("thinlayer", AT, -1.01e-7, 2.01e-7), AT.shape)
    assert (layer == ((Z >= -1.01e-7) & (Z <= 2.01e-7))).all()
    rod = np.broadcast_to(inside("rod", AT, 0.0, 1e-7, (2e-8, -1e-8)), AT.shape)
    assert (rod == (np.hypot(X - 2e-8, Y + 1e-8) <= 1e-7)).all()


def test_a_layer_of_known_thickness_is_found() -> None:
    r = np.random.default_rng(0)
    size = np.where((Z >= -0.9e-7) & (Z <= 1.5e-7), 1.0, 0.05) * r.uniform(0.8, 1.2, AT.shape)
    profile = layer_profile(size, LIT, AT)
    low, high = bounds(profile.s, smoothed_profile(profile.value, 1.0), 0.5, monotonic=False)
    assert low == pytest.approx(-0.9e-7, abs=15e-9)
    assert high == pytest.approx(1.5e-7, abs=15e-9)


def test_where_no_light_fell_does_not_count() -> None:
    size = np.where(np.abs(Z) < 1e-7, 1.0, 0.05)
    dark = Y > 0
    profile = layer_profile(np.where(dark, 50.0, size), np.where(dark, 0.0, 1.0), AT)
    assert profile.value == pytest.approx(layer_profile(size, LIT, AT).value)


def test_a_rod_is_found_with_its_axis() -> None:
    x0, y0 = float(X[8, 0, 0]), float(Y[0, 0, 6])
    far = np.hypot(X - x0, Y - y0)
    profile = rod_profile(np.where(far <= 1.2e-7, 1.0, 0.02) + 0.05 * np.exp(-((far / 2e-8) ** 2)), LIT, AT)
    assert profile.middle == pytest.approx((x0, y0))
    _, high = bounds(profile.s, profile.value, 0.5, monotonic=True)
    assert high == pytest.approx(1.2e-7, abs=35e-9)


def test_bounds_walk_from_the_maximum() -> None:
    s = np.arange(9.0)
    value = np.array([0.0, 0.9, 0.3, 0.6, 1.0, 0.8, 0.6, 0.7, 0.0])
    assert bounds(s, value, 0.5, monotonic=False) == pytest.approx((2 + 2 / 3, 7 + 2 / 7))
    assert bounds(s, value, 0.5, monotonic=True) == pytest.approx((2 + 2 / 3, 6.0))
    assert bounds(s, value, 0.2, monotonic=True) == pytest.approx((2.0, 6.0))
    assert bounds(s, np.ones(9), 0.5, monotonic=True) == (0.0, 8.0)


def test_smoothing_keeps_sums_and_has_the_width_asked_for() -> None:
    point = np.zeros(41)
    point[20] = 1.0
    smooth = smoothed_profile(point, 2.0)
    n = np.arange(41) - 20
    assert smooth.sum() == pytest.approx(1.0)
    assert np.sqrt((smooth * n**2).sum()) == pytest.approx(2.0, rel=0.03)
    assert (smoothed_profile(point, None) == point).all()
