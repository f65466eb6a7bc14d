"""The streaming-receiver as a source of frames."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from ptystream.giving import GIVE_S
from ptystream.params.base import parameter

from ..zmq.plain import PlainParameters, PlainSender, TickingTransport
from .protocol import MaxivDecoder


class MaxivParameters(PlainParameters):
    """A streaming-receiver."""

    link: Literal["push", "pub"] = parameter("push", ours=True)
    """Socket of the receiver."""

    window: int = parameter(64, lower=0, upper=100000, ours=True)
    """Messages that are held while one before them is missing; what has not come by then is counted as lost."""

    late_s: float = parameter(1.0, lower=0.0, upper=3600.0, ours=True)
    """Silence after which what is missing is not waited for any more, seconds."""


class MaxivScan:
    """Frames of a streaming-receiver (JSON header and blob, numbered messages)."""

    Parameters = MaxivParameters
    gives_positions: ClassVar[bool] = False

    @staticmethod
    def decoder(parameters: Any, channel: str) -> MaxivDecoder:
        """Who understands the messages."""
        return MaxivDecoder(parameters.window)

    @staticmethod
    def transport(parameters: Any, channel: str, decoder: MaxivDecoder) -> TickingTransport:
        """Where they come from."""
        return TickingTransport(parameters, channel, decoder)

    @staticmethod
    def simulator(parameters: Any, channel: str, rehearsal: Any) -> Any:
        """Plays a simulated scan: see `ptystream.simulating`."""
        from .simulator import simulator

        return simulator(parameters, rehearsal)

    @staticmethod
    def giver(parameters: Any, address: str) -> PlainSender:
        """Gives recorded messages back."""
        return PlainSender(parameters.link, address, timeout_s=GIVE_S)
