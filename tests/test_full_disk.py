"""A full disk: the session goes on and says so, nothing half written stays, and recording resumes when there is room."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from memory import Memory, messages
from problems import BEAM, GEOMETRY

from ptystream import recording
from ptystream.cli.progress import describe
from ptystream.metrics import Metrics
from ptystream.params.load import load
from ptystream.plan import make_plan, recorder_of
from ptystream.recording import Recorder, Recording, RecordingError
from ptystream.run import Run
from ptystream.session import Session, SessionError
from ptystream.storage import ptyr
from ptystream.transport import Message
from ptystream.verify import VerifyError, verify


class Disk:
    """Stands in for `os.writev`: writes what fits, and answers like a full disk beyond that."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
        self.room: float = room
        self.real = os.writev
        monkeypatch.setattr(recording.os, "writev", self.write)

    def write(self, file: int, buffers: Any) -> int:
        total = sum(memoryview(buffer).nbytes for buffer in buffers)
        left = self.room - os.fstat(file).st_size
        if left <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if total > left:  # as the real one: a part of it goes in
            return os.write(file, b"".join(bytes(buffer) for buffer in buffers)[: int(left)])
        return self.real(file, buffers)


def contents(path: Path) -> tuple[list[int], Recording]:
    held = Recording(path)
    return [message.arrival_ns for message in held], held


def test_recording_resumes_when_there_is_room_and_the_gap_is_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(recording, "RETRY_S", 0.0)
    disk, told = Disk(monkeypatch, 50_000), []
    recorder = Recorder(tmp_path / "r", {"version": "x"}, go_on=True)
    for k in range(60):
        disk.room = float("inf") if k == 40 else disk.room
        channel = "a" if k < 20 else "b"  # its name has to come with the first that fits
        message = Message(k, channel, (bytes([k]) * 3000,))
        recorder.write(message, lambda m: told.append(m.arrival_ns))
        recorder.index(message, "e", np.array([k]))
        recorder.flush()
        assert recorder.full == (15 < k < 40), k
    lost = recorder.lost
    recorder.close(finished=True)
    assert told == list(range(60))
    kept, held = contents(tmp_path / "r")
    assert kept == [*range(16), *range(40, 60)]
    assert (held.missing, lost) == (24, 24)
    assert (held.torn, held.damaged, held.finished) == (0, 0, True)
    assert set(held.frames()["b", "e"]) == set(range(40, 60))
    assert held.missing == 24 == Recording(tmp_path / "r").missing_in_all()  # read again, it is not counted again
    assert [r.message.split(": ")[-1] for r in caplog.records if "NOT RECORDED" in r.message] == [
        "what comes is NOT RECORDED until there is room"
    ]
    assert any("recording again; 24 messages are not in it" in r.message for r in caplog.records)


def test_a_full_disk_is_not_tried_with_every_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch, 5_000)
    tries = []
    real = disk.write
    monkeypatch.setattr(recording, "RETRY_S", 1000.0)
    monkeypatch.setattr(recording.os, "writev", lambda *given: (tries.append(1), real(*given))[1])
    recorder = Recorder(tmp_path / "r", go_on=True)
    for k in range(200):
        recorder.write(Message(k, "a", (bytes(1000),)))
        recorder.flush()
    assert recorder.lost > 190
    assert len(tries) < 20
    recorder.close()
    kept, held = contents(tmp_path / "r")
    assert kept == list(range(len(kept))) and held.torn == 0


def test_another_failure_of_the_disk_still_ends_the_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(tmp_path / "r", go_on=True)
    recorder.write(Message(0, "a", (b"x",)))
    recorder.flush()

    def broken(file: int, buffers: Any) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(recording.os, "writev", broken)
    recorder.write(Message(1, "a", (b"x",)))
    with pytest.raises(RecordingError, match="Input/output error"):
        recorder.flush(10)
    recorder.close()


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
from ptystream import recording
from ptystream.transport import Message
recording.RETRY_S = 0.0
recorder = recording.Recorder(sys.argv[1], go_on=True)
for k in range(60):
    if k == 50:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    recorder.write(Message(k, "c", (bytes(5000),)))
    recorder.flush()
