"""The reference is generated from the declarations, and these are the seeds'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ptystream.params.reference import entries

SEEDS = Path(__file__).parents[3] / "shared" / "seeds"
KEYS = {"path", "types", "default", "lower", "upper", "choices", "doc"}


@pytest.fixture(scope="module")
def reference() -> dict[str, dict[str, Any]]:
    return {entry["path"]: entry for entry in entries()}


def test_every_entry_is_whole_and_can_be_written(reference: dict[str, dict[str, Any]]) -> None:
    assert len(reference) == len(entries())
    for path, entry in reference.items():
        assert set(entry) == KEYS, path
        assert entry["types"], path
        assert entry["doc"], f"{path} has no text"
    json.dumps(list(reference.values()))


def test_limits_choices_and_texts_come_from_the_declarations(reference: dict[str, dict[str, Any]]) -> None:
    numiter = reference["engine.DM.numiter"]
    assert (numiter["types"], numiter["default"], numiter["lower"], numiter["upper"]) == (["int"], 20, 1, None)
    assert numiter["doc"].startswith("Total number of iterations")
    subpix = reference["engine.DM.subpix"]
    assert set(subpix["choices"]) == {"linear", "fourier"}
    assert subpix["default"] == "linear"
    assert "NoneType" in subpix["types"]
    assert reference["ptycho.io"]["types"] == ["Param"]


def test_a_source_has_its_own_parameters_and_those_of_every_scan(reference: dict[str, dict[str, Any]]) -> None:
    assert "scandata.ZmqScan.address" in reference
    assert "scandata.ZmqScan.psize" in reference
    assert "scandata.ZmqScan.positions.unit" in reference
    assert reference["scandata.ZmqScan.psize"]["default"] == reference["scandata.PtyScan.psize"]["default"]


def test_defaults_and_limits_are_those_of_the_seeds(reference: dict[str, dict[str, Any]]) -> None:
    file = SEEDS / "ptypy-parameters.json"
    if not file.exists():
        pytest.skip("the seed documents are not here")
    seeds = {f"{entry['path']}": entry for entry in json.loads(file.read_text())}
    names = {path: path.removeprefix("ptycho.") for path in reference}
    shared = [path for path in reference if names[path] in seeds and "Param" not in reference[path]["types"]]
    assert len(shared) > 80
    for path in shared:
        bounds = seeds[names[path]]["bounds"] or ""
        for sign, key in ((">", "lower"), ("<", "upper")):
            wanted = [float(part.strip()[1:]) for part in bounds.split(",") if part.strip().startswith(sign)]
            assert reference[path][key] == (wanted[0] if wanted else None), (path, key)


def test_what_may_stand_in_the_place_of_a_branch_is_what_the_seeds_say(reference: dict[str, dict[str, Any]]) -> None:
    file = SEEDS / "ptypy-parameters.json"
    if not file.exists():
        pytest.skip("the seed documents are not here")
    seeds = {entry["path"]: set(entry["types"]) for entry in json.loads(file.read_text())}
    here = {path.removeprefix("ptycho."): set(entry["types"]) for path, entry in reference.items()}
    several = {path: kinds for path, kinds in seeds.items() if "Param" in kinds and len(kinds) > 1 and path in here}
    assert len(several) > 30
    assert {path: kinds - here[path] for path, kinds in several.items() if not kinds <= here[path]} == {}
