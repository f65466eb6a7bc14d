"""Pods, shares, dispersion, tags, sharing and first pictures: what the models make of a scan's parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from bench import Slabs, beam, block, raster, scan, specimen
from pydantic import ValidationError

from ptystream.model.geometry import Geometry
from ptystream.model.models import BARE, MODELS
from ptystream.model.opr import OPR
from ptystream.model.scan_model import Full, Vanilla
from ptystream.model.sharing import adopted, faults
from ptystream.reconstruction import PodTable, Reconstruction

FAR = Geometry((32, 32), 7.2, 2.0, (1e-4, 1e-4))
OBJECT = specimen((140, 140))
PROBE = beam(FAR.view, 14)
PLACES = raster(7, 4)
COUNTS = scan(FAR, PLACES, [PROBE], [OBJECT], noise=5)


def started(given: dict[str, Any] | None = None, geometry: Geometry = FAR, counts: np.ndarray = COUNTS, seed: int = 0) -> Any:
    model = Full("a", 0, Full.Parameters(**(given or {})), geometry, seed)
    made = Reconstruction({}, {}, PodTable(model.pods))
    first = block(geometry, PLACES)
    decided = model.start(made, first, Slabs(counts))
    model.place(made, first)
    return made, model, decided


def test_every_name_of_the_seeds_is_a_model_or_what_they_share() -> None:
    assert {k for k, m in MODELS.items() if m is Full} == {"Full", "BlockFull", "GradFull", "BlockGradFull"}
    assert {k for k, m in MODELS.items() if m is Vanilla} == {"Vanilla", "BlockVanilla"}
    assert set(BARE) == {"ScanModel", "BlockScanModel"}


def test_pods_are_energies_times_probe_modes_times_object_modes() -> None:
    coherence = {"num_probe_modes": 2, "num_object_modes": 3, "energies": (1.0, 1.1), "spectrum": (3.0, 1.0)}
    made, model, _ = started({"coherence": coherence})
    assert model.pods == made.pods.address.shape[1] == 12
    assert made.pods.address[0, :, [1, 3]].T.tolist() == [[p, o] for _ in range(2) for p in range(2) for o in range(3)]
    np.testing.assert_allclose(made.pods.weight[0] ** 2, [0.75] * 6 + [0.25] * 6, rtol=1e-6)
    ways = made.propagators[0]
    assert [way is ways[0] for way in ways] == [True] * 6 + [False] * 6
    assert ways[0].plain
    model.weigh(made, 0, 4.0)
    np.testing.assert_allclose(made.pods.weight[0] ** 2, [3.0] * 6 + [1.0] * 6, rtol=1e-6)


def test_shares_count_relative_to_each_other_and_default_to_equal_ones() -> None:
    for given, wanted in (({}, [0.5, 0.5]), ({"spectrum": (2.0, 6.0)}, [0.25, 0.75])):
        made, _, _ = started({"coherence": {"energies": (0.9, 1.1), **given}})
        np.testing.assert_allclose(made.pods.weight[0] ** 2, wanted, rtol=1e-6)


@pytest.mark.parametrize(("kind", "count"), [(None, 1), ("achromatic", 1), ("linear", 3), ("irregular", 3)])
def test_dispersion_decides_how_many_storages_there_are_and_which_belong_together(kind: str | None, count: int) -> None:
    coherence = {"energies": (1.0, 0.9, 1.2), "probe_dispersion": kind, "object_dispersion": kind}
    made, _, _ = started({"coherence": coherence})
    names = [f"SaG{k:02d}" for k in range(count)]
    assert list(made.probes) == list(made.objects) == names
    assert len({s.shape for s in made.objects.values()}) == 1
    groups = made.probe_dispersion + made.object_dispersion
    assert [g.names for g in groups] == ([tuple(names)] * 2 if kind == "linear" else [])
    if count == 3:
        assert made.pods.address[0, :, 0].tolist() == made.pods.address[0, :, 2].tolist() == [0, 1, 2]
        np.testing.assert_allclose([s.energy_kev for s in made.objects.values()], [7.2, 6.48, 8.64])


def test_a_formula_gives_the_object_of_each_energy_its_own_index() -> None:
    process = {"formula": "Ni", "density": 8.9, "thickness": 1e-6, "smoothing": 0}
    sample = {"model": np.tile(np.linspace(0, 1, 60), (60, 1)), "process": process}
    coherence = {"energies": (1.0, 1.2), "object_dispersion": "irregular"}
    made, _, _ = started({"coherence": coherence, "sample": sample})
    thick = [np.abs(s.data[0, -s.offset[0], 29 - s.offset[1]]) for s in made.objects.values()]
    assert thick[1] < thick[0] - 0.02  # the edge of nickel lies at 8.333 keV, between them


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ({"energies": ()}, "at least one"),
        ({"energies": (1.0, 1.0)}, "different"),
        ({"energies": (1.0, -1.0)}, "different factors"),
        ({"spectrum": (1.0, 2.0, 3.0), "energies": (1.0, 1.1)}, "one for each of 2 energies"),
        ({"spectrum": (-1.0,)}, "not be below 0"),
        ({"object_dispersion": "quadratic"}, "linear"),
        ({"num_probe_modes": 200, "num_object_modes": 200}, "at most"),
    ],
)
def test_a_coherence_that_cannot_be_is_refused(given: dict[str, Any], remedy: str) -> None:
    with pytest.raises(ValidationError, match=remedy):
        Full.Parameters(coherence=given)


def test_resample_and_resolution_reach_probe_and_object() -> None:
    fine = Geometry((16, 16), 7.2, 2.0, (1e-4, 1e-4), resample=2)
    made, model, _ = started(geometry=fine, counts=COUNTS[:, ::2, ::2])
    assert made.probes["SaG00"].shape == (32, 32)
    assert model.geometry.shape == (16, 16)
    assert made.propagators[0][0].resample == 2
    with pytest.raises(ValidationError, match="from 1 to 16"):
        Full.Parameters(resample=0)
    assert Full.Parameters(resample=None).resample is None
    with pytest.raises(ValidationError, match="above 0"):
        Full.Parameters(resolution=0.0)


def test_frames_tagged_empty_see_the_object_at_physical_zero() -> None:
    made, model, _ = started({"tags": ["empty", "june"]})
    assert (made.pods.address[:, 0, 4:] == -16).all()
    assert (made.pods.remainder == 0).all()
    assert model.move(made, 3, (1e-6, 1e-6))
    assert (made.pods.address[3, 0, 4:] == -16).all()
    moving, _, _ = started({"tags": ["june"]})
    assert len(np.unique(moving.pods.address[:, 0, 4:], axis=0)) > 40
    assert Full.Parameters(tags="a, empty").tags == ("a", "empty")


def test_the_illumination_from_the_mean_frame() -> None:
    made, _, _ = started({"illumination": {"model": "stxm"}})
    got = made.probes["SaG00"].data[0]
    wanted = np.fft.ifft2(np.sqrt(COUNTS.mean(axis=0)), norm="ortho")
    assert np.abs(np.vdot(got, wanted)) > 0.999 * np.linalg.norm(got) * np.linalg.norm(wanted)
    flat, _, _ = started()
    assert np.abs(got - flat.probes["SaG00"].data[0]).max() > 0.1


def test_a_first_picture_of_the_sample_shows_its_phase() -> None:
    """A hill: the centre of mass of every frame says how steep it is, and the photons how dark."""
    y, x = np.indices((140, 140)) - 70.0
    hill = np.exp((-3j - 0.4) * np.exp(-(((y - 3) / 15) ** 2) - (x / 12) ** 2))
    counts = scan(FAR, PLACES, [np.abs(PROBE)], [hill])
    illumination = {"model": np.abs(PROBE) + 0j}
    made, model, _ = started({"sample": {"model": "stxm", "fill": 0.25}, "illumination": illumination}, counts=counts)
    origin = made.objects["SaG00"].offset
    got = made.objects["SaG00"].data[0, -origin[0] - 12 : -origin[0] + 12, -origin[1] - 12 : -origin[1] + 12]
    wanted = hill[58:82, 58:82]
    for axis in (0, 1):
        steps = [np.diff(np.unwrap(np.angle(a), axis=axis), axis=axis) for a in (got, wanted)]
        assert np.corrcoef(steps[0].ravel(), steps[1].ravel())[0, 1] > 0.9
        assert np.polyfit(steps[1].ravel(), steps[0].ravel(), 1)[0] == pytest.approx(0.7, abs=0.3)
    assert np.corrcoef(np.abs(got).ravel(), np.abs(wanted).ravel())[0, 1] > 0.9
    model.place(made, block(FAR, PLACES + 60, first=64))
    assert made.objects["SaG00"].data[0, -1, -1] == 0.25
    blind, _, _ = started()
    assert np.abs(blind.objects["SaG00"].data).std() == 0


@pytest.mark.parametrize("model", ["stxm", "flower"])
def test_a_stray_position_among_the_first_frames_takes_no_memory(model: str) -> None:
    full = Full("a", 0, Full.Parameters(sample={"model": model}), FAR)
    places = np.concatenate([PLACES + 5000, [[9e8, -9e8]]])
    counts = np.concatenate([COUNTS, COUNTS[:1]])
    made = Reconstruction({}, {}, PodTable(1))
    full.start(made, block(FAR, places), Slabs(counts))
    _, refused = full.place(made, block(FAR, places))
    assert refused.tolist() == [len(PLACES)]
    held = made.objects["SaG00"]
    assert max(held.shape) < 200
    assert 4900 < held.offset[0] < 5000
    assert np.abs(held.data).std() > 0


def test_a_first_picture_may_come_from_another_scan(caplog: pytest.LogCaptureFixture) -> None:
    weaker = Slabs(COUNTS * np.linspace(0.1, 1, len(COUNTS))[:, None, None])
    held = []
    for label in (None, "b", "c"):
        model = Full("a", 0, Full.Parameters(sample={"model": "stxm", "stxm": {"label": label}}), FAR)
        made = Reconstruction({}, {}, PodTable(1))
        model.start(made, block(FAR, PLACES), Slabs(COUNTS), None, {"b": (block(FAR, PLACES, label="b"), weaker)})
        held.append(made.objects["SaG00"].data)
    assert np.abs(held[0] - held[1]).max() > 0.1
    np.testing.assert_array_equal(held[0], held[2])
    assert "'c' has not begun" in caplog.text


def test_a_canvas_begins_anew_where_all_its_frames_were_withdrawn() -> None:
    for given, moves in (({"coherence": {"num_object_modes": 2}}, True), ({"sample": {"model": np.ones((9, 9))}}, False)):
        made, model, _ = started(given)
        made.objects["SaG00"].data[:] = 9
        before = made.objects["SaG00"].offset
        model.anchor(made, block(FAR, PLACES + 3000))
        held = made.objects["SaG00"]
        assert (held.offset[0] > 2900) == moves == (held.offset != before)
        if moves:
            np.testing.assert_allclose(np.abs(held.data[:, 0, 0]) ** 2, np.array([1, 0.1]) / 1.1, rtol=1e-5)


def test_new_pixels_of_each_object_mode_get_their_share_of_the_fill() -> None:
    made, model, _ = started({"coherence": {"num_object_modes": 2}, "sample": {"fill": 2.0}})
    model.place(made, block(FAR, PLACES + 80, first=64))
    corner = made.objects["SaG00"].data[:, -1, -1]
    np.testing.assert_allclose(np.abs(corner) ** 2, 4 * np.array([1, 0.1]) / 1.1, rtol=1e-5)


def models(
    share: dict[str, Any], second: dict[str, Any] | None = None, geometry: Geometry = FAR, kind: Any = Full
) -> dict[str, Any]:
    first = Full("a", 0, Full.Parameters(illumination={"photons": 5.0}, sample={"fill": 0.5}), FAR)
    return {"a": first, "b": kind("b", 1, kind.Parameters(share=share, **(second or {})), geometry)}


@pytest.mark.parametrize(
    ("given", "path", "remedy"),
    [
        (models({"probe": "c"}), "b.share.probe", "known: a"),
        (models({"object": "b"}), "b.share.object", "known: a"),
        (models({"probe": "a"}, geometry=Geometry((16, 16), 7.2, 2.0, (1e-4, 1e-4))), "b.share.probe", "pixel on the sample"),
        (models({"object": "a"}, geometry=Geometry((32, 32), 7.2, 1.9, (1e-4, 1e-4))), "b.share.object", "pixel on the sample"),
        (models({"probe": "a"}, geometry=Geometry((16, 16), 7.2, 1.0, (1e-4, 1e-4))), "b.share.probe", "frame of the probe"),
        (models({"probe": "a"}, {"coherence": {"num_probe_modes": 2}}), "b.share.probe", "num_probe_modes"),
        (models({"object": "a"}, {"coherence": {"num_object_modes": 2}}), "b.share.object", "num_object_modes"),
        (
            models({"object": "a"}, {"coherence": {"energies": (1.0, 1.1), "object_dispersion": "linear"}}),
            "b.share.object",
            "object_dispersion",
        ),
        (models({"probe": "a"}, kind=Vanilla), "b.share.probe", "kind of model"),
        (models({"probe": "a"}, kind=OPR), "b.share.probe", "a probe of its own"),
    ],
)
def test_what_cannot_be_shared_is_told(given: dict[str, Any], path: str, remedy: str) -> None:
    told = list(faults(given))
    assert [where for where, _, _ in told] == [path]
    assert remedy in told[0][2]


def test_what_can_be_shared_is_and_begins_as_its_owner_says() -> None:
    given = models({"probe": "a", "object": "a"}, {"coherence": {"energies": (1.0, 1.1)}})
    assert not list(faults(given))
    parameters = adopted(given["b"], given)
    assert parameters.illumination.photons == 5.0
    assert parameters.sample.fill == 0.5
    half = Geometry((16, 16), 7.2, 1.0, (1e-4, 1e-4))
    assert not list(faults(models({"object": "a"}, geometry=half)))
    chain = given | {"c": Full("c", 2, Full.Parameters(share={"probe": "b"}), FAR)}
    assert "shares its probe itself" in next(iter(faults(chain)))[2]
