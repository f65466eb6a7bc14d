"""SDR, semi-implicit relaxed Douglas-Rachford: Pham, Rana, Miao & Osher, Opt. Express 27, 31246 (2019)."""

from __future__ import annotations

from ptystream.params.base import parameter

from .parameters import StochasticParameters
from .stochastic import StochasticEngine, Updates


class SDRParameters(StochasticParameters):
    """Semi-implicit relaxed Douglas-Rachford."""

    name: str = parameter("SDR")
    """Name of the engine."""

    sigma: float = parameter(1, lower=0.0, steerable=True)
    """Relaxed Fourier reflection parameter."""

    tau: float = parameter(1, lower=0.0, steerable=True)
    """Relaxed modulus constraint parameter."""

    beta_probe: float = parameter(0.1, lower=0.0, steerable=True)
    """Parameter for adjusting the step size of the probe update"""

    beta_object: float = parameter(0.9, lower=0.0, steerable=True)
    """Parameter for adjusting the step size of the object update"""


class SDR(StochasticEngine):
    """Relaxed Douglas-Rachford on the frames one by one; the exit wave of each is kept until its next visit."""

    Parameters = SDRParameters

    def coefficients(self) -> tuple[float, float, float]:
        """a = 1 - tau (1 + sigma), b = tau, c = 1 + sigma."""
        sigma, tau = float(self.p.sigma), float(self.p.tau)
        return 1 - tau * (1 + sigma), tau, 1 + sigma

    def updates(self) -> Updates:
        """Semi-implicit: the step is the share of a pixel's own norm, the largest norm of the frame has the rest."""
        p = self.p
        return Updates(float(p.beta_object), float(p.beta_object), float(p.beta_probe), float(p.beta_probe))
