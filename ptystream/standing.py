"""Requests that outlive the process: noted in the recording, and carried out again by the session that continues it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ptystream.ingest import Tap
from ptystream.run import Run
from ptystream.schedule import Entry
from ptystream.storage.ptyr import plain
from ptystream.transport import Message

log = logging.getLogger(__name__)

SESSION = "session"
"""Channel of the session's own notes in a recording: which acquisitions have a result, what was asked for."""

Acquisitions = frozenset[tuple[str, str, int]]


@dataclass(slots=True)
class Asked:
    """One request about one run."""

    entry: Entry
    """As in the schedule; 'do' says what."""
    acquisitions: Acquisitions
    """Of the run."""
    iterations: int
    """So many the run had done."""
    engine: str | None
    """Label of the one that was at work."""

    def is_in(self, schedule: Sequence[Entry]) -> bool:
        """Whether it has been carried out there."""
        own = self.entry["time_ns"], self.entry["who"]
        return any((other.get("time_ns"), other.get("who")) == own for other in schedule)


@dataclass(slots=True)
class Standing:
    """Notes requests, and knows those of the session before."""

    tap: Callable[[], Tap | None]
    """What writes the recording."""
    asked: list[Asked] = field(default_factory=list)
    """What the session before was asked for, in order."""

    def note(self, run: Run, acquisitions: Sequence[tuple[str, str, int]], entry: Entry) -> None:
        """Write down that it is carried out."""
        if self.tap() is not None:
            label = None if run.engine_entry is None else run.engine_entry.label
            told = {"asked": dict(entry), "acquisitions": acquisitions, "iterations": run.iterations, "engine": label}
            self.write(told)

    def write(self, note: Mapping[str, Any]) -> None:
        """A note of the session's."""
        if (tap := self.tap()) is not None:
            tap.write(Message(time.time_ns(), SESSION, (json.dumps(note, default=plain).encode(),)))

    def read(self, note: Mapping[str, Any]) -> None:
        """A note of the session before, of a request."""
        keys = frozenset((str(label), str(key), int(turn)) for label, key, turn in note["acquisitions"])
        self.asked.append(Asked(note["asked"], keys, int(note["iterations"]), note["engine"]))

    def of(self, run: Run, acquisitions: Sequence[tuple[str, str, int]]) -> list[Asked]:
        """What is to be carried out again in a run: given once."""
        keys = frozenset(acquisitions)
        own = [asked for asked in self.asked if asked.acquisitions & keys]
        self.asked = [asked for asked in self.asked if not asked.acquisitions & keys]
        return [asked for asked in own if not asked.is_in(list(run.schedule))]
