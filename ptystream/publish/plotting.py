"""Plots of a running reconstruction, from the snapshots that viewers get. Drawing waits for nobody and nobody for it.

With `threaded` a process of its own draws, at a low priority: it is handed the newest snapshot when it has finished the one
before, and the session copies none that it cannot take. Otherwise the engine's thread draws, and every interval has its plot.
A drawing that fails is told in the log, once, and ends the plots and not the session.
"""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Protocol, TypeAlias

import msgpack

from ptystream.params.autoplot import AutoplotParameters
from ptystream.publish.schema import encode
from ptystream.publish.snapshot import Snapshot

log = logging.getLogger(__name__)

LAST_S = 120.0
"""For how long the end of a session waits for the last plot."""

Order: TypeAlias = tuple[Snapshot, Path | None, str, bool]
"""(what, into which file, in which layout, whether the picture itself is wanted)."""


class Drawing(Protocol):
    """A plug-in of the group 'ptystream.viewers' that draws."""

    module: str
    """To be run as a process: reads orders from standard input as `write_order` writes them, answers each with a line."""

    window: str
    """To be run as a process: holds a window open, see `ptystream.publish.window.Window.open`."""

    @staticmethod
    def plot(snapshot: Snapshot, path: Path | None, layout: str, *, show: bool) -> bytes:
        """Draw into a file whose ending names the format, if one is named; with `show` the picture as PNG, else nothing."""

    @staticmethod
    def make_movie(frames: list[str], stem: str | Path) -> Path:
        """A movie of pictures; returns its path."""


class Screen(Protocol):
    """Where pictures are shown."""

    def __call__(self, png: bytes) -> bool | None:
        """Show one, soon. False where that is not possible any more."""

    def close(self) -> None:
        """No other will come."""


class Plotter:
    """Decides when to plot, and has it done. `due`, `offer` and `close` are called from the session's thread."""

    def __init__(
        self,
        settings: AutoplotParameters,
        drawing: Any,
        path_of: Callable[[str, Mapping[str, Any]], Path],
        show: Screen | None = None,
    ) -> None:
        """`path_of` (run, runtime information) names the file of a plot; `show` is given each picture as PNG."""
        self.settings = settings
        self._drawing, self._path_of, self._show, self._screen = drawing, path_of, show, show
        self._dump = settings.dump or settings.make_movie
        self._plotted: dict[str, int] = {}
        """Iterations of each run at its last plot."""
        self._frames: dict[str, list[str]] = {}
        self._failed = False
        self._movies: list[Path] | None = None
        self._courier = _Courier(drawing.module, self._drawn) if self.active and settings.threaded else None

    @property
    def active(self) -> bool:
        """Whether anything is ever plotted."""
        return self.settings.active and self.settings.interval > 0 and (self._dump or self._show is not None)

    def due(self, run: str, iterations: int, *, last: bool = False) -> bool:
        """Whether a snapshot of the run after so many iterations would be drawn. `last`: no other will come."""
        if not self.active or self._failed:
            return False
        before = self._plotted.get(run, 0)
        if last:
            return iterations > before
        return iterations - before >= self.settings.interval and (self._courier is None or self._courier.free)

    def offer(self, snapshot: Snapshot, info: Mapping[str, Any], *, last: bool = False) -> None:
        """Draw this one. `info`: the runtime information that `path_of` fills into the file's name."""
        self._plotted[snapshot.run] = snapshot.iteration
        path = self._path_of(snapshot.run, info) if self._dump else None
        show = self._show is not None
        if self._courier is not None:
            self._courier.offer((snapshot, path, self.settings.layout, show), wait=last)
            return
        picture, failure = b"", None
        try:
            picture = self._drawing.plot(snapshot, path, self.settings.layout, show=show)
        except Exception as error:  # whatever a drawing library may raise
            failure = f"{type(error).__name__}: {error}"
        self._drawn(snapshot.run, path, picture, failure)

    def _drawn(self, run: str, path: Path | None, picture: bytes, failure: str | None) -> None:
        if failure is not None:
            if not self._failed:
                log.error("%s: io.autoplot: drawing failed, no more plots: %s", run, failure)
            self._failed = True
            return
        if path is not None:
            self._frames.setdefault(run, []).append(str(path))
        if self._show is not None and picture and self._show(picture) is False:
            log.info("%s: io.autoplot: the window was closed; no more plots are drawn for it", run)
            self._show = None

    def close(self) -> list[Path]:
        """Wait for the last plot, and make the movies; returns their paths. May be called twice."""
        if self._movies is not None:
            return self._movies
        movies: list[Path] = []
        self._movies = movies
        if self._courier is not None:
            self._courier.close()
        if self._screen is not None:
            self._screen.close()
        if not self.settings.make_movie:
            return movies
        for run, frames in self._frames.items():
            frames = list(dict.fromkeys(frames))
            try:
                movies.append(self._drawing.make_movie(frames, Path(frames[-1]).parent / run))
            except (OSError, ValueError, RuntimeError) as error:
                log.error("%s: io.autoplot.make_movie: %s", run, error)
        return movies


class _Courier:
    """Takes the newest snapshot to the drawing process, whenever that has finished the one before."""

    def __init__(self, module: str, drawn: Callable[[str, Path | None, bytes, str | None], None]) -> None:
        self._drawn = drawn
        self._order: Order | None = None
        self._busy, self._closed = False, False
        self._changed = threading.Condition()
        command = [sys.executable, "-P", "-m", module]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._thread = threading.Thread(target=self._carry, name="plots", daemon=True)
        self._thread.start()

    @property
    def free(self) -> bool:
        """Whether a snapshot would be drawn at once."""
        with self._changed:
            return not self._busy and self._order is None

    def offer(self, order: Order, *, wait: bool) -> None:
        """Draw this one next. One that waits to be drawn is forgotten; with `wait` it is drawn first."""
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._order is None, LAST_S)
            self._order = order
            self._changed.notify_all()

    def close(self) -> None:
        """Let the last one be drawn and end the process."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(LAST_S)
        if self._thread.is_alive():
            log.error("io.autoplot: the drawing process did not end within %g s and is ended", LAST_S)
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def _carry(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        while True:
            with self._changed:
                self._busy = False
                self._changed.wait_for(lambda: self._order is not None or self._closed)
                order, self._order = self._order, None
                self._busy = True
                self._changed.notify_all()
            if order is None:
                break
            snapshot, path, _, _ = order
            try:
                write_order(self._process.stdin, order)
                answer = self._process.stdout.readline()
                head: Any = msgpack.unpackb(bytes.fromhex(answer.decode().strip() or "a0"))
                if not isinstance(head, dict):
                    raise OSError("the drawing process ended")
                picture = self._process.stdout.read(int(head["bytes"]))
            except (OSError, ValueError) as error:
                self._drawn(snapshot.run, path, b"", str(error))
                break
            self._drawn(snapshot.run, path, picture, head["failure"])
        with self._changed:
            self._order = None
            self._changed.notify_all()
        with contextlib.suppress(OSError):  # it has ended already; that was told
            self._process.stdin.close()


def write_order(out: IO[bytes], order: Order) -> None:
    """A line of hexadecimal msgpack {path, layout, show, sizes}, then the parts of the encoded snapshot."""
    snapshot, path, layout, show = order
    parts = [memoryview(part).cast("B") for part in encode(snapshot, "complex64")]
    sizes = [len(part) for part in parts]
    head = {"path": None if path is None else str(path), "layout": layout, "show": show, "sizes": sizes}
    out.write(msgpack.packb(head).hex().encode() + b"\n")
    for part in parts:
        out.write(part)
    out.flush()
