"""Parameters as scripts nest them: attributes, namespaces, dataclasses, NumPy's numbers."""

from __future__ import annotations

import argparse
import copy
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ptystream import Param
from ptystream.params.errors import ConfigurationError
from ptystream.params.load import load
from ptystream.params.plain import merged, plain


def test_attributes_make_the_branches_on_their_way() -> None:
    p = Param()
    p.scans.MF.data.name = "ZmqScan"
    p.engines["e"] = Param(name="DM", numiter=3)
    assert p == {"scans": {"MF": {"data": {"name": "ZmqScan"}}}, "engines": {"e": {"name": "DM", "numiter": 3}}}
    assert p.engines.e.numiter == 3
    del p.engines.e.numiter
    assert "numiter" not in p["engines"]["e"]
    with pytest.raises(AttributeError):
        del p.engines.e.numiter
    with pytest.raises(AttributeError):
        p._repr_html_  # noqa: B018  (what notebooks look for is no branch)
    assert {"scans", "engines", "update"} <= set(dir(p))
    assert copy.deepcopy(p) == pickle.loads(pickle.dumps(p)) == p


def test_update_goes_as_deep_as_it_is_told() -> None:
    base = Param(a=Param(b=Param(c=1, d=2), e=3))
    flat, deep, half = base.copy(9), base.copy(9), base.copy(9)
    flat.update({"a": {"b": {"c": 5}}})
    assert flat == {"a": {"b": {"c": 5}}}
    half.update({"a": {"b": {"c": 5}}}, in_place_depth=1)
    assert half == {"a": {"b": {"c": 5}, "e": 3}}
    deep.update({"a": {"b": {"c": 5}}}, in_place_depth=9)
    assert deep == {"a": {"b": {"c": 5, "d": 2}, "e": 3}}
    assert base.a.b == {"c": 1, "d": 2}  # copies so deep share nothing
    base.copy().a.b.c = 7
    assert base.a.b.c == 7  # a flat one does
    base.update(x={"y": 1}, Convert=True)
    assert isinstance(base["x"], Param)
    base.update(x={"y": {"z": 2}})
    base.x.y.z += 1
    assert base == {"a": base.a, "x": {"y": {"z": 3}}}


@dataclass
class Data:
    name: str = "ZmqScan"
    shape: Any = field(default_factory=lambda: np.int64(32))


class Aperture:
    """A class of a script."""

    def __init__(self) -> None:
        self.size = np.float32(0.5)
        self._hidden = "no parameter"


def test_every_kind_of_branch_becomes_a_dict_and_leaves_stay() -> None:
    array, path = np.zeros((2, 2)), Path("a")
    given = SimpleNamespace(scans=argparse.Namespace(s={"data": Data(), "aperture": Aperture()}), array=array, f=len, path=path)
    made = plain(given)
    assert made["scans"]["s"] == {"data": {"name": "ZmqScan", "shape": 32}, "aperture": {"size": 0.5}}
    assert type(made["scans"]["s"]["data"]["shape"]) is int
    assert type(made["scans"]["s"]["aperture"]["size"]) is float
    assert made["array"] is array
    assert made["f"] is len
    assert made["path"] is path


def test_a_branch_that_was_only_looked_at_is_not_given() -> None:
    p = Param(a=1)
    assert not p.io.autoplot.layout
    assert plain(p) == {"a": 1, "io": {"autoplot": {}}} or plain(p) == {"a": 1}
    assert "layout" not in str(plain(p))


def test_a_branch_that_contains_itself_is_told() -> None:
    p = Param()
    p.io.home = p
    with pytest.raises(ConfigurationError, match="nested deeper"):
        plain(p)


def test_a_namespace_is_loaded_like_a_dict() -> None:
    p = Param(run="n")
    p.scans.s.name = "Full"
    p.scans.s.data = Data()
    p.scans.s.data.center = np.array([16, 15.5])
    p.engines.e = SimpleNamespace(name="DM", numiter=np.int32(4), clip_object=np.array([0, 2]))
    loaded = load(p)
    assert loaded.scans[0].data.parameters.shape == 32
    assert loaded.engines[0].parameters.numiter == 4
    assert loaded.engines[0].parameters.clip_object == (0.0, 2.0)


@pytest.mark.parametrize("given", [3, [1], None, object()])
def test_what_is_no_tree_is_told(given: Any) -> None:
    with pytest.raises(ConfigurationError, match="file name, a mapping or a namespace"):
        load(given)


def test_merging_goes_branch_by_branch_and_changes_neither() -> None:
    base, over = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"c": 5}, "d": {"e": 1}, "f": None}
    assert merged(base, over) == {"a": {"b": 1, "c": 5}, "d": {"e": 1}, "f": None}
    assert base == {"a": {"b": 1, "c": 2}, "d": 3}
