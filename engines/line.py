"""How far to go along a direction, from the cost's polynomial."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.polynomial import Polynomial


def step_length(coefficients: Any, *, every: bool) -> float:
    """t of the smallest cost; `coefficients` (9,) as the kernel `line` has them, the prior's added.

    Of the parabola, -c1/(2 c2); where that opens downwards (far from the solution c2 may be negative) of the one without
    the second derivatives of the model, [0], which never does. With `every`, the real root of the derivative at which the
    whole polynomial is smallest. Nothing finite, or nothing below the cost at 0: 0.
    """
    c = np.asarray(coefficients, np.float64)
    if not np.isfinite(c).all():
        return 0.0
    curvature = c[2] if c[2] > 0 else c[0]
    parabola = float(-c[1] / (2 * curvature)) if curvature > 0 else 0.0
    if not every or parabola == 0:
        return parabola if math.isfinite(parabola) else 0.0
    scaled = np.concatenate([[0.0], c[1:] * parabola ** np.arange(1, 9)])
    if not np.isfinite(scaled).all():
        return 0.0
    cost = Polynomial(scaled).trim(1e-15 * np.abs(scaled).max())
    roots = cost.deriv().roots()
    real = roots.real[np.abs(roots.imag) <= 1e-6 * np.abs(roots)]
    real = real[cost(real) < 0]
    return float(real[np.argmin(cost(real))] * parabola) if len(real) else 0.0
