"""Over which socket a channel of a recording is given back."""

from __future__ import annotations

from typing import Any

import pytest
import zmq

from ptystream.detectors.zmq.plain import TICK
from ptystream.giving import giver_of


@pytest.mark.parametrize(
    ("branch", "link", "kind"),
    [
        ({"name": "ZmqScan"}, None, zmq.ROUTER),
        ({"name": "ZmqScan", "link": "push"}, None, zmq.PUSH),
        ({"name": "ZmqScan", "link": "pub", "shape": 32}, None, zmq.XPUB),
        ({"name": "DectrisScan", "energy": 8.0}, None, zmq.PUSH),
        ({"name": "DectrisScan"}, "acknowledged", zmq.ROUTER),
        ({"name": "DectrisScan"}, "pub", zmq.PUB),
        ({"name": "AdZmqScan"}, None, zmq.XPUB),
        ({"name": "MaxivScan", "link": "push"}, None, zmq.PUSH),
        ({"name": "SlsScan"}, None, zmq.XPUB),
        ({"name": "PandaJsonScan", "link": "push", "channels": {"y": "a"}}, None, zmq.PUSH),
        ({"name": "BlueskyScan"}, None, zmq.XPUB),
        ({"name": "BlueskyScan", "via": "process"}, None, zmq.XPUB),
        ({"name": "Hdf5Scan", "file": "a.h5"}, None, zmq.ROUTER),
        ({"name": "of another time"}, None, zmq.ROUTER),
        (None, None, zmq.ROUTER),
        (None, "push", zmq.PUSH),
    ],
)
def test_the_kind_of_the_socket_is_that_of_the_source(branch: Any, link: str | None, kind: int) -> None:
    with giver_of("s/data", branch, link=link) as made:
        assert made._socket.type == kind  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("branch", "said"),
    [
        ({"name": "BlueskyScan", "via": "file", "file": "a.jsonl"}, "s/data: its documents came 'via: file', which is no socket"),
        (
            {"name": "DectrisScan", "connections": -1},
            "s/data: its configuration, DectrisScan, cannot be used here .connections: ",
        ),
        ({"name": "PvaScan", "pv": ""}, "--into a session"),
    ],
)
def test_what_cannot_be_given_back_so_is_refused_with_a_remedy(branch: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        giver_of("s/data", branch)


def test_an_address_in_use_or_beyond_loopback_is_refused() -> None:
    for branch in ({"name": "DectrisScan"}, {"name": "PandaScan"}):
        with giver_of("s/data", branch) as made, pytest.raises(OSError, match=r"(?i)in use"):
            giver_of("s/data", branch, made.address)
        with pytest.raises(ValueError, match="beyond loopback"):
            giver_of("s/data", branch, "tcp://0.0.0.0:5599")


def test_messages_wait_for_whoever_subscribes_and_ticks_are_not_sent() -> None:
    with giver_of("s/data", {"name": "AdZmqScan"}) as made:
        with pytest.raises(TimeoutError, match="nobody came"):
            made.wait(0.01)
        with zmq.Context() as context, context.socket(zmq.SUB) as socket:
            socket.subscribe(b"")
            socket.connect(made.address)
            made.wait(60)
            for parts in ((b"a", b"b"), (TICK,), (b"c",)):
                made.again(parts)
            assert [socket.recv_multipart() for _ in range(2)] == [[b"a", b"b"], [b"c"]]
