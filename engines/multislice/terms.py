"""The terms that are added to the loss in one epoch, and what they come to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from ..backend import Backend
from . import regularisers
from .regularisers import Term

SCANNED: Mapping[str, tuple[Callable[..., Term], str]] = {
    f"{name}_reg_weight_{what}": (term, what)
    for name, term in (
        ("fast_axis", regularisers.fast_axis),
        ("slow_axis", regularisers.slow_axis),
        ("deformation", regularisers.deformation),
    )
    for what in ("positions", "tilts")
}


@dataclass(slots=True)
class Terms:
    """Weights in force and what they need; `add` gives their sum."""

    on: Backend
    fft: Any
    weights: Mapping[str, float]
    """By the parameter's name, those above 0."""
    sigma: float = 0.5
    p: float = 2.0
    q: float = 1.0
    scan: tuple[int, int] | None = None
    outside: Any = None
    """Pixels of the probe's spectrum that are not allowed, zero frequency at [0, 0]. Shape (y, x), real."""
    window: Any = None
    """Penalty on the probe. Shape (y, x), real."""
    probe_unit: float = 1.0
    """Square of the factor that makes a probe of ours one of the page's: its photons lie in an unnormalised transform, and modes
    are averaged."""
    start: Mapping[str, Any] = field(default_factory=dict)
    """Positions (frame, 2) without their corrections."""
    order: Any = None
    """Rows as the scan went through its points, line by line; None: as they are. Shape (frame,), int64."""

    def add(self, at: Mapping[str, Any], gradient: dict[str, Any]) -> dict[str, float]:
        """Add gradients to those in `gradient`; what each term comes to."""
        found: dict[str, float] = {}
        for name, weight in self.weights.items():
            where, term = self._term(name, at)
            if where not in at:
                continue
            value, slope = term()
            found[name] = weight * value
            if where in gradient:
                gradient[where] = gradient[where] + (weight * slope).astype(gradient[where].dtype)
        return found

    def _term(self, name: str, at: Mapping[str, Any]) -> tuple[str, Callable[[], Term]]:
        xp, o, p = self.on.xp, at["object"], at["probe"]
        if name in SCANNED:
            term, what = SCANNED[name]
            return what, partial(self._scanned, term, what, at)
        known: dict[str, tuple[str, Callable[[], Term]]] = {
            "phase_norm_weight": ("object", partial(regularisers.phase_norm, xp, o)),
            "abs_norm_weight": ("object", partial(regularisers.absorption_norm, xp, o)),
            "atv_weight": ("object", partial(regularisers.total_variation, xp, o, self.p, self.q)),
            "mixed_variance_weight": ("object", partial(regularisers.mixed_variance, xp, self.fft, o, self.sigma)),
            "probe_reg_constraint_weight": ("probe", partial(self._of_probe, regularisers.probe_outside, p, self.outside)),
            "window_weight": ("probe", partial(self._of_probe, regularisers.window, p, self.window)),
        }
        return known[name]

    def _of_probe(self, term: Callable[..., Term], probe: Any, where: Any) -> Term:
        if where is None:
            return 0.0, self.on.xp.zeros_like(probe)
        given = (self.on.xp, probe, where) if term is regularisers.window else (self.on.xp, self.fft, probe, where)
        value, slope = term(*given)
        return self.probe_unit * value, self.probe_unit * slope

    def _scanned(self, term: Callable[..., Term], what: str, at: Mapping[str, Any]) -> Term:
        held = at[what]
        if self.scan is None or np.prod(self.scan) != len(held):
            return 0.0, self.on.xp.zeros_like(held)
        places = held + self.start.get(what, 0)
        if self.order is None:
            return term(self.on.xp, places, self.scan)
        value, slope = term(self.on.xp, places[self.order], self.scan)
        back = self.on.xp.empty_like(slope)
        back[self.order] = slope
        return value, back
