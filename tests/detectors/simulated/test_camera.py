"""Detectors: shape and gaps of the named ones, and the statistics of what they make of photons."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from ptystream.detectors.simulated.camera import CAMERAS, Camera, DetectorParameters
from ptystream.detectors.simulated.exposure import blurred

FLAT = np.full((300, 300), 400.0)


def shot(photons: np.ndarray, poisson: bool = True, seed: int = 0, **given: Any) -> tuple[np.ndarray, Camera]:
    """Counts, as floats with NaN where there are no data, of a plain CCD unless something else is given."""
    camera = Camera(DetectorParameters(**{"model": "GenericCCD32bit", **given}))
    made = camera.counts(photons, np.random.Generator(np.random.Philox(seed)), poisson=poisson)
    assert made.dtype == camera.dtype
    return np.where(made == np.iinfo(made.dtype).max, np.nan, made.astype(float)), camera


@pytest.mark.parametrize(
    ("name", "shape", "full_well", "bits"),
    [
        ("GenericCCD16bit", (2048, 2048), 65535, 16),
        ("GenericCCD32bit", (2048, 2048), 2**32, 32),
        ("FLI_PL1001", (1024, 1024), 5e5, 16),
        ("FRELON_TAPER", (2048, 2048), 5.5e5, 16),
        ("PILATUS_300K", (619, 487), 2**20, 32),
        ("PILATUS_1M", (1043, 981), 2**20, 32),
        ("PILATUS_2M", (1679, 1475), 2**20, 32),
        ("PILATUS_6M", (2527, 2463), 2**20, 32),
    ],
)
def test_the_named_detectors_are_what_their_makers_say(name: str, shape: tuple[int, int], full_well: float, bits: int) -> None:
    camera = Camera(DetectorParameters(model=name))
    assert camera.shape == shape
    assert camera.p["full_well"] == full_well
    assert camera.dtype == np.dtype(f"u{bits // 8}")
    valid = Camera(DetectorParameters(model=name, beam=(shape[0] // 2, shape[1] // 2))).valid(shape)
    modules, (height, width) = camera.p["modules"], camera.p["module_shape"]
    assert valid.sum() == modules[0] * modules[1] * height * width
    assert valid[0, 0] and valid[-1, -1]
    assert set(CAMERAS) == set(DetectorParameters.model_json_schema()["properties"]["model"]["enum"])


def test_gaps_lie_where_they_are_about_the_middle_of_the_detector() -> None:
    valid = Camera(DetectorParameters(model="PILATUS_300K")).valid((256, 100))
    rows = np.arange(256) - 128 + 309
    np.testing.assert_array_equal(valid.all(axis=1), rows % 212 < 195)
    np.testing.assert_array_equal(valid.any(axis=1), valid.all(axis=1))
    wide = Camera(DetectorParameters(model="PILATUS_300K")).valid((10, 600))
    assert wide.any(axis=0).sum() == 487
    own, _ = shot(FLAT[:9, :9], modules=(2, 1), module_shape=(3, 5), gaps=(2, 0), beam=(4, 2))
    expected = np.zeros((9, 9), bool)
    expected[0:3, 2:7] = expected[5:8, 2:7] = True
    np.testing.assert_array_equal(~np.isnan(own), expected)


@pytest.mark.parametrize("name", sorted(CAMERAS))
def test_the_beam_hits_a_module_and_may_be_put_anywhere(name: str) -> None:
    assert Camera(DetectorParameters(model=name)).valid((64, 64)).all()
    one = Camera(DetectorParameters(model="PILATUS_1M", beam=(200, 10))).valid((64, 64))
    rows, columns = np.arange(64) - 32 + 200, np.arange(64) - 32 + 10
    np.testing.assert_array_equal(one, (rows % 212 < 195)[:, None] & (columns >= 0)[None])


def test_photons_scatter_as_poisson_numbers_do_or_not_at_all() -> None:
    made, _ = shot(FLAT)
    assert made.mean() == pytest.approx(400, rel=0.002)
    assert made.var() == pytest.approx(400, rel=0.03)
    plain, _ = shot(FLAT + 0.4, poisson=False)
    assert (plain == 400).all()


def test_efficiency_takes_photons_before_they_are_counted() -> None:
    made, _ = shot(FLAT, qe=0.25)
    assert made.mean() == pytest.approx(100, rel=0.005)
    assert made.var() == pytest.approx(100, rel=0.03)


def test_a_scintillator_multiplies_light_and_noise_and_spreads_both() -> None:
    made, _ = shot(FLAT, sci_qe=10.0, sci_psf=0.0)
    assert made.mean() == pytest.approx(4000, rel=0.005)
    assert made.var() == pytest.approx(400 * 10**2 + 4000, rel=0.03)
    spread, _ = shot(FLAT, sci_qe=10.0, sci_psf=1.2)
    kept = (gaussian_filter(np.eye(1, 81, 40).reshape(9, 9), 1.2, mode="constant") ** 2).sum()
    assert spread.var() == pytest.approx(400 * 10**2 * kept + 4000, rel=0.05)
    none, _ = shot(FLAT, model="FRELON_TAPER", sci_qe=0.0, qe=1.0, shot_noise=0.0, adu=1.0)
    assert none.mean() == pytest.approx(400, rel=0.005)


def test_the_detectors_own_blur_smooths_what_came() -> None:
    made, _ = shot(FLAT, psf=(0.0, 2.0))
    along_rows, along_columns = (
        np.corrcoef(made.ravel()[:-300], np.roll(made, -1, axis).ravel()[:-300])[0, 1] for axis in (0, 1)
    )
    assert along_columns > 0.8
    assert abs(along_rows) < 0.05
    point = np.zeros((31, 31))
    point[15, 15] = 1e6
    spread, _ = shot(point, poisson=False, psf=1.5)
    np.testing.assert_allclose(spread, gaussian_filter(point, 1.5), atol=0.5)


def test_dark_current_and_read_out_noise_are_there_without_light() -> None:
    dark, _ = shot(np.zeros((300, 300)), dark_current=30.0)
    assert dark.mean() == pytest.approx(30, rel=0.01)
    assert dark.var() == pytest.approx(30, rel=0.03)
    assert (shot(np.zeros((30, 30)), poisson=False, dark_current=30.0)[0] == 30).all()
    read, _ = shot(FLAT, poisson=False, shot_noise=15.0)
    assert read.mean() == pytest.approx(400, rel=0.002)
    assert read.std() == pytest.approx(15, rel=0.02)
    floor, _ = shot(np.zeros((100, 100)), shot_noise=15.0)
    assert floor.min() == 0
    assert floor.mean() == pytest.approx(15 / np.sqrt(2 * np.pi), rel=0.05)


def test_counts_are_charges_per_adu_and_saturate_at_the_full_well() -> None:
    ramp = np.arange(0, 9000.0, 10).reshape(30, 30)
    made, camera = shot(ramp, poisson=False, model="FLI_PL1001", shot_noise=0.0, full_well=8000.0)
    assert camera.dtype == np.uint16
    np.testing.assert_array_equal(np.isnan(made), ramp >= 8000)
    np.testing.assert_array_equal(made[ramp < 8000], ramp[ramp < 8000] / 10)
    clipped, _ = shot(np.full((4, 4), 1000.0), poisson=False, bits=8)
    assert (clipped == 254).all()


def test_the_same_generator_makes_the_same_counts() -> None:
    first, second, third = (shot(FLAT, model="FRELON_TAPER", seed=s)[0] for s in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert (first != third).any()


@pytest.mark.parametrize(
    "wrong", [{"qe": 0.0}, {"qe": 1.1}, {"adu": 0.0}, {"gaps": (-1, 0)}, {"psf": -1.0}, {"bits": 12}, {"model": "EIGER"}]
)
def test_what_is_no_detector_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DetectorParameters(**wrong)


@pytest.mark.parametrize("shape", [(3, 3), (2, 5), (1, 4), (40, 3)])
def test_a_kernel_blurs_as_a_plain_sum_and_keeps_the_photons(shape: tuple[int, int]) -> None:
    random = np.random.default_rng(3)
    image, kernel = random.random((40, 37)), random.random(shape)
    made = blurred(image, kernel)
    assert made.shape == image.shape
    dy, dx = (np.arange(n) - n // 2 for n in shape)
    expected = sum(
        kernel[i, j] / kernel.sum() * image[20 - dy[i], 18 - dx[j]]
        for i in range(shape[0])
        for j in range(shape[1])
        if 0 <= 20 - dy[i] < 40
    )
    if shape[0] < 20:
        assert made[20, 18] == pytest.approx(expected)
    symmetric = kernel + kernel[::-1] + kernel[:, ::-1] + kernel[::-1, ::-1]
    if all(n % 2 for n in shape):
        assert blurred(image, symmetric).sum() == pytest.approx(image.sum())
