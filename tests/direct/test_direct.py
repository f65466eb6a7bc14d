"""Direct methods against sets whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from stem import LAMBDA, Stem, alike

from ptystream.direct import brightfield, dpc, moments, virtual
from ptystream.direct.live import BrightField, Deflection
from ptystream.direct.raster import Raster, pattern_frequencies, turned
from ptystream.direct.wigner import deconvolved
from ptystream.model.aberrations import functions, names, slopes

RASTER = Raster((28, 28), (0.4e-10, 0.4e-10))


def gradient_of(phase: np.ndarray, raster: Raster) -> np.ndarray:
    """∇φ / 2π of a periodic picture."""
    ky, kx = raster.frequencies(phase.shape)
    spectrum = np.fft.fft2(phase)
    return np.stack([np.fft.ifft2(1j * k * spectrum).real for k in (ky, kx)], axis=-1)


def smooth(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    spectrum = np.fft.fft2(np.random.default_rng(seed).normal(size=shape))
    f = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.fftfreq(shape[1]))
    found = np.fft.ifft2(spectrum * np.exp(-((f / 0.08) ** 2))).real
    return found / np.abs(found).max()


# ---------------------------------------------------------------------- aberrations' slopes


def test_slopes_are_derivatives_of_the_functions() -> None:
    q, h = (np.linspace(-2e9, 2e9, 7)[:, None], np.linspace(-1.5e9, 2.2e9, 6)[None]), 1e3
    found = slopes(25, q, LAMBDA)
    for axis in (0, 1):
        step = [(h, 0.0), (0.0, h)][axis]
        ahead, behind = (functions(25, (q[0] + s * step[0], q[1] + s * step[1]), LAMBDA) for s in (1, -1))
        wanted = (ahead - behind) / (2 * h) / (2 * np.pi)
        for j, name in enumerate(names(25)):
            np.testing.assert_allclose(found[j, axis], wanted[j], atol=1e-5 * np.abs(wanted[j]).max(), err_msg=name)


# ---------------------------------------------------------------------- centre of mass


def test_integration_inverts_a_gradient() -> None:
    raster = Raster((20, 31), (0.3e-10, 0.5e-10))
    phase = smooth(raster.shape)
    np.testing.assert_allclose(dpc.integrated(gradient_of(phase, raster), raster), phase - phase.mean(), atol=1e-12)


def test_filters_damp_slow_and_fast_changes() -> None:
    raster = Raster((32, 32), (1e-10, 1e-10))
    y = np.arange(32) / 32
    slow, fast = (np.broadcast_to(np.sin(2 * np.pi * n * y)[:, None], (32, 32)) for n in (1, 12))
    field = gradient_of(slow + fast, raster)
    k = np.array([1, 12]) / 32 / 1e-10
    for given in ({"highpass": float(k[0] ** 2)}, {"lowpass": float(k[1] ** -2)}):
        found = dpc.integrated(field, raster, **given)
        share = k**2 / (k**2 + given.get("highpass", 0) + given.get("lowpass", 0) * k**4)
        np.testing.assert_allclose(found, share[0] * slow + share[1] * fast, atol=1e-9)


def test_iteration_does_without_periodicity_and_gaps() -> None:
    raster = Raster((24, 24), (1e-10, 1e-10))
    y, x = np.indices((24, 24)) / 24
    phase = 2 * y**2 + np.sin(5 * x * y) - 1.5 * x
    phase = phase - phase.mean()
    field = np.stack(np.gradient(phase, 1e-10), axis=-1) / (2 * np.pi)
    once, many = dpc.integrated(field, raster), dpc.refined(field, raster, rounds=200)
    error = [float(np.std(found - phase) / np.std(phase)) for found in (once, many)]
    assert error[0] > 0.3 and error[1] < 0.03
    known = np.random.default_rng(0).random((24, 24)) > 0.3
    with_gaps = dpc.refined(np.where(known[..., None], field, np.nan), raster, rounds=300, known=known)
    assert np.std(with_gaps - phase) < 0.06 * np.std(phase)


@pytest.mark.parametrize("degrees", [0.0, 17.0, -63.0, 89.0])
def test_rotation_is_found_by_the_curl(degrees: float) -> None:
    """Noisy centres of mass of simulated patterns."""
    stem = Stem(Raster((28, 24), (0.4e-10, 0.5e-10)), (-40e-10,), angle=np.deg2rad(degrees), electrons=2e5)
    field = moments.centres(stem.frames(), stem.frequency).reshape(28, 24, 2)
    angle, rest = dpc.rotation(field, stem.raster)
    assert (np.rad2deg(angle) - degrees + 90) % 180 - 90 == pytest.approx(0, abs=0.5)
    assert rest < 0.05
    assert not dpc.mirrored(field, stem.raster)
    assert dpc.mirrored(field * np.array([-1, 1]), stem.raster)
    up = dpc.upright(field, stem.raster, angle)
    assert (np.rad2deg(up) - degrees + 180) % 360 - 180 == pytest.approx(0, abs=0.5)


def test_rotation_follows_the_raster_and_not_the_lattice() -> None:
    """A fine square lattice that is turned against the raster by another angle than the patterns."""
    raster, turn = Raster((40, 40), (0.4e-10, 0.4e-10)), np.deg2rad(25.0)
    y, x = turned(raster.places_m().reshape(40, 40, 2), -np.deg2rad(20.0)).transpose(2, 0, 1) * 2 * np.pi / 2.5e-10
    # of the phase cos y + 0.7 cos x + 0.2 cos (x + y)
    slopes_y, slopes_x = -np.sin(y) - 0.2 * np.sin(x + y), -0.7 * np.sin(x) - 0.2 * np.sin(x + y)
    field = turned(turned(np.stack([slopes_y, slopes_x], axis=-1), np.deg2rad(20.0)), -turn)
    angle, rest = dpc.rotation(field, raster)
    assert np.rad2deg(angle) == pytest.approx(25.0, abs=0.2)
    assert rest < 1e-3


def test_rotation_of_noise_says_so_and_of_nothing_is_refused() -> None:
    noise = np.random.default_rng(0).normal(size=(40, 40, 2))
    assert dpc.rotation(noise, RASTER)[1] > 0.4
    with pytest.raises(ValueError, match="rotation"):
        dpc.rotation(np.zeros((8, 8, 2)), RASTER)


def test_integrated_centre_of_mass_shows_the_phase_in_radians() -> None:
    stem = Stem(Raster((40, 40), (0.4e-10, 0.4e-10)), (0.0,), strength=0.1, width=1.2e-10)
    field = moments.centres(stem.frames(), stem.frequency).reshape(40, 40, 2)
    found, light = dpc.refined(field, stem.raster), np.abs(stem.probe) ** 2
    # the phase blurred by the beam's intensity, on the raster
    own = (np.indices(stem.shape).transpose(1, 2, 0) - stem.side // 2) * stem.pixel
    wanted = np.array([(light * stem.phase(place + own)).sum() for place in stem.raster.places_m()]).reshape(40, 40)
    inner = np.s_[4:-4, 4:-4]
    assert alike(found, wanted, 4) > 0.98
    gain = np.polyfit(wanted[inner].ravel(), found[inner].ravel(), 1)[0]
    assert gain == pytest.approx(1, abs=0.06)


# ---------------------------------------------------------------------- descan, virtual detectors


def test_the_plane_of_descan_is_found_and_taken_out() -> None:
    """Patterns that wander by some pixels over the scan, in spite of what the sample does and of a few lost frames."""
    stem = Stem(RASTER, (-60e-10,), electrons=1e5)
    places = stem.raster.places_m()
    offset, slope = np.array([1.3, -0.7]), np.array([[2.0, 0.5], [-0.8, 1.5]]) / 5e-10  # pixels, pixels per metre
    wander = offset + places @ slope.T
    moved = moments.without_descan(stem.frames(), -wander)
    moved[::97] = 0
    pixel = stem.frequency[0][1, 0]
    plane = moments.Plane.of(places, moments.disk_centres(moved, stem.frequency) / pixel)
    np.testing.assert_allclose(plane.offset, offset, atol=0.1)
    np.testing.assert_allclose(plane.slope, slope, atol=0.1 / 5e-10)
    kept = np.arange(len(moved)) % 97 != 0
    straight = moments.without_descan(moved, plane(places))[kept]
    left = moments.disk_centres(straight, stem.frequency) / pixel
    assert np.abs(left.mean(axis=0)).max() < 0.1
    before = moments.disk_centres(moved[kept], stem.frequency) / pixel
    assert left.std() < 0.5 * before.std()
    tilts = moments.tilts_after(plane(places) * pixel, LAMBDA)
    np.testing.assert_allclose(tilts / LAMBDA / pixel, plane(places))


def test_a_plane_does_not_follow_wild_centres() -> None:
    rng, places = np.random.default_rng(2), RASTER.places_m()
    truth = moments.Plane(np.array([1.0, -2.0]), np.array([[2.0, 0.5], [-0.8, 1.5]]) / 5e-10)
    found = truth(places) + 0.05 * rng.normal(size=places.shape)
    found[::8] += [5.0, -9.0]
    plane = moments.Plane.of(places, found)
    np.testing.assert_allclose(plane.offset, truth.offset, atol=0.03)
    np.testing.assert_allclose(plane.slope, truth.slope, atol=0.03 / 5e-10)


def test_a_plane_needs_places_off_a_line() -> None:
    line = np.stack([np.arange(5.0), np.arange(5.0)], axis=1)
    with pytest.raises(ValueError, match="line"):
        moments.Plane.of(line, line)


def test_centres_are_weighted_means_and_dark_frames_have_none() -> None:
    q = pattern_frequencies((8, 6), (1e-10, 1e-10))
    frames = np.zeros((3, 8, 6))
    frames[0, 1, 2], frames[0, 7, 4], frames[1, 2, 1] = 3, 1, 5
    valid = np.ones((8, 6))
    valid[7, 4] = 0
    found = moments.centres(frames, q)
    np.testing.assert_allclose(found[0], [0.75 * q[0][1, 0] + 0.25 * q[0][7, 0], 0.75 * q[1][0, 2] + 0.25 * q[1][0, 4]])
    assert np.isnan(found[2]).all()
    np.testing.assert_allclose(moments.centres(frames, q, valid)[0], [q[0][1, 0], q[1][0, 2]])


def test_virtual_detectors_count_their_ring() -> None:
    q = pattern_frequencies((16, 16), (1e-10, 1e-10))
    radius = np.hypot(*np.broadcast_arrays(*q))
    ring = virtual.annulus(q, 1e9, 3e9)
    np.testing.assert_array_equal(ring, (radius >= 1e9) & (radius < 3e9))
    frames = np.random.default_rng(0).random((4, 16, 16))
    np.testing.assert_allclose(virtual.signal(frames, ring), (frames * ring).sum(axis=(1, 2)))
    valid = np.ones((16, 16))
    valid[2, 0] = 0  # in the ring
    assert ring[2, 0] == 1
    np.testing.assert_allclose(virtual.signal(np.ones((2, 16, 16)), ring, valid), ring.sum())
    with pytest.raises(ValueError, match="no pixel"):
        virtual.annulus(q, 1e11, 2e11)


def test_atoms_are_bright_at_high_angles() -> None:
    stem = Stem(RASTER, (0.0,), strength=0.8)
    radius = 1.1 * stem.semiangle / LAMBDA
    dark = virtual.signal(stem.frames(), virtual.annulus(stem.frequency, radius, np.inf)).reshape(RASTER.shape)
    assert alike(dark, stem.truth()) > 0.5


# ---------------------------------------------------------------------- Wigner distribution deconvolution


@pytest.mark.parametrize("electrons", [0.0, 1e5])
def test_deconvolution_gives_the_phase(electrons: float) -> None:
    """24 × 24 patterns of 32 × 32: the reference's set, where 0.91 is reached."""
    stem = Stem(Raster((24, 24), (0.4e-10, 0.4e-10)), (-120e-10,), electrons=electrons, width=0.5e-10)
    found = deconvolved(stem.frames(), stem.raster, stem.probe, (stem.pixel, stem.pixel))
    assert alike(np.angle(found), stem.truth()) > 0.91


