"""The Bragg geometry against tabulated values and against sums over q · r; the probe along the beam."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ptystream.model.bragg import BraggGeometry, rocking_curve
from ptystream.model.bragg_model import Bragg3d
from ptystream.model.bragg_parameters import Bragg3dParameters
from ptystream.model.fft import transforms
from ptystream.model.geometry import Geometry
from ptystream.reconstruction import PodTable, Reconstruction, Volume
from ptystream.scan.block import Block

TABULATED = BraggGeometry((9, 128, 128), 8.5, 2.0, (13e-6, 13e-6), 0.005, 22.32)
SMALL = BraggGeometry((5, 12, 10), 8.5, 2.0, (200e-6, 150e-6), 0.02, 22.32)
RNG = np.random.default_rng(1)


def test_tabulated_steps_and_resolutions() -> None:
    dq3, dq1, dq2 = TABULATED.steps_per_m
    assert dq1 == dq2 == pytest.approx(279992, abs=1)
    assert dq3 == pytest.approx(2855229, abs=2)
    assert TABULATED.resolution_m == pytest.approx((2.64312974e-07, 1.89516090e-07, 1.75317015e-07), rel=1e-6)


def test_natural_and_cartesian_coordinates_are_each_others_inverse() -> None:
    points = RNG.normal(size=(7, 3))
    assert TABULATED.to_natural(TABULATED.to_cartesian(points)) == pytest.approx(points)
    assert TABULATED.to_cartesian(TABULATED.to_natural(points)) == pytest.approx(points)
    assert TABULATED.q_to_natural(TABULATED.q_to_cartesian(points)) == pytest.approx(points)
    assert TABULATED.to_cartesian(np.array([1.0, 0, 0])) == pytest.approx([TABULATED.cos, TABULATED.sin, 0])


def test_the_transform_of_arrays_is_the_fourier_sum_over_the_sample() -> None:
    """Σ ψ(r) exp(-i q · r) with q and r in cartesian coordinates is the discrete transform of the natural lattice."""
    g = BraggGeometry((3, 4, 5), 8.5, 2.0, (500e-6, 400e-6), 0.05, 30.0)
    psi = RNG.normal(size=g.shape) + 1j * RNG.normal(size=g.shape)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in g.shape), indexing="ij"), axis=-1)
    r = g.to_cartesian(index * np.array(g.resolution_m)).reshape(-1, 3)
    q = g.q_to_cartesian(index * np.array(g.steps_per_m)).reshape(-1, 3)
    direct = (np.exp(-1j * q @ r.T) @ psi.ravel()).reshape(g.shape)
    assert direct == pytest.approx(np.fft.fftn(psi))


def test_the_propagator_is_the_orthonormal_transform_and_its_inverse() -> None:
    way = rocking_curve(5)
    psi = RNG.normal(size=(2, 3, 5, 6, 7)) + 1j * RNG.normal(size=(2, 3, 5, 6, 7))
    there = way.forward(psi.reshape(2, 15, 6, 7).copy(), *transforms())
    assert there.shape == (2, 3, 30, 7)
    assert there.reshape(psi.shape) == pytest.approx(np.fft.fftn(psi, axes=(2, 3, 4), norm="ortho"))
    assert way.backward(there, *transforms()).reshape(psi.shape) == pytest.approx(psi)


def test_a_step_along_the_beam_leaves_the_beam_where_it_is() -> None:
    """Its middle line r1 + slant r3 on the lattice stays, though r3 is rounded."""
    beam = np.array([SMALL.cos, -SMALL.sin, 0.0])
    steps = np.array([[1e-7, 3e-7, -2e-7]]) + np.linspace(-3e-6, 3e-6, 9)[:, None] * beam
    r3, r1, r2 = SMALL.lattice(steps).T
    assert (r3 == np.rint(r3)).all()
    assert len(np.unique(r3)) > 3
    line = r1 + SMALL.slant * r3
    assert line == pytest.approx(np.full(9, line[0]))
    assert r2 == pytest.approx(np.full(9, r2[0]))


def test_an_extruded_wave_is_the_same_all_along_the_beam() -> None:
    plane = SMALL.plane()
    rows, columns = plane.view
    u, v = np.arange(rows) - rows // 2, np.arange(columns) - columns // 2
    wave = (2.0 + 0.1 * u)[:, None] * (1 + 0.2j * v)  # linear: interpolation is exact
    volume = SMALL.extruded(wave)
    k, i, j = (np.arange(n) - n // 2 for n in SMALL.shape)
    across = i[None, :] + SMALL.slant * k[:, None]
    assert volume == pytest.approx((2.0 + 0.1 * across)[..., None] * (1 + 0.2j * j))
    r3, r1, _ = SMALL.resolution_m
    x, z = k[:, None] * r3 * SMALL.cos, i[None] * r1 + k[:, None] * r3 * SMALL.sin
    assert across * plane.pixel_m[0] == pytest.approx(x * SMALL.sin + z * SMALL.cos)


# ---------------------------------------------------------------------- the model


def model(**given: Any) -> Bragg3d:
    rocking = {"theta_bragg": 22.32, "n_rocking_positions": 5, "rocking_step": 0.02}
    parameters = Bragg3dParameters(**{"rocking": rocking, **given})
    return Bragg3d("a", 0, parameters, Geometry((12, 12), 8.5, 2.0, (200e-6, 200e-6)))


class Store:
    slab_frames, limit, shape, dtype = 4, 65535.0, (60, 12), np.dtype("u2")

    def __init__(self) -> None:
        self.mask = np.ones(self.shape, np.uint8)

    def slab(self, number: int) -> np.ndarray:
        return np.full((4, *self.shape), 3, "u2")


def block(places: list[tuple[float, float, float]], dose: float = 1.0) -> Block:
    at = np.array(places)
    slots = np.arange(len(at))
    further = np.column_stack([at[:, 1], np.zeros(len(at))])
    return Block("a", slots, slots, at[:, [2, 0]], np.full(len(at), dose), np.zeros(len(at), np.int64), further)


def begun(made: Bragg3d, places: list[tuple[float, float, float]]) -> Reconstruction:
    result = Reconstruction({}, {}, PodTable(1))
    decided = made.start(result, block(places), Store())
    assert decided["mean_photons"] == pytest.approx(3.0)
    made.place(result, block(places))
    return result


def test_places_views_in_natural_coordinates_and_grows_on_three_axes() -> None:
    made = model()
    r3, r1, r2 = made.bragg.resolution_m
    steps = [(0.0, 0.0, 0.0), (2 * r3 * made.bragg.cos, 2 * r3 * made.bragg.sin + 3 * r1, -30.25 * r2)]
    result = begun(made, steps)
    pods, held = result.pods, result.objects["SaG00"]
    assert isinstance(held, Volume)
    assert pods.depth.tolist() == [-2, 0]
    assert pods.address[:, 0, 4:].tolist() == [[-6, -6], [-3, -36]]
    assert pods.remainder[1, 0] == pytest.approx([0.0, -0.25], abs=1e-4)
    for depth, corner in zip(pods.depth, pods.address[:, 0, 4:], strict=True):
        low = np.array([depth, *corner]) - held.corner
        assert (low >= 0).all()
        assert (low + made.bragg.shape <= held.data.shape).all()
    assert made.move(result, 0, (0.0, -9 * r3 * made.bragg.cos))
    assert pods.depth[0] == -11
    assert held.first <= -11
    assert not made.move(result, 0, (1.0, 1.0))
    assert pods.depth[0] == -11


def test_what_each_parameter_of_the_model_does() -> None:
    plain = model().probe(100.0)
    assert (np.abs(plain) ** 2).sum() == pytest.approx(100.0)
    assert (np.abs(model(illumination={"photons": 7.0}).probe(100.0)) ** 2).sum() == pytest.approx(7.0)
    wide = model(illumination={"size": 2e-5}).probe(100.0)
    assert np.count_nonzero(np.abs(wide) > 0.1) > np.count_nonzero(np.abs(plain) > 0.1)
    same = model(illumination={"aperture": {"size": 2e-5}}).probe(100.0)
    assert (same == wide).all()
    for other in (
        {"aperture": {"form": "rect"}},
        {"aperture": {"edge": 4.0}},
        {"aperture": {"offset": 1e-6}},
        {"aperture": {"central_stop": 0.5}},
        {"aperture": {"rotate": 0.5, "form": "rect"}},
        {"aperture": {"diffuser": (1.0, 2.0)}},
        {"propagation": {"parallel": 0.1}},
        {"propagation": {"focussed": 0.1}},
        {"propagation": {"focussed": 0.1, "spot_size": 2e-6}},
        {"propagation": {"parallel": 0.1, "antialiasing": 2.0}},
        {"model": "moon"},
    ):
        assert not np.allclose(model(illumination=other).probe(100.0), plain), other
    wave = np.ones((3, 3))
    given = model(illumination=wave.tolist()).probe(9.0)
    assert np.abs(given[2, 5:8, 5:8]) == pytest.approx(np.full((3, 3), np.abs(given[2, 6, 6])))
    result = begun(model(sample=0.5), [(0.0, 0.0, 0.0)])
    assert (result.objects["SaG00"].data == 0.5).all()
    still = begun(model(tags="empty"), [(0.0, 0.0, 0.0), (1e-5, 1e-5, 1e-5)])
    assert still.pods.depth.tolist() == [-2, -2]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"rocking": {"n_rocking_positions": 5, "rocking_step": 0.1}}, "theta_bragg"),
        ({"rocking": {"theta_bragg": 22.0, "rocking_step": 0.1}}, "n_rocking_positions"),
        ({"rocking": {"theta_bragg": 22.0, "n_rocking_positions": 5}}, "rocking_step"),
        ({"rocking": {"theta_bragg": 95.0}}, "below 90"),
        ({"propagation": "nearfield"}, "farfield"),
        ({"resample": 2}, "must be 1"),
        ({"share": {"probe": "b"}}, "share nothing"),
        ({"illumination": {"model": "stxm"}}, "no picture"),
        ({"illumination": {"size": 1e-6, "aperture": {"size": 1e-6}}}, "give one"),
    ],
)
def test_what_makes_no_sense_is_an_error(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        model(**given)
