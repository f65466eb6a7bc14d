"""ptypy's own parameter files: what they say is taken, what they cannot have here is told."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from ptystream.params.branches import IoParameters
from ptystream.params.errors import ConfigurationError
from ptystream.params.load import load, plugins, tree_of
from ptystream.params.ptypy_files import LOADERS, MAX_BASES, SUFFIXES, engine_name
from ptystream.scan.parameters import PtyScanParameters

FILES = Path(__file__).parent / "files"


def given(name: str) -> dict[str, Any]:
    """The tree of a file; a source or a branch that this version does not have yet gives way to one that it has."""
    tree = copy.deepcopy(tree_of(FILES / name))
    for scan in tree["scans"].values():
        if "data" in scan and scan["data"]["name"] not in plugins("detectors"):
            scan["data"] = {"name": "ZmqScan", "shape": scan["data"]["shape"], "num_frames": scan["data"]["num_frames"]}
    for scan in tree["scans"].values():
        if "save" not in PtyScanParameters.model_fields:
            scan.get("data", {}).pop("save", None)
    if "autosave" not in IoParameters.model_fields:
        del tree["io"]["autosave"]
    return tree


def test_a_json_file_is_taken_as_it_stands(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="ptystream"):
        loaded = load(given("moonflower.json"), name="moonflower")
    assert loaded.name == "moonflower"
    assert [(e.label, e.name, e.parameters.numiter) for e in loaded.engines] == [("engine00", "DM", 80), ("engine10", "DM", 20)]
    assert loaded.engines[0].parameters.clip_object == (0.0, 1.5)
    assert isinstance(loaded.engines[0].parameters.alpha, float)
    assert loaded.engines[0].parameters.probe_support is None
    assert [s.label for s in loaded.scans] == ["MF"]
    assert loaded.scans[0].parameters.coherence.num_probe_modes == 2
    assert loaded.scans[0].data.parameters.num_frames == 200
    plot = loaded.root.io.autoplot
    assert (plot.interval, plot.threaded, plot.layout, plot.dump) == (10, False, "jupyter", True)
    assert loaded.root.io.benchmark == "all"
    for told in ("engines.engine00.fft_lib", "engines.engine00.probe_update_cuda_atomics", "DM_pycuda is the same engine as DM"):
        assert told in caplog.text


def test_tuning_of_accelerated_stochastic_engines_is_accepted(caplog: pytest.LogCaptureFixture) -> None:
    engine = {"name": "EPIE_serial", "compute_exit_error": True, "compute_fourier_error": False}
    with caplog.at_level(logging.INFO, logger="ptystream"):
        loaded = load({"scans": {"s": {"name": "Full", "data": {"name": "ZmqScan"}}}, "engines": {"e": engine}})
    assert loaded.engines[0].name == "EPIE"
    assert "e.compute_exit_error: accepted" in caplog.text and "e.compute_fourier_error: accepted" in caplog.text


def test_a_yaml_file_of_gpu_streams_and_two_scans(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="ptystream"):
        loaded = load(given("gpu.yaml"))
    assert [(e.label, e.name) for e in loaded.engines] == [("first", "DM"), ("second", "DM")]
    assert [s.label for s in loaded.scans] == ["upper", "lower"]
    assert all(s.data.parameters.shape == (64, 64) for s in loaded.scans)
    assert (loaded.root.frames_per_block, loaded.root.min_frames_for_recon) == (2000, 50)
    assert loaded.root.io.interaction.active


def test_a_file_of_ptypy_run_lies_on_its_base_file() -> None:
    loaded = load(given("sweep.json"))
    assert (loaded.name, loaded.root.io.home) == ("sweep_03", "/tmp/sweep")
    assert loaded.scans[0].parameters.coherence.num_probe_modes == 3
    assert [e.parameters.numiter for e in loaded.engines] == [12, 20]
    assert loaded.root.io.autoplot.layout == "jupyter"  # of the base file


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ({"base_file": "loop.json", "parameter_tree": {}}, f"more than {MAX_BASES} files"),
        ({"base_file": 3}, "must be the name of a file"),
        ({"parameter_tree": [1]}, "must be a mapping"),
        ({"base_file": "nowhere.json", "parameter_tree": {}}, "cannot be read"),
        ({"parameter_tree": {}, "engines": {}}, "inside `parameter_tree`"),
    ],
)
def test_files_on_files_that_cannot_be_are_told(tmp_path: Path, text: dict[str, Any], remedy: str) -> None:
    (tmp_path / "loop.json").write_text(json.dumps(text))
    with pytest.raises(ConfigurationError, match=remedy):
        load(tmp_path / "loop.json")


def test_a_base_file_is_looked_for_beside_the_file_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "base.yaml").write_text("run: base\nverbose_level: 3\n")
    (tmp_path / "a" / "top.json").write_text(json.dumps({"base_file": "base.yaml", "parameter_tree": {"run": "top"}}))
    assert tree_of(tmp_path / "a" / "top.json") == {"run": "top", "verbose_level": 3}


@pytest.mark.parametrize("ending", [*SUFFIXES, "_pycuda_stream", "_cupy_nostream", "_serial_stream"])
def test_an_ending_of_an_accelerated_engine_is_none_of_its_name(ending: str) -> None:
    assert engine_name("RAAR" + ending) == "RAAR"
    assert engine_name("DM_3dBragg" + ending) == "DM_3dBragg"


@pytest.mark.parametrize("loader", [*LOADERS, "NanomaxEigerScanMay2031"])
def test_a_loader_that_is_not_here_is_refused_with_what_to_use(loader: str) -> None:
    tree = given("moonflower.json")
    tree["scans"]["MF"]["data"] = {"name": loader, "shape": 128, "anything": "of its own"}
    with pytest.raises(ConfigurationError) as caught:
        load(tree)
    (fault,) = caught.value.faults
    assert fault.path == "scans.MF.data.name"
    assert "Sender" in fault.remedy
    assert "ZmqScan" in fault.remedy
    assert loader not in plugins("detectors")


def test_a_branch_that_is_misspelled_is_told() -> None:
    tree = given("moonflower.json")
    tree["io"]["interactoin"] = {}
    with pytest.raises(ConfigurationError) as caught:
        load(tree)
    assert [fault.path for fault in caught.value.faults] == ["io.interactoin"]
