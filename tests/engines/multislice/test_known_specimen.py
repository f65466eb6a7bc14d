"""A specimen of known slices, tilts and aberrations, seen by a microscope that shares no code with the engine: all are found.

Patterns are the second model's, of a simulated lattice with vacancies, with the noise of a million electrons each.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model import grids, pattern

import ptystream
from ptystream.detectors.simulated.microscope import Microscope
from ptystream.detectors.simulated.stemscan import StemParameters
from ptystream.direct import moments
from ptystream.model.aberrations import chi
from ptystream.storage import ptyr

pytestmark = pytest.mark.slow
QUIET = {part: {"active": False} for part in ("publish", "metrics", "steering", "interaction", "autosave", "recording")}
STEPS, APART = 9, 30e-10
SEEN = slice(16, 40)
"""Pixels of the object, from the first that any frame sees, that many frames see."""


@cache
def microscope(slices: int = 2) -> Microscope:
    """32² pixels of 0.25 Å, 60 kV, 25 mrad, 6 nm of defocus; steps of 2.5 pixels."""
    given = {"shape": 32, "steps": STEPS, "step": 0.625e-10, "pixel": 0.25e-10, "slices": slices, "slice_distance": APART}
    more = {"electrons": 1e6, "semiangle": 25e-3, "aberrations": [-60e-10], "displacement": 0.2e-10}
    return Microscope(StemParameters.model_validate(given | more), 0, "s")


def seen(one: Microscope, mode: int = 0, tilts: Any = None, lens: Any = None, coefficients: Any = None) -> np.ndarray:
    """Counts (frame, y, x); `tilts` (frame or 1, 6), radians; `lens` which of the `coefficients` (Å) each frame has."""
    count = len(one.places)
    turned = np.broadcast_to(np.zeros((1, 6)) if tilts is None else tilts, (count, 6))
    nearest = np.floor(one.places + 0.5).astype(int)
    qy, qx, _, _ = grids(one.shape, one.pixel_m)
    s = {
        **{"shape": one.shape, "pixel": one.pixel_m, "lam": one.wavelength_m, "cutoff": 2 / 3, "near": False, "pad": 0, "bin": 1},
        "probe": one.probe[None, None],
        "object": one.object[None],
        "corner": nearest - np.array(one.shape) // 2 - one.offset,
        "shift": one.places - nearest,
        "scenario": np.zeros(count, int),
        "current": np.ones(count),
        **{"before": turned[:, :2], "inside": turned[:, 2:4], "after": turned[:, 4:], "mode": mode},
        "distances": [APART] * (len(one.object) - 1),
        "lens": lens,
        "chi": None if lens is None else [chi(np.array(c) * 1e-10, (qy, qx), one.wavelength_m) for c in coefficients],
    }
    mean = np.stack([pattern(s, k) for k in range(count)])
    return np.random.default_rng(0).poisson(mean).astype("f4")


def first(one: Microscope) -> np.ndarray:
    """The pixel of the true object that is the first that any frame sees."""
    return np.round(one.places.min(axis=0)).astype(int) - np.array(one.shape) // 2 - one.offset


def given(one: Microscope, data: np.ndarray, **more: Any) -> dict[str, Any]:
    """A dictionary of PyPty's, with the microscope's own probe; nothing is known of the object."""
    page = {
        "dataset": data,
        "acc_voltage": one.p.acc_voltage,
        "pixel_size_x_A": 0.25,
        "pixel_size_y_A": 0.25,
        "positions": one.places,
        "scan_size": (STEPS, STEPS),
        "probe": one.probe[:, :, None],
        "num_slices": len(one.object),
        "slice_distances": [APART * 1e10],
        "default_dtype": "single",
        "print_flag": 0,
    }
    return page | more


def known(one: Microscope) -> dict[str, Any]:
    """The object as it is, and nothing refined."""
    y, x = first(one)
    return {"obj": one.object[:, y:, x:].transpose(1, 2, 0)[..., None], "update_obj": 0, "update_probe": 0}


def done(page: dict[str, Any], home: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(slices from the first pixel that any frame sees, what lies in PyPty's folder)."""
    run = ptystream.pypty_run(page | {"output_folder": "out"}, io={"home": str(home), **QUIET}, threads=1)
    stack = next(iter(ptyr.read(run.results[0]).object.values()))
    y, x = (-o for o in stack.offset)
    return stack.data[:, y:, x:], {file.stem: np.load(file) for file in (home / "out").glob("*.npy")}


def wrong(found: np.ndarray, one: Microscope) -> list[float]:
    """Rms difference of the phase of each slice, radians, apart from a constant."""
    y, x = first(one)
    apart = [np.angle(mine[SEEN, SEEN] * its[y:, x:][SEEN, SEEN].conj()) for mine, its in zip(found, one.object, strict=True)]
    return [float(np.std(np.angle(np.exp(1j * (a - np.angle(np.exp(1j * a).mean())))))) for a in apart]


