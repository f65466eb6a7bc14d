"""A bell: whoever waits for a change anywhere is woken by it."""

from __future__ import annotations

import threading


class Bell:
    """Rung from any thread, whatever locks that holds: its own lock is held for nothing else."""

    def __init__(self) -> None:
        self.rung = 0
        """How often it has rung."""
        self._condition = threading.Condition(threading.Lock())

    def ring(self) -> None:
        """Something has changed."""
        with self._condition:
            self.rung += 1
            self._condition.notify_all()

    def wait(self, seen: int, timeout_s: float) -> None:
        """Until it has rung since `rung` was `seen`, at most `timeout_s`."""
        with self._condition:
            self._condition.wait_for(lambda: self.rung != seen, timeout_s)
