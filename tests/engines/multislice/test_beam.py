"""The probe that a reconstruction begins with: each parameter of the page does what it says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.polynomial.hermite_e import hermeval
from scipy.optimize import minimize

from ptystream.engine import Context
from ptystream.engines.backend import cpu
from ptystream.engines.multislice import beam, coherence
from ptystream.engines.multislice.beam import Frame
from ptystream.engines.multislice.detector import Detector
from ptystream.engines.multislice.journey import Journey, Source, Sums, View, Wanted
from ptystream.engines.multislice.losses import compare
from ptystream.engines.multislice.optics import Optics
from ptystream.engines.multislice.parameters import PyPtyParameters
from ptystream.model.aberrations import chi, functions, names
from ptystream.model.electrons import electron_wavelength

ON = cpu(Context(precision="double"))
N, PIXEL = 64, (0.2e-10, 0.2e-10)
LAMBDA = electron_wavelength(60.0)


def frame(**given: Any) -> Frame:
    return Frame(**({"pattern": (N, N), "pixel_m": PIXEL, "wavelength_m": LAMBDA, "cutoff": 2 / 3} | given))


def disk(n: int = N, radius: float = 12.0, edge: float = 0.0) -> np.ndarray:
    y, x = np.indices((n, n)) - n // 2
    return np.clip(radius - np.hypot(y, x) + 0.5, 0, 1) + edge


def made(pattern: np.ndarray | None = None, counts: float | None = 1e4, at: Frame | None = None, **given: Any) -> np.ndarray:
    return beam.starting(PyPtyParameters(**given), at or frame(), disk() if pattern is None else pattern, counts)


def power(waves: np.ndarray) -> float:
    return float((np.abs(waves) ** 2).sum())


def test_a_probe_of_the_data_has_their_aperture_and_their_photons() -> None:
    probe = made()
    assert probe.shape == (1, 1, N, N)
    assert power(probe) == pytest.approx(1e4)
    np.testing.assert_allclose(np.abs(beam.forth(probe[0, 0])) ** 2, 1e4 * disk() / disk().sum(), atol=1e-9)
    assert np.unravel_index(np.abs(probe[0, 0]).argmax(), (N, N)) == (N // 2, N // 2)


def test_in_the_near_field_the_mean_image_is_the_probe() -> None:
    probe = made(disk(), at=frame(near=True, cutoff=1.9))
    np.testing.assert_allclose(np.abs(probe[0, 0]), np.sqrt(1e4 * disk() / disk().sum()), atol=1e-9)


def test_a_mean_pattern_takes_the_place_of_the_data() -> None:
    probe = made(disk(radius=5), mean_pattern=disk(radius=9))
    np.testing.assert_allclose(np.abs(beam.forth(probe[0, 0])) ** 2, 1e4 * disk(radius=9) / disk(radius=9).sum(), atol=1e-9)


def test_a_mean_pattern_is_flipped_moved_binned_and_multiplied_like_the_data() -> None:
    raw = np.random.default_rng(1).random((16, 12))
    p = PyPtyParameters(flip_ky=True, data_shift_vector=[2, -1], data_bin=2, data_multiplier=3.0)
    wanted = np.zeros((16, 12))
    wanted[2:, :-1] = raw[::-1][:-2, 1:]
    wanted = 3 * (wanted[0::2, 0::2] + wanted[1::2, 0::2] + wanted[0::2, 1::2] + wanted[1::2, 1::2])
    np.testing.assert_allclose(beam.prepared(raw, p, (8, 6)), wanted)
    with pytest.raises(ValueError, match="mean_pattern: shape"):
        beam.prepared(raw[:-1], p, (8, 6))


@pytest.mark.parametrize("mode", [0, 1, 4])
def test_a_binary_aperture_is_where_the_mean_pattern_is_bright_whatever_the_tilts(mode: int) -> None:
    rough = disk() * (1 + 0.5 * np.random.default_rng(0).random((N, N))) + 0.01
    probe = made(rough, estimate_aperture_based_on_binary=1.0, tilt_mode=mode)
    open_ = rough > rough.mean()
    np.testing.assert_allclose(np.abs(beam.forth(probe[0, 0])) ** 2, 1e4 * open_ / open_.sum(), atol=1e-9)
    with pytest.raises(ValueError, match="estimate_aperture_based_on_binary: 500"):
        made(rough, estimate_aperture_based_on_binary=500.0)


def test_an_aperture_mask_makes_a_probe_of_the_counts() -> None:
    probe = made(probe="aperture", aperture_mask=disk(48))
    assert power(probe) == pytest.approx(1e4)
    np.testing.assert_allclose(np.abs(beam.forth(probe[0, 0])) > 1e-9, beam.placed(disk(48), (N, N)) > 0)
    with pytest.raises(ValueError, match="aperture_mask"):
        made(probe="aperture")


@pytest.mark.parametrize("mode", [1, 2, 4])
def test_tilts_are_taken_out_of_the_mean_pattern(mode: int) -> None:
    """Patterns that the engine itself forms, tilted before and after."""
    at = frame()
    optics = Optics.of(at.shape, PIXEL, LAMBDA, (), cutoff=2 / 3, real=np.dtype(float))
    rng, step = np.random.default_rng(3), LAMBDA / (N * PIXEL[0])
    tilts = np.zeros((6, 6))
    tilts[:, 0:2], tilts[:, 4:6] = rng.integers(-4, 5, (6, 2)) * step, rng.integers(-4, 5, (6, 2)) * step
    wave = made(mean_pattern=disk(radius=8))
    view = View(
        np.arange(6),
        np.zeros((6, 2), int),
        np.zeros(6, int),
        before=tilts[:, 0:2] if mode in (2, 4) else None,
        after=tilts[:, 4:6] if mode in (1, 4) else None,
        shift=np.zeros((6, 2)),
    )
    source = Source(wave, np.fft.fft2(wave, norm="ortho"), np.ones((1, 1, N, N), complex))
    waves = Journey(ON, optics, view, source, Wanted()).forward()
    patterns = np.fft.fftshift((np.abs(waves) ** 2).sum(axis=(1, 2)), axes=(1, 2))
    straight = np.abs(beam.forth(wave[0, 0])) ** 2
    found = beam.mean_of(patterns, at, beam.applied_tilts(tilts, mode))
    np.testing.assert_allclose(found, straight, atol=1e-6 * straight.max())
    assert np.abs(beam.mean_of(patterns, at) - straight).max() > 0.3 * straight.max()


def test_the_mean_leaves_invalid_pixels_out() -> None:
    seen, valid = np.full((3, 4, 4), 2.0), np.ones((3, 4, 4))
    seen[0, 1, 1], valid[0, 1, 1], valid[:, 2, 2] = 1e6, 0, 0
    wanted = np.full((4, 4), 2.0)
    wanted[2, 2] = 0
    np.testing.assert_allclose(beam.mean_of(seen, frame(pattern=(4, 4)), valid=valid), wanted)


def test_virtual_detectors_add_up_to_a_pattern() -> None:
    masks = np.array([[[1.0, 0], [0, 0]], [[0, 1], [1, 0]]])
    np.testing.assert_allclose(beam.of_signals(np.array([[2.0, 3], [4, 5]]), masks), [[3, 4], [4, 0]])


@pytest.mark.parametrize("near", [False, True])
@pytest.mark.parametrize("bin", [2, 3])
def test_an_upsampled_pattern_keeps_its_photons_and_its_place(bin: int, near: bool) -> None:
    """On the way to the detector, and binned as that bins it, it is the pattern again."""
    y, x = np.indices((16, 16)) - 8
    smooth = 100 * np.exp(-((y - 1) ** 2 + x**2) / 12.0)
    at = frame(pattern=(16, 16), bin=bin, pad=2, cutoff=1.9, near=near)
    fine = beam.widened(smooth, at)
    assert fine.shape == at.shape == (20 * bin, 20 * bin)
    assert np.unravel_index(fine.argmax(), fine.shape) == (10 * bin + bin, 10 * bin)  # zero frequency is the model's
    optics = Optics.of(at.shape, PIXEL, LAMBDA, (), cutoff=1.9, real=np.dtype(float), near=near, bin=bin)
    wave = beam.wave_of(np.sqrt(fine), at)[0, 0]
    there = np.fft.ifft2(np.fft.fft2(wave) * optics.middle) if near else np.fft.fft2(wave * optics.middle, norm="ortho")
    seen = np.fft.fftshift(Detector.of(ON, optics, (16, 16), bin, 2).photons(there[None, None, None])[0])
    np.testing.assert_allclose(seen, smooth, atol=0.03 * smooth.max())
    assert fine.sum() == pytest.approx(smooth.sum(), rel=1e-3)


@pytest.mark.parametrize("near", [False, True])
def test_a_given_probe_is_brought_to_the_models_size(near: bool) -> None:
    rng = np.random.default_rng(0)
    y, x = np.indices((N, N)) - N // 2
    hill = np.exp(-(y**2 + x**2) / 60)
    given = (rng.normal(size=(N, N, 2, 3)) + 0j) * hill[:, :, None, None]
    at = frame(pad=16, near=near, cutoff=1.9)
    found = made(probe=given, at=at, counts=7.0)
    assert found.shape == (3, 2, 96, 96)
    for s in range(3):
        assert power(found[s]) == pytest.approx(7.0, rel=1e-6)
        wanted = given[:, :, 1, s] if near else beam.forth(given[:, :, 1, s])
        there = found[s, 1] if near else beam.forth(found[s, 1])
        there = there[16:-16, 16:-16]
        np.testing.assert_allclose(there / np.linalg.norm(there), wanted / np.linalg.norm(wanted), atol=2e-3)
    smaller = made(probe=given[:, :, 0, 0], at=frame(pattern=(48, 48)))
    assert smaller.shape == (1, 1, 48, 48)


def test_skip_preprocessing_takes_a_probe_as_it_is() -> None:
    given = beam.limited(made() * 3, frame())[0, 0]
    np.testing.assert_allclose(made(probe=given, skip_preprocessing=True)[0, 0], given, atol=1e-9)
    with pytest.raises(ValueError, match="skip_preprocessing"):
        made(probe=given[:-2, :-2], skip_preprocessing=True)


def test_faulty_probes_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="probe: shape"):
        made(probe=np.ones(4))
    with pytest.raises(ValueError, match="0 everywhere"):
        made(probe=np.zeros((N, N)))
    with pytest.raises(ValueError, match="no data"):
        beam.starting(PyPtyParameters(), frame(), None, None)


def test_extra_defocus_is_a_propagation_and_c10_the_same() -> None:
    defocus = -120.0
    q2 = frame().frequency()[0] ** 2 + frame().frequency()[1] ** 2
    wanted = beam.filtered(made(), np.exp(-1j * np.pi * LAMBDA * defocus * 1e-10 * q2))
    np.testing.assert_allclose(made(extra_probe_defocus=defocus), wanted, atol=1e-9)
    np.testing.assert_allclose(made(aberrations=[defocus]), wanted, atol=1e-9)
    assert np.abs(wanted - made()).max() > 1


def test_a_transfer_function_is_a_phase_in_the_middle_of_the_spectrum() -> None:
    ctf = np.random.default_rng(2).normal(size=(48, 48))
    found = beam.forth(made(beam_ctf=ctf)[0, 0])
    wanted = beam.forth(made()[0, 0]) * np.exp(-1j * np.pad(ctf, 8))
    np.testing.assert_allclose(found, wanted, atol=1e-9)
    with pytest.raises(ValueError, match="beam_ctf"):
        made(beam_ctf=np.zeros((N + 1, N)))


def test_defocus_modes_share_the_photons() -> None:
    found = made(defocus_spread_modes=[-50.0, 0.0, 50.0])
    assert found.shape == (1, 3, N, N)
    for mode, defocus in zip(found[0], (-50.0, 0.0, 50.0), strict=True):
        np.testing.assert_allclose(mode, made(extra_probe_defocus=defocus)[0, 0] / np.sqrt(3), atol=1e-9)


def test_hermite_modes_of_a_gaussian_beam_are_hermite_functions() -> None:
    y, x = np.indices((N, N)) - N // 2
    at = frame(cutoff=1.9)
    given = np.exp(-(x**2 / (4 * 3.0**2)) - y**2 / (4 * 4.0**2))
    found = made(probe=given, n_hermite_probe_modes=[2, 1], at=at)[0]
    assert found.shape == (6, N, N)
    assert power(found) == pytest.approx(1e4, rel=1e-9)
    flat = found.reshape(6, -1)
    np.testing.assert_allclose(flat.conj() @ flat.T, np.eye(6) * 1e4 / 6, atol=1e-6)
    for k, (a, b) in enumerate([(0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (2, 1)]):
        wanted = given * hermeval(x / 3.0, np.eye(a + 1)[a]) * hermeval(y / 4.0, np.eye(b + 1)[b])
        wanted = wanted * np.sqrt(1e4 / 6) / np.linalg.norm(wanted)
        np.testing.assert_allclose(found[k], wanted, atol=1e-3 * np.abs(wanted).max())


def blurred(light: np.ndarray, sigma_px: tuple[float, float]) -> np.ndarray:
    """Convolved with a Gaussian, written out."""
    y, x = (np.fft.fftfreq(N) * N for _ in range(2))
    kernel = np.exp(-(y[:, None] ** 2) / (2 * sigma_px[0] ** 2)) * np.exp(-(x[None] ** 2) / (2 * sigma_px[1] ** 2))
    return np.fft.ifft2(np.fft.fft2(light) * np.fft.fft2(kernel / kernel.sum())).real


def test_a_source_of_finite_size_blurs_the_beam_and_leaves_the_pattern(caplog: pytest.LogCaptureFixture) -> None:
    given = {"spatial_coh_y_A": 0.6, "spatial_coh_x_A": 0.3, "extra_probe_defocus": 40.0}
    with caplog.at_level("INFO"):
        found = made(mc_n_modes=40, **given)[0]
    plain = made(extra_probe_defocus=40.0)[0, 0]
    wanted = blurred(np.abs(plain) ** 2, (3.0, 1.5))  # pixels of 0.2 Å
    light = (np.abs(found) ** 2).sum(axis=0)
    assert np.abs(light - wanted).max() < 0.02 * wanted.max()
    pattern = (np.abs(beam.forth(found)) ** 2).sum(axis=0)
    np.testing.assert_allclose(pattern, np.abs(beam.forth(plain)) ** 2, atol=0.01 * np.abs(beam.forth(plain)).max() ** 2)
    flat = found.reshape(40, -1)
    products, each = flat.conj() @ flat.T, (np.abs(flat) ** 2).sum(axis=1)
    np.testing.assert_allclose(products, np.diag(each), atol=1e-8 * each[0])
    assert (np.diff(each) <= 0).all() and power(found) == pytest.approx(1e4)
    share = float(caplog.text.split("40 modes have ")[1].split()[0])
    assert 99 < share <= 100
    correlated = np.abs(made(mc_n_modes=30, spatial_coh_xy=0.9, **given)[0]) ** 2
    y, x = np.indices((N, N)) - N // 2
    moment = float((correlated.sum(axis=0) * y * x).sum() / correlated.sum())
    assert moment == pytest.approx(0.9 * 3.0 * 1.5, rel=0.1)


def test_a_spread_of_focus_is_the_mean_over_defoci() -> None:
    found = made(mc_n_modes=16, focal_spread=60.0, extra_probe_defocus=100.0)[0]
    defoci = np.linspace(-240, 240, 81)
    share = np.exp(-(defoci**2) / (2 * 60.0**2))
    share /= share.sum()
    wanted = sum(w * np.abs(made(extra_probe_defocus=100.0 + d)[0, 0]) ** 2 for w, d in zip(share, defoci, strict=True))
    light = (np.abs(found) ** 2).sum(axis=0)
    assert np.abs(light - wanted).max() < 0.02 * wanted.max()
    assert np.vdot(found[0], made(extra_probe_defocus=100.0)[0, 0]).real > 0


def test_a_few_modes_of_it_have_all_the_photons_within_the_limit_and_each_subscan_its_own() -> None:
    tail = disk() + 0.01
    found = made(tail, mc_n_modes=2, spatial_coh_x_A=0.5, probe_marker=[0, 1])
    assert found.shape == (2, 2, N, N)
    np.testing.assert_allclose([power(each) for each in found], power(made(tail)))
    assert power(made(tail)) < 0.99e4


def test_equally_strong_modes_do_not_hang_on_how_they_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """As libraries, threads and processors find them: turned among each other, with other phases."""
    y, x = np.meshgrid(*[np.linspace(-3, 3, 41)] * 2, indexing="ij")
    wave, phases = np.exp(-(x**2 + y**2)).ravel() + 0j, np.stack([y.ravel(), x.ravel(), 0 * x.ravel()])
    points = coherence.chances((0.7, 0.7, 0.0), 0.0, 200)
    quarter = points[:, [1, 0, 2]] * [1, -1, 1]
    points = np.concatenate([points, -points, quarter, -quarter])  # what the beam is turned by has its fourfold symmetry
    plain, share = coherence.modes(wave, phases, points, 6)
    real, turned = coherence.eigh, []

    def other(matrix: np.ndarray, **more: Any) -> tuple[np.ndarray, np.ndarray]:
        values, vectors = real(matrix, **more)
        vectors = vectors * np.exp(1j * np.arange(len(values)))
        for k in range(len(values) - 1):
            if abs(values[k] - values[k + 1]) < 1e-9 * values[-1] and values[k] > 1e-3 * values[-1]:
                vectors[:, [k, k + 1]] = vectors[:, [k, k + 1]] @ np.array([[0.6, 0.8], [-0.8, 0.6]])
                turned.append(k)
        return values, vectors

    monkeypatch.setattr(coherence, "eigh", other)
    found, same = coherence.modes(wave, phases, points, 6)
    assert turned and same == share
    np.testing.assert_allclose(found, plain, atol=1e-9 * np.abs(plain).max())


def test_points_fill_the_gaussian_evenly() -> None:
    for widths, correlation in (((1.0, 0.0, 0.0), 0.0), ((0.0, 0.0, 2.0), 0.0), ((1.0, 2.0, 3.0), 0.8), ((1.0, 1.0, 0.0), -1.0)):
        points = coherence.chances(widths, correlation, 255)
        wanted = np.diag(np.square(widths))
        wanted[0, 1] = wanted[1, 0] = correlation * widths[0] * widths[1]
        np.testing.assert_allclose(points.T @ points / len(points), wanted, atol=1e-9)
        for axis in np.flatnonzero(widths):
            k = np.linspace(0.2, 3, 15)
            seen = np.cos(np.outer(k, points[:, axis] / widths[axis])).mean(axis=1)
            np.testing.assert_allclose(seen, np.exp(-(k**2) / 2), atol=0.015 if np.count_nonzero(widths) == 1 else 0.06)


def test_what_is_too_wide_or_too_large_is_refused_before_anything_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"spatial_coh_x_A: 3 Å: must be 2\.13 or less"):
        made(mc_n_modes=2, spatial_coh_x_A=3.0)
    monkeypatch.setattr(beam, "allowed_bytes", lambda: 1 << 20)
    many = {"mc_n_modes": {"mc_n_modes": 9, "spatial_coh_x_A": 1.0}, "defocus_spread_modes": {"defocus_spread_modes": [1.0] * 9}}
    for name, given in (many | {"n_hermite_probe_modes": {"n_hermite_probe_modes": [2, 2]}}).items():
        with pytest.raises(ValueError, match=f"{name}: 9 modes of .* take {6 if name == 'mc_n_modes' else 2} MiB"):
            made(**given)


def test_hermite_modes_go_with_subscans_and_defocus_modes() -> None:
    found = made(n_hermite_probe_modes=[1, 0], probe_marker=[0, 1, 1, 2], defocus_spread_modes=[0.0])
    assert found.shape == (3, 2, N, N)
    for each in found:
        assert power(each) == pytest.approx(1e4, rel=1e-9)


def test_probes_lie_within_the_band_limit() -> None:
    at = frame(cutoff=0.2)
    spectrum = np.fft.fft2(made(at=at)[0, 0])
    assert np.abs(spectrum[at.limit() == 0]).max() < 1e-9 < np.abs(spectrum).max()


# ---------------------------------------------------------------------- aberrations


def test_aberrations_have_krivaneks_order_and_formula() -> None:
    assert " ".join(names(12)) == "C10 C12a C12b C21a C21b C23a C23b C30 C32a C32b C34a C34b"
    assert names(25)[18:] == ["C50", "C52a", "C52b", "C54a", "C54b", "C56a", "C56b"]
    q = frame().frequency()
    theta, phi = LAMBDA * np.hypot(*np.broadcast_arrays(*q)), np.arctan2(*np.broadcast_arrays(*q))
    for j, name in enumerate(names(25)):
        n, m = int(name[1]), int(name[2])
        angle = 1 if m == 0 else np.sin(m * phi) if name[-1] == "b" else np.cos(m * phi)
        wanted = 2 * np.pi / LAMBDA * theta ** (n + 1) / (n + 1) * angle
        np.testing.assert_allclose(functions(25, q, LAMBDA)[j], wanted, atol=1e-12 * np.abs(wanted).max(), err_msg=name)


def test_aberrations_are_fitted_back_through_the_engines_own_gradient() -> None:
    """C10, C12a, C21b and C30, by least squares on √I from a sample that scatters, from zero."""
    at, rng = frame(pattern=(32, 32), pixel_m=(0.4e-10, 0.4e-10)), np.random.default_rng(5)
    optics = Optics.of(at.shape, at.pixel_m, LAMBDA, (), cutoff=2 / 3, real=np.dtype(float))
    wave = made(disk(32, 9), at=at)
    count, frames = 8, 30
    truth = np.zeros(count)
    for name, value in (("C10", -30e-10), ("C12a", 15e-10), ("C21b", 800e-10), ("C30", 2e4 * 1e-10)):
        truth[names(count).index(name)] = value
    sample = np.exp(1.0j * rng.normal(size=(1, 1, 48, 48)))
    view = View(
        np.arange(frames),
        rng.integers(0, 16, (frames, 2)),
        np.zeros(frames, int),
        lens=np.zeros(frames, int),
        shift=np.zeros((frames, 2)),
    )
    slope = functions(count, at.frequency(), LAMBDA)
    size = np.abs(slope * (np.fft.ifftshift(disk(32, 9)) > 0)).max(axis=(1, 2))

    def passed(units: np.ndarray, measured: np.ndarray | None) -> Any:
        lenses = np.exp(-1j * chi(units / size, at.frequency(), LAMBDA))[None] * optics.limit
        source = Source(wave, np.fft.fft2(wave, norm="ortho"), sample, lenses)
        journey = Journey(ON, optics, view, source, Wanted(False, False, aberrations=True), slope)
        detector = Detector.of(ON, optics, (32, 32))
        waves = journey.forward()
        photons = detector.photons(waves)
        if measured is None:
            return photons
        found = compare(ON.xp, "lsq_sqrt", photons, measured, np.ones_like(measured), 1e-6, None)
        sums = Sums(aberrations=np.zeros((1, count)))
        journey.backward(detector.back(found.slope, waves), sums)
        return float(found.loss.sum()), sums.aberrations[0] / size

    measured = passed(truth * size, None)
    assert (np.abs(truth * size)[truth != 0] > 0.5).all()
    found = minimize(passed, np.zeros(count), args=(measured,), jac=True, method="L-BFGS-B", options={"maxiter": 200}).x / size
    np.testing.assert_allclose(found * size, truth * size, atol=2e-3)
