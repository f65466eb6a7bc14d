"""Rows of an array as messages of the native wire, and back: what is recorded of an array is what a sender would send."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.codecs import MAX_FRAME_BYTES
from ptystream.events import Buffer, Event, Frames, ScanEnded
from ptystream.transport import Message

from ..ptyd.protocol import wire_dtype
from ..zmq.protocol import MAX_FRAMES, MAX_INDEX, MAX_SIDE, NativeDecoder, frames_parts

MESSAGE_BYTES = 4 << 20
"""Frames of one message hold about so much."""


class FrameArray:
    """An array as frames: the last two axes are a frame (the last one where frames are rows of `signals`), those before them
    count frames, the last of those fastest. Raises `ValueError` for what cannot be frames."""

    def __init__(self, array: NDArray[Any], signals: int | None) -> None:
        axes = 1 if signals is not None else 2
        if array.dtype.kind not in "biuf":
            raise ValueError(f"holds {array.dtype}: must be real numbers")
        if array.ndim not in (axes + 1, axes + 2):
            needed = "(frame, signal) or (y, x, signal)" if signals is not None else "(frame, y, x) or (scan y, scan x, y, x)"
            more = "; for signals of virtual detectors say how many in `signals`" if signals is None and array.ndim == 2 else ""
            raise ValueError(f"has shape {array.shape}: must be {needed}{more}")
        self.lead = array.shape[:-axes]
        self.total = math.prod(self.lead)
        """Frames."""
        self.shape = (1, int(array.shape[-1])) if signals is not None else (int(array.shape[-2]), int(array.shape[-1]))
        self.dtype = wire_dtype(array.dtype)
        self.frame_bytes = math.prod(self.shape) * self.dtype.itemsize
        if signals is not None and self.shape[1] != signals:
            raise ValueError(f"has shape {array.shape}: `signals` says {signals} in a row")
        if min(self.shape) < 1 or max(self.shape) > MAX_SIDE or self.frame_bytes > MAX_FRAME_BYTES or self.total >= MAX_INDEX:
            raise ValueError(f"has shape {array.shape} of {array.dtype}: is too large, or empty")
        self._array = array

    def rows(self, first: int, stop: int) -> NDArray[Any]:
        """Frames [first, stop) in the type of the wire; what it does not hold becomes its largest value, 'no data'."""
        if len(self.lead) == 1:
            found = self._array[first:stop]
        else:
            found = np.stack([self._array[np.unravel_index(k, self.lead)] for k in range(first, stop)])
        found = found.reshape(stop - first, *self.shape)
        if self.dtype.kind in "ui" and found.dtype.itemsize > self.dtype.itemsize:
            limits = np.iinfo(self.dtype)
            found = np.clip(found, limits.min, limits.max)
        return np.ascontiguousarray(found, self.dtype)

    def message(self, scan: str, first: int) -> tuple[list[Buffer], int]:
        """(parts of the message of the frames from `first` on, the frame behind them)."""
        stop = min(self.total, first + max(1, min(MAX_FRAMES, MESSAGE_BYTES // self.frame_bytes)))
        whole = self.rows(first, stop)
        encoded: list[Buffer] = [whole.reshape(-1).view(np.uint8).data]
        return frames_parts(scan, first, encoded, stop - first, self.shape, self.dtype, "raw"), stop


class ArrayDecoder(NativeDecoder):
    """Understands the messages, and remembers how far the array was read: after a restart the recording comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.read = 0
        self.started = self.ended = False

    def feed(self, message: Message) -> list[Event]:
        """See `ptystream.decoder.Decoder.feed`."""
        events = super().feed(message)
        self.started |= bool(events)
        for event in events:
            if isinstance(event, Frames):
                self.read = int(event.indices[-1]) + 1
            self.ended |= isinstance(event, ScanEnded)
        return events
