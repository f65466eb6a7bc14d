"""Scan models: where a frame lands on the lattice, how the canvas grows, what the starting probe is."""

from typing import Any

import numpy as np
import pytest

from ptystream.model import scan_model
from ptystream.model.geometry import Geometry
from ptystream.model.models import MODELS
from ptystream.model.scan_model import Full, ScanModel, Vanilla
from ptystream.reconstruction import PodTable, Reconstruction
from ptystream.scan.block import Block

GEOMETRY = Geometry((16, 16), 7.2, 2.0, (1e-4, 2e-4))


class Store:
    slab_frames, limit, shape, dtype = 64, 65535.0, (16, 16), np.dtype("u2")
    mask = np.ones((16, 16), np.uint8)

    def __init__(self) -> None:
        self.counts = np.random.default_rng(0).poisson(5.0, (64, 16, 16)).astype("u2")
        self.counts[3, 2, 2] = 65535
        self.mask = self.mask.copy()
        self.mask[0] = 0

    def slab(self, number: int) -> Any:
        return self.counts


def block(positions: Any, first: int = 0, dose: float = 1.0) -> Block:
    count = len(positions)
    slots = np.arange(first, first + count)
    return Block("a", slots, slots, np.asarray(positions, float), np.full(count, dose), np.zeros(count, np.int64))


def started(model: ScanModel, positions: Any) -> tuple[Reconstruction, dict[str, Any], Store]:
    made, store = Reconstruction({}, {}, PodTable(model.pods)), Store()
    first = block(positions)
    decided = model.start(made, first, store)
    model.place(made, first)
    return made, decided, store


def test_the_pixel_on_the_sample_is_lambda_z_over_n_psize() -> None:
    lz = 1.23984193e-9 / 7.2 * 2.0
    assert GEOMETRY.pixel_size_m == pytest.approx((lz / 16e-4, lz / 32e-4))
    assert Geometry((16, 16)).pixel_size_m is None


def test_corner_and_remainder_give_the_position_back() -> None:
    model = Full("a", 0, Full.Parameters(), GEOMETRY)
    pixel = np.array(GEOMETRY.pixel_size_m)
    where = np.random.default_rng(1).uniform(-40, 40, (50, 2))
    made, _, _ = started(model, where * pixel)
    back = made.pods.address[:, 0, 4:] + 8 + made.pods.remainder[:, 0]
    np.testing.assert_allclose(back, where, atol=1e-4)
    assert (np.abs(made.pods.remainder) <= 0.5).all()


@pytest.mark.parametrize("direction", [(0, 90), (0, -90), (90, 0), (-90, 0), (-50, 60)])
def test_the_canvas_grows_in_every_direction_and_content_keeps_its_place(direction: tuple[int, int]) -> None:
    model = Full("a", 0, Full.Parameters(), Geometry((16, 16)))
    made, _, _ = started(model, [[0.0, 0.0]])
    storage = made.objects["SaG00"]
    storage.data[0, 3 - storage.offset[0], 5 - storage.offset[1]] = 7j
    rows, refused = model.place(made, block([direction], first=1))
    assert rows.tolist() == [1]
    assert refused.size == 0
    assert storage.data[0, 3 - storage.offset[0], 5 - storage.offset[1]] == 7j
    corner = made.pods.address[1, 0, 4:] - storage.offset
    assert (corner >= 0).all()
    assert (corner + 16 <= storage.shape).all()


def test_a_position_that_would_need_a_huge_canvas_is_refused_and_the_others_are_placed() -> None:
    model = Full("a", 0, Full.Parameters(), Geometry((16, 16)))
    made, _, _ = started(model, [[0.0, 0.0]])
    rows, refused = model.place(made, block([[1.0, 1.0], [1e6, 1e6], [2.0, 2.0]], first=1))
    assert refused.tolist() == [2]
    assert made.pods.frame[rows, 1].tolist() == [1, 3]


def test_modes_make_pods_and_the_powers_are_those_asked_for() -> None:
    given = Full.Parameters(
        coherence={"num_probe_modes": 3, "num_object_modes": 2}, illumination={"diversity": {"power": [0.2, 0.05]}}
    )
    model = Full("a", 4, given, Geometry((16, 16)))
    made, decided, _ = started(model, [[0.0, 0.0], [2.0, 1.0]])
    assert made.pods.address[0, :, [1, 3]].T.tolist() == [[p, o] for p in range(3) for o in range(2)]
    power = (np.abs(made.probes["SaG00"].data) ** 2).sum(axis=(1, 2))
    np.testing.assert_allclose(power / power[0], [1, 0.2, 0.05], rtol=1e-3)
    assert power.sum() == pytest.approx(decided["brightest_photons"], rel=1e-3)
    assert (made.pods.frame[:, 0] == 4).all()


