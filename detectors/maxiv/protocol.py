"""The streaming-receiver: JSON of htype header, image or series_end, with a message number; images have a blob behind them.

Several workers of the receiver may send, so messages come in other orders than they were numbered. They are put in order as
far as `REORDERED` messages; what has not come by then is a gap.
"""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np

from ptystream.events import Event, Frames, Rejected, ScanEnded, ScanStarted
from ptystream.transport import Message

from ..wire import WireError
from ..zmq.jsonframes import dtype_of, header_of, payload_of, shape_of, whole
from ..zmq.plain import TICK

CODEC = {"none": "raw", "bslz4": "bslz4", "lz4": "lz4"}


class MaxivDecoder:
    """Messages of one receiver to events. Holds `window` messages at most while one before them is missing."""

    def __init__(self, window: int = 64) -> None:
        self._window = window
        self._next: int | None = None
        self._held: list[tuple[int, int, Any]] = []
        self._taken = 0
        self._epoch: str | None = None
        self._count = self._frames = 0

    @property
    def waiting(self) -> bool:
        """Whether messages are held back."""
        return bool(self._held)

    def feed(self, message: Message) -> list[Event]:
        """See `ptystream.decoder.Decoder.feed`."""
        if len(message.parts) == 1 and message.parts[0] == TICK:
            return self._rest()
        try:
            header = header_of(message.parts)
            kind = header.get("htype")
            if kind not in ("header", "image", "series_end"):
                raise WireError("unknown_kind", f"htype {kind!r:.60}: must be header, image or series_end")
            number = whole(header, "msg_number")
            item = header, self._image(header, message) if kind == "image" else None
        except WireError as error:
            return [Rejected(error.reason, str(error))]
        events: list[Event] = []
        if kind == "header" and (number == 0 or self._next is None or number > self._next + self._window):
            events += self._rest()  # the receiver was started again, or a new series counts anew
            self._next = number
        if self._next is None:
            self._next = number
        if number < self._next:
            return [*events, Rejected("out_of_order", f"message {number} came after {self._next - 1} was given on")]
        self._taken += 1
        heapq.heappush(self._held, (number, self._taken, item))
        while self._held and (self._held[0][0] <= self._next or len(self._held) > self._window):
            events += self._give()
        return events

    def _image(self, header: dict[str, Any], message: Message) -> tuple[int, Any]:
        told = header.get("compression", "none")
        codec = CODEC.get(told if isinstance(told, str) else "")
        if codec is None:
            raise WireError("unknown_codec", f"compression {told!r:.40}: must be one of {', '.join(CODEC)}")
        if len(message.parts) != 2:
            raise WireError("truncated", f"{len(message.parts)} parts; header and pixels are two")
        shape, dtype = shape_of(header, x_first=False), dtype_of(header.get("type"))
        return whole(header, "frame"), payload_of(message.parts[1], codec, dtype, shape)

    def _rest(self) -> list[Event]:
        events: list[Event] = []
        while self._held:
            events += self._give()
        return events

    def _give(self) -> list[Event]:
        number, _, (header, image) = heapq.heappop(self._held)
        assert self._next is not None
        if number < self._next:
            return [Rejected("duplicate_message", f"message {number} came twice")]
        events: list[Event] = []
        if number > self._next:
            events.append(Rejected("gap", f"messages {self._next} to {number - 1} never came", number - self._next))
        self._next = number + 1
        if header["htype"] == "series_end":
            epoch, self._epoch = self._epoch, None
            return events + ([ScanEnded(epoch, self._frames, "completed")] if epoch is not None else [])
        if header["htype"] == "header" or self._epoch is None:
            if self._epoch is not None:
                events.append(ScanEnded(self._epoch, self._frames, "another began"))
            self._count += 1
            named = header.get("filename")
            self._epoch = str(named)[-256:] if named else f"series {self._count}"
            self._frames = 0
            events.append(ScanStarted(self._epoch, {"filename": str(named)} if named else {}))
        if image is not None:
            self._frames = max(self._frames, image[0] + 1)
            events.append(Frames(self._epoch, np.array([image[0]], np.int64), (image[1],)))
        return events
