"""Declarations agree with the seeds, and refuse what cannot be meant."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from pydantic import ValidationError

from ptystream.params.base import Branch
from ptystream.params.load import plugins
from ptystream.scan.parameters import ChannelsParameters, PositionsParameters, PtyScanParameters, load_array

SEEDS = Path(__file__).parents[3] / "shared/seeds/ptypy-parameters.json"


def test_defaults_are_those_of_the_seeds() -> None:
    if not SEEDS.exists():
        pytest.skip(f"{SEEDS} is not here")
    declared = PtyScanParameters()
    prefix = "scandata.PtyScan."
    seeds = {e["path"].removeprefix(prefix): e for e in json.loads(SEEDS.read_text()) if e["path"].startswith(prefix)}
    for name, field in PtyScanParameters.model_fields.items():
        assert (field.description or "").strip(), name
        if name in seeds:
            assert getattr(declared, name) == ast.literal_eval(seeds[name]["default"]), name
        else:
            ours = isinstance(getattr(declared, name), Branch) or field.json_schema_extra["ours"]  # type: ignore[index]
            assert ours, f"{name} is neither in the seeds nor marked as ours"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rebin": 33}, "less than or equal to 32"),
        ({"rebin": 3, "shape": 128}, "rebin: 3 does not divide shape 128; shape 126 would"),
        ({"psize": 0.0}, "above 0"),
        ({"psize": (1e-4, -1e-4)}, "above 0"),
        ({"orientation": 8}, "0 to 7"),
        ({"shape": 0}, "1 or more"),
        ({"num_frames": 0}, "1 or more"),
        ({"counts_per_photon": 0.0}, "above 0"),
        ({"center": "middle"}, "fftshift"),
        ({"centre": "fft"}, "Extra inputs"),
    ],
)
def test_impossible_frame_parameters_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PtyScanParameters(**settings)


def test_impossible_position_parameters_are_refused() -> None:
    with pytest.raises(ValidationError, match="determinant"):
        PositionsParameters(matrix=((1.0, 2.0), (2.0, 4.0)))
    with pytest.raises(ValidationError, match="name both"):
        ChannelsParameters(y="sy", x=None)
    with pytest.raises(ValidationError, match="no channel"):
        ChannelsParameters(y=None, x=None)


@pytest.mark.parametrize(
    ("code", "triple"), [(None, (0, 0, 0)), (1, (0, 0, 1)), (2, (0, 1, 0)), (6, (1, 1, 0)), ((True, False, True), (1, 0, 1))]
)
def test_orientation_codes_mean_transpose_flipud_fliplr(code: Any, triple: tuple[int, int, int]) -> None:
    assert PtyScanParameters(orientation=code).operations() == tuple(map(bool, triple))


def test_the_sample_pixel_is_wavelength_times_distance_over_the_detector_width() -> None:
    pixel = PtyScanParameters(energy=6.2, distance=2.0, psize=(1e-4, 2e-4), shape=100).pixel_m()
    assert pixel == pytest.approx((1.23984193e-9 / 6.2 * 2.0 / 1e-2, 1.23984193e-9 / 6.2 * 2.0 / 2e-2))
    assert PtyScanParameters(energy=None).pixel_m() is None


def test_arrays_come_from_lists_and_files(tmp_path: Path) -> None:
    array = np.arange(6.0).reshape(2, 3)
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "a.npz", dark=array)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["entry/dark"] = array
    for value in (array, array.tolist(), "a.npy", "a.npz:dark", "a.h5:/entry/dark"):
        given = str(tmp_path / value) if isinstance(value, str) else value
        np.testing.assert_array_equal(load_array(given, "data.dark"), array)
    assert load_array(None, "data.dark") is None


@pytest.mark.parametrize("value", ["none.npy", "a.npz:other", "a.txt", "p.npy"])
def test_unreadable_files_are_named_with_their_parameter(tmp_path: Path, value: str) -> None:
    np.savez(tmp_path / "a.npz", dark=np.zeros(3))
    np.save(tmp_path / "p.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"data\.dark: '.*"):
        load_array(str(tmp_path / value), "data.dark")


def test_no_source_hides_a_parameter_that_all_have() -> None:
    for name, plugin in plugins("detectors").items():
        both = set(plugin.Parameters.model_fields) & set(PtyScanParameters.model_fields)
        assert issubclass(plugin.Parameters, PtyScanParameters) or both <= {"name"}, f"{name}: {sorted(both)}"
