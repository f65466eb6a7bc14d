"""How far to go along a direction: the two conditions of Wolfe, within a bracket.

f(t) <= f(0) + c1 t f'(0): far enough down; f'(t) >= c2 f'(0): far enough along. Nocedal & Wright, chapter 3; the bracket is
that of Lewis & Overton, Math. Program. 141, 135 (2013), which meets both in finitely many trials where f is smooth and bounded
below.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

At = TypeVar("At")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a search keeps to."""

    c1: float = 0.1
    c2: float = 0.9
    reduce: float = 0.1
    """Factor on a step that went too far, while none has gone far enough."""
    optimism: float = 3.0
    """Factor on one that did not, while none has gone too far."""
    most: float = 20
    """Trials; infinity: no limit."""
    least: float = 1e-20
    """Shortest step."""


@dataclass(frozen=True, slots=True)
class Trial(Generic[At]):
    """A step that was tried."""

    t: float
    value: float
    slope: float
    at: At
    """Whatever the evaluation gave besides."""


@dataclass(frozen=True, slots=True)
class Search(Generic[At]):
    """How a search ended."""

    taken: Trial[At] | None
    """The step that meets both conditions; None: there was none."""
    last: Trial[At] | None
    trials: int


def search(
    evaluate: Callable[[float], tuple[float, float, At]], value: float, slope: float, first: float, limits: Limits
) -> Search[At]:
    """Try steps, beginning with `first`. `evaluate(t)`: (f, f', anything); `value`, `slope`: f and f' at 0, f' < 0."""
    low, high, t = 0.0, math.inf, first
    low_value, low_slope = value, slope
    last: Trial[At] | None = None
    trials = 0
    while trials < limits.most and limits.least <= t < math.inf:
        found, along, at = evaluate(t)
        trials += 1
        last = Trial(t, found, along, at)
        if not (math.isfinite(found) and found <= value + limits.c1 * t * slope):
            high = t
            t = _between(low, low_value, low_slope, high, found) if low > 0 else t * limits.reduce
        elif not along >= limits.c2 * slope:
            low, low_value, low_slope = t, found, along
            t = t * limits.optimism if math.isinf(high) else (low + high) / 2
        else:
            return Search(last, last, trials)
        if math.isfinite(high) and high - low <= 1e-12 * high:
            break
    return Search(None, last, trials)


def _between(low: float, value: float, slope: float, high: float, found: float) -> float:
    """The minimum of the parabola through both ends, kept away from them; the middle where that says nothing."""
    width = high - low
    bend = found - value - slope * width
    if not math.isfinite(bend) or bend <= 0:
        return low + width / 2
    return low + min(max(-slope * width**2 / (2 * bend), 0.1 * width), 0.9 * width)
