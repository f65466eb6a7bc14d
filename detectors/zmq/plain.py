"""A plain ZeroMQ socket that receives, and its parameters: for all sources that listen to somebody's PUSH or PUB."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Protocol, Self

import zmq
from pydantic import field_validator
from zmq.auth.thread import ThreadAuthenticator

from ptystream.events import Buffer
from ptystream.params.base import Branch, parameter
from ptystream.params.home import located
from ptystream.security import check_listening, secure, stop
from ptystream.transport import Message


class SocketParameters(Branch):
    """A ZeroMQ socket: where the sender is, and what may come of it."""

    address: str = parameter("tcp://127.0.0.1:5570", ours=True)
    """ZeroMQ endpoint of the sender (to listen on, with `bind`)."""

    bind: bool = parameter(False, ours=True)
    """Listen on `address` and let the sender connect."""

    insecure: bool = parameter(False, ours=True)
    """Allow `bind` on an interface other than loopback, without encryption."""

    keys: str | None = parameter(None, ours=True)
    """Own CURVE certificate file, with the secret key. None: no encryption; with `peer_keys` a fresh pair is made."""

    peer_keys: str | None = parameter(None, ours=True)
    """Public certificate file of the sender. With `bind` a folder of those that are let in; None: whoever has our public key."""

    high_water_mark: int = parameter(1000, lower=1, ours=True)
    """Messages that a plain socket queues."""

    max_message_bytes: int = parameter(1 << 30, lower=1024, ours=True)
    """Larger messages end the connection before memory is taken."""

    @field_validator("keys", "peer_keys")
    @classmethod
    def _below_home(cls, value: str | None) -> str | None:
        return None if value is None else located(value)


class PlainParameters(SocketParameters):
    """A sender of plain ZeroMQ messages."""

    link: Literal["push", "pub"] = parameter("pub", ours=True)
    """Socket of the sender. 'push' waits for us where we are slow and shares its messages among all that connect; 'pub'
    gives everybody everything and loses what a queue does not hold."""


class PlainTransport:
    """Receives one channel of a PUSH or PUB socket. See `ptystream.transport.Transport`."""

    KINDS: ClassVar[dict[str, int]] = {"push": zmq.PULL, "pub": zmq.SUB}

    def __init__(self, parameters: Any, channel: str, *, topic: bytes = b"") -> None:
        """With link 'pub' only messages that begin with `topic` are received."""
        self.p, self.channel, self._topic = parameters, channel, topic
        self._socket: zmq.Socket[bytes] | None = None
        self._timeout_s: float | None = None
        self._authenticator: ThreadAuthenticator | None = None

    def open(self) -> None:
        """Connect or bind."""
        # An authenticator answers for a whole context, so a socket that needs one gets its own.
        guarded = self.p.bind and self.p.peer_keys is not None
        self._context = zmq.Context() if guarded else zmq.Context.instance()
        socket: zmq.Socket[bytes] = self._context.socket(self.KINDS[self.p.link])
        socket.linger = 0
        socket.rcvhwm = self.p.high_water_mark
        socket.setsockopt(zmq.MAXMSGSIZE, self.p.max_message_bytes)
        socket.setsockopt(zmq.HEARTBEAT_IVL, 2000)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 6000)
        if self.p.link == "pub":
            socket.subscribe(self._topic)
        try:
            if self.p.bind:
                check_listening(self.p.address, self.p.keys, self.p.insecure)
            self._authenticator = secure(self._context, socket, self.p.bind, self.p.keys, self.p.peer_keys)
            (socket.bind if self.p.bind else socket.connect)(self.p.address)
        except (zmq.ZMQError, ValueError) as error:
            socket.close()
            text = f"address {self.p.address!r}: {error.strerror}" if isinstance(error, zmq.ZMQError) else str(error)
            raise OSError(f"{self.channel}: {text}") from error
        self._socket = socket

    def receive(self, timeout_s: float) -> Message | None:
        """The next message, or None after `timeout_s`."""
        socket = self._socket
        assert socket is not None, "open() comes first"
        if timeout_s != self._timeout_s:
            self._timeout_s, socket.rcvtimeo = timeout_s, int(timeout_s * 1000)
        try:
            frames = socket.recv_multipart(copy=False)
        except zmq.Again:
            return None
        return Message(time.time_ns(), self.channel, tuple([frame.buffer for frame in frames]))

    def acknowledge(self, message: Message) -> None:
        """A plain socket knows no acknowledgement."""

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close(linger=2000)
            self._socket = None
            stop(self._authenticator)
            if self._context is not zmq.Context.instance():
                self._context.term()


TICK = b"ptystream tick"
"""A message of this part alone: nothing came for a while. So a decoder, which has no clock, gives up waiting; it is recorded
as the others are, and a replay gives up at the same place."""


class Waiting(Protocol):
    """A decoder that may hold messages back until others come."""

    @property
    def waiting(self) -> bool:
        """Whether it holds something back."""


class TickingTransport(PlainTransport):
    """The same, and a tick where `late_s` pass in silence while the decoder waits."""

    def __init__(self, parameters: Any, channel: str, decoder: Waiting) -> None:
        super().__init__(parameters, channel)
        self._decoder, self._came = decoder, 0.0

    def receive(self, timeout_s: float) -> Message | None:
        """The next message or a tick, or None after `timeout_s`."""
        message = super().receive(timeout_s)
        now = time.monotonic()
        if message is None and self._decoder.waiting and now - self._came > self.p.late_s:
            message = Message(time.time_ns(), self.channel, (TICK,))
        if message is not None:
            self._came = now
        return message


class PlainSender:
    """The other end, for simulators and recordings: a PUSH or PUB socket on loopback. A context manager."""

    def __init__(
        self,
        link: Literal["push", "pub"] = "push",
        address: str = "tcp://127.0.0.1:*",
        *,
        timeout_s: float = 30.0,
        unsent: Sequence[bytes] = (TICK,),
    ) -> None:
        """`unsent`: messages of one part that `again` leaves out, because receivers make them. Raises `ValueError` for an address
        beyond loopback, `OSError` for one that cannot be had."""
        check_listening(address, None, False)
        self._unsent = unsent
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUSH if link == "push" else zmq.XPUB)
        self._socket.linger = 2000
        self._socket.sndtimeo = self._socket.rcvtimeo = int(timeout_s * 1000)
        try:
            self._socket.bind(address)
        except zmq.ZMQError as error:
            self._socket.close(0)
            self._context.term()
            raise OSError(f"{address}: {error.strerror}") from error
        self._subscribers = link == "pub"
        self.address = str(self._socket.getsockopt_string(zmq.LAST_ENDPOINT))
        """Where it listens."""

    def send(self, parts: Sequence[Buffer]) -> None:
        """Send one message; the first one of a PUB waits until somebody has subscribed."""
        if self._subscribers:
            self._socket.recv()
            self._subscribers = False
        self._socket.send_multipart(list(parts))

    def wait(self, timeout_s: float) -> None:
        """Wait until somebody has connected, or subscribed. Raises `TimeoutError`."""
        if not self._socket.poll(int(timeout_s * 1000), zmq.POLLIN if self._subscribers else zmq.POLLOUT):
            raise TimeoutError(f"{self.address}: nobody came within {timeout_s:g} s")

    def again(self, parts: Sequence[Buffer]) -> None:
        """Send a message as it was recorded. Raises `TimeoutError` where nobody takes it."""
        if len(parts) == 1 and bytes(memoryview(parts[0])[:64]) in self._unsent:
            return
        try:
            self.send(parts)
        except zmq.Again as error:
            raise TimeoutError(f"{self.address}: nobody took a message") from error

    def flush(self, timeout_s: float = 30.0) -> None:
        """Let what is queued so much time to go, on closing: nobody tells that it was taken."""
        self._socket.linger = int(timeout_s * 1000)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._context.term()
