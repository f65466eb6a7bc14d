"""The model of one frame, against sums that are written out."""

from __future__ import annotations

import numpy as np
import pytest

from ptystream.model.bragg import rocking_curve
from ptystream.model.frame import UNTOLD, blind_because, photons, seen_by, sight_of
from ptystream.model.propagate import Propagator
from ptystream.reconstruction import PodTable, Reconstruction, Stack, Storage, Volume

SIDE = 6


def wave(*shape: int, seed: int = 0) -> np.ndarray:
    r = np.random.default_rng(seed)
    return r.normal(size=shape) + 1j * r.normal(size=shape)


def fields() -> Reconstruction:
    """Two probe modes and two object layers: four pods, each with a weight and the same place."""
    pods = PodTable(4)
    address = np.array([[[0, p, 0, o, -3, 5] for p in (0, 1) for o in (0, 1)]], np.int32)
    remainder = np.full((1, 4, 2), [0.25, -0.375], np.float32)
    pods.append(address, remainder, np.array([[1.0, 0.5, 0.25, 2.0]], np.float32), np.array([[0, 7]]))
    probe, seen = Storage(wave(2, SIDE, SIDE), None, (0, 0)), Storage(wave(2, 20, 21, seed=1), None, (-10, 2))
    return Reconstruction({"p": probe}, {"o": seen}, pods)


def moved(view: np.ndarray, y: float, x: float, subpix: str | None) -> np.ndarray:
    """The view, its content moved by (y, x), pixel by pixel."""
    if subpix is None:
        return view
    result = np.zeros_like(view)
    if subpix == "linear":
        for i in range(SIDE):
            for j in range(SIDE):
                for dy, a in ((0, 1 - abs(y)), (int(np.sign(y)), abs(y))):
                    for dx, b in ((0, 1 - abs(x)), (int(np.sign(x)), abs(x))):
                        result[(i + dy) % SIDE, (j + dx) % SIDE] += a * b * view[i, j]
        return result
    k = np.array([0, 1, 2, -3, -2, -1])  # a frame of six pixels
    there = np.exp(-2j * np.pi * np.outer(k, np.arange(SIDE)) / SIDE)
    spectrum = there @ view @ there.T * np.exp(-2j * np.pi * k * y / SIDE)[:, None] * np.exp(-2j * np.pi * k * x / SIDE)
    return there.conj().T @ spectrum @ there.conj() / SIDE**2


@pytest.mark.parametrize("subpix", [None, "linear", "fourier"])
@pytest.mark.parametrize("far", [True, False])
def test_the_photons_of_a_frame_are_the_sum_over_its_pods(subpix: str | None, far: bool) -> None:
    held = fields()
    matrix = (wave(8, SIDE, seed=3), wave(9, SIDE, seed=4))
    if not far:  # the first two pods go another way, as those of another energy do
        shrunk = tuple(np.ascontiguousarray(m[:SIDE]) for m in matrix)
        held.propagators[0] = (Propagator(zoom=shrunk), Propagator(zoom=shrunk), Propagator(), Propagator())
    sight = sight_of(held, 0)
    assert sight is not None
    expected = np.zeros((SIDE, SIDE))
    dft = np.exp(-2j * np.pi * np.outer(np.arange(SIDE), np.arange(SIDE)) / SIDE) / np.sqrt(SIDE)
    for pod, (p, o, weight) in enumerate([(0, 0, 1.0), (0, 1, 0.5), (1, 0, 0.25), (1, 1, 2.0)]):
        probe = moved(held.probes["p"].data[p], 0.25, -0.375, subpix)
        exit_wave = weight * probe * held.objects["o"].data[o, 7 : 7 + SIDE, 3 : 3 + SIDE]
        y, x = (dft, dft) if far or pod > 1 else shrunk
        expected += np.abs(y @ exit_wave @ x.T) ** 2
    np.testing.assert_allclose(photons(sight, subpix), expected, rtol=1e-9)


def test_what_a_frame_sees_is_a_copy_and_no_larger_than_its_views() -> None:
    held = fields()
    sight = sight_of(held, 0)
    assert sight is not None
    before = sight.objects.copy()
    held.objects["o"].data[...] = 0
    np.testing.assert_array_equal(sight.objects, before)
    assert sight.objects.shape == sight.probes.shape == (4, 1, SIDE, SIDE)


def test_what_has_no_such_model_says_why_and_what_a_frame_sees_has_a_name() -> None:
    held = fields()
    assert blind_because(held, 0) is None and seen_by(held, 0) == {"probe": "p", "object": "o"}
    held.pods.withdraw(np.array([0]))
    assert sight_of(held, 0) is None and blind_because(held, 0) == "no probe and object see this frame now"
    assert seen_by(held, 0) == {"probe": None, "object": None}
    held = fields()
    held.objects["o"] = Stack(held.objects["o"].data, None, (-10, 2), depth=2, distances_m=(1e-9,))
    assert sight_of(held, 0) is None and blind_because(held, 0) == UNTOLD
    held.objects["o"] = Stack(held.objects["o"].data, None, (-10, 2), depth=1)
    assert sight_of(held, 0) is not None


@pytest.mark.parametrize("subpix", [None, "linear"])
def test_of_a_rocking_curve_it_is_the_transform_of_a_volume(subpix: str | None) -> None:
    pods, angles = PodTable(1), 4
    address, remainder = np.array([[[0, 0, 0, 0, -3, 5]]], np.int32), np.array([[[0.25, -0.375]]], np.float32)
    pods.append(address, remainder, np.array([[0.5]], np.float32), np.array([[0, 7]]), depth=np.array([-1]))
    probe, seen = Volume(wave(angles, SIDE, SIDE), None, (0, 0)), Volume(wave(9, 20, 21, seed=1), None, (-10, 2), first=-3)
    held = Reconstruction({"p": probe}, {"o": seen}, pods, {0: (rocking_curve(angles),)})
    sight = sight_of(held, 0)
    assert sight is not None and blind_because(held, 0) is None
    beam = np.stack([moved(view, 0.25, -0.375, subpix) for view in probe.data])
    expected = np.abs(np.fft.fftn(0.5 * beam * seen.data[2:6, 7 : 7 + SIDE, 3 : 3 + SIDE], norm="ortho")) ** 2
    np.testing.assert_allclose(photons(sight, subpix).reshape(expected.shape), expected, rtol=1e-9)
