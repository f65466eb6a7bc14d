"""The publish socket over real ZeroMQ: late joiners, the newest, viewers that hang, an end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
import zmq.auth
from snapshots import snapshot

from ptystream.publish.publisher import QUEUE, Publisher, PublisherError, topic_of
from ptystream.publish.schema import decode, encode
from ptystream.publish.snapshot import Snapshot
from ptystream.viewers.client import Client


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    made = Publisher()
    yield made
    made.close()


@pytest.fixture
def sockets() -> Iterator[list[zmq.Socket[bytes]]]:
    held: list[zmq.Socket[bytes]] = []
    yield held
    for socket in held:
        socket.close(linger=0)


def subscriber(sockets: list[zmq.Socket[bytes]], endpoint: str, run: str = "") -> zmq.Socket[bytes]:
    socket = zmq.Context.instance().socket(zmq.SUB)
    sockets.append(socket)
    socket.rcvhwm = 1
    socket.subscribe(topic_of("complex64", run))
    socket.connect(endpoint)
    return socket


def wait_for(publisher: Publisher, viewers: int) -> None:
    """Until so many subscriptions have reached the publisher."""
    deadline = time.monotonic() + 60
    while publisher.viewers != viewers:
        assert time.monotonic() < deadline, f"{publisher.viewers} viewers, not {viewers}"
        publisher._waker.wake()
        time.sleep(0.005)


def received(socket: zmq.Socket[bytes]) -> list[bytes]:
    assert socket.poll(60_000), "no snapshot came"
    return socket.recv_multipart()


def test_a_late_joiner_gets_the_last_snapshot_at_once(publisher: Publisher, sockets: list[zmq.Socket[bytes]]) -> None:
    for number in range(5):
        publisher.offer(snapshot(number))
    first = subscriber(sockets, publisher.endpoint)
    topic, *parts = received(first)
    assert topic == topic_of("complex64", "test")
    assert decode(parts).number == 4
    second = subscriber(sockets, publisher.endpoint)
    assert decode(received(second)[1:]).number == 4


def test_the_end_of_a_run_is_not_lost_to_the_beginning_of_the_next(
    publisher: Publisher, sockets: list[zmq.Socket[bytes]]
) -> None:
    first = subscriber(sockets, publisher.endpoint, "a")
    wait_for(publisher, 1)
    publisher.offer(snapshot(9, run="a", state="finished"))
    publisher.offer(snapshot(0, run="b"))
    assert decode(received(first)[1:]).number == 9
    late = subscriber(sockets, publisher.endpoint)
    assert {decode(received(late)[1:]).run for _ in range(2)} == {"a", "b"}


def test_nor_is_it_to_who_comes_when_the_next_one_begins(
    publisher: Publisher, sockets: list[zmq.Socket[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = zmq.Context.instance().socket(zmq.SUB)
    sockets.append(pictures)
    pictures.subscribe(topic_of("uint8", "a"))
    pictures.connect(publisher.endpoint)
    subscriber(sockets, publisher.endpoint, "a")
    wait_for(publisher, 2)
    busy, free = threading.Event(), threading.Event()

    def slow(shown: Snapshot, form: str) -> Any:
        if form == "uint8":  # the other form is on its way
            busy.set()
            assert free.wait(60)
        return encode(shown, form)

    monkeypatch.setattr("ptystream.publish.publisher.encode", slow)
    publisher.offer(snapshot(9, run="a", state="finished"))
    assert busy.wait(60)
    late = subscriber(sockets, publisher.endpoint)
    time.sleep(0.3)  # for the subscription to be there with the next offer
    publisher.offer(snapshot(0, run="b"))
    free.set()
    assert {decode(received(late)[1:]).run for _ in range(2)} == {"a", "b"}


def test_whoever_looks_at_one_run_gets_no_other(publisher: Publisher, sockets: list[zmq.Socket[bytes]]) -> None:
    chosen = subscriber(sockets, publisher.endpoint, "a")
    longer = subscriber(sockets, publisher.endpoint, "ab")
    wait_for(publisher, 2)
    for run in ("ab", "a"):
        publisher.offer(snapshot(0, run=run))
        assert decode(received(longer if run == "ab" else chosen)[1:]).run == run
    assert not longer.poll(100)


def test_of_what_is_offered_faster_than_it_goes_out_the_newest_wins(
    publisher: Publisher, sockets: list[zmq.Socket[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    socket = subscriber(sockets, publisher.endpoint)
    wait_for(publisher, 1)
    busy, free = threading.Event(), threading.Event()

    def slow(*arguments: Any) -> Any:
        busy.set()
        assert free.wait(60)
        return encode(*arguments)

    monkeypatch.setattr("ptystream.publish.publisher.encode", slow)
    publisher.offer(snapshot(0))
    assert busy.wait(60)
    for number in range(1, 300):  # the caller does not wait for what goes out
        publisher.offer(snapshot(number))
    publisher.offer(snapshot(300, state="finished"))
    free.set()
    assert [decode(received(socket)[1:]).number for _ in range(2)] == [0, 300]


def test_viewers_that_never_read_cost_neither_the_caller_nor_the_others(
    publisher: Publisher, sockets: list[zmq.Socket[bytes]]
) -> None:
    hung = [subscriber(sockets, publisher.endpoint) for _ in range(3)]
    reader = subscriber(sockets, publisher.endpoint)
    wait_for(publisher, 4)
    big = snapshot(0, side=300)
    for number in range(60):
        publisher.offer(snapshot(number, side=8) if number % 2 else big)
        received(reader)
    waiting = 0
    while hung[0].poll(200):
        hung[0].recv_multipart()
        waiting += 1
    # Beyond the two high-water marks only what the kernel's buffers take: a few of these messages of 3 MB.
    assert waiting < 40 + QUEUE


def test_a_viewer_that_leaves_is_no_longer_counted(publisher: Publisher, sockets: list[zmq.Socket[bytes]]) -> None:
    kept, leaving = subscriber(sockets, publisher.endpoint), subscriber(sockets, publisher.endpoint)
    wait_for(publisher, 2)
    leaving.close(linger=0)
    wait_for(publisher, 1)
    publisher.offer(snapshot(1))
    received(kept)


def test_what_else_comes_from_a_viewer_is_ignored(publisher: Publisher, sockets: list[zmq.Socket[bytes]]) -> None:
    good = subscriber(sockets, publisher.endpoint)
    rude = zmq.Context.instance().socket(zmq.XSUB)
    sockets.append(rude)
    rude.setsockopt(zmq.RECONNECT_IVL, -1)
    rude.connect(publisher.endpoint)
    rude.send(b"\1nobody's topic")
    wait_for(publisher, 2)
    for word in (b"", b"\0never subscribed", b"\2what", b"hello", bytes(100), b"\1" + bytes(100_000)):
        rude.send(word)
    publisher.offer(snapshot(3))
    assert decode(received(good)[1:]).number == 3
    wait_for(publisher, 1)
    publisher.offer(snapshot(4))
    assert decode(received(good)[1:]).number == 4
    assert publisher.failure is None


def test_the_last_snapshot_is_sent_before_the_socket_closes(sockets: list[zmq.Socket[bytes]]) -> None:
    publisher = Publisher()
    socket = subscriber(sockets, publisher.endpoint)
    wait_for(publisher, 1)
    publisher.offer(snapshot(7, state="finished"))
    publisher.close()
    publisher.close()
    assert decode(received(socket)[1:]).number == 7


def test_the_caller_hears_of_a_dead_thread(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = snapshot(0)
    object.__setattr__(broken, "coverage", {"o": np.zeros((1, 1))})
    publisher.offer(broken)
    publisher._thread.join(60)
    assert not publisher._thread.is_alive()
    with pytest.raises(PublisherError, match="thread died"):
        publisher.offer(snapshot(1))


@pytest.mark.parametrize("address", ["tcp://0.0.0.0:0", "tcp://*:0", "tcp://127.0.0.1.example.org:80", "tcp://[::]:0"])
def test_beyond_loopback_it_must_be_asked_for(address: str) -> None:
    with pytest.raises(PublisherError, match="insecure"):
        Publisher(address)


def test_with_keys_only_those_who_know_them_look(tmp_path: Path, sockets: list[zmq.Socket[bytes]]) -> None:
    (tmp_path / "viewers").mkdir()
    public, own = zmq.auth.create_certificates(tmp_path, "session")
    zmq.auth.create_certificates(tmp_path / "viewers", "friend")
    zmq.auth.create_certificates(tmp_path, "stranger")
    publisher = Publisher(keys=own, peer_keys=str(tmp_path / "viewers"))
    publisher.offer(snapshot(2))
    friend, stranger = str(tmp_path / "viewers" / "friend.key_secret"), str(tmp_path / "stranger.key_secret")
    with Client(publisher.endpoint, keys=friend, peer_keys=public) as let_in:
        shown = let_in.latest(60.0)
        assert shown is not None
        assert shown.number == 2
    for keys, peer_keys in ((stranger, public), (None, public), (None, None)):
        with Client(publisher.endpoint, keys=keys, peer_keys=peer_keys) as kept_out:
            assert kept_out.latest(0.5) is None
    publisher.close()


def test_keys_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(PublisherError, match=r"keys .*nothing\.key_secret"):
        Publisher(keys=str(tmp_path / "nothing.key_secret"))
    public, _ = zmq.auth.create_certificates(tmp_path, "session")
    with pytest.raises(PublisherError, match="holds no secret key"):
        Publisher(keys=public)


def test_an_address_in_use_is_named(publisher: Publisher) -> None:
    with pytest.raises(PublisherError, match=publisher.endpoint):
        Publisher(publisher.endpoint)
