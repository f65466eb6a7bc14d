"""One epoch after the other down the loss: L-BFGS, with what it knows and what makes it forget."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .loss import Point
from .memory import History
from .quantities import combined, product
from .search import Limits, Search, search
from .together import Agree, own
from .variables import Variables

AGAINST_REJECTION = ((2, "positions"), (3, "tilts"), (4, "background"), (5, "aberrations"), (6, "probe"))
"""After so many rejected epochs one after the other this quantity is held for some epochs."""
HELD_EPOCHS = 10


@dataclass(slots=True)
class Taken:
    """What came of an epoch."""

    point: Point | None
    """Where it has led; None: no step was taken."""
    first: float
    """The step with which the search began."""
    last: float
    """The last that was tried."""
    trials: int
    slope: float
    """Along the direction, where it began."""
    new_slope: float
    """And at the last trial."""


@dataclass(slots=True)
class Descent:
    """Not the loss, nor where it is: only what the optimiser remembers of its way."""

    history: History = field(default_factory=History)
    rejected: int = 0
    """Epochs one after the other in which no step was taken."""
    held: dict[str, int] = field(default_factory=dict)
    """Quantity → epochs for which it is not refined."""
    notes: list[str] = field(default_factory=list)
    """For the log."""
    agree: Agree = own
    """Makes numbers that decide those of all ranks."""

    def forget(self, why: str, *, scale: bool = False) -> None:
        """The loss is another one: what is known of its curvature is not; with `scale` not even its size."""
        if self.history.pairs:
            self.notes.append(f"history reset: {why}")
        self.history.forget(scale=scale)

    def begin(self) -> None:
        """An epoch begins: what is held comes nearer to being free."""
        self.held = {name: left - 1 for name, left in self.held.items() if left > 1}

    def step(
        self,
        here: Point,
        loss: Callable[[dict[str, Any]], Point],
        variables: Variables,
        moving: frozenset[str],
        scales: Mapping[str, float],
        limits: Limits,
        first: float,
        length: float,
    ) -> Taken:
        """Take one step from `here`; `scales` as of `Loss.first`, `length` of the history."""
        gradient = variables.pulled(here.gradient, here.at)
        direction = self.history.direction(gradient, scales)
        slope, value = self.agree(product(gradient, direction), here.value)
        if not slope < 0:
            self.forget("it led uphill")
            direction = self.history.direction(gradient, scales)
            (slope,) = self.agree(product(gradient, direction))
        if math.isnan(slope):
            self.notes.append("loss or gradient is not a number: nothing is refined")
        if not slope < 0:  # the gradient is 0: this is the end of the way
            return Taken(None, first, 0.0, 0, slope, slope)
        # Sorted: sets have another order in every process, and sums go over the names, as do the numbers that ranks agree on.
        start = variables.taken({name: here.at[name] for name in sorted(moving)})

        def attempt(t: float) -> tuple[float, float, tuple[Any, Point, Any]]:
            there = combined(start, t, direction)
            point = loss(here.at | variables.given(there))
            pull = variables.pulled(point.gradient, point.at)
            value, along = self.agree(point.value, product(pull, direction))
            return value, along, (there, point, pull)

        ended: Search[tuple[Any, Point, Any]] = search(attempt, value, slope, first, limits)
        last = (0.0, slope) if ended.last is None else (ended.last.t, ended.last.slope)
        if ended.taken is None:
            self.rejected += 1
            self.forget(f"no step met both conditions in {ended.trials} trials", scale=True)
            self._hold(moving)
            return Taken(None, first, last[0], ended.trials, slope, last[1])
        self.rejected = 0
        there, point, pull = ended.taken.at
        self.history.learn(combined(there, -1, start), combined(pull, -1, gradient), length, self.agree)
        return Taken(point, first, last[0], ended.trials, slope, last[1])

    def _hold(self, moving: frozenset[str]) -> None:
        for rejected, name in AGAINST_REJECTION:
            if self.rejected >= rejected and name in moving and name not in self.held and len(moving) > 1:
                self.held[name] = HELD_EPOCHS
                self.notes.append(f"{self.rejected} epochs without a step: {name} held for {HELD_EPOCHS} epochs")
                return
