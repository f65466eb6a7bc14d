"""Figures that need no halves: what they are on cases where the answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from ptystream.assessment.convergence import LEAST, WINDOW, convergence
from ptystream.assessment.correlation import correlate
from ptystream.assessment.coverage import coverage, diameter, within
from ptystream.assessment.drift import drift
from ptystream.assessment.purse import SAVED_S, Purse
from ptystream.publish.measured import FIGURES, faults, told
from ptystream.reconstruction import Stack, Storage


def curve(values: np.ndarray) -> list[np.ndarray]:
    return [np.stack([values[k : k + 3]] * 3, axis=1) for k in range(0, len(values), 3)]


@pytest.mark.parametrize(
    ("rate", "state"), [(-0.05, "falling"), (-0.005, "falling"), (-0.001, "converged"), (0.014, "converged"), (0.03, "rising")]
)
def test_the_misfit_says_whether_a_run_converges(rate: float, state: str) -> None:
    noise = np.random.default_rng(1).normal(size=60) * 0.002
    found = convergence(curve(np.exp(rate * np.arange(60) + noise)))
    assert found["state"] == state
    assert found["per_iteration"] == pytest.approx(rate, abs=5e-4)


def test_only_the_end_of_the_curve_is_judged_and_not_before_there_is_one() -> None:
    falls = np.exp(-0.1 * np.arange(100))
    assert convergence(curve(np.concatenate([falls, np.full(WINDOW, falls[-1])])))["state"] == "converged"
    assert convergence(curve(falls[: LEAST - 1])) == {"state": "too early"}
    assert convergence(curve(falls[:LEAST]))["state"] == "falling"
    assert convergence([]) == {}


def test_an_engine_that_diverged_is_rising() -> None:
    falls = np.exp(-0.1 * np.arange(30))
    assert convergence(curve(np.concatenate([falls, [np.nan]]))) == {"state": "rising"}
    assert convergence(curve(np.concatenate([falls, np.full(40, np.inf)]))) == {"state": "rising"}


def disc(side: int, across: float) -> np.ndarray:
    y, x = np.mgrid[:side, :side] - side // 2
    return (np.hypot(y, x) < across / 2).astype(float)


def test_the_beam_is_as_wide_as_a_disc_with_the_same_power_inside() -> None:
    assert diameter(disc(128, 40)) == pytest.approx(40, rel=0.02)
    y, x = np.mgrid[:128, :128] - 64
    gaussian = np.exp(-(y**2 + x**2) / (2 * 8.0**2))
    assert diameter(gaussian) == pytest.approx(np.sqrt(2) * 2.3548 * 8, rel=0.02)
    noise = gaussian + 1e-4 * np.random.default_rng(0).random((128, 128))
    assert diameter(noise) == pytest.approx(diameter(gaussian), rel=0.05)
    assert diameter(np.zeros((8, 8))) == 0.0


def raster(columns: int, step: float) -> np.ndarray:
    return np.stack(np.divmod(np.arange(columns**2), columns), axis=1) * step


def seen(positions: np.ndarray, across: float, side: int) -> np.ndarray:
    """Illumination of discs about positions; its first pixel is [-32, -32]."""
    y, x = np.mgrid[:side, :side] - 32
    lit = np.zeros((side, side))
    for row, column in positions:
        lit += np.hypot(y - row, x - column) < across / 2
    return lit


@pytest.mark.parametrize("step", [4.0, 8.0, 16.0])
def test_overlap_and_frames_per_beam_of_a_raster(step: float) -> None:
    places = raster(9, step)
    found = coverage(places, (-32, -32), seen(places, 20, 200), 20.0)
    assert found["overlap"] == pytest.approx(1 - step / 20)
    assert found["frames_per_beam"] == pytest.approx(81 * np.pi * 100 / (8 * step) ** 2)
    assert found["holes"] == 0.0 if step < 14 else 0 < found["holes"] < 0.05  # then discs leave corners out


def test_a_part_that_was_left_out_is_a_hole_and_a_step_beyond_the_beam_no_overlap() -> None:
    places = raster(17, 8.0)
    middle = np.abs(places - 64).max(axis=1) < 25
    kept = places[~middle]
    found = coverage(kept, (-32, -32), seen(kept, 20, 200), 20.0)
    dark = (seen(kept, 20, 200)[32:161, 32:161] == 0).mean()
    assert found["holes"] == pytest.approx(dark, rel=0.02) and dark > 0.08
    assert coverage(places, (-32, -32), seen(places, 20, 200), 20.0)["holes"] == 0.0
    assert coverage(raster(5, 30.0), (-32, -32), seen(raster(5, 30.0), 20, 200), 20.0)["overlap"] == 0.0


@pytest.mark.parametrize("places", [np.zeros((9, 2)), np.stack([np.arange(9.0)] * 2, axis=1), np.eye(2), np.zeros((0, 2))])
def test_positions_that_enclose_nothing_have_no_coverage(places: np.ndarray) -> None:
    assert coverage(places, (0, 0), np.ones((9, 9)), 5.0) == {}


def test_pixels_within_a_polygon() -> None:
    corners = np.array([[2.0, 3.0], [2.0, 9.0], [7.0, 9.0], [7.0, 3.0]])
    inside = np.zeros((10, 12), bool)
    inside[2:8, 3:10] = True
    np.testing.assert_array_equal(within(corners, (10, 12)), inside)
    np.testing.assert_array_equal(within(corners[::-1], (10, 12)), inside)
    tilted = within(np.array([[0.0, 4.0], [4.0, 8.0], [8.0, 4.0], [4.0, 0.0]]), (9, 9))
    y, x = np.mgrid[:9, :9]
    np.testing.assert_array_equal(tilted, np.abs(y - 4) + np.abs(x - 4) <= 4)


def test_drift_of_the_probe_and_of_refined_positions() -> None:
    began = Storage(disc(64, 20)[None].astype("c8"), (2e-9, 3e-9))
    now = Storage(np.roll(began.data, (4, -2), (1, 2)), began.pixel_size_m)
    index = np.random.default_rng(0).permutation(101)
    moved = np.stack([5e-9 + 1e-10 * (index - 50), np.full(101, -2e-9)], axis=1)
    found = drift(began, now, moved, index)
    assert found["probe_m"] == pytest.approx([8e-9, -6e-9])
    assert found["positions_m"] == pytest.approx([5e-9, -2e-9])
    assert found["trend_m"] == pytest.approx([1e-8, 0], abs=1e-20)
    assert found["rms_m"] == pytest.approx(np.sqrt((moved**2).sum(axis=1).mean()))
    assert drift(began, now, None, index).keys() == {"probe_m"}
    dead = Storage(np.zeros_like(began.data), began.pixel_size_m)
    assert drift(began, dead, None, index) == {}


def noise(seed: int, side: int = 256) -> np.ndarray:
    r = np.random.default_rng(seed)
    return (r.normal(size=(1, side, side)) + 1j * r.normal(size=(1, side, side))).astype("c8")


def images(data: np.ndarray, offset: tuple[int, int] = (0, 0), pixel: float = 4e-9) -> tuple[Storage, Storage]:
    place = (pixel, pixel), offset
    return Storage(data, *place), Storage(np.ones_like(data), *place)


def test_independent_noise_does_not_correlate() -> None:
    found = correlate(images(noise(1)), images(noise(2)))
    assert np.abs(found["correlation"][10:]).mean() < 0.1
    assert found["resolution_m"] > 10 * 4e-9
    with_offset = correlate(images(noise(1) + 30), images(noise(2) + 30))  # what is common to both is no picture
    assert np.abs(with_offset["correlation"][10:]).mean() < 0.1


def test_the_resolution_is_half_the_period_at_the_crossing() -> None:
    side = 255  # the part that is compared
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(256), np.fft.fftfreq(256))) / 0.5
    common = np.fft.ifft2(np.fft.fft2(noise(3)) * (frequency < 0.5))
    found = correlate(*(images((common + 0.2 * noise(k)).astype("c8")) for k in (4, 5)))
    assert found["resolution_m"] == pytest.approx(4e-9 / 0.5, rel=0.1)
    assert found["frequency_per_m"][-1] == pytest.approx(1 / (2 * 4e-9), rel=0.02)
    assert len(found["frequency_per_m"]) == len(found["threshold"]) == side // 2 + 1
    same = correlate(images(noise(3)), images(noise(3) * 2j))
    assert same["resolution_m"] is None  # they agree up to Nyquist


def test_of_a_stack_all_slices_together_are_compared() -> None:
    """Two halves that share a phase out among their slices in ways of their own agree on the sum, and on no slice."""
    r, low = np.random.default_rng(8), np.hypot(*np.meshgrid(np.fft.fftfreq(256), np.fft.fftfreq(256))) < 0.25
    whole, *parts = (np.fft.ifft2(np.fft.fft2(r.normal(size=(256, 256))) * low).real * 0.3 for _ in range(3))

    def half(part: np.ndarray, depth: int) -> tuple[Storage, Storage]:
        slices = np.exp(1j * np.stack([part, whole - part])).astype("c8")
        shown, light = images(slices)
        return (Stack(slices, shown.pixel_size_m, depth=2) if depth == 2 else shown), light

    rings = {depth: np.mean(correlate(*(half(part, depth) for part in parts))["correlation"][5:60]) for depth in (1, 2)}
    assert rings[2] > 0.99 and abs(rings[1]) < 0.2


def test_canvases_that_grew_differently_are_laid_on_each_other() -> None:
    data = noise(6, 300)
    found = correlate(images(data[:, :200, :200], (-50, -50)), images(data[:, 30:, 20:], (-20, -30)))
    assert min(found["correlation"][1:]) > 0.99
    assert correlate(images(noise(1, 64)), images(noise(2, 64), (60, 60))) == {}
    dark = images(noise(1, 64))
    dark[1].data[:] = 0
    assert correlate(dark, images(noise(1, 64))) == {}
    broken = noise(1, 64)
    broken[0, 30, 30] = np.nan
    assert correlate(images(broken), images(noise(1, 64))) == {}


def test_only_what_was_earned_is_spent_and_a_long_rest_earns_no_burst() -> None:
    purse = Purse(0.1)
    purse.earn(1.0)
    assert purse.affords(0.1) and not purse.affords(0.11)
    purse.spend(0.3)
    assert not purse.affords(0.0)
    purse.earn(2.0)
    assert purse.affords(0.0) and purse.part == pytest.approx(0.1)
    purse.earn(1000.0)
    assert purse.affords(SAVED_S) and not purse.affords(SAVED_S + 0.01)
    purse.earn(1000.0, dearest=50.0)  # what takes so long can be saved for
    assert purse.affords(50.0)
    assert not Purse(0.0).affords(0.0)


def test_figures_for_a_person_have_their_age_and_unit() -> None:
    when = {"measured_ns": 10**9, "iteration": 5}
    quality = {
        "frc": {"resolution_m": 2.5e-8, "iterations": 7, "share": 0.0987, "frames": 9, "frequency_per_m": [1.0]} | when,
        "coverage": {"overlap": 0.71, "holes": 0.05, "frames_per_beam": 8.7} | when,
        "drift": {"probe_m": [2e-6, -3e-9], "rms_m": 4e-9, "positions_m": [0.0, 0.0]} | when,
        "convergence": {"state": "falling", "per_iteration": -0.023} | when,
    }
    said = told(quality, 4 * 10**9)
    assert said["resolution"] == "25 nm (halves, 7 iterations, 9.9 % of the time), 3 s ago"
    assert said["overlap"] == "71 %, holes 5.0 %, 8.7 frames per beam, 3 s ago"
    assert said["drift"] == "probe 2 µm, -3 nm; positions 4 nm rms, 3 s ago"
    assert said["convergence"] == "falling (-2.30 % per iteration), 3 s ago"
    assert "0.05 px" in told({"drift": {"probe_m": [0.05, 0.0]} | when}, 0, in_metres=False)["drift"]
    quality["frc"]["resolution_m"] = None
    assert told(quality, 0)["resolution"].startswith("a pixel or better")
    assert "guess" in faults({"guess": when})


@pytest.mark.parametrize("name", list(FIGURES))
def test_figures_that_lack_something_are_left_out(name: str) -> None:
    """Who listens to another make of session is not ended by what it leaves out."""
    when, kinds = {"measured_ns": 0, "iteration": 0}, {"a number": 1.0, "an integer": 1, "text": "t", "[y, x]": [0.0, 1.0]}
    kinds |= {"numbers": [0.0] * 100, "lists of names": [["a"]], "ranking": [], "a number or none": 2.0, "text or none": "t"}
    whole = {key: kinds[kind] for key, kind in FIGURES[name].items()}
    assert faults({name: whole | when}) == "" and told({name: whole | when}, 0)
    for kept in ({}, *({key: whole[key]} for key in whole), *({k: v for k, v in whole.items() if k != key} for key in whole)):
        figure = kept | when
        assert faults({name: figure}) == ""
        assert isinstance(told({name: figure}, 0), dict)
