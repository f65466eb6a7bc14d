"""The frames of a reconstruction as batches: which go together, what they see, and what was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.reconstruction import COLUMN, PROBE, ROW, PodTable, Stack
from ptystream.scan.block import FrameStore

from ..backend import Backend
from ..tiles import runs
from .journey import View
from .objective import Batch
from .optics import Optics

ANGSTROM = 1e-10


@dataclass(slots=True)
class Patterns:
    """What batches are made of. `p`: the engine's parameters, as they are in force."""

    on: Backend
    p: Any
    pods: PodTable
    frames: Mapping[int, FrameStore]
    optics: Optics
    real: np.dtype[Any]

    def batches(self, rows: NDArray[np.int64], stack: Stack) -> list[Batch]:
        """Of these rows of the pod table, those without pods left out."""
        present = rows[self.pods.address[rows, 0, PROBE] >= 0]
        size = self.p.compute_batch
        if size == "auto":
            wave = math.prod(self.optics.shape) * 2 * self.real.itemsize
            size = max(1, self.on.tile_bytes // (wave * self.pods.pods * stack.depth))
        return [self._batch(key[0], key[1], chosen, stack) for key, chosen in runs(self.pods, present, self.frames, int(size))]

    def _batch(self, scan: int, number: int, rows: NDArray[np.int64], stack: Stack) -> Batch:
        store = self.frames[scan]
        slab, places = store.slab(number), self.pods.frame[rows, 1] % store.slab_frames
        device = self.on.put(rows)

        def measured() -> tuple[Any, Any]:
            counts = self.on.put(slab[places])
            valid = self.on.put(store.mask)[None] * (counts < store.limit)
            if store.weights is not None:
                valid = valid * self.on.put(store.weights)[None]
            photons = self.on.xp.where(valid > 0, counts, 0).astype(self.real)
            return photons * self.real.type(self.p.data_multiplier), valid.astype(self.real)

        return Batch(rows, lambda at: self._view(rows, device, at, stack), measured)

    def _view(self, rows: NDArray[np.int64], device: Any, at: Mapping[str, Any], stack: Stack) -> View:
        p, pods, put = self.p, self.pods, self.on.put
        index = pods.index[rows]
        corner = pods.address[rows, 0, ROW : COLUMN + 1].astype(np.int64) - np.asarray(stack.offset)
        shift = at["positions"][device]
        if p.allow_subPixel_shift:
            shift = shift + put(pods.remainder[rows, 0].astype(self.real))
        moves = p.allow_subPixel_shift or bool(p.update_probe_pos)
        current = put(pods.weight[rows, 0].astype(self.real))
        if "current" in at:
            current = current * at["current"][device]
        scenario = np.zeros(len(rows), np.int64) if p.probe_marker is None else marked(p.probe_marker, index)
        before, inside, after = self._tilts(device, at)
        defocus = np.asarray(p.defocus_array, float).ravel() * ANGSTROM
        return View(
            device,
            corner,
            put(scenario),
            current,
            None,
            None,
            before,
            inside,
            after,
            shift if moves else None,
            put(marked(defocus, index).astype(self.real)),
        )

    def _tilts(self, device: Any, at: Mapping[str, Any]) -> tuple[Any, Any, Any]:
        """(before, inside, after) of the frames, None where the mode does not apply them."""
        if "tilts" not in at:
            return None, None, None
        held, mode = at["tilts"], self.p.tilt_mode
        tilts = held[device] if len(held) > 1 else self.on.xp.repeat(held, len(device), axis=0)
        return (
            tilts[:, 0:2] if mode in (2, 4) else None,
            tilts[:, 2:4] if mode in (0, 3, 4) else None,
            tilts[:, 4:6] if mode in (1, 3, 4) else None,
        )


def marked(given: NDArray[Any], index: NDArray[np.int64]) -> NDArray[Any]:
    """What is given for each measurement, or once for all, for frames of these numbers; beyond its end the last."""
    return np.asarray(given)[np.minimum(index, len(given) - 1)]
