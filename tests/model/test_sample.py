"""What each parameter of the starting object does; refractive indices against tabulated values and thin-film physics."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from beginnings import center_of, result
from pydantic import ValidationError
from scipy.ndimage import zoom

from ptystream.model import refraction
from ptystream.model.geometry import Geometry
from ptystream.model.sample import FullSampleParameters
from ptystream.model.scan_model import Full, Vanilla
from ptystream.model.specimen import Canvas, starting_object

FAR = Geometry((64, 64), 7.2, 2.0, (1e-4, 1e-4))
K = 2 * np.pi / FAR.wavelength_m
WEDGE = np.tile(np.linspace(0, 2.0, 50), (40, 1))


def made(given: dict[str, Any] | None = None, modes: int = 1, geometry: Geometry = FAR, **more: Any) -> Canvas:
    p = FullSampleParameters(**(given or {}))
    return starting_object(p, geometry, modes, **({"box": ((100, -30), (60, 70)), "label": "a"} | more))


def test_fill_is_everywhere_and_around() -> None:
    assert (made({"fill": 0.5 + 1j}).data == 0.5 + 1j).all()
    assert made().data.shape == (1, 64, 64)


def test_gold_is_as_heavy_as_the_tables_say() -> None:
    """δ = r_e λ² n_e/2π far above the edges; 1/(4πβ/λ) somewhat above 1/(118 cm²/g · 19.3 g/cm³), NIST's total attenuation."""
    gold = refraction.index("Au", 19.3, 10.0)
    assert 4.38e-6 < 1 / (2 * 2 * np.pi * 10.0 / 1.23984193e-9 * gold.imag) < 1.1 * 4.38e-6
    electrons = 19.3e6 / 196.97 * 6.022e23 * 79
    assert -gold.real == pytest.approx(2.818e-15 * (1.23984193e-10) ** 2 * electrons / 2 / np.pi, rel=0.1)
    assert refraction.index("Au", None, 10.0) == pytest.approx(gold, rel=1e-3)
    assert refraction.index("Au", 9.65, 10.0) == pytest.approx(gold / 2)
    water = refraction.index("H2O", -1.0, 10.0)
    assert water == pytest.approx(refraction.index("H2O", 1.0, 10.0), rel=1e-3)


def test_indices_come_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError("no network")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    assert refraction.index("SiO2", 2.2, 7.2).real < 0


def test_a_thickness_profile_of_a_formula_becomes_its_transmission() -> None:
    process = {"formula": "Au", "density": 19.3, "thickness": 1e-6, "smoothing": None}
    canvas = made({"model": WEDGE, "process": process})
    index = refraction.index("Au", 19.3, 7.2)
    np.testing.assert_allclose(canvas.data[0, 0], np.exp(1j * K * index * np.linspace(0, 1e-6, 50)))
    assert np.angle(canvas.data[0, 0, 5]) < 0
    assert canvas.offset == (-20, -25)
    metres = made({"model": WEDGE * 1e-7, "process": {**process, "thickness": None}})
    np.testing.assert_allclose(metres.data[0, 0], np.exp(1j * K * index * np.linspace(0, 2e-7, 50)))
    half = made({"model": WEDGE, "process": {**process, "density": 9.65}})
    np.testing.assert_allclose(half.data[0, 0] ** 2, canvas.data[0, 0])
    other = made({"model": WEDGE, "process": process}, factor=1.2)
    np.testing.assert_allclose(
        other.data[0, 0], np.exp(1.2j * K * refraction.index("Au", 19.3, 7.2 * 1.2) * np.linspace(0, 1e-6, 50))
    )


def test_a_given_index_scales_the_thickness_and_none_takes_the_array_as_projected_index() -> None:
    given = {"ref_index": (1e-5, 1e-6), "smoothing": 0}
    canvas = made({"model": WEDGE, "process": given})
    np.testing.assert_allclose(canvas.data[0, 0], np.exp(1j * K * (1e-5 + 1e-6j) * np.linspace(0, 1e-6, 50)))
    index = (1e-5 + 2e-6j) * np.ones((4, 4))
    canvas = made({"model": index, "process": {"ref_index": None, "smoothing": 0}})
    np.testing.assert_allclose(canvas.data, np.exp(1j * K * 1e-6 * (1e-5 + 2e-6j)))
    canvas = made({"model": index * 1e-7, "process": {"ref_index": None, "thickness": None, "smoothing": 0}})
    np.testing.assert_allclose(canvas.data, np.exp(1j * K * 1e-7 * (1e-5 + 2e-6j)))


def test_an_array_without_an_index_is_the_transmission() -> None:
    wave = np.exp(1j * WEDGE)
    np.testing.assert_allclose(made({"model": wave}).data[0], wave)
    np.testing.assert_allclose(made({"model": wave, "process": None}).data[0], wave)
    np.testing.assert_allclose(made({"model": WEDGE}).data[0], WEDGE)


def test_zoom_smoothing_and_offset() -> None:
    canvas = made({"model": WEDGE, "process": {"zoom": (2.0, 0.5)}})
    assert canvas.data.shape == (1, 80, 25)
    np.testing.assert_allclose(canvas.data[0].real, zoom(WEDGE, (2.0, 0.5), order=3), atol=1e-9)
    dot = np.zeros((41, 41))
    dot[20, 20] = 1
    spread = made({"model": dot, "process": {"smoothing": 6}}).data[0].real
    half = spread[20] > spread[20, 20] / 2
    assert half.sum() == pytest.approx(6, abs=1)
    np.testing.assert_allclose(made({"model": dot}).data[0].real, dot)
    assert made({"model": WEDGE, "process": {"offset": (3, 5)}}).offset == (-17, -20)


