"""The server on its own, with a peer that knows the wire: IDs, ports, pings, tickets, hostile requests."""

from __future__ import annotations

import logging
import socket as sockets
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from interaction.hostile_requests import FRAMES, MAPS, TEXTS
from interaction.peer import Peer
from steering.test_server import Engine

from ptystream.interaction import clients
from ptystream.interaction.namespace import Namespace
from ptystream.interaction.server import STRIDE, InteractionError, InteractionServer
from ptystream.params.interaction import ServerParameters
from ptystream.params.load import load
from ptystream.steering.desk import action

GIVEN = {
    "run": "t",
    "io": {"home": "/h"},
    "scans": {"s": {"name": "Full", "data": {"name": "MoonFlowerScan", "num_frames": 20}}},
    "engines": {"e": {"name": "DM"}},
}


class Shown(Namespace):
    """A namespace that shows what the test says."""

    def __init__(self) -> None:
        super().__init__(load(GIVEN))
        self.more: dict[str, Any] = {}

    def _made(self, *given: Any) -> Any:
        return {**super()._made(*given), **self.more}

    def show(self, **more: Any) -> None:
        with self._lock:
            self.more = {**self.more, **more}
            self._number += 1
        self.ring()


def free_port() -> int:
    """One that nobody has, with room for clients above."""
    with sockets.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return min(int(asked.getsockname()[1]), 65000)


class Setter:
    """A desk's actor that can set something."""

    def __init__(self) -> None:
        self.held: dict[str, Any] = {}

    @action()
    def set(self, path: str, value: Any) -> Any:
        """Set it."""
        before, self.held[path] = self.held.get(path), value
        return before


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine()
    made.start()
    yield made
    made.end()


@pytest.fixture
def start(engine: Engine) -> Iterator[Callable[..., InteractionServer]]:
    made: list[InteractionServer] = []

    def start(role: Any = "operator", desk: Any = None, **given: Any) -> InteractionServer:
        p = ServerParameters(**({"port": free_port()} | given))
        server = InteractionServer(Shown(), desk or engine.desk, p, role=role)
        made.append(server)
        return server

    yield start
    for server in made:
        server.close()


@pytest.fixture
def peers() -> Iterator[Callable[..., Peer]]:
    made: list[Peer] = []

    def peer(server: InteractionServer, name: str = "peer") -> Peer:
        made.append(Peer(server.port, name))
        return made[-1]

    yield peer
    for each in made:
        each.close()


def shown(server: InteractionServer) -> Shown:
    assert isinstance(server._namespace, Shown)
    return server._namespace


def gone(server: InteractionServer, count: int, within_s: float) -> float:
    """How long it took until only `count` clients were left."""
    began = time.monotonic()
    while len(server._clients) > count:
        assert time.monotonic() - began < within_s, f"{len(server._clients)} clients"
        time.sleep(0.005)
    return time.monotonic() - began


def test_each_client_has_its_id_and_port_which_return_to_the_pool(start: Any, peers: Any) -> None:
    server = start(connections=3)
    three = [peers(server) for _ in range(3)]
    assert [peer.port - server.port for peer in three] == [3, 2, 1]
    assert len({peer.id for peer in three}) == 3
    assert all(len(peer.id) == 6 and set(peer.id) <= set(clients.LETTERS) for peer in three)
    fourth = peers(server)
    assert fourth.id is None
    assert fourth.status == "Error: no more than 3 clients can be connected"
    assert three[1].ask("DISCONNECT") == {"status": "ok"}
    assert three[1].ask("DISCONNECT")["status"] == "Error: no client has this ID: CONNECT first"
    again = peers(server)
    assert again.port == three[1].port
    assert again.id != three[1].id


def test_a_port_that_somebody_has_is_left_out(start: Any, peers: Any) -> None:
    server = start(connections=2)
    with sockets.socket() as taken:
        taken.bind(("127.0.0.1", server.port + 2))
        taken.listen()
        first = peers(server)
        assert first.port == server.port + 1
        assert peers(server).id is None
    assert peers(server).port == server.port + 2


