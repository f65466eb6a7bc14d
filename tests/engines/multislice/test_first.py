"""The first probe from frames as they lie in slabs, of a simulated microscope whose probe is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptystream.detectors.simulated.microscope import Microscope
from ptystream.detectors.simulated.stemscan import StemParameters
from ptystream.engine import Context
from ptystream.engines.backend import cpu
from ptystream.engines.multislice.beam import limited, modulated
from ptystream.engines.multislice.detector import Detector
from ptystream.engines.multislice.first import first_probe, frame_of, lens_functions
from ptystream.engines.multislice.objective import Objective
from ptystream.engines.multislice.optics import Optics
from ptystream.engines.multislice.parameters import PyPtyParameters
from ptystream.model.aberrations import chi
from ptystream.params.home import home

GIVEN: dict[str, Any] = {"shape": 48, "steps": 8, "slices": 1, "pixel": 0.25e-10, "electrons": 1e5}


def optics_of(shape: tuple[int, int], near: bool = False) -> Optics:
    one = Microscope(StemParameters.model_validate(GIVEN), 0, "s")
    return Optics.of(shape, one.pixel_m, one.wavelength_m, (), cutoff=2 / 3, real=np.dtype(float), near=near)


@pytest.fixture(scope="module")
def scan() -> tuple[Microscope, np.ndarray]:
    one = Microscope(StemParameters.model_validate(GIVEN), 0, "s")
    return one, np.fft.ifftshift([one.frame(k) for k in range(64)], axes=(1, 2))


def alike(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(np.vdot(a, b)) / np.linalg.norm(a) / np.linalg.norm(b))


def test_the_aberrations_that_the_page_takes_make_it_the_true_probe(scan: tuple[Microscope, np.ndarray]) -> None:
    one, frames = scan
    bare = first_probe(PyPtyParameters(), optics_of(one.shape), frames)
    found = first_probe(
        PyPtyParameters(aberrations=[-100.0], estimate_aperture_based_on_binary=1.0), optics_of(one.shape), frames
    )
    assert found.shape == (1, 1, *one.shape)
    assert (np.abs(found) ** 2).sum() == pytest.approx(frames.sum() / 64, rel=1e-6)
    assert alike(found[0, 0], one.probe) > 0.98 > 0.8 > alike(bare[0, 0], one.probe)


def test_invalid_pixels_and_the_multiplier_count(scan: tuple[Microscope, np.ndarray]) -> None:
    one, frames = scan
    broken, valid = frames.copy(), np.ones(one.shape)
    broken[:, 3, 5], valid[3, 5] = 1e9, 0
    found = first_probe(PyPtyParameters(data_multiplier=2.0), optics_of(one.shape), broken, valid)
    spectrum = np.abs(np.fft.fft2(found[0, 0], norm="ortho")) ** 2
    assert spectrum[3, 5] == pytest.approx(0, abs=1e-6)
    wanted = 2 * frames.mean(axis=0)
    inside = np.ones(one.shape, bool)
    inside[3, 5] = False
    inside &= spectrum > 1
    np.testing.assert_allclose(spectrum[inside], wanted[inside], rtol=1e-6)


def test_padded_and_upsampled_patterns_have_wider_waves(scan: tuple[Microscope, np.ndarray]) -> None:
    frames = scan[1]
    p = PyPtyParameters(data_pad=8, upsample_pattern=2)
    found = first_probe(p, optics_of((112, 112)), frames)
    assert found.shape == (1, 1, 112, 112)
    with pytest.raises(ValueError, match="data_pad, upsample_pattern"):
        first_probe(p, optics_of((100, 100)), frames)


def test_without_frames_a_mean_pattern_says_the_counts(scan: tuple[Microscope, np.ndarray]) -> None:
    one, frames = scan
    mean = np.fft.fftshift(frames.mean(axis=0))
    found = first_probe(PyPtyParameters(mean_pattern=mean), optics_of(one.shape), None, shape=one.shape)
    np.testing.assert_allclose(found, first_probe(PyPtyParameters(), optics_of(one.shape), frames), atol=1e-9)


def test_signals_of_virtual_detectors_make_a_probe(scan: tuple[Microscope, np.ndarray]) -> None:
    one, frames = scan
    y, x = np.indices(one.shape) - 24
    masks = np.array([(np.hypot(y, x) < 15).astype(float), (np.hypot(y, x) >= 15).astype(float)])
    signals = np.tensordot(np.fft.fftshift(frames, axes=(1, 2)), masks, axes=((1, 2), (1, 2)))
    p = PyPtyParameters(masks=masks, algorithm="lsq_compressed", estimate_aperture_based_on_binary=1.0)
    found = np.abs(np.fft.fftshift(np.fft.fft2(first_probe(p, optics_of(one.shape), signals)[0, 0])))
    assert (found[np.hypot(y, x) < 13] > 0.5 * found.max()).all() and found[np.hypot(y, x) > 17].max() < 1e-6 * found.max()


def test_lenses_of_subscans_take_angstroms() -> None:
    optics = optics_of((16, 12))
    given = np.array([[-100.0, 20.0, 5.0], [30.0, 0.0, -7.0]])
    found = np.tensordot(given, lens_functions(PyPtyParameters(aberrations_array=given), optics), axes=(1, 0))
    np.testing.assert_allclose(found, chi(given * 1e-10, optics.frequency, optics.wavelength_m), atol=1e-9)


def test_a_lens_acts_as_the_same_aberrations_of_the_probe_do() -> None:
    """And a defocus as so much further way."""
    on, (defocus, astigmatism) = cpu(Context(precision="double")), (-100.0, 30.0)
    plain = optics_of((48, 48))
    optics = Optics.of((48, 48), plain.pixel_m, plain.wavelength_m, (defocus * 1e-10,), cutoff=2 / 3, real=np.dtype(float))
    given = np.array([[defocus, 0.0], [defocus, astigmatism]])
    functions = lens_functions(PyPtyParameters(aberrations_array=given), optics)
    objective = Objective(on, optics, Detector.of(on, optics, (48, 48)), "lsq_sqrt", 0.01, functions)
    wave = np.ones((1, 1, 48, 48), complex)
    lenses = objective._source({"probe": wave, "object": wave, "aberrations": given}).lenses
    np.testing.assert_allclose(lenses[0], optics.propagators[0], atol=1e-9)
    point = np.zeros((1, 1, 48, 48), complex)
    point[..., 24, 24] = 1.0
    frame = frame_of(PyPtyParameters(), optics, (48, 48), 2 / 3)
    through = limited(modulated(PyPtyParameters(aberrations=given[1]), frame, point), frame)
    np.testing.assert_allclose(np.fft.fft2(through[0, 0]), np.fft.fft2(point[0, 0]) * lenses[1], atol=1e-9)


def test_tilted_patterns_are_moved_back_before_their_mean_is_taken(scan: tuple[Microscope, np.ndarray]) -> None:
    one, frames = scan
    optics = optics_of(one.shape)
    pixels = np.random.default_rng(0).integers(-3, 4, (64, 2))
    tilts = np.zeros((64, 6))
    tilts[:, 4:6] = pixels * optics.wavelength_m / (np.asarray(one.shape) * optics.pixel_m)
    order = np.arange(64)[::-1]  # they may come in any order
    moved = np.array([np.roll(frame, tuple(pixels[k]), axis=(0, 1)) for k, frame in zip(order, frames[order], strict=True)])
    wanted = first_probe(PyPtyParameters(), optics, frames)
    for mode in (1, 3, 4):
        found = first_probe(PyPtyParameters(tilts=tilts, tilt_mode=mode), optics, moved, index=order)
        np.testing.assert_allclose(found, wanted, atol=1e-6 * np.abs(wanted).max())
    assert alike(first_probe(PyPtyParameters(tilts=tilts), optics, moved, index=order)[0, 0], wanted[0, 0]) < 0.999


def test_a_file_of_phase_plates_lies_below_home(tmp_path: Path) -> None:
    assert PyPtyParameters(phase_plate_in_h5="plates.h5").phase_plate_in_h5 == "plates.h5"
    with home(tmp_path):  # where the parameters are read; the file is opened later, and by every rank
        given = PyPtyParameters(phase_plate_in_h5="plates.h5").phase_plate_in_h5
    assert given == str(tmp_path / "plates.h5")
