"""Conjugate directions: Polak & Ribière's, with a preconditioner, for a cost that may change between iterations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from ptystream.reconstruction import Storage

from .backend import Backend
from .fields import Fields, inner, scaled


class Halves(Protocol):
    """A preconditioner."""

    def half(self, gradient: Fields) -> dict[str, Any]:
        """W g."""

    def other_half(self, gradient: Fields) -> dict[str, Any]:
        """W† g."""

    def scales(self, gradient: Fields) -> Mapping[str, float]:
        """s from W g."""


class Conjugate:
    """The direction of the last iteration and the gradient it came from.

    With half a preconditioner W and g' = W g, the direction is h ← β h - s W† g' with β = max(0, Σ s Re<g', g' - g'_old> /
    Σ s |g'_old|²): conjugate gradients of the cost in the variables where W† W and s are the identity. `within(fields)` is
    the part of a direction that the storages can go along, where that is not every one.
    """

    def __init__(self, on: Backend, within: Callable[[Fields], dict[str, Any]] = dict) -> None:
        self.on, self.within = on, within
        self._old: dict[str, tuple[Any, tuple[int, int]]] = {}
        self._direction: dict[str, tuple[Any, tuple[int, int]]] = {}
        self._length = 1.0
        """What the direction that is held was multiplied by."""

    def forget(self) -> None:
        """The next direction is the gradient's."""
        self._old.clear()
        self._direction.clear()

    def rescale(self, name: str, factor: Any) -> None:
        """A storage was multiplied by `factor`, and the cost with it stayed as it was."""
        for held, by in ((self._old, 1 / factor), (self._direction, factor)):
            if name in held:
                field, start = held[name]
                held[name] = scaled(self.on, by, field), start

    def turn(self, gradient: Fields, precondition: Halves, storages: Mapping[str, Storage], share: float) -> dict[str, Any]:
        """The new direction at `gradient`, in a length at which single precision can raise it to the eighth power: no step is
        longer than what it is added to. It is held, and changed by the next call.

        `share`, in [0, 1], is how far the cost is the one of the last iteration: β is multiplied by it, since the old
        direction knows only that part of the data. A direction that does not lead down is given up for the gradient's.
        """
        conditioned = precondition.half(gradient)
        s = precondition.scales(conditioned)
        beta = self._beta(conditioned, s, storages) * share
        steep, direction = precondition.other_half(conditioned), {}
        if beta > 0:
            for name, field in steep.items():
                old = self._placed(self._direction, name, field, storages)
                direction[name] = scaled(self.on, -s[name], field, beta / self._length, old, out=old)
        if not direction or sum(inner(self.on, gradient[name], field) for name, field in direction.items()) >= 0:
            direction = {name: scaled(self.on, -s[name], field, out=direction.get(name)) for name, field in steep.items()}
        direction = self.within(direction)
        self._length = self._fitting(direction, storages)
        for field in direction.values():
            scaled(self.on, self._length, field, out=field)
        self._old = {name: (field, storages[name].offset) for name, field in conditioned.items()}
        self._direction = {name: (field, storages[name].offset) for name, field in direction.items()}
        return direction

    def _fitting(self, direction: Fields, storages: Mapping[str, Storage]) -> float:
        held = {name: storages[name].data for name in direction}
        sizes = [(inner(self.on, held[name], held[name]), inner(self.on, step, step)) for name, step in direction.items()]
        return float(min((np.sqrt(x / h) for x, h in sizes if h > 0 and x > 0), default=1.0))

    def _beta(self, conditioned: Fields, s: Mapping[str, float], storages: Mapping[str, Storage]) -> float:
        above = below = 0.0
        for name, field in conditioned.items():
            old = self._placed(self._old, name, field, storages)
            above += s[name] * (inner(self.on, field, field) - inner(self.on, field, old))
            below += s[name] * inner(self.on, old, old)
        return max(0.0, above / below) if below > 0 else 0.0

    def _placed(
        self, held: Mapping[str, tuple[Any, tuple[int, int]]], name: str, like: Any, storages: Mapping[str, Storage]
    ) -> Any:
        """What is held under that name on the canvas of today, 0 where it is new."""
        if name not in held:
            return self.on.xp.zeros_like(like)
        field, start = held[name]
        y, x = (then - now for then, now in zip(start, storages[name].offset, strict=True))
        if field.shape == like.shape and not (y or x):
            return field
        placed = self.on.xp.zeros_like(like)
        placed[: len(field), y : y + field.shape[1], x : x + field.shape[2]] = field
        return placed
