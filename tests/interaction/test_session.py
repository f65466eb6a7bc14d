"""ptypy's clients and a whole session: CONNECT to DISCONNECT, and everything that its plot client asks, in its order."""

from __future__ import annotations

import contextlib
import socket as sockets
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
import zmq.auth
from interaction.hostile_requests import FRAMES, TEXTS
from interaction.peer import Peer
from launched import Held
from memory import messages
from problems import BEAM, GEOMETRY
from rich.console import Console

from ptystream.interaction.paths import answer
from ptystream.launch import launch
from ptystream.params.load import load
from ptystream.session import Session
from ptystream.storage import ptyr


def free_port() -> int:
    """The first of some ports that nobody has, with room above."""
    with sockets.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return min(int(asked.getsockname()[1]), 65000)


class Running:
    """A session in a thread, up to the port of its interaction server, that waits with its end for `end`."""

    def __init__(self, folder: Path, io: dict[str, Any] | None = None) -> None:
        frames, places = messages()
        self.go, self.said, self.port = threading.Event(), threading.Event(), 0
        self.session: Session | None = None
        data = {"name": "ZmqScan", "shape": BEAM.side, **GEOMETRY, "positions": {"name": "ZmqScan"}}
        given = {
            "run": "t",
            "verbose_level": "WARNING",
            "io": {"home": str(folder), "rfile": "%(run)s.ptyr", "interaction": {"server": {"port": free_port()}}} | (io or {}),
            "scans": {"s": {"name": "Full", "data": data, "illumination": {"aperture": {"size": 4e-7}}}},
            "engines": {"e": {"name": "DM", "numiter": 3, "alpha": 0.9}},
        }
        given["io"].setdefault("autoplot", {"dump": False, "imfile": "plots/%(run)s_%(iterations)04d.png"})
        sources = {
            "s/data": Held("s/data", frames[:-1], self.go),
            "s/positions": Held("s/positions", places[:-1], self.go),
        }

        def run() -> None:
            launch(load(given), Console(quiet=True), transports=sources, on_session=self._of, on_interaction=self._told)

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()

    def _of(self, session: Session) -> None:
        self.session = session

    def _told(self, port: int) -> None:
        self.port = port
        self.said.set()

    def ready(self) -> Running:
        assert self.said.wait(60)
        return self

    def end(self) -> None:
        self.go.set()
        self.thread.join(60)
        assert not self.thread.is_alive()


@pytest.fixture
def running(tmp_path: Path) -> Any:
    made = Running(tmp_path).ready()
    yield made
    made.end()


def when(peer: Peer, text: str, timeout_s: float = 30.0) -> Any:
    """The answer, once it is a true one."""
    deadline = time.monotonic() + timeout_s
    while not (found := peer.get_now(text)):
        assert time.monotonic() < deadline, text
        time.sleep(0.02)
    return found


