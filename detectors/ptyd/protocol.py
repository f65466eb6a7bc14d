"""Chunks of a `.ptyd` file as messages of the native wire, and back: what is recorded of a file is what a sender would send."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.events import Buffer, Event, Frames, ScanEnded
from ptystream.storage.ptyd import Chunk
from ptystream.transport import Message

from ..zmq.protocol import NativeDecoder, frames_parts, header_of

MESSAGE_FRAMES = 4096
"""Frames of one message at most."""
_SAME = ("u1", "u2", "u4", "i4", "f4")


def wire_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Type in which counts are sent: that of the file where the wire has it, otherwise the nearest that it has."""
    kind = dtype.kind
    if kind in "uif" and f"{kind}{dtype.itemsize}" in _SAME:
        return np.dtype(f"<{kind}{dtype.itemsize}")
    return np.dtype({"b": "u1", "u": "<u4", "i": "<i4", "f": "<f4"}[kind])


def counts(chunk: Chunk) -> NDArray[Any]:
    """Counts in the wire's type; a pixel of weight 0 has its value for 'no data' (the largest integer, or NaN)."""
    dtype = wire_dtype(chunk.data.dtype)
    if dtype.kind == "f":
        made = chunk.data.astype(dtype)
        made[~chunk.weights] = np.nan
        return made
    largest = np.iinfo(dtype).max
    wider = chunk.data.dtype.itemsize > dtype.itemsize
    made = (np.minimum(chunk.data, largest) if wider else chunk.data).astype(dtype)
    made[~chunk.weights] = largest
    return made


def messages(scan: str, chunk: Chunk, *, number: int, row: int, read: int) -> Iterator[list[Buffer]]:
    """Messages of the frames of chunk `number` from `row` on; `read` rows of the file came before them.

    A frame without a valid pixel was withdrawn and is left out. A message says where in the file it ends.
    """
    indices = np.where(chunk.indices >= 0, chunk.indices, read + np.arange(len(chunk)))
    kept = np.asarray(chunk.weights.any(axis=(1, 2)))
    for first in range(0, len(chunk), MESSAGE_FRAMES):
        stop = min(first + MESSAGE_FRAMES, len(chunk))
        chosen = first + np.flatnonzero(kept[first:stop])
        if not len(chosen):
            continue
        part = Chunk(chunk.data[chosen], chunk.weights[chosen], chunk.positions[chosen], indices[chosen])
        frames = counts(part)
        yield frames_parts(
            scan,
            part.indices.tolist(),
            [frames.tobytes()],
            len(part),
            (frames.shape[1], frames.shape[2]),
            frames.dtype,
            "raw",
            positions=part.positions,
            chunk=number,
            row=row + stop,
            read=read + stop,
        )


class PtydDecoder(NativeDecoder):
    """Understands the messages, and remembers how far the file was read: after a restart the recording comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.chunk = self.row = self.read = self.sent = 0
        """Where to go on: chunk and row in it, rows read, frames sent."""
        self.ended = False

    def feed(self, message: Message) -> list[Event]:
        """See `ptystream.decoder.Decoder.feed`."""
        events = super().feed(message)
        for event in events:
            if isinstance(event, Frames):
                content = header_of(message.parts)
                self.chunk, self.row, self.read = (int(content.get(key, 0)) for key in ("chunk", "row", "read"))
                self.sent += len(event.indices)
            self.ended |= isinstance(event, ScanEnded)
        return events
