"""Frames and readings in files that are gone when their recording is given back."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from beamline import BEAMLINE, FLY, lines, plan_of, run
from rich.console import Console
from steered import ask_when

from ptystream.kept import FILES
from ptystream.launch import launch
from ptystream.params.load import load
from ptystream.recording import Recorder, Recording
from ptystream.session import Session
from ptystream.storage import ptyr
from ptystream.verify import verify


def configuration(folder: Path, name: str = "t", **recording: Any) -> Any:
    data = {"name": "BlueskyScan", "via": "file", "file": str(folder / "run.jsonl"), "find": FLY, "shape": 32}
    return load(
        {
            "run": name,
            "threads": 1,
            "min_frames_for_recon": BEAMLINE.frames + 1,
            "io": {"home": str(folder), "rfile": "%(run)s.ptyr", "recording": {"file": "r.ptyrec", **recording}},
            "scans": {
                "s": {
                    "name": "Full",
                    "data": {**data, **BEAMLINE.geometry()},
                    "illumination": {"aperture": {"size": 4e-7}},
                }
            },
            "engines": {"e": {"name": "DM", "numiter": 5}},
        }
    )


def recorded(folder: Path, **recording: Any) -> ptyr.Result:
    """The result of a fly scan; afterwards its files are gone."""
    (folder / "run.jsonl").write_text(lines(run(plan_of("fly", folder))))
    launch(configuration(folder, **recording), Console(quiet=True))
    files = list(folder.glob("**/*.h5"))
    assert files
    for file in files:
        file.unlink()
    return ptyr.read(folder / "t.ptyr")


def same(one: ptyr.Result, other: ptyr.Result) -> bool:
    assert other.ledger["used"] == BEAMLINE.frames
    return all(np.array_equal(s.data, other.object[name].data) for name, s in one.object.items())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[ptyr.Result, Path]:
    folder = tmp_path_factory.mktemp("kept")
    return recorded(folder, files=True), folder


@pytest.mark.slow
def test_a_replay_and_a_verification_need_the_files_no_more(made: tuple[ptyr.Result, Path], monkeypatch: Any) -> None:
    result, folder = made
    monkeypatch.setattr("ptystream.files.PATIENCE_S", 0.0)
    held = Recording(folder / "r.ptyrec")
    copies = [message for message in held if message.channel == FILES]
    assert len(copies) >= BEAMLINE.frames
    launch(configuration(folder, "again"), Console(quiet=True), replay=str(held.path))
    assert same(result, ptyr.read(folder / "again.ptyr"))
    assert verify(result, held, offline=False).same_bits


def test_an_interrupted_session_goes_on_without_the_files(made: tuple[ptyr.Result, Path], tmp_path: Path) -> None:
    result, folder = made
    (tmp_path / "run.jsonl").write_text((folder / "run.jsonl").read_text())
    recorder = Recorder(tmp_path / "r.ptyrec")  # as it was when it had no result yet
    for message in Recording(folder / "r.ptyrec"):
        if message.channel != "session":
            recorder.write(message)
    recorder.close()
    before = sum(1 for message in Recording(tmp_path / "r.ptyrec") if message.channel == FILES)
    launch(configuration(tmp_path, files=True), Console(quiet=True))
    assert same(result, ptyr.read(tmp_path / "t.ptyr"))
    assert sum(1 for message in Recording(tmp_path / "r.ptyrec") if message.channel == FILES) == before


def test_a_recording_without_copies_says_so(tmp_path: Path, monkeypatch: Any, caplog: pytest.LogCaptureFixture) -> None:
    recorded(tmp_path)
    monkeypatch.setattr("ptystream.files.PATIENCE_S", 0.1)
    with caplog.at_level(logging.WARNING, logger="ptystream"):
        launch(configuration(tmp_path, "again"), Console(quiet=True), talkative=True, replay=str(tmp_path / "r.ptyrec"))
    assert "r.ptyrec has no copy of it: those are kept with io.recording.files" in caplog.text
    assert not (tmp_path / "again.ptyr").exists()


@pytest.mark.slow
@pytest.mark.parametrize("there", ["files", "copies", "nothing"])
def test_frames_in_files_are_cut_again_from_the_files_or_their_copies(tmp_path: Path, there: str) -> None:
    (tmp_path / "run.jsonl").write_text(lines(run(plan_of("fly", tmp_path))))
    replies, status = [], []

    def when(session: Session) -> bool:
        if session.current is None or session.current.iterations < 4:
            return False
        for file in tmp_path.glob("**/*.h5") if there != "files" else ():
            file.unlink()
        return True

    def on_session(session: Session) -> None:
        replies.append(ask_when(session, when, ("set", {"path": "scans.s.data.center", "value": [15, 17]})))
        conclude = session._conclude
        session._conclude = lambda turn: (status.append(session.status()), conclude(turn))  # type: ignore[method-assign]

    launch(configuration(tmp_path, files=there == "copies"), Console(quiet=True), on_session=on_session)
    result = ptyr.read(tmp_path / "t.ptyr")
    assert replies[0][0].fault is None and result.ledger["used"] == BEAMLINE.frames
    if there == "nothing":
        assert f"{BEAMLINE.frames} of {BEAMLINE.frames} frames cannot be cut again" in status[0]["recut"]
        assert result.scans["s"]["center"] == [16.0, 16.0]
        return
    assert "recut" not in status[0] and result.scans["s"]["center"] == [15.0, 17.0]
    assert verify(result, Recording(tmp_path / "r.ptyrec"), offline=False).same_bits
