"""Parameters of ptypy's interaction wire: of the server in the session, and of clients."""

from __future__ import annotations

import math
from typing import Self

from pydantic import ValidationInfo, field_validator, model_validator

from ptystream.params.base import Branch, parameter
from ptystream.security import is_loopback

LIMITS = {
    "port": (1, 65535),
    "connections": (1, 1000),
    "pinginterval": (0.01, 3600.0),
    "pingtimeout": (0.1, 86_400.0),
    "connection_timeout": (1.0, math.inf),
}


def within(value: float, info: ValidationInfo) -> float:
    """The number, where it can be obeyed."""
    low, high = LIMITS[info.field_name or ""]
    if not low <= value <= high:
        raise ValueError(f"must be at least {low:g}" if high == math.inf else f"must be between {low:g} and {high:g}")
    return value


class ServerParameters(Branch):
    """Link to server parameter tree"""

    active: bool = parameter(True)
    """Activation switch

    Set to ``False`` for no interaction server; `io.interaction.active` must be on as well."""

    address: str = parameter("tcp://127.0.0.1")
    """The address the server is listening to.

    Without the port. Only this machine can be given, because this wire knows no keys: from elsewhere come through an ssh tunnel
    of all its ports, or use `ptystream view` and `ptystream ctl`."""

    port: int = parameter(5560)
    """The port the server is listening to.

    Where it is in use, the ports 20, 40, … 180 above it are tried; the log says which one it is. Where none is free, the session
    runs without this server, with a warning."""

    connections: int = parameter(10)
    """Number of concurrent connections on the server

    The so many ports above that of the server are opened on demand, one for each client that connects."""

    poll_timeout: float = parameter(10.0)
    """Network polling interval

    Milliseconds for which questions are gathered before they are answered, so that those that come together are answered from
    one state. The server itself needs no polling: requests wake it."""

    pinginterval: float = parameter(2)
    """Interval to check pings

    Interval with which to check pings, in seconds."""

    pingtimeout: float = parameter(10)
    """Ping time out

    A client that has pinged, and from which nothing came for so long, is disconnected, in seconds; so is one that never pinged
    and does not listen."""

    _within = field_validator("port", "connections", "pinginterval", "pingtimeout")(within)

    @field_validator("poll_timeout")
    @classmethod
    def _soon(cls, value: float) -> float:
        if not 0 <= value <= 10_000:
            raise ValueError("must be between 0 and 10000")
        return value

    @field_validator("address")
    @classmethod
    def _near(cls, value: str) -> str:
        if not value.startswith("tcp://") or not is_loopback(f"{value}:0"):
            raise ValueError(
                "must be this machine, without a port: tcp://127.0.0.1; the wire has no keys, so nobody else may ask"
            )
        return value

    @model_validator(mode="after")
    def _room(self) -> Self:
        if self.port + self.connections > 65535:
            raise ValueError(f"port: {self.port}: there must be room for {self.connections} connections up to port 65535")
        return self


class ClientParameters(Branch):
    """Link to client parameter tree"""

    address: str = parameter("tcp://127.0.0.1")
    """The address the server is listening to.

    Of the session that `ptystream.interaction.client.Client` connects to, without the port."""

    port: int = parameter(5560)
    """The port the server is listening to.

    As the session's log says it."""

    poll_timeout: float = parameter(100.0)
    """Network polling interval

    Milliseconds after which the client looks at the latest whether a ping is due."""

    pinginterval: float = parameter(1)
    """Interval to check pings

    Interval with which the client says that it is there, in seconds."""

    connection_timeout: float = parameter(3600000.0)
    """Timeout for dead server

    A server that does not reply for so long is given up, in milliseconds."""

    _within = field_validator("port", "pinginterval", "connection_timeout")(within)

    @field_validator("poll_timeout")
    @classmethod
    def _some(cls, value: float) -> float:
        if value < 1:
            raise ValueError("must be at least 1")
        return value

    @field_validator("address")
    @classmethod
    def _an_address(cls, value: str) -> str:
        if not value.startswith("tcp://") or not value.removeprefix("tcp://").strip():
            raise ValueError("must look like tcp://127.0.0.1")
        return value


class InteractionParameters(Branch):
    """ZeroMQ interactor options

    Options for the communications server: ptypy's own clients and plotters, on this machine, see and steer the session."""

    active: bool = parameter(True)
    """turns on the interaction

    If True the interaction starts, if False all interaction is turned off"""

    server: ServerParameters = ServerParameters()
    """Link to server parameter tree"""

    client: ClientParameters = ClientParameters()
    """Link to client parameter tree"""
