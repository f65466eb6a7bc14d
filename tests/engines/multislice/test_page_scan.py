"""What PyPty's page tells of a scan, as entries of `scans`: each would fail here if it did nothing; and contradictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ptystream.engines.multislice.page.scan import UNDOCUMENTED, to_metres, to_pixels
from ptystream.engines.multislice.standing import standing
from ptystream.params.errors import ConfigurationError
from ptystream.params.load import check, load
from ptystream.plan import geometry_of, make_plan, models_of
from ptystream.reconstruction import nearest

R = np.random.default_rng(0)
DATA = R.poisson(30.0, (3, 4, 16, 16)).astype("f4")
PLACES = R.uniform(3, 20, (12, 2))
PAGE: dict[str, Any] = {"dataset": DATA, "acc_voltage": 80, "pixel_size_x_A": 0.4, "pixel_size_y_A": 0.3, "positions": PLACES}


def read(**page: Any) -> Any:
    return load({key: value for key, value in (PAGE | page).items() if value is not None})


def scan_of(**page: Any) -> Any:
    return read(**page).scans[0]


def faults(given: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(ConfigurationError) as found:
        models_of(load(given))
    return {fault.path: fault.remedy for fault in found.value.faults}


def test_a_dictionary_is_a_scan_and_an_engine() -> None:
    made = read(epoch_max=7)
    assert [s.label for s in made.scans] == ["scan"] and made.scans[0].parameters.name == "Full"
    assert made.scans[0].data.name == "ArrayScan" and made.scans[0].data.parameters.array.array is DATA
    assert made.engines[0].name == "PyPty" and made.engines[0].parameters.numiter == 7
    assert made.scans[0].data.parameters.energy is None and made.scans[0].data.parameters.acc_voltage == 80


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"data_pad": 4},
        {"data_bin": 2},
        {"upsample_pattern": 2},
        {"data_bin": 2, "data_pad": 4, "upsample_pattern": 2},
        {"recon_type": "near_field", "defocus_array": [200.0]},
        {"recon_type": "near_field", "defocus_array": [200.0], "data_bin": 2, "upsample_pattern": 4, "data_pad": 8},
    ],
)
def test_the_pixel_on_the_sample_is_the_pages_and_the_model_has_its_size(more: dict[str, Any]) -> None:
    geometry = geometry_of(scan_of(**more))
    assert geometry.pixel_size_m == pytest.approx((0.3e-10, 0.4e-10), rel=1e-12)
    side = 16 // more.get("data_bin", 1) * more.get("upsample_pattern", 1) + 2 * more.get("data_pad", 0)
    assert geometry.view == (side, side)
    assert geometry.near == ("recon_type" in more) and geometry.voltage_kv == 80
    if geometry.near:
        assert geometry.distance_m == pytest.approx(200e-10)


@pytest.mark.parametrize("key", ["positions", "puzzle_positions"])
@pytest.mark.parametrize("more", [{}, {"data_pad": 4, "upsample_pattern": 2}, {"data_bin": 2}])
def test_a_position_is_the_corner_of_its_view_from_the_smallest(key: str, more: dict[str, Any]) -> None:
    page = {"positions": PLACES + 99, key: PLACES} | more
    scan = scan_of(**page)
    model = models_of(read(**page))["scan"]
    metres = scan.data.parameters.positions_theory
    corner, remainder = model._corner(model._where(metres))
    wanted = PLACES - PLACES.min(axis=0)
    np.testing.assert_allclose(corner + remainder, wanted, atol=1e-9)
    np.testing.assert_array_equal(corner, nearest(wanted)[0])
    back = to_pixels(metres, model.geometry.pixel_size_m, model.geometry.view)
    np.testing.assert_allclose(back, wanted, atol=1e-9)


def test_positions_there_and_back_are_the_same() -> None:
    for view in ((16, 16), (17, 15)):
        metres = to_metres(PLACES, (0.3e-10, 0.4e-10), view)
        np.testing.assert_allclose(to_pixels(metres, (0.3e-10, 0.4e-10), view), PLACES, rtol=1e-13)
        moved = to_pixels(metres, (0.3e-10, 0.4e-10), view, origin=(-5.0, 2.0))
        np.testing.assert_allclose(moved, PLACES + np.array([5.0, -2.0]), rtol=1e-12)


def test_one_position_is_that_of_all() -> None:
    for given in (None, [[7.0, 9.0]]):
        theory = scan_of(positions=given).data.parameters.positions_theory
        assert theory.shape == (12, 2)
        np.testing.assert_allclose(theory, np.broadcast_to([8 * 0.3e-10, 8 * 0.4e-10], (12, 2)))


def test_skip_preprocessing_leaves_positions_where_they_are() -> None:
    theory = scan_of(skip_preprocessing=True, extra_space_on_side_px=9).data.parameters.positions_theory
    np.testing.assert_allclose(theory, (PLACES + 8) * [0.3e-10, 0.4e-10])
    assert scan_of(skip_preprocessing=True, extra_space_on_side_px=9).parameters.margin == 0
    assert scan_of(extra_space_on_side_px=9).parameters.margin == 9


def test_a_part_of_the_field_of_view_is_counted_from_its_own_smallest() -> None:
    for sequence in ([2, 5, 7], "lambda x: [2, 5] if x < 3 else [7]"):
        scan = scan_of(sequence=sequence, use_full_FOV=False)
        assert scan.data.parameters.selection == [2, 5, 7]
        theory = scan.data.parameters.positions_theory / [0.3e-10, 0.4e-10] - 8
        np.testing.assert_allclose(theory, PLACES - PLACES[[2, 5, 7]].min(axis=0), atol=1e-9)
    assert scan_of(sequence=[2, 5, 7]).data.parameters.selection is None


def prepared(**page: Any) -> np.ndarray:
    """The frames as an engine gets them, centred; what is masked as NaN."""
    configuration = read(threads=1, min_frames_for_recon=1, **page)
    plan = make_plan(configuration)
    channel, (buffer, _) = plan.channels[0], plan.scans[0].make(None)
    channel.transport.open()
    for _ in range(3):
        for event in channel.decoder.feed(channel.transport.receive(1.0)):
            buffer.feed("data", event, 0)
    while buffer.ledger.prepared < 12:
        buffer.changed(-1, 0.01)
    rows = np.array([buffer.frames.row(slot) for slot in range(12)], float)
    rows[:, buffer.frames.mask == 0] = np.nan
    plan.close()
    return np.fft.fftshift(rows, axes=(1, 2))


def test_patterns_are_flipped_shifted_and_summed_in_this_order() -> None:
    flat = DATA.reshape(12, 16, 16)
    np.testing.assert_array_equal(prepared(), flat)
    flipped = np.full_like(flat, np.nan)
    flipped[:, 1:] = flat[:, :0:-1]  # about zero frequency, pixel 8: what lies at -8 has no counterpart
    np.testing.assert_array_equal(prepared(flip_ky=True), flipped)
    shifted = np.roll(flat, (3, -2), (1, 2))
    shifted[:, :3], shifted[:, :, -2:] = np.nan, np.nan  # the edge that moved in
    np.testing.assert_array_equal(prepared(data_shift_vector=[3, -2]), shifted)
    np.testing.assert_array_equal(prepared(data_bin=2), flat.reshape(12, 8, 2, 8, 2).sum(axis=(2, 4)))
    both = np.roll(flipped, (3, -2), (1, 2))
    both[:, :3], both[:, :, -2:] = np.nan, np.nan
    wanted = both.reshape(12, 8, 2, 8, 2).sum(axis=(2, 4))
    np.testing.assert_array_equal(prepared(flip_ky=True, data_shift_vector=[3, -2], data_bin=2), wanted)


def test_files_are_found_below_home_and_their_shape_is_read(tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", DATA)
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["data"] = DATA.reshape(12, 16, 16)
    for name, source in (("data.npy", "ArrayScan"), ("data.h5", "Hdf5Scan")):
        scan = scan_of(dataset=None, data_path=name, io={"home": str(tmp_path)})
        assert scan.data.name == source and scan.data.parameters.shape == 16
        assert len(scan.data.parameters.positions_theory) == 12


def test_masks_make_frames_signals() -> None:
    masks = R.normal(size=(5, 16, 16))
    signals = np.einsum("skyx,myx->skm", DATA, masks)
    page = {"dataset": signals, "masks": masks, "algorithm": "lsq_compressed"}
    scan = scan_of(**page)
    assert scan.data.parameters.signals == 5 and geometry_of(scan).view == (16, 16)
    assert geometry_of(scan).pixel_size_m == pytest.approx((0.3e-10, 0.4e-10))
    wrong = faults(PAGE | page | {"data_bin": 2})
    assert "bin, shift or flip the `masks`" in wrong["data_bin"]


def test_a_raster_stands_for_positions() -> None:
    scan = scan_of(positions=None, scan_step_A=0.6, scan_size=(3, 4))
    assert scan.data.parameters.raster.points == (3, 4) and scan.data.parameters.raster.step == pytest.approx(0.6e-10)
    assert scan_of(positions=None, scan_step_A=0.6).data.parameters.raster.points == (3, 4)  # as the array has it
    assert "given too" in faults(PAGE | {"scan_step_A": 0.6})["scan_step_A"]


# ---------------------------------------------------------------------- an ordinary configuration

ORDINARY = {"name": "Full", "data": {"name": "ZmqScan", "shape": 16}}


def ordinary(engine: dict[str, Any], scan: dict[str, Any] | None = None, **data: Any) -> dict[str, Any]:
    entry = ORDINARY | (scan or {}) | {"data": ORDINARY["data"] | data}
    return {"scans": {"s": entry}, "engines": {"e": {"name": "PyPty", **engine}}}


def test_the_page_tells_a_live_scan_what_it_does_not_say_itself() -> None:
    page = {"acc_voltage": 80, "pixel_size_x_A": 0.4, "pixel_size_y_A": 0.3, "data_pad": 4, "data_bin": 2}
    made = load(ordinary(page))
    geometry = geometry_of(made.scans[0])
    assert made.scans[0].data.name == "ZmqScan" and geometry.view == (16, 16)
    assert geometry.pixel_size_m == pytest.approx((0.3e-10, 0.4e-10))
    same = load(ordinary({"pixel_size_x_A": 0.4, "pixel_size_y_A": 0.3}, acc_voltage=200.0))
    assert geometry_of(same.scans[0]).pixel_size_m == pytest.approx((0.3e-10, 0.4e-10))


@pytest.mark.parametrize(
    ("engine", "scan", "both"),
    [
        ({"acc_voltage": 80}, {"data": {"acc_voltage": 80}}, ("acc_voltage", "data.acc_voltage")),
        ({"acc_voltage": 80}, {"data": {"energy": 7.0}}, ("acc_voltage", "data.energy")),
        ({"pixel_size_x_A": 0.4}, {"data": {"psize": 1e-4}}, ("pixel_size_x_A", "data.psize")),
        ({"pixel_size_y_A": 0.4}, {"data": {"distance": 1.0}}, ("pixel_size_y_A", "data.distance")),
        ({"data_bin": 2}, {"data": {"rebin": 2}}, ("data_bin", "data.rebin")),
        ({"data_shift_vector": [1, 0]}, {"data": {"shift": [1, 0]}}, ("data_shift_vector", "data.shift")),
        ({"flip_ky": True}, {"data": {"orientation": 2}}, ("flip_ky", "data.orientation")),
        ({"data_pad": 4}, {"pad": 4}, ("data_pad", "pad")),
        ({"upsample_pattern": 2}, {"resample": 2}, ("upsample_pattern", "resample")),
        ({"recon_type": "near_field"}, {"propagation": "nearfield"}, ("recon_type", "propagation")),
        ({"extra_space_on_side_px": 2}, {"margin": 2}, ("extra_space_on_side_px", "margin")),
        ({"dataset": DATA}, {}, ("dataset", "data.name")),
        ({"positions": PLACES}, {"data": {"positions_theory": PLACES}}, ("positions", "data.positions_theory")),
        ({"positions": PLACES}, {"data": {"raster": {"points": [3, 4]}}}, ("positions", "data.raster")),
        ({"puzzle_positions": PLACES}, {"data": {"positions": {"name": "ZmqScan"}}}, ("puzzle_positions", "data.positions")),
        ({"masks": np.ones((2, 16, 16)), "algorithm": "lsq_compressed"}, {"data": {"signals": 2}}, ("masks", "data.signals")),
        (
            {"sequence": [1], "use_full_FOV": False},
            {"data": {"selection": [1]}},
            ("use_full_FOV", "data.selection"),
        ),
    ],
)
def test_what_both_say_is_refused_with_both_paths(engine: dict[str, Any], scan: dict[str, Any], both: tuple[str, str]) -> None:
    data = scan.pop("data", {}) if scan else {}
    found = faults(ordinary(engine, scan, **data))
    assert f"scans.s.{both[1]}" in (told := found[f"engines.e.{both[0]}"]) and "given too: leave one of them out" in told


# ---------------------------------------------------------------------- what is wrong


def test_unknown_names_are_told_with_the_nearest_as_they_were_written() -> None:
    assert "did you mean 'acc_voltage'" in faults(PAGE | {"acc_voltge": 60})["acc_voltge"]
    assert "must be ‘far_field’" in (told := faults(PAGE | {"recon_type": "fair_field"})["recon_type"]) or "far_field" in told


@pytest.mark.parametrize("name", UNDOCUMENTED)
def test_what_only_the_code_knows_is_refused_with_what_to_use(name: str) -> None:
    assert faults(PAGE | {name: 1})[name] == UNDOCUMENTED[name]


@pytest.mark.parametrize(
    ("page", "path", "told"),
    [
        ({"dataset": None}, "data_path", "there are no measurements: give data_path or dataset"),
        ({"dataset": None, "data_path": "gone.npy"}, "data_path", "no such file"),
        ({"dataset": None, "data_path": "data.pkl"}, "data_path", "a pickle may run any program"),
        ({"dataset": np.zeros((4, 4))}, "dataset", "must be .measurement, y, x."),
        ({"dataset": np.zeros((12, 16, 18))}, "dataset", "must be square"),
        ({"positions": PLACES[:5]}, "positions", "as many as the 12 measurements"),
        ({"positions": PLACES[:, :1]}, "positions", "must be real numbers"),
        ({"positions": np.full((12, 2), np.nan)}, "positions", "finite"),
        ({"beam_current": np.ones(7)}, "beam_current", "as many as the 12 measurements of dataset$"),
        ({"tilts": np.ones((7, 6))}, "tilts", "as many as the 12 measurements of dataset, or 1"),
        ({"probe_marker": np.zeros(13, int)}, "probe_marker", "as many as the 12"),
        ({"defocus_array": np.ones(3)}, "defocus_array", "as many as the 12"),
        ({"sequence": "lambda x: [0, 12] if x else None"}, "sequence", "counted from 0"),
        ({"scan_size": (3, 5), "fast_axis_reg_weight_positions": 1.0}, "scan_size", "the points of the 12 measurements"),
        ({"data_bin": 100}, "data_bin", "patterns have 16 pixels"),
        ({"data_shift_vector": [0, -16]}, "data_shift_vector", "patterns have 16 pixels"),
        ({"data_pad": 3, "upsample_pattern": 2}, "data_pad", "multiple of upsample_pattern"),
        ({"use_full_FOV": False, "sequence": "lambda x: None if x > 3 else [1]"}, "use_full_FOV", "None in epoch 4"),
    ],
)
def test_bad_parameters_are_told_as_they_were_written(page: dict[str, Any], path: str, told: str) -> None:
    import re

    given = {key: value for key, value in (PAGE | page).items() if value is not None}
    assert re.search(told, faults(given)[path])


def test_texts_of_values_are_read_and_nothing_is_executed(tmp_path: Path) -> None:
    made = read(data_shift_vector="[1, -2]", scan_size="(3, 4)", flip_ky="True", max_count="np.inf", obj="None", num_slices="3")
    p = made.engines[0].parameters
    assert p.data_shift_vector == [1, -2] and p.scan_size == [3, 4] and p.flip_ky is True and p.obj is None and p.num_slices == 3
    assert p.max_count is None or np.isinf(p.max_count)
    mark = tmp_path / "mark"
    for text in (f"[__import__('pathlib').Path({str(mark)!r}).touch()]", "(lambda: 1)()", "[open('/etc/passwd').read()]"):
        for key in ("data_shift_vector", "positions", "scan_size", "num_slices"):
            assert key in faults(PAGE | {key: text})
    assert not mark.exists()


@pytest.mark.parametrize("suffix", [".pkl", ".pickle"])
def test_a_pickled_dictionary_is_refused_with_what_to_do(suffix: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"may run any program .*\.json or \.yaml"):
        load(str(tmp_path / f"params{suffix}"))


def test_what_is_noted_of_a_dictionary_can_be_read_again() -> None:
    made = read(probe=R.normal(size=(16, 16, 1)) + 1j)
    text = json.dumps(made.given, default=lambda v: v.tolist() if isinstance(v, np.ndarray) else str(v))
    again = check(json.loads(text), "again")
    assert again.scans[0].data.parameters.array.shape == DATA.shape and len(text) < 40_000
    np.testing.assert_allclose(again.engines[0].parameters.probe, made.engines[0].parameters.probe)
    np.testing.assert_allclose(again.scans[0].data.parameters.positions_theory, made.scans[0].data.parameters.positions_theory)


def test_the_engine_takes_lengths_from_the_scan() -> None:
    p = read(pixel_size_x_A=9.0, data_pad=2).engines[0].parameters
    geometry = geometry_of(scan_of(data_pad=8, upsample_pattern=2, acc_voltage=300))
    found = standing(p, geometry)
    assert (found.pixel_size_y_A, found.pixel_size_x_A) == pytest.approx((0.3, 0.4))
    assert (found.data_pad, found.upsample_pattern, found.acc_voltage) == (8, 2, 300)
    assert found.recon_type == "far_field" and p.data_pad == 2
    assert standing(p, None) is p
