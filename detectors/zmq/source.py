"""The sockets of the native wire, and their parameters."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import zmq

from ptystream.giving import GIVE_S
from ptystream.params.base import parameter
from ptystream.transport import Message

from .link import NO_STREAM, control, is_envelope, opened
from .plain import PlainSender, PlainTransport, SocketParameters
from .protocol import NativeDecoder, bare, restamped
from .sender import Sender

HELLO_S = 1.0
"""A silent sender is greeted again after so long: it may have started later than we did."""
ACK_S = 0.05
"""While messages come without a pause, acknowledgements are sent at most so often."""


class ZmqParameters(SocketParameters):
    """Where a sender of the native wire is."""

    link: Literal["acknowledged", "push", "pub"] = parameter("acknowledged", ours=True)
    """Socket of the sender: 'acknowledged' (lossless, `ptystream.detectors.zmq.Sender`; it has one sender, whoever listens), or
    plain 'push' or 'pub'."""


class ZmqTransport(PlainTransport):
    """Receives one channel. See `ptystream.transport.Transport`."""

    KINDS: ClassVar[dict[str, int]] = {"acknowledged": zmq.DEALER, **PlainTransport.KINDS}

    def __init__(
        self, parameters: Any, channel: str, resume: Callable[[], tuple[bytes, int]] | None = None, *, topic: bytes = b""
    ) -> None:
        """With link 'pub' only messages that begin with `topic` are received."""
        super().__init__(parameters, channel, topic=topic)
        self._resume = resume or (lambda: (NO_STREAM, 0))
        self._lock = threading.Lock()
        self._recorded: tuple[bytes, int] | None = None
        self._needs = (NO_STREAM, 0)
        """First message that is not recorded: the sender may forget nothing from here on."""
        self._told = self._heard = 0.0
        self._pipe: tuple[int, int] | None = None

    def open(self) -> None:
        """Connect or bind."""
        super().open()
        if self.p.link == "acknowledged":
            assert self._socket is not None
            self._poller = zmq.Poller()
            self._poller.register(self._socket, zmq.POLLIN)
            self._pipe = os.pipe()
            os.set_blocking(self._pipe[1], False)
            self._poller.register(self._pipe[0], zmq.POLLIN)
            self._needs = self._resume()
            self._hello()

    def receive(self, timeout_s: float) -> Message | None:
        """The next message, or None after `timeout_s`."""
        if self._pipe is None:
            return super().receive(timeout_s)
        socket = self._socket
        assert socket is not None, "open() comes first"
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                frames = socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                left = deadline - time.monotonic()
                self._acknowledge_now()
                self._hello_where_silent()
                if left <= 0:
                    return None
                ready = dict(self._poller.poll(max(1, int(left * 1000))))
                if self._pipe is not None and self._pipe[0] in ready:
                    os.read(self._pipe[0], 4096)
                continue
            self._heard = time.monotonic()
            if self._recorded is not None and self._heard - self._told > ACK_S:
                self._acknowledge_now()  # a stream without a pause must not wait for one
            return Message(time.time_ns(), self.channel, tuple([frame.buffer for frame in frames]))

    def acknowledge(self, message: Message) -> None:
        """Remember that everything up to `message` is recorded; the socket's thread tells the sender."""
        if self._pipe is None or not message.parts or not is_envelope(message.parts[0]):
            return
        stream, number = opened(message.parts[0])
        with self._lock:
            pending = self._recorded is not None
            self._recorded = self._needs = (stream, number + 1)
            if not pending and self._pipe is not None:
                with contextlib.suppress(OSError):  # a full pipe has woken it already
                    os.write(self._pipe[1], b"x")

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._acknowledge_now()
        super().close()
        with self._lock:
            if self._pipe is not None:
                os.close(self._pipe[0])
                os.close(self._pipe[1])
                self._pipe = None

    def _hello(self) -> None:
        with self._lock:
            needs = self._needs
        if self._say(b"HELO", *needs):
            self._told = time.monotonic()

    def _hello_where_silent(self) -> None:
        if self._pipe is not None and time.monotonic() - max(self._heard, self._told) > HELLO_S:
            self._hello()

    def _acknowledge_now(self) -> None:
        with self._lock:
            recorded, self._recorded = self._recorded, None
        if recorded is not None and self._say(b"ACKN", *recorded):
            self._told = time.monotonic()

    def _say(self, kind: bytes, stream: bytes, number: int) -> bool:
        if self._socket is None:
            return False
        try:
            self._socket.send(control(kind, stream, number), zmq.NOBLOCK)
        except zmq.Again:  # nobody there: the greeting is repeated, and says the same as a lost acknowledgement
            return False
        return True


class ZmqScan:
    """Frames or positions over the native wire."""

    Parameters = ZmqParameters
    Sender = Sender
    bare = staticmethod(bare)
    restamped = staticmethod(restamped)

    @staticmethod
    def decoder(parameters: Any, channel: str) -> NativeDecoder:
        """Who understands the messages."""
        return NativeDecoder()

    @staticmethod
    def transport(parameters: Any, channel: str, decoder: NativeDecoder) -> ZmqTransport:
        """Where they come from; resumes where `decoder` stands when it is opened."""
        return ZmqTransport(parameters, channel, lambda: (decoder.link.stream, decoder.link.next))

    @staticmethod
    def simulator(parameters: Any, channel: str, rehearsal: Any) -> Any:
        """Plays a simulated scan: see `ptystream.simulating`."""
        from .simulator import simulator

        return simulator(parameters, channel, rehearsal)

    @staticmethod
    def giver(parameters: Any, address: str) -> Any:
        """Gives recorded messages back; over 'pub' it waits for the first subscriber."""
        if parameters.link == "pub":
            return PlainSender("pub", address, timeout_s=GIVE_S)
        return Sender(address, parameters.link, timeout_s=GIVE_S)
