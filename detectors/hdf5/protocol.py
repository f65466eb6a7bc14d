"""Frames and samples of a file as messages of the native wire, and back; the decoder remembers how far files were read.

Beside the native keys a message has `at`: how many rows of the file are read with it, so that a restart, which delivers the
recording first, goes on behind them. The message 'start' may bring the detector's mask in a part of its own.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.events import Buffer, Event, Frames, Rejected, Samples, ScanEnded, ScanStarted
from ptystream.transport import Message

from ..zmq.protocol import MAX_SIDE, NativeDecoder, header, header_of

MAX_REMEMBERED = 1000
"""Files that are known to be over."""


def start_parts(scan: str, known: dict[str, Any], mask: NDArray[np.bool_] | None, at_once: bool) -> list[Buffer]:
    """The start of a scan with what the file knows of it; `mask`, (y, x), is True where a pixel is to be used."""
    told = {**known, "at_once": at_once}
    if mask is None:
        return [header("start", scan=scan, meta=told)]
    return [header("start", scan=scan, meta=told | {"mask_shape": list(mask.shape)}), np.packbits(mask).tobytes()]


class Hdf5Decoder(NativeDecoder):
    """Understands the messages."""

    def __init__(self) -> None:
        super().__init__()
        self.scan: str | None = None
        """The file that is being read."""
        self.frames = self.samples = 0
        """Rows of it that were read."""
        self.over: dict[str, None] = {}
        """Files that were read to their end."""
        self.newest_ns = 0
        """When the last message came."""

    def feed(self, message: Message) -> list[Event]:
        """See `ptystream.decoder.Decoder.feed`."""
        events = super().feed(message)
        if events and isinstance(events[0], ScanStarted):
            events = [self._started(events[0], message.parts[1:])]
        for event in events:
            if isinstance(event, Frames):
                at = header_of(message.parts).get("at")
                self.frames = at if isinstance(at, int) and at >= 0 else int(event.indices[-1]) + 1
            elif isinstance(event, Samples):
                self.samples = event.first + len(next(iter(event.channels.values())))
            elif isinstance(event, ScanEnded):
                self.over[event.epoch] = None
                self.scan = None
                for forgotten in list(self.over)[:-MAX_REMEMBERED]:
                    del self.over[forgotten]
            if not isinstance(event, Rejected):
                self.newest_ns = message.arrival_ns
        return events

    def _started(self, event: ScanStarted, buffers: tuple[Buffer, ...]) -> Event:
        self.scan, self.frames, self.samples = event.epoch, 0, 0
        shape = event.metadata.get("mask_shape")
        known = {key: value for key, value in event.metadata.items() if key != "mask_shape"}
        if shape is None:
            return event
        sound = isinstance(shape, list) and len(shape) == 2 and all(type(n) is int and 0 < n <= MAX_SIDE for n in shape)
        if not sound or len(buffers) != 1 or memoryview(buffers[0]).nbytes != -(-math.prod(shape) // 8):
            return Rejected("malformed_mask", f"a mask of shape {shape!r:.60} and what came with it do not fit")
        bits = np.unpackbits(np.frombuffer(buffers[0], np.uint8), count=math.prod(shape))
        return ScanStarted(event.epoch, known | {"mask": bits.reshape(shape).astype(bool)})
