"""What is done with a result beside its own file: CXI/NeXus, and a Tiled server. In a thread of its own, from the file that was
written, so that nothing of it can cost a run anything."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ptystream.run import Run
from ptystream.wiring import Plan

log = logging.getLogger(__name__)

MAX_WAITING = 100
"""Results that wait to be archived; further ones are told and counted as failed."""
CXI_S = 600.0
"""How long a file may take to be written."""


@dataclass(frozen=True, slots=True)
class Place:
    """Somewhere that results go."""

    name: str
    """'cxi', 'tiled': as the metrics call it."""
    put: Callable[[Path], str]
    """Does it with a result's file and says where it is; may raise whatever a library may."""
    limit_s: float = CXI_S
    only_finished: bool = False
    """Whether results of engines that another follows, or of a run that failed, do not go there."""


class Archivist:
    """Puts results into places, one after the other. Failures are logged and counted, and end nothing."""

    def __init__(self, places: Sequence[Place], count: Callable[[str, bool], None] = lambda place, done: None) -> None:
        """`count` is told of each result and place whether it was done."""
        self._places, self._count = places, count
        self.done: list[str] = []
        """Where results are, as the places say it."""
        self.failed = 0
        self.failure: BaseException | None = None
        """What the thread died of: from then on nothing is archived."""
        self._queue: queue.Queue[tuple[Place, Path] | None] = queue.Queue(MAX_WAITING * max(1, len(places)))
        self._thread = threading.Thread(target=self._serve, name="archivist", daemon=True)
        self._thread.start()

    def beside(self, plan: Plan) -> Plan:
        """The plan whose results go here as well, once they are written."""

        def save(run: Run) -> Path | None:
            path = plan.save(run)
            if path is not None:
                self.offer(path, finished=run.state == "finished")
            return path

        return replace(plan, save=save)

    def offer(self, path: Path, *, finished: bool) -> None:
        """A result was written. Does not wait."""
        for place in self._places:
            if finished or not place.only_finished:
                if self.failure is not None:
                    self._fail(place, path, self._dead)
                    continue
                try:
                    self._queue.put_nowait((place, path))
                except queue.Full:
                    self._fail(place, path, f"{self._queue.maxsize} results wait already")

    def close(self, timeout_s: float | None = None) -> None:
        """Wait for what is still to be done, no longer than the places may take for it. May be called twice."""
        if timeout_s is None:
            timeout_s = sum(place.limit_s for place, _ in [entry for entry in list(self._queue.queue) if entry])
            timeout_s += max((place.limit_s for place in self._places), default=0.0) + 1.0
        if self.failure is None:
            with contextlib.suppress(queue.Full):
                self._queue.put(None, timeout=timeout_s)
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            log.error("results are still being archived: the session ends without them")
        elif self.failure is not None:
            self._fail_waiting()  # what came while it died

    def _serve(self) -> None:
        entry = None
        try:
            while (entry := self._queue.get()) is not None:
                self._put(*entry)
        except BaseException as error:  # no thread to be had, or no memory
            self.failure = error
            if entry is not None:
                self._fail(*entry, self._dead)
            self._fail_waiting()

    def _fail_waiting(self) -> None:
        """Those that nobody puts anywhere any more; there is room for `close` again."""
        with contextlib.suppress(queue.Empty):
            while True:
                if (entry := self._queue.get_nowait()) is not None:
                    self._fail(*entry, self._dead)

    @property
    def _dead(self) -> str:
        return f"nothing is archived any more: {type(self.failure).__name__}: {self.failure}"

    def _put(self, place: Place, path: Path) -> None:
        """In a thread that is left behind where it takes too long: a library may wait for a peer for as long as it likes."""
        answer: list[str | BaseException] = []

        def put() -> None:
            try:
                answer.append(place.put(path))
            except BaseException as error:
                answer.append(error)

        thread = threading.Thread(target=put, name=f"archive {place.name}", daemon=True)
        began = time.monotonic()
        try:
            thread.start()
        except RuntimeError as error:  # there is none to be had just now
            return self._fail(place, path, str(error))
        thread.join(place.limit_s)
        if not answer:
            self._fail(place, path, f"not done within {place.limit_s:g} s")
        elif isinstance(answer[0], BaseException):
            self._fail(place, path, f"{type(answer[0]).__name__}: {answer[0]}"[:1000])
        else:
            self.done.append(f"{place.name}: {answer[0]}")
            log.info("%s: %s, after %.1f s", place.name, answer[0], time.monotonic() - began)
            self._count(place.name, True)

    def _fail(self, place: Place, path: Path, why: str) -> None:
        self.failed += 1
        log.error("%s: %s is not archived there: %s", place.name, path, why)
        self._count(place.name, False)
