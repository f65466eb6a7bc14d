"""slsDetectorPackage's stream as a source of frames."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import zmq

from ptystream.giving import GIVE_S
from ptystream.params.base import parameter

from ..zmq.plain import PlainParameters, PlainSender, TickingTransport
from .protocol import SlsDecoder


class SlsParameters(PlainParameters):
    """A receiver of slsDetectorPackage, which has a ZeroMQ port for every port of the detector."""

    address: str = parameter("tcp://127.0.0.1:30001", ours=True)
    """ZeroMQ endpoint of the detector's first port (to listen on, with `bind`)."""

    ports: int = parameter(1, lower=1, upper=1024, ours=True)
    """How many ports there are, at consecutive port numbers from `address` on."""

    window: int = parameter(64, lower=1, upper=10000, ours=True)
    """Frames that are put together at the same time at most: a frame of which parts are still missing when so many later ones
    have begun is incomplete."""

    late_s: float = parameter(1.0, lower=0.0, upper=3600.0, ours=True)
    """Silence after which what is missing is not waited for any more, seconds."""

    incomplete: Literal["mask", "reject"] = parameter("mask", ours=True)
    """What becomes of incomplete frames: 'mask' uses them without the pixels that did not come, 'reject' leaves them out.
    Frames in which a receiver lost packets count as incomplete too; both are counted."""

    @property
    def addresses(self) -> tuple[str, ...]:
        """Every port's."""
        host, _, port = self.address.rpartition(":")
        return (self.address, *(f"{host}:{int(port) + number}" for number in range(1, self.ports)))


class SlsTransport(TickingTransport):
    """One socket that all ports of the detector are connected to."""

    def open(self) -> None:
        """Connect or bind to every port."""
        super().open()
        assert self._socket is not None
        try:
            for address in self.p.addresses[1:]:
                (self._socket.bind if self.p.bind else self._socket.connect)(address)
        except (zmq.ZMQError, ValueError) as error:
            self.close()
            raise OSError(
                f"{self.channel}: address {self.p.address!r} and {self.p.ports - 1} ports behind it: {error}"
            ) from error


class SlsScan:
    """Frames of a PSI detector (Jungfrau, Eiger, Mythen …) from slsDetectorPackage's receiver."""

    Parameters = SlsParameters
    gives_positions: ClassVar[bool] = False

    @staticmethod
    def decoder(parameters: Any, channel: str) -> SlsDecoder:
        """Who understands the messages."""
        return SlsDecoder(parameters.window, parameters.incomplete)

    @staticmethod
    def transport(parameters: Any, channel: str, decoder: SlsDecoder) -> SlsTransport:
        """Where they come from."""
        return SlsTransport(parameters, channel, decoder)

    @staticmethod
    def simulator(parameters: Any, channel: str, rehearsal: Any) -> Any:
        """Plays a simulated scan: see `ptystream.simulating`."""
        from .simulator import simulator

        return simulator(parameters, rehearsal)

    @staticmethod
    def giver(parameters: Any, address: str) -> PlainSender:
        """Gives recorded messages back."""
        return PlainSender(parameters.link, address, timeout_s=GIVE_S)
