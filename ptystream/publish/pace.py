"""When a run publishes: not too often, and for a small share of its engine's time, however large what is copied out."""

from __future__ import annotations

import statistics
from collections import deque

LOOKED_AT = 5
"""Snapshots of which the median tells what one takes: another process may have held up any single one."""
FIRST_REST_S = 0.5
"""Longest rest after a run's first one, which also prepares what later ones use, so it does not tell what those take."""


class Pace:
    """Of one run."""

    def __init__(self) -> None:
        self._began = -float("inf")
        self._rests_until = -float("inf")
        self._took: deque[float] = deque(maxlen=LOOKED_AT)
        self._first_rest = 0.0

    def due(self, now: float, interval_s: float) -> bool:
        """Whether the next snapshot may be made: `interval_s` after the last one was begun, and when it was rested enough."""
        return now - self._began >= interval_s and now >= self._rests_until

    def made(self, began: float, ended: float, share: float) -> None:
        """One was made: the next is to come so late that making them takes `share` of the time at the most."""
        self._began = began
        self._took.append(ended - began)
        rest = owed = statistics.median_low(self._took) * (1 / share - 1)
        if len(self._took) == 1:
            rest = self._first_rest = min(owed, FIRST_REST_S)
        elif len(self._took) == 2:
            rest += max(0.0, owed - self._first_rest)  # what the first one rested too little
        self._rests_until = ended + rest
