"""The simulated beamline: patterns against a plain sum, readings with the noise that was asked for, one scan on the wire."""

from typing import Any

import numpy as np
import pytest

from ptystream.detectors.simulated.pictures import flower, moon
from ptystream.detectors.simulated.simulator import Beamline, run

SMALL = Beamline(frames=9, side=15, rate_hz=1e6, photons=4e4, step_px=3.3, samples_per_frame=7, frames_per_message=4)


class Wire:
    """What a sender is told."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **named: self.heard.append((name, args, named))

    def named(self, name: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        return [(args, named) for n, args, named in self.heard if n == name]


@pytest.mark.parametrize("picture", [flower, moon])
@pytest.mark.parametrize("shape", [(64, 64), (31, 47)])
def test_a_picture_is_the_same_for_its_seed_and_another_for_the_next(picture: Any, shape: tuple[int, int]) -> None:
    assert picture(shape).shape == shape
    np.testing.assert_array_equal(picture(shape, 3), picture(shape, 3))
    assert np.abs(picture(shape, 3) - picture(shape, 4)).max() > 1e-3


def test_matter_absorbs_and_has_negative_phase() -> None:
    image = flower((101, 99))
    assert np.abs(image).max() <= 1
    assert np.angle(image[np.abs(image) > 0.8]).max() <= 0
    assert np.angle(image).min() < -0.5


@pytest.mark.parametrize("beamline", [SMALL, Beamline(frames=5, side=16, photons=1e5, step_px=2.7, seed=8)])
def test_a_pattern_scatters_about_the_intensity_of_a_plain_fourier_sum(beamline: Beamline) -> None:
    n, number = beamline.side, beamline.frames - 1
    probe, sample = beamline.probe(), beamline.object()
    place = beamline.positions_m()[number] / beamline.pixel_m
    corner = np.round(place).astype(int)
    moved = np.fft.fft2(probe)
    for axis, part in enumerate(place - corner):
        moved = moved * np.exp(-2j * np.pi * part * np.fft.fftfreq(n)).reshape((-1, 1) if axis == 0 else (1, -1))
    top, left = corner + np.array(sample.shape) // 2 - n // 2
    wave = np.fft.ifft2(moved) * sample[top : top + n, left : left + n]
    kernel = np.exp(-2j * np.pi * np.outer(np.arange(n) - n // 2, np.arange(n)) / n)
    mean = np.abs(kernel @ wave @ kernel.T) ** 2 / n**2
    counts = beamline.pattern(number).astype(float)
    assert counts.sum() == pytest.approx(mean.sum(), abs=5 * np.sqrt(mean.sum()))
    chi = (counts - mean) ** 2 / np.maximum(mean, 1e-12)
    bright = mean > 3
    assert bright.sum() > 20
    assert chi[bright].mean() == pytest.approx(1, abs=6 * np.sqrt(3 / bright.sum()))


def test_the_geometry_it_tells_gives_its_own_pixel() -> None:
    told = SMALL.geometry()
    pixel = 1.23984193e-9 / told["energy"] * told["distance"] / (SMALL.side * told["psize"])
    assert pixel == pytest.approx(SMALL.pixel_m)


def test_one_scan_goes_over_the_wire_whole_and_in_order() -> None:
    frames, positions = Wire(), Wire()
    run(SMALL, frames, positions)
    sent = frames.named("frames")
    assert [args[0] for args, _ in sent] == [0, 4, 8]
    np.testing.assert_array_equal(np.concatenate([args[1] for args, _ in sent]), [SMALL.pattern(k) for k in range(9)])
    assert frames.named("end") == [((9, "completed"), {})]
    assert positions.named("end") == [((63, "completed"), {})]
    assert [heard[0] for heard in frames.heard][:1] + [heard[0] for heard in frames.heard][-2:] == ["start", "end", "flush"]
    samples = positions.named("samples")
    assert [args[0] for args, _ in samples] == [0, 28, 56]


def test_readings_scatter_about_the_true_position_and_so_does_their_mean() -> None:
    beamline = Beamline(frames=400, side=8, rate_hz=1e9, samples_per_frame=5, encoder_noise_m=4e-9, frames_per_message=50)
    frames, positions = Wire(), Wire()
    run(beamline, frames, positions)
    read = np.concatenate([np.stack([named["y"], named["x"]], -1) for _, named in positions.named("samples")])
    off = read.reshape(400, 5, 2) - beamline.positions_m()[:, None]
    assert off.std() == pytest.approx(4e-9, rel=0.1)
    assert off.mean(axis=1).std() == pytest.approx(4e-9 / np.sqrt(5), rel=0.15)


def test_a_scan_that_is_stopped_says_how_far_it_came() -> None:
    frames, positions, waits = Wire(), Wire(), iter([False, True])
    slow = Beamline(frames=9, side=15, rate_hz=10.0, step_px=3.3, frames_per_message=3)
    run(slow, frames, positions, wait=lambda seconds: next(waits))
    assert len(frames.named("frames")) == 1
    assert frames.named("end") == [((3, "stopped"), {})]
    assert positions.named("end") == [((30, "stopped"), {})]
