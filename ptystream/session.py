"""A session: sources, recorder, runs, publisher and metrics of one configuration, wired together.

`run()` may be called from any thread; it returns when the runs asked for are finished or `stop()` was called. Only the
command line installs signal handlers. A source, recorder or publisher thread that dies ends the session with its error.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from ptystream.autosave import Autosave
from ptystream.checkpoint import Checkpoint
from ptystream.decoder import Decoder
from ptystream.engine import Context, headline
from ptystream.epochs import REMEMBERED, EpochError, EpochMap
from ptystream.events import Event, Rejected, ScanEnded, ScanStarted
from ptystream.ingest import Source, Tap
from ptystream.loop import Loop, LoopSettings, Step
from ptystream.metrics import Metrics
from ptystream.publish.plotting import Plotter
from ptystream.publish.publisher import Publisher
from ptystream.run import EngineEntry, Run, Scan
from ptystream.scan.ptyscan import PtyScan
from ptystream.transport import Message, Transport

log = logging.getLogger(__name__)

OPEN_S = 30.0
WAIT_S = 0.25
"""Longest time after which the loop looks at requests while it waits for frames."""
SUPERSEDED_S = 5.0
"""A scan from which nothing came for so long is ended where another has begun: its end was lost."""
SESSION = "session"
"""Channel of the session's own notes in a recording: which acquisitions have a result."""
MAX_PENDING = 4
"""Runs whose frames are kept while another is reconstructed; the frames of a further one are refused and counted."""


class SessionError(RuntimeError):
    """A part of the session died; the cause is chained."""


@dataclass(frozen=True, slots=True)
class Channel:
    """One source of the configuration: where its messages come from and who understands them."""

    name: str
    """'<scan label>/data', '<scan label>/positions'."""
    transport: Transport
    decoder: Decoder


