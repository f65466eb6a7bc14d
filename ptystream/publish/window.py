"""Plots in a window of this desktop: a process of its own holds it open and is handed the newest picture."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading

log = logging.getLogger(__name__)

READY = b"ready\n"
"""What the process answers when its window is open; anything else is why there is none."""
START_S = 20.0
"""For how long a session waits at its start for the window."""
END_S = 5.0


class Window:
    """Shows pictures; the one before the newest may be left out. It closes with the session, or when the user closes it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._picture: bytes | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._carry, name="window", daemon=True)
        self._thread.start()

    @staticmethod
    def open(module: str) -> Window | None:
        """A window by a plug-in that runs as a process: see `READY`; then a line with a size and so many bytes of PNG for each
        picture on its standard input. None, with a line in the log, where there can be none."""
        if not desktop():
            log.info("io.autoplot: no window, since there is no display; `dump` makes files, `ptystream view` shows it elsewhere")
            return None
        command = [sys.executable, "-P", "-m", module]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert process.stdout is not None
        late = threading.Timer(START_S, process.kill)
        late.start()
        answer = process.stdout.readline()
        late.cancel()
        if answer == READY:
            return Window(process)
        _end(process)
        why = answer.decode(errors="replace").strip() or "the process that was to hold it has ended"
        log.info("io.autoplot: no window: %s; `dump` makes files, `ptystream view` shows it elsewhere", why)
        return None

    def __call__(self, png: bytes) -> bool:
        """Show this one, soon; waits for nothing. False where the window is there no longer."""
        with self._changed:
            self._picture = png
            self._changed.notify_all()
            return not self._closed

    def close(self) -> None:
        """Show the last picture and end the process."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(END_S)
        _end(self._process)

    def _carry(self) -> None:
        assert self._process.stdin is not None
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._picture is not None or self._closed)
                picture, self._picture = self._picture, None
            if picture is None:
                return
            try:
                self._process.stdin.write(b"%d\n" % len(picture) + picture)
                self._process.stdin.flush()
            except (OSError, ValueError):
                with self._changed:
                    self._closed = True
                return


def desktop() -> bool:
    """Whether there may be a display at all: a guess that costs nothing."""
    if sys.platform in ("win32", "darwin", "cygwin"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _end(process: subprocess.Popen[bytes]) -> None:
    """Its input ends, and it with that."""
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            assert pipe is not None
            pipe.close()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