def test_photons_are_counted_over_valid_pixels_and_decisions_are_reused() -> None:
    model = Full("a", 0, Full.Parameters(), Geometry((16, 16)))
    _, decided, store = started(model, [[0.0, 0.0]] * 5)
    counts = store.counts[:5].astype(float)
    counts[3, 2, 2] = 0
    totals = counts[:, 1:].sum(axis=(1, 2))
    assert decided["brightest_photons"] == totals.max()
    assert decided["mean_photons"] == pytest.approx(totals.mean() / 256)
    made = Reconstruction({}, {}, PodTable(1))
    again = model.start(made, block([[0.0, 0.0]]), store, {"brightest_photons": 9.0, "mean_photons": 1.0})
    assert again["brightest_photons"] == 9.0
    assert (np.abs(made.probes["SaG00"].data) ** 2).sum() == pytest.approx(9.0, rel=1e-4)


def test_vanilla_starts_from_a_disc_with_the_photons_of_the_brightest_frame_and_its_own_names() -> None:
    model = Vanilla("a", 0, Vanilla.Parameters(sample={"fill": 0.5}), Geometry((16, 16)))
    made, decided, _ = started(model, [[0.0, 0.0]])
    assert list(made.probes) == list(made.objects) == ["Sa"]
    disc = np.abs(made.probes["Sa"].data[0])
    assert disc[8, 8] > 0.95 * disc.max()
    assert disc[0, 0] < 0.05 * disc.max()
    assert (disc**2).sum() == pytest.approx(decided["brightest_photons"], rel=1e-4)
    assert (made.objects["Sa"].data == 0.5).all()


def test_block_names_are_the_same_models() -> None:
    assert MODELS["BlockFull"] is MODELS["Full"]
    assert MODELS["BlockVanilla"] is MODELS["Vanilla"]


def test_a_revised_position_moves_its_row() -> None:
    model = Full("a", 0, Full.Parameters(), Geometry((16, 16)))
    made, _, _ = started(model, [[0.0, 0.0], [1.0, 1.0]])
    assert model.move(made, 1, (5.25, -3.0))
    assert made.pods.address[1, 0, 4:].tolist() == [5 - 8, -3 - 8]
    np.testing.assert_allclose(made.pods.remainder[1, 0], [0.25, 0.0])
    assert not model.move(made, 1, (1e12, 0.0))
    assert made.pods.address[1, 0, 4:].tolist() == [5 - 8, -3 - 8]


def test_views_that_fit_one_by_one_but_not_together_are_refused_from_the_first_that_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scan_model, "MAX_CANVAS_PIXELS", 40_000)
    model = Full("a", 0, Full.Parameters(), Geometry((16, 16)))
    made, _, _ = started(model, [[0.0, 0.0]])
    far = 100.0
    rows, refused = model.place(made, block([[far, 0.0], [0.0, far], [-far, 0.0], [0.0, 2 * far], [1.0, 1.0]], first=1))
    assert len(rows) == 4
    assert refused.tolist() == [4]
    assert made.objects["SaG00"].data.size <= 40_000


def test_dose_scales_the_amplitude_of_the_model() -> None:
    model = Full("a", 0, Full.Parameters(), Geometry((16, 16)))
    made, _, _ = started(model, [[0.0, 0.0]])
    rows, _ = model.place(made, block([[1.0, 1.0]], first=1, dose=4.0))
    assert made.pods.weight[rows, 0].tolist() == [2.0]


@pytest.mark.parametrize(
    ("given", "differs"),
    [
        ({"aperture": {"size": 1e-6}}, True),
        ({"aperture": {"form": "rect"}}, True),
        ({"aperture": {"form": None}}, True),
        ({"aperture": {"edge": 6.0}}, True),
        ({"aperture": {"offset": (2e-7, 0.0)}}, True),
        ({"aperture": {"form": "rect", "rotate": 0.5}}, True),
        ({"aperture": {"central_stop": 0.4}}, True),
        ({"propagation": {"parallel": 1e-3}}, True),
        ({"propagation": {"focussed": 0.01}}, True),
        ({"photons": 5.0}, True),
        ({}, False),
    ],
)
def test_every_parameter_of_the_illumination_changes_the_probe(given: dict[str, Any], differs: bool) -> None:
    plain = Full("a", 0, Full.Parameters(), GEOMETRY).probe(100.0)
    changed = Full("a", 0, Full.Parameters(illumination=given), GEOMETRY).probe(100.0)
    assert (np.abs(changed - plain).max() > 1e-3) == differs


def test_a_probe_of_another_shape_is_refused_with_what_it_must_be() -> None:
    with pytest.raises(ValueError, match=r"shape \(4, 4\): must be \(16, 16\)"):
        Full("a", 0, Full.Parameters(illumination={"model": np.ones((4, 4))}), GEOMETRY).probe(1.0)


def test_metres_without_a_geometry_are_refused() -> None:
    with pytest.raises(ValueError, match=r"need data\.energy"):
        Full("a", 0, Full.Parameters(illumination={"aperture": {"size": 1e-6}}), Geometry((16, 16))).probe(1.0)
