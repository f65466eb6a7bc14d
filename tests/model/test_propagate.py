"""Geometry and propagators against sums written in metres, tabulated values, and their own adjoints."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from bench import beam, on_detector

from ptystream.engine import Context
from ptystream.engines.backend import cpu
from ptystream.engines.sight import Sight
from ptystream.engines.tiles import Pod, Tile
from ptystream.model.fft import transforms
from ptystream.model.geometry import Geometry, GeometryError
from ptystream.model.propagate import Propagator, flat_phase, intensity, propagator
from ptystream.reconstruction import PodTable, Reconstruction, Storage

FAR = Geometry((32, 32), 7.2, 2.0, (1e-4, 1e-4))
NEAR = Geometry((48, 48), 7.2, 0.005, (2e-7, 2e-7), near=True)
SETUPS = {
    "far": (FAR, 1.0),
    "far, odd": (Geometry((31, 17), 7.2, 2.0, (1e-4, 2e-4)), 1.0),
    "higher energy": (FAR, 1.07),
    "lower energy, odd": (Geometry((31, 33), 7.2, 2.0, (1e-4, 2e-4)), 0.83),
    "resampled": (replace(FAR, resample=2), 1.0),
    "resampled by three, odd": (Geometry((17, 15), 7.2, 2.0, (1e-4, 1e-4), resample=3), 1.0),
    "resampled, higher energy": (replace(FAR, resample=2), 1.1),
    "finer": (replace(FAR, resolution_m=0.7 * FAR.pixel_size_m[0]), 1.0),
    "coarser": (replace(FAR, resolution_m=1.3 * FAR.pixel_size_m[0]), 1.0),
    "finer, resampled, lower energy": (replace(FAR, resolution_m=0.9 * FAR.pixel_size_m[0], resample=2), 0.95),
    "near": (NEAR, 1.0),
    "near, odd": (Geometry((31, 33), 7.2, 0.005, (2e-7, 3e-7), near=True), 1.0),
    "near, higher energy": (NEAR, 1.2),
    "near, resampled": (Geometry((24, 24), 7.2, 0.002, (2e-7, 2e-7), near=True, resample=2), 1.0),
}
EXACT = {"far", "far, odd", "resampled", "resampled by three, odd", "coarser"} | {name for name in SETUPS if "near" in name}
"""Set-ups whose propagator keeps every wave; a coarser pixel needs fewer numbers than the detector has."""


def random(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    r = np.random.default_rng(seed)
    return r.normal(size=shape) + 1j * r.normal(size=shape)


def sight_of(ways: list[Propagator], view: tuple[int, int]) -> tuple[Sight, Tile]:
    """A sight on one tile whose pods have these propagators."""
    made = Reconstruction({"p": Storage(np.zeros((1, *view), complex), None)}, {}, PodTable(len(ways)), {3: tuple(ways)})
    sight = Sight(cpu(Context(precision="double")), made, np.dtype(complex))
    pods = [Pod(0, 0, 0, None, None, None, None) for _ in ways]
    return sight, Tile(np.arange(2), 3, 0, None, None, None, None, None, pods)


@pytest.mark.parametrize("name", SETUPS)
def test_going_back_is_the_adjoint_to_twelve_digits(name: str) -> None:
    geometry, factor = SETUPS[name]
    ways = [propagator(geometry), propagator(geometry, factor), propagator(geometry, factor)]
    sight, tile = sight_of(ways, geometry.view)
    waves = random((3, 2, *geometry.view))
    there = sight.forward(tile, waves.copy())
    assert there.shape == (3 * geometry.resample**2, 2, *geometry.shape)
    other = random(there.shape, 1)
    left, right = np.vdot(other, there), np.vdot(sight.backward(tile, other.copy()), waves)
    assert abs(left - right) < 1e-12 * np.linalg.norm(other) * np.linalg.norm(waves)


@pytest.mark.parametrize("name", SETUPS)
def test_there_and_back_is_an_orthogonal_projection(name: str) -> None:
    """Unitary where nothing is zoomed; else photons are kept of all that both frame and detector hold, and nothing is made."""
    geometry, factor = SETUPS[name]
    sight, tile = sight_of([propagator(geometry, factor)], geometry.view)
    waves = random((1, 2, *geometry.view))
    back = sight.backward(tile, sight.forward(tile, waves.copy()))
    again = sight.backward(tile, sight.forward(tile, back.copy()))
    np.testing.assert_allclose(again, back, atol=1e-12)
    assert np.linalg.norm(sight.forward(tile, back.copy())) == pytest.approx(np.linalg.norm(back), rel=1e-12)
    if name in EXACT:
        np.testing.assert_allclose(back, waves, atol=1e-12)
    else:
        assert np.linalg.norm(back) < np.linalg.norm(waves)


@pytest.mark.parametrize("name", SETUPS)
def test_a_change_on_the_detector_leaves_what_is_not_seen_there(name: str) -> None:
    """Doing it twice is doing it once: with a projection on the detector the whole is one."""
    geometry, factor = SETUPS[name]
    sight, tile = sight_of([propagator(geometry), propagator(geometry, factor)], geometry.view)
    waves = random((2, 2, *geometry.view))
    np.testing.assert_allclose(sight.through(tile, waves.copy(), lambda f: None), waves, atol=1e-12)

    def measured(f: np.ndarray) -> None:
        f[:] = sight.forward(tile, aim.copy())

    aim = random(waves.shape, 4)
    once = sight.through(tile, waves.copy(), measured)
    np.testing.assert_allclose(sight.through(tile, once.copy(), measured), once, atol=1e-11)
    np.testing.assert_allclose(sight.forward(tile, once.copy()), sight.forward(tile, aim.copy()), atol=1e-11)
    if factor == 1.0 and name in EXACT:
        np.testing.assert_allclose(once, aim, atol=1e-11)


@pytest.mark.parametrize("name", SETUPS)
def test_the_detector_sees_what_sums_in_metres_say(name: str) -> None:
    geometry, factor = SETUPS[name]
    width = {True: 0.4, False: 0.3}[geometry.near] * min(geometry.view)
    wave = beam(geometry.view, width, 1.0)
    wanted = on_detector(wave, geometry, factor)
    sight, tile = sight_of([propagator(geometry, factor)], geometry.view)
    got = (np.abs(sight.forward(tile, np.array([[wave, wave]]))) ** 2).sum(axis=0)[1]
    np.testing.assert_allclose(got, wanted, atol=(4e-3 if geometry.near else 2e-3) * wanted.max())
    np.testing.assert_allclose(intensity(propagator(geometry, factor), wave), got, atol=1e-14)
    assert got.sum() == pytest.approx(1.0, abs=0.02)


def test_an_energy_lands_at_other_pixels_and_a_wrong_one_is_seen() -> None:
    """The same test is sharp enough to tell energies apart that differ by one part in a hundred."""
    wave = beam(FAR.view, 10, 1.0)
    wanted = on_detector(wave, FAR, 1.01)
    right, wrong = (np.abs(intensity(propagator(FAR, f), wave) - wanted).max() for f in (1.01, 1.0))
    assert right < 0.1 * wrong


def test_pods_of_one_frame_may_go_different_ways() -> None:
    ways = [propagator(FAR), propagator(FAR, 1.05), propagator(FAR)]
    sight, tile = sight_of(ways, FAR.view)
    waves = random((3, 2, *FAR.view))
    together = sight.forward(tile, waves.copy())
    for k, way in enumerate(ways):
        alone, one = sight_of([way], FAR.view)
        np.testing.assert_allclose(together[k], alone.forward(one, waves[k : k + 1].copy())[0], atol=1e-12)


def test_resampled_photons_are_those_of_the_binned_fine_detector() -> None:
    coarse = Geometry((16, 16), 7.2, 2.0, (1e-4, 1e-4), resample=2)
    wave = beam(coarse.view, 20, 1000.0)
    assert coarse.view == (32, 32)
    assert coarse.pixel_size_m == Geometry((16, 16), 7.2, 2.0, (1e-4, 1e-4)).pixel_size_m
    assert intensity(propagator(coarse), wave).sum() == pytest.approx(1000.0)
    way = propagator(coarse)
    wave = flat_phase(way, intensity(way, wave))
    np.testing.assert_allclose(intensity(way, wave), intensity(way, flat_phase(way, intensity(way, wave))), rtol=1e-9)


def test_in_the_near_field_a_gaussian_beam_widens_as_theory_says() -> None:
    """w(z) = w₀ √(1 + (z/z_R)²), z_R = π w₀²/λ: Siegman, Lasers."""
    geometry = Geometry((128, 128), 7.2, 0.05, (2e-7, 2e-7), near=True)
    waist = 1.5e-6
    rayleigh = np.pi * waist**2 / geometry.wavelength_m
    y = (np.arange(128) - 64) * 2e-7
    wave = np.exp(-(y[:, None] ** 2 + y**2) / waist**2)
    seen = np.fft.fftshift(intensity(propagator(geometry), wave))
    width = 2 * np.sqrt((seen * y[:, None] ** 2).sum() / seen.sum())
    assert width == pytest.approx(waist * np.hypot(1, 0.05 / rayleigh), rel=1e-3)
    assert width > 1.2 * waist


def test_a_frame_that_does_not_move_is_centred_on_the_detector_in_the_near_field() -> None:
    for resample in (1, 2, 3):
        geometry = Geometry((16, 16), 7.2, 1e-9, (1e-6, 1e-6), near=True, resample=resample)
        wave = np.zeros(geometry.view, complex)
        middle, r = 8 * resample, resample
        wave[middle - r // 2 : middle + (r + 1) // 2, middle - r // 2 : middle + (r + 1) // 2] = 1 / r
        seen = intensity(propagator(geometry), wave)
        assert np.unravel_index(int(seen.argmax()), seen.shape) == (0, 0)


def test_pixels_on_the_sample() -> None:
    lz = 1.23984193e-9 / 7.2 * 2.0
    assert FAR.pixel_size_m == pytest.approx((lz / 32e-4, lz / 32e-4))
    assert NEAR.pixel_size_m == (2e-7, 2e-7)
    assert replace(NEAR, resample=2).pixel_size_m == (1e-7, 1e-7)
    assert replace(FAR, resample=3).pixel_size_m == FAR.pixel_size_m
    forced = replace(FAR, resolution_m=5e-8)
    assert forced.pixel_size_m == (5e-8, 5e-8)
    misfit = lz / (5e-8 * 1e-4) - 32
    assert forced.view == (32 + 2 * round(misfit / 2),) * 2
    assert Geometry((16, 16)).pixel_size_m is None
    assert Geometry((16, 16)).view == (16, 16)


KNOWN = {"shape": (48, 48), "energy_kev": 7.2, "distance_m": 2.0, "detector_pixel_m": (1e-4, 1e-4)}


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"shape": (8, 8), "near": True}, "propagation"),
        ({"shape": (8, 8), "resolution_m": 1e-8}, "resolution"),
        ({**KNOWN, "near": True, "resolution_m": 1e-7}, "resolution"),
        ({**KNOWN, "resolution_m": 1e-13}, "resolution"),
    ],
)
def test_a_set_up_that_cannot_be_is_refused_with_the_parameter(given: dict[str, Any], name: str) -> None:
    with pytest.raises(GeometryError) as caught:
        Geometry(**given)
    assert caught.value.name == name


def test_a_propagator_on_the_host_and_one_that_was_put_elsewhere_do_the_same() -> None:
    geometry, factor = SETUPS["resampled, higher energy"]
    way, wave = propagator(geometry, factor), random(geometry.view)
    moved = way.put(lambda array: array.astype(np.complex64))
    a, b = (w.forward(wave.astype(w.zoom[0].dtype), *transforms()) for w in (way, moved))
    assert b.dtype == np.complex64
    np.testing.assert_allclose(a, b, atol=1e-5)
