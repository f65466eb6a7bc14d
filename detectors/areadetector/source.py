"""areaDetector's ZeroMQ plug-in as a source of frames."""

from __future__ import annotations

from typing import Any, ClassVar

from ptystream.giving import GIVE_S
from ptystream.params.base import Branch, parameter

from ..zmq.plain import PlainParameters, PlainSender, PlainTransport
from .protocol import AdZmqDecoder


class IdsParameters(Branch):
    """Where an acquisition begins in a stream of frames with unique ids. The stream tells neither start nor end: give
    `num_frames`, or `live.timeout_s`."""

    first_id: int | None = parameter(None, lower=0, ours=True)
    """Unique id of the first frame of an acquisition, mostly 1; it begins the next one. None: the first that comes is the
    first frame."""

    pause_s: float | None = parameter(None, lower=0.0, ours=True)
    """The first frame after so long a pause begins the next acquisition, seconds; None: only ids that go back do."""


class AdZmqParameters(IdsParameters, PlainParameters):
    """The ZeroMQ plug-in of an areaDetector IOC."""


class AdZmqScan:
    """Frames of an areaDetector IOC through its ZeroMQ plug-in (array-1.0)."""

    Parameters = AdZmqParameters
    gives_positions: ClassVar[bool] = False

    @staticmethod
    def decoder(parameters: Any, channel: str) -> AdZmqDecoder:
        """Who understands the messages."""
        return AdZmqDecoder(first_id=parameters.first_id, pause_s=parameters.pause_s, num_frames=parameters.num_frames)

    @staticmethod
    def transport(parameters: Any, channel: str, decoder: AdZmqDecoder) -> PlainTransport:
        """Where they come from."""
        return PlainTransport(parameters, channel)

    @staticmethod
    def simulator(parameters: Any, channel: str, rehearsal: Any) -> Any:
        """Plays a simulated scan: see `ptystream.simulating`."""
        from .simulator import simulator

        return simulator(parameters, rehearsal)

    @staticmethod
    def giver(parameters: Any, address: str) -> PlainSender:
        """Gives recorded messages back."""
        return PlainSender(parameters.link, address, timeout_s=GIVE_S)
