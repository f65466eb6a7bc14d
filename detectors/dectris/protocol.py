"""DECTRIS streams to events, without a socket: both formats, told apart message by message."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import numpy as np

from ptystream.events import Event, Frames, Rejected, Samples
from ptystream.transport import Message

from ..wire import WireError
from . import stream2, version1
from .header import SET_UP, readings_in
from .series import SeriesBook

TICK = b"PTYSTREAM TICK"
"""The only part of a message that a transport makes itself, when something is due though nothing came."""


MAX_READINGS = 4096
"""Images whose readings are kept before the header of their series has come."""


class DectrisDecoder:
    """Messages of one detector. `channel`: of a stream2 with several, which one; `header`: whether what it says of the set-up is
    passed on; `count_rate`: whether its table of count rates is; `appendix`: channel → (entry of the
    object behind each image, factor); the others as of `SeriesBook`."""

    def __init__(
        self,
        *,
        channel: str | None = None,
        ordered: bool = True,
        drain: bool = False,
        late_s: float = 2.0,
        header: bool = True,
        count_rate: bool = True,
        appendix: Mapping[str, tuple[str, float]] | None = None,
    ) -> None:
        self._entries = dict(appendix or {})
        self._readings: OrderedDict[tuple[str, int], Samples] = OrderedDict()
        """(series, image) → what its appendix told, until the image is given on."""
        self._channel, self._left = channel, (SET_UP if not header else frozenset() if count_rate else frozenset({"count_table"}))
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
        if isinstance(said, version1.Image):
            told_beside = self._beside(said)
            return [*events, *self._with_readings(self._book.frames(said.frames, now)), *told_beside]
        if isinstance(said, version1.End):
            return events + self._book.ended(str(said.series), now)
        told = {key: said.told[key] for key in said.told if key not in self._left}
        return events + self._with_readings(self._book.started(str(said.series), told, said.told.get("num_frames"), now))

    def _beside(self, image: version1.Image) -> list[Event]:
        """Keep the readings in an image's appendix; what is left of it is told."""
        if image.appendix is None:
            return []
        number = int(image.frames.indices[0])
        if not self._entries:
            return [Rejected("appendix_left", f"image {number}: {image.appendix!r:.60}: name its entries as `appendix`")]
        found = readings_in(image.appendix, self._entries)
        if found is None:
            wanted = ", ".join(entry for entry, _ in self._entries.values())
            return [Rejected("bad_appendix", f"image {number}: no JSON object with numbers as {wanted}")]
        channels = {name: np.array([value]) for name, value in found.items()}
        self._readings[image.frames.epoch, number] = Samples(image.frames.epoch, number, channels, image.frames.timestamps_ns)
        while len(self._readings) > MAX_READINGS:
            self._readings.popitem(last=False)
        return []

    def _with_readings(self, events: list[Event]) -> list[Event]:
        """Behind each image what its appendix told."""
        if not self._readings:
            return events
        made: list[Event] = []
        for event in events:
            made.append(event)
            if isinstance(event, Frames):
                found = (self._readings.pop((event.epoch, index), None) for index in event.indices.tolist())
                made += [samples for samples in found if samples is not None]
        return made
