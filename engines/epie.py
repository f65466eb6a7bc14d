"""EPIE, the extended ptychographical iterative engine: Maiden & Rodenburg, Ultramicroscopy 109, 1256 (2009)."""

from __future__ import annotations

from ptystream.params.base import parameter

from .parameters import MOST_STEP, StochasticParameters
from .stochastic import StochasticEngine, Updates


class EPIEParameters(StochasticParameters):
    """The extended ptychographical iterative engine."""

    name: str = parameter("EPIE")
    """Name of the engine."""

    alpha: float = parameter(1.0, lower=0.0, steerable=True, most=MOST_STEP)
    """Parameter for adjusting the step size of the object update

    (ptypy's code exchanges `alpha` and `beta`: there this one is the step of the probe. Exchange the two values of a ptypy
    configuration where they differ.)"""

    beta: float = parameter(1.0, lower=0.0, steerable=True, most=MOST_STEP)
    """Parameter for adjusting the step size of the probe update

    (In ptypy's code the step of the object; see `alpha`.)"""

    object_norm_is_global: bool = parameter(False)
    """Calculate the object norm based on the global object instead of the local object

    The probe's step is divided by the largest |O|² of the whole object, and not of the part that a frame sees: smaller steps
    where the object is dark, and less weight for its brightest pixels there."""


class EPIE(StochasticEngine):
    """ePIE with probe and object modes: exit waves are probe × object at every visit, nothing is kept per frame."""

    Parameters = EPIEParameters
    keeps_waves = False

    def coefficients(self) -> tuple[float, float, float]:
        """a = 0, b = 1, c = 1: the wave with measured moduli."""
        return 0.0, 1.0, 1.0

    def updates(self) -> Updates:
        """Steps over the largest norm of a frame."""
        p = self.p
        return Updates(float(p.alpha), 0.0, float(p.beta), 0.0, global_object=bool(p.object_norm_is_global))
