"""SimScan: every parameter shows in its frames or positions, and what it simulates can be reconstructed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scans import agreement, parameters, reconstruct, sent, transport
from scipy.ndimage import gaussian_filter

from ptystream.detectors.simulated.simulation import SimSimulation
from ptystream.detectors.simulated.stream import SimulatedParameters
from ptystream.detectors.simulated.xy import XyParameters
from ptystream.params.errors import ConfigurationError
from ptystream.params.load import load
from ptystream.transport import Surroundings

XY = {"model": "round", "steps": 4, "spacing": 6e-7}
SMALL: dict[str, Any] = {"shape": 32, "plot": False, "xy": XY, "detector": "GenericCCD32bit", "sample": {"model": "flower"}}
SMALL |= {"illumination": {"aperture": {"size": 3e-6}, "photons": 1e6}}
NONE = 2**32 - 1


def simulation(around: Surroundings | None = None, **given: Any) -> SimSimulation:
    return SimSimulation(parameters("SimScan", **{**SMALL, **given}), "s/data", around or Surroundings())


def frames(**given: Any) -> np.ndarray:
    return sent("SimScan", **{**SMALL, **given})[0]


def plain(made: SimSimulation, number: int, forward: Any) -> np.ndarray:
    """Intensity of a frame, mode by mode, through a matrix per axis: `forward(n, axis)`."""
    truth, n = made.experiment, 32
    place = made.true_m[number] / made.geometry.pixel_size_m
    corner = np.floor(place + 0.5).astype(int)
    top, left = corner - n // 2 - truth.offset
    total = np.zeros((n, n))
    for probe in truth.probe:
        moved = np.fft.fft2(probe)
        for axis, part in enumerate(place - corner):
            moved = moved * np.exp(-2j * np.pi * part * np.fft.fftfreq(n)).reshape((-1, 1) if axis == 0 else (1, -1))
        for layer in truth.object:
            wave = np.fft.ifft2(moved) * layer[top : top + n, left : left + n]
            total += np.abs(forward(wave)) ** 2
    return total


def test_frames_are_the_summed_intensities_of_all_modes_in_the_far_field() -> None:
    modes = {"num_probe_modes": 2, "num_object_modes": 2}
    modes |= {"illumination": {**SMALL["illumination"], "diversity": {"noise": (0.5, 3.0), "power": 0.3}}}
    made = simulation(**modes, sample={"model": "flower", "diversity": {"noise": (0.4, 3.0), "power": 0.2}})
    assert made.experiment.probe.shape[0] == made.experiment.object.shape[0] == 2
    kernel = np.exp(-2j * np.pi * np.outer(np.arange(32) - 16, np.arange(32)) / 32) / np.sqrt(32)
    np.testing.assert_allclose(made.intensity(3), plain(made, 3, lambda wave: kernel @ wave @ kernel.T), rtol=1e-8, atol=1e-6)
    powers = (np.abs(made.experiment.probe) ** 2).sum(axis=(1, 2))
    assert powers.sum() == pytest.approx(1e6)
    assert powers[1] / powers[0] == pytest.approx(0.3)


def test_frames_in_the_near_field_are_those_of_the_angular_spectrum() -> None:
    near = {"propagation": "nearfield", "psize": 2e-7, "distance": 2e-3, "xy": {**XY, "spacing": 1.1e-6}}
    made = simulation(**near)
    assert made.geometry.pixel_size_m == (2e-7, 2e-7)
    wavelength, n = 1.23984193e-9 / 7.2, np.fft.fftfreq(32) / 2e-7
    square = 1 - (wavelength * n[:, None]) ** 2 - (wavelength * n[None]) ** 2
    transfer = np.exp(2j * np.pi * 2e-3 / wavelength * (np.sqrt(square) - 1))
    expected = plain(made, 2, lambda wave: np.fft.ifft2(np.fft.fft2(wave) * transfer))
    np.testing.assert_allclose(made.intensity(2), expected, rtol=1e-8, atol=1e-6)
    far = simulation(**{**near, "propagation": "farfield"})
    assert far.geometry.pixel_size_m != made.geometry.pixel_size_m


def test_photons_are_those_asked_for_or_a_hundred_million() -> None:
    assert (np.abs(simulation().experiment.probe) ** 2).sum() == pytest.approx(1e6)
    assert (np.abs(simulation(illumination={}).experiment.probe) ** 2).sum() == pytest.approx(1e8)


def test_counts_follow_the_detector_and_its_name_is_enough() -> None:
    made = simulation()
    np.testing.assert_array_equal(frames()[4], np.rint(made.intensity(4)))
    by_name, by_branch = frames(detector="FLI_PL1001"), frames(detector={"model": "FLI_PL1001"})
    assert by_name.dtype == np.uint16
    np.testing.assert_array_equal(by_name, by_branch)
    quiet = frames(detector={"model": "FLI_PL1001", "shot_noise": 0.0, "full_well": 1e9})
    np.testing.assert_array_equal(quiet[4], np.rint(made.intensity(4) / 10))
    gaps = frames(detector={"model": "PILATUS_300K", "beam": (203, 243)})
    np.testing.assert_array_equal((gaps[0] == NONE).all(axis=1), (np.arange(32) - 16 + 203) % 212 >= 195)


def test_noise_of_photons_is_there_where_it_is_asked_for_and_keyed_by_the_frame() -> None:
    made = simulation(num_frames=12)
    mean = np.stack([made.intensity(k) for k in range(12)])
    noisy = frames(add_poisson_noise=True, num_frames=12)
    bright = mean > 5
    assert ((noisy - mean)[bright] ** 2 / mean[bright]).mean() == pytest.approx(1, abs=6 * np.sqrt(2 / bright.sum()))
    np.testing.assert_array_equal(noisy, frames(add_poisson_noise=True, num_frames=12))
    assert (noisy != frames(add_poisson_noise=True, num_frames=12, seed=1)).any()
    other = frames(add_poisson_noise=True, num_frames=12, around=Surroundings(seed=1))
    np.testing.assert_array_equal(other, frames(add_poisson_noise=True, num_frames=12, seed=1))


def test_psf_is_a_width_two_widths_or_a_kernel(tmp_path: Path) -> None:
    sharp = simulation().intensity(1)
    np.testing.assert_allclose(simulation(psf=1.4).intensity(1), gaussian_filter(sharp, 1.4), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(simulation(psf=(0.0, 2.0)).intensity(1), gaussian_filter(sharp, (0, 2)), rtol=1e-9, atol=1e-9)
    kernel = np.array([[0.0, 1.0, 0.0], [1.0, 4.0, 3.0], [0.0, 1.0, 0.0]])
    np.save(tmp_path / "psf.npy", kernel)
    expected = sum(
        kernel[i, j] / 10 * np.roll(np.pad(sharp, 1, mode="symmetric"), (i - 1, j - 1), (0, 1))[1:-1, 1:-1]
        for i in range(3)
        for j in range(3)
    )
    for given in (kernel, kernel.tolist(), str(tmp_path / "psf.npy")):
        np.testing.assert_allclose(simulation(psf=given).intensity(1), expected, rtol=1e-9, atol=1e-6)


def test_frame_size_cuts_or_fills_up_about_the_beam() -> None:
    whole = frames()
    np.testing.assert_array_equal(frames(frame_size=20), whole[:, 6:26, 6:26])
    padded = frames(frame_size=(40, 32.0))
    np.testing.assert_array_equal(padded[:, 4:36], whole)
    assert padded.shape[1:] == (40, 32)
    assert padded.sum() == whole.sum()


def test_positions_are_told_wrong_as_asked_and_frames_are_of_the_true_ones() -> None:
    true, given = simulation().true_m, {"pos_noise": 3e-8, "num_frames": 500, "xy": {**XY, "steps": 20}}
    assert (simulation().positions_m == true).all()  # the default scale is 0
    made = simulation(**given, pos_scale=2.0)
    off = made.positions_m - made.true_m
    assert np.abs(off).max() <= 6e-8
    assert off.std(axis=0) == pytest.approx(6e-8 / np.sqrt(3), rel=0.1)
    np.testing.assert_array_equal(made.positions_m, simulation(**given, pos_scale=2.0).positions_m)
    few = simulation(**given, pos_scale=[0.0, 1.0, 0.0])
    moved = np.flatnonzero((few.positions_m != few.true_m).any(axis=1))
    assert moved.tolist() == [1]
    drift = simulation(pos_drift=[0.0, (1e-7, -2e-7)])
    np.testing.assert_allclose(drift.positions_m - drift.true_m, [[0, 0]] + [[1e-7, -2e-7]] * (len(true) - 1), atol=1e-18)
    told = sent("SimScan", **{**SMALL, "pos_drift": 5e-7})
    np.testing.assert_allclose(told[1], true + 5e-7)
    np.testing.assert_array_equal(told[0], frames())


def test_positions_come_from_the_pattern_an_array_or_the_theory() -> None:
    own = np.array([[0.0, 1e-6], [2e-6, 0.0], [1e-6, 1e-6]])
    np.testing.assert_array_equal(simulation(xy={"override": own}).true_m, own)
    np.testing.assert_array_equal(simulation(xy={}, positions_theory=own).true_m, own)
    assert len(simulation(num_frames=5).true_m) == 5
    jittered = simulation(xy={**XY, "jitter": 1e-7})
    assert 0 < np.abs(jittered.true_m - simulation().true_m).max() <= 1e-7


def test_the_sample_lies_in_the_middle_of_the_pattern_with_fill_around_it() -> None:
    block = np.full((10, 10), 0.5 + 0.5j)
    made = simulation(xy={"model": "raster", "steps": 5, "spacing": 1e-6}, sample={"model": block, "fill": 0.9})
    rows, columns = np.nonzero(np.isclose(made.experiment.object[0], 0.5 + 0.5j))
    pixel = np.asarray(made.geometry.pixel_size_m)
    middle = (np.array([rows.mean(), columns.mean()]) + 0.5 + made.experiment.offset) * pixel
    np.testing.assert_allclose(middle, 2e-6, atol=float(pixel.max()))
    assert len(rows) == 100
    assert (made.experiment.object[0] == 0.9).sum() == made.experiment.object.size - 100
    moved = simulation(
        xy={"model": "raster", "steps": 5, "spacing": 1e-6}, sample={"model": block, "process": {"offset": (3, 0)}}
    )
    assert np.nonzero(np.isclose(moved.experiment.object[0], 0.5 + 0.5j))[0].mean() == pytest.approx(rows.mean() + 3)


def test_beam_and_sample_may_be_those_of_a_result(tmp_path: Path) -> None:
    result = reconstruct(tmp_path, {"s": {"data": {"name": "SimScan", **SMALL}}}, 2)
    file = str(tmp_path / "t.ptyr")
    made = simulation(illumination=file, sample=file)
    probe, given = made.experiment.probe[0], result.probe["SsG00"].data[0]
    assert np.abs(np.vdot(probe, given)) / np.linalg.norm(probe) / np.linalg.norm(given) == pytest.approx(1, abs=1e-6)
    storage = result.object["SsG00"]
    here = np.subtract(storage.offset, made.experiment.offset)
    view = made.experiment.object[0][max(0, here[0]) :, max(0, here[1]) :]
    there = storage.data[0][max(0, -here[0]) :, max(0, -here[1]) :]
    rows, columns = (min(a, b) for a, b in zip(view.shape, there.shape, strict=True))
    np.testing.assert_allclose(view[:rows, :columns], there[:rows, :columns])
    assert rows > 20


def test_a_picture_is_saved_where_files_go_and_only_where_it_is_wanted(tmp_path: Path) -> None:
    around = Surroundings(home=tmp_path / "here")
    simulation(around)
    assert not (tmp_path / "here").exists()
    simulation(around, plot=True)
    assert [p.name for p in (tmp_path / "here").iterdir()] == ["s_simulation.png"]
    assert (tmp_path / "here" / "s_simulation.png").read_bytes()[:4] == b"\x89PNG"


def test_verbose_level_says_how_much_is_told(caplog: pytest.LogCaptureFixture) -> None:
    told = []
    for verbose in (1, 2, 3, 5):
        caplog.clear()
        simulation(verbose_level=verbose, detector={"model": "GenericCCD32bit", "full_well": 1000.0}).frame(0)
        told.append([record.levelno for record in caplog.records])
    saturated, setup, frame = logging.WARNING, logging.INFO, logging.DEBUG
    assert told == [[], [saturated], [setup, saturated], [setup, saturated, frame]]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"xy": {}}, "choose 'round', 'raster' or 'spiral'"),
        ({"xy": {"model": "star"}}, "data.xy.model"),
        ({"detector": "EIGER"}, "data.detector.model"),
        ({"detector": {"qe": 2.0}}, "data.detector.qe"),
        ({"psf": [[1.0, -1.0]]}, "data.psf"),
        ({"frame_size": 10.5}, "data.frame_size"),
        ({"pos_noise": -1.0}, "data.pos_noise"),
        ({"pos_scale": []}, "data.pos_scale"),
        ({"verbose_level": 9}, "data.verbose_level"),
        ({"illumination": {"model": "stxm"}}, "data.illumination.model: "),
        ({"sample": {"stxm": {"label": "other"}}}, "data.sample"),
        ({"sample": "nowhere.ptyr"}, "nowhere.ptyr"),
        ({"propagation": "middle"}, "data.propagation"),
    ],
)
def test_what_cannot_be_simulated_is_refused_with_its_path(wrong: dict[str, Any], said: str) -> None:
    data = {"name": "SimScan", **SMALL, **wrong}
    with pytest.raises(ConfigurationError) as caught:
        load({"scans": {"s": {"name": "Full", "data": data}}, "engines": {"e": {"name": "DM"}}})
    assert said in str(caught.value)


def test_noise_is_added_once(tmp_path: Path) -> None:
    assert not parameters("SimScan", **SMALL, add_poisson_noise=True).noise_on_arrival()
    assert not SimulatedParameters(add_poisson_noise=True).noise_on_arrival()


def test_positions_far_apart_end_with_what_to_do() -> None:
    with pytest.raises(OSError, match=r"data\.xy: the positions need an object of .* bring them closer"):
        transport("SimScan", **{**SMALL, "xy": {"override": [[0.0, 0.0], [1.0, 1.0]]}})


@pytest.mark.slow
def test_a_simulated_scan_is_reconstructed(tmp_path: Path) -> None:
    data = {"name": "SimScan", **SMALL, "xy": {**XY, "steps": 11}, "add_poisson_noise": True, "detector": "PILATUS_300K"}
    data["illumination"] = {"aperture": {"size": 3e-6}, "photons": 1e7, "propagation": {"parallel": 2e-3}}
    result = reconstruct(tmp_path, {"s": {"data": data, "illumination": data["illumination"]}})
    assert result.misfit[-1, 0] < 0.01 * result.misfit[0, 0]
    truth = simulation(**{k: v for k, v in data.items() if k != "name"}).experiment
    (found,) = result.object.values()
    assert agreement(found, truth, result.coverage["SsG00"]) < 0.06


@pytest.mark.slow
def test_a_simulated_near_field_scan_is_reconstructed(tmp_path: Path) -> None:
    light = {"aperture": {"size": 8e-6, "diffuser": (1.0, 3.0)}, "photons": 1e8}
    places = XyParameters(model="round", steps=8, spacing=1e-6).positions(0)
    assert places is not None
    whole = np.round(places / 2e-7) * 2e-7  # of a diffuser's edges, bilinear weights know too little
    data = {**SMALL, "propagation": "nearfield", "psize": 2e-7, "distance": 0.01, "shape": 64, "illumination": light}
    data |= {"name": "SimScan", "xy": {"override": whole}}
    result = reconstruct(tmp_path, {"s": {"data": data, "propagation": "nearfield", "illumination": light}})
    assert result.misfit[-1, 0] < 0.01 * result.misfit[0, 0]
    truth = simulation(**{k: v for k, v in data.items() if k != "name"}).experiment
    (found,) = result.object.values()
    assert found.pixel_size_m == (2e-7, 2e-7)
    assert agreement(found, truth, result.coverage["SsG00"]) < 0.08


LIGHT = {"aperture": {"size": 3e-6}, "photons": 1e6}


@pytest.mark.parametrize(
    "changed",
    [
        {"aperture": {"size": 2e-6}},
        {"aperture": {"size": 3e-6, "form": "rect"}},
        {"aperture": {"size": (3e-6, 2e-6), "rotate": 0.3}},
        {"aperture": {"size": 3e-6, "central_stop": 0.4}},
        {"aperture": {"size": 3e-6, "diffuser": (0.5, 3.0)}},
        {"aperture": {"size": 3e-6, "edge": 5.0}},
        {"aperture": {"size": 3e-6, "offset": 5e-7}},
        {"photons": 2e6},
        {"model": "moon"},
        {"model": np.random.default_rng(0).random((32, 32))},
        {"propagation": {"parallel": 1e-3}},
        {"propagation": {"focussed": 0.1, "spot_size": 1e-6}},
    ],
    ids=repr,
)
def test_what_is_said_about_the_beam_changes_the_frames(changed: dict[str, Any]) -> None:
    base, other = simulation().intensity(2), simulation(illumination={**LIGHT, **changed}).intensity(2)
    assert np.abs(base - other).max() > 1e-3 * base.max()


@pytest.mark.parametrize(
    "changed",
    [
        {"model": "tree"},
        {"model": None, "fill": 0.5},
        {"model": np.random.default_rng(0).random((40, 40))},
        {"process": {"zoom": 1.3}},
        {"process": {"smoothing": 6}},
        {"process": {"offset": (4, 3)}},
        {"process": {"formula": "Au", "density": 19.3}},
        {"process": {"formula": "Au", "density": 19.3, "thickness": 2e-6}},
        {"process": {"ref_index": (1e-5, 1e-6)}},
    ],
    ids=repr,
)
def test_what_is_said_about_the_sample_changes_the_frames(changed: dict[str, Any]) -> None:
    base, other = simulation().intensity(2), simulation(sample={"model": "flower", **changed}).intensity(2)
    assert np.abs(base - other).max() > 1e-3 * base.max()


@pytest.mark.parametrize("name", ["moonflower", "simscan"])
def test_the_examples_are_right(name: str) -> None:
    configuration = load(Path(__file__).parents[3] / "examples" / "simulated" / f"{name}.yaml")
    assert configuration.name == name


def test_a_picture_covers_a_pattern_that_lies_beside_zero() -> None:
    made = simulation(xy={"model": "raster", "steps": 6, "spacing": 1e-6}).experiment
    matter = np.abs(made.object[0]) < 0.99
    y, x = (n // 2 for n in matter.shape)
    for quarter in (matter[:y, :x], matter[:y, x:], matter[y:, :x], matter[y:, x:]):
        assert 0.4 < quarter.mean() < 0.95


@pytest.mark.parametrize(
    ("name", "given", "shape"),
    [("MoonFlowerScan", {"shape": 32}, "(32, 32)"), ("SimScan", SMALL | {"frame_size": (20, 40)}, "(20, 40)")],
)
def test_a_center_outside_the_simulated_frame_is_told_at_load_time(name: str, given: dict[str, Any], shape: str) -> None:
    def loaded(center: Any) -> Any:
        scan = {"name": "Full", "data": {"name": name, **given, "center": center}}
        return load({"scans": {"s": scan}, "engines": {"e": {"name": "DM"}}})

    with pytest.raises(ConfigurationError) as caught:
        loaded((19, 40))
    assert f"scans.s.data.center: (19, 40): lies outside the frames of {shape} pixels" in str(caught.value)
    loaded((19, 31))
