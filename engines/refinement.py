"""Position refinement: every frame is tried at some places near its own and stays where its model fits the data best.

Annealing: A. M. Maiden et al., Ultramicroscopy 120, 64 (2012); the grid search tries every place of a lattice instead. Any engine
with a model can use it: `step` after (or, for sequential engines, before) an update, on the tiles that it visits. A trial is
one model and one transform of a whole tile. What a frame's pods see moves together.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.chance import uniform
from ptystream.model.scan_model import MAX_CANVAS_PIXELS
from ptystream.reconstruction import COLUMN, OBJECT, ROW, nearest
from ptystream.scan.block import FrameStore

from .backend import Backend
from .parameters import FROM_COMPLETE, PositionRefinementParameters
from .sight import Sight
from .tiles import Tile

log = logging.getLogger(__name__)

REACH = 16
"""Points of a lattice to each side of its middle: 800 in all."""


@dataclass(slots=True)
class _Places:
    """Where the frames of a tile are, or may be put."""

    moved: NDArray[np.float64]
    """From the measured position, metres. Shape (frame, 2)."""
    corner: NDArray[np.int64]
    """Shape (frame, pod, 2)."""
    remainder: NDArray[np.float64]
    """Shape (frame, pod, 2)."""

    def take(self, other: _Places, where: NDArray[np.bool_]) -> None:
        """The other's places for some of the frames."""
        for mine, theirs in ((self.moved, other.moved), (self.corner, other.corner), (self.remainder, other.remainder)):
            mine[where] = theirs[where]


