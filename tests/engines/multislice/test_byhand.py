"""Constraints by hand: what they do to pictures of which one knows what it should be."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.fft
from scipy import ndimage

from ptystream.engines.multislice import byhand

RNG = np.random.default_rng(0)
PHASE, ABSORPTION = RNG.normal(size=(2, 3, 12, 10)) * 0.3, RNG.random((2, 3, 12, 10)) * 0.4
OBJECT = np.exp(1j * PHASE - ABSORPTION)


def test_filters_take_each_slice_alone() -> None:
    both = byhand.smoothed(np, ndimage, OBJECT, 1.5, 0.7)
    for k in np.ndindex(2, 3):
        np.testing.assert_allclose(np.angle(both[k]), ndimage.gaussian_filter(PHASE[k], 1.5, mode="nearest"), atol=1e-9)
        wanted = ndimage.gaussian_filter(ABSORPTION[k], 0.7, mode="nearest")
        np.testing.assert_allclose(-np.log(np.abs(both[k])), wanted, atol=1e-8)
    np.testing.assert_allclose(byhand.smoothed(np, ndimage, OBJECT), OBJECT, rtol=1e-9)


def test_the_wedge_takes_what_changes_along_the_beam_and_not_across_it() -> None:
    pixels = 5e-10, 1e-11, 1e-11
    z = np.arange(8)[:, None, None]
    along = np.ones((1, 8, 6, 6)) * np.exp(2j * np.pi * 3 * z / 8)
    across = np.ones((1, 8, 6, 6)) * np.exp(2j * np.pi * 2 * np.arange(6) / 6)
    kept = byhand.without_wedge(np, scipy.fft, along, 100.0, pixels)
    assert np.abs(kept).max() < 1e-12  # where nothing is across, q_z² stands against 1
    np.testing.assert_allclose(byhand.without_wedge(np, scipy.fft, across, 100.0, pixels), across, atol=1e-12)
    q, f = 3 / 8 / 5e-10, 2 / 6 / 1e-11
    mixed = along * across
    share = 1 - 2 / np.pi * np.arctan(4.0 * q**2 / f**2)
    np.testing.assert_allclose(byhand.without_wedge(np, scipy.fft, mixed, 2.0, pixels), share * mixed, atol=1e-12)
    np.testing.assert_allclose(byhand.without_wedge(np, scipy.fft, mixed, 0.0, pixels), mixed, atol=1e-12)


def test_modes_become_orthogonal_and_sorted_and_patterns_stay() -> None:
    probe = RNG.normal(size=(2, 3, 8, 8)) + 1j * RNG.normal(size=(2, 3, 8, 8))
    found = byhand.orthogonal(np, probe)
    sample = np.exp(1j * RNG.normal(size=(8, 8)))
    for before, after in zip(probe, found, strict=True):
        flat = after.reshape(3, -1)
        overlap = flat.conj() @ flat.T
        assert np.abs(overlap - np.diag(np.diag(overlap))).max() < 1e-10 * np.abs(overlap).max()
        powers = np.diag(overlap).real
        assert powers[0] >= powers[1] >= powers[2]
        patterns = [(np.abs(np.fft.fft2(modes * sample)) ** 2).sum(axis=0) for modes in (before, after)]
        np.testing.assert_allclose(patterns[1], patterns[0], rtol=1e-10)


def test_charges_under_the_threshold_are_flipped() -> None:
    found = byhand.flipped(np, scipy.fft, OBJECT, (0.1, 0.2), (-0.95, -0.5))
    for k in np.ndindex(2, 3):
        for part, seen, delta, beta in (
            (PHASE[k], np.angle(found[k]), 0.1, -0.95),
            (ABSORPTION[k], -np.log(np.abs(found[k])), 0.2, -0.5),
        ):
            np.testing.assert_allclose(seen, np.where(part < delta * part.max(), beta * part, part), atol=1e-8)


@pytest.mark.parametrize("sigma", [2.0, "2.0"])
def test_atoms_are_sharpened_and_blurred_again(sigma: float | str) -> None:
    points = np.zeros((1, 1, 32, 32))
    points[0, 0, 8, 9] = points[0, 0, 20, 21] = 1.0
    atoms = byhand.convolved(np, scipy.fft, points, 2.0)
    y, x = np.arange(32)[:, None] - 8, np.arange(32) - 9
    wanted = np.exp(-(y**2 + x**2) / 2.0**2)
    assert atoms[0, 0, 8:12, 9] / atoms[0, 0, 8, 9] == pytest.approx(wanted[8:12, 9], rel=1e-3)
    sharp = byhand.sharpened(np, scipy.fft, atoms, sigma)
    assert sharp[0, 0, 8, 9] > 2 * atoms[0, 0, 8, 9]
    o = np.exp(1j * atoms)
    kept = byhand.flipped(np, scipy.fft, o, (-9.0, -9.0), (1.0, 1.0), ((sigma, 2.0), None))
    np.testing.assert_allclose(np.angle(kept), np.angle(o), atol=3e-2 * atoms.max())
