"""A socket that takes what a session publishes."""

from __future__ import annotations

import zmq

from ptystream.publish import heartbeat
from ptystream.publish.publisher import QUEUE, topic_of
from ptystream.publish.schema import MAX_MESSAGE_BYTES
from ptystream.security import secure

KEEP_ALIVE = {zmq.TCP_KEEPALIVE: 1, zmq.TCP_KEEPALIVE_IDLE: 5, zmq.TCP_KEEPALIVE_INTVL: 2, zmq.TCP_KEEPALIVE_CNT: 3}
"""A peer that is gone without a word is found by the kernel: libzmq's own heartbeat takes one for gone as soon as a reader that
takes its time lets the queue fill, and may then abort the process (libzmq, issue 3937)."""
HEARTBEATS = 1000
"""Queued for one that listens: it takes them as they come, and they are small."""


def subscriber(
    endpoint: str, form: str, run: str = "", *, keys: str | None = None, peer_keys: str | None = None
) -> zmq.Socket[bytes]:
    """Subscribed to the snapshots of one run in one form, or with an empty name of all runs.

    `keys`, `peer_keys`: CURVE certificates as of `ptystream.security.secure`; the session's public one is needed where it has
    keys. Raises `ValueError` for an endpoint or keys that cannot be right; a session that is not there yet is waited for.
    """
    return _connected(endpoint, topic_of(form, run), MAX_MESSAGE_BYTES, QUEUE, keys, peer_keys)


def listener(endpoint: str, *, keys: str | None = None, peer_keys: str | None = None) -> zmq.Socket[bytes]:
    """Subscribed to a session's heartbeats alone: over a connection of its own, so that no snapshot is before them in a queue.
    Arguments and errors as of `subscriber`."""
    return _connected(endpoint, heartbeat.TOPIC, heartbeat.MAX_BYTES, HEARTBEATS, keys, peer_keys)


def _connected(
    endpoint: str, topic: bytes, largest: int, queue: int, keys: str | None, peer_keys: str | None
) -> zmq.Socket[bytes]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
    socket: zmq.Socket[bytes] = context.socket(zmq.SUB)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.RCVHWM, queue)
    socket.setsockopt(zmq.MAXMSGSIZE, largest)
    for option, value in KEEP_ALIVE.items():
        socket.setsockopt(option, value)
    socket.subscribe(topic)
    try:
        secure(context, socket, False, keys, peer_keys)
        socket.connect(endpoint)
    except zmq.ZMQError as error:
        socket.close()
        raise ValueError(f"endpoint: {endpoint!r}: {error.strerror}; it looks like tcp://127.0.0.1:5580") from error
    except ValueError:
        socket.close()
        raise
    return socket
