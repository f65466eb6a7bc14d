"""DM, the difference map: Thibault et al., Ultramicroscopy 109, 338 (2009)."""

from __future__ import annotations

from ptystream.params.base import parameter

from .parameters import MOST_STEP, ProjectionParameters
from .projection import ProjectionEngine


class DMParameters(ProjectionParameters):
    """The difference map."""

    name: str = parameter("DM")
    """Name of the engine."""

    alpha: float = parameter(1.0, lower=0.0, steerable=True, most=MOST_STEP)
    """Mix parameter between Difference Map (alpha=1) and Alternating Projections (alpha=0)"""


class DM(ProjectionEngine):
    """Difference map with probe and object modes."""

    Parameters = DMParameters

    def coefficients(self) -> tuple[float, float, float]:
        """a = -alpha, b = 1, c = 1 + alpha."""
        alpha = float(self.p.alpha)
        return -alpha, 1.0, 1.0 + alpha
