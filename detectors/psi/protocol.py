"""slsDetectorPackage: JSON header and pixels for every port (half module), put together by frame number.

A frame is given on when all of its parts came. What is not whole when `window` later frames have begun is given on with its
missing parts told as 'no data' (the largest value), or left out, as asked for.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.codecs import MAX_FRAME_BYTES
from ptystream.events import Event, Frames, Payload, Rejected, ScanEnded, ScanStarted
from ptystream.transport import Message

from ..wire import WireError
from ..zmq.jsonframes import header_of, shape_of, whole
from ..zmq.plain import TICK
from ..zmq.protocol import MAX_SIDE

BITS = {8: "|u1", 16: "<u2", 32: "<u4"}
MAX_PORTS = 4096


@dataclass(slots=True)
class _Frame:
    pixels: NDArray[Any]
    missing: set[tuple[int, int]]
    damaged: int = 0


class SlsDecoder:
    """Messages of all ports to events; `window` frames are in the making at most."""

    def __init__(self, window: int, incomplete: str) -> None:
        self._window, self._incomplete = max(1, window), incomplete
        self._epoch: str | None = None
        self._count = self._next = 0
        self._first = 0
        self._form: tuple[Any, ...] | None = None
        self._making: OrderedDict[int, _Frame | None] = OrderedDict()
        """Frames of which parts came; None where only later ones have."""
        self._ends: set[tuple[int, int]] = set()

    @property
    def waiting(self) -> bool:
        """Whether frames are in the making, or some ports have ended and others have not."""
        return bool(self._making or self._ends)

    def feed(self, message: Message) -> list[Event]:
        """See `ptystream.decoder.Decoder.feed`."""
        if len(message.parts) == 1 and message.parts[0] == TICK:
            made = [event for number in list(self._making) for event in self._give(number)]
            return made + (self._finish("completed by some of the ports") if self._ends else [])
        try:
            header = header_of(message.parts)
            if header.get("data") in (0, False):
                return self._end_of_port(header)
            return self._part(header, message)
        except WireError as error:
            return [Rejected(error.reason, str(error))]

    def _part(self, header: dict[str, Any], message: Message) -> list[Event]:
        number, row, column = whole(header, "frameNumber"), whole(header, "row"), whole(header, "column")
        shape, ports = shape_of(header, x_first=True), header.get("detshape")
        bits = header.get("bitmode")
        if type(bits) is not int or bits not in BITS:
            raise WireError("wrong_dtype", f"bitmode {bits!r:.40}: must be one of {', '.join(map(str, BITS))}")
        if not isinstance(ports, list) or len(ports) != 2 or not all(type(n) is int and 0 < n <= MAX_PORTS for n in ports):
            raise WireError("wrong_shape", f"detshape {ports!r:.60}: must be [columns, rows] of ports")
        across, down = ports
        dtype = np.dtype(BITS[bits])
        whole_shape = (down * shape[0], across * shape[1])
        size = whole_shape[0] * whole_shape[1] * dtype.itemsize
        if across * down > MAX_PORTS or max(whole_shape) > MAX_SIDE or size > MAX_FRAME_BYTES:
            raise WireError("oversized", f"{ports} ports of {shape}: {size} bytes, {MAX_FRAME_BYTES} are allowed")
        if row >= down or column >= across:
            raise WireError("index_range", f"port in row {row}, column {column} of {down} rows, {across} columns")
        if len(message.parts) != 2:
            raise WireError("truncated", f"{len(message.parts)} parts; header and pixels are two")
        blob = memoryview(message.parts[1]).cast("B")
        if blob.nbytes != shape[0] * shape[1] * dtype.itemsize:
            raise WireError("truncated", f"{shape} of {dtype} announced, {blob.nbytes} bytes received")
        events: list[Event] = []
        form = (shape, across, down, dtype)
        if self._epoch is not None and number < self._next - 4 * self._window:
            events += self._finish("another began")
        if self._epoch is None:
            events += self._begin(header, number, form)
        elif form != self._form:
            raise WireError("wrong_shape", f"frame {number}: ports {form}, those of this acquisition are {self._form}")
        frame = self._making.get(number)
        if frame is None:
            if number < self._next and number not in self._making:
                return [*events, Rejected("late_part", f"a part of frame {number}, which was given on or given up")]
            if number - self._next > 1 << 20:
                return [*events, Rejected("index_range", f"frame {number} after {self._next - 1}")]
            events += self._skip_to(number)
            frame = self._making[number] = self._new()
        if (row, column) not in frame.missing:
            return [*events, Rejected("duplicate", f"row {row}, column {column} of frame {number} came twice")]
        frame.missing.discard((row, column))
        frame.damaged += header.get("completeImage") in (0, False)
        place = frame.pixels[row * shape[0] : (row + 1) * shape[0], column * shape[1] : (column + 1) * shape[1]]
        place[...] = np.frombuffer(blob, dtype).reshape(shape)
        if not frame.missing:
            events += self._give(number)
        while len(self._making) > self._window:
            events += self._give(next(iter(self._making)))
        return events

    def _new(self) -> _Frame:
        assert self._form is not None
        _, across, down, dtype = self._form
        return _Frame(np.full(self._whole(), np.iinfo(dtype).max, dtype), {(r, c) for r in range(down) for c in range(across)})

    def _whole(self) -> tuple[int, int]:
        assert self._form is not None
        shape, across, down, _ = self._form
        return down * shape[0], across * shape[1]

    def _skip_to(self, number: int) -> list[Event]:
        """Frames before `number` of which nothing came: the newest may still come, from a port that is behind."""
        first = max(self._next, number - self._window)
        lost, self._next = first - self._next, max(self._next, number + 1)
        for skipped in range(first, number):
            self._making[skipped] = None
        return [Rejected("gap", f"no part of {lost} frames before {first} came", lost)] if lost > 0 else []

    def _begin(self, header: dict[str, Any], number: int, form: tuple[Any, ...]) -> list[Event]:
        self._count += 1
        index, name = header.get("fileIndex"), header.get("fname")
        self._epoch = f"{name} {index}"[-256:] if name and index is not None else f"acquisition {self._count}"
        self._form, self._ends = form, set()
        told = header.get("frameIndex")
        # Frame numbers go on over acquisitions; the index, where it is told, counts within one.
        self._first = number - told if type(told) is int and 0 <= told <= number else number
        self._next = number
        more = (
            {str(k)[:64]: str(v)[:256] for k, v in header.get("addJsonHeader", {}).items()}
            if isinstance(header.get("addJsonHeader"), dict)
            else {}
        )
        return [ScanStarted(self._epoch, {"header": more})]

    def _give(self, number: int) -> list[Event]:
        frame = self._making.pop(number)
        if frame is None:
            return [Rejected("gap", f"no part of frame {number} came")]
        assert self._epoch is not None
        events: list[Event] = []
        if frame.missing or frame.damaged:
            detail = f"frame {number}: {len(frame.missing)} parts missing, {frame.damaged} with lost packets"
            events.append(Rejected("incomplete_frame", detail))
            if self._incomplete == "reject":
                return events
        payload = Payload(frame.pixels.data.cast("B"), "raw", frame.pixels.dtype, self._whole())
        return [*events, Frames(self._epoch, np.array([number - self._first], np.int64), (payload,))]

    def _end_of_port(self, header: dict[str, Any]) -> list[Event]:
        """A port has ended; the acquisition has when all of them have."""
        if self._epoch is None or self._form is None:
            return []
        self._ends.add((whole(header, "row"), whole(header, "column")) if "row" in header else (len(self._ends), -1))
        _, across, down, _ = self._form
        return self._finish("completed") if len(self._ends) >= across * down else []

    def _finish(self, reason: str) -> list[Event]:
        events = [event for number in list(self._making) for event in self._give(number)]
        epoch, self._epoch, self._ends = self._epoch, None, set()
        return [*events, ScanEnded(str(epoch), self._next - self._first, reason)]
