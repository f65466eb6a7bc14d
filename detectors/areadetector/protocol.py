"""areaDetector's ZeroMQ plug-in: a JSON header of htype 'array-1.0' (older: 'chunk-1.0') and the pixels, x first.

The wire tells neither start nor end of an acquisition: a unique id that goes back, or a pause, begins the next one.
"""

from __future__ import annotations

import numpy as np

from ptystream.events import Event, Frames, Payload, Rejected, ScanEnded, ScanStarted
from ptystream.transport import Message

from ..wire import WireError
from ..zmq.jsonframes import dtype_of, header_of, payload_of, shape_of, whole

HTYPES = ("array-1.0", "chunk-1.0")
RAW = ("", "raw", "none", "None", "<")


class AdZmqDecoder:
    """Messages of one publisher to events. Frame numbers count from the acquisition's first unique id, `first_id` where given."""

    def __init__(self, *, first_id: int | None, pause_s: float | None, num_frames: int | None) -> None:
        self._first_id, self._pause_ns, self._number = first_id, None if pause_s is None else int(pause_s * 1e9), num_frames
        self._epoch: str | None = None
        self._count = 0
        self._base = self._next = 0
        self._arrival_ns = 0

    def feed(self, message: Message) -> list[Event]:
        """See `ptystream.decoder.Decoder.feed`."""
        try:
            number, payload, stamp_ns = self._parse(message)
        except WireError as error:
            return [Rejected(error.reason, str(error))]
        events = self._boundary(number, message.arrival_ns)
        if number < self._base:
            return [*events, Rejected("out_of_order", f"frame {number} is from before the acquisition's first, {self._base}")]
        if number > self._next:
            events.append(Rejected("gap", f"frames {self._next} to {number - 1} never came", number - self._next))
        self._next = max(self._next, number + 1)
        assert self._epoch is not None
        stamps = None if stamp_ns is None else np.array([stamp_ns], np.int64)
        events.append(Frames(self._epoch, np.array([number - self._base], np.int64), (payload,), stamps))
        if self._number is not None and number - self._base + 1 >= self._number:
            events.append(ScanEnded(self._epoch, self._number, "completed"))
            self._epoch = None
        return events

    def _parse(self, message: Message) -> tuple[int, Payload, int | None]:
        """(unique id, pixels, time stamp in ns where there is one). Raises `WireError`."""
        header = header_of(message.parts)
        told = header.get("htype")
        kinds = told if isinstance(told, list) else [told]
        if not any(kind in HTYPES for kind in kinds if isinstance(kind, str)):
            raise WireError("unknown_kind", f"htype {told!r:.60}: must be one of {', '.join(HTYPES)}")
        number = whole(header, "frame")
        shape = shape_of(header, x_first=True)
        dtype = dtype_of(header.get("type"))
        encoding = header.get("encoding", "")
        codec = "raw" if encoding in RAW or encoding is None else str(encoding)
        if len(message.parts) != 2:
            raise WireError("truncated", f"frame {number}: {len(message.parts)} parts; header and pixels are two")
        payload = payload_of(message.parts[1], codec, dtype, shape)
        stamp = header.get("timeStamp")
        sound = isinstance(stamp, (int, float)) and not isinstance(stamp, bool) and 0 < stamp < 9e9
        return number, payload, round(float(stamp) * 1e9) if sound and stamp is not None else None

    def _boundary(self, number: int, arrival_ns: int) -> list[Event]:
        """The end of one acquisition and the start of the next, where `number` says so."""
        paused = self._pause_ns is not None and arrival_ns - self._arrival_ns > self._pause_ns
        again = self._epoch is not None and (number < self._next - 64 or number == self._first_id or paused)
        self._arrival_ns = arrival_ns
        if self._epoch is not None and not again:
            return []
        events: list[Event] = (
            [ScanEnded(self._epoch, self._next - self._base, "another began")] if self._epoch is not None else []
        )
        self._count += 1
        self._epoch = f"acquisition {self._count}"
        self._base = number if self._first_id is None or number < self._first_id else self._first_id
        self._next = self._base
        return [*events, ScanStarted(self._epoch, {} if self._number is None else {"num_frames": self._number})]
