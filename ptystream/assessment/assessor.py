"""What is measured of a run beside its iterations: when, in whose time, and what it came to.

The engine's thread calls `work` after each of the run's turns. What takes long is cut into iterations of half of the frames, each
begun only when the share of time has been earned; comparing pictures is left to a thread of its own. Nothing here can end a run:
what goes wrong is said once, and that figure is given up.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotDone
from typing import Any

import numpy as np

from ptystream.reconstruction import Storage
from ptystream.run import Run

from .convention import Convention, code_of
from .convergence import convergence
from .correlation import correlate
from .coverage import coverage, diameter
from .drift import drift
from .halves import Halves
from .purse import Purse

log = logging.getLogger(__name__)

INTERVAL_S = 2.0
"""Shortest time between two measurements of the same figure."""
RARELY = 20.0
"""So many times as long as it takes passes between two comparisons of pictures."""
SELDOM = 100.0
"""The same for the figures that need no halves: they take a hundredth of the engine's thread at most."""
FIRST = 3
"""Iterations of both halves before their pictures are compared."""
LAST_S = 2.0
"""How long the end of a run waits for a comparison."""
Figure = dict[str, Any]


class Assessor:
    """Measures one run. Every call comes from the engine's thread."""

    def __init__(self, run: Run, share: float = 0.1, convention_frames: int = 0, alone: bool = True) -> None:
        """`convention_frames`: on how many the convention is checked; 0: not. `alone`: whether one rank does all the work."""
        self.run = run
        self.purse = Purse(share)
        self.halves: Halves | None = None
        self.convention: Convention | None = None
        self._convention_frames, self._alone = convention_frames, alone
        self._refused = self._blank = False
        self._pool: ThreadPoolExecutor | None = None
        self._pending: tuple[Future[tuple[Figure, float]], int, Figure] | None = None
        """A comparison under way, the iteration of the run that it is of, and what is to be told with it."""
        self._looked = time.monotonic()
        self._measured = self._compared = -1e9
        self._interval_s = INTERVAL_S
        self._of = (-1, -1)
        """Iterations of the run, and those of its halves, at the last measurement."""
        self._begun = 0
        """`Halves.begun` at their last turn."""
        self._cut = run.cuts
        """`Run.cuts` when the convention check began."""
        self._dearest = self._took = 0.0

    # ------------------------------------------------------------------ between two turns

    def work(self, latency_s: float | None = None, among: int = 1) -> None:
        """Measure what is due, and spend what was earned. `among`: runs that share the thread; `latency_s`: as of the loop."""
        run, now = self.run, time.monotonic()
        passed, self._looked = now - self._looked, now
        self.purse.earn(passed / among, self._dearest)
        self._forget_outdated()
        self._collect(0.0)
        if run.engine is not None and now - self._measured > self._interval_s and self._of[0] != run.iterations:
            self._measure()
        if self.purse.share <= 0 and self.halves is not None:  # steered away; a share that comes back begins anew
            self._drop()
        if run.engine is None or self.purse.share <= 0 or self._refused or not self._guard("split halves", self._wanted):
            return
        if self.convention is not None and self.convention.due:
            self._guard("convention check", self._check)
        elif self.halves is not None and self.halves.due:
            self._guard("split halves", lambda: self._halve(latency_s))

    def finish(self) -> None:
        """The run is over: bring everything up to date that is worth the little while."""
        outdated = self._forget_outdated()
        self._measure()
        if self.halves is not None and not outdated and self._pending is None and self.halves.iterations > self._of[1]:
            self._guard("split halves", self._compare)
        self._collect(LAST_S)
        self.close()

    def close(self) -> None:
        """Give back memory and threads. May be called again."""
        self._let_go()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    def _guard(self, what: str, do: Callable[[], bool | None]) -> bool:
        """Whether it could be done. Where not, this is given up, and the run goes on: a GPU may have no room left, say."""
        try:
            return do() is not False
        except Exception as error:
            log.warning("%s: %s is given up: %s: %s", self.run.name, what, type(error).__name__, error, exc_info=True)
            self._let_go()
            return False

    def _let_go(self) -> None:
        """Of halves and convention, for good."""
        self._refused = True
        self._drop()

    def _drop(self) -> None:
        for part in (self.halves, self.convention):
            if part is not None:
                with contextlib.suppress(Exception):  # an engine that has failed may fail again
                    part.close()
        self.halves = self.convention = None
        self._begun = 0

    # ------------------------------------------------------------------ what costs next to nothing

    def _measure(self) -> None:
        """Convergence, coverage and drift."""
        started = time.perf_counter()
        self._measured, self._of = time.monotonic(), (self.run.iterations, self._of[1])
        entry = self.run.engine_entry
        if entry is not None and getattr(entry.parameters, "compute_log_likelihood", True):  # otherwise no misfit is a number
            self._tell("convergence", convergence(self.run.misfit))
        if self.run.reconstruction is not None and self.run.reconstruction.objects and self.run.iterations:
            try:
                self._measure_pictures()
            except Exception as error:  # whatever is wrong with it, a run is worth more than a figure
                log.warning("%s: coverage and drift: %s: %s", self.run.name, type(error).__name__, error, exc_info=True)
        took = time.perf_counter() - started
        self._interval_s = max(INTERVAL_S, SELDOM * took)
        self.purse.spend(took)

    def _measure_pictures(self) -> None:
        run = self.run
        assert run.reconstruction is not None
        source = run.reconstruction
        probes = source.probes if run.engine is None else run.engine.snapshot(("probe",)).probes
        name, probe = next(iter(probes.items()))
        rows = run.rows()
        moved = source.pods.moved[rows]
        self._tell("drift", drift(run.starting[name], probe, moved if moved.any() else None, source.pods.index[rows]))
        canvas = next(iter(source.objects.values()))
        if canvas.slices > 1 or not len(rows):
            return
        seen = run.see_coverage()[next(iter(source.objects))]
        power = (np.abs(probe.mean_over_frames()) ** 2).sum(axis=0)
        own = rows[source.pods.address[rows, 0, 2] == 0]  # those that see the first object
        self._tell("coverage", coverage(run.positions()[own], canvas.offset, seen, diameter(power)))

    def _tell(self, name: str, figure: Figure, iteration: int | None = None) -> None:
        if figure:
            when = {"measured_ns": time.time_ns(), "iteration": self.run.iterations if iteration is None else iteration}
            self.run.quality = {**self.run.quality, name: figure | when}

    # ------------------------------------------------------------------ what is paid from the share

    def _wanted(self) -> bool:
        """Whether halves and convention can be asked of this run at all; they begin with its first engine."""
        if self.halves is not None:
            if self._cut != self.run.cuts and self.convention is None:  # what was found was said of frames that lay otherwise
                self._begin_convention()
            return True
        why = "the run is spread over several ranks" if not self._alone else ""
        source = self.run.reconstruction
        if source is not None and any(storage.slices > 1 for storage in source.objects.values()):
            why = "objects are volumes"
        if why:
            log.info("%s: no split halves and no convention check: %s", self.run.name, why)
            self._refused = True
            return False
        self.halves = Halves(self.run)
        self._begin_convention()
        return True

    def _begin_convention(self) -> None:
        self._cut = self.run.cuts
        if self._convention_frames:
            present = next(iter(self.run.scans.values())).buffer.parameters.operations()
            self.convention = Convention(self.run, code_of(present), self._convention_frames)

    def _check(self) -> None:
        assert self.convention is not None
        if self.convention.stale:
            self.convention.close()
            self._begin_convention()
        if not self.purse.affords(self._took or self._expected(self._convention_frames)):
            return
        self._took = self.convention.step()
        self._spend(self._took)
        if self.convention.done:
            figure = self.convention.figure()
            self._tell("convention", figure)
            best = figure["ranking"][0]
            log.info(
                "%s: convention: best is %s (orientation: %d), %.2f times better than the next class: %s",
                *(self.run.name, best["name"], best["orientation"], figure["lead"], figure["why"]),
            )
            self.convention, self._took = None, 0.0

    def _halve(self, latency_s: float | None) -> None:
        assert self.halves is not None
        if not self.purse.affords(self._took or self._expected(self.run.frames / 2)):
            return
        self._took = self.halves.step(latency_s)
        self._spend(self._took)
        if self.halves.begun != self._begun:
            self._begun, self._of = self.halves.begun, (self._of[0], -1)
        ready = self.halves.iterations >= FIRST and self.halves.iterations > self._of[1]
        if ready and self._pending is None and time.monotonic() - self._compared > INTERVAL_S:
            self._compare()

    def _forget_outdated(self) -> bool:
        """Whether the run has begun anew, or its frames are cut another way: the correlation is then not of what there is now."""
        if self.halves is None or not self.halves.is_outdated:
            return False
        self._pending = None
        self.run.quality = {name: figure for name, figure in self.run.quality.items() if name != "frc"}
        return True

    def _expected(self, frames: float) -> float:
        """Seconds that an iteration of so many frames takes, as those of the run did."""
        info = self.run.iter_info[-1] if self.run.iter_info else None
        return 0.0 if info is None else frames * float(info["duration"]) / max(1, info["count"] * info["frames"])

    def _spend(self, seconds: float) -> None:
        self._dearest = max(seconds, 0.9 * self._dearest)
        self.purse.spend(seconds)

    def _compare(self) -> None:
        """Have the pictures of both halves, as they are, compared beside the iterations."""
        assert self.halves is not None and self.run.reconstruction is not None
        started = time.perf_counter()
        pictures = self.halves.pictures(next(iter(self.run.reconstruction.objects)))
        self._spend(time.perf_counter() - started)
        self._of = (self._of[0], self.halves.iterations)
        if len(pictures) == 2:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(1, "quality")
            told = {"frames": self.halves.frames, "iterations": self.halves.iterations, "share": self.purse.part}
            self._pending = self._pool.submit(_timed, *pictures), self.run.iterations, told

    def _collect(self, wait_s: float) -> None:
        """Take the result of a comparison, if there is one."""
        if self._pending is None:
            return
        future, iteration, told = self._pending
        if not future.done() and wait_s <= 0:
            return
        self._pending = None
        try:
            figure, took = future.result(wait_s)
        except NotDone:
            return
        except Exception as error:
            log.warning("%s: comparing the halves: %s: %s", self.run.name, type(error).__name__, error)
            return
        self.purse.spend(took)
        self._compared = time.monotonic() + RARELY * took - INTERVAL_S if RARELY * took > INTERVAL_S else time.monotonic()
        if not figure and not self._blank:
            self._blank = True
            log.info("%s: no resolution yet: the halves have no square in common that both cover without a gap", self.run.name)
        self._tell("frc", figure | told if figure else {}, iteration)


def _timed(first: tuple[Storage, Storage], second: tuple[Storage, Storage]) -> tuple[Figure, float]:
    """What `correlate` gives, and the seconds of a processor that it took."""
    started = time.thread_time()
    return correlate(first, second), time.thread_time() - started