def spread(one: Microscope) -> float:
    """Rms of the true phases, radians."""
    return float(np.angle(one.object).std())


@pytest.mark.parametrize(("slices", "least"), [(2, 0.010), (3, 0.018)])
def test_the_slices_of_a_known_potential_are_found(slices: int, least: float, tmp_path: Path) -> None:
    """From vacuum, probe refined too: to 0.010 (0.018) rad rms in every slice, where phases have 0.08 rad rms."""
    one = microscope(slices)
    found, _ = done(given(one, seen(one), epoch_max=60), tmp_path)
    assert len(found) == slices and spread(one) > 0.07
    assert max(wrong(found, one)) < least


@pytest.mark.parametrize(
    ("mode", "columns", "true", "least"),
    [(2, slice(0, 2), (3e-3, 2e-3), 3e-5), (0, slice(2, 4), (6e-3, -4e-3), 3e-4), (1, slice(4, 6), (3e-3, 2e-3), 3e-5)],
)
def test_one_tilt_for_all_is_found(mode: int, columns: slice, true: tuple[float, float], least: float, tmp_path: Path) -> None:
    """Before, inside and behind a known specimen, from none: to `least` radians."""
    one = microscope()
    tilts = np.zeros((1, 6))
    tilts[0, columns] = true
    own = {"tilts": np.zeros((1, 6)), "tilt_mode": mode, "update_tilts": 1, "epoch_max": 15}
    _, held = done(given(one, seen(one, mode, tilts), **known(one), **own), tmp_path)
    np.testing.assert_allclose(held["ct"], tilts, atol=least)


def test_the_tilts_of_each_measurement_are_found_with_the_slices(tmp_path: Path) -> None:
    """Nothing is known of the object: to 0.4 mrad rms, of 6 mrad. A tilt in common moves slices sideways, nobody can tell."""
    one = microscope()
    true = np.zeros((STEPS**2, 6))
    true[:, 2:4] = np.random.default_rng(3).normal(size=(STEPS**2, 2)) * 6e-3
    own = {"tilts": np.zeros((STEPS**2, 6)), "update_tilts": "lambda x: x >= 20", "update_probe": 0, "epoch_max": 80}
    found, held = done(given(one, seen(one, 0, true), **own), tmp_path)
    apart = (held["ct"] - true)[:, 2:4]
    assert np.sqrt(((apart - apart.mean(axis=0)) ** 2).mean()) < 4e-4
    assert max(wrong(found, one)) < 0.03


@pytest.mark.parametrize("is_known", [True, False])
def test_the_aberrations_of_subscans_are_found(is_known: bool, tmp_path: Path) -> None:
    """Defocus and astigmatism of two halves of a scan, from none, with a known probe: to 0.5 Å."""
    one = microscope()
    true = np.array([[40.0, 15.0, -10.0], [-30.0, -20.0, 5.0]])
    lens = np.arange(STEPS**2) % 2
    own = {"aberration_marker": lens, "aberrations_array": np.zeros((2, 3)), "update_aberrations_array": 1, "epoch_max": 30}
    if is_known:
        own |= known(one)
    else:
        own |= {"update_probe": 0, "update_aberrations_array": "lambda x: x >= 5", "epoch_max": 80}
    _, held = done(given(one, seen(one, 0, None, lens, true), **own), tmp_path)
    np.testing.assert_allclose(held["ca"], true, atol=0.5)


def test_descan_is_found_by_the_plane_and_taken_out_in_the_model(tmp_path: Path) -> None:
    """Patterns that wander by some pixels: the plane of their centres, given as tilts after the sample, puts them right."""
    one = microscope()
    places = (one.places - one.places.mean(axis=0)) * 0.25e-10
    qy, qx = (np.fft.fftshift(np.fft.fftfreq(n, 0.25e-10)) for n in one.shape)
    wander = (np.array([0.8, -0.6]) + places @ (np.array([[1.5, 0.4], [-0.7, 1.8]]) / 2.5e-10).T) * (qy[1] - qy[0])
    true, tilts = np.zeros((2, len(places), 6))
    true[:, 4:] = wander * one.wavelength_m
    moved = seen(one, 1, true)
    plane = moments.Plane.of(places, moments.centres(moved, (qy[:, None], qx[None])))
    tilts[:, 4:] = moments.tilts_after(plane(places), one.wavelength_m)
    page = given(one, moved, epoch_max=40)
    assert max(wrong(done(page, tmp_path / "a")[0], one)) > 0.04
    assert max(wrong(done(page | {"tilts": tilts, "tilt_mode": 1}, tmp_path / "b")[0], one)) < 0.025
