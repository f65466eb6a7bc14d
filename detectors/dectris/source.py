"""The sockets of a DECTRIS stream, and its parameters."""

from __future__ import annotations

import time
from typing import Any, ClassVar, Literal
from urllib.parse import urlparse

import zmq
from pydantic import field_validator

from ptystream.giving import GIVE_S
from ptystream.params.base import Branch, parameter
from ptystream.transport import Message

from ..units import factor
from ..zmq.plain import PlainSender
from .protocol import TICK, DectrisDecoder


class DectrisParameters(Branch):
    """Where a detector control unit streams to, and what of it is taken."""

    address: str | tuple[str, ...] = parameter("tcp://127.0.0.1:31001", ours=True)
    """ZeroMQ endpoint of the stream: the control unit's address with port 31001 (stream2) or 9999 (version 1); a list where the
    frames of a series come from several. The two formats are told apart by themselves."""

    connections: int = parameter(1, lower=1, upper=64, ours=True)
    """Connections to each address. A detector deals its messages out to all that pull from it, in turn: several are for one of
    them alone being too slow. Whatever else pulls from it takes frames away."""

    channel: str | None = parameter(None, ours=True)
    """Channel of stream2, such as 'threshold_1'; None: the first in each message."""

    running: Literal["join", "drain"] = parameter("join", ours=True)
    """What becomes of a series that was going on when the session came, of which no header was seen: 'join' takes its images
    from there on, 'drain' leaves them out until the next series begins."""

    header: bool = parameter(True, ours=True)
    """Whether what the header says of energy, distance, pixel size, centre, mask, flat field and saturation is used where the
    configuration leaves it out. False: it is as if the detector had not said it."""

    count_rate: bool = parameter(True, ours=True)
    """Whether counts are corrected by the header's table of count rates, where the header says that the detector has not done so
    itself, and `count_table` is not given."""

    appendix: dict[Literal["y", "x"], str] = parameter({}, ours=True)
    """Positions in a JSON object that the beamline puts behind each image (image_appendix; `user_data` of stream2): channel →
    entry, with the unit where it is not metres, such as {y: sample_y in um, x: sample_x in um}. {}: such objects are left, and
    counted."""

    late_s: float = parameter(2.0, lower=0.0, upper=3600.0, ours=True)
    """With several connections, seconds that the next image may still take after the end of its series, or after the next
    series has begun; then it is over. One connection keeps the order, and nothing is waited for."""

    high_water_mark: int = parameter(1000, lower=1, ours=True)
    """Messages that each connection queues. A detector that finds all queues full keeps frames in its own memory, and drops them
    when that is full too."""

    max_message_bytes: int = parameter(1 << 30, lower=1024, ours=True)
    """Larger messages end the connection before memory is taken."""

    @field_validator("address")
    @classmethod
    def _addresses(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for address in (value,) if isinstance(value, str) else value:
            parts = urlparse(address)
            try:
                sound = parts.scheme == "ipc" or (parts.scheme == "tcp" and bool(parts.hostname) and bool(parts.port))
            except ValueError:
                sound = False
            if not sound:
                raise ValueError(f"{address!r} must be like tcp://detector.facility.org:31001")
        if not value:
            raise ValueError("needs one address at least")
        return value

    @field_validator("appendix")
    @classmethod
    def _entries(cls, value: dict[str, str]) -> dict[str, str]:
        if value and set(value) != {"y", "x"}:
            raise ValueError("must name y and x, or nothing")
        for text in value.values():
            _entry(text)
        return value

    @property
    def addresses(self) -> tuple[str, ...]:
        """Every connection's."""
        listed = (self.address,) if isinstance(self.address, str) else self.address
        return tuple(address for address in listed for _ in range(self.connections))


def _entry(text: str) -> tuple[str, float]:
    """(name, factor to metres) of 'name in um'. Raises `ValueError`."""
    name, _, unit = text.partition(" in ")
    if not name.strip():
        raise ValueError(f"{text!r}: must be the name of an entry")
    return name.strip(), factor(unit) if unit else 1.0


class DectrisTransport:
    """Receives one channel. See `ptystream.transport.Transport`."""

    def __init__(self, parameters: Any, channel: str, decoder: DectrisDecoder) -> None:
        self.p, self.channel, self._decoder = parameters, channel, decoder
        self._sockets: list[zmq.Socket[bytes]] = []
        self._poller = zmq.Poller()
        self._next = 0

    def open(self) -> None:
        """Connect."""
        for address in self.p.addresses:
            # The stream of a detector knows no keys: who can reach its port gets frames.
            socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PULL)
            socket.linger = 0
            socket.rcvhwm = self.p.high_water_mark
            socket.setsockopt(zmq.MAXMSGSIZE, self.p.max_message_bytes)
            socket.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
            self._sockets.append(socket)
            try:
                socket.connect(address)
            except zmq.ZMQError as error:
                self.close()
                raise OSError(f"{self.channel}: address {address!r}: {error.strerror}") from error
            self._poller.register(socket, zmq.POLLIN)

    def receive(self, timeout_s: float) -> Message | None:
        """The next message of any connection, in turn; a tick where the decoder waits for one; or None after `timeout_s`."""
        assert self._sockets, "open() comes first"
        deadline = time.monotonic() + timeout_s
        while True:
            for step in range(len(self._sockets)):
                number = (self._next + step) % len(self._sockets)
                try:
                    frames = self._sockets[number].recv_multipart(zmq.NOBLOCK, copy=False)
                except zmq.Again:
                    continue
                self._next = number + 1
                return Message(time.time_ns(), self.channel, tuple([frame.buffer for frame in frames]))
            now, due = time.time_ns(), self._decoder.due_ns
            if due is not None and now >= due:
                return Message(now, self.channel, (TICK,))
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            if due is not None:
                left = min(left, (due - now) / 1e9)
            self._poller.poll(max(1, int(left * 1000)))

    def acknowledge(self, message: Message) -> None:
        """A detector knows no acknowledgement."""

    def close(self) -> None:
        """Close the sockets."""
        for socket in self._sockets:
            if socket in self._poller:
                self._poller.unregister(socket)
            socket.close()
        self._sockets.clear()


class DectrisScan:
    """Frames of a DECTRIS detector: stream version 1 or stream2."""

    Parameters = DectrisParameters
    gives_positions: ClassVar[bool] = False
    tells_geometry: ClassVar[bool] = True

    @staticmethod
    def decoder(parameters: Any, channel: str) -> DectrisDecoder:
        """Who understands the messages."""
        return DectrisDecoder(
            channel=parameters.channel,
            ordered=len(parameters.addresses) == 1,
            drain=parameters.running == "drain",
            late_s=parameters.late_s,
            header=parameters.header,
            count_rate=parameters.count_rate,
            appendix={channel: _entry(text) for channel, text in parameters.appendix.items()},
        )

    @staticmethod
    def transport(parameters: Any, channel: str, decoder: DectrisDecoder) -> DectrisTransport:
        """Where they come from."""
        return DectrisTransport(parameters, channel, decoder)

    @staticmethod
    def simulator(parameters: Any, channel: str, rehearsal: Any) -> Any:
        """Plays a simulated scan: see `ptystream.simulating`."""
        from .rehearsing import simulator

        return simulator(parameters, rehearsal)

    @staticmethod
    def giver(parameters: Any, address: str) -> PlainSender:
        """Gives recorded messages back, dealt out to all that pull."""
        return PlainSender("push", address, timeout_s=GIVE_S, unsent=(TICK,))
