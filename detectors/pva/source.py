"""A PV as a source of frames. Needs p4p."""

from __future__ import annotations

import importlib.util
import json
import queue
import time
from typing import Any, ClassVar

from pydantic import field_validator

from ptystream.events import Buffer
from ptystream.params.base import parameter
from ptystream.transport import Message

from ..areadetector.source import IdsParameters
from .protocol import PvaDecoder, parts_of

ANSWER_S = 2.0
"""How long a PV is searched for by a check."""


class PvaParameters(IdsParameters):
    """An EPICS PV that holds an NTNDArray."""

    pv: str = parameter("", ours=True)
    """Name of the PV, such as 'BL01:DET:Pva1:Image'."""

    addresses: str | None = parameter(None, ours=True)
    """Where to look for it, separated by spaces (EPICS_PVA_ADDR_LIST); None: as the environment says."""

    search_port: int = parameter(5076, lower=1, upper=65535, ours=True)
    """UDP port of the search, with `addresses` (EPICS_PVA_BROADCAST_PORT)."""

    queue: int = parameter(1000, lower=1, upper=1_000_000, ours=True)
    """Updates that are held at most; further ones are lost, and counted as gaps."""

    @field_validator("pv")
    @classmethod
    def _named(cls, value: str) -> str:
        if not value.strip() or len(value) > 256:
            raise ValueError("must be the name of a PV")
        if importlib.util.find_spec("p4p") is None:
            raise ValueError("PVAccess needs the library p4p: pip install 'ptystream[pva]'")
        return value


def context_of(p: PvaParameters) -> Any:
    """A client's context that searches where the parameters say; to be closed."""
    from p4p.client.thread import Context

    conf = None
    if p.addresses is not None:
        conf = {
            "EPICS_PVA_ADDR_LIST": p.addresses,
            "EPICS_PVA_AUTO_ADDR_LIST": "NO",
            "EPICS_PVA_BROADCAST_PORT": str(p.search_port),
        }
    return Context("pva", conf=conf, useenv=conf is None, nt=False)


def found(parameters: Any, transport: Any, decoder: Any, seconds: float) -> list[str]:
    """Whether the PV is there, and what it holds. Raises `OSError` with what to do."""
    pv, context = parameters.pv, context_of(parameters)
    try:
        value = context.get(pv, timeout=ANSWER_S)
    except TimeoutError as error:
        text = f"pv: {pv}: is not found within {ANSWER_S:g} s; start its IOC, or correct `pv`, `addresses` or `search_port`"
        raise OSError(text) from error
    except Exception as error:  # what the other end says is wrong
        raise OSError(f"pv: {pv}: {error}; correct `pv`, or ask who runs its IOC") from error
    finally:
        context.close()
    try:
        header = json.loads(bytes(parts_of(value)[0]))
    except Exception as error:  # a structure of any other type
        raise OSError(
            f"pv: {pv}: is there, but holds no NTNDArray; name the PV of the plug-in, such as '…:Pva1:Image'"
        ) from error
    shape = "×".join(str(n) for n in header["shape"][::-1])
    return [f"pv: {pv}: is there; holds {shape} of {header['type']}, codec {header['codec'] or 'none'}"]


class PvaTransport:
    """Receives the updates of one PV. See `ptystream.transport.Transport`."""

    def __init__(self, parameters: Any, channel: str) -> None:
        self.p, self.channel = parameters, channel
        self._context: Any = None
        self._subscription: Any = None
        self._updates: queue.Queue[list[Buffer]] = queue.Queue(parameters.queue)
        self._first = True

    def open(self) -> None:
        """Subscribe. The PV may come later."""
        p = self.p
        self._context = context_of(p)
        request = f"field()record[queueSize={min(p.queue, 10000)}]"
        self._subscription = self._context.monitor(p.pv, self._updated, request=request)

    def _updated(self, update: Any) -> None:
        """Called by the library's thread."""
        if self._first:  # what the PV holds when we come is an old frame
            self._first = False
            return
        try:
            parts = parts_of(update)
        except Exception as error:  # a structure of any other type
            parts = [b"refused", f"{self.p.pv}: no NTNDArray: {error!r}".encode()]
        try:
            self._updates.put_nowait(parts)
        except queue.Full:  # the unique ids tell how many
            return

    def receive(self, timeout_s: float) -> Message | None:
        """The next update, or None after `timeout_s`."""
        try:
            parts = self._updates.get(timeout=timeout_s)
        except queue.Empty:
            return None
        return Message(time.time_ns(), self.channel, tuple(parts))

    def acknowledge(self, message: Message) -> None:
        """A PV knows no acknowledgement."""

    def close(self) -> None:
        """End the subscription."""
        if self._context is not None:
            self._subscription.close()
            self._context.close()
            self._context = None


class PvaScan:
    """Frames of an EPICS PV (NTNDArray over PVAccess)."""

    Parameters = PvaParameters
    unsimulated: ClassVar[str] = "`python -m ptystream.detectors.pva.simulator` serves a PV"
    found = staticmethod(found)
    gives_positions: ClassVar[bool] = False

    @staticmethod
    def decoder(parameters: Any, channel: str) -> PvaDecoder:
        """Who understands the messages."""
        return PvaDecoder(first_id=parameters.first_id, pause_s=parameters.pause_s, num_frames=parameters.num_frames)

    @staticmethod
    def transport(parameters: Any, channel: str, decoder: PvaDecoder) -> PvaTransport:
        """Where they come from."""
        return PvaTransport(parameters, channel)

    @staticmethod
    def giver(parameters: Any, address: str) -> Any:
        """Updates of a PV came over no socket of ours."""
        raise ValueError("updates of a PV are not given back over PVAccess: replay --into a session instead")
