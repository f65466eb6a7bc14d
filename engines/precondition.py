"""What gradients are shaped with before they become a direction, so that object and probe converge alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .backend import Backend
from .constraints import smoothed
from .fields import Fields, inner


class Preconditioner:
    """W† W and s of a conjugate direction: the object's gradient blurred, both divided by the power of what they were summed
    with, the probe's scaled."""

    def __init__(self, on: Backend, scale: float | None = None) -> None:
        self.on = on
        self.scale = scale
        """Of the probes with `scale_precond`, which follows what it should be slowly; None before the first gradient."""

    def begin(self, parameters: Any, iteration: int, powers: Fields) -> None:
        """What one iteration works with; `powers`: Σ|P|² and Σ|O|² by the names of the gradients."""
        self.p, self.powers = parameters, powers
        self.sigma = parameters.smooth_gradient * (1 - parameters.smooth_gradient_decay) ** iteration

    def half(self, gradient: Fields) -> dict[str, Any]:
        """W g."""
        return self._blurred(self._divided(gradient))

    def other_half(self, gradient: Fields) -> dict[str, Any]:
        """W† g."""
        return self._divided(self._blurred(gradient))

    def scales(self, gradient: Fields) -> Mapping[str, float]:
        """s from W g."""
        given = float(self.p.scale_probe_object)
        probes = [field for name, field in gradient.items() if not is_object(name)]
        if not self.p.scale_precond:
            self.scale = None
        elif probes:
            size = sum(inner(self.on, field, field) for field in probes)
            other = sum(inner(self.on, field, field) for name, field in gradient.items() if is_object(name))
            wanted = given * other / size if size > 1e-5 else given
            self.scale = wanted if self.scale is None else self.scale**0.9 * wanted**0.1
        of_probes = given if self.scale is None else self.scale
        return {name: 1.0 if is_object(name) else of_probes for name in gradient}

    def _divided(self, gradient: Fields) -> dict[str, Any]:
        """By the root of the power."""
        if not self.p.wavefield_precond:
            return dict(gradient)
        xp, divided = self.on.xp, {}
        for name, field in gradient.items():
            real = field.real.dtype.type
            delta = self.p.wavefield_delta_object if is_object(name) else self.p.wavefield_delta_probe
            divided[name] = field / xp.sqrt(xp.maximum(self.powers[name] + real(delta), real(1e-30)))
        return divided

    def _blurred(self, gradient: Fields) -> dict[str, Any]:
        return {name: smoothed(self.on, field, self.sigma) if is_object(name) else field for name, field in gradient.items()}


def is_object(name: str) -> bool:
    """Whether a storage named so holds an object."""
    return name.startswith("object ")