def test_deconvolution_is_exact_for_a_weak_periodic_sample() -> None:
    """A sample that repeats with the raster, patterns from plain sums over its Fourier coefficients."""
    raster, stem = Raster((16, 16), (0.8e-10, 0.8e-10)), Stem(RASTER, (-80e-10, 20e-10))
    phase = 0.01 * smooth((16, 16))
    ky, kx = raster.frequencies()
    coefficients = np.fft.fft2(np.exp(1j * phase)) / phase.size
    own = (np.arange(stem.side) - stem.side // 2) * stem.pixel
    frames = []
    for i in range(16):
        for j in range(16):
            left = np.exp(2j * np.pi * (i * 0.8e-10 + own)[:, None] * ky[:, 0])
            right = np.exp(2j * np.pi * kx[0][:, None] * (j * 0.8e-10 + own))
            frames.append(np.abs(np.fft.fft2(stem.probe * (left @ coefficients @ right), norm="ortho")) ** 2)
    found = deconvolved(np.array(frames), raster, stem.probe, (stem.pixel, stem.pixel), epsilon=1e-4)
    assert alike(np.angle(found), phase, 0) > 0.99
    gain = np.polyfit(phase.ravel(), np.angle(found).ravel(), 1)[0]
    assert gain == pytest.approx(1, abs=0.1)


def test_deconvolution_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="wdd"):
        deconvolved(np.ones((3, 8, 8)), RASTER, np.ones((8, 8), complex), (1e-10, 1e-10))


