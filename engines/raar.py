"""RAAR, relaxed averaged alternating reflections: D. R. Luke, Inverse Problems 21, 37 (2005)."""

from __future__ import annotations

from ptystream.params.base import parameter

from .parameters import MOST_STEP, ProjectionParameters
from .projection import ProjectionEngine


class RAARParameters(ProjectionParameters):
    """Relaxed averaged alternating reflections."""

    name: str = parameter("RAAR")
    """Name of the engine."""

    beta: float = parameter(0.75, lower=0.0, steerable=True, most=MOST_STEP)
    """Beta parameter for RAAR algorithm

    1 is the difference map with alpha = 1. Smaller values pull every wave towards probe × object: it settles sooner and leaves
    local minima less easily."""


class RAAR(ProjectionEngine):
    """Relaxed averaged alternating reflections with probe and object modes."""

    Parameters = RAARParameters

    def coefficients(self) -> tuple[float, float, float]:
        """a = 1 - 2 beta, b = beta, c = 2.

        That is ψ' = [β/2 (R_F R_O + 1) + (1 - β) Π_O] ψ with the reflections R = 2 Π - 1.
        """
        beta = float(self.p.beta)
        return 1.0 - 2.0 * beta, beta, 2.0
