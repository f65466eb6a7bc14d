"""Which series of a detector is going on: what is taken, what is stale, and when a series is over. Values in, values out.

A detector numbers its series and sends, of each, a header, images and an end. One socket keeps their order; over several,
messages of a series overtake each other: images come before the header, the end before the last images, and images after the
header of the next series. Nothing here looks at a clock: times are those at which messages arrived.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ptystream.events import Event, Frames, Rejected, ScanEnded, ScanStarted

MAX_FRAMES = 1 << 26
"""A series that announces more is not followed frame by frame."""
MAX_JOINED = 1 << 20
"""The same before its header has come."""
REMEMBERED = 100
"""Series kept in mind, the newest."""
MAX_HELD = 256
"""Images kept before the header of their series."""


@dataclass(slots=True)
class Series:
    """One series."""

    name: str
    state: Literal["held", "open", "ending", "drained", "over"]
    announced: int | None = None
    seen: bytearray = field(default_factory=bytearray)
    """1 where a frame has come."""
    came: int = 0
    """Different frames of those announced that have come."""
    held: list[Event] = field(default_factory=list)
    superseded_ns: int | None = None
    """When a newer one began."""
    ended_ns: int | None = None
    """When its end came."""
    last_ns: int = 0
    """When its last image came."""
    reason: str = "completed"

    @property
    def whole(self) -> bool:
        """Whether all announced frames have come."""
        return self.announced is not None and self.came >= self.announced

    def take(self, index: int) -> None:
        """A frame has come."""
        most = MAX_JOINED if self.announced is None else min(self.announced, MAX_FRAMES)
        if not 0 <= index < most:
            return
        if index >= len(self.seen):
            self.seen.extend(bytes(min(most, 2 * index + 1024) - len(self.seen)))
        self.came += not self.seen[index]
        self.seen[index] = 1


class SeriesBook:
    """The series of one channel.

    `ordered`: one socket. `drain`: a series of which no header was seen is left out. `late_s`: how long images may come after
    the end, or after the next series has begun, where sockets are several.
    """

    def __init__(self, *, ordered: bool, drain: bool, late_s: float) -> None:
        self._ordered, self._drain, self._late_ns = ordered, drain, int(late_s * 1e9)
        self._known: dict[str, Series] = {}
        self._newest: Series | None = None

    @property
    def due_ns(self) -> int | None:
        """When something is due though no message comes: the arrival time of the message that `tick` wants; None: nothing is."""
        waits = [due for series in self._known.values() if (due := self._due(series)) is not None]
        return min(waits, default=None)

    def _due(self, series: Series) -> int | None:
        """When a series is over though nothing more comes of it."""
        since = {"ending": series.ended_ns, "open": series.superseded_ns}.get(series.state)
        return None if since is None else max(since, series.last_ns) + self._late_ns

    def tick(self, now_ns: int) -> list[Event]:
        """End what was waited for long enough."""
        events: list[Event] = []
        for series in list(self._known.values()):
            due = self._due(series)
            if due is not None and (self._ordered or now_ns >= due):
                if series.state == "open":
                    series.reason = "its end never came, another series began"
                elif not series.whole and series.announced is not None:
                    series.reason = f"ended early: {series.came} of {series.announced} images"
                events += self._over(series)
        return events

    def started(self, name: str, metadata: Mapping[str, Any], announced: int | None, now_ns: int) -> list[Event]:
        """The header of a series: the same name again, once the first is over, is another series."""
        series = self._known.get(name)
        if series is not None and series.state in ("open", "ending") and self._newest is series and not self._ordered:
            if series.announced is None and announced is not None:  # joined: its images overtook the header
                series.announced = announced
                return [ScanStarted(name, metadata)]
            return [Rejected("duplicate_message", f"the header of series {name} came again")]
        held = series.held if series is not None and series.state == "held" else []
        if series is not None and series.state == "open":
            series.superseded_ns = now_ns
        events = self._supersede(now_ns)
        series = self._known[name] = self._newest = Series(name, "open", announced)
        self._forget()
        events.append(ScanStarted(name, metadata))
        for event in held:
            events += self._taken(series, event, now_ns)
        return events

    def frames(self, event: Frames, now_ns: int) -> list[Event]:
        """Images of a series."""
        series = self._known.get(event.epoch)
        if series is None:
            series, events = self._unknown(event.epoch, now_ns)
        else:
            events = []
        if series.state == "held":
            series.held.append(event)
            if len(series.held) < MAX_HELD:
                return events
            series.state, lost, series.held = "drained", len(series.held), []
            return [*events, Rejected("stale_series", f"series {event.epoch} was going on before we came", lost)]
        if series.state == "drained":
            return [*events, Rejected("stale_series", f"series {event.epoch} was going on before we came", len(event.payloads))]
        if series.state == "over" or (series.superseded_ns is not None and self._ordered):
            return [*events, Rejected("older_series", f"images of series {event.epoch}, which is over", len(event.payloads))]
        return events + self._taken(series, event, now_ns)

    def ended(self, name: str, now_ns: int) -> list[Event]:
        """The end of a series."""
        series = self._known.get(name)
        if series is None or series.state in ("drained", "held"):
            if series is not None:
                lost, series.held, series.state = len(series.held), [], "over"
                told: list[Event] = [Rejected("stale_series", f"series {name} had no header", lost)] if lost else []
                return [*told, Rejected("unknown_series", f"the end of series {name}, of which nothing was taken")]
            return [Rejected("unknown_series", f"the end of series {name}, of which nothing came")]
        if series.state == "over":
            return [Rejected("older_series", f"the end of series {name}, which is over")]
        series.state, series.ended_ns = "ending", now_ns
        if self._ordered:
            return self.tick(now_ns)
        return self._over(series) if series.whole else []

    def _taken(self, series: Series, event: Event, now_ns: int) -> list[Event]:
        series.last_ns = now_ns
        if isinstance(event, Frames):
            for index in event.indices.tolist():
                series.take(index)
        if series.state == "ending" and series.whole:
            return [event, *self._over(series)]
        return [event]

    def _unknown(self, name: str, now_ns: int) -> tuple[Series, list[Event]]:
        """A series of which an image is the first that we see."""
        events: list[Event] = []
        newest = None if self._newest is None else self._newest.name
        if newest is not None and name.isdecimal() and newest.isdecimal() and int(name) < int(newest):
            series = Series(name, "over")  # what the detector still had of a series that nobody took
        elif not self._drain:
            events = self._supersede(now_ns)
            series = self._newest = Series(name, "open")
        else:
            series = Series(name, "drained" if self._ordered else "held")
        self._known[name] = series
        self._forget()
        return series, events

    def _supersede(self, now_ns: int) -> list[Event]:
        """Another series begins: on one socket those before it are over, on several images of theirs may be on their way."""
        for series in self._known.values():
            if series.state == "open" and series.superseded_ns is None:
                series.superseded_ns = now_ns
        return self.tick(now_ns)

    def _over(self, series: Series) -> list[Event]:
        series.state, series.seen = "over", bytearray()
        return [ScanEnded(series.name, None, series.reason)]

    def _forget(self) -> None:
        for name in list(self._known)[:-REMEMBERED]:
            del self._known[name]