# ---------------------------------------------------------------------- tilt-corrected bright field


def test_aberrations_and_rotation_are_fitted_to_shifts_with_outliers() -> None:
    rng, count = np.random.default_rng(1), 8
    q = rng.uniform(-1, 1, (80, 2)) * 25e-3 / LAMBDA
    truth = np.zeros(count)
    for name, value in (("C10", -120e-10), ("C12a", 20e-10), ("C21b", 600e-10), ("C30", 5e-6)):
        truth[names(count).index(name)] = value
    wanted = brightfield.Fit(truth, 0.3, LAMBDA)
    shifts = wanted.shifts(q) + np.array([3e-11, -2e-11]) + rng.normal(size=q.shape) * 1e-12
    shifts[::9] += rng.normal(size=shifts[::9].shape) * 5e-10
    fit = brightfield.fitted(q, shifts, count, LAMBDA)
    unit = np.abs(slopes(count, (q[:, 0], q[:, 1]), LAMBDA)).max(axis=(1, 2))
    np.testing.assert_allclose(fit.coefficients_m * unit, truth * unit, atol=2e-12)
    assert fit.angle == pytest.approx(0.3, abs=2e-3)
    assert fit.offset_m == pytest.approx([3e-11, -2e-11], abs=2e-12)
    assert fit.used is not None and not fit.used[::9].any() and fit.used.mean() > 0.75
    with pytest.raises(ValueError, match="cannot be found"):
        brightfield.fitted(q[:4], shifts[:4], count, LAMBDA)


