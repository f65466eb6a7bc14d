"""The simulated microscope against abTEM, where that is installed."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from ptystream.detectors.simulated.microscope import Microscope, projected
from ptystream.detectors.simulated.stemscan import StemParameters
from ptystream.model.electrons import electron_wavelength, interaction_constant

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    abtem = pytest.importorskip("abtem")
pytestmark = pytest.mark.filterwarnings("ignore")

N, PIXEL, APART = 64, 0.2e-10, 10e-10


def test_wavelength_and_interaction() -> None:
    from abtem.core.energy import energy2sigma, energy2wavelength

    for kilovolts in (60.0, 300.0):
        assert electron_wavelength(kilovolts) * 1e10 == pytest.approx(energy2wavelength(kilovolts * 1e3), rel=1e-6)
        assert interaction_constant(kilovolts) * 1e-10 == pytest.approx(energy2sigma(kilovolts * 1e3), rel=1e-6)


def test_patterns_of_three_slices() -> None:
    rng = np.random.default_rng(0)
    axis = np.arange(N) * PIXEL
    slices = []
    for _ in range(3):
        atoms = np.column_stack([rng.uniform(0.2, 0.8, (25, 2)) * N * PIXEL, np.ones(25)])
        slices.append(projected(atoms, 280e-30, 0.35e-10, (axis, axis)))
    given = {
        "shape": N,
        "steps": 1,
        "slices": 3,
        "pixel": PIXEL,
        "slice_distance": APART,
        "aberrations": [-80e-10, 15e-10, -25e-10],
    }
    one = Microscope(StemParameters.model_validate(given | {"electrons": 1.0}), 0, "s")
    low, _ = (np.rint(one.places[0]).astype(int) - N // 2 - one.offset).tolist()
    one.object = np.ones_like(one.object)
    one.object[:, low : low + N, low : low + N] = np.exp(1j * interaction_constant(60) * np.array(slices))
    ours = one.intensity(0)

    potential = abtem.PotentialArray(
        (np.array(slices) * 1e10).astype(np.float32), slice_thickness=APART * 1e10, sampling=(PIXEL * 1e10, PIXEL * 1e10)
    )
    # along our axes x is the second; abTEM's x is the first: φ ↦ π/2 - φ
    own = 0.5 * np.arctan2(-25.0, 15.0)
    probe = abtem.Probe(
        energy=60e3,
        semiangle_cutoff=30.0,
        gpts=N,
        sampling=PIXEL * 1e10,
        soft=False,
        aberrations={"C10": -80.0, "C12": float(np.hypot(15, 25)), "phi12": float(np.pi / 2 - own)},
    )
    waves = probe.multislice(potential, scan=[(N // 2 * PIXEL * 1e10,) * 2]).compute()
    theirs = np.fft.fftshift(np.abs(np.fft.fft2(np.squeeze(waves.array))) ** 2)
    theirs = theirs * (ours.sum() / theirs.sum())
    bright = ours > 1e-3 * ours.max()
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.9999
    assert np.abs(ours - theirs)[bright].max() < 0.02 * ours.max()
