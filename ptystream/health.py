"""Whether a session is alive, and whether it takes frames: for whoever restarts it, and for whoever waits for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

STUCK_AFTER_S = 120.0


class Health:
    """What is wrong with one session, and what it waits for. Every part may be called from any thread; nothing waits.

    The engine's thread says that it goes round (`beat`); the other parts are asked whether they have failed.
    """

    def __init__(self, stuck_after_s: float = STUCK_AFTER_S) -> None:
        self.stuck_after_s = stuck_after_s
        self.parts: dict[str, Any] = {}
        """Name of a part → the part, whose `failure` is None or the error that ended it."""
        self.warnings: dict[str, Callable[[], str]] = {}
        """Name → what somebody should look at though the session goes on; '' where there is nothing."""
        self.waits_for = "the session has not begun"
        """Why no frame can be taken yet, or any more; '' while they can be."""
        self.beat_s = time.time()
        """When the engine's thread came round last, seconds since the epoch."""
        self._beaten, self._ended = time.monotonic(), False

    def beat(self, waits_for: str = "") -> None:
        """The engine's thread has come round; `waits_for` as of the attribute."""
        self.waits_for = waits_for
        self.beat_s, self._beaten = time.time(), time.monotonic()

    def end(self) -> None:
        """The engine's thread goes round no more, and should not."""
        self.waits_for, self._ended = "the session has ended", True

    def ills(self) -> list[str]:
        """Why the session cannot do its work any more, a line each; nothing where it can. A restart is the remedy."""
        silent = time.monotonic() - self._beaten
        found = []
        if silent > self.stuck_after_s and not self._ended:
            found.append(f"engine: has not come round for {silent:.0f} s (io.metrics.stuck_after_s: {self.stuck_after_s:g})")
        for name, part in list(self.parts.items()):
            if part.failure is not None:
                found.append(f"{name}: {type(part.failure).__name__}: {part.failure}")
        return found

    def waits(self) -> list[str]:
        """Why no frame can be taken now, a line each."""
        return [*self.ills(), *([self.waits_for] if self.waits_for else [])]

    def concerns(self) -> list[str]:
        """What somebody should look at, a line each, though the session goes on."""
        told: Mapping[str, str] = {name: ask() for name, ask in list(self.warnings.items())}
        return [f"{name}: {why}" for name, why in told.items() if why]
