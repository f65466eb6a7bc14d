"""Comparing reconstructions: what is taken out, and that independent noise does not correlate."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, map_coordinates

from ptystream.quality import align, crop_to_cover, fit_ramp, fourier_ring_correlation, remove_ramp


def picture(seed: int, side: int = 96, blur: float = 2.0) -> np.ndarray:
    r = np.random.default_rng(seed)
    amplitude, phase = (gaussian_filter(r.normal(size=(side, side)), blur) for _ in range(2))
    return (1 + 0.5 * amplitude / amplitude.std()) * np.exp(0.4j * phase / phase.std())


def test_a_ramp_is_found_and_removed() -> None:
    y, x = np.mgrid[:80, :90]
    image = picture(0, 90)[:80] * np.exp(1j * (0.7 + 0.09 * y - 0.15 * x))
    a, b, c = fit_ramp(image, np.ones(image.shape))
    flat = fit_ramp(picture(0, 90)[:80], np.ones((80, 90)))
    assert (b - flat[1], c - flat[2]) == pytest.approx((0.09, -0.15), abs=3e-3)
    left = fit_ramp(remove_ramp(image, (a, b, c)), np.ones(image.shape))
    assert left == pytest.approx((0, 0, 0), abs=1e-6)


@pytest.mark.parametrize("moved", [(0.0, 0.0), (3.0, -2.0), (1.4, 0.3)])
def test_shift_ramp_and_constant_are_taken_out(moved: tuple[float, float]) -> None:
    truth = picture(1, blur=3.0)
    ky, kx = np.meshgrid(np.fft.fftfreq(96), np.fft.fftfreq(96), indexing="ij")
    other = np.fft.ifft2(np.fft.fft2(truth) * np.exp(2j * np.pi * (ky * moved[0] + kx * moved[1])))
    y, x = np.mgrid[:96, :96]
    other = other * 0.3 * np.exp(1j * (2.0 + 0.02 * y - 0.03 * x))
    weight = np.zeros((96, 96))
    weight[10:-10, 10:-10] = 1
    aligned = align(truth, other, weight)
    assert aligned.shift == pytest.approx(moved, abs=0.01)
    assert aligned.complex_rms < 0.01
    assert aligned.phase_std < 0.03
    assert align(truth, picture(2, blur=3.0), weight).complex_rms > 0.5


@pytest.mark.parametrize("moved", [(1.0, 0.0), (-2.0, 3.0), (0.4, 1.3)])
def test_the_end_of_the_weight_does_not_hold_an_image_where_it_is(moved: tuple[float, float]) -> None:
    """Cross-correlation alone leaves some hundredths of a pixel, and so of a percent of an image with details."""
    truth = picture(3, side=128, blur=1.2) * np.exp(1.5j * np.exp(-(np.hypot(*(np.mgrid[:128, :128] - 64.0)) ** 2) / 400))
    y, x = np.mgrid[:96, :96]
    at = y + 16 + moved[0], x + 16 + moved[1]
    other = map_coordinates(truth, at, order=5)
    weight = np.exp(-(np.hypot(y - 47, x - 50) ** 2) / (2 * 16**2))
    aligned = align(truth[16:-16, 16:-16], other, weight)
    assert aligned.shift == pytest.approx(moved, abs=2e-3)
    assert aligned.complex_rms < (0.02 if moved[0] % 1 else 1e-3)  # between pixels an interpolation tells a little


def test_images_without_details_can_be_compared() -> None:
    flat, weight = np.ones((24, 24), complex), np.ones((24, 24))
    assert align(flat, 2j * flat, weight).complex_rms < 1e-6


def test_independent_noise_does_not_correlate_and_with_an_untapered_offset_it_seems_to() -> None:
    r = np.random.default_rng(5)
    first, second = r.normal(size=(2, 160, 160)) + 1j * r.normal(size=(2, 160, 160))
    sound = fourier_ring_correlation(first, second)
    assert np.abs(sound.correlation[10:]).mean() < 0.1
    assert sound.resolution < 0.1
    y, x = np.mgrid[:160, :160]
    common = 30.0 + 0.2 * (y + x)
    careless = fourier_ring_correlation(first + common, second + common, taper=0)
    assert careless.resolution > 3 * sound.resolution


def test_the_resolution_is_where_the_common_signal_ends() -> None:
    r = np.random.default_rng(6)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(160), np.fft.fftfreq(160))) / 0.5
    for cut in (0.3, 0.6):
        signal = np.fft.ifft2(np.fft.fft2(r.normal(size=(160, 160))) * (frequency < cut))
        noisy = [signal + 0.05 * r.normal(size=(160, 160)) for _ in range(2)]
        assert fourier_ring_correlation(*noisy).resolution == pytest.approx(cut, abs=0.08)


def test_no_crossing_is_not_a_crossing_at_nyquist() -> None:
    r = np.random.default_rng(7)
    ring = np.rint(np.hypot(*np.meshgrid(np.fft.fftfreq(64), np.fft.fftfreq(64))) * 64).astype(int)
    common, first, second = r.normal(size=(3, 64, 64)) + 1j * r.normal(size=(3, 64, 64))
    pair = [np.fft.ifft2(np.where(ring == 32, own, common)) for own in (first, second)]
    assert fourier_ring_correlation(*pair, taper=0).resolution == 1.0
    assert fourier_ring_correlation(pair[0], 3j * pair[0] / 3j, taper=0).resolution == np.inf


def test_the_crop_lies_inside_the_cover() -> None:
    y, x = np.mgrid[:100, :120]
    weight = (np.hypot(y - 50, x - 60) < 40).astype(float)
    assert (weight[crop_to_cover(weight)] > 0).all()
    assert weight[crop_to_cover(weight)].shape == (57, 57)  # inscribed in the circle
    small = crop_to_cover(weight, 31)
    assert weight[small].shape == (31, 31)
    assert [(s.start + s.stop) // 2 for s in small] == [(s.start + s.stop) // 2 for s in crop_to_cover(weight)]


def test_the_crop_is_the_largest_square_wherever_it_lies() -> None:
    weight = np.zeros((80, 120))
    weight[:, :40] = 1
    weight[30:50, :] = 1
    assert weight[crop_to_cover(weight)].shape == (39, 39)
    assert (weight[crop_to_cover(weight)] > 0).all()
    weight[20, 20] = 0  # a hole in the middle of it
    found = crop_to_cover(weight)
    assert (weight[found] > 0).all()
    assert weight[found].shape[0] >= 37
    assert weight[crop_to_cover(np.zeros((5, 5)))].size == 0
