"""The sockets of a PandABox, and their parameters."""

from __future__ import annotations

import logging
import select
import socket
import time
from collections.abc import Iterator
from typing import Any, Self

from pydantic import field_validator, model_validator

from ptystream.giving import GIVE_S
from ptystream.params.base import Branch, parameter
from ptystream.scan.parameters import PtyScanParameters
from ptystream.transport import Message

from ..units import factor
from ..zmq.plain import PlainParameters, PlainSender, PlainTransport
from .giving import DataPort
from .protocol import CONNECTED, PandaDecoder, PandaJsonDecoder
from .stream import PandaStream, Start

log = logging.getLogger(__name__)

CONNECT_S = 5.0
ANSWER_S = 2.0
"""How long the box may take to answer a request."""
AGAIN_S = 1.0
"""A lost connection is tried again so often."""
PIECE_BYTES = 1 << 18


class ReadingParameters(Branch):
    """What the readings mean."""

    units: dict[str, str] = parameter({}, ours=True)
    """Channel → unit, such as {INENC1.VAL.Value: um}, for channels whose unit the box does not tell, or tells wrongly. Positions
    become metres."""

    frame_channel: str | None = parameter(None, ours=True)
    """Channel with the number of the frame that a sample belongs to (a counter of the triggers); None: samples are counted.
    With `samples_per_frame` n, up to n samples of one number belong to that frame."""

    time_channel: str | None = parameter(None, ours=True)
    """Channel with the time of a sample, seconds, for `interpolate: time`, such as PCAP.TS_TRIG.Value; None: no time stamps."""

    @field_validator("units")
    @classmethod
    def _known(cls, value: dict[str, str]) -> dict[str, str]:
        for channel, unit in value.items():
            try:
                factor(unit)
            except ValueError as error:
                raise ValueError(f"{channel}: {error}") from error
        return value

    @model_validator(mode="after")
    def _no_frames(self) -> Self:
        if isinstance(self, PtyScanParameters):
            raise ValueError("name: gives positions and no frames: use it as `data.positions`")
        return self


class PandaParameters(ReadingParameters):
    """The data port of a PandABox."""

    host: str = parameter("127.0.0.1", ours=True)
    """Name or address of the box."""

    port: int = parameter(8889, lower=1, upper=65535, ours=True)
    """Its data port."""

    scaled: bool = parameter(True, ours=True)
    """Whether the box scales the readings. False: it sends its own whole numbers, which is less work for it, and they are
    scaled here."""


