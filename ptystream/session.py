"""A session: sources, recorder, runs, publisher and metrics of one configuration, wired together.

`run()` may be called from any thread; it returns when the runs asked for are finished or `stop()` was called. Only the
command line installs signal handlers. A source, recorder or publisher thread that dies ends the session with its error.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ptystream.bell import Bell
from ptystream.events import Event
from ptystream.health import Health
from ptystream.ingest import Source, Tap
from ptystream.kept import FILES
from ptystream.loop import Loop, Step
from ptystream.metrics import Metrics
from ptystream.params.home import home, located
from ptystream.params.load import EngineConfiguration
from ptystream.publish.documenting import Documents
from ptystream.publish.heartbeat import RunBeat
from ptystream.publish.plotting import Plotter
from ptystream.publish.publisher import Publisher
from ptystream.recutting import PATH, Recutting, Wish, entry_of
from ptystream.routing import Pending, Router
from ptystream.run import Run
from ptystream.run_state import EngineEntry
from ptystream.scan.contents import digest
from ptystream.scan.ptyscan import PtyScan
from ptystream.schedule import Entry
from ptystream.standing import SESSION, Standing
from ptystream.steering.actions import Actions
from ptystream.steering.desk import Desk, Refused
from ptystream.steering.tree import Tree
from ptystream.storage.frames import FrameFiles
from ptystream.telling import Follower, Teller, status_of
from ptystream.transport import Message
from ptystream.turn import Numbers, Turn, aborted
from ptystream.wiring import Plan

log = logging.getLogger(__name__)

OPEN_S = 30.0
WAIT_S = 0.25
"""Longest time after which the loop looks at requests while it waits for frames."""
SUPERSEDED_S = 5.0
"""A scan from which nothing came for so long is ended where another has begun: its end was lost."""
ABORTED_S = 1.0
"""A scan that one of its sources aborted is ended when nothing came from the others for so long."""
READING_S = 600.0
"""How long a verification waits for frames that are read from files."""
FLUSH_S = 5.0
"""How long the end of a session waits until what came is recorded, and acknowledged."""
PAUSED = "paused"
OVER = ("finished", "failed")


class SessionError(RuntimeError):
    """A part of the session died; the cause is chained."""


class Session:
    """Steps the runs of one plan in turn while their sources feed them: one refines while the next one's frames arrive."""

    def __init__(
        self,
        plan: Plan,
        *,
        metrics: Metrics,
        publisher: Publisher | None = None,
        plotter: Plotter | None = None,
        follower: Follower | None = None,
        documents: Documents | None = None,
        tap: Tap | None = None,
        frame_files: FrameFiles | None = None,
        recorded: Iterable[Message] = (),
        on_ready: Callable[[], None] | None = None,
        health: Health | None = None,
    ) -> None:
        """`recorded` are messages of an interrupted session: delivered before the sources open. `frame_files`: where frames
        are written as they come, beside what is reconstructed of them. `follower`: who is given snapshots besides; `documents`:
        who tells of runs in Bluesky's words. `health` is told how the session is."""
        self.plan, self.metrics = plan, metrics
        self.results: list[Path] = []
        self.current: Run | None = None
        self.fruitless: Run | None = None
        """The newest run that is over, for which frames came and none could be used."""
        self.finished = 0
        """Runs that left a result."""
        self.reconstructed = 0
        """Runs that are over and had frames to work on, of an interrupted session that goes on too."""
        self.ended: float | None = None
        """When the last run was over, seconds since the epoch."""
        self.unlike: list[str] = []
        """Arrays that were steered before an interruption and are not what they were: path and file."""
        self.paused = False
        """Whether `pause` was called and `resume` was not yet."""
        self._tap, self._recorded, self._on_ready = tap, recorded, on_ready
        self.frame_files = frame_files
        self.health = health or Health()
        """Whether it is alive, and takes frames."""
        self.health.warnings["files"] = lambda: "; ".join(f"{what} is not what it was" for what in self.unlike)
        self._bell = Bell()
        self.desk = Desk(Actions(self), self._bell.ring, self.metrics.asked)
        """Where the session is asked, and steered."""
        self._router = Router(plan.name, plan.scans, plan.engines, plan.context, metrics, self._bell)
        self._turns: list[Turn] = []
        """Runs that are being reconstructed, the newest last."""
        self._numbers = Numbers()
        self._newest = 0.0
        """When the newest run that is over began, of those for which something came."""
        self._over = False
        """Whether no further scan can come."""
        self._teller = Teller(
            metrics, publisher, plotter, plan.publish_interval_s, follower, share=plan.publish_share, documents=documents
        )
        self._failure: BaseException | None = None
        self._steered: dict[str, Entry] = {}
        """Path → the newest change of a parameter."""
        self._standing = Standing(lambda: self._tap)
        self._recutting = Recutting()
        self._unsaved: dict[str, Exception] = {}
        """Run → why its result could not be written; with a recording, a restart makes it again."""
        self._stop_asked = threading.Event()
        self._sources = [
            Source(c.transport, c.decoder, self._route, tap=tap, on_message=self._count, on_failure=self._fail)
            for c in plan.channels
        ]
        metrics.before_scrape.append(self.measure)
        if publisher is not None:
            publisher.runs = self.beats

    # ------------------------------------------------------------------ called from any thread

    def stop(self) -> None:
        """End the runs at the next look: what is there is saved. May be called from a signal's handler, which may
        have interrupted whoever holds a lock: so no lock is taken, and a waiting session sees it within `WAIT_S`."""
        self._stop_asked.set()

    def pause(self) -> None:
        """Iterate no further until `resume`: what arrives is recorded and joined all the same. Takes no lock, as `stop`."""
        self.paused = True

    def resume(self) -> None:
        """Go on after `pause`, with what has come meanwhile."""
        self.paused = False

    def run_of(self, name: str = "") -> Run | None:
        """A run that is under way, or the last that was, by its name; nothing: the present one."""
        under_way = [self.current, *(turn.run for turn in list(self._turns))]
        return next((run for run in under_way if run is not None and name in ("", run.name)), None)

    def status(self) -> dict[str, Any]:
        """Numbers for a progress line."""
        run, kept = self.current, {"unrecorded": 0 if self._tap is None or not self._tap.full else self._tap.lost}
        if run is None:
            told = {"run": self.plan.name, "state": "waiting", "received": 0, "used": 0, "iteration": 0}
            return told | kept | {"frames_per_second": 0.0}
        return status_of(run) | kept | self._recutting.told(run) | self._teller.rates(run)

    def beats(self) -> list[RunBeat]:
        """How far the runs under way are, or the last that was; takes no lock that is held for long."""
        runs = [turn.run for turn in list(self._turns)]
        current = self.current
        if not runs and current is not None:
            runs = [current]
        return [RunBeat(run.name, run.state, run.iterations) for run in runs]

    def fruitless_because(self) -> str:
        """Why nothing is reconstructed, in a line."""
        run = self.fruitless or self.current  # what came late for it may have begun another since
        became = ", ".join(f"{count} {state}" for state, count in run.ledger().items() if count) if run else ""
        return "; ".join([*(run.failures if run else ()), became or "no frame came"])

    @property
    def asked_to_stop(self) -> bool:
        """Whether somebody wanted it to end before it was done."""
        return self._stop_asked.is_set()

    def measure(self) -> None:
        """Bring those metrics up to date that are of no run; short, and may be called from any thread."""
        self.metrics.heartbeat(self.health.beat_s)
        self.metrics.unsaved(len(self._unsaved))
        if self._tap is not None:
            self.metrics.recording(self._tap.lost, self._tap.full)
        if self.frame_files is not None:
            self.metrics.not_in_files(self.frame_files.lost)
        if self._teller.publisher is not None:
            self.metrics.viewers(self._teller.publisher.viewers)

    def _route(self, channel: str, event: Event, message: Message) -> None:
        self._router.route(channel, event, message)
        if self.frame_files is not None:
            self.frame_files.offer(channel, event)

    def _fail(self, error: BaseException) -> None:
        self._failure = self._failure or error
        self._bell.ring()

    def _count(self, message: Message) -> None:
        self.metrics.received(message.channel, sum(len(memoryview(part).cast("B")) for part in message.parts))

    # ------------------------------------------------------------------ the engine's thread

    def run(self) -> list[Path]:
        """Open the sources, reconstruct, save; returns the results' paths.

        Raises `SessionError` where a part died; what was reconstructed until then is saved first.
        """
        try:
            self.health.beat("what an interrupted session recorded is being read")
            self._recover()
            for source in self._sources:
                source.start()
            for source in self._sources:
                self.health.beat(f"{source.transport.channel} is not open yet")
                if not source.wait_open(OPEN_S):
                    raise SessionError(f"{source.transport.channel}: the source did not open within {OPEN_S:g} s")
            self._check()
            self.health.beat("the engines are being compiled")
            self.plan.warm_up()
            if self._on_ready is not None:
                self._on_ready()
            while self._goes_on():
                self._round()
        except BaseException:
            for turn in list(self._turns):  # what went wrong in one run costs the others no result
                turn.run.state = "failed"
                self._conclude(turn)
            for run in [pending.run for pending in self._router.pending]:  # those that had not begun
                run.state = "failed"
                if run is self.current:
                    self._teller.of(run).tell(run, force=True)
                self._teller.forget(run)
            raise
        finally:
            self.health.end()
            self.desk.close()
            if self._tap is not None:  # senders keep what was not acknowledged, and that goes over sockets that are open
                with contextlib.suppress(RuntimeError):
                    self._tap.flush(FLUSH_S)
                self.metrics.recording(self._tap.lost, self._tap.full)
            for source in self._sources:
                source.stop()
            if self.frame_files is not None:
                self.frame_files.close()
            for pending in self._router.pending:
                came = pending.run.ledger().get("received", 0)
                log.warning("%s: %d frames had come and are not reconstructed: the session ended", pending.names, came)
            self.plan.close()
        self._check()
        for name, error in self._unsaved.items():
            raise SessionError(f"{name}: the result could not be saved: {error}") from error
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
        self._router.wanted, self._router.decided = frozenset(acquisitions) or None, decisions or {}
        sources = {source.transport.channel: source for source in self._sources}
        for message in messages:
            if message.channel in sources:
                sources[message.channel].deliver(message)
        if not self._router.pending:
            there = ", ".join(sorted(sources))
            raise SessionError(f"nothing of the run is in the recording, on the channels {there}")
        run = self._router.pending[0].run
        run.acquisitions = dict(self._router.pending[0].keys)
        deadline = time.monotonic() + READING_S
        while any(scan.buffer.is_reading for scan in run.scans.values()) and time.monotonic() < deadline:
            self._bell.wait(self._bell.rung, WAIT_S)  # frames in files that its documents refer to
        self._end(run, "the recording is over")
        return run

    def _recover(self) -> None:
        """Deliver what an interrupted session recorded, without the scans that it has saved."""
        for message in self._recorded:
            if message.channel == SESSION:
                note = json.loads(bytes(message.parts[0]))
                if "steered" in note:
                    self._steer_again(note["steered"])
                    continue
                if "asked" in note:
                    self._standing.read(note)
                    continue
                self._router.leave_out((label, key, turn) for label, key, turn in note["acquisitions"])
                if (number := note.get("number", self.finished + 1)) is not None:
                    self._numbers.take(number)
                    self.finished += 1
                    self.reconstructed += 1
        for number in self._numbers.free(self.plan.overlap):
            checkpoint = self.plan.checkpoint(self._name(number))
            if checkpoint is not None:
                self._router.checkpoints.append((number, checkpoint))
        sources = {source.transport.channel: source for source in self._sources}
        for message in self._recorded:
            if message.channel == SESSION:
                self._end_again(json.loads(bytes(message.parts[0])))
            elif message.channel != FILES:
                sources[message.channel].deliver(message)
        self._router.recovered()
        for pending in self._router.pending:
            if pending.number is not None:
                self._numbers.take(pending.number)

    def _name(self, number: int) -> str:
        """Name of a run of this session."""
        return self.plan.name if number == 1 else f"{self.plan.name}_{number:04d}"

    # ------------------------------------------------------------------ one round: every run gets its turn

    def _goes_on(self) -> bool:
        if self._turns:
            return True
        self._check()
        return not self._over and not self._stop_asked.is_set() and self._may_begin()

    def _may_begin(self) -> bool:
        """Whether a further run is wanted and may be reconstructed beside those that are."""
        wanted = self.plan.runs is None or self.finished + len(self._turns) < self.plan.runs
        return wanted and len(self._turns) < self.plan.overlap

    def _round(self) -> None:
        """End what is due, begin what can be, and step every run once, the newest first; sleeps where nothing was done."""
        self.health.beat()
        rung, open_still = self._bell.rung, self._any_source()  # before looking: what comes meanwhile is seen below
        ending = self._failure is not None or self._stop_asked.is_set()
        for pending in self._router.pending:
            if not ending or any(turn.pending is pending for turn in self._turns):
                self._end_where_due(pending.run, open_still)
        if not ending:
            self._begin(open_still)
        worked = self.desk.serve()
        for pending in self._router.pending:
            self._switch_cuts(pending)
        paused = self.paused and not ending
        for turn in reversed(self._turns):
            worked |= self._rest(turn) if paused else self._step(turn)
        if not worked and not self._over and not self._stop_asked.is_set():
            self._bell.wait(rung, WAIT_S)

    def _begin(self, open_still: bool) -> None:
        """Let the oldest run that can start have turns. One that never can, because little came for it, keeps nobody waiting."""
        waiting = [p for p in self._router.pending if all(turn.pending is not p for turn in self._turns)]
        able = next((pending for pending in waiting if self._able(pending.run)), None)
        if not self._turns:
            self.current = able.run if able else waiting[0].run if waiting else self.current
        if waiting and not (able and self._may_begin()):
            first = able or waiting[0]
            first.run.name = self._name(self._numbers.next() if first.number is None else first.number)
            self._teller.of(first.run).tell(first.run, force=False, current=not self._turns)
        if able is None:
            if not self._turns and not open_still:
                log.info("every source has ended: no further scan will come")
                self._over = True
        elif self._may_begin():
            number = self._numbers.next() if able.number is None else able.number
            self._numbers.take(number)
            self.current, able.run.name = able.run, self._name(number)
            log.info("%s: %s", able.run.name, able.names)
            self._turns.append(
                Turn(
                    able,
                    number,
                    Loop(able.run, self.plan.loop),
                    self._teller.of(able.run),
                    self.plan.assess(able.run),
                    self.plan.look_quickly(able.run),
                )
            )
            self._resume(self._turns[-1])
            for entry in self._steered.values():
                if not PATH.fullmatch(entry["path"]):
                    able.run.apply(entry)
            self._turns[-1].again = self._standing.of(able.run, able.acquisitions)

    def _able(self, run: Run) -> bool:
        """Whether enough frames came for it, or no more will."""
        buffers = [scan.buffer for scan in run.scans.values()]
        least = self.plan.quick_frames or self.plan.loop.frames_to_start
        enough = sum(buffer.ledger.paired for buffer in buffers) >= least
        return enough or all(buffer.ended is not None for buffer in buffers)

    def _any_source(self) -> bool:
        """Whether anything may still come: from a source, or from a file that is being read for one."""
        if any(source.is_alive() for source in self._sources):
            return True
        return any(scan.buffer.is_reading for p in self._router.pending for scan in p.run.scans.values())

    def _step(self, turn: Turn) -> bool:
        """One pass of one run; whether it did anything."""
        run, loop, behind = turn.run, turn.loop, False
        try:
            if self._failure is not None:
                self._end(run, "a part of the session died")
            enough = turn.is_aborted and {"finish": False, "save": run.complete, "discard": True}[self.plan.aborted]
            if enough or self._failure is not None or self._stop_asked.is_set():
                loop.cut()
            if run.state == PAUSED:
                run.state = "waiting" if run.engine is None else "running"
            run.acquisitions = dict(turn.pending.keys)
            if self.plan.autosave is not None:
                self.plan.autosave.look(run, loop)
            self.plan.look(run)
            self._ask_again(turn)
            engine, step = run.engine, loop.step()
            if self._failure is not None:
                run.state = "failed"
            if step is Step.DONE:
                turn.assessor.finish()
                if turn.looker is not None:
                    turn.looker.finish()
            elif turn.looker is not None:
                behind = turn.looker.work(idle=step is Step.IDLE and len(self._turns) == 1)
            turn.told.tell(run, force=step is Step.DONE, current=run is self.current)
            self.measure()
            if engine is not None and run.engine is not engine:
                self.plan.benchmark(run)
            if step is not Step.DONE and run.engine is None and run.engine_entry is not None:
                self._save(run)  # one engine is done and another follows
            if step is not Step.DONE:
                turn.assessor.work(loop.settings.latency_s, among=len(self._turns))
        except BaseException:
            run.state = "failed"
            self._conclude(turn)
            raise
        if step is Step.DONE:
            self._conclude(turn)
        return behind or step is not Step.IDLE

    def _rest(self, turn: Turn) -> bool:
        """A turn of a session that is paused."""
        turn.run.state = PAUSED
        turn.told.tell(turn.run, force=False, current=turn.run is self.current)
        return False

    def _conclude(self, turn: Turn) -> None:
        """Save a run that is over and give its frames back."""
        run, number = turn.run, turn.number if turn.run.frames else None
        turn.assessor.close()
        if turn.looker is not None:
            turn.looker.close()
        try:
            if self.plan.autosave is not None:
                self.plan.autosave.forget(run.name)
            self.plan.over(run)
            if self.plan.aborted == "discard" and turn.is_aborted:
                log.warning("%s: %s: no result is kept", run.name, turn.aborted)
                number = None
            else:
                self._save(run)
            if run.frames and run.state == "finished" and self._tap is not None:  # a restart goes on with what has failed
                self._standing.write({"acquisitions": turn.pending.acquisitions, "number": number})
        finally:
            silent = any(scan.buffer.ended == self._silence for scan in run.scans.values())
            self.reconstructed += bool(run.frames)
            self.finished += number is not None or silent  # another scan may follow one that is empty, hardly a silent one
            if number is None:
                self._numbers.give_back(turn.number)
            came = bool(run.ledger().get("received"))
            if came and not run.frames:
                self.fruitless = run
            self._newest = max(self._newest, run.started if came else 0.0)
            self._turns.remove(turn)
            self.current = self._turns[-1].run if self._turns else self.current
            self._teller.forget(run)
            self._recutting.forget(run)
            self.metrics.over(run.state)
            self._router.drop(turn.pending)
            self.ended = time.time()

    def _resume(self, turn: Turn) -> None:
        run, checkpoint = turn.run, turn.pending.checkpoint
        changes = self._changes(turn)
        if checkpoint is not None:
            try:
                turn.loop.resume(checkpoint, changes)
                log.warning("%s: goes on from iteration %d", run.name, run.iterations)
                return
            except TimeoutError as error:
                log.warning("%s: begins anew, its dump is of no use: %s", run.name, error)
        for entry in changes:
            run.apply(entry)

    def _changes(self, turn: Turn) -> list[Entry]:
        """How frames of a run are cut and where they lie otherwise than the configuration says, as far as its schedule does not
        tell: its buffers were made so."""
        run, checkpoint = turn.run, turn.pending.checkpoint
        known = [] if checkpoint is None else list(checkpoint.schedule)
        under_way = [(wish.entry["scan"], name) for wish in self._recutting.of(run) for name in wish.entry["parameters"]]
        found: list[Entry] = []
        for steered in self._steered.values():
            match = PATH.fullmatch(steered["path"])
            if match is None or match.groups() in under_way or match.group(1) not in run.scans:
                continue
            entry = entry_of(steered, *match.groups())
            if not any(e["do"] == "recut" and e["time_ns"] >= entry["time_ns"] for e in [*known, *run.schedule]):
                found.append(entry)
        return found

    def _switch_cuts(self, pending: Pending) -> None:
        """Take frames as they were asked to be cut, where they are ready; what came to nothing is told, and taken back."""
        run = pending.run
        turn = next((turn for turn in self._turns if turn.pending is pending), None)
        for wish in self._recutting.of(run):
            if wish.cut is not None and wish.cut.failure is not None:
                self._recutting.done(wish, self._take_back(wish, wish.cut.failure))
            elif wish.ready:
                try:
                    if turn is None:
                        run.apply(wish.entry)
                    else:
                        turn.loop.renew(wish.entry)
                except ValueError as error:
                    self._recutting.done(wish, self._take_back(wish, str(error)))
                else:
                    self._recutting.done(wish)
                    told = run.name, wish.entry["scan"], wish.entry["parameters"]
                    log.warning("%s: %s: frames are as was asked for from here on: %.1000s", *told)
        if turn is not None:
            turn.loop.held = bool(self._recutting.of(run))

    def _take_back(self, wish: Wish, why: str) -> str:
        """A change of a scan came to nothing: what is in force is as before, for runs to come too."""
        told = f"{wish.entry['scan']}: frames stay as they were: {why}"
        log.error("%s: %s", wish.run.name, told)
        for steered in reversed(wish.steered):
            back = {**steered, "value": steered["before"], "before": steered["value"], "time_ns": time.time_ns()}
            try:
                self._set(back)
            except Refused as error:  # the file of a mask is gone, say: runs to come are cut as was asked for
                log.error("%s: cannot be set back: %s", self.plan.name, error)
                continue
            self._standing.write({"steered": back})
            self._put_in_force(back)
        return told

    def given(self, label: str, name: str) -> Any:
        """A parameter of a scan's frames as it was given, before arrays were read: set since, or in the configuration."""
        steered = self._steered.get(f"scans.{label}.data.{name}")
        if steered is not None:
            return steered["value"]
        found: Any = {} if self.plan.configuration is None else self.plan.configuration.given
        for key in ("scans", label, "data", name):
            found = found.get(key) if isinstance(found, Mapping) else None
        return located(found) if isinstance(found, str) else found

    def _set(self, entry: Entry) -> None:
        """In the configuration."""
        if self.plan.configuration is not None:
            with home(Path(self.plan.configuration.root.io.home)):
                Tree(self.plan.configuration).set(entry["path"], entry["value"])

    def _save(self, run: Run) -> None:
        try:
            path = self.plan.save(run) if run.frames else None
        except Exception as error:
            if run.state != "failed" and not isinstance(error, OSError):
                raise
            log.error("%s: what was there could not be saved: %s", run.name, error)  # what went wrong first is what counts
            if run.state != "failed":  # a disk that is full, say: the others are worth their results all the same
                run.state, self._unsaved[run.name] = "failed", error
            return
        self._unsaved.pop(run.name, None)
        if path is not None and path not in self.results:
            self.results.append(path)

    def _end_where_due(self, run: Run, open_still: bool) -> None:
        buffers = [scan.buffer for scan in run.scans.values()]
        for buffer in buffers:
            buffer.look()
        for entry in self.plan.scans:
            if entry.follows is not None and run.scans[entry.label].buffer.ledger.received:
                before = run.scans[entry.follows].buffer
                if before.ended is None and before.silent_s() > SUPERSEDED_S:
                    before.end(f"scan {entry.label!r} began, and nothing came for {SUPERSEDED_S:g} s")
        if self._stop_asked.is_set():
            self._end(run, "stopped on request")
        elif all(buffer.silent_s() > self._patience_s(buffer) for buffer in buffers):
            self._end(run, self._silence)
        elif all(buffer.silent_s() > SUPERSEDED_S for buffer in buffers) and self._another(run):
            self._end(run, f"another acquisition began, and nothing came for {SUPERSEDED_S:g} s")
        elif (why := aborted(run)) is not None and all(buffer.silent_s() > ABORTED_S for buffer in buffers):
            self._end(run, why)
        elif not open_still:
            self._end(run, "every source has ended")

    def _patience_s(self, buffer: PtyScan) -> float:
        """How long nothing may come from a scan: longer where it has lost the beam."""
        if self.plan.timeout_s is None:
            return math.inf
        extra = 0.0 if buffer.has_beam else self.plan.beam_timeout_s
        return math.inf if extra is None else self.plan.timeout_s + extra

    @property
    def _silence(self) -> str:
        """Why a scan is over that the time-out ended."""
        return f"nothing came for {self.plan.timeout_s or 0:g} s"

    def _another(self, run: Run) -> bool:
        """Whether frames of a later run have come."""
        later = [p.run for p in self._router.pending if p.run.started > run.started]
        return self._newest > run.started or any(other.ledger().get("received") for other in later)

    def _end(self, run: Run, reason: str) -> None:
        for scan in run.scans.values():
            if not scan.ended:
                scan.buffer.end(reason)

    def steer(self, path: str, value: Any, before: Any, who: str) -> str:
        """Have a parameter that was changed take effect, in the runs under way and those to come; tells what happens. Only in the
        engine's thread. Raises `CutError` where frames that are in use cannot follow it, `Refused` where an engine cannot:
        then it is in force in none of the runs."""
        entry = {"do": "steer", "path": path, "value": value, "before": before, "who": who, "time_ns": time.time_ns()}
        if PATH.fullmatch(path):
            told = self._recutting.ask([pending.run for pending in self._router.pending], entry)
            if (content := self._content(path)) is not None:
                entry["content"] = content
            self._standing.write({"steered": entry})
            self._put_in_force(entry)
            return told
        if _engine_of(path) in {chosen.label for chosen in self.appended()}:
            assert self.current is not None
            self._apply_to_all(entry, [self.current])
            self._note(self.current, entry)
            return f"in force before the next pass, in {self.current.name} alone: its engine was put there on request"
        # First: an engine that cannot take it leaves everything as it was.
        self._apply_to_all(entry, [turn.run for turn in self._turns])
        if self._tap is not None:
            self._standing.write({"steered": entry})
        self._put_in_force(entry)
        for turn in self._turns:
            turn.loop.settings = self.plan.loop
        return "in force before the next pass"

    def appended(self) -> list[EngineEntry]:
        """Engines of the present run that are not in the configuration. Only in the engine's thread."""
        configured = set() if self.plan.configuration is None else {e.label for e in self.plan.configuration.engines}
        run = self.current
        return [] if run is None or run.state in OVER else [e for e in run.engines if e.label not in configured]

    def _apply_to_all(self, entry: Entry, runs: Sequence[Run]) -> None:
        """In these runs, or in none of them: then those that have it get back what was. Raises `Refused`."""
        back, told = {**entry, "value": entry["before"]}, list[Run]()
        for run in runs:
            told.append(run)
            try:
                run.apply(entry)
            except Exception as error:
                log.exception("%s: %s cannot be set", run.name, entry["path"])
                for other in told:  # the one that refused too: its engine may have taken a part of it
                    try:
                        other.apply(back)
                    except Exception as again:
                        log.error("%s: %s cannot be set back: %s", other.name, entry["path"], again)
                why = f"{run.name} cannot take it: {error}; it is as it was in every run"
                raise Refused(entry["path"], entry["value"], why) from error

    def _put_in_force(self, entry: Entry) -> None:
        """For the session itself, and for runs to come."""
        path, value = entry["path"], entry["value"]
        self._steered[path] = entry
        if path == "live.latency":
            self.plan = replace(self.plan, loop=replace(self.plan.loop, latency_s=value))
        elif path == "live.quality.share":
            for turn in self._turns:
                turn.assessor.purse.share = value
        elif path == "io.publish.interval_s":
            self._teller.interval_s = value
        elif path == "io.publish.share":
            self._teller.share = value

    def _content(self, path: str) -> str | None:
        """What the array of a parameter in force is; None where it is none."""
        value = None if self.plan.configuration is None else Tree(self.plan.configuration).held(path)
        return digest(value) if isinstance(value, np.ndarray) else None

    def _steer_again(self, entry: Entry) -> None:
        """A change that was made before the session was interrupted, perhaps after the last dump."""
        try:
            self._set(entry)
        except Refused as error:
            log.warning("%s: is not steered as it was before the interruption: %s", self.plan.name, error)
            return
        if match := PATH.fullmatch(entry["path"]):
            self._router.recut.add(match.group(1))
        if entry.get("content") is not None and entry["content"] != self._content(entry["path"]):
            told = self.plan.name, entry["path"], entry["value"]
            log.error("%s: %s: %.200s is not what it was before the interruption: frames are cut as it is now", *told)
            self.unlike.append(f"{entry['path']}: {str(entry['value'])[:200]}")
        log.warning("%s: %s: %.1000s, as it was steered before the interruption", self.plan.name, entry["path"], entry["value"])
        self._put_in_force(entry)

    def end_scan(self, run: Run, reason: str, who: str = "") -> None:
        """A run gets no further frames, and comes to its end. Only in the engine's thread."""
        self._note(run, {"do": "end", "reason": reason, "who": who, "time_ns": time.time_ns()})
        self._end(run, reason)

    def restart(self, run: Run, who: str, *, anew: bool = False) -> None:
        """Have the engine at work take its starting probe again, or with `anew` the run begin with its first engine and nothing
        but its frames. Only in the engine's thread."""
        entry = {"do": "restart", "anew": anew, "who": who, "time_ns": time.time_ns()}
        self._note(run, entry)
        self._restart(next(turn for turn in self._turns if turn.run is run), entry)

    @staticmethod
    def _restart(turn: Turn, entry: Entry) -> None:
        if entry["anew"]:
            turn.loop.renew(entry)
        else:
            turn.run.apply(entry)

    def append(self, run: Run, engine: EngineConfiguration, who: str, *, here: bool = False) -> None:
        """Put an engine behind those of a run, or with `here` behind the one at work. Only in the engine's thread. Raises
        `ValueError` where it cannot work on the ranks that there are."""
        labels = [chosen.label for chosen in run.engines]
        place = labels.index(run.engine_entry.label) + 1 if here and run.engine_entry is not None else len(labels)
        parameters = engine.parameters.model_dump(mode="json")
        entry = {"do": "append", "label": engine.label, "name": engine.name, "parameters": parameters, "place": place}
        entry |= {"who": who, "time_ns": time.time_ns()}
        run.apply(entry)
        self._note(run, entry)

    def switch(self, run: Run, to: str, who: str) -> None:
        """End the engine at work, and go on with the one of this label. Only in the engine's thread."""
        asked = {"who": who, "time_ns": time.time_ns()}
        turn = next(turn for turn in self._turns if turn.run is run)
        self._note(run, {"do": "switch", "to": to, **asked})
        turn.loop.switch(to, asked)
        self._save(run)

    def _note(self, run: Run, entry: Entry) -> None:
        pending = next((pending for pending in self._router.pending if pending.run is run), None)
        if pending is not None:
            self._standing.note(run, pending.acquisitions, entry)

    def _ask_again(self, turn: Turn) -> None:
        """Carry out what the session before was asked for, where the run has come as far as it had then."""
        run, left = turn.run, []
        for asked in turn.again:
            do, now = asked.entry["do"], None if run.engine_entry is None else run.engine_entry.label
            if do == "append":
                run.apply(asked.entry)
            elif run.engine is None or (now == asked.engine and run.iterations < asked.iterations):
                left.append(asked)
                continue
            elif do == "steer" and _engine_of(asked.entry["path"]) in {chosen.label for chosen in run.engines}:
                run.apply(asked.entry)
            elif do == "restart" and now == asked.engine:
                self._restart(turn, asked.entry)
            elif do == "switch" and self._is_before(run, asked.entry["to"]):
                turn.loop.switch(asked.entry["to"], {key: asked.entry[key] for key in ("who", "time_ns")})
            else:
                continue
            log.warning("%s: %s, as it was asked for before the interruption", run.name, do)
        turn.again = left

    @staticmethod
    def _is_before(run: Run, label: str) -> bool:
        """Whether the engine of this label comes after the one at work."""
        labels = [chosen.label for chosen in run.engines]
        assert run.engine_entry is not None
        return label in labels and labels.index(label) > labels.index(run.engine_entry.label)

    def _end_again(self, note: Mapping[str, Any]) -> None:
        """End a scan where it was ended before the interruption: between the same two messages."""
        if note.get("asked", {}).get("do") != "end":
            return
        keys = {(label, key, turn) for label, key, turn in note["acquisitions"]}
        for pending in self._router.pending:
            if keys & set(pending.acquisitions):
                self._end(pending.run, note["asked"]["reason"])

    def _check(self) -> None:
        if self._failure is not None:
            raise SessionError(f"the session ended: {self._failure}") from self._failure


def _engine_of(path: str) -> str | None:
    """Label of the engine that a parameter belongs to; None: to no engine."""
    branch, _, rest = path.partition(".")
    return rest.partition(".")[0] if branch == "engines" else None
