"""Configurations: everything that is wrong at once, by path, value and remedy; and what is accepted as it stands."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import yaml

from ptystream.params.errors import ConfigurationError
from ptystream.params.load import MAX_FILE_BYTES, load, plugins, read


def sound() -> dict[str, Any]:
    source = {"name": "ZmqScan", "address": "tcp://127.0.0.1:5570"}
    return {
        "run": "r",
        "scans": {"s": {"name": "Full", "data": {**source, "shape": 32, "positions": {**source, "unit": "px"}}}},
        "engines": {"b": {"name": "DM", "numiter": 7}, "a": {"name": "DM"}},
    }


def put(given: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    inner = given
    *branches, last = path.split(".")
    for key in branches:
        inner = inner.setdefault(key, {})
    inner[last] = value
    return given


def faults(given: Mapping[str, Any]) -> dict[str, str]:
    """Path → value and remedy as they are printed."""
    with pytest.raises(ConfigurationError) as caught:
        load(given)
    return {fault.path: str(fault) for fault in caught.value.faults}


def test_a_sound_configuration_is_taken_with_its_defaults() -> None:
    loaded = load(sound())
    assert loaded.name == "r"
    assert [(e.label, e.parameters.numiter) for e in loaded.engines] == [("a", 20), ("b", 7)]
    assert loaded.engines[0].parameters.probe_support == 0.7
    assert loaded.scans[0].parameters.coherence.num_probe_modes == 1
    assert loaded.scans[0].positions is not None
    assert loaded.scans[0].positions.parameters.unit == "px"


def test_all_that_is_wrong_is_told_at_once() -> None:
    given = sound()
    put(given, "frames_per_blok", 5)
    put(given, "verbose_level", 9)
    put(given, "io.publish.adress", "x")
    put(given, "scans.s.data.shape", "big")
    put(given, "scans.s.data.positions.unit", "inch")
    put(given, "engines.a.numiter", 0)
    put(given, "engines.a.subpix", "cubic")
    put(given, "engines.c", {"name": "DMM"})
    told = faults(given)
    assert set(told) == {
        "frames_per_blok",
        "verbose_level",
        "io.publish.adress",
        "scans.s.data.shape",
        "scans.s.data.positions.unit",
        "engines.a.numiter",
        "engines.a.subpix",
        "engines.c.name",
    }
    assert "5: unknown parameter; did you mean 'frames_per_block'?" in told["frames_per_blok"]
    assert "did you mean 'address'?" in told["io.publish.adress"]
    assert "0: should be greater than or equal to 1" in told["engines.a.numiter"]
    assert "'cubic'" in told["engines.a.subpix"]
    assert "linear" in told["engines.a.subpix"]
    assert "did you mean 'DM'?" in told["engines.c.name"]
    assert "CRITICAL" in told["verbose_level"] or "0 to 5" in told["verbose_level"]


@pytest.mark.parametrize(
    ("path", "value", "remedy"),
    [
        ("scans", None, "at least one entry"),
        ("scans", [1], "mapping of labels"),
        ("scans.s", 3, "must be a mapping"),
        ("scans.s.name", "Fulll", "did you mean 'Full'"),
        ("scans.s.data", None, "`name` of a source"),
        ("scans.s.data.name", "Zmq", "no such source"),
        ("scans.s.data.positions", {"unit": "px"}, "`name` of a source"),
        ("scans.s.coherence.num_probe_modes", -1, "greater than or equal to 0"),
        ("engines", {}, "at least one entry"),
        ("engines.a.probe_support", -1, "greater than or equal to 0"),
        ("engines.a.clip_object", [1.0], "field required"),
        ("device", "tpu", "'gpu'"),
    ],
)
def test_each_fault_names_path_value_and_remedy(path: str, value: Any, remedy: str) -> None:
    told = faults(put(sound(), path, value))
    found = [text for where, text in told.items() if where.startswith(path)]
    assert found, told
    assert remedy.lower() in found[0].lower()


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".h5"])
def test_arrays_are_read_from_files_while_the_configuration_is_checked(tmp_path: Path, suffix: str) -> None:
    mask = np.random.default_rng(0).integers(0, 2, (32, 32))
    name = str(tmp_path / f"mask{suffix}")
    if suffix == ".npy":
        np.save(name, mask)
    elif suffix == ".npz":
        np.savez(name, m=mask)
        name += ":m"
    else:
        with h5py.File(name, "w") as file:
            file["entry/m"] = mask
        name += ":/entry/m"
    loaded = load(put(sound(), "scans.s.data.mask", name))
    np.testing.assert_array_equal(loaded.scans[0].data.parameters.mask, mask)
    assert loaded.given["scans"]["s"]["data"]["mask"] == name


def test_every_array_that_cannot_be_meant_is_told_before_anything_starts(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    np.save(tmp_path / "line.npy", np.zeros(7))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["entry/text"] = "no numbers"
    (tmp_path / "torn.npz").write_bytes(b"PK\3\4 and no more")
    wrong = {
        "scans.s.data.mask": ("nowhere.npy", "No such file"),
        "scans.s.data.dark": ([[1, 2], [3]], "inhomogeneous"),
        "scans.s.data.flat": (f"{tmp_path}/line.npy", "must be real numbers (y, x)"),
        "scans.s.data.positions_theory": ([[1, 2, 3]], "must be (frame, 2)"),
        "scans.s.illumination.model": (f"{tmp_path}/a.h5:/entry", "is a group"),
        "scans.s.sample.model": (f"{tmp_path}/objects.npy", "Python objects"),
    }
    more = {
        "scans.s.data.mask": ("mask.tif", "the ending '.tif' is not known"),
        "scans.s.data.dark": (f"{tmp_path}/a.h5:/entry/text", "not numbers"),
        "scans.s.data.flat": (f"{tmp_path}/torn.npz:a", "is no array"),
        "scans.s.illumination.model": (f"{tmp_path}/a.h5:/nothing", ".h5:/dataset"),
        "scans.s.sample.model": ("recom", ".h5:/dataset"),
    }
    for cases in (wrong, more):
        given = sound()
        for path, (value, _) in cases.items():
            put(given, path, value)
        told = faults(given)
        assert told.keys() == cases.keys()
        for path, (value, remedy) in cases.items():
            assert told[path].startswith(f"{path}: {value!r}"[:70])
            assert remedy in told[path]


def test_entries_without_a_name_are_templates() -> None:
    loaded = load(put(sound(), "engines.shared", {"numiter": "never looked at"}))
    assert [e.label for e in loaded.engines] == ["a", "b"]


@pytest.mark.parametrize("suffix", ["", "_serial", "_pycuda", "_cupy", "_pycuda_stream", "_cupy_stream"])
def test_ptypys_engine_names_are_aliases(suffix: str, caplog: pytest.LogCaptureFixture) -> None:
    given = put(put(sound(), "engines.a.name", "DM" + suffix), "engines.a.fft_lib", "reikna")
    with caplog.at_level(logging.INFO, logger="ptystream"):
        engine = load(given).engines[0]
    assert engine.name == "DM"
    assert "engines.a.fft_lib: accepted, not needed here" in caplog.text
    assert ("the same engine as DM" in caplog.text) == bool(suffix)


def test_none_leaves_a_parameter_as_it_is_where_none_has_no_meaning() -> None:
    loaded = load(put(put(sound(), "engines.a.numiter", None), "engines.a.probe_support", None))
    assert loaded.engines[0].parameters.numiter == 20
    assert loaded.engines[0].parameters.probe_support is None


def test_the_command_line_overrules_and_nothing_overrules_nothing() -> None:
    given = put(sound(), "device", "cpu")
    assert load(given, {"device": "gpu"}).root.device == "gpu"
    assert load(given, {"device": None}).root.device == "cpu"
    assert given["device"] == "cpu"
    with pytest.raises(ConfigurationError, match="device: 'tpu'"):
        load(given, {"device": "tpu"})


@pytest.mark.parametrize("suffix", [".yaml", ".yml", ".json", ".toml"])
def test_every_kind_of_file_gives_the_same(tmp_path: Path, suffix: str) -> None:
    given = {k: v for k, v in sound().items() if k != "run"}
    path = tmp_path / f"beamtime{suffix}"
    if suffix == ".toml":
        lines = [
            "[scans.s]",
            'name = "Full"',
            "[scans.s.data]",
            'name = "ZmqScan"',
            'address = "tcp://127.0.0.1:5570"',
            "shape = 32",
        ]
        lines += ["[scans.s.data.positions]", 'name = "ZmqScan"', 'address = "tcp://127.0.0.1:5570"', 'unit = "px"']
        lines += ["[engines.a]", 'name = "DM"', "[engines.b]", 'name = "DM"', "numiter = 7"]
        path.write_text("\n".join(lines))
    else:
        path.write_text(json.dumps(given) if suffix == ".json" else yaml.safe_dump(given))
    loaded = load(path)
    assert loaded.name == "beamtime"
    assert loaded.given == given


@pytest.mark.parametrize(
    ("name", "text", "remedy"),
    [
        ("a.ini", "", "must end in .yaml, .yml, .json, .toml"),
        ("a.yaml", "a: [", "cannot be read"),
        ("a.yaml", "!!python/object/apply:os.system [echo]", "cannot be read"),
        ("a.yaml", "- 1", "must be a mapping at the top level"),
        ("a.json", "{", "cannot be read"),
        ("a.toml", "a = ", "cannot be read"),
        ("a.yaml", None, "cannot be read"),
    ],
)
def test_a_file_that_is_none_is_told(tmp_path: Path, name: str, text: str | None, remedy: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigurationError, match=remedy):
        read(tmp_path / name)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.yaml").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(ConfigurationError, match="larger than"):
        read(tmp_path / "a.yaml")


def test_plugins_are_found_by_their_entry_points() -> None:
    assert {"DM"} <= set(plugins("engines"))
    assert {"ZmqScan"} <= set(plugins("detectors"))
    assert {"web", "figure"} <= set(plugins("viewers"))
