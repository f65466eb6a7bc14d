"""The command line's small commands, in process where nothing is started."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ptystream.cli.app import app

RUN = CliRunner()
GOOD = """
scans:
  s: {name: Full, data: {name: ZmqScan, address: "tcp://127.0.0.1:9", shape: 64}}
engines:
  e: {name: DM, numiter: 5}
"""


def test_params_prints_one_json_entry_per_path() -> None:
    done = RUN.invoke(app, ["params", "--json"])
    entries = json.loads(done.stdout)
    paths = [entry["path"] for entry in entries]
    assert len(paths) == len(set(paths)) > 100
    assert all(entry["doc"] for entry in entries)


def test_an_unknown_parameter_path_names_the_closest() -> None:
    done = RUN.invoke(app, ["params", "engine.DM.numitr"])
    assert done.exit_code == 2
    assert "engine.DM.numiter" in done.stdout


def test_check_says_that_nobody_answers_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(GOOD)
    done = RUN.invoke(app, ["check", str(tmp_path / "a.yaml")])
    assert done.exit_code == 1
    assert "start the sender" in done.stdout


def test_a_wrong_file_gives_every_fault_and_exit_status_2(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.yaml").write_text(GOOD.replace("numiter: 5", "numiter: 0, alpa: 1").replace("name: Full", "name: Ful"))
    done = RUN.invoke(app, ["live", str(tmp_path / "a.yaml")])
    said = done.output + capfd.readouterr().err
    assert done.exit_code == 2
    assert "engines.e.numiter: 0" in said
    assert "did you mean 'alpha'" in said
    assert "did you mean 'Full'" in said
