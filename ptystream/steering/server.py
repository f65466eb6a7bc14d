"""The socket on which a session is asked: a thread of its own, which nothing that comes can end or hold up."""

from __future__ import annotations

import logging
import threading
from collections import deque
from functools import partial
from pathlib import Path

import zmq
import zmq.auth

from ptystream.security import check_listening, secure, stop
from ptystream.steering.desk import Desk, Role
from ptystream.steering.wire import MAX_REQUEST_BYTES, Fault, Reply, WireError, decode_request, encode_reply
from ptystream.waker import Waker

log = logging.getLogger(__name__)

MAX_AT_ONCE = 100
"""Requests that are read before replies are sent again."""
QUEUE = 100
"""Replies that wait for one client; further ones are dropped, for it alone."""
LINGER_MS = 500


class SteeringError(RuntimeError):
    """The socket cannot be opened; the text says which and why."""


class Server:
    """A ROUTER socket that gives what comes to a `Desk`, and its replies back."""

    def __init__(
        self,
        desk: Desk,
        address: str = "tcp://127.0.0.1:*",
        *,
        keys: str | None = None,
        peer_keys: str | None = None,
        operators: str | None = None,
        insecure: bool = False,
    ) -> None:
        """`keys`, `peer_keys`: CURVE certificates as of `ptystream.security.secure`. `operators`: folder of public certificates
        of those who may change something; None: whoever is let in may. Raises `SteeringError`."""
        self._desk = desk
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        self._socket.maxmsgsize = MAX_REQUEST_BYTES
        self._socket.linger = LINGER_MS
        self._socket.sndhwm = self._socket.rcvhwm = QUEUE
        self._authenticator = None
        try:
            check_listening(address, keys, insecure)
            if operators is not None and keys is None:
                raise ValueError(f"operators {operators!r}: nobody can be told apart without encryption: give keys too")
            self._operators = None if operators is None else names_of(operators)
            self._authenticator = secure(self._context, self._socket, True, keys, peer_keys, known=operators is not None)
            self._socket.bind(address)
        except (ValueError, zmq.ZMQError) as error:
            stop(self._authenticator)
            self._context.destroy(linger=0)
            why = error.strerror if isinstance(error, zmq.ZMQError) else str(error)
            raise SteeringError(f"io.steering: {address!r}: {why}") from error
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.failure: BaseException | None = None
        """Why nobody is answered any more; None while they are."""
        self._waker, self._closed = Waker(), threading.Event()
        self._replies: deque[tuple[bytes, Reply]] = deque()
        self._thread = threading.Thread(target=self._serve, name="steering", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Send the replies that are there, and close. May be called twice."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._waker.wake()
        self._thread.join(5.0)
        stop(self._authenticator)
        self._context.term()
        self._waker.close()

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._waker.fileno(), zmq.POLLIN)
        try:
            while not self._closed.is_set():
                if self._waker.fileno() in dict(poller.poll()):
                    self._waker.clear()
                for _ in range(MAX_AT_ONCE):
                    if not self._socket.poll(0):
                        break
                    self._take()
                self._send()
            self._send()
        except BaseException as error:  # the session goes on without it
            self.failure = error
            log.exception("%s: nobody can ask any more", self.endpoint)
        finally:
            self._socket.close()

    def _take(self) -> None:
        """Read one request, of which no more is kept than may be."""
        identity, size = self._socket.recv(), 0
        frame = None
        while self._socket.getsockopt(zmq.RCVMORE):
            frame = self._socket.recv(copy=False)
            size += len(frame)
        if frame is None:
            return
        who, role = self._known(frame)
        try:
            if size > MAX_REQUEST_BYTES:
                raise WireError(f"{size} bytes in all its parts; {MAX_REQUEST_BYTES} are allowed")
            request = decode_request(frame.buffer)
        except WireError as error:
            self._replies.append((identity, Reply(0, fault=Fault("request", "", str(error)))))
            return
        asking = f"{request.who} ({who})" if request.who else who
        try:
            self._desk.ask(request, partial(self._answer, identity), who=asking, role=role)
        except Exception as error:  # one request costs its own answer, and not everybody else's
            log.exception("%s: %s could not be asked", self.endpoint, request.action)
            self._replies.append((identity, Reply(request.id, fault=Fault("request", "", f"failed: {type(error).__name__}"))))

    def _answer(self, identity: bytes, reply: Reply) -> None:
        """Called from any thread."""
        if self.failure is not None:
            return  # nobody sends them
        self._replies.append((identity, reply))
        self._waker.wake()

    def _send(self) -> None:
        while self._replies:
            identity, reply = self._replies.popleft()
            try:
                raw = encode_reply(reply)
            except WireError as error:
                raw = encode_reply(Reply(reply.id, fault=Fault("reply", "", str(error))))
            self._socket.send_multipart([identity, raw])  # a ROUTER drops what nobody takes; it never waits

    def _known(self, frame: zmq.Frame) -> tuple[str, Role]:
        """Who sent it, and what they may do."""
        key, address = _property(frame, "User-Id"), _property(frame, "Peer-Address") or "here"
        if self._operators is None:
            return address, "operator"
        name = self._operators.get(key)
        return (f"a viewer, {address}", "viewer") if name is None else (f"{name}, {address}", "operator")


def names_of(folder: str) -> dict[str, str]:
    """Public key → name of its certificate file. Raises `ValueError` for a folder without certificates."""
    found: dict[str, str] = {}
    try:
        for file in sorted(Path(folder).glob("*.key")):
            found[zmq.auth.load_certificate(file)[0].decode()] = file.stem
    except (OSError, ValueError) as error:
        raise ValueError(f"operators {folder!r}: {error}; make certificates with `ptystream keys`") from error
    if not found:
        raise ValueError(f"operators {folder!r}: a folder of public certificates (.key) is needed")
    return found


def _property(frame: zmq.Frame, name: str) -> str:
    try:
        return str(frame.get(name))
    except zmq.ZMQError:
        return ""
