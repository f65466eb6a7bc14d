"""The Python client: what it gives, what it skips, when it ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import count

import numpy as np
import pytest
import zmq
from snapshots import snapshot

from ptystream.publish.publisher import Publisher, topic_of
from ptystream.publish.schema import encode
from ptystream.viewers.client import Client

numbers = count()


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[zmq.Socket[bytes], str]]:
    """The socket of a session in this process, where what is sent is there at once; and its endpoint."""
    monkeypatch.setattr("ptystream.viewers.client.LONGEST_SETTLE_S", 60.0)  # everything is taken in, however slow we are
    with zmq.Context.instance().socket(zmq.XPUB) as socket:
        endpoint = f"inproc://session-{next(numbers)}"
        socket.linger = 0
        socket.sndhwm = 0
        socket.bind(endpoint)
        yield socket, endpoint


def subscribed(socket: zmq.Socket[bytes]) -> None:
    """Wait until a client has subscribed."""
    assert socket.poll(60_000)
    assert socket.recv() == b"\1complex64/"


def send(socket: zmq.Socket[bytes], number: int, run: str = "test", state: str = "running") -> None:
    """What a publisher sends."""
    one = snapshot(number, run=run, state=state)
    socket.send_multipart([topic_of("complex64", run), *encode(one, "complex64")])


def test_snapshots_come_until_the_run_is_over() -> None:
    publisher = Publisher()
    sent = [snapshot(k, state="finished" if k == 3 else "running") for k in range(4)]
    publisher.offer(sent[0])
    got = []
    with Client(publisher.endpoint, timeout_s=1000) as client:  # the end is seen, not waited for
        for shown in client:
            got.append(shown)
            if len(got) < len(sent):
                publisher.offer(sent[len(got)])
        assert client.latest(0.0) is None
    publisher.close()
    assert [shown.number for shown in got] == [0, 1, 2, 3]
    for shown, wanted in zip(got, sent, strict=True):
        np.testing.assert_array_equal(shown.object["o"].data, wanted.object["o"].data)


def test_a_client_that_was_busy_gets_the_newest_and_counts_the_rest(session: tuple[zmq.Socket[bytes], str]) -> None:
    socket, endpoint = session
    with Client(endpoint, timeout_s=60) as client:
        subscribed(socket)
        client._socket.setsockopt(zmq.RCVHWM, 0)
        send(socket, 0)
        first = client.latest()
        assert first is not None
        for number in range(1, 4):
            send(socket, number)
        newest = client.latest()
        assert newest is not None
        assert newest.number == 3
        assert client.skipped == 2
        assert client.latest(0.0) is None


def test_a_run_that_has_ended_is_not_skipped_for_the_next_one(session: tuple[zmq.Socket[bytes], str]) -> None:
    socket, endpoint = session
    with Client(endpoint, timeout_s=60) as client:
        subscribed(socket)
        send(socket, 0, "a")
        assert client.latest() is not None
        for number, run, state in ((1, "a", "running"), (2, "a", "finished"), (0, "b", "waiting"), (1, "b", "running")):
            send(socket, number, run, state)
        given = [client.latest() for _ in range(2)]
        assert [(shown.run, shown.number) for shown in given if shown is not None] == [("a", 2), ("b", 1)]
        assert client.latest(0.0) is None
        assert client.skipped == 2


def test_names_of_runs_without_end_do_not_fill_the_memory(
    session: tuple[zmq.Socket[bytes], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ptystream.viewers.client.RUNS_HELD", 3)
    socket, endpoint = session
    with Client(endpoint, timeout_s=60) as client:
        subscribed(socket)
        for k in range(8):
            send(socket, k, f"r{k}")
        given = []
        while (shown := client.latest(0.0)) is not None:
            given.append(shown.run)
        assert given == ["r5", "r6", "r7"]
        assert client.skipped == 5


def test_a_session_that_never_pauses_does_not_keep_the_newest_back() -> None:
    publisher, over = Publisher(), threading.Event()

    def flood() -> None:
        number = 0
        while not over.is_set():
            publisher.offer(snapshot(number, seed=0))
            number += 1
            over.wait(0.001)

    thread = threading.Thread(target=flood)
    thread.start()
    with Client(publisher.endpoint, timeout_s=60) as client:
        numbers = [shown.number for shown in (client.latest() for _ in range(10)) if shown is not None]
    over.set()
    thread.join(60)
    publisher.close()
    assert len(numbers) == 10
    assert numbers == sorted(set(numbers))


def test_the_wait_ends() -> None:
    began = time.monotonic()
    with Client("tcp://127.0.0.1:9", timeout_s=0.2) as client:
        assert list(client) == []
    assert time.monotonic() - began > 0.15


def test_what_is_no_snapshot_is_counted_and_passed_over(session: tuple[zmq.Socket[bytes], str]) -> None:
    socket, endpoint = session
    with Client(endpoint, timeout_s=60) as client:
        subscribed(socket)
        for parts in ([b"", b"rubbish"], [b"\x80"], []):
            socket.send_multipart([topic_of("complex64", "test"), *parts])
            assert client.latest(0.0) is None
        send(socket, 5)
        shown = client.latest()
        assert shown is not None
        assert shown.number == 5
        assert client.refused == 3


def test_a_session_that_is_started_again_is_found_again() -> None:
    first = Publisher()
    endpoint = first.endpoint
    with Client(endpoint, timeout_s=60) as client:
        first.offer(snapshot(0))
        assert client.latest() is not None
        first.close()
        second = Publisher(endpoint)
        threading.Timer(0.1, second.offer, [snapshot(1)]).start()
        shown = client.latest()
        assert shown is not None
        assert shown.number == 1
        second.close()


def test_display_ready_pictures_on_request() -> None:
    publisher = Publisher()
    publisher.offer(snapshot(1, state="finished"))
    with Client(publisher.endpoint, form="uint8", timeout_s=60) as client:
        (shown,) = list(client)
    publisher.close()
    assert shown.object["o"].phase.dtype == np.uint8
    assert shown.about.number == 1


def test_wrong_arguments_are_told() -> None:
    with pytest.raises(ValueError, match=r"form: 'jpeg': must be one of complex64, uint8"):
        Client("tcp://127.0.0.1:9", form="jpeg")
    with pytest.raises(ValueError, match=r"endpoint: 'nonsense'.*tcp://127.0.0.1:5580"):
        Client("nonsense")