def test_what_the_plot_client_asks_from_connect_to_the_end(tmp_path: Path) -> None:
    running = Running(tmp_path).ready()
    peer = Peer(running.port, "PlotClient")
    assert (peer.status, peer.port) == ("ok", running.port + 10)  # the last of the pool comes first
    assert peer.ask("PING") == {"status": "pong"}
    assert peer.ask("AVAIL") == {"status": "ok", "avail": ["Ptycho"]}
    autoplot = peer.get_now("Ptycho.p.io.autoplot")
    assert autoplot["layout"] == "default" and autoplot["imfile"].startswith("plots/")
    assert peer.get_now("Ptycho.p.io.home") == str(tmp_path)
    when(peer, "'iter_info' in Ptycho.runtime")
    runtime = peer.get_now("Ptycho.runtime")
    assert runtime["run"] == "t" and len(runtime["iter_info"][-1]["error"]) == 3
    assert peer.get_now("'start' in Ptycho.runtime") is True
    wanted = ["Ptycho.runtime['iter_info'][-1]", "Ptycho.paths.plot_file(Ptycho.runtime)"]
    wanted.append("Ptycho.runtime.get('allstop') is not None")
    for part in ("obj", "probe"):
        names = peer.get_now(f"list(Ptycho.{part}.S.keys())")
        assert names == ["SsG00"]
        wanted += [f"Ptycho.{part}.S['{name}'].{what}" for name in names for what in ("data", "psize", "center")]

    def batch() -> dict[str, Any]:
        tickets = [peer.request("GET", text) for text in wanted]
        told = peer.wait(*tickets)
        assert [message["status"] for message in told] == ["ok"] * len(wanted)
        return dict(zip(wanted, (message["out"] for message in told), strict=True))

    first = batch()
    held = first["Ptycho.obj.S['SsG00'].data"]
    assert held.ndim == 3 and held.dtype == np.complex64
    assert first["Ptycho.probe.S['SsG00'].data"].shape[1:] == (BEAM.side, BEAM.side)
    assert first[wanted[1]] == str(tmp_path / f"plots/t_{first[wanted[0]]['iterations']:04d}.png")
    assert first[wanted[2]] is False
    running.go.set()
    deadline = time.monotonic() + 30
    while not (last := batch())[wanted[2]]:
        assert time.monotonic() < deadline
    assert peer.ask("DISCONNECT") == {"status": "ok"}
    peer.close()
    running.end()
    result = ptyr.read(tmp_path / "t.ptyr")
    saved = result.object["SsG00"]
    np.testing.assert_array_equal(last["Ptycho.obj.S['SsG00'].data"], saved.data)
    np.testing.assert_allclose(last["Ptycho.obj.S['SsG00'].psize"], saved.pixel_size_m)
    np.testing.assert_array_equal(last["Ptycho.obj.S['SsG00'].center"], [-n for n in saved.offset])
    assert last[wanted[0]]["iterations"] == result.iter_info[-1]["iterations"]


def test_what_a_client_does_is_done_between_two_passes_and_told(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    peer = Peer(running.port, "night shift")
    when(peer, "'iter_info' in Ptycho.runtime")
    assert running.session is not None
    (told,) = peer.wait(peer.request("DO", "Ptycho.save()"))
    assert told["status"] == "ok"
    assert Path(told["out"]).exists()
    peer.wait(peer.request("DO", "Ptycho.pause()"))
    assert running.session.paused
    assert peer.get("Ptycho.p.io.home")  # also while nothing is iterated
    peer.wait(peer.request("DO", "Ptycho.resume()"))
    assert not running.session.paused
    (told,) = peer.wait(peer.request("DO", "Ptycho.end(reason=5)"))
    assert told["status"].startswith("Error: end.reason: 5: Input should be a valid string")
    assert any("'night shift'" in line and "save()" in line for line in caplog.messages)
    running.go.set()
    (told,) = peer.wait(peer.request("DO", "Ptycho.nonsense()"))
    assert told["status"].startswith("Error: action: nonsense: is unknown")
    peer.close()


def test_a_parameter_is_set_where_it_may_change_and_seen_by_all(running: Running) -> None:
    peer, other = Peer(running.port), Peer(running.port)
    when(peer, "'iter_info' in Ptycho.runtime")
    assert other.get_now("Ptycho.p.engines.e.alpha") == 0.9
    (told,) = peer.wait(peer.request("SET", "Ptycho.p.engines.e.alpha", val=0.5))
    assert (told["status"], told["out"]["before"]) == ("ok", 0.9)
    (told,) = peer.wait(peer.request("DO", "Ptycho.p.live.latency = 3.5"))
    assert told["status"] == "ok"
    for path, expected in (("engines.e.alpha", 0.5), ("live.latency", 3.5)):
        deadline = time.monotonic() + 30
        while other.get_now(f"Ptycho.p.{path}") != expected:
            assert time.monotonic() < deadline, path
            time.sleep(0.02)
    for each in (peer, other):
        each.close()


@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        ("engines.e.alpha", -1, "engines.e.alpha: -1: "),
        ("engines.e.alpha", "x", "engines.e.alpha: x: "),
        ("io.home", "/tmp", "may not change while the session runs"),
        ("engines.e.nothing", 1, "is no parameter"),
        ("engines.e.alpha", np.zeros(3), "engines.e.alpha: "),
    ],
)
def test_what_may_not_be_set_is_refused_with_the_reason(running: Running, path: str, value: Any, why: str) -> None:
    peer = Peer(running.port)
    when(peer, "'iter_info' in Ptycho.runtime")
    (told,) = peer.wait(peer.request("SET", f"Ptycho.p.{path}", val=value))
    assert told["status"].startswith("Error: ")
    assert why in told["status"]
    peer.close()


