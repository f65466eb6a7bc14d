"""StemScan: its patterns against plain sums, its raster, and what its parameters do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scans import parameters, reconstruct, sent

from ptystream.detectors.simulated.microscope import TOGETHER, Microscope, atoms_of, places_of, projected
from ptystream.detectors.simulated.simulator import run
from ptystream.detectors.simulated.stemscan import StemBeamline
from ptystream.model.electrons import electron_wavelength, interaction_constant
from ptystream.scan.raster import RasterParameters

SMALL: dict[str, Any] = {"shape": 32, "steps": (4, 3), "step": 0.7e-10, "pixel": 0.25e-10, "slices": 3, "electrons": 1e5}


def made(**given: Any) -> Microscope:
    return Microscope(parameters("StemScan", **{**SMALL, **given}), 0, "s/data")


def test_electrons_have_their_wavelength_and_their_interaction() -> None:
    """Kirkland, Advanced Computing in Electron Microscopy, table of 100 and 200 kV."""
    assert electron_wavelength(100) == pytest.approx(0.037014e-10, rel=1e-4)
    assert electron_wavelength(200) == pytest.approx(0.025079e-10, rel=1e-4)
    assert interaction_constant(100) * 1e-10 * 1e3 == pytest.approx(0.9244, rel=1e-3)
    assert interaction_constant(200) * 1e-10 * 1e3 == pytest.approx(0.7288, rel=1e-3)


def test_the_geometry_follows_from_the_microscope() -> None:
    p = parameters("StemScan", **SMALL)
    assert p.pixel_m() == pytest.approx((0.25e-10, 0.25e-10))
    assert p.acc_voltage == 60.0 and p.energy is None
    assert p.psize == pytest.approx(electron_wavelength(60) / (32 * 0.25e-10))
    with pytest.raises(ValueError, match="pixel"):
        parameters("StemScan", **SMALL, distance=1.0, psize=1e-5)


def test_patterns_are_those_of_a_plain_multislice_sum() -> None:
    one, number = made(aberrations=[-80e-10, 10e-10]), 7
    n, lam, px = 32, electron_wavelength(60), 0.25e-10
    k = np.arange(n) - n // 2
    forth = np.exp(-2j * np.pi * np.outer(k, k) / n) / np.sqrt(n)
    q = k / (n * px)
    q2 = q[:, None] ** 2 + q**2
    theta, phi = lam * np.sqrt(q2), np.arctan2(q[:, None], q[None])
    chi = 2 * np.pi / lam * theta**2 / 2 * (-80e-10 + 10e-10 * np.cos(2 * phi))
    place = one.positions_m[number] / px
    corner = np.round(place).astype(int)
    part = place - corner
    wave = (theta <= 30e-3) * np.exp(-1j * chi)
    wave = wave * np.sqrt(1e5 / (np.abs(wave) ** 2).sum())
    ramp = np.exp(-2j * np.pi * px * (q[:, None] * part[0] + q * part[1]))
    wave = forth.conj() @ (wave * ramp) @ forth.conj().T
    limit = q2 <= (2 / 3 * (n / 2 - 1) / (n * px)) ** 2
    top, left = corner - n // 2 - one.offset
    for s in range(3):
        wave = wave * one.object[s, top : top + n, left : left + n]
        if s < 2:
            way = np.exp(-1j * np.pi * lam * 10e-10 * q2) * limit
            wave = forth.conj() @ (way * (forth @ wave @ forth.T)) @ forth.conj().T
    wanted = np.abs(forth @ wave @ forth.T) ** 2 * limit
    np.testing.assert_allclose(one.intensity(number), wanted, atol=1e-8 * wanted.max())


def test_slices_turn_phases_by_the_potential_of_their_atoms() -> None:
    """Of one atom: ∫φ dA = σ × the volume integral of its potential."""
    y = x = (np.arange(64) - 32) * 0.1e-10
    potential = projected(np.array([[0.3e-10, -0.2e-10, 0.5]]), 280e-30, 0.35e-10, (y, x))
    assert potential.sum() * (0.1e-10) ** 2 == pytest.approx(0.5 * 280e-30, rel=1e-6)
    assert np.unravel_index(potential.argmax(), (64, 64)) == (35, 30)
    many = np.tile([[0.3e-10, -0.2e-10, 0.5]], (2 * TOGETHER + 3, 1))
    np.testing.assert_allclose(projected(many, 280e-30, 0.35e-10, (y, x)), (2 * TOGETHER + 3) * potential, rtol=1e-10)
    phase = np.angle(made(acc_voltage=200.0).object)
    weaker, more = np.angle(made(potential=140e-30, acc_voltage=200.0).object), np.angle(made().object)
    assert weaker.mean() / phase.mean() == pytest.approx(0.5, rel=1e-3)
    assert more.mean() / phase.mean() == pytest.approx(interaction_constant(60) / interaction_constant(200), rel=1e-3)
    assert 0.2 < phase.max() < 1.0


def test_atoms_lie_on_the_lattice_some_missing_some_moved() -> None:
    low, high = np.full(2, -20e-10), np.full(2, 20e-10)
    p = parameters("StemScan", vacancies=0.25, displacement=0.0)
    slices = atoms_of(p, 0, low, high)
    whole = atoms_of(parameters("StemScan", vacancies=0.0, displacement=0.0), 0, low, high)[0]
    assert len(slices) == p.slices and 0.6 < np.mean([len(s) for s in slices]) / len(whole) < 0.9
    places = slices[0][:, :2] / p.lattice
    np.testing.assert_allclose((places - np.where(slices[0][:, 2:] == 1, 0, 0.5)) % 1 % (1 - 1e-9), 0, atol=1e-8)
    moved = atoms_of(parameters("StemScan", vacancies=0.0, displacement=0.1e-10), 0, low, high)[0]
    assert (moved - whole)[:, :2].std() == pytest.approx(0.1e-10, rel=0.15)


def test_the_raster_snakes_flies_back_and_turns() -> None:
    plain = places_of(parameters("StemScan", **SMALL))
    wanted = np.array([[(r - 1.5) * 0.7e-10, (c - 1) * 0.7e-10] for r in range(4) for c in range(3)])
    np.testing.assert_allclose(plain, wanted, atol=1e-16)
    snake = places_of(parameters("StemScan", **SMALL, snake=True)).reshape(4, 3, 2)
    np.testing.assert_allclose(snake[1], plain.reshape(4, 3, 2)[1, ::-1])
    back = places_of(parameters("StemScan", **SMALL, flyback=2))
    assert len(back) == 12 + 3 * 2
    np.testing.assert_allclose(np.delete(back, [3, 4, 8, 9, 13, 14], axis=0), plain)
    np.testing.assert_allclose(back[3], plain[2] + (plain[3] - plain[2]) / 3)
    turned = places_of(parameters("StemScan", **SMALL, rotation=90.0))
    np.testing.assert_allclose(turned, np.stack([plain[:, 1], -plain[:, 0]], axis=1), atol=1e-16)
    rules = RasterParameters(points=(4, 3), step=0.7e-10, rotation=33.0, snake=True, flyback=2).positions()
    everything = places_of(parameters("StemScan", **SMALL, rotation=33.0, snake=True, flyback=2))
    np.testing.assert_allclose(everything[rules[0]], rules[1], atol=1e-16)


def test_a_scan_on_its_way_has_noise_of_the_dose() -> None:
    frames, told = sent("StemScan", **SMALL)
    one = made()
    mean = np.stack([one.intensity(k) for k in range(12)])
    np.testing.assert_array_equal(told, one.positions_m)
    bright = mean > 5
    assert ((frames - mean)[bright] ** 2 / mean[bright]).mean() == pytest.approx(1, abs=6 * np.sqrt(2 / bright.sum()))
    quiet, _ = sent("StemScan", **SMALL, add_poisson_noise=False)
    np.testing.assert_allclose(quiet, mean, atol=0.51)
    assert 0.97e5 < mean.sum(axis=(1, 2)).mean() < 1e5
    np.testing.assert_array_equal(frames, sent("StemScan", **SMALL)[0])
    assert (frames != sent("StemScan", **SMALL, seed=3)[0]).any()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"semiangle": 0.0}, "semiangle"),
        ({"aberrations": []}, "aberrations"),
        ({"steps": (1 << 12, 1 << 12)}, "steps"),
        ({"pixel": -1.0}, "pixel"),
        ({"acc_voltage": None}, "acc_voltage"),
        ({"energy": 7.2}, "acc_voltage"),
        ({"steps": 2000, "step": 1e-8}, "steps"),
        ({"lattice": 1e-15}, "atoms"),
    ],
)
def test_what_cannot_be_is_refused_with_its_name(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parameters("StemScan", **{**SMALL, **given})


def test_a_beam_wider_than_the_patterns_is_refused() -> None:
    with pytest.raises(ValueError, match="semiangle"):
        made(semiangle=0.2)


def test_the_seed_of_a_file_is_that_of_its_scan() -> None:
    small = {**SMALL, "steps": (2, 2)}
    of_file = StemBeamline(seed=1, given={**small, "seed": 5})
    np.testing.assert_array_equal(of_file.pattern(1), StemBeamline(seed=5, given=small).pattern(1))
    assert (of_file.pattern(1) != StemBeamline(seed=1, given=small).pattern(1)).any()


def test_a_stem_scan_goes_over_the_native_wire() -> None:
    """`ptystream simulate --stem`: frames and positions arrive as they were made."""

    class Caught:
        def __init__(self) -> None:
            self.seen: list[Any] = []

        def start(self, *given: Any, **named: Any) -> None: ...

        def end(self, count: int, reason: str) -> None:
            self.count, self.reason = count, reason

        def flush(self) -> None: ...

        def frames(self, first: int, stack: np.ndarray, **named: Any) -> None:
            self.seen.append(stack)

        def samples(self, first: int, **channels: np.ndarray) -> None:
            self.seen.append(np.stack([channels["y"], channels["x"]], axis=1))

    beamline, frames, places = StemBeamline(7, 32, rate_hz=1e6), Caught(), Caught()
    run(beamline, frames, places)  # type: ignore[arg-type]
    np.testing.assert_array_equal(np.concatenate(frames.seen), [beamline.microscope.frame(k) for k in range(7)])
    np.testing.assert_allclose(np.concatenate(places.seen), beamline.microscope.positions_m)
    assert (frames.count, frames.reason) == (7, "completed")


def test_a_session_reconstructs_it(tmp_path: Path) -> None:
    """One thin layer, by the difference map: its pixel is the microscope's, and the misfit falls."""
    data = {"name": "StemScan", **SMALL, "steps": 12, "slices": 1, "aberrations": [-150e-10]}
    found = reconstruct(tmp_path, {"s": {"data": data}}, numiter=30, data_type="double")
    (storage,) = found.object.values()
    assert storage.pixel_size_m == pytest.approx((0.25e-10, 0.25e-10), rel=1e-6)
    assert found.ledger["used"] == 144
    assert found.misfit[-1, 0] < 0.5 * found.misfit[0, 0]
