"""Patterns against a second model, gradients against finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from model import pattern, random_setup

from ptystream.engine import Context
from ptystream.engines.backend import cpu
from ptystream.engines.multislice.detector import Detector
from ptystream.engines.multislice.journey import Journey, Source, Sums, View, Wanted
from ptystream.engines.multislice.losses import COMPRESSED, LOSSES, compare
from ptystream.engines.multislice.optics import Optics, band

ON = cpu(Context(precision="double"))
DOUBLE = np.dtype(float)


def optics_of(s: dict[str, Any]) -> Optics:
    return Optics.of(
        s["shape"],
        s["pixel"],
        s["lam"],
        s["distances"],
        cutoff=s["cutoff"],
        real=DOUBLE,
        near=s["near"],
        spherical_m=s["cs"],
        spread=s["alpha"],
        bin=s["bin"],
    )


def detector_of(s: dict[str, Any], optics: Optics) -> Detector:
    shape = tuple(n // s["bin"] - 2 * s["pad"] for n in s["shape"])
    return Detector.of(ON, optics, shape, s["bin"], s["pad"])


def functions_of(optics: Optics) -> np.ndarray:
    """Some aberration functions: defocus, twofold astigmatism, coma."""
    y, x = np.broadcast_arrays(*optics.frequency)
    return np.stack([x**2 + y**2, x**2 - y**2, x**3 + x * y**2]) * np.array([1e-21, 1e-21, 1e-32])[:, None, None]


def parts(s: dict[str, Any], optics: Optics, rows: np.ndarray, spectral: bool = True) -> tuple[View, Source]:
    mode = s["mode"]
    lenses = lens = None
    if s.get("coefficients") is not None:
        chi = np.tensordot(s["coefficients"], functions_of(optics), axes=(1, 0))
        lenses, lens = np.exp(-1j * chi) * optics.limit, s["lens"][rows]
    view = View(
        rows,
        s["corner"][rows],
        s["scenario"][rows],
        s["current"][rows],
        None if s.get("plates") is None else s["plates"][rows],
        lens,
        s["before"][rows] if mode in (2, 4) else None,
        s["inside"][rows],
        s["after"][rows] if mode in (1, 3, 4) else None,
        s["shift"][rows] if spectral else None,
        s["defocus"][rows],
    )
    waves = s["probe"]
    # The journey's frame begins at [0, 0] like the probe's, and so do its phases: a shift of origin cancels in |.|².
    return view, Source(waves, np.fft.fft2(waves, norm="ortho") if spectral else None, s["object"], lenses)


def with_chi(s: dict[str, Any], optics: Optics) -> dict[str, Any]:
    if s.get("coefficients") is None:
        return s
    return s | {"chi": np.fft.fftshift(np.tensordot(s["coefficients"], functions_of(optics), axes=(1, 0)), axes=(-2, -1))}


EVERYTHING = {
    "plain": {"mode": 0, "slices": 1, "modes": 1, "objects": 1, "scenarios": 1},
    "one slice": {"mode": 3, "slices": 1},
    "all tilts": {"mode": 4, "slices": 3},
    "odd sizes": {"mode": 1, "shape": (15, 13)},
    "before": {"mode": 2, "slices": 2},
    "near": {"near": True, "cs": 1e-5, "mode": 4},
    "blurred": {"near": True, "alpha": 4e-3, "mode": 0, "slices": 2},
    "padded": {"pad": 2, "mode": 0, "slices": 2},
    "binned": {"bin": 2, "mode": 0, "slices": 2, "shape": (16, 12)},
    "binned, odd sizes": {"bin": 2, "mode": 4, "slices": 2, "shape": (18, 14), "pad": 1},
    "binned by three": {"bin": 3, "mode": 3, "slices": 2, "shape": (18, 15)},
    "near, binned, odd": {"bin": 2, "near": True, "slices": 2, "mode": 0, "shape": (18, 14)},
    "near, padded and binned": {"bin": 2, "pad": 1, "near": True, "slices": 1},
    "plates and lenses": {"plates": True, "coefficients": True, "mode": 4, "slices": 2},
}


def setup(name: str, seed: int = 0) -> dict[str, Any]:
    given = dict(EVERYTHING[name])
    plates, lenses = given.pop("plates", None), given.pop("coefficients", None)
    s = random_setup(seed, **given)
    rng, count = np.random.default_rng(seed + 1), len(s["corner"])
    if plates:
        s["plates"] = rng.normal(size=(count, *s["shape"])) + 1j * rng.normal(size=(count, *s["shape"]))
    if lenses:
        s["coefficients"], s["lens"] = rng.normal(size=(2, 3)), rng.integers(0, 2, count)
    shape = tuple(n // s["bin"] - 2 * s["pad"] for n in s["shape"])
    s["background"] = rng.uniform(0.1, 1.0, shape)
    return s


@pytest.mark.parametrize("name", EVERYTHING)
def test_patterns_agree_with_a_second_model(name: str) -> None:
    s = setup(name)
    optics = optics_of(s)
    detector, rows = detector_of(s, optics), np.arange(len(s["corner"]))
    view, source = parts(s, optics, rows)
    waves = Journey(ON, optics, view, source, Wanted()).forward()
    found = detector.photons(waves, view.defocus, np.fft.ifftshift(s["background"]))
    for t in rows:
        wanted = pattern(with_chi(s, optics), int(t))
        np.testing.assert_allclose(np.fft.fftshift(found[t]), wanted, rtol=1e-8, atol=1e-8 * wanted.max())


def value(s: dict[str, Any], kind: str, measured: np.ndarray, detectors: Any = None, spectral: bool = True) -> float:
    optics = optics_of(s)
    view, source = parts(s, optics, np.arange(len(s["corner"])), spectral)
    waves = Journey(ON, optics, view, source, Wanted()).forward()
    photons = detector_of(s, optics).photons(waves, view.defocus, s["background"])
    return float(compare(np, kind, photons, measured, 1.0, 0.01, detectors).loss.sum())


def gradients(
    s: dict[str, Any], kind: str, measured: np.ndarray, tiles: list[np.ndarray], detectors: Any = None, spectral: bool = True
) -> Sums:
    optics = optics_of(s)
    detector, count = detector_of(s, optics), len(s["corner"])
    sums = Sums(
        np.zeros_like(s["object"]),
        np.zeros_like(s["probe"]),
        np.zeros((count, 2)),
        np.zeros((count, 6)),
        np.zeros(count),
        np.zeros((2, 3)),
        np.zeros_like(s["background"]),
    )
    for rows in tiles:
        view, source = parts(s, optics, rows, spectral)
        journey = Journey(ON, optics, view, source, Wanted(True, True, True, True, True, True), functions_of(optics))
        waves = journey.forward()
        photons = detector.photons(waves, view.defocus, s["background"])
        found = compare(np, kind, photons, measured[rows], 1.0, 0.01, detectors)
        sums.background += detector.background(found.slope, s["background"])
        journey.backward(detector.back(found.slope, waves, view.defocus), sums)
    if spectral:
        sums.probe = np.fft.ifft2(sums.probe, norm="ortho")
    return sums


def measured_of(s: dict[str, Any], detectors: Any = None) -> np.ndarray:
    """What a somewhat different sample gives, with dark pixels."""
    rng = np.random.default_rng(9)
    optics = optics_of(s)
    view, source = parts(s | {"object": s["object"] * np.exp(0.2j * rng.normal(size=s["object"].shape))}, optics, np.arange(5))
    photons = detector_of(s, optics).photons(Journey(ON, optics, view, source, Wanted()).forward(), view.defocus)
    seen = rng.poisson(np.maximum(photons, 0)).astype(float)
    return seen if detectors is None else np.tensordot(seen, detectors, axes=((1, 2), (1, 2)))


def slope(s: dict[str, Any], key: str, direction: np.ndarray, step: float, *given: Any) -> float:
    """Central difference of fourth order along a direction."""
    f = [value(s | {key: s[key] + h * step * direction}, *given) for h in (-2, -1, 1, 2)]
    return (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * step)


def check(s: dict[str, Any], kind: str, tiles: list[np.ndarray], detectors: Any = None) -> None:
    measured = measured_of(s, detectors)
    sums = gradients(s, kind, measured, tiles, detectors)
    rng = np.random.default_rng(3)
    mode = s["mode"]
    kinds: list[tuple[str, np.ndarray, float]] = [
        ("object", sums.object, 1e-4),
        ("probe", sums.probe, 1e-4),
        ("shift", sums.positions, 1e-4),
        ("current", sums.current, 1e-4),
        ("background", sums.background, 1e-4),
    ]
    if s["object"].shape[1] > 1 or s["near"]:
        kinds.append(("inside", sums.tilts[:, 2:4], 1e-6))
    if mode in (2, 4):
        kinds.append(("before", sums.tilts[:, 0:2], 1e-6))
    if mode in (1, 3, 4):
        kinds.append(("after", sums.tilts[:, 4:6], 1e-6))
    if s.get("coefficients") is not None:
        kinds.append(("coefficients", sums.aberrations, 1e-4))
    for key, found, step in kinds:
        for _ in range(2):
            direction = rng.normal(size=s[key].shape)
            if np.iscomplexobj(s[key]):
                direction = direction + 1j * rng.normal(size=s[key].shape)
                wanted = 2 * float((found.conj() * direction).real.sum())
            else:
                wanted = float((found * direction).sum())
            difference = slope(s, key, direction, step, kind, measured, detectors)
            assert wanted == pytest.approx(difference, rel=1e-6, abs=1e-7 * np.abs(found).sum()), key


def tiles_of(size: int) -> list[np.ndarray]:
    return [np.arange(5)[k : k + size] for k in range(0, 5, size)]


@pytest.mark.parametrize("name", EVERYTHING)
def test_gradients_are_what_finite_differences_say(name: str) -> None:
    check(setup(name), "lsq_sqrt", tiles_of(2))


@pytest.mark.parametrize("size", [1, 2, 4, 5])
@pytest.mark.parametrize("kind", [k for k in LOSSES if k != "lsq_sqrt"])
def test_of_every_loss_in_batches_of_any_size(kind: str, size: int) -> None:
    check(setup("one slice" if size == 2 else "padded", seed=size), kind, tiles_of(size))


@pytest.mark.parametrize("kind", COMPRESSED)
def test_of_signals_of_virtual_detectors(kind: str) -> None:
    s = setup("padded")
    shape = s["background"].shape
    check(s, kind, tiles_of(3), np.random.default_rng(5).random((6, *shape)))


def test_batches_add_up_to_the_same() -> None:
    s = setup("plates and lenses")
    measured = measured_of(s)
    whole, split = (gradients(s, "lsq", measured, tiles_of(size)) for size in (5, 1))
    for name in ("object", "probe", "positions", "tilts", "current", "aberrations", "background"):
        np.testing.assert_allclose(getattr(split, name), getattr(whole, name), rtol=1e-10, atol=1e-10, err_msg=name)


def test_without_shifts_waves_are_taken_as_they_are() -> None:
    s = setup("plain")
    s["shift"] = np.zeros((5, 2))
    s["probe"] = np.fft.ifft2(np.fft.fft2(s["probe"]) * band(s["shape"], s["pixel"], s["cutoff"]))
    measured = measured_of(s)
    assert value(s, "lsq", measured, None, False) == pytest.approx(value(s, "lsq", measured), rel=1e-12)
    one, other = (gradients(s, "lsq", measured, tiles_of(2), None, spectral) for spectral in (False, True))
    limit = band(s["shape"], s["pixel"], s["cutoff"])
    np.testing.assert_allclose(np.fft.ifft2(np.fft.fft2(one.probe) * limit), other.probe, rtol=1e-9, atol=1e-9)
