"""Frames are cut again from what different sources have sent, and not where that is not there any more."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from problems import BEAM, GEOMETRY, PATTERNS, PLACES
from rich.console import Console
from steered import Steered, after, ask_when

from ptystream import recording
from ptystream.detectors.dectris.simulator import Camera, Detector, series_of
from ptystream.detectors.hdf5.simulator import FRAMES, write
from ptystream.detectors.zmq import Sender
from ptystream.launch import launch
from ptystream.params.load import load
from ptystream.recording import Recording
from ptystream.scan.intake import Intake
from ptystream.session import Session
from ptystream.steering.wire import Reply
from ptystream.storage import ptyr
from ptystream.verify import distance, verify

CENTER = "scans.s.data.center"
NUMITER = 40


def given(folder: Path, numiter: int = NUMITER, io: Any = None, **data: Any) -> Any:
    return load(
        {
            "run": "t",
            "threads": 1,
            "min_frames_for_recon": BEAM.frames + 1,
            "io": {"home": str(folder), "rfile": "%(run)s.ptyr", "recording": {"file": "t.ptyrec"}, **(io or {})},
            "scans": {"s": {"name": "Full", "data": {"shape": BEAM.side, **data}, "illumination": {"aperture": {"size": 4e-7}}}},
            "engines": {"e": {"name": "DM", "numiter": numiter}},
        }
    )


def ran(configuration: Any, send: Callable[[], object] = lambda: None, asked: Any = None) -> tuple[ptyr.Result, list[Reply]]:
    """What a session leaves that is asked after four iterations, and its replies."""
    replies: list[list[Reply]] = []

    def on_session(session: Session) -> None:
        wishes = [] if asked is None else [("set", {"path": CENTER, "value": asked})]
        replies.append(ask_when(session, after(4), *wishes))

    thread = threading.Thread(target=send)
    launch(configuration, Console(quiet=True), on_session=on_session, on_ready=thread.start)
    thread.join()
    return ptyr.read(Path(configuration.root.io.home) / "t.ptyr"), replies[0]


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the frames that are cut again, in order."""
    found: list[int] = []
    again = Intake.again

    def seen(self: Intake, cut: Any, index: int, *more: Any) -> None:
        found.append(index)
        again(self, cut, index, *more)

    monkeypatch.setattr(Intake, "again", seen)
    return found


def check(folder: Path, wanted: ptyr.Result, result: ptyr.Result, center: list[float]) -> None:
    assert result.ledger["used"] == wanted.ledger["used"] == BEAM.frames
    assert result.scans["s"]["center"] == center
    assert any(entry["do"] == "recut" for entry in result.schedule)
    assert verify(result, Recording(folder / "t.ptyrec"), offline=False).same_bits
    assert distance(wanted.object, result.object, wanted.coverage) < 0.2


@pytest.mark.parametrize("format", ["v1", "stream2"])
def test_dectris(tmp_path: Path, format: Any, order: list[int]) -> None:
    raw = np.zeros((BEAM.frames, 70, 90), "u4")
    raw[:, 20:52, 30:62] = PATTERNS
    told = {"energy_kev": GEOMETRY["energy"], "distance_m": GEOMETRY["distance"], "psize_m": (GEOMETRY["psize"],) * 2}
    camera, results = Camera(format, **told, center=(34, 47)), []
    for name, asked in (("right", None), ("wrong", [36, 46])):
        (folder := tmp_path / name).mkdir()
        with Detector() as detector:
            data = {"name": "DectrisScan", "address": detector.address, "positions_theory": PLACES.tolist()}
            configuration = given(folder, **data, **({"center": [36, 46]} if asked is None else {}))
            source = detector

            def send(to: Detector = source) -> None:
                to.send(series_of(camera, 1, raw))

            results.append(ran(configuration, send, asked)[0])
    assert order[: BEAM.frames] == sorted(order[: BEAM.frames], reverse=True)
    check(tmp_path / "wrong", *results, [36.0, 46.0])


