"""DECTRIS streams to events, without a socket: both formats, told apart message by message."""

from __future__ import annotations

from ptystream.events import Event, Frames, Rejected
from ptystream.transport import Message

from ..wire import WireError
from . import stream2, version1
from .header import SET_UP
from .series import SeriesBook

TICK = b"PTYSTREAM TICK"
"""The only part of a message that a transport makes itself, when something is due though nothing came."""


class DectrisDecoder:
    """Messages of one detector. `channel`: of a stream2 with several, which one; `header`: whether what it says of the set-up is
    passed on; the others as of `SeriesBook`."""

    def __init__(
        self,
        *,
        channel: str | None = None,
        ordered: bool = True,
        drain: bool = False,
        late_s: float = 2.0,
        header: bool = True,
    ) -> None:
        self._channel, self._header = channel, header
        self._book = SeriesBook(ordered=ordered, drain=drain, late_s=late_s)

    @property
    def due_ns(self) -> int | None:
        """Arrival time at which a tick is wanted; None: none is."""
        return self._book.due_ns

    def feed(self, message: Message) -> list[Event]:
        """See `ptystream.decoder.Decoder.feed`."""
        parts, now = message.parts, message.arrival_ns
        events = self._book.tick(now)
        if len(parts) == 1 and bytes(memoryview(parts[0]).cast("B")[: len(TICK) + 1]) == TICK:
            return events
        try:
            if not parts:
                raise WireError("truncated", "a message without parts")
            if version1.is_version1(parts[0]):
                said = version1.read(parts)
            elif len(parts) == 1:
                said = stream2.read(parts[0], self._channel)
            else:
                raise WireError("not_dectris", f"{len(parts)} parts, of which the first is no JSON")
        except WireError as error:
            return [*events, Rejected(error.reason, str(error))]
        if isinstance(said, Frames):
            return events + self._book.frames(said, now)
        if isinstance(said, version1.End):
            return events + self._book.ended(str(said.series), now)
        told = said.told if self._header else {key: said.told[key] for key in said.told if key not in SET_UP}
        return events + self._book.started(str(said.series), told, said.told.get("num_frames"), now)
