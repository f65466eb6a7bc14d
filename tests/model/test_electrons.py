"""Electrons, and a model that is wider than the detector: against sums written down here, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.constants as c

from ptystream.model.geometry import Geometry
from ptystream.model.propagate import flat_phase, intensity, propagator
from ptystream.params.errors import ConfigurationError
from ptystream.params.load import load
from ptystream.plan import geometry_of, models_of
from ptystream.scan.header import Header, completed
from ptystream.scan.parameters import PtyScanParameters

ELECTRONS = {"acc_voltage": 200.0, "distance": 0.5, "psize": 1e-4, "shape": 16}


def configured(engine: str = "PyPty", scan: dict[str, Any] | None = None, **data: Any) -> Any:
    entry = {"name": "Full", "data": {"name": "ZmqScan", **ELECTRONS, **data}, **(scan or {})}
    return load({"scans": {"s": entry}, "engines": {"e": {"name": engine}}})


@pytest.mark.parametrize(("kilovolts", "angstrom"), [(60, 0.048661), (80, 0.041757), (200, 0.025079), (300, 0.019687)])
def test_the_wavelength_is_that_of_tables_and_of_the_energy_of_a_moving_electron(kilovolts: float, angstrom: float) -> None:
    found = Geometry((16, 16), voltage_kv=kilovolts).wavelength_m
    rest, kinetic = c.m_e * c.c**2, kilovolts * 1e3 * c.e
    momentum = np.sqrt((kinetic + rest) ** 2 - rest**2) / c.c
    assert found == pytest.approx(c.h / momentum, rel=1e-9)
    assert found == pytest.approx(angstrom * 1e-10, rel=1e-4)


def test_a_voltage_sets_the_pixel_on_the_sample() -> None:
    geometry = geometry_of(configured().scans[0])
    assert geometry.energy_kev is None and geometry.voltage_kv == 200.0
    wavelength = 0.0250793e-10
    assert geometry.pixel_size_m == pytest.approx([wavelength * 0.5 / (16 * 1e-4)] * 2, rel=1e-4)
    assert PtyScanParameters(**ELECTRONS).pixel_m() == pytest.approx(geometry.pixel_size_m, rel=1e-12)


def test_voltage_and_energy_together_are_refused_with_both_paths() -> None:
    with pytest.raises(ConfigurationError, match=r"scans.s.data.acc_voltage: 200.0: `energy` is given too"):
        configured(energy=7.0)


def test_a_detector_that_tells_a_photon_energy_does_not_make_light_of_electrons() -> None:
    made, filled, _ = completed(PtyScanParameters(**ELECTRONS), Header({"energy": 12.0, "saturation": 99.0}), (16, 16))
    assert made.energy is None and filled == {"saturation": 99.0}


@pytest.mark.parametrize("spectrum", [{"energies": (1.0, 1.1)}])
def test_what_goes_with_light_alone_is_refused(spectrum: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="one energy"):
        models_of(configured(scan={"coherence": spectrum}))


def test_pixels_around_the_detector_make_those_on_the_sample_smaller() -> None:
    plain, padded = (geometry_of(configured(scan={"pad": pad, "resample": 2}).scans[0]) for pad in (0, 5))
    assert padded.fine == ((16 + 10) * 2, (16 + 10) * 2) == padded.view
    assert padded.pixel_size_m == pytest.approx(np.array(plain.pixel_size_m) * 16 / 26, rel=1e-12)


@pytest.mark.parametrize("resample", [1, 2])
@pytest.mark.parametrize("side", [8, 9])
def test_the_detector_sees_the_middle_of_the_model(resample: int, side: int) -> None:
    pad = 3
    geometry = Geometry((side, side), None, 0.5, (1e-4, 1e-4), resample=resample, pad=pad, voltage_kv=200.0)
    random = np.random.default_rng(side)
    n = (side + 2 * pad) * resample
    wave = random.normal(size=(n, n)) + 1j * random.normal(size=(n, n))
    found = intensity(propagator(geometry), wave)
    place = np.arange(n) - n // 2
    detector = (np.arange(side) - side // 2)[:, None] * resample + np.arange(resample) - (resample - 1) / 2
    turn = np.exp(-2j * np.pi * np.outer(detector.ravel(), place) / n) / np.sqrt(n)
    fine = np.abs(turn @ wave @ turn.T) ** 2
    wanted = fine.reshape(side, resample, side, resample).sum(axis=(1, 3))
    np.testing.assert_allclose(np.fft.fftshift(found), wanted, rtol=1e-9, atol=1e-12)


def test_the_wave_of_given_photons_has_them_and_none_beyond_the_detector() -> None:
    geometry = Geometry((8, 8), None, 0.5, (1e-4, 1e-4), resample=2, pad=3, voltage_kv=200.0)
    photons = np.random.default_rng(0).uniform(1, 9, (8, 8))
    way = propagator(geometry)
    wave = flat_phase(way, photons)
    np.testing.assert_allclose(intensity(way, wave), photons, rtol=1e-9)
    assert (np.abs(wave) ** 2).sum() == pytest.approx(photons.sum(), rel=1e-9)


def test_near_the_sample_the_model_is_wider_at_the_same_pixel() -> None:
    geometry = Geometry((8, 8), None, 1e-9, (1e-10, 1e-10), near=True, pad=4, voltage_kv=200.0)
    assert geometry.view == (16, 16) and geometry.pixel_size_m == (1e-10, 1e-10)
    for y, x, seen in ((8, 8, (4, 4)), (5, 11, (1, 7)), (4, 4, (0, 0)), (3, 8, None), (8, 12, None)):
        light = np.zeros((16, 16), complex)
        light[y, x] = 1.0
        found = np.fft.fftshift(intensity(propagator(geometry), light))
        if seen is None:
            assert found.sum() < 0.01  # it goes past the detector
        else:
            assert found[seen] > 0.95


@pytest.mark.parametrize("engine", ["DM", "ML", "EPIE", "RAAR", "SDR"])
def test_other_engines_do_not_take_it(engine: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"scans.s.pad: 4: engines.e \({engine}\) .*: use PyPty, or leave it out"):
        models_of(configured(engine, scan={"pad": 4}))


def test_a_ptyd_file_of_electrons_is_refused() -> None:
    from ptystream.plan import make_plan

    with pytest.raises(ConfigurationError, match=r"scans.s.data.save: 'append': .*voltage"):
        make_plan(configured(save="append", dfile="x.ptyd"))
