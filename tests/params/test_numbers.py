"""Numbers that are none: refused in every leaf of the tree, when it is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import numpy as np
import pytest
from pydantic import BaseModel, ValidationError

from ptystream.model.models import MODELS
from ptystream.params.base import kinds
from ptystream.params.branches import RootParameters
from ptystream.params.errors import ConfigurationError
from ptystream.params.load import load, plugins, source_parameters
from ptystream.scan.parameters import PositionsParameters, PtyScanParameters


def branches(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        for kind in kinds(field.annotation):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from branches(kind)


def leaves() -> Iterator[tuple[type[BaseModel], str, Any]]:
    """(branch, name, annotation) of everything in the tree that takes a number and no array."""
    tops = [RootParameters, *(model.Parameters for model in MODELS.values())]
    tops += [engine.Parameters for engine in plugins("engines").values()]
    tops += [source_parameters(s, c) for s in plugins("detectors").values() for c in (PtyScanParameters, PositionsParameters)]
    seen = {branch for top in tops for branch in branches(top)}
    for branch in sorted(seen, key=lambda b: f"{b.__module__}.{b.__name__}"):
        for name, field in branch.model_fields.items():
            within = kinds(field.annotation)
            if within & {int, float, complex} and np.ndarray not in within:
                yield branch, name, field.annotation


def refused(branch: type[BaseModel], name: str, value: Any) -> bool:
    made = branch.model_construct()
    try:
        branch.__pydantic_validator__.validate_assignment(made, name, value)
    except ValidationError as error:
        return any(name in item["loc"] or name in item["msg"] for item in error.errors())
    return False


def test_no_leaf_takes_a_number_that_is_not_finite() -> None:
    found = list(leaves())
    assert len(found) > 200
    for value in (float("nan"), float("inf"), -float("inf")):
        taken = [f"{b.__name__}.{n}" for b, n, _ in found if not refused(b, n, value) or not refused(b, n, [1.0, value])]
        assert taken == []


def test_no_leaf_takes_a_switch_for_a_number() -> None:
    found = [(b, n, a) for b, n, a in leaves() if bool not in (get_args(a) or (a,))]
    for value in (True, False):
        assert [f"{b.__name__}.{n}" for b, n, _ in found if not refused(b, n, value)] == []
    pairs = [(b, n) for b, n, a in found if bool not in kinds(a)]
    assert [f"{b.__name__}.{n}" for b, n in pairs if not refused(b, n, (1, True))] == []


@pytest.mark.parametrize(
    ("path", "value", "remedy"),
    [
        ("scans.s.sample.fill", float("nan"), "finite"),
        ("scans.s.sample.fill", complex(0, float("inf")), "finite"),
        ("scans.s.sample.fill", 0, "no light"),
        ("scans.s.sample.model", [[1.0, float("nan")]], "not finite"),
        ("scans.s.illumination.model", [[1.0, float("inf")]], "not finite"),
        ("scans.s.data.energy", float("inf"), "finite"),
        ("scans.s.data.energy", "inf", "finite"),
        ("scans.s.data.energy", True, "must be a number"),
        ("scans.s.data.positions_theory", [[0.0, float("nan")]], "finite"),
        ("engines.e.clip_object", [float("nan"), 1], "finite"),
        ("engines.e.clip_object", [1.2, 0.5], "lower <= upper"),
        ("engines.e.clip_object", [-1.0, -0.5], "0 <= lower"),
        ("engines.e.clip_object", [0, 0], "upper above 0"),
        ("engines.e.clip_object", [True, 2], "must be a number"),
        ("engines.e.numiter", True, "must be a number"),
    ],
)
def test_path_value_and_remedy_are_told(path: str, value: Any, remedy: str) -> None:
    given: dict[str, Any] = {
        "scans": {"s": {"name": "Full", "data": {"name": "MoonFlowerScan"}}},
        "engines": {"e": {"name": "DM"}},
    }
    inner = given
    *parts, last = path.split(".")
    for part in parts:
        inner = inner.setdefault(part, {})
    inner[last] = value
    with pytest.raises(ConfigurationError) as caught:
        load(given)
    (fault,) = caught.value.faults
    assert fault.path == path
    assert remedy in fault.remedy


def test_what_may_be_both_and_the_surroundings_of_a_model_stay_as_they_are() -> None:
    data = {"name": "MoonFlowerScan", "mask": [[True, False]], "orientation": (True, False, True), "auto_center": True}
    scan = {"name": "Full", "data": data, "sample": {"model": "flower", "fill": 0}}
    made = load({"scans": {"s": scan}, "engines": {"e": {"name": "DM", "position_refinement": True}}})
    assert made.scans[0].parameters.sample.fill == 0
    assert made.scans[0].data.parameters.operations() == (True, False, True)
    assert made.engines[0].parameters.position_refinement.active
