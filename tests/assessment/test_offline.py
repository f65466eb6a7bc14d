"""`ptystream check CONFIG --convention RECORDING`: what it prints is what to write in the configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_ptycho import parameters, sources
from typer.testing import CliRunner

from ptystream import Ptycho
from ptystream.cli.app import app


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recorded")
    Ptycho(parameters(folder, e={"numiter": 1}), transports=sources()).run()
    return folder / "recordings" / "t.ptyrec"


def asked(folder: Path, recording: Path, *more: str, **data: Any) -> tuple[int, str]:
    p = parameters(folder, e={"numiter": 20, "subpix": None})
    p.scans.MF.data.update(data)
    file = folder / "c.json"
    file.write_text(json.dumps(p, default=dict))
    found = CliRunner().invoke(app, ["check", str(file), "--convention", str(recording), *more])
    return found.exit_code, found.output


def test_an_orientation_that_is_right_is_said_to_be_with_its_tie(tmp_path: Path, recorded: Path) -> None:
    status, said = asked(tmp_path, recorded, "--frames", "80")
    assert status == 0, said
    assert said.startswith("80 frames, 20 iterations of each")
    assert "as it is (as configured)  tie" in said.replace("  (as", " (as")
    assert said.count("residual ") == 8
    assert "scans.MF.data.orientation: 0 is right" in said
    assert list(tmp_path.iterdir()) == [tmp_path / "c.json"]  # nothing is written


def test_one_that_is_wrong_is_named_with_what_to_write(tmp_path: Path, recorded: Path) -> None:
    status, said = asked(tmp_path, recorded, "--frames", "80", orientation=1)
    assert status == 1, said
    assert "scans.MF.data.orientation: write `orientation: 0` instead of 1" in said


def test_frames_says_how_many_are_taken(tmp_path: Path, recorded: Path) -> None:
    assert asked(tmp_path, recorded, "--frames", "20")[1].startswith("20 frames")


def test_a_recording_without_the_scan_is_told(tmp_path: Path, recorded: Path) -> None:
    p = parameters(tmp_path, "other")
    file = tmp_path / "c.json"
    file.write_text(json.dumps(p, default=dict))
    found = CliRunner().invoke(app, ["check", str(file), "--convention", str(recorded)])
    assert found.exit_code == 1
    assert "in the recording" in found.output