recorder.close()
print(recorder.lost)
"""


def test_it_is_so_with_the_operating_systems_own_limit(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-c", LIMITED, str(tmp_path / "r")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    kept, held = contents(tmp_path / "r")
    assert held.missing == int(done.stdout) > 10
    assert kept == [*range(60 - 10 - held.missing), *range(50, 60)]


def given(folder: Path, **recording: Any) -> dict[str, Any]:
    source = {"name": "ZmqScan"}
    data = {**source, "shape": BEAM.side, **GEOMETRY, "positions": source}
    quiet = {name: {"active": False} for name in ("publish", "metrics", "autosave", "autoplot")}
    return {
        "run": "full",
        "min_frames_for_recon": BEAM.frames + 1,
        "threads": 1,
        "io": {"home": str(folder), "rfile": "%(run)s.ptyr", "recording": recording, **quiet},
        "scans": {"s": {"name": "Full", "data": data, "illumination": {"aperture": {"size": 4e-7}}}},
        "engines": {"e": {"name": "DM", "numiter": 5}},
    }


def run(folder: Path, metrics: Metrics, **recording: Any) -> tuple[Session, Recorder]:
    configuration = load(given(folder, **recording))
    recorder, _ = recorder_of(configuration)
    assert recorder is not None
    frames, places = messages()
    transports = {"s/data": Memory("s/data", frames), "s/positions": Memory("s/positions", places)}
    plan = make_plan(configuration, recorder=recorder, transports=transports)
    return Session(plan, metrics=metrics, tap=recorder), recorder


def test_a_session_goes_on_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roomy, unlimited = run(tmp_path / "roomy", Metrics())
    (wanted,) = roomy.run()
    unlimited.close(finished=True)
    Disk(monkeypatch, 60_000)
    monkeypatch.setattr(recording, "RETRY_S", 1000.0)  # a small message would fit
    metrics = Metrics()
    session, recorder = run(tmp_path / "full", metrics)
    (path,) = session.run()
    status = session.status()
    recorder.close(finished=True)
    result, other = ptyr.read(path), ptyr.read(wanted)
    assert result.ledger["used"] == BEAM.frames
    np.testing.assert_array_equal(result.object["SsG00"].data, other.object["SsG00"].data)
    assert recorder.lost > 50
    values = {m.name: m.samples[0].value for m in metrics.registry.collect() if "record" in m.name}
    assert values["ptystream_recording_full"] == 1.0
    assert 0 < values["ptystream_unrecorded_messages"] <= recorder.lost
    assert f"DISK FULL: {status['unrecorded']} messages not recorded" in describe(status)
    held = Recording(recorder.path)
    assert sum(1 for _ in held) < 150
    assert held.torn == 0
    monkeypatch.setattr("ptystream.run.COMING_S", 1.0)
    with pytest.raises(VerifyError, match="messages are not in it: the disk was full"):
        verify(result, held, offline=False)


def test_a_result_that_cannot_be_written_costs_the_next_scan_nothing_and_is_made_again(tmp_path: Path) -> None:
    configuration = load(given(tmp_path) | {"live": {"runs": 2}})
    recorder, _ = recorder_of(configuration)
    assert recorder is not None
    (first, at), (second, there) = messages("a"), messages("b")
    transports = {"s/data": Memory("s/data", first + second), "s/positions": Memory("s/positions", at + there)}
    plan = make_plan(configuration, recorder=recorder, transports=transports)
    asked: list[str] = []

    def save(run: Run) -> Path | None:
        asked.append(run.name)
        if len(asked) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return plan.save(run)

    session = Session(replace(plan, save=save), metrics=Metrics(), tap=recorder)
    with pytest.raises(SessionError, match=r"full: the result could not be saved: .* No space left"):
        session.run()
    recorder.close()
    assert [path.name for path in session.results] == ["full_0002.ptyr"]
    recorder, before = recorder_of(configuration)
    assert recorder is not None and before is not None
    nothing: dict[str, Any] = {name: Memory(name, []) for name in transports}
    plan = make_plan(configuration, recorder=recorder, transports=nothing, interrupted=True)
    again = Session(plan, metrics=Metrics(), tap=recorder, recorded=Recording(before))
    assert [path.name for path in again.run()] == ["full.ptyr"]
    recorder.close(finished=True)


def test_with_stop_it_ends_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Disk(monkeypatch, 60_000)
    session, recorder = run(tmp_path, Metrics(), when_full="stop")
    with pytest.raises((SessionError, RecordingError), match="No space left"):
        session.run()
    recorder.close()
    assert not any(thread.name.startswith("recorder") for thread in threading.enumerate())
