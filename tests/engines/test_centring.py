"""Centring of probes: what belongs together is shifted once, so that no frame sees anything else than before."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_linear_energies import Case, bend, held

from ptystream.engine import Context
from ptystream.engines.backend import BACKENDS
from ptystream.engines.constraints import _together, center
from ptystream.engines.dm import DM
from ptystream.reconstruction import Dispersion, PodTable, Reconstruction, Storage

SIDE, CANVAS = 32, 64
ON = BACKENDS["cpu"](Context(precision="double"))


def blob(y: float, x: float, width: float = 3.0) -> np.ndarray:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * width**2))[None].astype(complex)


def centre(probe: np.ndarray) -> np.ndarray:
    power = (np.abs(probe) ** 2).sum(axis=0)
    return np.array([(power * axis).sum() / power.sum() for axis in np.mgrid[:SIDE, :SIDE]])


def sample() -> np.ndarray:
    y, x = np.mgrid[:CANVAS, :CANVAS] / CANVAS
    return (1 + 0.3 * np.sin(9 * y) * np.cos(7 * x) + 0.2j * np.cos(11 * x))[None]


def pods_of(links: list[tuple[int, int]]) -> PodTable:
    """A frame for each (probe, object)."""
    table, count = PodTable(1), len(links)
    address = np.zeros((count, 1, 6), np.int32)
    for row, (probe, seen) in enumerate(links):
        address[row, 0, [0, 2]] = probe, seen
    frames = np.stack([np.zeros(count, int), np.arange(count)], axis=1)
    table.append(address, np.zeros((count, 1, 2), "f4"), np.ones((count, 1), "f4"), frames)
    return table


def made(probes: list[np.ndarray], seen: list[int], objects: int) -> tuple[Reconstruction, list[Any]]:
    """Probes, the number of the object that each sees, and a tile for each with the wave of a frame in the middle."""
    held = Reconstruction(
        {f"p{k}": Storage(p.copy(), None, (0, 0), 0.0) for k, p in enumerate(probes)},
        {f"o{k}": Storage(sample(), None, (0, 0), 1.0) for k in range(objects)},
        pods_of(list(enumerate(seen))),
    )
    tiles = []
    for number, other in enumerate(seen):
        wave = probes[number] * sample()[:, 16 : 16 + SIDE, 16 : 16 + SIDE]
        tiles.append(SimpleNamespace(pods=[SimpleNamespace(probe=number, object=other)], waves=wave[None]))
    return held, tiles


def shifts(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """By how many pixels a canvas was moved, from the phases of its lowest frequencies, away from the edges."""
    best, found = np.inf, (0, 0)
    inner = slice(16, 48)
    for y in range(-12, 13):
        for x in range(-12, 13):
            apart = np.abs(after[0, inner, inner] - np.roll(before[0], (y, x), (0, 1))[inner, inner]).sum()
            if apart < best:
                best, found = apart, (y, x)
    return np.array(found)


def test_an_object_that_two_probes_see_is_shifted_once() -> None:
    reconstruction, tiles = made([blob(20, 16), blob(20, 16)], [0, 0], 1)
    before = sample()
    center(ON, reconstruction, tiles, 1.0)
    np.testing.assert_array_equal(shifts(before, reconstruction.objects["o0"].data), (-4, 0))
    for number, storage in enumerate(reconstruction.probes.values()):
        np.testing.assert_allclose(centre(storage.data), (16, 16), atol=0.05)
        wave = storage.data * reconstruction.objects["o0"].data[:, 16 : 16 + SIDE, 16 : 16 + SIDE]
        np.testing.assert_allclose(wave, tiles[number].waves[0], atol=0.02)  # P·O is still what the wave was


def test_probes_of_one_object_go_by_the_centre_of_all_their_light() -> None:
    """Which of them goes first plays no part, and each keeps its place beside the other."""
    a, b = blob(22, 16), 0.5 * blob(14, 20)
    both = []
    for probes in ([a, b], [b, a]):
        reconstruction, tiles = made(probes, [0, 0], 1)
        center(ON, reconstruction, tiles, 1.0)
        both.append([s.data for s in reconstruction.probes.values()])
        moved = [centre(new) - centre(old) for new, old in zip(both[-1], probes, strict=True)]
        np.testing.assert_allclose(moved[0], moved[1], atol=0.05)
        light = sum(np.abs(p[0]) ** 2 for p in both[-1])
        np.testing.assert_allclose(centre(np.sqrt(light)[None]), (16, 16), atol=0.05)
    np.testing.assert_allclose(both[0][0], both[1][1], atol=1e-12)


def test_probes_with_objects_of_their_own_are_each_centred() -> None:
    reconstruction, tiles = made([blob(20, 16), blob(16, 12)], [0, 1], 2)
    center(ON, reconstruction, tiles, 1.0)
    for storage in reconstruction.probes.values():
        np.testing.assert_allclose(centre(storage.data), (16, 16), atol=0.05)
    np.testing.assert_array_equal(shifts(sample(), reconstruction.objects["o0"].data), (-4, 0))
    np.testing.assert_array_equal(shifts(sample(), reconstruction.objects["o1"].data), (0, 4))


@pytest.mark.parametrize("far", [False, True])
def test_within_the_tolerance_nothing_moves(far: bool) -> None:
    reconstruction, tiles = made([blob(18, 16), blob(14, 16)], [0, 0], 1)
    if far:
        reconstruction.probes["p1"].data = blob(26, 16)
    before = [s.data.copy() for s in reconstruction.probes.values()]
    center(ON, reconstruction, tiles, 1.0)
    for old, storage in zip(before, reconstruction.probes.values(), strict=True):
        assert (np.abs(storage.data - old).max() > 0.1) == far


@pytest.mark.parametrize(
    ("links", "linear", "straight", "groups"),
    [
        ([(0, 0), (1, 1), (2, 2)], [], [], [{0}, {1}, {2}]),
        ([(0, 0), (1, 1), (2, 0)], [], [], [{0, 2}, {1}]),
        ([(0, 0), (1, 1), (2, 0), (2, 1)], [], [], [{0, 1, 2}]),
        ([(0, 0), (1, 1), (2, 2)], [("p1", "p2")], [], [{0}, {1, 2}]),
        ([(0, 0), (1, 1), (2, 2)], [], [("o0", "o2")], [{0, 2}, {1}]),
        ([(0, 0)], [], [], [{0}, {1}, {2}]),
        ([(0, 0)], [], [("o1", "o2")], [{0}, {1}, {2}]),
    ],
)
def test_what_belongs_together(links: list[tuple[int, int]], linear: Any, straight: Any, groups: list[set[int]]) -> None:
    reconstruction, _ = made([blob(16, 16)] * 3, [], 3)
    reconstruction.probe_dispersion.extend(Dispersion(names, (0.0, 0.1)) for names in linear)
    reconstruction.object_dispersion.extend(Dispersion(names, (0.0, 0.1)) for names in straight)
    reconstruction.pods = pods_of(links)
    found = _together(reconstruction)
    assert [own for own, _ in found] == groups
    for own, seen in found:
        assert seen == {o for p, o in links if p in own}


def test_what_is_linear_in_the_energy_stays_so() -> None:
    engine = Case().start(DM, probe_center_tol=0.0)
    engine.iterate(2)
    probes, objects = held(engine)
    assert bend(probes) < 1e-12
    assert bend(objects) < 1e-12
