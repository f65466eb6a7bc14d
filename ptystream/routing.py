"""Which run an event belongs to: acquisitions of the sources become the scans of runs, and runs wait until they can begin."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from ptystream.bell import Bell
from ptystream.checkpoint import Checkpoint
from ptystream.engine import Context
from ptystream.epochs import REMEMBERED, EpochError
from ptystream.events import Event, Rejected, ScanEnded, ScanStarted
from ptystream.metrics import Metrics
from ptystream.run import Run
from ptystream.run_state import EngineEntry, Scan
from ptystream.scan.ptyscan import PtyScan
from ptystream.transport import Message
from ptystream.wiring import ScanEntry

log = logging.getLogger(__name__)

MAX_PENDING = 4
"""Runs whose frames are kept beside one that is reconstructed; the frames of a further one are refused and counted."""

Acquisition: TypeAlias = tuple[str, str, int]
"""Scan label, key, and how many of that name came before it."""


class _NoScan(Exception):
    """An event belongs to no scan: (reason, detail)."""


@dataclass(slots=True)
class Pending:
    """A run whose scans are arriving."""

    run: Run
    keys: dict[str, Acquisition] = field(default_factory=dict)
    """Scan label → its acquisition."""
    checkpoint: Checkpoint | None = None
    """Where it goes on from, as far as an interrupted session had come."""
    number: int | None = None
    """The number that it had in that session."""

    @property
    def acquisitions(self) -> list[Acquisition]:
        """Those of all its scans that have begun."""
        return list(self.keys.values())

    def lacks(self, label: str) -> bool:
        """Whether a scan waits for its acquisition."""
        return label not in self.keys and self.run.scans[label].buffer.ended is None

    @property
    def names(self) -> str:
        """Its acquisitions, for the log."""
        return ", ".join(f"{key!r} of {label}" for label, key, _ in self.keys.values())


class Router:
    """Gives events to the buffers of runs; makes a run for an acquisition that is new. Thread-safe."""

    def __init__(
        self,
        name: str,
        scans: Sequence[ScanEntry],
        engines: Sequence[EngineEntry],
        context: Context,
        metrics: Metrics,
        bell: Bell,
    ) -> None:
        """`bell` rings when a frame, a position or an end has come for any run."""
        self.name, self.scans, self.engines, self.context, self.metrics = name, scans, engines, context, metrics
        self.checkpoints: list[tuple[int, Checkpoint]] = []
        """Number and checkpoint of each run that an interrupted session was at."""
        self._bell, self._lock = bell, threading.RLock()
        self._pending: list[Pending] = []
        self._assigned: dict[Acquisition, PtyScan] = {}
        self._over: dict[Acquisition, None] = {}
        self._saved: set[Acquisition] = set()
        """While a recording is delivered: acquisitions that have a result."""
        self.recut: set[str] = set()
        """While a recording is delivered: scans whose frames are cut otherwise than a checkpoint may know."""
        self.wanted: frozenset[Acquisition] | None = None
        """In a verification: the acquisitions of one run; the others are left out."""
        self.decided: Mapping[str, Mapping[str, Any]] = {}
        """In a verification: what that run decided, by label of the scan."""
        self._saved_ends: set[tuple[Acquisition, str]] = set()
        self._in_turn = {entry.label: list(_in_turn(entry.label, scans)) for entry in scans}
        """Label of a scan that has sources → those that come from them, one after the other."""
        self._turns: dict[tuple[str, str], dict[str, int]] = {}
        """(scan label, key) → source → how many acquisitions of that name came before its present one."""
        self._logged: set[str] = set()

    # ------------------------------------------------------------------ called from the sources' threads

    def route(self, channel: str, event: Event, message: Message) -> None:
        """Give an event to the scan that it belongs to; makes a run for an acquisition that is new."""
        label, _, source = channel.partition("/")
        if isinstance(event, Rejected):
            self.metrics.dropped(event.reason, event.count)
            return
        try:
            with self._lock:
                buffer = self._buffer(label, source, event, message.arrival_ns)
        except _NoScan as error:
            reason, detail = error.args
            self.metrics.dropped(reason, 1)
            if reason not in self._logged:
                self._logged.add(reason)
                log.warning("%s: %s (logged once per reason): %s", channel, reason, detail)
            return
        buffer.feed(source, event, message.arrival_ns)
        self._bell.ring()

    def _buffer(self, label: str, source: str, event: Any, now_ns: int) -> PtyScan:
        """The scan of an event. An end begins no run, and what comes late for a scan that is over does not either."""
        entry = next(entry for entry in self.scans if entry.label == label)
        metadata = _plain(event.metadata) if isinstance(event, ScanStarted) else None
        entry.epochs.started(source, event.epoch, now_ns, metadata)
        if isinstance(event, ScanEnded):
            entry.epochs.ended(source, event.epoch, now_ns)
        try:
            key = entry.epochs.key(source, event.epoch)
        except EpochError as error:
            raise _NoScan("unknown_scan", str(error)) from error
        if key is None:
            raise _NoScan("unknown_scan", f"acquisition {event.epoch!r} belongs to no scan yet")
        at = self._acquisition(label, source, key, event)
        if at in self._saved:
            if isinstance(event, ScanEnded):
                self._saved_ends.add((at, source))
            raise _NoScan("saved_before", f"acquisition {event.epoch!r} had a result when the session was interrupted")
        if self.wanted is not None and at not in self.wanted:
            if isinstance(event, ScanEnded):
                self._saved_ends.add((at, source))
            raise _NoScan("another_run", f"acquisition {event.epoch!r} belongs to another run")
        if at not in self._assigned:
            if at in self._over:
                raise _NoScan("scan_over", f"more of acquisition {event.epoch!r}, whose scan is over or was refused")
            if isinstance(event, ScanEnded):
                raise _NoScan("unknown_scan", f"the end of acquisition {event.epoch!r}, which nothing came from")
            lacking = ((p, scan) for p in self._pending for scan in self._in_turn[label] if p.lacks(scan))
            pending, scan = next(lacking, None) or (self._new_run(at), label)
            pending.keys[scan] = at
            self._assigned[at] = pending.run.scans[scan].buffer
            log.info("acquisition %r of %s begins", key, scan)
        return self._assigned[at]

    def _acquisition(self, label: str, source: str, key: str, event: Any) -> Acquisition:
        """Which of the acquisitions of that name an event of `source` means: a start after the end begins another. A source
        that tells no starts speaks of the newest."""
        turns = self._turns.setdefault((label, key), {})
        if not isinstance(event, ScanStarted):
            return label, key, turns.get(source, max(turns.values(), default=0))
        turn = turns.get(source, 0)
        while self._is_over((label, key, turn), source):
            turn += 1
        turns[source] = turn
        for forgotten in list(self._turns)[:-REMEMBERED]:
            del self._turns[forgotten]
        return label, key, turn

    def _is_over(self, at: Acquisition, source: str) -> bool:
        """Whether nothing more of an acquisition is expected of `source`."""
        known = self._assigned.get(at)
        return known.is_over(source) if known is not None else at in self._over or (at, source) in self._saved_ends

    def _new_run(self, wanted: Acquisition) -> Pending:
        if len(self._pending) > MAX_PENDING:
            empty = next((p for p in self._pending if not p.run.ledger().get("received")), None)
            if empty is None:
                self._over[wanted] = None  # what comes of it later would be half a scan
                raise _NoScan("too_many_scans", f"{len(self._pending)} have begun and are not reconstructed yet")
            log.warning("%s: nothing came: given up for another", empty.names)
            self._drop(empty)
        number, checkpoint = next(((n, c) for n, c in self.checkpoints if wanted in c.acquisitions), (None, None))
        decisions = self.decided if checkpoint is None else checkpoint.buffer_decisions
        for label in self.recut:  # the search belongs to the frames as they were cut before
            decisions.get(label, {}).pop("hot_pixels", None)  # type: ignore[attr-defined]
        scans = [Scan(e.label, k, *e.make(decisions.get(e.label))) for k, e in enumerate(self.scans)]
        for scan in scans:
            scan.buffer.on_change = self._bell.ring
        pending = Pending(Run(self.name, scans, self.engines, self.context), checkpoint=checkpoint, number=number)
        self._pending.append(pending)
        return pending

    # ------------------------------------------------------------------ called from the engine's thread

    @property
    def pending(self) -> list[Pending]:
        """Runs that have begun to arrive and are not over, the oldest first."""
        with self._lock:
            return list(self._pending)

    def drop(self, pending: Pending) -> None:
        """A run is over. Its frames are given back, and what comes late for its scans begins no other."""
        with self._lock:
            if any(known is pending for known in self._pending):  # otherwise it was given up for another
                self._drop(pending)

    def _drop(self, pending: Pending) -> None:
        self._pending.remove(pending)
        for acquisition in pending.keys.values():
            self._assigned.pop(acquisition, None)
            self._over[acquisition] = None
        for forgotten in list(self._over)[:-REMEMBERED]:
            del self._over[forgotten]
        pending.run.forget()
        for scan in pending.run.scans.values():
            scan.buffer.release()

    def leave_out(self, saved: Iterable[Acquisition]) -> None:
        """What a recording tells of these is passed over until `recovered`: they have a result."""
        self._saved.update(saved)

    def recovered(self) -> None:
        """The recording of an interrupted session is delivered."""
        with self._lock:
            self._over.update(dict.fromkeys(self._saved))
            self._saved.clear()
            self.checkpoints.clear()
            self.recut.clear()


def _plain(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What may be remembered for long: without the arrays of a header."""
    return {key: value for key, value in metadata.items() if not isinstance(value, np.ndarray)}


def _in_turn(label: str, scans: Sequence[ScanEntry]) -> Iterator[str]:
    """A scan, the one that follows it, and so on."""
    following: str | None = label
    while following is not None:
        yield following
        following = next((entry.label for entry in scans if entry.follows == following), None)