class PandaTransport:
    """Receives one channel from a data port. See `ptystream.transport.Transport`."""

    def __init__(self, parameters: Any, channel: str) -> None:
        self.p, self.channel = parameters, channel
        self._socket: socket.socket | None = None
        self._tried = 0.0

    def open(self) -> None:
        """Connect. Raises `OSError` with host and port."""
        self._connect()

    def _connect(self) -> None:
        self._tried = time.monotonic()
        where = (self.p.host, self.p.port)
        try:
            made = socket.create_connection(where, timeout=CONNECT_S)
            made.sendall(b"XML FRAMED SCALED\n" if self.p.scaled else b"XML FRAMED RAW\n")
        except OSError as error:
            raise OSError(f"{self.channel}: PandA at {where[0]}:{where[1]}: {error}") from error
        made.setblocking(False)
        self._socket = made
        self._fresh = True

    def receive(self, timeout_s: float) -> Message | None:
        """The next piece of the stream, or None after `timeout_s`. A lost connection is made again."""
        if self._socket is None:
            left = self._tried + AGAIN_S - time.monotonic()
            if left > 0:
                time.sleep(min(left, timeout_s))
                return None
            try:
                self._connect()
            except OSError as error:
                log.debug("%s: is tried again", error)
                return None
        if self._fresh:
            self._fresh = False
            return Message(time.time_ns(), self.channel, (CONNECTED, b""))
        assert self._socket is not None
        try:
            if not select.select([self._socket], [], [], timeout_s)[0]:
                return None
            piece = self._socket.recv(PIECE_BYTES)
        except BlockingIOError:
            return None
        except OSError as error:
            piece = b""
            log.debug("%s: %s", self.channel, error)
        if not piece:
            log.warning("%s: PandA at %s:%d closed the connection: connecting again", self.channel, self.p.host, self.p.port)
            self.close()
            self._tried = time.monotonic()
            return None
        return Message(time.time_ns(), self.channel, (piece,))

    def acknowledge(self, message: Message) -> None:
        """The data port knows no acknowledgement."""

    def close(self) -> None:
        """Close the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def found(parameters: Any, transport: PandaTransport, decoder: Any, seconds: float) -> Iterator[str]:
    """Whether a data port answers, and what the header says that comes within `seconds`. Raises `OSError` with what to do."""
    where = f"{parameters.host}:{parameters.port}"
    try:
        transport.open()
    except OSError as error:
        raise OSError(f"{error}; switch the box on, or correct `host` and `port`") from error
    try:
        stream, answer = PandaStream(), b""
        deadline, ends = time.monotonic() + ANSWER_S, time.monotonic() + seconds
        while b"\n" not in answer and (left := deadline - time.monotonic()) > 0:
            message = transport.receive(left)
            if message is not None and len(message.parts) == 1:
                answer += message.parts[0]
        if not answer.startswith(b"OK"):
            said = f"answers {answer[:40]!r}" if answer else f"says nothing for {ANSWER_S:g} s"
            raise OSError(f"{where}: {said}: no data port of a PandABox; correct `port` (8889; 8888 is for commands)")
        yield f"{where}: answers"
        items = stream.feed(answer)
        while not any(isinstance(item, Start) for item in items) and (left := ends - time.monotonic()) > 0:
            message = transport.receive(left)
            items = stream.feed(message.parts[0]) if message is not None and len(message.parts) == 1 else []
        for item in items:
            if isinstance(item, Start):
                yield f"{where}: captures {', '.join(f'{c.name} {c.units}'.strip() for c in item.columns)}"
                return
        if seconds:
            yield f"{where}: nothing was captured within {seconds:g} s; is PCAP armed?"
    finally:
        transport.close()


class PandaScan:
    """Readings from the TCP data port of a PandABox."""

    Parameters = PandaParameters
    found = staticmethod(found)

    @staticmethod
    def decoder(parameters: Any, channel: str) -> PandaDecoder:
        """Who understands the messages."""
        return PandaDecoder(parameters)

    @staticmethod
    def transport(parameters: Any, channel: str, decoder: PandaDecoder) -> PandaTransport:
        """Where they come from."""
        return PandaTransport(parameters, channel)

    @staticmethod
    def simulator(parameters: Any, channel: str, rehearsal: Any) -> Any:
        """Plays the readings of a simulated scan: see `ptystream.simulating`."""
        from .rehearsing import data_port

        return data_port(parameters, rehearsal)

    @staticmethod
    def giver(parameters: Any, address: str) -> DataPort:
        """Gives recorded pieces of the stream back."""
        return DataPort(address, GIVE_S)


class PandaJsonParameters(ReadingParameters, PlainParameters):
    """A re-publisher of a PandABox's readings: JSON documents over ZeroMQ. Its channels are datasets, such as
    '/INENC2.VAL.Value', and their units are those of `units`."""


class PandaJsonScan:
    """Readings of a PandABox from a re-publisher of JSON documents over ZeroMQ."""

    Parameters = PandaJsonParameters

    @staticmethod
    def decoder(parameters: Any, channel: str) -> PandaJsonDecoder:
        """Who understands the messages."""
        return PandaJsonDecoder(parameters)

    @staticmethod
    def transport(parameters: Any, channel: str, decoder: PandaJsonDecoder) -> PlainTransport:
        """Where they come from."""
        return PlainTransport(parameters, channel)

    @staticmethod
    def simulator(parameters: Any, channel: str, rehearsal: Any) -> Any:
        """Plays the readings of a simulated scan: see `ptystream.simulating`."""
        from .rehearsing import republisher

        return republisher(parameters, rehearsal)

    @staticmethod
    def giver(parameters: Any, address: str) -> PlainSender:
        """Gives recorded messages back."""
        return PlainSender(parameters.link, address, timeout_s=GIVE_S)
