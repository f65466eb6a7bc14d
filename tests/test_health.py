"""Health and readiness: what a session says over HTTP of itself, and why not."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from memory import Memory, messages
from problems import BEAM, GEOMETRY
from rich.console import Console

from ptystream import loop
from ptystream.health import Health
from ptystream.launch import launch
from ptystream.metrics import Metrics
from ptystream.params.load import load
from ptystream.recording import Recorder
from ptystream.transport import Message


def asked(url: str, path: str) -> tuple[int, str]:
    """(status, text) of one of the paths beside the metrics."""
    try:
        with urlopen(url.removesuffix("/metrics") + path, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


class Part:
    failure: BaseException | None = None


@pytest.fixture
def told() -> Iterator[tuple[Health, Callable[[str], tuple[int, str]]]]:
    health = Health(stuck_after_s=60.0)
    url, close = Metrics().serve(health=health)
    yield health, lambda path: asked(url, path)
    close()


def test_a_session_that_waits_is_alive_and_not_ready(told: Any) -> None:
    health, ask = told
    assert ask("/healthz") == (200, "ok\n")
    assert ask("/readyz") == (503, "the session has not begun\n")
    health.beat("s/data is not open yet")
    assert ask("/readyz") == (503, "s/data is not open yet\n")
    health.beat()
    assert ask("/readyz") == (200, "ok\n")
    health.end()
    assert ask("/healthz") == (200, "ok\n")
    assert ask("/readyz") == (503, "the session has ended\n")


def test_a_part_that_failed_is_named_with_its_error(told: Any) -> None:
    health, ask = told
    health.beat()
    health.parts["recorder"] = part = Part()
    assert ask("/healthz")[0] == 200
    part.failure = OSError("Input/output error")
    for path in ("/healthz", "/readyz"):
        assert ask(path) == (503, "recorder: OSError: Input/output error\n")


def test_what_a_restart_would_not_mend_is_a_warning(told: Any) -> None:
    health, ask = told
    health.beat()
    full = [""]
    health.warnings["recorder"] = lambda: full[0]
    assert ask("/readyz") == (200, "ok\n")
    full[0] = "the disk is full; 3 messages are not recorded"
    assert ask("/readyz") == (200, "ok\nwarning: recorder: the disk is full; 3 messages are not recorded\n")


def test_an_engine_that_no_longer_comes_round_is_dead_until_it_does() -> None:
    health = Health(stuck_after_s=0.02)
    health.beat()
    threading.Event().wait(0.1)
    (line,) = health.ills()
    assert line.startswith("engine: has not come round for") and "io.metrics.stuck_after_s: 0.02" in line
    health.beat()
    assert health.ills() == []


def test_other_paths_are_not_found(told: Any) -> None:
    _, ask = told
    assert ask("/other")[0] == 404
    assert ask("/metrics")[0] == 200


class Waiting(Memory):
    """Opens when it is let."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.may_open, self.may_go = threading.Event(), threading.Event()

    def open(self) -> None:
        assert self.may_open.wait(30)

    def receive(self, timeout_s: float) -> Message | None:
        return super().receive(timeout_s) if self.may_go.wait(timeout_s) else None


def until(what: Callable[[], bool]) -> None:
    for _ in range(1200):
        if what():
            return
        threading.Event().wait(0.05)
    raise AssertionError("it did not come to be")


def test_a_session_tells_how_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck, entered, urls, recorders = threading.Event(), threading.Event(), [], []
    step, serve, begun = loop.Loop.step, Metrics.serve, Recorder.__init__

    def stopped(self: Any) -> Any:
        entered.set()
        assert stuck.wait(60)
        return step(self)

    def serving(self: Metrics, *given: Any) -> Any:
        found = serve(self, *given)
        urls.append(found[0])
        return found

    def recorder(self: Recorder, *given: Any, **more: Any) -> None:
        begun(self, *given, **more)
        recorders.append(self)

    monkeypatch.setattr(loop.Loop, "step", stopped)
    monkeypatch.setattr(Metrics, "serve", serving)
    monkeypatch.setattr(Recorder, "__init__", recorder)
    systemd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    systemd.bind(str(tmp_path / "notify"))
    systemd.settimeout(30)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    frames, places = messages()
    sources = {"s/data": Waiting("s/data", frames), "s/positions": Waiting("s/positions", places)}
    data = {"name": "ZmqScan", "shape": BEAM.side, **GEOMETRY, "positions": {"name": "ZmqScan"}}
    given = {
        "run": "t",
        "io": {"home": str(tmp_path), "autoplot": {"active": False}, "metrics": {"stuck_after_s": 1.0}},
        "scans": {"s": {"name": "Full", "data": data, "illumination": {"aperture": {"size": 4e-7}}}},
        "engines": {"e": {"name": "DM", "numiter": 3}},
    }
    session = threading.Thread(target=lambda: launch(load(given), Console(quiet=True), transports=sources), daemon=True)
    session.start()
    until(lambda: bool(urls) and "s/data is not open yet" in asked(urls[0], "/readyz")[1])
    for source in sources.values():
        source.may_open.set()
    until(lambda: asked(urls[0], "/readyz") == (200, "ok\n"))
    for source in sources.values():
        source.may_go.set()
    assert entered.wait(30)
    until(lambda: asked(urls[0], "/healthz")[0] == 503)
    assert asked(urls[0], "/healthz")[1].startswith("engine: has not come round for")
    recorders[0].full, recorders[0].lost = True, 7
    assert "warning: recorder: the disk is full; 7 messages are not recorded" in asked(urls[0], "/healthz")[1]
    recorders[0].failure = OSError("planted")
    assert "recorder: OSError: planted" in asked(urls[0], "/healthz")[1]
    recorders[0].failure = None
    with urlopen(urls[0]) as answer:
        text = answer.read().decode()
    assert "ptystream_unrecorded_messages_total 7.0" in text and "ptystream_recording_full 1.0" in text
    stuck.set()
    session.join(60)
    assert not session.is_alive()
    systemd.setblocking(False)
    heard = []
    with contextlib.suppress(BlockingIOError):
        while True:
            heard += systemd.recv(4096).decode().split("\n")
    systemd.close()
    assert heard.count("READY=1") == 1 and heard[-1] == "STOPPING=1"
