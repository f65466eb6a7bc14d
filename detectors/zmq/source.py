"""The sockets of the native wire, and their parameters."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any, Literal

import zmq

from ptystream.params.base import Branch, parameter
from ptystream.transport import Message

from .link import NO_STREAM, control, is_envelope, opened
from .protocol import NativeDecoder
from .sender import Sender

log = logging.getLogger(__name__)

HELLO_S = 1.0
"""A silent sender is greeted again after so long: it may have started later than we did."""


class ZmqParameters(Branch):
    """Where a sender of the native wire is."""

    address: str = parameter("tcp://127.0.0.1:5570", ours=True)
    """ZeroMQ endpoint of the sender (to listen on, with `bind`)."""

    link: Literal["acknowledged", "push", "pub"] = parameter("acknowledged", ours=True)
    """Socket of the sender: 'acknowledged' (lossless, `ptystream.detectors.zmq.Sender`), or plain 'push' or 'pub'."""

    bind: bool = parameter(False, ours=True)
    """Listen on `address` and let the sender connect (not with 'acknowledged')."""

    insecure: bool = parameter(False, ours=True)
    """Allow `bind` on an interface other than loopback, without encryption."""

    high_water_mark: int = parameter(1000, lower=1, ours=True)
    """Messages that a plain socket queues."""

    max_message_bytes: int = parameter(1 << 30, lower=1024, ours=True)
    """Larger messages end the connection before memory is taken."""


class ZmqTransport:
    """Receives one channel. See `ptystream.transport.Transport`."""

    def __init__(self, parameters: Any, channel: str, resume: Callable[[], tuple[bytes, int]] | None = None) -> None:
        self.p, self.channel = parameters, channel
        self._resume = resume or (lambda: (NO_STREAM, 0))
        self._socket: zmq.Socket[bytes] | None = None
        self._lock = threading.Lock()
        self._recorded: tuple[bytes, int] | None = None
        self._pipe: tuple[int, int] | None = None
        self._last = 0.0

    def open(self) -> None:
        """Connect or bind."""
        loopback = any(word in self.p.address for word in ("127.0.0.1", "localhost", "[::1]", "ipc://", "inproc://"))
        if self.p.bind and not loopback and not self.p.insecure:
            raise OSError(
                f"{self.channel}: address {self.p.address!r}: listens beyond loopback without encryption; "
                "use 127.0.0.1, or set insecure: true"
            )
        kinds = {"acknowledged": zmq.DEALER, "push": zmq.PULL, "pub": zmq.SUB}
        socket: zmq.Socket[bytes] = zmq.Context.instance().socket(kinds[self.p.link])
        socket.linger = 0
        socket.rcvhwm = self.p.high_water_mark
        socket.setsockopt(zmq.MAXMSGSIZE, self.p.max_message_bytes)
        socket.setsockopt(zmq.HEARTBEAT_IVL, 2000)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 6000)
        if self.p.link == "pub":
            socket.subscribe(b"")
        try:
            (socket.bind if self.p.bind else socket.connect)(self.p.address)
        except zmq.ZMQError as error:
            socket.close()
            raise OSError(f"{self.channel}: address {self.p.address!r}: {error.strerror}") from error
        self._socket = socket
        self._poller = zmq.Poller()
        self._poller.register(socket, zmq.POLLIN)
        if self.p.link == "acknowledged":
            self._pipe = os.pipe()
            os.set_blocking(self._pipe[1], False)
            self._poller.register(self._pipe[0], zmq.POLLIN)
            self._hello()

    def receive(self, timeout_s: float) -> Message | None:
        """The next message, or None after `timeout_s`."""
        socket = self._socket
        assert socket is not None, "open() comes first"
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                frames = socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                left = deadline - time.monotonic()
                self._acknowledge_now()
                if left <= 0:
                    self._hello_where_silent()
                    return None
                ready = dict(self._poller.poll(max(1, int(left * 1000))))
                if self._pipe is not None and self._pipe[0] in ready:
                    os.read(self._pipe[0], 4096)
                continue
            self._last = time.monotonic()
            return Message(time.time_ns(), self.channel, tuple(frame.buffer for frame in frames))

    def acknowledge(self, message: Message) -> None:
        """Remember that everything up to `message` is recorded; the socket's thread tells the sender."""
        if self._pipe is None or not message.parts or not is_envelope(message.parts[0]):
            return
        stream, number = opened(message.parts[0])
        with self._lock:
            pending = self._recorded is not None
            self._recorded = (stream, number + 1)
            if not pending and self._pipe is not None:
                with contextlib.suppress(OSError):  # a full pipe has woken it already
                    os.write(self._pipe[1], b"x")

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._acknowledge_now()
            self._socket.close(linger=200)
            self._socket = None
        with self._lock:
            if self._pipe is not None:
                os.close(self._pipe[0])
                os.close(self._pipe[1])
                self._pipe = None

    def _hello(self) -> None:
        assert self._socket is not None
        stream, number = self._resume()
        self._socket.send(control(b"HELO", stream, number))
        self._last = time.monotonic()

    def _hello_where_silent(self) -> None:
        if self._pipe is not None and time.monotonic() - self._last > HELLO_S:
            self._hello()

    def _acknowledge_now(self) -> None:
        with self._lock:
            recorded, self._recorded = self._recorded, None
        if recorded is not None and self._socket is not None:
            self._socket.send(control(b"ACKN", *recorded))


class ZmqScan:
    """Frames or positions over the native wire."""

    Parameters = ZmqParameters
    Sender = Sender

    @staticmethod
    def decoder(parameters: Any, channel: str) -> NativeDecoder:
        """Who understands the messages."""
        return NativeDecoder()

    @staticmethod
    def transport(parameters: Any, channel: str, decoder: NativeDecoder) -> ZmqTransport:
        """Where they come from; resumes where `decoder` stands when it is opened."""
        return ZmqTransport(parameters, channel, lambda: (decoder.link.stream, decoder.link.next))
