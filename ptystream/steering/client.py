"""Asks a running session, and steers it."""

from __future__ import annotations

import contextlib
import getpass
import socket as sockets
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import zmq

from ptystream.security import secure
from ptystream.steering.desk import Refused
from ptystream.steering.wire import MAX_NAME, MAX_REPLY_BYTES, Reply, Request, WireError, decode_reply, encode_request

TIMEOUT_S = 30.0
WAITED_S = 1.0
"""After so long without an answer somebody who looks on is told that it is waited for."""
LOOK_S = 0.2
"""How long a wait for an answer may hold up `close`."""


class Steering:
    """A connection to `io.steering.address` of a session. `ask` may be called from any thread."""

    def __init__(
        self,
        endpoint: str,
        *,
        keys: str | None = None,
        peer_keys: str | None = None,
        timeout_s: float = TIMEOUT_S,
        who: str | None = None,
        on_wait: Callable[[], None] = lambda: None,
    ) -> None:
        """`keys`, `peer_keys`: CURVE certificates as of `ptystream.security.secure`; `who`: for the session's audit, None: user
        and machine; `on_wait` is called once for each answer that takes longer than a second. Raises
        `ValueError` for an endpoint or keys that cannot be right."""
        self.endpoint, self.timeout_s, self._on_wait = endpoint, timeout_s, on_wait
        self.who = whoami() if who is None else who
        self._lock, self._number, self._closing = threading.Lock(), 0, False
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self._socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.setsockopt(zmq.IMMEDIATE, 1)  # nothing is queued for a session that is not there
        self._socket.maxmsgsize = MAX_REPLY_BYTES
        try:
            secure(context, self._socket, False, keys, peer_keys)
            self._socket.connect(endpoint)
        except zmq.ZMQError as error:
            self._socket.close()
            raise ValueError(f"endpoint: {endpoint!r}: {error.strerror}; it looks like tcp://127.0.0.1:5582") from error
        except ValueError:
            self._socket.close()
            raise

    def ask(self, action: str, **arguments: Any) -> Any:
        """The value of an action. Raises `Refused` where the session refuses it, with why and what to do; `TimeoutError` where
        nothing answers within `timeout_s`."""
        return self.ask_for(self.who, action, arguments)

    def ask_for(self, who: str, action: str, arguments: Mapping[str, Any]) -> Any:
        """As `ask`, on behalf of somebody else: `who` stands in the session's audit, at most 100 characters of it."""
        with self._lock:
            self._number += 1
            request, sent = encode_request(Request(self._number, action, arguments, who[:MAX_NAME])), False
            deadline = time.monotonic() + self.timeout_s
            told = self.timeout_s - WAITED_S
            while (left := deadline - time.monotonic()) > 0:
                if self._closing:
                    raise RuntimeError(f"{self.endpoint}: closed before {action!r} was answered")
                if left <= told:
                    told = -1.0
                    self._on_wait()
                ready = self._socket.poll(int(1000 * min(left, LOOK_S)) + 1, zmq.POLLIN if sent else zmq.POLLIN | zmq.POLLOUT)
                if not sent and ready & zmq.POLLOUT:
                    with contextlib.suppress(zmq.Again):  # it has just gone
                        self._socket.send(request, zmq.NOBLOCK)
                        sent = True
                if ready & zmq.POLLIN and (reply := self._reply()).id in (self._number, 0):  # others had been given up
                    if reply.fault is not None:
                        raise Refused(reply.fault.path, reply.fault.given or None, reply.fault.remedy)
                    return reply.value
        raise TimeoutError(
            f"{self.endpoint}: no answer to {action!r} within {self.timeout_s:g} s: is that the steering address which the "
            "session said at its start, and are the keys right?"
        )

    def _reply(self) -> Reply:
        try:
            return decode_reply(self._socket.recv(zmq.NOBLOCK))
        except WireError as error:
            remedy = f"answers what is no reply ({error}): is that a session of this version?"
            raise Refused(self.endpoint, None, remedy) from error

    def close(self) -> None:
        """Close the connection; who waits for an answer is let go."""
        self._closing = True
        with self._lock:
            self._socket.close()

    def __enter__(self) -> Steering:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def whoami() -> str:
    """User and machine."""
    try:
        return f"{getpass.getuser()}@{sockets.gethostname()}"[:100]
    except (OSError, KeyError):
        return sockets.gethostname()[:100]
