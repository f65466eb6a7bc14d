"""Dumps of a running reconstruction: decided between two passes, written by a thread of their own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from ptystream.loop import Loop
from ptystream.run import Run

log = logging.getLogger(__name__)

WAIT_S = 60.0
REST = 10.0
"""After a dump, at least so many times the duration of its writing pass before the next: small problems are not slowed by it."""


class Autosave:
    """Writes a dump whenever an engine has done `interval` further iterations, the last dump is written, and `REST` is over.

    `dump(run, loop)` copies what is to be written and returns what writes it, which is called in another thread and
    answers the file's path; its errors are logged and end nothing. Of the files of a run the newest `keep` stay.
    """

    def __init__(self, interval: int, keep: int | None, dump: Callable[[Run, Loop], Callable[[], Path]]) -> None:
        self.interval, self.keep, self._dump = interval, keep, dump
        self.written: dict[str, list[Path]] = {}
        """Files that are there, by run, the newest last."""
        self._last: dict[str, tuple[str, int]] = {}
        """Run → engine, and how often the interval was over at its last dump."""
        self._thread: threading.Thread | None = None
        self._said: set[str] = set()
        self.rest = REST
        self._due = 0.0
        """`time.monotonic` before which no dump begins."""

    def look(self, run: Run, loop: Loop) -> None:
        """Between two passes: begin a dump where one is due."""
        if self.interval <= 0 or run.engine is None or run.engine_entry is None or run.averaging or not run.iter_info:
            return
        now = (run.engine_entry.label, int(run.iter_info[-1]["iteration"]) // self.interval)
        label, last = self._last.get(run.name, ("", 0))
        if label != now[0] or now[1] < last:  # another engine, or the same one from its beginning
            last = 0
            self._last[run.name] = now[0], last
        writing = self._thread is not None and self._thread.is_alive()
        if now[1] <= last or writing or time.monotonic() < self._due:
            return
        self._last[run.name] = now
        self._thread = threading.Thread(target=self._write, args=(run.name, self._dump(run, loop)), name="autosave", daemon=True)
        self._thread.start()

    def found(self, run: str, files: Iterable[Path]) -> None:
        """Dumps of an interrupted session, the newest last: they count as this one's."""
        self.written[run] = list(files)

    def forget(self, run: str) -> None:
        """The run is over: waits for its last dump."""
        self.wait()
        self._last.pop(run, None)
        self.written.pop(run, None)

    def wait(self) -> None:
        """Until the last dump is written."""
        if self._thread is not None:
            self._thread.join(WAIT_S)

    def _write(self, run: str, write: Callable[[], Path]) -> None:
        began = time.monotonic()
        try:
            path = write()
            files = [file for file in self.written.get(run, []) if file != path] + [path]
            old = [] if self.keep is None else files[: -self.keep]
            for file in old:
                file.unlink(missing_ok=True)
            self.written[run] = files[len(old) :]
        except Exception as error:
            if str(error) not in self._said:
                self._said.add(str(error))
                log.error("%s: no dump could be written: %s", run, error)
        finally:
            self._due = time.monotonic() + self.rest * (time.monotonic() - began)
