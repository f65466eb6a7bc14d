"""What the optimiser makes smaller: the weighted loss of the frames and the terms beside it, per frame."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ptystream.parallel import ALONE, Ranks

from .journey import Wanted
from .objective import Batch, Found, Objective
from .setting import Setting
from .terms import Terms
from .together import summed


@dataclass(slots=True)
class Point:
    """One place, with all that is known of it."""

    at: dict[str, Any]
    value: float
    gradient: dict[str, Any]
    found: Found
    terms: Mapping[str, float]
    """What each term comes to, by the parameter of its weight."""

    @property
    def frames(self) -> int:
        """Frames that were visited."""
        return int(np.count_nonzero(~np.isnan(self.found.fits[:, 0])))


@dataclass(slots=True)
class Loss:
    """Of some frames, with the parameters of one epoch."""

    objective: Objective
    batches: Sequence[Batch]
    rows: int
    """Rows that there are of what frames have of their own."""
    setting: Setting
    terms: Terms
    band: Any
    """(name, gradient) → the gradient within the band limit of whole arrays."""
    ranks: Ranks = ALONE
    """Who evaluates it: `batches` are this rank's, and everything else is of all."""

    def __call__(self, at: dict[str, Any], *, curvature: bool = False) -> Point:
        """Value and gradient at a point; of `curvature` see `Objective.evaluate`."""
        moving = self.setting.moving
        names = ("object", "probe", "positions", "tilts", "current", "aberrations")
        found = self.objective.evaluate(
            at,
            self.batches,
            Wanted(*(name in moving for name in names)),
            self.rows,
            background="background" in moving,
            curvature=curvature,
        )
        found = summed(self.objective.on, self.ranks, found)
        frames = max(int(np.count_nonzero(~np.isnan(found.fits[:, 0]))), 1)
        weight = self.weight(frames)
        gradient = {name: held * held.real.dtype.type(weight) for name, held in found.gradient.items() if name in moving}
        terms = self.terms.add(at, gradient)
        value = (weight * found.loss + sum(terms.values())) / frames
        gradient = {name: self.band(name, held) / held.real.dtype.type(frames) for name, held in gradient.items()}
        return Point(at, value, gradient, found, terms)

    def weight(self, frames: int) -> float:
        """Of the loss of the frames."""
        given = self.setting["loss_weight"]
        if given == "mean":
            return 1 / frames
        if given == "mean_full":
            return 1 / (frames * self.objective.values)
        return float(given)

    def first(self, point: Point, light: float) -> dict[str, float]:
        """Length of a first step along the gradient of each quantity: one over how sharply the loss bends there.

        `light`: the largest Σ|P|² that a pixel of the object has seen. Of modulus and phase with 'lsq_sqrt'; the squares of
        'lsq' bend so many times as sharply as pixels have photons.
        """
        frames, at = point.frames, point.at
        scales = {"object": frames / max(light, 1e-30) / at["object"].shape[1], "probe": 1.0, "background": 0.5}
        for name, bends in point.found.curvature.items():
            held = self.objective.on.get(bends)
            mean = float(held[held > 0].mean()) if (held > 0).any() else 0.0
            scales[name] = frames / mean if mean > 0 else 0.0
        for name, kind in self.setting.kinds.items():
            power = 1.0 if name == "object" or "modulus" in kind else float((abs(at[name]) ** 2).max())
            scales[name] /= 2 * max(power, 1e-30)
        sharpness = self.weight(frames) * (4 * _brightness(point) if self.objective.kind in ("lsq", "lsq_compressed") else 1)
        return {name: scale / max(sharpness, 1e-300) for name, scale in scales.items()}


def _brightness(point: Point) -> float:
    """Σm² / Σm: the photons of a pixel that a photon falls on."""
    total, squares = point.found.photons
    return squares / total if total > 0 and math.isfinite(total) else 1.0