def test_hostile_requests_neither_end_nor_change_a_session(running: Running) -> None:
    peer = Peer(running.port)
    when(peer, "'iter_info' in Ptycho.runtime")
    for text in TEXTS:
        assert peer.ask("GETNOW", {"str": text})["status"].startswith("Error: ")
        for command in ("GET", "SET", "DO"):
            (told,) = peer.wait(peer.request(command, text, val=1))
            assert told["status"].startswith("Error: ")
    socket = peer.context.socket(zmq.REQ)
    socket.connect(f"tcp://127.0.0.1:{running.port}")
    for parts in FRAMES:
        socket.send_multipart(parts)
        assert socket.poll(20_000)
        socket.recv()
    assert peer.get("Ptycho.runtime.run") == "t"
    assert running.session is not None
    assert not running.session.paused
    peer.close()


def test_an_answer_that_takes_for_ever_delays_no_iteration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answered, release = threading.Event(), threading.Event()

    def hang(*given: Any) -> Any:
        answered.set()
        assert release.wait(120)
        return answer(*given)

    monkeypatch.setattr("ptystream.interaction.server.answer", hang)
    running = Running(tmp_path).ready()
    peer = Peer(running.port)
    asker = threading.Thread(target=peer.get_now, args=("Ptycho.p.io.home",))
    asker.start()
    try:
        assert answered.wait(60)
        running.go.set()
        deadline = time.monotonic() + 60
        while running.session is None or running.session.finished < 1:
            assert time.monotonic() < deadline, "the session waits for the server's thread"
            time.sleep(0.05)
    finally:
        release.set()
    asker.join(60)
    peer.close()
    running.end()


@pytest.mark.parametrize(
    "steering", [{"active": False}, {"keys": "session.key_secret"}], ids=["nobody steers", "those with keys steer"]
)
def test_where_not_everybody_may_steer_its_clients_only_look(tmp_path: Path, steering: dict[str, Any]) -> None:
    zmq.auth.create_certificates(tmp_path, "session")
    server = {"server": {"port": free_port()}}
    running = Running(tmp_path, {"steering": steering, "interaction": server}).ready()
    peer = Peer(running.port)
    assert peer.get("Ptycho.p.io.home") == str(tmp_path)
    (told,) = peer.wait(peer.request("DO", "Ptycho.stop()"))
    assert "only operators may" in told["status"]
    peer.close()
    running.end()


def test_without_publishing_snapshots_are_made_while_somebody_is_connected(tmp_path: Path) -> None:
    io = {"publish": {"active": False}, "interaction": {"server": {"port": free_port()}}}
    running = Running(tmp_path, io).ready()
    peer = Peer(running.port)
    running.go.set()
    when(peer, "'iter_info' in Ptycho.runtime")
    assert peer.get("Ptycho.probe.S['SsG00'].data").shape[-1] == BEAM.side
    peer.close()
    running.end()


@pytest.mark.parametrize("off", [{"active": False}, {"server": {"active": False}}])
def test_both_switches_turn_it_off(tmp_path: Path, off: dict[str, Any]) -> None:
    port = free_port()
    running = Running(
        tmp_path, {"interaction": {"server": {"port": port}, **off} | {"server": {"port": port} | off.get("server", {})}}
    )
    deadline = time.monotonic() + 60
    while running.session is None or not running.session.finished:
        running.go.set()
        assert time.monotonic() < deadline
        with sockets.socket() as asked:
            assert asked.connect_ex(("127.0.0.1", port)) != 0
        time.sleep(0.05)
    running.end()
    assert not running.said.is_set()


def test_where_no_port_is_free_the_session_runs_without_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    port, taken = free_port(), []
    for k in range(10):
        taken.append(sockets.socket())
        with contextlib.suppress(OSError):  # others on this machine have it: as good
            taken[-1].bind(("127.0.0.1", port + 20 * k))
            taken[-1].listen()
    running = Running(tmp_path, {"interaction": {"server": {"port": port}}})
    running.go.set()
    running.thread.join(60)
    for each in taken:
        each.close()
    assert (tmp_path / "t.ptyr").exists()
    assert "choose another port; ptypy's clients cannot connect" in caplog.text
