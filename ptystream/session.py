"""A session: sources, recorder, runs, publisher and metrics of one configuration, wired together.

`run()` may be called from any thread; it returns when the runs asked for are finished or `stop()` was called. Only the
command line installs signal handlers. A source, recorder or publisher thread that dies ends the session with its error.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ptystream.ingest import Source, Tap
from ptystream.loop import Loop, Step
from ptystream.metrics import Metrics
from ptystream.publish.plotting import Plotter
from ptystream.publish.publisher import Publisher
from ptystream.routing import Pending, Router
from ptystream.run import Run
from ptystream.telling import Teller, status_of
from ptystream.transport import Message
from ptystream.wiring import Plan

log = logging.getLogger(__name__)

OPEN_S = 30.0
WAIT_S = 0.25
"""Longest time after which the loop looks at requests while it waits for frames."""
SUPERSEDED_S = 5.0
"""A scan from which nothing came for so long is ended where another has begun: its end was lost."""
SESSION = "session"
"""Channel of the session's own notes in a recording: which acquisitions have a result."""


class SessionError(RuntimeError):
    """A part of the session died; the cause is chained."""


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
        self.plan, self.metrics = plan, metrics
        self.results: list[Path] = []
        self.current: Run | None = None
        self.finished = 0
        """Runs that left a result."""
        self.ended: float | None = None
        """When the last run was over, seconds since the epoch."""
        self._tap, self._recorded, self._on_ready = tap, recorded, on_ready
        self._router = Router(plan.name, plan.scans, plan.engines, plan.context, metrics)
        self._teller = Teller(metrics, publisher, plotter, plan.publish_interval_s)
        self._failure: BaseException | None = None
        self._stop_asked = threading.Event()
        self._sources = [
            Source(c.transport, c.decoder, self._router.route, tap=tap, on_message=self._count, on_failure=self._fail)
            for c in plan.channels
        ]

    # ------------------------------------------------------------------ called from any thread

    def stop(self) -> None:
        """End the current run at the next look: what is there is saved. May be called from a signal's handler, which may
        have interrupted whoever holds a lock: so no lock is taken, and a waiting session sees it within `WAIT_S`."""
        self._stop_asked.set()

    def status(self) -> dict[str, Any]:
        """Numbers for a progress line."""
        run = self.current
        if run is None:
            told = {"run": self.plan.name, "state": "waiting", "received": 0, "used": 0, "iteration": 0}
            return told | self._teller.rates
        return status_of(run) | self._teller.rates

    def _fail(self, error: BaseException) -> None:
        with self._router.arrived:
            self._failure = self._failure or error
            self._router.arrived.notify_all()

    def _count(self, message: Message) -> None:
        self.metrics.received(message.channel, sum(len(memoryview(part).cast("B")) for part in message.parts))

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
            for pending in self._router.pending:
                came = pending.run.ledger().get("received", 0)
                log.warning("%s: %d frames had come and are not reconstructed: the session ended", pending.names, came)
            self.plan.close()
        self._check()
        return self.results

    def _recover(self) -> None:
        """Deliver what an interrupted session recorded, without the scans that it has saved."""
        for message in self._recorded:
            if message.channel == SESSION:
                note = json.loads(bytes(message.parts[0]))
                self._router.leave_out((label, key, turn) for label, key, turn in note["acquisitions"])
                self.finished += 1
        self._router.checkpoint = self.plan.checkpoint(self._next_name())
        sources = {source.transport.channel: source for source in self._sources}
        for message in self._recorded:
            if message.channel != SESSION:
                sources[message.channel].deliver(message)
        self._router.recovered()

    def _next_name(self) -> str:
        """Name of the next run that is reconstructed."""
        return f"{self.plan.name}_{self.finished + 1:04d}" if self.finished else self.plan.name

    def _next_pending(self) -> Pending | None:
        """The first run that can start. One that never can, because little came for it, keeps nobody waiting."""
        with self._router.arrived:
            self._router.arrived.wait_for(lambda: self._able() or self._failure or self._stop_asked.is_set(), WAIT_S)
        waiting = self._router.pending
        self._check()
        for pending in waiting:
            self._end_where_due(pending.run)
        able = self._able()
        self.current = able[0].run if able else waiting[0].run if waiting else self.current
        return able[0] if able else None

    def _able(self) -> list[Pending]:
        """Runs for which enough frames came, or for which no more will."""
        enough = self.plan.loop.frames_to_start
        return [
            p
            for p in self._router.pending
            if sum(scan.buffer.ledger.paired for scan in p.run.scans.values()) >= enough
            or all(scan.buffer.ended is not None for scan in p.run.scans.values())
        ]

    def _any_source(self) -> bool:
        return any(source.is_alive() for source in self._sources)

    def _reconstruct(self, pending: Pending) -> None:
        run = self.current = pending.run
        run.name = self._next_name()
        log.info("%s: %s", run.name, pending.names)
        loop = Loop(run, self.plan.loop)
        self._teller.begin()
        engine = run.engine
        try:
            self._resume(pending, loop)
            while True:
                if self.plan.autosave is not None:
                    run.acquisitions = pending.acquisitions
                    self.plan.autosave.look(run, loop)
                seen = {label: scan.buffer.changed(-1, 0.0) for label, scan in run.scans.items()}
                step = loop.step()
                if self._failure is not None:
                    run.state = "failed"
                self._teller.tell(run, force=step is Step.DONE)
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
                    note = {"acquisitions": pending.acquisitions}
                    self._tap.write(Message(time.time_ns(), SESSION, (json.dumps(note).encode(),)))
            finally:
                silent = any(scan.buffer.ended == self._silence for scan in run.scans.values())
                self.finished += bool(run.frames) or silent  # another scan may follow one that is empty, hardly a silent one
                self._router.drop(pending)
                self.ended = time.time()

    def _resume(self, pending: Pending, loop: Loop) -> None:
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
        later = [p.run for p in self._router.pending if p.run is not run]
        return any(other.started > run.started and other.ledger().get("received") for other in later)

    def _end(self, run: Run, reason: str) -> None:
        for scan in run.scans.values():
            if not scan.ended:
                scan.buffer.end(reason)

    def _check(self) -> None:
        if self._failure is not None:
            raise SessionError(f"the session ended: {self._failure}") from self._failure
