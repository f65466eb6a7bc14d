"""What each parameter of the starting probe does, and that random parts repeat."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from beginnings import PIXELS, center_of, result
from pydantic import ValidationError

from ptystream.model.geometry import Geometry
from ptystream.model.illumination import IlluminationParameters
from ptystream.model.probe import Given, starting_probe
from ptystream.model.scan_model import Full, Vanilla
from ptystream.storage import ptyr

FAR = Geometry((64, 64), 7.2, 2.0, (1e-4, 1e-4))
PIXEL = PIXELS[0]


def made(given: dict[str, Any] | None = None, modes: int = 1, geometry: Geometry = FAR, **more: Any) -> np.ndarray:
    return starting_probe(IlluminationParameters(**(given or {})), geometry, modes, Given(100.0, "a", **more))


def size_of(wave: np.ndarray) -> tuple[float, float]:
    """Standard deviation of the intensity (y, x), pixels."""
    power = np.abs(wave) ** 2
    out = []
    for axis in (0, 1):
        profile = power.sum(axis=1 - axis)
        x = np.arange(len(profile))
        mean = (profile * x).sum() / profile.sum()
        out.append(float(np.sqrt((profile * (x - mean) ** 2).sum() / profile.sum())))
    return out[0], out[1]


def test_photons() -> None:
    assert (np.abs(made()) ** 2).sum() == pytest.approx(100.0)
    model = Full("a", 0, Full.Parameters(illumination={"photons": 7.0}), FAR)
    assert (np.abs(model.probe(100.0)) ** 2).sum() == pytest.approx(7.0)
    assert (np.abs(Full("a", 0, Full.Parameters(), FAR).probe(100.0)) ** 2).sum() == pytest.approx(100.0)


def test_aperture_size_form_and_edge() -> None:
    disc = np.abs(made({"aperture": {"size": 20 * PIXEL, "edge": 0.5}})[0]) ** 2
    assert size_of(np.sqrt(disc))[0] == pytest.approx(20 / 4, rel=0.03)
    box = made({"aperture": {"size": (20 * PIXEL, 30 * PIXEL), "form": "rect", "edge": 0.5}})[0]
    assert size_of(box)[0] == pytest.approx(20 / np.sqrt(12), rel=0.03)
    assert size_of(box)[1] == pytest.approx(30 / np.sqrt(12), rel=0.03)
    assert size_of(made()[0])[0] == pytest.approx(64 / 3 / 4, rel=0.05)
    flat = made({"aperture": {"form": None}})
    np.testing.assert_allclose(np.abs(flat), np.abs(flat[0, 0, 0]))
    soft, hard = (np.abs(made({"aperture": {"edge": e}})[0, 32]) for e in (8.0, 0.5))
    assert np.abs(np.diff(soft)).max() < 0.5 * np.abs(np.diff(hard)).max()


def test_aperture_offset_rotation_and_central_stop() -> None:
    y, x = center_of(made({"aperture": {"offset": (5 * PIXEL, -3 * PIXEL)}})[0])
    assert (y, x) == pytest.approx((5, -3), abs=0.1)
    long = {"size": (10 * PIXEL, 30 * PIXEL), "form": "rect"}
    turned = size_of(made({"aperture": {**long, "rotate": np.pi / 2}})[0])
    np.testing.assert_allclose(turned, size_of(made({"aperture": long})[0])[::-1], rtol=0.02)
    stopped = np.abs(made({"aperture": {"size": 30 * PIXEL, "central_stop": 0.5}})[0])
    assert stopped[32, 32] < 1e-3 * stopped.max()
    assert stopped[32, 32 + 11] > 0.9 * stopped.max()


def test_the_diffuser_has_the_noise_asked_for_and_repeats_with_the_seed() -> None:
    open_ = {"form": None}
    phase = made({"aperture": {**open_, "diffuser": (0.3, 4.0)}})[0]
    assert np.angle(phase / made({"aperture": open_})[0]).std() == pytest.approx(0.3, rel=1e-6)
    np.testing.assert_allclose(np.abs(phase), np.abs(phase[0, 0]))
    np.testing.assert_array_equal(phase, made({"aperture": {**open_, "diffuser": (0.3, 4.0)}})[0])
    assert np.abs(phase - made({"aperture": {**open_, "diffuser": (0.3, 4.0)}}, seed=1)[0]).max() > 0.1
    both = np.abs(made({"aperture": {**open_, "diffuser": (0.3, 4.0, 0.1, 2.0)}})[0])
    assert both.std() / both.mean() == pytest.approx(0.1, rel=0.02)
    fine, coarse = (made({"aperture": {**open_, "diffuser": (0.1, mfs)}})[0] for mfs in (1.0, 10.0))
    assert np.abs(np.diff(coarse, axis=0)).mean() < 0.3 * np.abs(np.diff(fine, axis=0)).mean()


def test_parallel_propagation_spreads_the_beam_as_theory_says() -> None:
    pupil = np.exp(-((np.indices((64, 64)) - 32.0) ** 2).sum(axis=0) / 25.0)
    waist = 5 * PIXEL
    z = 2 * np.pi * waist**2 / FAR.wavelength_m
    before, after = (made({"model": pupil, "propagation": {"parallel": d}})[0] for d in (None, z))
    assert size_of(after)[0] / size_of(before)[0] == pytest.approx(np.sqrt(5), rel=0.02)


def test_a_focus_has_the_spot_size_that_was_asked_for() -> None:
    """First dark ring of an Airy disc; first zeros of a slit's sinc."""
    f, spot = 0.01, 16 * PIXEL
    for form in ("circ", "rect"):
        given = {"aperture": {"form": form, "edge": 0.5}, "propagation": {"focussed": f, "spot_size": spot, "antialiasing": 8}}
        row = np.abs(made(given)[0, 32, 32:]) ** 2
        first = next(k for k in range(1, 31) if row[k] < row[k + 1])
        assert first == pytest.approx(8, abs=1)
    unsized = made({"propagation": {"focussed": f}})
    assert np.abs(made({"propagation": {"focussed": f, "spot_size": spot}}) - unsized).max() > 0.1
    longer = made({"aperture": {"size": 1e-4}, "propagation": {"focussed": 2 * f}})
    shorter = made({"aperture": {"size": 1e-4}, "propagation": {"focussed": f}})
    assert size_of(longer[0])[0] > 1.2 * size_of(shorter[0])[0]