def test_modes_get_power_noise_and_shift() -> None:
    canvas = made({"fill": 2.0}, modes=3)
    power = (np.abs(canvas.data) ** 2).mean(axis=(1, 2))
    np.testing.assert_allclose(power, 4 * np.array([1, 0.1, 0.1]) / 1.2)
    np.testing.assert_allclose(canvas.shares, np.sqrt(np.array([1, 0.1, 0.1]) / 1.2))
    power = (np.abs(made({"diversity": {"power": [0.5, 0.25]}}, modes=3).data) ** 2).mean(axis=(1, 2))
    np.testing.assert_allclose(power / power[0], [1, 0.5, 0.25])
    alike = made({"diversity": None}, modes=2).data
    np.testing.assert_allclose(np.abs(alike) ** 2, 0.5)
    noisy = made({"diversity": {"noise": (0.2, 3.0)}}, modes=2).data
    assert np.angle(noisy[1]).std() == pytest.approx(0.2, rel=1e-6)
    np.testing.assert_array_equal(noisy, made({"diversity": {"noise": (0.2, 3.0)}}, modes=2).data)
    assert np.abs(noisy - made({"diversity": {"noise": (0.2, 3.0)}}, modes=2, seed=3).data).max() > 0.1
    dot = np.zeros((64, 64), complex)
    dot[32, 32] = 1
    moved = made({"model": dot, "diversity": {"shift": 3 * FAR.pixel_size_m[0]}}, modes=4).data
    np.testing.assert_allclose([center_of(layer) for layer in moved], [(0, 0), (0, 3), (0, -3), (3, 0)], atol=1e-6)


@pytest.mark.parametrize("name", ["flower", "tree"])
def test_a_picture_covers_the_first_frames_and_may_be_matter(name: str) -> None:
    canvas = made({"model": name})
    assert canvas.data.shape == (1, 60, 70)
    assert canvas.offset == (70, -65)
    assert np.angle(canvas.data).std() > 0.05
    process = {"formula": "Si", "density": None, "thickness": 5e-6, "smoothing": 0}
    matter = made({"model": name, "process": process}).data
    index = refraction.index("Si", None, 7.2)
    assert np.abs(matter).min() == pytest.approx(np.exp(-K * 5e-6 * index.imag))
    assert np.abs(matter).max() == pytest.approx(1.0)


def test_an_object_from_an_earlier_result_keeps_its_place(tmp_path: Path) -> None:
    file = result(tmp_path / "a.ptyr")
    canvas = made({"model": "recon", "recon": {"rfile": file}})
    assert canvas.offset == (-50, -30)
    assert canvas.data.shape == (1, 90, 80)
    short = Full.Parameters(sample=file)
    assert short.sample.recon.rfile == file
    with pytest.raises(ValueError, match="another geometry"):
        made({"model": "recon", "recon": {"rfile": result(tmp_path / "b.ptyr", (1e-7, 1e-7))}})


def test_a_file_or_a_picture_in_the_place_of_the_branch_is_for_vanilla_what_it_is_for_full(tmp_path: Path) -> None:
    for given in (result(tmp_path / "a.ptyr"), "flower"):
        vanilla, full = (
            kind("a", 0, kind.Parameters(sample=given), FAR)._object(0, ((9, -3), (60, 70)), None)[1] for kind in (Vanilla, Full)
        )
        np.testing.assert_array_equal(vanilla.data, full.data)
        assert vanilla.offset == full.offset
    with pytest.raises(ValidationError, match=r"sample\n.*cannot be read"):
        Vanilla.Parameters(sample=str(tmp_path / "nowhere.ptyr"))


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ({"model": "recon"}, "cannot be read"),
        ({"model": "sun"}, "or one of recon, stxm"),
        ({"process": {"formula": "Xq"}}, "write elements and numbers"),
        ({"process": {"formula": "Nb3Sn2Xe", "density": None}}, "give one in g/cm³"),
        ({"process": {"offset": (-1, 0)}}, "must not be below 0"),
        ({"process": {"zoom": 0.0}}, "above 0"),
        ({"process": {"thickness": -1e-6}}, "must not be below 0"),
        ({"process": {"smoothing": -1}}, "must not be below 0"),
        ({"diversity": {"noise": (1.0,)}}, "minimum feature size"),
        ({"diversity": {"power": -0.1}}, "must not be below 0"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_read(given: dict[str, Any], remedy: str) -> None:
    with pytest.raises(ValidationError, match=remedy):
        FullSampleParameters(**given)


def test_what_does_not_fit_the_geometry_is_refused() -> None:
    blind = Geometry((64, 64))
    with pytest.raises(ValueError, match=r"needs data\.energy"):
        made({"model": WEDGE, "process": {"formula": "Au"}}, geometry=blind)
    with pytest.raises(ValueError, match=r"need data\.energy"):
        made({"diversity": {"shift": 1e-7}}, modes=2, geometry=blind)
    with pytest.raises(ValueError, match="bytes"):
        made({"model": np.ones((3000, 3000)), "process": {"zoom": 10.0}})
