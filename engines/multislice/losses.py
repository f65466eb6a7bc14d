"""How far modelled patterns are from measured ones, and which way they would come closer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

THRESHOLD = 0.5
"""Photons up to which 'lsq_sqrt_2' takes a pixel to be dark."""


@dataclass(frozen=True, slots=True)
class Loss:
    """Value and slope of each pixel, or signal. Shapes as of the model."""

    value: Callable[[Any, Any, Any, float], Any]
    """(xp, model, measured, floor) → L of each."""
    slope: Callable[[Any, Any, Any, float], Any]
    """∂L/∂model of each."""


def _amplitude_slope(xp: Any, model: Any, measured: Any, floor: float) -> Any:
    """1 - √(m / I); where there is no light the wave is 0 too, and the gradient with it."""
    return xp.where(model > 0, 1 - xp.sqrt(measured / xp.where(model > 0, model, 1)), 0)


def _count_slope(xp: Any, model: Any, measured: Any, floor: float) -> Any:
    return 1 - measured / (model + floor)


LOSSES: Mapping[str, Loss] = {
    "lsq_sqrt": Loss(lambda xp, i, m, floor: (xp.sqrt(i) - xp.sqrt(m)) ** 2, _amplitude_slope),
    "ml": Loss(lambda xp, i, m, floor: i + floor - m * xp.log(i + floor), _count_slope),
    "lsq": Loss(lambda xp, i, m, floor: (i - m) ** 2, lambda xp, i, m, floor: 2 * (i - m)),
    "lsq_sqrt_2": Loss(
        lambda xp, i, m, floor: xp.where(m > THRESHOLD, 0.5 * (m - i) ** 2 / xp.maximum(m, THRESHOLD), i),
        lambda xp, i, m, floor: xp.where(m > THRESHOLD, i / xp.maximum(m, THRESHOLD) - 1, 1),
    ),
}
"""Of patterns: Σ (√I - √m)²; Σ I - m ln I, with a floor under I; Σ (I - m)²; Σ (I - m)²/2m where m > 1/2, I elsewhere."""

COMPRESSED: Mapping[str, Loss] = {
    "lsq_compressed": LOSSES["lsq"],
    "gauss_compressed": LOSSES["lsq_sqrt"],
    "poisson_compressed": LOSSES["ml"],
}
"""The same of signals of virtual detectors."""


@dataclass(frozen=True, slots=True)
class Compared:
    """What a tile's patterns were found to be."""

    loss: Any
    """Of each frame, without weight. Shape (frame,), float64."""
    squares: Any
    """Σ (m - I)² of each frame. Shape (frame,), float64."""
    slope: Any
    """∂L/∂I of each pixel. Shape (frame, y, x)."""
    fits: Any
    """Means over valid pixels (signals) of (√I - √m)² and (I - m)²/(m + 1), a signal below 0 as 0. Shape (frame, 2), float64."""


def compare(xp: Any, kind: str, model: Any, measured: Any, valid: Any, floor: float, detectors: Any = None) -> Compared:
    """Modelled photons (frame, y, x) against measured ones, where pixels are `valid` (frame or 1, y, x; real, may be a weight).

    With `detectors` (signal, y, x) the measured are their signals (frame, signal), and `valid` of that shape.
    """
    compressed = kind in COMPRESSED
    loss = COMPRESSED[kind] if compressed else LOSSES[kind]
    seen = xp.tensordot(model, detectors, axes=((1, 2), (1, 2))) if compressed else model
    axes = tuple(range(1, seen.ndim))
    value = (loss.value(xp, seen, measured, floor) * valid).sum(axis=axes, dtype="f8")
    apart = (seen - measured) ** 2 * valid
    squares = apart.sum(axis=axes, dtype="f8")
    count = xp.maximum(xp.broadcast_to(valid != 0, seen.shape).sum(axis=axes), 1)
    bright = xp.maximum(measured, 0)
    amplitude = (xp.sqrt(xp.maximum(seen, 0)) - xp.sqrt(bright)) ** 2 * valid
    fits = xp.stack([amplitude.sum(axis=axes, dtype="f8"), (apart / (bright + 1)).sum(axis=axes, dtype="f8")], axis=1)
    slope = loss.slope(xp, seen, measured, floor) * valid
    back = xp.tensordot(slope, detectors, axes=(1, 0)) if compressed else slope
    return Compared(value, squares, back, fits / count[:, None])