def test_antialiasing_keeps_from_coming_round_what_leaves_the_frame() -> None:
    spread = {"aperture": {"size": 6 * PIXEL}, "propagation": {"parallel": 3e-3}}
    wide = Geometry((512, 512), 7.2, 2.0, (1e-4 / 8, 1e-4 / 8))
    assert wide.pixel_size_m == pytest.approx(FAR.pixel_size_m)
    curved = made(spread, geometry=wide)[0] / wide.curvature()
    truth = curved[256 - 32 : 256 + 32, 256 - 32 : 256 + 32]
    errors = []
    for factor in (1.0, 4.0):
        got = made({**spread, "propagation": {**spread["propagation"], "antialiasing": factor}})[0] / FAR.curvature()
        scale = np.vdot(got, truth) / np.vdot(got, got)
        errors.append(np.linalg.norm(scale * got - truth) / np.linalg.norm(truth))
    assert errors[1] < 0.3 * errors[0]


def test_modes_get_noise_power_and_shift() -> None:
    plain = made({"diversity": {"noise": None}}, modes=4)
    power = (np.abs(plain) ** 2).sum(axis=(1, 2))
    np.testing.assert_allclose(power / power[0], [1, 0.1, 0.1, 0.1])
    power = (np.abs(made({"diversity": {"power": [0.5, 0.2]}}, modes=4)) ** 2).sum(axis=(1, 2))
    np.testing.assert_allclose(power / power[0], [1, 0.5, 0.2, 0.2])
    noisy = made({"diversity": {"noise": (0.5, 3.0)}}, modes=3)
    lit = np.abs(noisy[0]) > 0.1 * np.abs(noisy[0]).max()
    assert np.angle(noisy[1][lit] / noisy[0][lit]).std() == pytest.approx(0.5, rel=0.3)
    np.testing.assert_array_equal(noisy, made({"diversity": {"noise": (0.5, 3.0)}}, modes=3))
    assert np.abs(noisy - made({"diversity": {"noise": (0.5, 3.0)}}, modes=3, seed=2)).max() > 0.1
    four = np.abs(made({"diversity": {"noise": (0.0, 1.0, 0.2, 2.0)}}, modes=2))
    assert (four[1][lit] / four[0][lit]).std() > 0.02
    moved = made({"diversity": {"noise": None, "shift": 4 * PIXEL}}, modes=6)
    found = [center_of(layer) for layer in moved]
    np.testing.assert_allclose(found, [(0, 0), (0, 4), (0, -4), (4, 0), (-4, 0), (0, 8)], atol=0.2)
    alike = made({"diversity": None}, modes=2)
    np.testing.assert_allclose(alike[0], alike[1])


