"""A socket that takes what a session publishes."""

from __future__ import annotations

import zmq

from ptystream.publish.publisher import topic_of
from ptystream.publish.schema import MAX_MESSAGE_BYTES
from ptystream.security import secure


def subscriber(
    endpoint: str, form: str, run: str = "", *, keys: str | None = None, peer_keys: str | None = None
) -> zmq.Socket[bytes]:
    """Subscribed to the snapshots of one run in one form, or with an empty name of all runs.

    `keys`, `peer_keys`: CURVE certificates as of `ptystream.security.secure`; the session's public one is needed where it has
    keys. Raises `ValueError` for an endpoint or keys that cannot be right; a session that is not there yet is waited for.
    """
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
    socket: zmq.Socket[bytes] = context.socket(zmq.SUB)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.RCVHWM, 2)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
    socket.setsockopt(zmq.HEARTBEAT_IVL, 2000)
    socket.subscribe(topic_of(form, run))
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