class Refinement:
    """Moves the rows of the pod table; everything is in the table and in the tiles, nothing is kept here.

    `configure` before anything else and whenever parameters change; `room` for rows that came or were measured anew; then
    `step` in every iteration. `complete` when no further frame will come.
    """

    def __init__(
        self, on: Backend, sight: Sight, frames: Mapping[int, FrameStore], mask: Callable[[int], Any], seed: int
    ) -> None:
        self.on, self.sight, self.frames, self.mask, self.seed = on, sight, frames, mask, seed
        self.completed: int | None = None
        """Iteration from which on every frame was there."""
        self._warned = False
        self._unpadded: float | None = None
        """A `max_shift` that was too large, and was said to be."""

    def configure(self, parameters: Any) -> None:
        """`parameters` of the engine: `position_refinement` (an engine without it never refines) and `numiter`."""
        given = getattr(parameters, "position_refinement", None)
        self.p: PositionRefinementParameters = given or PositionRefinementParameters()
        self.numiter = int(parameters.numiter)
        self.room(np.arange(self.sight.reconstruction.pods.length))

    def complete(self, iteration: int) -> None:
        """No further frame will come."""
        if self.completed is None:
            self.completed = iteration

    def room(self, rows: NDArray[np.int64]) -> None:
        """Pad the objects so that these rows can go as far as `max_shift` allows."""
        table = self.sight.reconstruction.pods
        if not self.p.active or not len(rows):
            return
        largest = np.max([probe.shape for probe in self.sight.reconstruction.probes.values()], axis=0)
        for number, storage in enumerate(self.sight.reconstruction.objects.values()):
            here = table.address[rows][:, :, OBJECT] == number
            if not here.any():
                continue
            pixel = np.asarray(storage.pixel_size_m or (1.0, 1.0))
            corner = table.address[rows][:, :, ROW : COLUMN + 1] - (table.moved[rows] / pixel)[:, None]
            pad = np.ceil(self.p.max_shift / pixel) + 1
            low = np.floor(corner[here].min(axis=0)) - pad
            high = np.ceil(corner[here].max(axis=0)) + largest + pad
            ends = np.maximum(high, np.add(storage.offset, storage.shape)) - np.minimum(low, storage.offset)
            if float(np.prod(ends)) * len(storage.data) > MAX_CANVAS_PIXELS:
                if self._unpadded != self.p.max_shift:
                    log.warning("position_refinement.max_shift: %g: the object cannot be padded by so much", self.p.max_shift)
                self._unpadded = self.p.max_shift
                continue
            storage.grow((int(low[0]), int(low[1])), (int(high[0]), int(high[1])))

    def step(self, tiles: Sequence[Tile], iteration: int) -> bool:
        """Refine the frames of these tiles if it is their turn in this iteration (counted from the engine's start).

        Returns whether any frame has moved. The table and the arrays of the tiles' pods are written in place: a tile whose arrays
        are views of another's moves that one as well, one that holds copies does not.
        """
        distance = self.distance(iteration)
        if distance <= 0:
            return False
        self._warn(distance)

        def work(part: int, share: Sequence[Tile]) -> int:
            return sum(self._refine(tile, iteration, distance) for tile in share)

        return any(self.on.sweeper.sweep(tiles, work))

    def distance(self, iteration: int) -> float:
        """How far trials go in this iteration, metres; 0 where there are none."""
        p = self.p
        first, last = self._counted(p.start, 0.0), self._counted(p.stop, math.inf)
        if not p.active or not first <= iteration < last or (iteration - first) % p.interval:
            return 0.0
        if not p.amplitude_decay:
            return p.amplitude
        if not isinstance(p.stop, int):
            if self.completed is None:
                return p.amplitude
            first, last = max(first, self.completed), min(last, self.completed + self.numiter)
        return p.amplitude * min(max((last - iteration) / (last - first), 0.0), 1.0) if last > first else 0.0

    def _counted(self, value: int | dict[str, int] | None, missing: float) -> float:
        """An iteration of the engine; infinite for one that is counted from a moment which has not come."""
        if isinstance(value, dict):
            return math.inf if self.completed is None else self.completed + value[FROM_COMPLETE]
        return missing if value is None else value

    # ------------------------------------------------------------------ one tile

    def _refine(self, tile: Tile, iteration: int, distance: float) -> bool:
        """Whether a frame of the tile has moved."""
        table, rows = self.sight.reconstruction.pods, tile.rows
        pixel = self._pixels(tile)
        steps = self._steps(tile, iteration, distance, pixel[0])
        if not len(steps):
            return False
        own = slice(len(tile.pods))  # another scan may have more
        corner, remainder = table.address[rows][:, own, ROW : COLUMN + 1], table.remainder[rows][:, own]
        here = _Places(table.moved[rows], corner.astype(np.int64), remainder.astype(float))
        best = replace(here, moved=here.moved.copy(), corner=here.corner.copy(), remainder=here.remainder.copy())
        waves = self.on.xp.empty((len(tile.pods), len(tile.counting), *self.sight.probe(tile, 0).shape), self.sight.complex)
        least = self._error(tile, here, waves)
        for step in steps:
            there, allowed = self._there(tile, here, step, pixel)
            if not allowed.any():
                continue
            error = self._error(tile, there, waves)
            better = allowed & (error < least)
            best.take(there, better)
            least[better] = error[better]
        if (best.moved == here.moved).all():
            return False
        table.moved[rows] = best.moved
        table.address[rows, own, ROW : COLUMN + 1] = best.corner
        table.remainder[rows, own] = best.remainder
        best.remainder = table.remainder[rows, own].astype(float)  # what the table can hold: a tile made from it is the same
        for pod, new in zip(tile.pods, self._pods(tile, best), strict=True):
            pod.corner[...], pod.remainder[...] = new.corner, new.remainder
        return True

    def _steps(
        self, tile: Tile, iteration: int, distance: float, pixel: NDArray[np.float64]
    ) -> NDArray[np.float64] | list[NDArray[np.float64]]:
        """Trial steps from where the frames are, metres. Shape (trial, frame or 1, 2)."""
        fine = self.sight.subpix is not None
        if not fine and distance < pixel.min():
            return []
        if self.p.method == "GridSearch":
            return lattice(distance, pixel, fine=fine)[:, None]
        index = self.sight.reconstruction.pods.index[tile.rows]
        drawn = uniform(self.seed, "positions", iteration, tile.scan, index, self.p.nshifts)
        shortest = 0.0 if fine else float(pixel.max())
        radius = shortest + max(distance - shortest, 0.0) * np.sqrt(drawn[..., 0])
        angle = (np.arange(self.p.nshifts) % 4 + drawn[..., 1]) * (np.pi / 2)
        return np.stack([radius * np.sin(angle), radius * np.cos(angle)], axis=-1).transpose(1, 0, 2)

    def _there(
        self, tile: Tile, here: _Places, step: NDArray[np.float64], pixel: NDArray[np.float64]
    ) -> tuple[_Places, NDArray[np.bool_]]:
        """Places after a step, and for which frames it is allowed; the others stay. `pixel`: (pod, 2), metres."""
        if self.sight.subpix is None:
            step = np.rint(step / pixel[0]) * pixel[0]
            whole, remainder = np.rint(step[:, None] / pixel), here.remainder
        else:
            whole, remainder = nearest(here.remainder + step[:, None] / pixel)
        there = _Places(here.moved + step, here.corner + whole.astype(np.int64), np.broadcast_to(remainder, here.remainder.shape))
        allowed = np.hypot(there.moved[:, 0], there.moved[:, 1]) <= self.p.max_shift * (1 + 1e-9)
        for k in range(len(tile.pods)):
            seen = self.sight.object(tile, k)
            low = there.corner[:, k] - np.array(seen.offset)
            high = low + np.array(self.sight.probe(tile, k).shape)
            allowed &= ((low >= 0) & (high <= np.array(seen.shape))).all(axis=1)
        stay = _Places(there.moved, there.corner, there.remainder.copy())
        stay.take(here, ~allowed)
        return stay, allowed

    def _error(self, tile: Tile, places: _Places, waves: Any) -> NDArray[np.float64]:
        """What the metric says of each frame, (frame,), up to a factor that is the frame's own. `waves`: scratch."""
        xp, trial = self.on.xp, replace(tile, pods=self._pods(tile, places))
        for pod in range(len(tile.pods)):
            self.sight.model(trial, pod, waves[pod])
        intensity = xp.empty(tile.counts.shape[-2:], self.sight.real)
        amplitude, photon, valid = xp.zeros(len(tile)), xp.zeros(len(tile)), xp.zeros(len(tile))
        f, limit = self.sight.forward(trial, waves), self.frames[tile.scan].limit
        self.on.kernels.misfit(f, tile.counts, tile.row, self.mask(tile.scan), limit, intensity, amplitude, photon, valid)
        return np.array(self.on.get(amplitude if self.p.metric == "fourier" else photon))

    def _pods(self, tile: Tile, places: _Places) -> list[Any]:
        put, real, each = self.on.put, self.sight.real, len(tile.counting) // len(tile)
        return [
            replace(
                pod,
                corner=put(np.repeat(places.corner[:, k], each, axis=0)),
                remainder=put(np.repeat(places.remainder[:, k].astype(real), each, axis=0)),
            )
            for k, pod in enumerate(tile.pods)
        ]

    def _pixels(self, tile: Tile) -> NDArray[np.float64]:
        """Pixel of the object that each pod sees, metres (1 where there is no size). Shape (pod, 2)."""
        sizes = [self.sight.object(tile, k).pixel_size_m for k in range(len(tile.pods))]
        return np.array([size or (1.0, 1.0) for size in sizes])

    def _warn(self, distance: float) -> None:
        """Once: parameters that cost much or do nothing."""
        if self._warned:
            return
        self._warned = True
        storage = next(iter(self.sight.reconstruction.objects.values()))
        pixel = np.asarray(storage.pixel_size_m or (1.0, 1.0))
        unit = "m" if storage.pixel_size_m else "pixels"
        if self.sight.subpix is None and self.p.amplitude < pixel.min():
            log.warning(
                "position_refinement.amplitude: %g %s is below an object pixel (%g %s) and subpix is off: nothing will move",
                self.p.amplitude,
                unit,
                pixel.min(),
                unit,
            )
        elif self.p.amplitude < 0.01 * pixel.min():
            log.warning(
                "position_refinement.amplitude: %g %s is less than a hundredth of an object pixel (%g %s): hardly a move",
                self.p.amplitude,
                unit,
                pixel.min(),
                unit,
            )
        elif self.p.method == "GridSearch" and (distance > REACH * pixel * (0.5 if self.sight.subpix else 1)).any():
            log.warning(
                "position_refinement.amplitude: %g %s is %d object pixels: GridSearch leaves places out; choose a few pixels",
                self.p.amplitude,
                unit,
                round(self.p.amplitude / pixel.min()),
            )


def lattice(distance: float, pixel: NDArray[np.float64], *, fine: bool) -> NDArray[np.float64]:
    """Points within `distance` of zero, without zero, the nearest first. Shape (point, 2), metres.

    Whole pixels, or where `fine` at most half a pixel apart, and closer where `distance` is less; further apart where there
    would be more than `REACH` of them to each side.
    """
    if fine:
        count = np.clip(np.ceil(2 * distance / pixel - 1e-9), 1, REACH)
        pitch = distance / count
    else:
        pitch = pixel * np.ceil(distance / pixel / REACH)
        count = np.floor(distance / pitch + 1e-9)
    y, x = (np.arange(-n, n + 1) * p for n, p in zip(count.astype(int), pitch, strict=True))
    points: NDArray[np.float64] = np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1).reshape(-1, 2)
    far = np.hypot(points[:, 0], points[:, 1])
    order = np.argsort(far, kind="stable")
    near = order[(far[order] > 0) & (far[order] <= distance * (1 + 1e-9))]
    return points[near]
