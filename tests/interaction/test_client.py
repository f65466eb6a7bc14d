"""Our client of ptypy's wire: its parameters, its tickets, and servers that are not there any more."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
import zmq
from interaction.test_server import engine, shown, start  # noqa: F401

from ptystream.interaction.client import Client, NoAnswer
from ptystream.params.errors import ConfigurationError
from ptystream.params.interaction import ClientParameters
from ptystream.params.load import load


def test_it_looks_and_steers(start: Any) -> None:  # noqa: F811
    server = start()
    data = np.arange(6, dtype=np.complex64).reshape(2, 3)
    shown(server).show(big=data)
    with Client(ClientParameters(port=server.port), name="script") as client:
        assert client.avail() == ["Ptycho"]
        assert client.get_now("Ptycho.p.io.home") == "/h"
        with pytest.raises(NoAnswer, match="'nothing': is not there"):
            client.get_now("Ptycho.nothing")
        first, second = client.get("Ptycho.big"), client.get("Ptycho.nothing")
        assert not client.poll(first)
        assert client.wait(timeout=20)
        assert client.poll()
        np.testing.assert_array_equal(client.data[first], data)
        assert client.status[first] == "ok"
        assert client.status[second].startswith("Error: 'nothing'")
        ticket = client.do("Ptycho.add(number=3)")
        assert client.wait(ticket, timeout=20)
        assert client.data[ticket] == 3
        ticket = client.set("Ptycho.p.engines.e.alpha", np.zeros(2))
        assert client.wait(ticket, timeout=20)
        assert "no parameter of this session" in client.status[ticket]
        client.flush()
        assert not client.data
        assert [c.name for c in server._clients.values()] == ["script"]
    assert not server._clients
    with pytest.raises(NoAnswer, match="not connected: it was stopped"):
        client.get_now("Ptycho")
    client.stop()


def test_it_says_that_it_is_there_as_often_as_it_is_told_to(start: Any) -> None:  # noqa: F811
    server = start(pingtimeout=0.5, pinginterval=0.05)
    often = Client(port=server.port, pinginterval=0.05, poll_timeout=10.0)
    rarely = Client(port=server.port, pinginterval=60.0, poll_timeout=10.0)
    late = Client(port=server.port, pinginterval=0.05, poll_timeout=60_000.0)  # looks whether a ping is due once a minute
    began = time.monotonic()
    while len(server._clients) > 1:
        assert time.monotonic() - began < 20
        time.sleep(0.01)
    assert [client.id for client in server._clients.values()] == [often._id]
    for client in (often, rarely, late):
        client.stop()


def test_a_server_that_is_not_there_or_dies_is_given_up_in_time(start: Any) -> None:  # noqa: F811
    began = time.monotonic()
    with pytest.raises(NoAnswer, match=r"tcp://127.0.0.1:1: no reply within"):
        Client(port=1, connection_timeout=200.0)
    assert time.monotonic() - began < 10
    context = zmq.Context()
    mute = context.socket(zmq.REP)
    port = mute.bind_to_random_port("tcp://127.0.0.1")
    stream = context.socket(zmq.PUB)
    other = stream.bind_to_random_port("tcp://127.0.0.1")

    def once() -> None:
        mute.recv()
        mute.send_json({"hasarray": False, "message": {"status": "ok", "ID": "A", "port": other}})

    thread = threading.Thread(target=once)
    thread.start()
    client = Client(port=port, connection_timeout=300.0, pinginterval=3600.0)
    thread.join()
    with pytest.raises(NoAnswer, match="no reply within"):
        client.get("Ptycho")
    assert not client.connected
    assert not client.wait(timeout=20)
    client.stop()
    context.destroy(linger=0)


@pytest.mark.parametrize("reply", [b"", b"garbage", b'{"hasarray": false, "message": 5}', b'{"hasarray": false, "message": {}}'])
def test_what_speaks_another_wire_is_told(reply: bytes) -> None:
    context = zmq.Context()
    strange = context.socket(zmq.REP)
    port = strange.bind_to_random_port("tcp://127.0.0.1")

    def once() -> None:
        strange.recv()
        strange.send(reply)

    thread = threading.Thread(target=once)
    thread.start()
    with pytest.raises(NoAnswer):
        Client(port=port, connection_timeout=10_000.0)
    thread.join()
    context.destroy(linger=0)


def test_an_address_elsewhere_may_be_asked(start: Any) -> None:  # noqa: F811
    server = start(address="tcp://127.0.0.3")
    with Client(address="tcp://127.0.0.3", port=server.port) as client:
        assert client.get_now("Ptycho.p.io.home") == "/h"


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({"server": {"address": "tcp://0.0.0.0"}}, "io.interaction.server.address"),
        ({"server": {"address": "tcp://*"}}, "io.interaction.server.address"),
        ({"server": {"address": "tcp://192.168.1.5"}}, "io.interaction.server.address"),
        ({"server": {"address": "127.0.0.1"}}, "io.interaction.server.address"),
        ({"server": {"address": "tcp://127.0.0.1:5560"}}, "io.interaction.server.address"),
        ({"server": {"port": 65530}}, "io.interaction.server.port"),
        ({"server": {"port": 0}}, "io.interaction.server.port"),
        ({"server": {"connections": 0}}, "io.interaction.server.connections"),
        ({"server": {"poll_timeout": -1}}, "io.interaction.server.poll_timeout"),
        ({"server": {"pinginterval": 0}}, "io.interaction.server.pinginterval"),
        ({"server": {"pingtimeout": 0}}, "io.interaction.server.pingtimeout"),
        ({"client": {"address": "http://x"}}, "io.interaction.client.address"),
        ({"client": {"connection_timeout": 0}}, "io.interaction.client.connection_timeout"),
        ({"primary_port": 5}, "io.interaction.primary_port"),
    ],
)
def test_what_cannot_be_right_is_said_before_anything_is_opened(given: dict[str, Any], path: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load({"io": {"interaction": given}, "scans": {}, "engines": {}})
    assert path in [fault.path for fault in caught.value.faults]


def test_a_client_of_a_server_that_is_gone_stops_in_time(start: Any) -> None:  # noqa: F811
    server = start()
    client = Client(port=server.port, pinginterval=3600.0)
    assert client.get_now("Ptycho.p.io.home") == "/h"
    server.close()
    began = time.monotonic()
    client.stop()
    assert time.monotonic() - began < 10
