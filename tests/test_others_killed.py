"""What a session does when the simulator or a viewer is killed, and when it is told to end, to pause, to go on for ever."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import victim
from memory import Memory, messages
from problems import BEAM, GEOMETRY
from test_survival import Beamline

from ptystream.cli import live as command
from ptystream.launch import _stopping
from ptystream.metrics import Metrics
from ptystream.params.load import load
from ptystream.plan import make_plan
from ptystream.publish.publisher import Publisher
from ptystream.publish.snapshot import Snapshot
from ptystream.recording import Recording
from ptystream.session import Session
from ptystream.storage import ptyr


def until(what: Callable[[], Any], limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def configuration(folder: Path, addresses: tuple[str, str], **root: Any) -> dict[str, Any]:
    source = {"name": "ZmqScan"}
    data = {**source, "address": addresses[0], "shape": BEAM.side, **GEOMETRY}
    scan = {"name": "Full", "data": {**data, "positions": {**source, "address": addresses[1]}}}
    return {
        "run": "t",
        "threads": 1,
        "io": {"home": str(folder), "rfile": "%(run)s.ptyr", "autosave": {"active": False}},
        "scans": {"s": {**scan, "illumination": {"aperture": {"size": 4e-7}}}},
        "engines": {"e": {"name": "DM", "numiter": 10}},
        **root,
    }


@pytest.fixture
def addresses() -> tuple[str, str]:
    """Two that are free."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    found = [f"tcp://127.0.0.1:{s.getsockname()[1]}" for s in held]
    for s in held:
        s.close()
    return found[0], found[1]


@pytest.mark.slow
@pytest.mark.parametrize("again", [True, False])
def test_a_simulator_that_is_killed(tmp_path: Path, addresses: tuple[str, str], again: bool) -> None:
    """The session waits; the same scan from a simulator that is started again is its rest, or the time-out ends it."""
    live = {} if again else {"timeout_s": 2.0}
    session = Session(make_plan(load(configuration(tmp_path, addresses, live=live))), metrics=Metrics())
    thread = threading.Thread(target=session.run)
    thread.start()
    first = victim.process_of(victim.simulator, addresses, 0.01, 40)
    first.join(60)
    assert first.exitcode == -signal.SIGKILL
    until(lambda: session.current is not None and session.current.ledger()["used"] >= 16)
    assert thread.is_alive()
    if again:
        time.sleep(1.0)
        assert thread.is_alive() and not session.results
        second = victim.process_of(victim.simulator, addresses, 0.002, None)
        second.join(60)
        assert second.exitcode == 0
    thread.join(60)
    assert not thread.is_alive()
    result = ptyr.read(session.results[0])
    if again:
        assert result.ledger["used"] == BEAM.frames
        assert result.ledger["duplicate"] > 0
    else:
        assert 16 <= result.ledger["used"] <= 40
        assert result.scans["s"]["ended"] == "nothing came for 2 s"


@pytest.mark.slow
def test_viewers_that_are_killed_or_hang_change_nothing(tmp_path: Path) -> None:
    alone, _ = _watched(tmp_path / "alone", 0)
    watched, viewers = _watched(tmp_path / "watched", 2)
    viewers[0].join(60)
    assert viewers[0].exitcode == -signal.SIGKILL
    assert viewers[1].is_alive()
    viewers[1].kill()
    viewers[1].join(60)
    np.testing.assert_array_equal(watched, alone)


class Watched(Publisher):
    """Goes on when every viewer has seen the first picture."""

    seen: Sequence[Any] = ()

    def offer(self, snapshot: Snapshot) -> None:
        super().offer(snapshot)
        assert all(s.wait(60) for s in self.seen)


def _watched(folder: Path, count: int) -> tuple[np.ndarray, list[Any]]:
    """The object of a session with so many viewers, of which the first is killed and the others hang; and the viewers."""
    frames, places = messages()
    given = configuration(folder, ("tcp://127.0.0.1:1", "tcp://127.0.0.1:2"), min_frames_for_recon=BEAM.frames + 1)
    given["engines"]["e"]["numiter"], given["io"]["publish"] = 60, {"interval_s": 0.001}
    inputs = {"s/data": Memory("s/data", frames), "s/positions": Memory("s/positions", places)}
    publisher = Watched()
    seen = [multiprocessing.get_context("forkserver").Event() for _ in range(count)]
    viewers = [victim.process_of(victim.viewer, publisher.endpoint, s, k == 0) for k, s in enumerate(seen)]
    until(lambda: publisher.viewers >= count)
    publisher.seen = seen
    (path,) = Session(make_plan(load(given), transports=inputs), metrics=Metrics(), publisher=publisher).run()
    assert publisher.failure is None
    publisher.close()
    return ptyr.read(path).object["SsG00"].data, viewers


@pytest.mark.slow
def test_sigterm_ends_cleanly_with_a_saved_result(tmp_path: Path) -> None:
    with Beamline(tmp_path, numiter=100_000) as beamline:
        process, ready = victim.start(str(beamline.config), str(tmp_path / "log"))
        assert ready.wait(100)
        beamline.go()
        until(lambda: any(tmp_path.glob("k_*.dump")))
        process.terminate()
        process.join(60)
        assert process.exitcode == 0, (tmp_path / "log").read_text()
    result = ptyr.read(tmp_path / "k.ptyr")
    assert result.ledger["used"] >= 16
    recording = Recording(tmp_path / "k.ptyrec")
    assert sum(1 for _ in recording) >= result.ledger["used"]
    assert recording.finished
    assert not list(tmp_path.glob(".*.part"))


def test_sigusr1_pauses_and_lets_go_on() -> None:
    class Paused:
        paused = False

        def pause(self) -> None:
            self.paused = True

        def resume(self) -> None:
            self.paused = False

    session = Paused()
    with _stopping(session) as came:  # type: ignore[arg-type]
        for wanted in (True, False, True):
            os.kill(os.getpid(), signal.SIGUSR1)
            until(lambda wanted=wanted: session.paused == wanted)  # type: ignore[misc]
        assert not came.is_set()


@pytest.mark.parametrize(("endless", "wanted"), [(False, 3), (True, None)])
def test_endless_overrules_the_number_of_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endless: bool, wanted: int | None
) -> None:
    given = configuration(tmp_path, ("tcp://127.0.0.1:1", "tcp://127.0.0.1:2"), live={"runs": 3})
    file = tmp_path / "c.json"
    file.write_text(json.dumps(given))
    asked: list[Any] = []
    monkeypatch.setattr(command, "run_session", lambda configuration, *_, **__: asked.append(make_plan(configuration)))
    assert command.live(str(file), None, None, endless) == 0
    assert asked[0].runs == wanted
