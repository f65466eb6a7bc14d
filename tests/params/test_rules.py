"""ptypy's rules for values, and the parameters at the root of the tree that say how a session behaves."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import zmq.auth
from beginnings import result

from ptystream import launch
from ptystream.params import autoplot
from ptystream.params.autoplot import AutoplotParameters
from ptystream.params.errors import ConfigurationError
from ptystream.params.load import Configuration, load
from ptystream.params.patterns import fill
from ptystream.plan import models_of
from ptystream.verbosity import CITATION, INSPECT, INTERACTIVE, level


def configured(**root: Any) -> Configuration:
    data = {"name": "ZmqScan", "shape": 32} | root.pop("data", {})
    engine, scan = {"name": "DM"} | root.pop("engine", {}), root.pop("scan", {})
    return load({"scans": {"s": {"name": "Full", "data": data, **scan}}, "engines": {"e": engine}, **root})


@pytest.mark.parametrize(
    ("value", "number"),
    [
        *((k, n) for k, n in enumerate((50, 40, 30, 20, INSPECT, 10))),
        ("CRITICAL", 50),
        ("Citation", CITATION),
        ("error", 40),
        ("INTERACTIVE", INTERACTIVE),
        ("warning", 30),
        (" info ", 20),
        ("inspect", 15),
        ("DEBUG", 10),
        ("3", 20),
    ],
)
def test_levels_have_ptypys_numbers_and_names(value: str | int, number: int) -> None:
    assert level(value) == number
    assert level(configured(verbose_level=value).root.verbose_level) == number
    assert logging.getLevelName(INSPECT) == "INSPECT"


@pytest.mark.parametrize("value", [6, -1, "LOUD", "", 2.5, [1]])
def test_a_level_that_is_none_is_told(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="verbose_level"):
        configured(verbose_level=value)


@pytest.mark.parametrize("value", ["a/b", "", "  ", "..", "a\0b"])
def test_a_run_has_a_name_that_a_file_can_have(value: str) -> None:
    with pytest.raises(ConfigurationError, match="run: "):
        configured(run=value)
    assert configured(run="a b.2").name == "a b.2"


@pytest.mark.parametrize(
    ("engine", "wanted"),
    [
        ({"clip_object": [0, 2]}, ("clip_object", (0.0, 2.0))),  # a list for a tuple, whole numbers for others
        ({"clip_object": (0.5, 2.0)}, ("clip_object", (0.5, 2.0))),
        ({"alpha": 1}, ("alpha", 1.0)),
        ({"numiter": None}, ("numiter", 20)),  # None: not given
        ({"alpha": None}, ("alpha", 1.0)),
        ({"probe_inertia": "1e-9"}, ("probe_inertia", 1e-9)),  # as YAML reads a number without a point
        ({"overlap_converge_factor": 0}, ("overlap_converge_factor", 0.0)),  # limits are inclusive
    ],
)
def test_values_are_taken_as_ptypy_takes_them(engine: dict[str, Any], wanted: tuple[str, Any]) -> None:
    value = getattr(configured(engine=engine).engines[0].parameters, wanted[0])
    assert value == wanted[1]
    assert type(value) is type(wanted[1])


@pytest.mark.parametrize(
    "root",
    [
        {"engine": {"numiter": 2.5}},
        {"engine": {"numiter": "many"}},
        {"engine": {"numiter": 0}},
        {"engine": {"subpix": "cubic"}},
        {"engine": {"clip_object": [0, 1, 2]}},
        {"engine": {"numitr": 3}},
        {"data_type": "half"},
        {"frames_per_block": 0},
        {"dry_run": "perhaps"},
        {"ipython_kernel": 3},
        {"io": {"benchmark": "some"}},
        {"io": {"autoplot": {"layout": "fancy"}}},
        {"io": {"autoplot": {"interval": -2}}},
        {"io": {"autoplot": {"imfile": "a.bmp2"}}},
        {"io": {"autoplot": {"imfile": "a_%(iterationz)d.png"}}},
        {"io": {"autoplot": {"imfile": "a.svg", "make_movie": True}}},
        {"io": {"rfile": "%(run)q"}},
        {"io": {"rfile": "../%(run)s.ptyr"}},
        {"io": {"rfile": "a/../../%(run)s.ptyr"}},
        {"io": {"autosave": {"rfile": ".."}}},
        {"io": {"autoplot": {"imfile": "../a.png"}}},
        {"io": {"recording": {"file": "../%(run)s.ptyrec"}}},
        {"io": {"frames": {"file": "../%(epoch)s.h5"}}},
        {"io": {"recording": {"file": "%(name)s"}}},
    ],
)
def test_everything_else_is_an_error(root: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        configured(**root)
    assert len(caught.value.faults) == 1


@pytest.mark.parametrize("key", ["series", "angle", "engine", "iterations", "nonsense"])
def test_a_recording_cannot_be_named_by_what_is_known_later(key: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"recording\.file.*{key}\)s.*%\(run\)s is the only key"):
        configured(io={"recording": {"file": f"r/%(run)s_%({key})s.ptyrec"}})
    configured(io={"recording": {"file": "r/%(run)s_100%%.ptyrec"}})


def test_the_layouts_that_are_named_are_those_that_are_drawn() -> None:
    from ptystream.viewers.layouts import LAYOUTS

    choices = get_args(AutoplotParameters.model_fields["layout"].annotation)
    assert set(choices) == set(autoplot.LAYOUTS) == set(LAYOUTS)


def test_names_of_files_hold_the_state_of_the_run() -> None:
    pattern = "%(run)s_%(engine)s_%(iteration)d_%(iterations)04d_%(numiter)d_%(duration).1f_%(error).2f"
    info = {"engine": "DM", "iteration": 3, "iterations": 13, "numiter": 20, "duration": 0.25, "error": np.array([1.5, 2, 3])}
    assert fill(pattern, "r", info) == "r_DM_3_0013_20_0.2_1.50"
    assert fill(pattern, "r") == "r_None_0_0000_0_0.0_0.00"
    assert fill("%(run)s", "r", {"run": "another"}) == "r"
    with pytest.raises(ValueError, match="known are"):
        fill("%(runn)s", "r")
    with pytest.raises(ValueError, match="file name"):
        fill("%(iterations)09999d", "r")


def test_relative_names_of_arrays_are_looked_for_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "beamtime").mkdir()
    mask = np.random.default_rng(0).integers(0, 2, (32, 32))
    np.save(tmp_path / "beamtime" / "mask.npy", mask)
    loaded = configured(io={"home": "beamtime"}, data={"mask": "mask.npy"})
    np.testing.assert_array_equal(loaded.scans[0].data.parameters.mask, mask)
    with pytest.raises(ConfigurationError, match="No such file"):
        configured(data={"mask": "mask.npy"})
    absolute = configured(io={"home": "elsewhere"}, data={"mask": str(tmp_path / "beamtime" / "mask.npy")})
    np.testing.assert_array_equal(absolute.scans[0].data.parameters.mask, mask)


@pytest.mark.parametrize("kind", ["illumination", "sample"])
def test_earlier_results_are_looked_for_at_home(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "beamtime").mkdir()
    result(tmp_path / "beamtime" / "earlier.ptyr", None, ("SsG00",))
    for given in ("earlier.ptyr", {"model": "recon", "recon": {"rfile": "earlier.ptyr"}}):
        loaded = configured(io={"home": "beamtime"}, scan={kind: given})
        models_of(loaded)  # reads it
        assert getattr(loaded.scans[0].parameters, kind).recon.rfile == str(tmp_path / "beamtime" / "earlier.ptyr")
        with pytest.raises(ConfigurationError, match="cannot be read"):
            configured(scan={kind: given})


def test_certificates_are_looked_for_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "beamtime").mkdir()
    public, secret = zmq.auth.create_certificates(tmp_path / "beamtime", "session")
    keys = {"keys": "session.key_secret", "peer_keys": "session.key"}
    loaded = configured(io={"home": "beamtime", "publish": keys}, data=keys)
    held = loaded.scans[0].data.parameters
    assert (held.keys, held.peer_keys) == (str(secret), str(public))
    taken: dict[str, Any] = {}
    monkeypatch.setattr(launch, "Publisher", lambda address, **given: taken.update(given))
    launch._publisher(loaded.root.io.publish, loaded.root.io.home)
    assert (taken["keys"], taken["peer_keys"]) == (str(secret), str(public))
