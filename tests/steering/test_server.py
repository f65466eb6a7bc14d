"""A session is asked over a socket: real sockets, hostile peers, CURVE."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import hostile
import pytest
import zmq
import zmq.auth
from steering.test_desk import Actor

from ptystream.steering.client import Steering
from ptystream.steering.desk import Desk, Refused
from ptystream.steering.server import Server, SteeringError
from ptystream.steering.wire import MAX_REQUEST_BYTES, Request, decode_reply, encode_request


class Engine(threading.Thread):
    """Serves a desk whenever it is rung."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.actor, self.rung, self.over = Actor(), threading.Event(), False
        self.desk = Desk(self.actor, self.rung.set)

    def run(self) -> None:
        while not self.over:
            self.rung.wait()
            self.rung.clear()
            self.desk.serve()

    def end(self) -> None:
        self.over = True
        self.rung.set()
        self.join(60)


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine()
    made.start()
    yield made
    made.end()


@pytest.fixture
def server(engine: Engine) -> Iterator[Server]:
    made = Server(engine.desk)
    yield made
    made.close()


def test_a_question_and_a_change_are_answered_and_done_in_the_engines_thread(server: Server, engine: Engine) -> None:
    with Steering(server.endpoint) as steering:
        assert steering.ask("look") == 0
        assert steering.ask("add", number=4) == 4
        assert engine.actor.thread is engine
        with pytest.raises(Refused, match="not negative"):
            steering.ask("add", number=-1)
        with pytest.raises(Refused, match="there are add, look"):
            steering.ask("__class__")
        assert steering.ask("look") == 4


def test_many_clients_at_once_each_get_their_own_answers(server: Server) -> None:
    answers: dict[int, list[int]] = {}

    def client(number: int) -> None:
        with Steering(server.endpoint) as steering:
            answers[number] = [steering.ask("add", number=0) for _ in range(20)]

    threads = [threading.Thread(target=client, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(answers) == list(range(8)) and all(got == [0] * 20 for got in answers.values())


def test_nothing_that_comes_ends_the_server(server: Server) -> None:
    context = zmq.Context.instance()
    with context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(server.endpoint)
        for _, parts in hostile.malformed():
            if any(memoryview(part).nbytes > MAX_REQUEST_BYTES for part in parts):
                continue
            socket.send_multipart([bytes(part) for part in parts] or [b""])
            assert socket.poll(30_000)
            assert b"fault" in socket.recv()
        socket.send(bytes(2 << 20))  # above the limit: disconnected
    with Steering(server.endpoint) as steering:
        assert steering.ask("look") == 0


def test_a_session_that_is_not_there_is_a_time_out_that_says_what_to_look_at() -> None:
    with Steering("tcp://127.0.0.1:9", timeout_s=0.2) as steering, pytest.raises(TimeoutError, match="steering address"):
        steering.ask("look")


def test_beyond_loopback_only_with_keys(engine: Engine) -> None:
    with pytest.raises(SteeringError, match="beyond loopback"):
        Server(engine.desk, "tcp://0.0.0.0:*")
    with pytest.raises(SteeringError, match="give keys too"):
        Server(engine.desk, operators=".")


def test_operators_may_steer_others_may_look_strangers_may_nothing(engine: Engine, tmp_path: Path) -> None:
    for folder in ("private", "operators", "let_in"):
        (tmp_path / folder).mkdir()
    for name in ("session", "anna", "bert", "stranger"):
        public, _ = zmq.auth.create_certificates(tmp_path / "private", name)
        for folder, names in (("operators", ["anna"]), ("let_in", ["anna", "bert"])):
            if name in names:
                (tmp_path / folder / f"{name}.key").write_text(Path(public).read_text())
    private = tmp_path / "private"
    folders = {"peer_keys": str(tmp_path / "let_in"), "operators": str(tmp_path / "operators")}
    server = Server(engine.desk, keys=str(private / "session.key_secret"), **folders)

    def connection(name: str, timeout_s: float = 30.0) -> Steering:
        keys = {"keys": str(private / f"{name}.key_secret"), "peer_keys": str(private / "session.key")}
        return Steering(server.endpoint, timeout_s=timeout_s, **keys)

    try:
        with connection("anna") as anna, connection("bert") as bert, connection("stranger", 1.0) as stranger:
            assert anna.ask("add", number=1) == 1
            assert bert.ask("look") == 1
            with pytest.raises(Refused, match="only operators"):
                bert.ask("add", number=1)
            with pytest.raises(TimeoutError):
                stranger.ask("look")
    finally:
        server.close()


def test_an_operators_folder_without_certificates_is_refused(engine: Engine, tmp_path: Path) -> None:
    zmq.auth.create_certificates(tmp_path, "session")
    with pytest.raises(SteeringError, match="a folder of public certificates"):
        Server(engine.desk, keys=str(tmp_path / "session.key_secret"), operators=str(tmp_path / "nothing"))


def test_a_request_of_many_parts_is_bounded_as_a_whole(server: Server, engine: Engine) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.connect(server.endpoint)
        part = bytes(MAX_REQUEST_BYTES // 4)
        socket.send_multipart([part] * 5 + [encode_request(Request(1, "look"))])
        assert socket.poll(20_000)
        reply = decode_reply(socket.recv())
        assert reply.fault is not None and "bytes in all its parts; 1048576 are allowed" in reply.fault.remedy
        socket.send_multipart([b"", encode_request(Request(2, "look"))])
        assert socket.poll(20_000) and decode_reply(socket.recv()).value == 0