def test_hdf5(tmp_path: Path, order: list[int]) -> None:
    write(tmp_path / "bslz4.h5", BEAM, codec="bslz4", together=40, wait=lambda s: False)
    samples = {"y": "/entry/stage/y", "x": "/entry/stage/x"}
    data = {"name": "Hdf5Scan", "file": str(tmp_path / "bslz4.h5"), "frames": FRAMES, "samples": samples, **GEOMETRY}
    (tmp_path / "right").mkdir()
    wanted, _ = ran(given(tmp_path / "right", **data, center=[16, 16]))
    result, _ = ran(given(tmp_path, **data, center=[18, 15]), asked=[16, 16])
    assert order[0] > order[BEAM.frames - 1]
    check(tmp_path, wanted, result, [16.0, 16.0])


def test_the_native_link_the_newest_first(tmp_path: Path, order: list[int]) -> None:
    results = []
    for name, center, asked in (("right", [16, 16], None), ("wrong", [18, 15], [16, 16])):
        (folder := tmp_path / name).mkdir()
        with Sender() as frames, Sender() as places:
            positions = {"name": "ZmqScan", "address": places.address}
            data = {"name": "ZmqScan", "address": frames.address, **GEOMETRY, "center": center, "positions": positions}

            def send(frames: Sender = frames, places: Sender = places) -> None:
                frames.start("a", num_frames=BEAM.frames)
                places.start("a")
                for k, pattern in enumerate(PATTERNS):
                    frames.frames(k, pattern)
                    places.samples(k, y=PLACES[k, :1], x=PLACES[k, 1:])
                frames.end(BEAM.frames)
                places.end(BEAM.frames)

            results.append(ran(given(folder, **data), send, asked)[0])
    assert order == [*range(BEAM.frames - 1, -1, -1), *order[BEAM.frames :]]
    check(tmp_path / "wrong", *results, [16.0, 16.0])


def lacking(folder: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None]) -> tuple[Steered, dict[str, Any]]:
    """A session whose recording is spoilt before it is asked; and its status when it is over."""
    told: list[dict[str, Any]] = []

    class Spoilt(Steered):
        def prepare(self, session: Session) -> None:
            conclude = session._conclude

            def concluding(turn: Any) -> None:
                told.append(session.status())
                conclude(turn)

            session._conclude = concluding  # type: ignore[method-assign]

    def when(session: Session) -> bool:
        if session.current is None or session.current.iterations < 4:
            return False
        spoil(folder / "t.ptyrec")
        return True

    data = {"name": "ZmqScan", "shape": BEAM.side, **GEOMETRY, "center": [18, 15], "positions": {"name": "ZmqScan"}}
    scans = {"s": {"name": "Full", "data": data, "illumination": {"aperture": {"size": 4e-7}}}}
    made = Spoilt(folder, when, ("set", {"path": CENTER, "value": [16, 16]}), ("get", {"path": CENTER}), scans=scans)
    return made, told[0]


def test_a_frame_that_is_damaged_there_leaves_all_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(path: Path) -> None:
        table = Recording(path).frames()["s/data", "a"]
        with open(path, "r+b") as file:
            file.seek(table[37] + 60)
            file.write(b"damage")

    made, status = lacking(tmp_path, monkeypatch, spoil)
    assert made.replies[0].fault is None
    assert status["recut"] == "s: frames stay as they were: 1 of 92 frames cannot be cut again, the first is frame 37"
    result = ptyr.read(made.results[0])
    assert not any(entry["do"] == "recut" for entry in result.schedule)
    assert result.scans["s"]["center"] == [18.0, 15.0]
    assert made.session.plan.configuration is not None
    assert made.session.plan.configuration.scans[0].data.parameters.center == (18.0, 15.0)


def test_frames_that_a_full_disk_has_kept_out_leave_all_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "RETRY_S", 1e9)
    real, room = recording.os.writev, [100_000]

    def write_(file: int, buffers: Any) -> int:
        room[0] -= sum(memoryview(buffer).nbytes for buffer in buffers)
        if room[0] < 0:
            raise OSError(28, "No space left on device")
        return real(file, buffers)

    monkeypatch.setattr(recording.os, "writev", write_)
    made, status = lacking(tmp_path, monkeypatch, lambda path: None)
    assert re.search(
        r"s: frames stay as they were: \d+ of 92 frames cannot be cut again, the first is frame \d+;", status["recut"]
    )
    assert re.search(r"the recording lacks \d+ messages, because the disk was full", status["recut"])
    assert ptyr.read(made.results[0]).scans["s"]["center"] == [18.0, 15.0]