@dataclass(frozen=True, slots=True)
class ScanEntry:
    """One entry of `scans`: makes what a new run needs of it."""

    label: str
    make: Callable[[Mapping[str, Any] | None], tuple[PtyScan, Any]]
    """Decisions of an earlier run or None → (buffer, scan model)."""
    epochs: EpochMap


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything a session is told, already validated."""

    name: str
    channels: Sequence[Channel]
    scans: Sequence[ScanEntry]
    engines: Sequence[EngineEntry]
    context: Context
    loop: LoopSettings
    runs: int | None = 1
    """How many runs until the session ends; None: until it is stopped."""
    publish_interval_s: float = 0.1
    timeout_s: float | None = None
    """A scan from which nothing came for so long is ended; None: never."""
    save: Callable[[Run], Path | None] = lambda run: None
    """Writes the result of a run whose engine has finished, and returns its path."""
    benchmark: Callable[[Run], None] = lambda run: None
    """Told after each engine, when its times are known."""
    autosave: Autosave | None = None
    """Writes dumps while a run is iterating."""
    checkpoint: Callable[[str], Checkpoint | None] = lambda name: None
    """Name of a run → what it goes on from, where it was cut off in an interrupted session."""
    close: Callable[[], object] = lambda: None
    """Waits for what is still being written when the runs are over."""
    warm_up: Callable[[], None] = lambda: None
    """Compiles what the engines need, while the session waits for its first frame."""
    device: str = ""
    """In one line for the user, where the engines run."""


_Acquisition: TypeAlias = tuple[str, str, int]
"""Scan label, key, and how many of that name came before it."""


class _NoScan(Exception):
    """An event belongs to no scan: (reason, detail)."""


@dataclass(slots=True)
class _Pending:
    """A run whose scans are arriving."""

    run: Run
    keys: dict[str, _Acquisition] = field(default_factory=dict)
    """Scan label → its acquisition."""
    checkpoint: Checkpoint | None = None
    """Where it goes on from, as far as an interrupted session had come."""

    @property
    def names(self) -> str:
        """Its acquisitions, for the log."""
        return ", ".join(f"{key!r} of {label}" for label, key, _ in self.keys.values())


class Session:
    """Steps the runs of one plan, one after another, while their sources feed them."""

    def __init__(
        self,
        plan: Plan,
        *,
        metrics: Metrics,
        publisher: Publisher | None = None,
        plotter: Plotter | None = None,
        tap: Tap | None = None,
        recorded: Iterable[Message] = (),
        on_ready: Callable[[], None] | None = None,
    ) -> None:
        """`recorded` are messages of an interrupted session: delivered before the sources open."""
        self.plan, self.metrics, self.publisher, self.plotter = plan, metrics, publisher, plotter
        self.results: list[Path] = []
        self.current: Run | None = None
        self.finished = 0
        """Runs that left a result."""
        self.ended: float | None = None
        """When the last run was over, seconds since the epoch."""
        self._tap, self._recorded, self._on_ready = tap, recorded, on_ready
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        self._pending: list[_Pending] = []
        self._assigned: dict[_Acquisition, PtyScan] = {}
        self._over: dict[_Acquisition, None] = {}
        self._saved: set[_Acquisition] = set()
        """While a recording is delivered: acquisitions that have a result."""
        self._wanted: frozenset[_Acquisition] | None = None
        """In a verification: the acquisitions of one run; the others are left out."""
        self._decided: Mapping[str, Mapping[str, Any]] = {}
        """In a verification: what that run decided, by label of the scan."""
        self._checkpoint: Checkpoint | None = None
        """Of the run that an interrupted session was at."""
        self._saved_ends: set[tuple[_Acquisition, str]] = set()
        self._turns: dict[tuple[str, str], dict[str, int]] = {}
        """(scan label, key) → source → how many acquisitions of that name came before its present one."""
        self._logged: set[str] = set()
        self._failure: BaseException | None = None
        self._stop_asked = threading.Event()
        self._choosing = False
        """Whether the engine's thread waits for a run that can start."""
        self._published = 0.0
        self._received_before: tuple[float, int] = (time.monotonic(), 0)
        self._rates: dict[str, float] = {"frames_per_second": 0.0}
        self._sources = [
            Source(c.transport, c.decoder, self._route, tap=tap, on_message=self._count, on_failure=self._fail)
            for c in plan.channels
        ]

    # ------------------------------------------------------------------ called from any thread

    def stop(self) -> None:
        """End the current run at the next look: what is there is saved. May be called from a signal's handler, which may
        have interrupted whoever holds a lock: so no lock is taken, and a waiting session sees it within `WAIT_S`."""
        self._stop_asked.set()

    def status(self) -> dict[str, Any]:
        """Numbers for a progress line."""
        run, kept = self.current, {"unrecorded": 0 if self._tap is None or not self._tap.full else self._tap.lost}
        if run is None:
            return {"run": self.plan.name, "state": "waiting", "received": 0, "used": 0, "iteration": 0} | kept | self._rates
        ledger = run.ledger()
        errors, misfit = (run.errors[-1:], run.misfit[-1:])
        age = None if run.newest_arrival_ns is None else (time.time_ns() - run.newest_arrival_ns) / 1e9
        return {
            "run": run.name,
            "state": run.state,
            "received": ledger.get("received", 0),
            "expected": ledger.get("expected", 0),
            "used": ledger.get("used", 0),
            "iteration": run.iterations,
            "error": headline(errors[0][-1]) if errors else None,
            "misfit": float(misfit[0][-1, 0]) if misfit else None,
            "age_s": age,
            **kept,
        } | self._rates

    def _fail(self, error: BaseException) -> None:
        with self._arrived:
            self._failure = self._failure or error
            self._arrived.notify_all()

    def _count(self, message: Message) -> None:
        self.metrics.received(message.channel, sum(len(memoryview(part).cast("B")) for part in message.parts))

    def _route(self, channel: str, event: Event, message: Message) -> None:
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
        if self._choosing:
            with self._arrived:
                self._arrived.notify_all()

    def _buffer(self, label: str, source: str, event: Any, now_ns: int) -> PtyScan:
        """The scan of an event. An end begins no run, and what comes late for a scan that is over does not either."""
        entry = next(entry for entry in self.plan.scans if entry.label == label)
        metadata = event.metadata if isinstance(event, ScanStarted) else None
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
        if self._wanted is not None and at not in self._wanted:
            if isinstance(event, ScanEnded):
                self._saved_ends.add((at, source))
            raise _NoScan("another_run", f"acquisition {event.epoch!r} belongs to another run")
        if at not in self._assigned:
            if at in self._over:
                raise _NoScan("scan_over", f"more of acquisition {event.epoch!r}, whose scan is over or was refused")
            if isinstance(event, ScanEnded):
                raise _NoScan("unknown_scan", f"the end of acquisition {event.epoch!r}, which nothing came from")
            lacking = (p for p in self._pending if label not in p.keys and p.run.scans[label].buffer.ended is None)
            pending = next(lacking, None) or self._new_run(at)
            pending.keys[label] = at
            self._assigned[at] = pending.run.scans[label].buffer
            log.info("acquisition %r of %s begins", key, label)
        return self._assigned[at]

    def _acquisition(self, label: str, source: str, key: str, event: Any) -> _Acquisition:
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

    def _is_over(self, at: _Acquisition, source: str) -> bool:
        """Whether nothing more of an acquisition is expected of `source`."""
        known = self._assigned.get(at)
        return known.is_over(source) if known is not None else at in self._over or (at, source) in self._saved_ends

    def _new_run(self, wanted: _Acquisition) -> _Pending:
        if len(self._pending) > MAX_PENDING:
            empty = next((p for p in self._pending if not p.run.ledger().get("received")), None)
            if empty is None:
                self._over[wanted] = None  # what comes of it later would be half a scan
                raise _NoScan("too_many_scans", f"{len(self._pending)} have begun and are not reconstructed yet")
            log.warning("%s: nothing came: given up for another", empty.names)
            self._drop(empty)
        checkpoint = self._checkpoint if self._checkpoint is not None and wanted in self._checkpoint.acquisitions else None
        decisions = self._decided if checkpoint is None else checkpoint.buffer_decisions
        scans = [Scan(e.label, k, *e.make(decisions.get(e.label))) for k, e in enumerate(self.plan.scans)]
        pending = _Pending(Run(self.plan.name, scans, self.plan.engines, self.plan.context), checkpoint=checkpoint)
        self._pending.append(pending)
        self._arrived.notify_all()
        return pending

    # ------------------------------------------------------------------ the engine's thread

    def run(self) -> list[Path]:
        """Open the sources, reconstruct, save; returns the results' paths.

        Raises `SessionError` where a part died; what was reconstructed until then is saved first.
        """
        try:
            self._recover()
            for source in self._sources:
                source.start()
            for source in self._sources:
                if not source.wait_open(OPEN_S):
                    raise SessionError(f"{source.transport.channel}: the source did not open within {OPEN_S:g} s")
            self._check()
            self.plan.warm_up()
            if self._on_ready is not None:
                self._on_ready()
            while not self._stop_asked.is_set() and (self.plan.runs is None or self.finished < self.plan.runs):
                open_still = self._any_source()  # asked before looking: what the last one brought is seen below
                pending = self._next_pending()
                if pending is not None:
                    self._reconstruct(pending)
                elif not open_still:
                    log.info("every source has ended: no further scan will come")
                    break
        finally:
            for source in self._sources:
                source.stop()
            for pending in self._pending:
                came = pending.run.ledger().get("received", 0)
                log.warning("%s: %d frames had come and are not reconstructed: the session ended", pending.names, came)
            self.plan.close()
        self._check()
        return self.results

    def again(
        self,
        messages: Iterable[Message],
        acquisitions: Iterable[tuple[str, str, int]] = (),
        decisions: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Run:
        """A run that has its frames and has done nothing, fed with `messages` alone: for a verification.

        `acquisitions` as of `Run.acquisitions`; none: the first run that there is. `decisions`, by label, are not taken again.
        Raises `SessionError` where nothing of it is there.
        """
        self._wanted, self._decided = frozenset(acquisitions) or None, decisions or {}
        sources = {source.transport.channel: source for source in self._sources}
        for message in messages:
            if message.channel in sources:
                sources[message.channel].deliver(message)
        if not self._pending:
            there = ", ".join(sorted(sources))
            raise SessionError(f"nothing of the run is in the recording, on the channels {there}")
        pending = self._pending[0]
        self._end(pending.run, "the recording is over")
        return pending.run

    def _recover(self) -> None:
        """Deliver what an interrupted session recorded, without the scans that it has saved."""
        for message in self._recorded:
            if message.channel == SESSION:
                note = json.loads(bytes(message.parts[0]))
                self._saved.update((label, key, turn) for label, key, turn in note["acquisitions"])
                self.finished += 1
        self._checkpoint = self.plan.checkpoint(self._next_name())
        sources = {source.transport.channel: source for source in self._sources}
        for message in self._recorded:
            if message.channel != SESSION:
                sources[message.channel].deliver(message)
        self._over.update(dict.fromkeys(self._saved))
        self._saved.clear()

    def _next_name(self) -> str:
        """Name of the next run that is reconstructed."""
        return f"{self.plan.name}_{self.finished + 1:04d}" if self.finished else self.plan.name

    def _next_pending(self) -> _Pending | None:
        """The first run that can start. One that never can, because little came for it, keeps nobody waiting."""
        self._choosing = True
        with self._arrived:
            self._arrived.wait_for(lambda: bool(self._able()) or self._failure is not None or self._stop_asked.is_set(), WAIT_S)
            waiting = list(self._pending)
        self._choosing = False
        self._check()
        for pending in waiting:
            self._end_where_due(pending.run)
        able = self._able()
        self.current = able[0].run if able else waiting[0].run if waiting else self.current
        return able[0] if able else None

    def _able(self) -> list[_Pending]:
        """Runs for which enough frames came, or for which no more will."""
        enough = self.plan.loop.frames_to_start
        return [
            p
            for p in list(self._pending)
            if sum(scan.buffer.ledger.paired for scan in p.run.scans.values()) >= enough
            or all(scan.buffer.ended is not None for scan in p.run.scans.values())
        ]

    def _any_source(self) -> bool:
        return any(source.is_alive() for source in self._sources)

    def _reconstruct(self, pending: _Pending) -> None:
        run = self.current = pending.run
        run.name = self._next_name()
        log.info("%s: %s", run.name, pending.names)
        loop = Loop(run, self.plan.loop)
        self._received_before = (time.monotonic(), 0)
        engine = run.engine
        try:
            self._resume(pending, loop)
            while True:
                run.acquisitions = list(pending.keys.values())
                if self.plan.autosave is not None:
                    self.plan.autosave.look(run, loop)
                seen = {label: scan.buffer.changed(-1, 0.0) for label, scan in run.scans.items()}
                step = loop.step()
                if self._failure is not None:
                    run.state = "failed"
                self._tell(run, force=step is Step.DONE)
                if engine is not None and run.engine is not engine:
                    self.plan.benchmark(run)
                engine = run.engine
                if step is Step.DONE:
                    break
                if run.engine is None and run.engine_entry is not None:
                    self._save(run)  # one engine is done and another follows
                if step is Step.IDLE:
                    self._wait(run, seen)
                self._end_where_due(run)
                if self._failure is not None:
                    self._end(run, "a part of the session died")
                    loop.cut()
                elif self._stop_asked.is_set():
                    loop.cut()
        except BaseException:
            run.state = "failed"
            raise
        finally:
            try:
                if self.plan.autosave is not None:
                    self.plan.autosave.wait()
                self._save(run)
                if run.frames and run.state == "finished" and self._tap is not None:  # a restart goes on with what has failed
                    note = {"acquisitions": list(pending.keys.values())}
                    self._tap.write(Message(time.time_ns(), SESSION, (json.dumps(note).encode(),)))
            finally:
                with self._lock:
                    silent = any(scan.buffer.ended == self._silence for scan in run.scans.values())
                    self.finished += bool(run.frames) or silent  # another scan may follow one that is empty, hardly a silent one
                    self._drop(pending)

    def _resume(self, pending: _Pending, loop: Loop) -> None:
        if pending.checkpoint is None:
            return
        try:
            loop.resume(pending.checkpoint)
            log.warning("%s: goes on from iteration %d", pending.run.name, pending.run.iterations)
        except TimeoutError as error:
            log.warning("%s: begins anew, its dump is of no use: %s", pending.run.name, error)

    def _save(self, run: Run) -> None:
        try:
            path = self.plan.save(run) if run.frames else None
        except Exception as error:
            if run.state != "failed":
                raise
            log.error("%s: what was there could not be saved: %s", run.name, error)  # what went wrong first is what counts
            return
        if path is not None and path not in self.results:
            self.results.append(path)

    def _drop(self, pending: _Pending) -> None:
        """Under the lock: a run is over. Its frames are given back, and what comes late for its scans begins no other."""
        self._pending.remove(pending)
        self.ended = time.time()
        for acquisition in pending.keys.values():
            self._assigned.pop(acquisition, None)
            self._over[acquisition] = None
        for forgotten in list(self._over)[:-REMEMBERED]:
            del self._over[forgotten]
        for scan in pending.run.scans.values():
            scan.buffer.release()

    def _wait(self, run: Run, seen: Mapping[str, int]) -> None:
        """Sleep until a scan changed or the time is up; uses no CPU."""
        if not self._stop_asked.is_set():
            label = next((label for label, scan in run.scans.items() if not scan.ended), next(iter(run.scans)))
            run.scans[label].buffer.changed(seen[label], WAIT_S)

    def _end_where_due(self, run: Run) -> None:
        limit, open_still = self.plan.timeout_s, self._any_source()
        buffers = [scan.buffer for scan in run.scans.values()]
        for buffer in buffers:
            buffer.look()
        if self._stop_asked.is_set():
            self._end(run, "stopped on request")
        elif limit is not None and all(buffer.silent_s() > limit for buffer in buffers):
            self._end(run, self._silence)
        elif all(buffer.silent_s() > SUPERSEDED_S for buffer in buffers) and self._another(run):
            self._end(run, f"another acquisition began, and nothing came for {SUPERSEDED_S:g} s")
        elif not open_still:
            self._end(run, "every source has ended")

    @property
    def _silence(self) -> str:
        """Why a scan is over that the time-out ended."""
        return f"nothing came for {self.plan.timeout_s or 0:g} s"

    def _another(self, run: Run) -> bool:
        """Whether frames of a later run have come."""
        with self._lock:
            later = [p.run for p in self._pending if p.run is not run]
        return any(other.started > run.started and other.ledger().get("received") for other in later)

    def _end(self, run: Run, reason: str) -> None:
        for scan in run.scans.values():
            if not scan.ended:
                scan.buffer.end(reason)

    def _check(self) -> None:
        if self._failure is not None:
            raise SessionError(f"the session ended: {self._failure}") from self._failure

    # ------------------------------------------------------------------ telling

    def _tell(self, run: Run, force: bool) -> None:
        """Publish and plot a snapshot where one is due, and bring the metrics up to date."""
        now = time.monotonic()
        publish = force or now - self._published >= self.plan.publish_interval_s
        plot = self.plotter is not None and bool(run.iterations) and self.plotter.due(run.name, run.iterations, last=force)
        if not publish and not plot:
            return
        ledger = run.ledger()
        if publish:
            self._published = now
            then, before = self._received_before
            if now - then >= 1.0 or force:
                self._rates["frames_per_second"] = max(0, ledger.get("received", 0) - before) / max(now - then, 1e-3)
                self._received_before = (now, ledger.get("received", 0))
        snapshot = None
        if self.publisher is not None or plot:
            if run.newest_arrival_ns is not None:
                self._rates["latency_seconds"] = (run.used_ns - run.newest_arrival_ns) / 1e9
            snapshot = run.snapshot(self._rates)
        if self.plotter is not None and plot and snapshot is not None:
            self.plotter.offer(snapshot, run.iter_info[-1], last=force)
        if publish:
            if self.publisher is not None and snapshot is not None:
                self.publisher.offer(snapshot)
                self.metrics.viewers(self.publisher.viewers)
            self.metrics.run(run, ledger, time.time_ns())
            if self._tap is not None:
                self.metrics.recording(self._tap.lost, self._tap.full)