def test_a_busy_port_moves_the_server_by_twenty_and_no_free_one_is_said(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = start()
    second = start(port=first.port)
    assert second.port == first.port + STRIDE
    assert second.endpoint == f"tcp://127.0.0.1:{second.port}"
    monkeypatch.setattr("ptystream.interaction.server.ATTEMPTS", 2)
    with pytest.raises(InteractionError, match=f"ports {first.port}, {second.port}: Address already in use; choose another"):
        start(port=first.port)


def test_only_its_address_is_listened_on(start: Any) -> None:
    server = start(address="tcp://127.0.0.2")
    with sockets.socket() as asked:
        asked.settimeout(5)
        with pytest.raises(ConnectionRefusedError):
            asked.connect(("127.0.0.1", server.port))
    with sockets.create_connection(("127.0.0.2", server.port), 5):
        pass


def test_who_stops_pinging_is_dropped_at_the_next_check(start: Any, peers: Any) -> None:
    quick = start(pingtimeout=0.3, pinginterval=0.05)
    silent, lively = peers(quick), peers(quick)
    silent.ask("PING")
    began = time.monotonic()
    while len(quick._clients) == 2:
        assert lively.ask("PING") == {"status": "pong"}
        assert time.monotonic() - began < 20
        time.sleep(0.02)
    assert list(quick._clients) == [lively.id]
    assert time.monotonic() - began >= 0.3
    assert silent.ask("GET", {"ticket": 1, "str": "Ptycho.p"})["status"].startswith("Error: no client has this ID")


def test_pings_are_checked_at_their_interval(start: Any, peers: Any) -> None:
    slow = start(pingtimeout=0.1, pinginterval=1.5)
    peers(slow).ask("PING")
    assert gone(slow, 0, 20) > 0.5


def test_who_never_pings_is_dropped_only_when_it_does_not_listen(start: Any, peers: Any) -> None:
    server = start(pingtimeout=0.2, pinginterval=0.05)
    quiet, leaving = peers(server), peers(server)
    assert quiet.get("Ptycho.p.io.home") == leaving.get("Ptycho.p.io.home") == "/h"
    leaving.stream.close()
    gone(server, 1, 20)
    assert list(server._clients) == [quiet.id]
    time.sleep(0.4)
    assert quiet.get("Ptycho.p.io.home") == "/h"


def test_a_question_is_answered_from_the_next_state_and_at_the_latest_after_a_second(start: Any, peers: Any) -> None:
    server = start()
    peer = peers(server)
    shown(server).show(n=1)
    assert peer.get("Ptycho.n") == 1
    ticket = peer.request("GET", "Ptycho.n")  # it has seen this state
    assert not peer.stream.poll(300)
    shown(server).show(n=2)
    assert peer.wait(ticket)[0]["out"] == 2
    began = time.monotonic()
    assert peer.get("Ptycho.n") == 2
    assert time.monotonic() - began > 0.5


def test_questions_that_come_together_are_answered_from_one_state(start: Any, peers: Any) -> None:
    server = start(poll_timeout=400.0)
    peer = peers(server)
    shown(server).show(n=1)
    first = peer.request("GET", "Ptycho.n")
    shown(server).show(n=2)
    second = peer.request("GET", "Ptycho.n")
    assert [told["out"] for told in peer.wait(first, second)] == [2, 2]


def test_what_waits_is_answered_once_the_client_listens(start: Any) -> None:
    server = start()
    peer = Peer.__new__(Peer)
    peer.context, peer.id, peer.ticket, peer.got = zmq.Context(), None, 0, {}
    peer.requests = peer.context.socket(zmq.REQ)
    peer.requests.connect(server.endpoint)
    reply = peer.ask("CONNECT", {"name": "late"})
    peer.id = reply["ID"]
    good, bad = peer.request("GET", "Ptycho.p.io.home"), peer.request("GET", "nonsense")
    time.sleep(0.3)
    peer.stream = peer.context.socket(zmq.SUB)
    peer.stream.connect(f"tcp://127.0.0.1:{reply['port']}")
    peer.stream.setsockopt(zmq.SUBSCRIBE, b"")
    told = peer.wait(good, bad)
    peer.close()
    assert [message["out"] for message in told] == ["/h", None]


def test_a_refusal_has_its_ticket_because_clients_wait_for_it(start: Any, peers: Any) -> None:
    peer = peers(start())
    for command, text, more, why in (
        ("GET", "1 + 1", {}, "'+ 1': is not understood"),
        ("GET", "Ptycho.nothing", {}, "'nothing': is not there"),
        ("DO", "import os", {}, "'=' is needed before 'os'"),
        ("DO", "Ptycho.nonsense()", {}, "is unknown; there are add"),
        ("DO", "Ptycho.add(number='x')", {}, "add.number: x: Input should be"),
        ("DO", "Ptycho.p.engines.e.alpha = 1", {}, "no parameter of this session can be set"),
        ("SET", "Ptycho.p.engines.e.alpha", {"val": 1}, "no parameter of this session can be set"),
        ("SET", "Ptycho.obj", {"val": 1}, "only parameters can be set: Ptycho.p"),
        ("SET", "Ptycho.p", {"val": 1}, "only parameters can be set"),
        ("SET", "Ptycho.p.io.home", {}, "'val' is needed"),
    ):
        (told,) = peer.wait(peer.request(command, text, **more))
        assert told["out"] is None
        assert told["status"].startswith("Error: "), told
        assert why in told["status"]
    assert peer.ask("GETNOW", {"str": "Ptycho.nothing"})["status"].startswith("Error: 'nothing'")


def test_what_is_done_is_done_in_the_engines_thread_and_told(start: Any, peers: Any, engine: Engine) -> None:
    peer = peers(start())
    (told,) = peer.wait(peer.request("DO", "Ptycho.add(number=4)"))
    assert told == {"ticket": 1, "status": "ok", "out": 4}
    assert engine.actor.thread is engine


def test_a_parameter_is_set_by_its_path(start: Any, peers: Any) -> None:
    from ptystream.steering.desk import Desk

    actor = Setter()
    desk = Desk(actor, lambda: desk.serve())
    peer = peers(start(desk=desk))
    (told,) = peer.wait(peer.request("SET", "Ptycho.p.engines['e'].alpha", val=0.5))
    assert told["status"] == "ok"
    (told,) = peer.wait(peer.request("DO", "Ptycho.p.engines.e.alpha = 0.7"))
    assert told == {"ticket": 2, "status": "ok", "out": 0.5}
    peer.wait(peer.request("SET", "Ptycho.p.x.y", val=np.arange(3)))
    assert actor.held["engines.e.alpha"] == 0.7
    np.testing.assert_array_equal(actor.held["x.y"], [0, 1, 2])


def test_a_viewer_may_look_and_nothing_else(start: Any, peers: Any, engine: Engine) -> None:
    peer = peers(start(role="viewer"))
    (told,) = peer.wait(peer.request("DO", "Ptycho.add(number=4)"))
    assert "only operators may" in told["status"]
    (told,) = peer.wait(peer.request("DO", "Ptycho.look()"))
    assert told["status"] == "ok"


def test_shutdown_only_disconnects(start: Any, peers: Any) -> None:
    server = start()
    one, other = peers(server), peers(server)
    assert one.ask("SHUTDOWN") == {"status": "ok"}
    assert other.get("Ptycho.p.io.home") == "/h"
    assert one.ask("PING") == {"status": "pong"}
    assert list(server._clients) == [other.id]


def test_more_questions_than_can_wait_are_refused_one_by_one(start: Any, peers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptystream.interaction.server.MAX_WAITING", 3)
    server = start(poll_timeout=1000.0)
    peer = peers(server)
    told = peer.wait(*[peer.request("GET", "Ptycho.p.io.home") for _ in range(5)])
    assert [message["out"] for message in told] == ["/h"] * 3 + [None] * 2
    assert "3 questions wait already" in told[4]["status"]


def test_a_client_that_does_not_read_costs_bounded_memory_and_nobody_else(
    start: Any, peers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "MAX_BEHIND_BYTES", 60 << 20)
    server = start(poll_timeout=0.0)
    hung, other = peers(server), peers(server)
    shown(server).show(big=np.zeros(20 << 20, np.uint8))
    for number in range(20):
        hung.request("GET", "Ptycho.big")
        shown(server).show(n=number)
        assert other.get("Ptycho.n") == number
    behind = sum(size for _, size in next(c for c in server._clients.values() if c.id == hung.id).unread)
    assert behind <= 60 << 20
    told = hung.wait(*range(1, 21))
    assert {message["status"][:20] for message in told} == {"ok", "Error: more than 512"}
    assert hung.get("Ptycho.big").nbytes == 20 << 20


def raw(server: InteractionServer) -> Any:
    socket = zmq.Context.instance().socket(zmq.REQ)
    socket.linger = 0
    socket.connect(server.endpoint)
    return socket


def test_the_hostile_corpus_is_refused_and_ends_nothing(start: Any, peers: Any) -> None:
    server = start()
    peer, socket = peers(server), raw(server)
    for parts in FRAMES:
        socket.send_multipart(parts)
        assert socket.poll(10_000), parts
        assert b'"status": "Error: ' in socket.recv(), parts
    for said in MAPS:
        socket.send_json({"hasarray": False, "message": said})
        assert socket.poll(10_000), said
        assert b'"status": "Error: ' in socket.recv(), said
    for text in TEXTS:
        assert peer.ask("GETNOW", {"str": text})["status"].startswith("Error: "), text
        for command in ("GET", "SET", "DO"):
            (told,) = peer.wait(peer.request(command, text, val=1))
            assert told["status"].startswith("Error: "), (command, text)
    for ticket in (None, [], {}, 1.5, True, "x" * 1000, 1 << 70):
        assert peer.ask("GET", {"ticket": ticket, "str": "Ptycho.p.io.home"})["status"].startswith("Error: ticket")
    assert peer.get("Ptycho.p.io.home") == "/h"
    socket.close()


def test_too_long_a_request_is_not_taken_and_ends_nothing(start: Any, peers: Any) -> None:
    server = start()
    peer, socket = peers(server), raw(server)
    socket.send(b"x" * (2 << 20))
    assert not socket.poll(300)
    socket.close()
    assert peer.get("Ptycho.p.io.home") == "/h"


def test_peers_of_another_kind_and_those_that_leave_end_nothing(start: Any, peers: Any) -> None:
    server = start()
    peer = peers(server)
    context = zmq.Context.instance()
    for kind in (zmq.DEALER, zmq.PUSH, zmq.PUB, zmq.REP):
        socket = context.socket(kind)
        socket.linger = 200
        socket.connect(server.endpoint)
        if kind == zmq.DEALER:
            for _ in range(500):  # replies to it are never read
                socket.send_multipart(
                    [b"", b'{"hasarray": false, "message": {"cmd": "GETNOW", "ID": null, "args": {"str": "Ptycho.p"}}}']
                )
            socket.send_multipart([b"no delimiter"])
        socket.close()
    with sockets.create_connection(("127.0.0.1", server.port), 5) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
    for _ in range(20):  # asks and leaves before the reply
        socket = raw(server)
        socket.send_json({"hasarray": False, "message": {"cmd": "GETNOW", "ID": None, "args": {"str": "Ptycho.p"}}})
        socket.close(0)
    stream = context.socket(zmq.XSUB)
    stream.connect(f"tcp://127.0.0.1:{peer.port}")
    for word in (b"", b"\x00", b"\x02garbage", b"\x01" * 500):
        stream.send(word)
    assert peer.get("Ptycho.p.io.home") == "/h"
    stream.close(0)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=30)
    | st.sampled_from(["Ptycho.p", "Ptycho", "GET"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["ID", "cmd", "args", "ticket", "str", "val", "name"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def standing() -> Iterator[tuple[Any, Peer]]:
    engine = Engine()
    engine.start()
    server = InteractionServer(
        Shown(), engine.desk, ServerParameters(port=free_port(), connections=3, pingtimeout=0.1, pinginterval=0.05)
    )
    socket, peer = raw(server), Peer(server.port)
    yield socket, peer
    peer.close()
    socket.close()
    server.close()
    engine.end()


COMMANDS = ["CONNECT", "DISCONNECT", "PING", "AVAIL", "GET", "SET", "DO", "GETNOW", "SHUTDOWN"]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(command=st.sampled_from(COMMANDS) | VALUES, arguments=VALUES, own=st.booleans())
def test_whatever_is_asked_has_a_reply(standing: Any, command: Any, arguments: Any, own: bool) -> None:
    socket, peer = standing
    socket.send_json({"hasarray": False, "message": {"ID": peer.id if own else None, "cmd": command, "args": arguments}})
    assert socket.poll(10_000)
    assert b'"status"' in socket.recv_multipart()[0]
    assert peer.get_now("Ptycho.p.io.home") == "/h"
    if command in ("DISCONNECT", "SHUTDOWN") and own:
        peer.close()
        peer.__init__(peer.server)  # type: ignore[misc]


def test_at_the_end_who_asks_is_told_and_who_does_not_is_not_waited_for_long(start: Any, peers: Any) -> None:
    server = start()
    peer = peers(server)
    ticket = peer.request("GET", "Ptycho.runtime.get('allstop') is not None")
    assert peer.wait(ticket)[0]["out"] is False
    ticket = peer.request("GET", "Ptycho.runtime.get('allstop') is not None")
    began = time.monotonic()
    server.close()
    server.close()
    assert peer.wait(ticket)[0]["out"] is True
    assert time.monotonic() - began < 1.5
    idle = start()
    listens = peers(idle)
    listens.get("Ptycho.p.io.home")
    began = time.monotonic()
    idle.close()
    assert 1.0 < time.monotonic() - began < 5.0


def test_what_the_log_warns_of_is_told_to_clients_that_listen(start: Any, peers: Any) -> None:
    server = start()
    one, two = peers(server), peers(server, "second")
    for peer in (one, two):
        peer.get("Ptycho.runtime['run']")  # it listens
    log = logging.getLogger("ptystream.elsewhere")
    log.info("nothing")
    log.warning("%s of %d", "frame 3", 7)
    assert [peer.wait("WARN") for peer in (one, two)] == [[{"ticket": "WARN", "status": "ok", "out": "frame 3 of 7"}]] * 2
    log.error("x" * 5000)
    assert len(one.wait("ERROR")[0]["out"]) == 2000
    for k in range(1000):
        log.warning("%d", k)
    assert one.get("Ptycho.runtime['run']") == "t"
    server.close()
    assert server._listener not in logging.getLogger("ptystream").handlers
