"""SDR, semi-implicit relaxed Douglas-Rachford: Pham, Rana, Miao & Osher, Opt. Express 27, 31246 (2019)."""

from __future__ import annotations

from ptystream.params.base import parameter

from .parameters import MOST_STEP, StochasticParameters
from .stochastic import StochasticEngine, Updates

STABLE = 1.5
"""Largest tau (1 + sigma) that converged on simulated scans; from 1.6 on they diverge, faster the larger it is."""


class SDRParameters(StochasticParameters):
    """Semi-implicit relaxed Douglas-Rachford."""

    name: str = parameter("SDR")
    """Name of the engine."""

    sigma: float = parameter(1, lower=0.0, steerable=True, most=MOST_STEP)
    """Relaxed Fourier reflection parameter.

    How far the wave is reflected at the overlap constraint before measured moduli are put on it: 0 projects, 1 reflects. On
    simulated scans (moon and flower) pairs with tau (1 + sigma) above 1.5 diverge, and with it the defaults, sigma 1 and
    tau 1: the log warns of such a pair. sigma 1 with tau 0.5 converged best; sigma 0.5 with tau 0.1 is slow and safe."""

    tau: float = parameter(1, lower=0.0, steerable=True, most=MOST_STEP)
    """Relaxed modulus constraint parameter.

    How far the wave goes towards measured moduli. The default does not converge with the default of `sigma`; see there."""

    beta_probe: float = parameter(0.1, lower=0.0, steerable=True, most=MOST_STEP)
    """Parameter for adjusting the step size of the probe update"""

    beta_object: float = parameter(0.9, lower=0.0, steerable=True, most=MOST_STEP)
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

    def doubts(self) -> tuple[str, ...]:
        """A pair that diverges, as the defaults do."""
        sigma, tau = float(self.p.sigma), float(self.p.tau)
        if tau * (1 + sigma) <= STABLE:
            return ()
        return (
            f"SDR with sigma {sigma:g} and tau {tau:g} is expected to diverge: tau (1 + sigma) = {tau * (1 + sigma):g} is above "
            f"{STABLE:g}; use, for instance, sigma 1 and tau 0.5",
        )