def test_an_array_is_taken_as_it_is_and_behind_an_aperture_where_one_is_given() -> None:
    wave = np.random.default_rng(0).normal(size=(64, 64)) + 0j
    got = made({"model": wave})[0]
    np.testing.assert_allclose(got / got[0, 0], wave / wave[0, 0])
    cut = made({"model": wave, "aperture": {"size": 10 * PIXEL}})[0]
    assert np.abs(cut[0, 0]) < 1e-6 * np.abs(cut).max()
    modes = made({"model": np.stack([wave, 2 * wave])}, modes=2)
    np.testing.assert_allclose(modes[1], 2 * modes[0])


@pytest.mark.parametrize("name", ["moon", "flower", "tree"])
def test_a_picture_fills_the_frame(name: str) -> None:
    wave = made({"model": name})[0]
    assert np.abs(wave).std() + np.angle(wave).std() > 0.1
    np.testing.assert_array_equal(wave, made({"model": name})[0])
    assert center_of(wave - wave[0, 0]) == pytest.approx((0, 0), abs=20)


def test_a_probe_from_an_earlier_result(tmp_path: Path) -> None:
    file = result(tmp_path / "a.ptyr", names=("SaG00", "SbG00"))
    own = made({"model": "recon", "recon": {"rfile": file}}, modes=2)
    other = made({"model": "recon", "recon": {"rfile": file, "label": "b"}}, modes=2)
    held = ptyr.read(file).probe
    for probe, name in ((own, "SaG00"), (other, "SbG00")):
        np.testing.assert_allclose(probe[:, 8:56, 8:56] / probe[0, 8, 8], held[name].data / held[name].data[0, 0, 0], rtol=1e-5)
        assert (probe[:, :8] == 0).all()
    short = Full.Parameters(illumination=file)
    assert short.illumination.recon.rfile == file
    np.testing.assert_allclose(Full("a", 0, short, FAR).probe(100.0), own[:1] * np.linalg.norm(own) / np.linalg.norm(own[:1]))
    with pytest.raises(ValueError, match="none of scan 'c'"):
        made({"model": "recon", "recon": {"rfile": file, "label": "c"}})
    with pytest.raises(ValueError, match="another geometry"):
        made({"model": "recon", "recon": {"rfile": result(tmp_path / "b.ptyr", (1e-7, 1e-7))}})
    near = tuple(1.05 * pixel for pixel in FAR.pixel_size_m or ())
    with pytest.raises(ValueError, match="another geometry"):  # however small a pixel is in metres
        made({"model": "recon", "recon": {"rfile": result(tmp_path / "d.ptyr", near)}})
    single = result(tmp_path / "c.ptyr", names=("SotherG00",))
    assert made({"model": "recon", "recon": {"rfile": single}}).shape == (1, 64, 64)


def test_a_file_or_a_model_in_the_place_of_the_branch_is_for_vanilla_what_it_is_for_full(tmp_path: Path) -> None:
    file = result(tmp_path / "a.ptyr")
    wave = np.random.default_rng(0).normal(size=(64, 64))
    for given in (file, "moon", wave, wave.tolist()):
        vanilla, full = (kind("a", 0, kind.Parameters(illumination=given), FAR) for kind in (Vanilla, Full))
        np.testing.assert_array_equal(vanilla.probe(100.0), full.probe(100.0))
    assert Vanilla.Parameters(illumination=file).model_dump()["illumination"]["recon"]["rfile"] == file
    with pytest.raises(ValidationError, match=r"illumination\n.*cannot be read"):
        Vanilla.Parameters(illumination=str(tmp_path / "nowhere.ptyr"))
    with pytest.raises(ValidationError, match="or one of"):
        Vanilla.Parameters(illumination="moom")


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ({"model": "recon"}, "cannot be read"),
        ({"model": "sun"}, "or one of recon, stxm, flower, tree, moon"),
        ({"aperture": {"size": 0.0}}, "above 0"),
        ({"aperture": {"diffuser": (0.1,)}}, "minimum feature size"),
        ({"diversity": {"noise": (1.0, 2.0, 3.0)}}, "minimum feature size"),
        ({"diversity": {"power": 1.5}}, "from 0 to 1"),
        ({"propagation": {"spot_size": 1e-6}}, "give `focussed`"),
        ({"propagation": {"spot_size": -1e-6, "focussed": 0.1}}, "above 0"),
        ({"propagation": {"antialiasing": 0.5}}, "from 1 to 16"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_read(given: dict[str, Any], remedy: str) -> None:
    with pytest.raises(ValidationError, match=remedy):
        IlluminationParameters(**given)


def test_metres_without_a_pixel_are_refused() -> None:
    for given in ({"diversity": {"shift": 1e-7}}, {"propagation": {"focussed": 0.1}}, {"aperture": {"offset": 1e-6}}):
        with pytest.raises(ValueError, match=r"data\.energy"):
            made(given, modes=2, geometry=Geometry((64, 64)))
