"""How far to go along a direction, from the cost's polynomial."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.polynomial import Polynomial
from numpy.typing import NDArray

FLOOR = 0.1
"""Least part of the curvature without the model's second derivatives that a parabola is taken to have."""

RISE = 1e-5
"""Relative rise of the cost that may be rounding."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A step that was taken, until the cost behind it is known."""

    cost: float
    """Where it started."""
    slope: float
    """There, along `steps`."""
    length: float
    steps: Mapping[str, Any]

    def shortened(self, cost: float) -> float | None:
        """The length that it should have had if the cost has become larger: where the parabola through both costs has its
        minimum, from a tenth to a half of what was taken. None where the step was good."""
        if cost <= self.cost + RISE * abs(self.cost) or self.length == 0:
            return None
        bend = cost - self.cost - self.slope * self.length
        best = -self.slope * self.length / (2 * bend) if np.isfinite(bend) and bend > 0 else 0.0
        return self.length * float(np.clip(best, 0.1, 0.5))


def step_length(coefficients: Any, *, every: bool) -> float:
    """t of the smallest cost; `coefficients` (9,) as the kernel `line` has them, the prior's added.

    Of the parabola, -c1/(2 c2). Far from the solution c2 may be next to nothing or negative; [0], the curvature without the
    second derivatives of the model, never is, and a part of it is the least that is taken. With `every`, the real root of the
    derivative at which the whole polynomial is smallest. Nothing finite: 0.
    """
    c = np.asarray(coefficients, np.float64)
    if not np.isfinite(c).all() or c[1] == 0:
        return 0.0
    if every:
        return _smallest(c)
    curvature = max(c[2], FLOOR * c[0])
    t = -c[1] / (2 * curvature) if curvature > 0 else 0.0
    return float(t) if np.isfinite(t) else 0.0


def _smallest(c: NDArray[np.float64]) -> float:
    """In units of the length at which the first of the higher powers is as large as the slope's."""
    powers = np.arange(9)
    here = np.flatnonzero(c[2:]) + 2
    if not len(here):
        return 0.0
    unit = float(np.exp(np.min((np.log(abs(c[1])) - np.log(np.abs(c[here]))) / (here - 1))))
    scaled = c * unit**powers
    scaled[0] = 0
    cost = Polynomial(scaled / np.abs(scaled).max())
    roots = cost.trim(1e-14).deriv().roots()
    real = np.abs(roots.imag) <= 1e-6 * np.abs(roots)
    places = roots.real[real] if real.any() else roots.real
    if not len(places) or not np.isfinite(places).all():
        return 0.0
    best = places[np.argmin(cost(places))]
    return float(best * unit) if cost(best) < 0 else 0.0
