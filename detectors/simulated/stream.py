"""A transport without a peer: makes its frames when they are asked for and gives them out as messages of the native wire.

So a simulated scan is recorded, held back, resumed and reconstructed by the same code as a detector's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from ptystream.params.base import parameter
from ptystream.scan.parameters import PtyScanParameters
from ptystream.transport import Message, TransportClosed

from ..zmq.protocol import NativeDecoder, frames_parts, header

MESSAGE_BYTES = 4 << 20
"""Frames of one message hold about so much."""


class Simulation(Protocol):
    """Frames that can be made in any order."""

    @property
    def positions_m(self) -> NDArray[np.float64]:
        """Positions as they are told, (frame, 2), (y, x) in metres."""

    @property
    def shape(self) -> tuple[int, int]:
        """(y, x) of a frame."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Unsigned: its largest value means 'no data in this pixel'."""

    def frame(self, number: int) -> NDArray[Any]:
        """Counts of one frame, the same at every call."""


class SimulatedParameters(PtyScanParameters):
    """What all simulations have in common."""

    seed: int | None = parameter(None, lower=0, ours=True)
    """Key of everything random in the simulation; None: the `seed` of the root."""

    @model_validator(mode="after")
    def _centred(self) -> Self:
        frame = self.frame_shape()
        if frame is not None and (wrong := self.off_frame(frame)) is not None:
            raise ValueError(f"center: {self.center}: {wrong}")
        if self.raster is not None and self.raster.flyback:
            raise ValueError(f"raster.flyback: {self.raster.flyback}: a simulated beam is on the raster in every frame: 0")
        if self.signals is not None:
            raise ValueError(f"signals: {self.signals}: pictures are simulated: leave it out")
        return self

    def frame_shape(self) -> tuple[int, int] | None:
        """(y, x) of the frames that come; None where nothing says it."""
        return None if self.shape is None else (self.side(), self.side())

    def noise_on_arrival(self) -> bool:
        """Never: the frames come with their noise."""
        return False

    def simulated_pixel_m(self) -> tuple[float, float]:
        """Far-field pixel on the sample, (y, x). Raises `ValueError` where energy, distance, psize or shape is None."""
        pixel = self.pixel_m()
        if pixel is None:
            raise ValueError("a simulation needs data.energy (or data.acc_voltage), data.distance, data.psize and data.shape")
        return pixel

    def side(self) -> int:
        """Pixels of a frame's side. Raises `ValueError` where `shape` is None."""
        if self.shape is None:
            raise ValueError("a simulation needs data.shape")
        return self.shape if isinstance(self.shape, int) else min(self.shape)

    def metadata(self) -> dict[str, Any]:
        """What the start of the scan tells."""
        return {"energy": self.energy, "distance": self.distance, "simulated": True}


class SimulatedTransport:
    """Gives out one scan. See `ptystream.transport.Transport`.

    Message 0 is the start, the last one the end. A transport whose `decoder` has already heard some (from the record of an
    interrupted session) goes on behind them. `blocks` of `block` frames are given before each WAIT; 0: no WAIT.
    """

    def __init__(
        self,
        channel: str,
        make: Callable[[], Simulation],
        decoder: NativeDecoder,
        *,
        block: int,
        blocks: int = 0,
        wait_s: float = 0.0,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self.channel = channel
        self._make, self._decoder = make, decoder
        self._block, self._blocks, self._wait_s = max(1, block), blocks, wait_s
        self._metadata = dict(metadata or {})
        self._simulation: Simulation | None = None
        self._next = 0
        self._waited_for = 0
        """Blocks before which no WAIT is due any more."""
        self._until = 0.0

    def open(self) -> None:
        """Make what all frames have in common. Raises `OSError` where the parameters do not fit each other."""
        try:
            self._simulation = self._make()
        except ValueError as error:
            raise OSError(f"{self.channel}: {error}") from error
        self._next = self._decoder.expected
        size = int(np.prod(self._simulation.shape)) * self._simulation.dtype.itemsize
        self._frames = len(self._simulation.positions_m)
        self._block = min(self._block, max(1, self._frames))
        self._step = max(1, min(self._block, MESSAGE_BYTES // size))
        self._per_block = -(-self._block // self._step)
        whole, rest = divmod(self._frames, self._block)
        self._last = whole * self._per_block + -(-rest // self._step) + 1
        self._waited_for = max(0, self._next - 1) // self._per_block

    def receive(self, timeout_s: float) -> Message | None:
        """The next message; None during a WAIT. Raises `TransportClosed` behind the last."""
        assert self._simulation is not None, "open() comes first"
        if self._next > self._last:
            raise TransportClosed(f"{self.channel}: all {self._frames} simulated frames were given")
        if self._waits(timeout_s):
            return None
        parts = self._parts(self._next)
        self._next += 1
        return Message(time.time_ns(), self.channel, tuple(parts))

    def acknowledge(self, message: Message) -> None:
        """Nothing is kept: what is asked for again is made again."""

    def close(self) -> None:
        """Nothing is held."""

    def _waits(self, timeout_s: float) -> bool:
        block = (self._next - 1) // self._per_block
        if not self._blocks or not 0 < self._next < self._last or block == self._waited_for:
            return False
        if block % self._blocks:
            self._waited_for = block
            return False
        now = time.monotonic()
        if not self._until:
            self._until = now + self._wait_s
        if now < self._until:
            time.sleep(min(self._until - now, timeout_s))
            if time.monotonic() < self._until:
                return True
        self._until, self._waited_for = 0.0, block
        return True

    def _parts(self, number: int) -> list[Any]:
        simulation, scan = self._simulation, self.channel.partition("/")[0]
        assert simulation is not None
        if number == 0:
            return [
                header("start", scan=scan, meta={"num_frames": self._frames, "at_once": not self._blocks, **self._metadata}, q=0)
            ]
        if number == self._last:
            return [header("end", scan=scan, count=self._frames, reason="completed", q=number)]
        block, part = divmod(number - 1, self._per_block)
        first = block * self._block + part * self._step
        stop = min(first + self._step, (block + 1) * self._block, self._frames)
        stack = np.stack([simulation.frame(k) for k in range(first, stop)])
        return frames_parts(
            scan,
            first,
            [np.ascontiguousarray(stack, simulation.dtype.newbyteorder("<")).tobytes()],
            stop - first,
            simulation.shape,
            simulation.dtype,
            "raw",
            timestamps_ns=time.time_ns() + np.arange(stop - first),
            positions=simulation.positions_m[first:stop],
            q=number,
        )
