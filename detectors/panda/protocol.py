"""What a PandABox says, as events: of the bytes of its data port, or of the documents of a re-publisher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.events import Event, Rejected, Samples, ScanEnded, ScanStarted
from ptystream.transport import Message

from ..units import factor
from ..wire import WireError, json_object
from .stream import Data, End, Fault, PandaStream, Start, values

CONNECTED = b"connected"
"""A message of this part and an empty one: a new connection; nothing of the old one is continued."""
MAX_DOCUMENT_BYTES = 1 << 26
MAX_INDEX = 1 << 48
MAX_CHANNELS = 256


class Numbering:
    """Which sample is which: by count, or by the frame number that was captured with it."""

    def __init__(self, frame_channel: str | None, per_frame: int) -> None:
        self._channel, self._per = frame_channel, per_frame
        self._last, self._of_last = -1, 0

    def restart(self) -> None:
        """Another acquisition begins."""
        self._last, self._of_last = -1, 0

    def samples(self, epoch: str, first: int, channels: Mapping[str, NDArray[np.float64]], stamps: Any) -> list[Event]:
        """Events of consecutive readings, `first` of which has that number where no frame number says otherwise."""
        if self._channel is None:
            return [Samples(epoch, first, channels, stamps)]
        if self._channel not in channels:
            return [Rejected("frame_channel_missing", f"{self._channel!r}; the source sends {sorted(channels)}"[:300])]
        told = channels[self._channel]
        with np.errstate(invalid="ignore"):
            sound = np.isfinite(told) & (told >= 0) & (told < MAX_INDEX // self._per) & (told == np.floor(told))
        frames = np.where(sound, told, -1).astype(np.int64)
        new = np.ones(len(frames), bool)
        new[1:] = frames[1:] != frames[:-1]
        begins = np.maximum.accumulate(np.where(new, np.arange(len(frames)), 0))
        place = np.arange(len(frames)) - begins
        if len(frames) and frames[0] == self._last:
            place[: int(np.argmax(new[1:])) + 1 if new[1:].any() else len(frames)] += self._of_last
        if len(frames):
            self._last, self._of_last = int(frames[-1]), int(place[-1]) + 1
        fits = sound & (place < self._per)
        events: list[Event] = []
        bad, many = int(np.count_nonzero(~sound)), int(np.count_nonzero(sound & (place >= self._per)))
        if bad:
            events.append(Rejected("bad_frame_number", f"{self._channel}: {told[~sound][0]!r}", bad))
        if many:
            events.append(Rejected("too_many_samples", f"more than {self._per} samples of one frame", many))
        numbers = (frames * self._per + place)[fits]
        rows = np.flatnonzero(fits)
        for part in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(numbers) != 1) + 1):
            if len(part):
                chosen = {name: values[rows[part]] for name, values in channels.items()}
                stamped = None if stamps is None else stamps[rows[part]]
                events.append(Samples(epoch, int(numbers[part[0]]), chosen, stamped))
        return events


class _Decoder:
    """What both forms have in common."""

    def __init__(self, p: Any) -> None:
        self._units: Mapping[str, str] = dict(p.units)
        self._time_channel: str | None = p.time_channel
        self._numbering = Numbering(p.frame_channel, getattr(p, "samples_per_frame", 1))
        roles = [p.channels.y, p.channels.x, p.channels.z, p.channels.angle, p.channels.dose]
        self._roles = {name for name in roles if name is not None}
        """Channels that somebody asks for."""
        self._wanted = self._roles | {name for name in (p.frame_channel, p.time_channel) if name is not None}
        self._epoch: str | None = None
        self._next = 0
        self._count = 0

    def _factors(self, names: Mapping[str, str]) -> tuple[dict[str, float], list[Event]]:
        """Channel → factor to our unit; channels whose unit is not known are left out, and told."""
        factors: dict[str, float] = {}
        events: list[Event] = []
        for name, unit in names.items():
            if name not in self._wanted:
                continue
            try:
                factors[name] = factor(self._units.get(name, unit))
            except ValueError as error:
                events.append(Rejected("unknown_unit", f"channel {name}: {error}; give it in `units`"))
        return factors, events

    def _samples(self, first: int, channels: dict[str, NDArray[np.float64]]) -> list[Event]:
        stamps = None
        if self._time_channel is not None:
            if self._time_channel not in channels:
                return [Rejected("time_channel_missing", f"{self._time_channel!r}; there are {sorted(channels)}"[:300])]
            times = channels[self._time_channel]
            if not np.isfinite(times).all() or np.abs(times).max(initial=0) > 9e9:
                return [Rejected("bad_timestamps", f"{self._time_channel}: not seconds", len(times))]
            stamps = np.round(times * 1e9).astype(np.int64)
        assert self._epoch is not None
        return self._numbering.samples(self._epoch, first, channels, stamps)

    def _end(self, count: int | None, reason: str) -> list[Event]:
        epoch, self._epoch = self._epoch, None
        self._numbering.restart()
        return [] if epoch is None else [ScanEnded(epoch, count, reason)]

    def _name(self, given: Any) -> str:
        self._count += 1
        return str(given)[:256] if given else f"acquisition {self._count}"


class PandaDecoder(_Decoder):
    """Bytes of the data port, one piece per message."""

    def __init__(self, p: Any) -> None:
        super().__init__(p)
        self._stream = PandaStream()
        self._start: Start | None = None
        self._factor: dict[str, float] = {}

    def feed(self, message: Message) -> list[Event]:
        """See `ptystream.decoder.Decoder.feed`."""
        parts = message.parts
        if len(parts) == 2 and bytes(parts[0]) == CONNECTED:
            lost, self._stream = self._stream.unfinished, PandaStream()
            return [Rejected("truncated", f"the connection was lost {lost} bytes into a frame")] if lost else []
        if len(parts) != 1:
            return [Rejected("malformed_message", f"{len(parts)} parts where one piece of the stream is expected")]
        events: list[Event] = []
        for item in self._stream.feed(memoryview(parts[0]).cast("B")):
            if isinstance(item, Start):
                events += self._started(item)
            elif isinstance(item, Data):
                events += self._data(item)
            elif isinstance(item, End):
                events += self._ended(item)
            else:
                assert isinstance(item, Fault)
                events.append(Rejected(item.reason, item.detail))
        return events

    def _started(self, start: Start) -> list[Event]:
        known = start.told.get("arm_time") or start.told.get("start_time")
        events: list[Event] = []
        if self._epoch is not None and known == self._epoch:  # connected again while it goes on
            lost = start.missed - self._next
            events += [
                Rejected("gap", f"samples {self._next} to {start.missed - 1} came while the connection was lost", lost)
            ] * (lost > 0)
        else:
            events += self._end(self._next, "the connection was lost") if self._epoch is not None else []
            self._epoch = self._name(known)
            events.append(ScanStarted(self._epoch, {"fields": [c.name for c in start.columns], "panda": dict(start.told)}))
            if start.missed:
                events.append(Rejected("gap", f"{start.missed} samples were taken before we connected", start.missed))
        self._start, self._next = start, start.missed
        self._factor, told = self._factors({column.name: column.units for column in start.columns})
        return events + told

    def _data(self, data: Data) -> list[Event]:
        start = self._start
        assert start is not None
        channels = {c.name: values(start, data.table, c) * self._factor[c.name] for c in start.columns if c.name in self._factor}
        first, self._next = self._next, self._next + len(data.table)
        if not self._roles & channels.keys():
            there = ", ".join(column.name for column in start.columns)
            return [Rejected("channel_missing", f"none of {sorted(self._roles)} is captured, but {there}"[:300])]
        return self._samples(first, channels)

    def _ended(self, end: End) -> list[Event]:
        events: list[Event] = []
        if end.samples > self._next:
            lacking = end.samples - self._next
            events.append(Rejected("gap", f"the box sent {end.samples} samples, {self._next} came", lacking))
        reason = "completed" if end.reason == "Ok" else f"PandA: {end.reason}"
        return events + self._end(max(end.samples, self._next), reason)


class PandaJsonDecoder(_Decoder):
    """JSON documents of a re-publisher: start, data with a block of samples per dataset, stop."""

    def __init__(self, p: Any) -> None:
        super().__init__(p)
        self._frame: int | None = None

    def feed(self, message: Message) -> list[Event]:
        """See `ptystream.decoder.Decoder.feed`."""
        try:
            document = _document(message)
            kind = document.get("msg_type")
            if kind == "start":
                return self._started(document)
            if kind == "stop":
                return self._end(self._next, "completed")
            if kind == "data":
                return self._data(document)
            raise WireError("unknown_kind", f"msg_type {kind!r:.60}: must be start, data or stop")
        except WireError as error:
            return [Rejected(error.reason, str(error)[:300])]

    def _started(self, document: Mapping[str, Any]) -> list[Event]:
        before = self._end(self._next, "another acquisition began") if self._epoch is not None else []
        named = next((document[key] for key in ("arm_time", "start_time", "uid", "scan_id") if document.get(key)), None)
        self._epoch, self._next, self._frame = self._name(named), 0, 0
        return [*before, ScanStarted(self._epoch, {})]

    def _data(self, document: Mapping[str, Any]) -> list[Event]:
        events: list[Event] = []
        if self._epoch is None:
            self._epoch, self._next = self._name(None), 0
            events.append(ScanStarted(self._epoch, {}))
            events.append(Rejected("joined_late", "samples of an acquisition whose start was not heard"))
        number, datasets = document.get("frame_number"), document.get("datasets")
        if not isinstance(datasets, dict) or not 0 < len(datasets) <= MAX_CHANNELS:
            raise WireError("malformed_document", f"datasets: needs a mapping of 1 to {MAX_CHANNELS} channels")
        if type(number) is int and 0 <= number < MAX_INDEX:
            if self._frame is not None and number > self._frame:
                lost = number - self._frame
                events.append(Rejected("gap", f"messages {self._frame} to {number - 1} never came", lost))
            self._frame = number + 1 if self._frame is None else max(self._frame, number + 1)
        blocks: dict[tuple[int, int], dict[str, NDArray[np.float64]]] = {}
        for name, block in datasets.items():
            first, data = _block(name, block)
            blocks.setdefault((first, len(data)), {})[name] = data
        # Channels of other lengths or beginnings (positions and the times of triggers, say) are blocks of their own.
        for (first, count), channels in blocks.items():
            factors, told = self._factors(dict.fromkeys(channels, ""))
            events += told
            scaled = {name: channels[name] * factors[name] for name in factors}
            if count and self._roles & scaled.keys():
                events += self._samples(first, scaled)
                self._next = max(self._next, first + count)
        return events


def _document(message: Message) -> dict[str, Any]:
    if len(message.parts) != 1:
        raise WireError("malformed_message", f"{len(message.parts)} parts; one JSON text is expected")
    return json_object(message.parts[0], MAX_DOCUMENT_BYTES, "a document")


def _block(name: str, block: Any) -> tuple[int, NDArray[np.float64]]:
    if not isinstance(block, dict) or not isinstance(block.get("data"), list):
        raise WireError("malformed_document", f"dataset {name!r:.60}: needs a list `data`")
    first, data, size = block.get("starting_sample_number"), block["data"], block.get("size")
    if type(first) is not int or not 0 <= first < MAX_INDEX:
        raise WireError("index_range", f"dataset {name!r:.60}: starting_sample_number {first!r:.40}: must be 0 to 2^48")
    if size is not None and size != len(data):
        raise WireError("truncated", f"dataset {name!r:.60}: {size!r:.40} values announced, {len(data)} came")
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in data):
        raise WireError("malformed_document", f"dataset {name!r:.60}: values that are no numbers")
    try:
        return first, np.asarray(data, np.float64)
    except OverflowError as error:
        raise WireError("malformed_document", f"dataset {name!r:.60}: {error}") from error