def test_correlation_finds_a_fraction_of_a_step() -> None:
    picture = smooth((28, 28), 4)
    shifts = np.array([[0.31, -0.77], [2.5, 1.25], [0, 0]]) * 0.4e-10
    spectra = brightfield.moved_back(np.repeat(np.fft.fft2(picture)[None], 3, axis=0), -shifts, RASTER)
    found = brightfield.correlated(spectra, np.fft.fft2(picture), RASTER)
    np.testing.assert_allclose(found, shifts, atol=0.005 * 0.4e-10)


@pytest.mark.parametrize("degrees", [0.0, 25.0])
def test_defocus_is_found_to_two_percent(degrees: float) -> None:
    truth = (-120e-10, 15e-10, -10e-10)
    stem = Stem(Raster((32, 32), (0.5e-10, 0.5e-10)), truth, angle=np.deg2rad(degrees), electrons=1e5, side=48, strength=0.1)
    frames, turn = stem.frames(), np.deg2rad(degrees)
    fit, _ = brightfield.aligned(
        frames,
        stem.frequency,
        brightfield.bright_disk(frames.mean(axis=0)),
        stem.raster,
        LAMBDA,
        angle=turn if degrees == 0 else turn - 0.1,
        turns=degrees != 0,
        search_m=np.linspace(-250e-10, 250e-10, 41),
    )
    assert fit.coefficients_m[0] == pytest.approx(-120e-10, rel=0.02)
    np.testing.assert_allclose(fit.coefficients_m[1:], truth[1:], atol=4e-10)
    assert np.rad2deg(fit.angle) == pytest.approx(degrees, abs=1.0)


