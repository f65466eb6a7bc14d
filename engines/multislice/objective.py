"""The loss of all frames at one point, and its gradient: one pass over the tiles."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..backend import Backend
from .detector import Detector
from .journey import Journey, Source, Sums, View, Wanted
from .losses import Compared, compare
from .optics import Optics

FRAMES_OWN = ("positions", "tilts", "current")
"""Quantities of which each frame has a row."""


@dataclass(slots=True)
class Batch:
    """Frames that go together: their patterns and what they see, but for what is refined."""

    rows: Any
    """Rows of what frames have of their own, on the host. Shape (frame,), int64."""
    view: Callable[[Mapping[str, Any]], View]
    """What they see at a point."""
    measured: Callable[[], tuple[Any, Any]]
    """(photons (frame, y, x) or signals, validity or weight of the same shape or one that spreads to it), real."""


@dataclass(slots=True)
class Found:
    """What a pass found."""

    loss: float
    squares: float
    """Σ (m - I)²."""
    gradient: dict[str, Any]
    losses: Any = None
    """Of each row, 0 where it was not visited. Shape (row,), float64, on the host."""
    fits: Any = None
    """As of `Compared`, of each row; NaN where it was not visited. Shape (row, 2), on the host."""
    curvature: dict[str, Any] = field(default_factory=dict)
    """Where it was asked for: as of `Journey.curvature`, by name."""
    photons: tuple[float, float] = (0.0, 0.0)
    """Where the curvature was asked for: Σ m and Σ m²."""


@dataclass(slots=True)
class Objective:
    """Frames as data, and how their patterns are compared."""

    on: Backend
    optics: Optics
    detector: Detector
    kind: str
    floor: float
    functions: Any = None
    """A_j = ∂χ/∂C_j of the aberrations. Shape (coefficient, y, x), real."""
    detectors: Any = None
    """Virtual detectors. Shape (signal, y, x), real."""
    spectral: bool = True
    """Whether anything acts on the probe's spectrum; otherwise waves are taken as they are."""

    @property
    def values(self) -> int:
        """Numbers of a pattern that are compared, or of its signals."""
        return math.prod(self.detector.shape) if self.detectors is None else len(self.detectors)

    def evaluate(
        self,
        at: Mapping[str, Any],
        batches: Sequence[Batch],
        wanted: Wanted,
        rows: int,
        *,
        background: bool = False,
        curvature: bool = False,
    ) -> Found:
        """The loss at a point, without weight, and its gradient.

        `at`: 'object' (mode, slice, y, x), 'probe' (scenario, mode, y, x), and 'positions', 'tilts', 'current', 'aberrations',
        'background' as of `Sums`, where there is anything of the kind. `rows`: how many rows there are.
        """
        source = self._source(at)
        asked = [name for name in FRAMES_OWN if name in at and getattr(wanted, name)]
        shared = {name: self.on.xp.zeros((rows, *at[name].shape[1:]), at[name].dtype) for name in asked}
        bends = {name: self.on.xp.zeros_like(held) for name, held in shared.items()} if curvature else {}
        losses, fits = np.zeros(rows), np.full((rows, 2), np.nan)

        def work(part: int, share: Sequence[Batch]) -> tuple[Sums, Sums, float, tuple[float, float]]:
            sums, squares, light, power = self._empty(at, shared, wanted, background), 0.0, 0.0, 0.0
            bent = Sums(**bends)
            if curvature and wanted.aberrations:
                bent.aberrations = self.on.xp.zeros_like(at["aberrations"])
            for batch in share:
                found, measured = self._one(batch, at, source, wanted, sums, bent if curvature else None)
                if curvature:
                    light += float(measured.sum(dtype="f8"))
                    power += float((measured**2).sum(dtype="f8"))
                losses[batch.rows], fits[batch.rows] = self.on.get(found.loss), self.on.get(found.fits)
                squares += float(found.squares.sum())
            return sums, bent, squares, (light, power)

        parts = self.on.sweeper.sweep(batches, work)
        gradient = {name: _like(at[name], held) for name, held in shared.items()}
        for name in ("object", "probe", "aberrations", "background"):
            held = [getattr(part[0], name) for part in parts if getattr(part[0], name) is not None]
            if held:
                total = held[0]
                for other in held[1:]:
                    total += other
                gradient[name] = total
        if "probe" in gradient and source.spectra is not None:
            gradient["probe"] = self.on.ifft2(gradient["probe"])
        bends = {name: _like(at[name], held) for name, held in bends.items()}
        if curvature and wanted.aberrations:
            bends["aberrations"] = sum(part[1].aberrations for part in parts)
        squares, light, power = (sum(each) for each in zip(*((part[2], *part[3]) for part in parts), strict=True))
        return Found(float(losses.sum()), squares, gradient, losses, fits, bends, (light, power))

    def patterns(self, at: Mapping[str, Any], batch: Batch) -> Any:
        """Modelled photons of a batch (frame, y, x), on the device."""
        view = batch.view(at)
        waves = Journey(self.on, self.optics, view, self._source(at), Wanted(), self.functions).forward()
        return self.detector.photons(waves, view.defocus, at.get("background"))

    def _source(self, at: Mapping[str, Any]) -> Source:
        xp = self.on.xp
        lenses = None
        if "aberrations" in at:
            chi = xp.tensordot(at["aberrations"], self.functions, axes=(1, 0))
            lenses = xp.exp(-1j * chi).astype(at["probe"].dtype) * self.optics.limit
        spectra = self.on.fft2(at["probe"].copy()) if self.spectral else None
        return Source(at["probe"], spectra, at["object"], lenses)

    def _empty(self, at: Mapping[str, Any], shared: Mapping[str, Any], wanted: Wanted, background: bool) -> Sums:
        xp = self.on.xp
        return Sums(
            xp.zeros_like(at["object"]) if wanted.object else None,
            xp.zeros_like(at["probe"]) if wanted.probe else None,
            shared.get("positions"),
            shared.get("tilts"),
            shared.get("current"),
            xp.zeros_like(at["aberrations"]) if wanted.aberrations else None,
            xp.zeros_like(at["background"]) if background else None,
        )

    def _one(
        self, batch: Batch, at: Mapping[str, Any], source: Source, wanted: Wanted, sums: Sums, bent: Sums | None
    ) -> tuple[Compared, Any]:
        """How a batch compares, and the photons that were measured of it."""
        view = batch.view(at)
        journey = Journey(self.on, self.optics, view, source, wanted, self.functions)
        waves = journey.forward()
        background = at.get("background")
        model = self.detector.photons(waves, view.defocus, background)
        measured, valid = batch.measured()
        found = compare(self.on.xp, self.kind, model, measured, valid, self.floor, self.detectors)
        if sums.background is not None:
            sums.background += self.detector.background(found.slope, background)
        if bent is not None:
            journey.curvature(bent)
        journey.backward(self.detector.back(found.slope, waves, view.defocus), sums)
        return found, measured


def _like(held: Any, each: Any) -> Any:
    """What rows have found, for a quantity that each has or that all have in common."""
    return each if len(held) == len(each) else each.sum(axis=0, keepdims=True)
