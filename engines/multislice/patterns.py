"""The frames of a reconstruction as batches: which go together, what they see, and what was measured."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.params.home import inside
from ptystream.reconstruction import COLUMN, PROBE, ROW, PodTable, Stack
from ptystream.scan.block import FrameStore
from ptystream.scan.memory import free_bytes

from ..backend import Backend
from ..tiles import runs
from .journey import View
from .objective import Batch
from .optics import ANGSTROM, Optics
from .page.values import ever

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Patterns:
    """What batches are made of. `p`: the engine's parameters, as they are in force."""

    on: Backend
    p: Any
    pods: PodTable
    frames: Mapping[int, FrameStore]
    optics: Optics
    real: np.dtype[Any]
    plates: PhasePlates | None = None
    crowded: bool = False
    """Whether patterns were to be kept for which there was no room."""

    @property
    def zeros_around(self) -> int:
        """Pixels on each side that count as measured zeros."""
        return int(self.p.data_pad // self.p.upsample_pattern) if self.p.pad_zeros else 0

    def shape(self, store: FrameStore) -> tuple[int, int]:
        """(y, x) of what is compared with the model, or summed up by virtual detectors."""
        if self.p.masks is not None:
            return int(self.p.masks.shape[1]), int(self.p.masks.shape[2])
        wide = 2 * self.zeros_around
        return store.shape[0] + wide, store.shape[1] + wide

    def batches(self, rows: NDArray[np.int64], stack: Stack) -> list[Batch]:
        """Of these rows of the pod table, those without pods left out."""
        present = rows[self.pods.address[rows, 0, PROBE] >= 0]
        size = self.p.compute_batch
        if size == "auto":
            wave = math.prod(self.optics.shape) * 2 * self.real.itemsize
            objects = stack.layers
            arrays = under_way(self.p, self.pods.pods // objects, objects, stack.depth)
            share = self.p.memory_saturation
            size = automatic(wave * self.pods.pods * stack.depth, wave * arrays, self.on.tile_bytes, self.on.free(), share)
        return [self._batch(key[0], key[1], chosen, stack) for key, chosen in runs(self.pods, present, self.frames, int(size))]

    def _batch(self, scan: int, number: int, rows: NDArray[np.int64], stack: Stack) -> Batch:
        store, device = self.frames[scan], self.on.put(rows)
        slab, places = store.slab(number), self.pods.frame[rows, 1] % store.slab_frames
        ready: list[Any] = []
        here: list[Any] = []
        keeps = self.p.preload_to_cpu or (self.p.force_pad and self.zeros_around > 0)

        def measured() -> tuple[Any, Any]:
            if here:
                return here[0], here[1]
            prepared = ready or self._prepared(store, slab[places])
            found = tuple(self.on.put(part).astype(self.real) for part in prepared)
            if not self.p.load_one_by_one and self._fits(sum(part.nbytes for part in found)):
                here.extend(found)
            elif keeps and not ready:
                ready.extend(prepared)
            return found[0], found[1]

        return Batch(rows, lambda at: self._view(rows, device, at, stack), measured)

    def _fits(self, nbytes: int) -> bool:
        """Whether there is room where the patterns are compared; without it they come one batch after the other."""
        left = self.on.free() if self.on.resident else free_bytes()
        enough = bool(nbytes <= self.p.memory_saturation * left)
        if not enough and not self.crowded:
            self.crowded = True
            log.warning("load_one_by_one: False: not all patterns fit: from here on they are brought when their turn comes")
        return enough

    def _prepared(self, store: FrameStore, counts: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """(photons, validity) on the host: (frame, y, x), or (frame, signal) where data are compressed."""
        valid: NDArray[Any] = store.mask[None] * (counts < store.limit)
        if store.weights is not None:
            valid = valid * store.weights[None]
        photons = np.where(valid > 0, counts, 0).astype(self.real) * self.real.type(self.p.data_multiplier)
        if self.p.force_dataset_dtype is not None:
            photons = held_as(photons, np.dtype(self.p.force_dataset_dtype))
        if self.p.masks is not None:
            if self.p.algorithm != "lsq_compressed":  # neither roots nor logarithms know of less than nothing
                photons = np.maximum(photons, 0)
            return photons.reshape(len(photons), -1), valid.reshape(len(valid), -1)
        pad = self.zeros_around
        return (photons, valid) if not pad else (widened(photons, pad, 0), widened(valid, pad, 1))

    def _view(self, rows: NDArray[np.int64], device: Any, at: Mapping[str, Any], stack: Stack) -> View:
        p, pods, put = self.p, self.pods, self.on.put
        index = pods.index[rows]
        corner = pods.address[rows, 0, ROW : COLUMN + 1].astype(np.int64) - np.asarray(stack.offset)
        shift = at["positions"][device] + put(self.remainder(rows).astype(self.real))
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
            None if self.plates is None else self.plates(index),
            None if p.aberration_marker is None else put(marked(p.aberration_marker, index)),
            before,
            inside,
            after,
            shift if moves else None,
            put(marked(defocus, index).astype(self.real)),
        )

    def remainder(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Parts of a pixel that frames are beside their corners, (row, 2): without `allow_subPixel_shift` those of frames that
        refinement has moved."""
        found: NDArray[np.float64] = self.pods.remainder[rows, 0].astype(np.float64)
        if not self.p.allow_subPixel_shift:
            found[~self.pods.moved[rows].any(axis=1)] = 0
        return found

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


def automatic(frame_bytes: int, needed_bytes: int, tile_bytes: int, room_bytes: int, saturation: float) -> int:
    """Measurements that are worked on together: what a tile is to hold, as far as that share of the free memory allows.

    `frame_bytes`: of a measurement's waves in all slices; `needed_bytes`: of all that a pass holds of it at a time.
    """
    return max(1, min(tile_bytes // frame_bytes, int(saturation * room_bytes) // needed_bytes))


def under_way(p: Any, probes: int, objects: int, slices: int) -> int:
    """Complex arrays of a wave's size that a pass holds of one measurement where it holds most: what arrives at each slice and
    the slice itself, exit waves and their gradients, the probe's spectra, pattern and validity."""
    waves = probes * objects
    found = slices * (waves + objects) + 2 * waves + objects + 3 * probes + 4
    if np.any(p.tilts) or ever(p.update_tilts):
        found += slices  # a propagator of its own
    if ever(p.update_tilts):
        found += slices * waves + 2 * probes + 3
    lenses = (p.aberration_marker is not None) + (p.phase_plate_in_h5 is not None)
    return int(found + lenses * (probes + 1))


def held_as(photons: NDArray[Any], kind: np.dtype[Any]) -> NDArray[Any]:
    """Counts in another type; what it cannot hold becomes the nearest that it can."""
    ends: Any = np.iinfo(kind) if kind.kind in "ui" else np.finfo(kind)
    return np.asarray(np.clip(photons, ends.min, ends.max).astype(kind))


def widened(frames: NDArray[Any], pad: int, value: int) -> NDArray[Any]:
    """Frames (frame, y, x) with so many pixels of a value around them, zero frequency at [0, 0]."""
    centred = np.fft.fftshift(frames, axes=(1, 2))
    wide = np.pad(centred, ((0, 0), (pad, pad), (pad, pad)), constant_values=value)
    return np.fft.ifftshift(wide, axes=(1, 2))


class PhasePlates:
    """Factors on the probe's spectrum that lie in an HDF5 file; read for each batch."""

    DATASET = "configs"

    def __init__(self, on: Backend, path: str, shape: tuple[int, int], kind: np.dtype[Any]) -> None:
        """Raises `ValueError` for a file without complex plates of this shape (y, x)."""
        import h5py

        self._on, self._kind = on, kind
        try:
            self._file = h5py.File(inside(path), "r")
            self._plates = self._file[self.DATASET]
        except (OSError, KeyError) as error:
            raise ValueError(f"phase_plate_in_h5: {path}: {error}: needs a dataset '{self.DATASET}'") from None
        if tuple(self._plates.shape[-2:]) != tuple(shape) or self._plates.ndim not in (2, 3):
            held = tuple(self._plates.shape)
            raise ValueError(
                f"phase_plate_in_h5: {path}: shape {held}: must be (measurement, {shape[0]}, {shape[1]}), or one plate"
            )

    def __call__(self, index: NDArray[np.int64]) -> Any:
        """Of measurements of these numbers. Shape (frame or 1, y, x), complex."""
        held = self._plates
        if held.ndim == 2 or len(held) == 1:
            plates = np.asarray(held[()]).reshape(1, *held.shape[-2:])
        else:
            wanted, back = np.unique(np.minimum(index, len(held) - 1), return_inverse=True)
            plates = np.asarray(held[wanted])[back]
        return self._on.put(plates.astype(self._kind))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def marked(given: NDArray[Any], index: NDArray[np.int64]) -> NDArray[Any]:
    """What is given for each measurement, or once for all, for frames of these numbers; beyond its end the last."""
    return np.asarray(given)[np.minimum(index, len(given) - 1)]
