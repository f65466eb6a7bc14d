"""What is kept of each run for the slider: bounded in pictures, runs and bytes."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from .picture import Picture

HISTORY, HISTORY_BYTES = 200, 512 << 20
"""Pictures kept of one run, and bytes of all runs together."""
RUNS = 20


@dataclass(slots=True)
class History:
    """The latest pictures of one run, numbered from the first that came; `first` is the number of the oldest one kept."""

    first: int = 0
    pictures: deque[Picture] = field(default_factory=deque)

    @property
    def newest(self) -> int:
        return self.first + len(self.pictures) - 1

    def forget(self) -> int:
        """Drop the oldest; returns its bytes."""
        self.first += 1
        return self.pictures.popleft().nbytes


@dataclass(frozen=True, slots=True)
class Found:
    """A picture of a run, and what there is beside it."""

    run: str
    number: int
    picture: Picture
    oldest: int
    newest: int
    runs: tuple[str, ...]
    """In the order in which they were first seen."""


class Histories:
    """What is kept of each run. Not thread-safe."""

    def __init__(self) -> None:
        self._runs: dict[str, History] = {}
        self._bytes = 0

    def keep(self, picture: Picture) -> None:
        """Add the newest picture of a run; what is too much goes: the oldest run first, its last picture at the very end."""
        history = self._runs.setdefault(picture.run, History())
        history.pictures.append(picture)
        self._bytes += picture.nbytes
        if len(history.pictures) > HISTORY:
            self._bytes -= history.forget()
        while len(self._runs) > RUNS or self._bytes > HISTORY_BYTES:
            others = [name for name in self._runs if name != picture.run]
            long = next((h for h in self._runs.values() if len(h.pictures) > 1), None)
            if len(self._runs) <= RUNS and long is not None:
                self._bytes -= long.forget()
            elif others:
                self._bytes -= sum(kept.nbytes for kept in self._runs.pop(others[0]).pictures)
            else:
                break

    def get(self, run: str | None = None, number: int | None = None) -> Found | None:
        """A picture; None: of the run that was first seen last, and its newest. The nearest there is, where it is gone."""
        if not self._runs:
            return None
        run = run if run in self._runs else next(reversed(self._runs))
        history = self._runs[run]
        wanted = history.newest if number is None else min(max(number, history.first), history.newest)
        picture = history.pictures[wanted - history.first]
        return Found(run, wanted, picture, history.first, history.newest, tuple(self._runs))
