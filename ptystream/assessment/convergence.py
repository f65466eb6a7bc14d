"""Does a run converge? From the data misfit alone: the engine's own error rises while a picture sharpens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

WINDOW = 20
"""Iterations at the end of the curve that are judged."""
LEAST = 10
"""Iterations without which nothing can be said."""
FALLING = -3e-3
"""Relative change per iteration from which on a curve falls."""
RISING = 2e-2
"""The same for a curve that rises: iterates of projection methods go in circles, by 1.4 % per iteration for a while."""


def convergence(misfit: Sequence[NDArray[np.float64]]) -> dict[str, Any]:
    """`Snapshot.quality['convergence']` without its age, from the pieces of the curve, each (iteration, 3): the straight line
    through the logarithm of the last amplitude misfits, whichever engine made them. Costs the same however long the curve is.

    A misfit that is no number is rising: an engine that has diverged. {} where there is no curve.
    """
    last: list[NDArray[np.float64]] = []
    count = 0
    for piece in reversed(misfit):
        last.insert(0, piece[:, 0])
        count += len(piece)
        if count >= WINDOW:
            break
    curve = np.concatenate([np.zeros(0), *last])[-WINDOW:]
    known = np.isfinite(curve) & (curve > 0)
    if not len(curve):
        return {}
    if not known[-1]:
        return {"state": "rising"}
    curve = curve[known]
    if len(curve) < LEAST:
        return {"state": "too early"}
    slope = float(np.polyfit(np.arange(len(curve)), np.log(curve), 1)[0])
    state = "falling" if slope < FALLING else "rising" if slope > RISING else "converged"
    return {"state": state, "per_iteration": slope}