# ---------------------------------------------------------------------- live


def test_the_live_deflection_does_not_depend_on_the_order() -> None:
    stem = Stem(RASTER, (-30e-10,), angle=0.4)
    frames, order = stem.frames(), np.random.default_rng(0).permutation(RASTER.points)
    whole, bits = (Deflection(RASTER, stem.frequency, stem.angle) for _ in range(2))
    whole.add(frames, np.arange(RASTER.points))
    assert not bits.picture().any()
    half = None
    for k, part in enumerate(np.array_split(order, 9)):
        bits.add(frames[part], part)
        half = bits.picture() if k == 4 else half
    np.testing.assert_allclose(bits.picture(), whole.picture(), atol=1e-12)
    field = moments.centres(frames, stem.frequency).reshape(*RASTER.shape, 2)
    wanted = dpc.integrated(turned(field, stem.angle), RASTER)
    np.testing.assert_allclose(whole.picture(), wanted, atol=1e-12)
    assert half is not None and np.isfinite(half).all()
    with pytest.raises(ValueError, match="raster has points"):
        bits.add(frames[:1], [RASTER.points])
    with pytest.raises(ValueError, match="numbers"):
        bits.add(frames[:2], [1])


def test_the_live_bright_field_is_sharper_than_its_raster() -> None:
    """Steps of 1.5 Å, twice as fine in the picture; without the correction there is nothing like it."""
    stem = Stem(Raster((20, 20), (1.2e-10, 1.2e-10)), (-300e-10,), strength=0.15, side=64, pixel=0.4e-10, width=0.9e-10, atoms=90)
    frames = stem.frames()
    disk = frames.mean(axis=0) * stem.disk
    fit = brightfield.Fit(np.array(stem.coefficients), 0.0, LAMBDA)
    pictures = []
    for given in (fit, brightfield.Fit(np.zeros(1), 0.0, LAMBDA)):
        live = BrightField(stem.raster, stem.frequency, disk, given, finer=3)
        for part in np.array_split(np.random.default_rng(0).permutation(400), 5):
            live.add(frames[part], part)
        before = live.picture()
        live.add(5 * frames[:40], np.arange(40))  # numbers that were there already change nothing
        np.testing.assert_array_equal(live.picture(), before)
        pictures.append(live.picture())
    # the contrast of defocus, 2 sin(πλ C10 K²), of a phase turned round
    raster = Raster((60, 60), (0.4e-10, 0.4e-10))
    ky, kx = raster.frequencies()
    contrast = 2 * np.sin(np.pi * LAMBDA * stem.coefficients[0] * (ky**2 + kx**2))
    wanted = np.fft.ifft2(np.fft.fft2(stem.truth(3)) * contrast).real
    assert abs(alike(pictures[0], wanted, 12)) > 0.8
    assert abs(alike(pictures[1], wanted, 12)) < 0.4
