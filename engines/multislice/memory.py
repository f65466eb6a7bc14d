"""Limited-memory BFGS: what the last steps have shown of the curvature.

Nocedal & Wright, Numerical Optimization, algorithm 7.4. The first inverse Hessian is a number for each array: of its newest pair
that of Barzilai and Borwein, <s, y>/<y, y>, before there is one what the engine says.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .quantities import Vector, combined, product, product_of, scaled
from .together import Agree, own

BELIEVED = 30.0
"""A scale that differs by more than this factor from what was to be expected is not used."""
LEAST_CURVATURE = 1e-10
"""Share of |s| |y| by which <s, y> must be positive for a pair to be kept; an array must have as much of it to tell its scale."""


@dataclass(slots=True)
class Pair:
    """A step and the change of the gradient along it."""

    s: dict[str, Any]
    y: dict[str, Any]
    rho: float
    """1 / <s, y>."""


class History:
    """The newest pairs, at most `length` (0: none, but their scale; infinity: all).

    Their arrays lie where `keep` brings them, and come back by `fetch`: on the device, or on the host to spare its memory.
    """

    def __init__(self, keep: Callable[[Any], Any] = lambda a: a, fetch: Callable[[Any], Any] = lambda a: a) -> None:
        self._keep, self._fetch = keep, fetch
        self.pairs: deque[Pair] = deque()
        self.scale: dict[str, float] = {}
        """γ of each array."""

    def direction(self, gradient: Vector, first: Mapping[str, float]) -> dict[str, Any]:
        """The step -H g. `first`: scale of the arrays of which no pair has told one yet."""
        step, alphas = dict(gradient), []
        for pair in reversed(self.pairs):
            alpha = pair.rho * product(self._fetched(pair.s), step)
            alphas.append(alpha)
            step = combined(step, -alpha, self._fetched(pair.y))
        step = scaled(step, {name: self._scale(name, first) for name in step})
        for pair, alpha in zip(self.pairs, reversed(alphas), strict=True):
            beta = pair.rho * product(self._fetched(pair.y), step)
            step = combined(step, alpha - beta, self._fetched(pair.s))
        return {name: -array for name, array in step.items() if name in gradient}

    def _fetched(self, part: Vector) -> dict[str, Any]:
        return {name: self._fetch(array) for name, array in part.items()}

    def _scale(self, name: str, first: Mapping[str, float]) -> float:
        """γ, as far as it is believable: where arrays are coupled, a small step of one sees what a large one of another did."""
        expected = first.get(name)
        found = self.scale.get(name, 1.0 if expected is None else expected)
        return found if expected is None else min(max(found, expected / BELIEVED), expected * BELIEVED)

    def learn(self, s: Vector, y: Vector, length: float, agree: Agree = own) -> bool:
        """Take the newest pair in; whether it carried curvature. One that does not is passed over."""
        numbers = [product_of(*two) for name in s for two in ((s[name], y[name]), (s[name], s[name]), (y[name], y[name]))]
        agreed = agree(*numbers)
        along, lengths, squares = agreed[0::3], agreed[1::3], agreed[2::3]
        curvature = sum(along)
        if not curvature > LEAST_CURVATURE * math.sqrt(sum(lengths) * sum(squares)):
            return False
        for name, one, other in zip(s, along, squares, strict=True):
            if one > LEAST_CURVATURE * curvature and other > 0:  # less is what rounding makes of an array that had no gradient
                self.scale[name] = one / other
        if length > 0:
            kept_s, kept_y = ({name: self._keep(array) for name, array in part.items()} for part in (s, y))
            self.pairs.append(Pair(kept_s, kept_y, 1 / curvature))
        while len(self.pairs) > length:
            self.pairs.popleft()
        return True

    def forget(self, *, scale: bool = True) -> None:
        """Begin anew; with `scale` that is forgotten too."""
        self.pairs.clear()
        if scale:
            self.scale.clear()

    def fetched(self, pair: Pair) -> tuple[dict[str, Any], dict[str, Any]]:
        """(s, y) of a pair."""
        return self._fetched(pair.s), self._fetched(pair.y)

    def newest(self, count: int) -> None:
        """Forget all pairs but these."""
        while len(self.pairs) > count:
            self.pairs.popleft()

    def change(self, name: str, change: Callable[[Any], Any]) -> None:
        """Apply `change` to an array of every pair: an object that has grown."""
        for pair in self.pairs:
            for part in (pair.s, pair.y):
                if name in part:
                    part[name] = self._keep(change(self._fetch(part[name])))
