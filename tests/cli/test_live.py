"""`ptystream live`: its exit status says whether anything was reconstructed."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml
from memory import messages
from test_ptycho import parameters
from typer.testing import CliRunner

from ptystream.cli.app import app
from ptystream.params.plain import plain
from ptystream.recording import Recorder
from ptystream.transport import Message

RUN = CliRunner()


def recorded(folder: Path, *, placed: bool) -> Path:
    """A scan in which no frame has a position, or every one."""
    recorder = Recorder(folder / "scan.ptyrec", {})
    frames, places = messages()
    for channel, sent in (("MF/data", frames), ("MF/positions", places if placed else [places[0], places[-1]])):
        for parts in sent:
            recorder.write(Message(time.time_ns(), channel, tuple(parts)))
    recorder.close(finished=True)
    return folder / "scan.ptyrec"


@pytest.mark.parametrize("placed", [False, True])
def test_a_session_that_reconstructed_nothing_does_not_end_well(
    placed: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = plain(parameters(tmp_path, e={"numiter": 2}))
    given["io"] |= {"recording": {"active": False}, "publish": {"active": False}, "interaction": {"active": False}}
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(given))
    done = RUN.invoke(app, ["live", str(tmp_path / "t.yaml"), "--replay", str(recorded(tmp_path, placed=placed))])
    said = done.output + capfd.readouterr().err
    assert done.exit_code == (0 if placed else 1), said
    assert ("nothing was reconstructed: " in said) is not placed
    if not placed:
        assert "92 received" in said
