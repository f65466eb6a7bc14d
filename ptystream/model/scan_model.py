"""Scan models: from blocks of frames to storages and rows of the pod table.

A model owns no data: it makes probe and object when a run's first frames are there, and places every later block in constant
time per frame.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ptystream.model.geometry import Geometry
from ptystream.model.illumination import ApertureParameters, IlluminationParameters
from ptystream.model.parameters import FullParameters, VanillaParameters
from ptystream.model.probe import Given, starting_probe
from ptystream.model.propagate import flat_phase, propagator
from ptystream.model.specimen import Canvas, starting_object
from ptystream.model.spectrum import CoherenceParameters, pods
from ptystream.model.stxm import counts, mean_frame, transmission
from ptystream.params.base import Branch
from ptystream.reconstruction import COLUMN, OBJECT, PROBE, ROW, Dispersion, Reconstruction, Storage, nearest
from ptystream.scan.block import Block, FrameStore

log = logging.getLogger(__name__)

MAX_CANVAS_PIXELS = 1 << 28
"""An object that would become larger (2 GiB as complex64) is not grown; the frame that asks for it is refused."""

MAX_PICTURE = 4096
"""Pixels on a side of a drawn object."""

FAR = 2.0**40
"""Lattice coordinates end here (object pixels), so that differences of whole numbers cannot overflow."""


FARTHEST = 2.0**30
"""Object pixels by which positions may be moved: by more, and what is behind the point would be gone for good."""


class SharingError(ValueError):
    """A scan cannot use the probe or the object of another one: what is wrong, and what to do."""


class ScanModel:
    """What the models share: everything but the starting probe and the names of storages."""

    Parameters: type[Branch]

    probe_per_frame: ClassVar[bool] = False
    """Whether every frame has a probe of its own, which no other scan can share."""

    volumes: ClassVar[bool] = False
    """Whether storages are volumes and frames rocking curves, which only some engines take."""

    def __init__(self, label: str, number: int, parameters: Any, geometry: Geometry, seed: int = 0) -> None:
        self.label, self.number, self.p, self.geometry, self.seed = label, number, parameters, geometry, seed
        self.coherence: CoherenceParameters = getattr(parameters, "coherence", CoherenceParameters())
        self._plan = pods(self.coherence)
        self._amplitude = np.sqrt([pod.share for pod in self._plan])
        self._rows: dict[int, int] = {}
        self._probes: list[int] = []
        self._objects: list[int] = []

    def again(self) -> ScanModel:
        """A fresh one with the same parameters, for another run."""
        return type(self)(self.label, self.number, self.p, self.geometry, self.seed)

    def stand(self, geometry: Geometry) -> None:
        """The geometry as it has turned out, before the first frame is placed."""
        self.geometry = geometry

    def try_out(self) -> None:
        """Make the beginnings that need no frame. Raises `ValueError` that begins with the path of what is wrong."""
        blind = np.ones(self.geometry.view, complex)
        for energy in range(self.coherence.storages[0]):
            self.probe(1.0, energy, blind)
        known = blind, np.ones(blind.shape, np.bool_), (0, 0)
        self._object(0, ((0, 0), self.geometry.view), known)

    @property
    def store_shape(self) -> tuple[int, int]:
        """Shape of the frames that an engine is given."""
        signals = self.geometry.signals
        return self.geometry.shape if signals is None else (1, signals)

    @property
    def pods(self) -> int:
        """Pods of a frame."""
        return len(self._plan)

    @property
    def modes(self) -> tuple[int, int]:
        """Probe and object modes."""
        return self.coherence.modes

    @property
    def storage_id(self) -> str:
        """Name of the object of the first energy."""
        return self.object_ids[0]

    @property
    def probe_ids(self) -> list[str]:
        """Names of the probes: one, or one per energy."""
        owner = self.p.share.probe or self.label
        return [self.name_of(owner, energy) for energy in range(self.coherence.storages[0])]

    @property
    def object_ids(self) -> list[str]:
        """Names of the objects: one, or one per energy."""
        owner = self.p.share.object or self.label
        return [self.name_of(owner, energy) for energy in range(self.coherence.storages[1])]

    def name_of(self, label: str, energy: int) -> str:
        """Name of a storage."""
        raise NotImplementedError

    def probe(self, photons: float, energy: int = 0, mean: NDArray[np.complex128] | None = None) -> NDArray[np.complex128]:
        """The starting probe of an energy, (mode, y, x); `mean`: the mean frame, taken back to the sample."""
        raise NotImplementedError

    def start(
        self,
        reconstruction: Reconstruction,
        block: Block,
        frames: FrameStore,
        decisions: Mapping[str, Any] | None = None,
        others: Mapping[str, tuple[Block, FrameStore]] | None = None,
    ) -> dict[str, Any]:
        """Make the storages from the run's first frames; returns what was decided from the data (or `decisions`).

        Raises `SharingError`, before anything is changed, where those that another scan has made are not of its geometry.
        `others`: first frames of the scans that have begun, by label. Storages that another scan has made are used.
        """
        self._agrees(reconstruction)
        decided = dict(decisions or self._decide(block, frames))
        probes = self._starting_probes(float(decided["brightest_photons"]), block, frames)
        pixel, energy = self.geometry.pixel_size_m, self.geometry.energy_kev
        for number, (name, probe) in enumerate(zip(self.probe_ids, probes, strict=True)):
            factor = self.coherence.energies[number] if len(probes) > 1 else 1.0
            made = Storage(probe.astype(np.complex64), pixel, (0, 0), 0.0, None if energy is None else energy * factor)
            reconstruction.probes.setdefault(name, made)
        seen = self._seen(block, frames, others or {}, probes[0]) if self._wants_frames("sample") else None
        box = self._box(block)
        for number, name in enumerate(self.object_ids):
            if name in reconstruction.objects:
                continue
            factor, canvas = self._object(number, box, seen)
            offset = canvas.offset if self._has_object else self._first_view(block)
            reconstruction.objects[name] = Storage(
                canvas.data.astype(np.complex64),
                pixel,
                offset,
                complex(self.p.sample.fill),
                None if energy is None else energy * factor,
                canvas.shares,
            )
        self._probes = [list(reconstruction.probes).index(name) for name in self.probe_ids]
        self._objects = [list(reconstruction.objects).index(name) for name in self.object_ids]
        ways = [propagator(self.geometry, factor) for factor in self.coherence.energies]
        reconstruction.propagators[self.number] = tuple(ways[pod.energy] for pod in self._plan)
        reconstruction.geometries[self.number] = self.geometry
        self._disperse(reconstruction)
        return decided

    def _agrees(self, reconstruction: Reconstruction) -> None:
        """Raises `SharingError` where a storage that is there already has another shape or pixel on the sample."""
        mine, view = self.geometry.pixel_size_m, self.geometry.view
        for part, names, held in (
            ("probe", self.probe_ids, reconstruction.probes),
            ("object", self.object_ids, reconstruction.objects),
        ):
            for storage, name in ((held[name], name) for name in names if name in held):
                path, its = f"scans.{self.label}.share.{part}: {name}", storage.pixel_size_m
                if part == "probe" and storage.shape != view:
                    raise SharingError(f"{path} has {storage.shape} pixels, this scan {view}: crop and bin both alike")
                if mine is not None and its is not None and not np.allclose(mine, its, rtol=1e-6, atol=0):
                    other, own = (f"{y * 1e9:.6g} × {x * 1e9:.6g} nm" for y, x in (its, mine))
                    remedy = f"give both the same energy, distance, psize and shape, or share no {part}"
                    raise SharingError(f"{path} has pixels of {other} on the sample, this scan of {own}: {remedy}")

    @property
    def _has_object(self) -> bool:
        """Whether the object begins as something that has a place."""
        return getattr(self.p.sample, "model", None) is not None

    def anchor(self, reconstruction: Reconstruction, block: Block) -> None:
        """Begin the canvas anew where these frames are: those that it was made for have all been withdrawn."""
        table = reconstruction.pods
        shared = table.frame[np.isin(table.address[:, 0, OBJECT], self._objects), 0] != self.number
        if self._has_object or shared.any():
            return
        for name in self.object_ids:
            storage = reconstruction.objects[name]
            data = np.full_like(storage.data, storage.fill, shape=(len(storage.data), *self.geometry.view))
            for layer, share in zip(data, storage.shares, strict=False):
                layer *= share
            storage.data, storage.offset = data, self._first_view(block)
            storage.begun += 1

    def _first_view(self, block: Block) -> tuple[int, int]:
        """Corner of the view in the middle of a block. The lattice is anchored at physical zero, but the canvas begins where
        the frames are: a stage may read anything at the sample."""
        corner, _ = self._corner(self._where(block.positions_m))
        y, x = np.sort(corner, axis=0)[len(corner) // 2].tolist()
        return y, x

    def _object(
        self,
        energy: int,
        box: tuple[tuple[int, int], tuple[int, int]],
        seen: tuple[NDArray[np.complex128], NDArray[np.bool_], tuple[int, int]] | None,
    ) -> tuple[float, Canvas]:
        """(energy relative to the geometry's, the starting object) of a storage."""
        factor = self.coherence.energies[energy] if len(self.object_ids) > 1 else 1.0
        return factor, starting_object(
            self.p.sample,
            self.geometry,
            self.coherence.modes[1],
            box=box,
            label=self.p.share.object or self.label,
            seed=self.seed,
            factor=factor,
            seen=seen,
        )

    def _starting_probes(self, photons: float, block: Block, frames: FrameStore) -> list[NDArray[np.complex128]]:
        """Of each storage; with one per energy each carries its share of the photons."""
        mean = None
        if self._wants_frames("illumination"):
            mean = flat_phase(propagator(self.geometry), mean_frame(block, frames))
        count = self.coherence.storages[0]
        shares = self.coherence.shares if count > 1 else (1.0,)
        least = 1e-6  # a probe without any photon could not be improved
        return [self.probe(photons * max(share, least), energy, mean) for energy, share in enumerate(shares)]

    def _wants_frames(self, branch: str) -> bool:
        model = getattr(getattr(self.p, branch), "model", None)
        return isinstance(model, str) and model == "stxm"

    def _seen(
        self, block: Block, frames: FrameStore, others: Mapping[str, tuple[Block, FrameStore]], probe: NDArray[np.complex128]
    ) -> tuple[NDArray[np.complex128], NDArray[np.bool_], tuple[int, int]]:
        """What a scanning transmission microscope sees in the first frames of this scan, or of the one that `stxm` names."""
        label = self.p.sample.stxm.label
        if label is not None and label != self.label:
            other = others.get(label)
            if other is None or other[1].shape != frames.shape:
                why = "has not begun" if other is None else "has frames of another shape"
                log.warning("%s: sample.stxm.label: scan %r %s: using the own frames", self.label, label, why)
            else:
                block, frames = other
        block, corner = self._near(block)
        y, x = (c / self.geometry.resample for c in self.geometry.cycle)
        return transmission(block, frames, corner, probe, not self.geometry.near, (y, x))

    def _near(self, block: Block) -> tuple[Block, NDArray[np.int64]]:
        """The frames of a block, and the corners of their views, that fit together on a canvas of `MAX_PICTURE` squared."""
        corner, _ = self._corner(self._where(block.positions_m))
        first = Storage(np.zeros((1, *self.geometry.view), np.complex64), None, self._first_view(block))
        fits = self._fits(first, corner, MAX_PICTURE**2)
        parts = (getattr(block, name)[fits] for name in ("slots", "indices", "positions_m", "dose", "arrival_ns"))
        return Block(block.scan, *parts), corner[fits]

    def _box(self, block: Block) -> tuple[tuple[int, int], tuple[int, int]]:
        """(pixel in the middle, (y, x) pixels) of what the first frames see, at most `MAX_PICTURE` of them on a side."""
        _, corner = self._near(block)
        low, high = corner.min(axis=0), corner.max(axis=0) + self.geometry.view
        y, x = np.minimum(high - low, MAX_PICTURE).tolist()
        row, column = ((low + high) // 2).tolist()
        return (row, column), (y, x)

    def _disperse(self, reconstruction: Reconstruction) -> None:
        """Tell which storages are linear in the energy."""
        t = tuple(factor - 1.0 for factor in self.coherence.energies)
        for kind, names, groups in (
            (self.coherence.probe_dispersion, self.probe_ids, reconstruction.probe_dispersion),
            (self.coherence.object_dispersion, self.object_ids, reconstruction.object_dispersion),
        ):
            group = Dispersion(tuple(names), t)
            if kind == "linear" and len(names) > 1 and group not in groups:
                groups.append(group)

    def _decide(self, block: Block, frames: FrameStore) -> dict[str, Any]:
        totals = np.array([frame.sum() for frame in counts(block, frames)])
        return {
            "brightest_photons": max(float(totals.max()), 1.0),
            "mean_photons": float(totals.mean()) / (frames.shape[0] * frames.shape[1]),
        }

    def to_pixels(self, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Positions (frame, 2) as lattice coordinates (y, x) of object pixels."""
        pixel = self.geometry.pixel_size_m
        return positions if pixel is None else positions / np.asarray(pixel)

    def _where(self, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Lattice coordinates at which frames see the object: physical zero where nothing moves."""
        return self.to_pixels(positions * (0.0 if "empty" in self.p.tags else 1.0))

    def place(self, reconstruction: Reconstruction, block: Block) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Append the block's frames to the pod table and grow the object; returns (rows, slots that were refused)."""
        corner, remainder = self._corner(self._where(block.positions_m))
        fits = self._fits(reconstruction.objects[self.storage_id], corner)
        if fits.any():
            low, high = corner[fits].min(axis=0), corner[fits].max(axis=0) + self.geometry.view
            self._grow(reconstruction, low - self.p.margin, high + self.p.margin)
        count = int(fits.sum())
        address = np.zeros((count, self.pods, 6), np.int32)
        address[:, :, 0] = [self._probes[pod.probe] for pod in self._plan]
        address[:, :, 1] = self._probe_layers(reconstruction, count)[:, [pod.probe_layer for pod in self._plan]]
        address[:, :, 2] = [self._objects[pod.object] for pod in self._plan]
        address[:, :, 3] = [pod.object_layer for pod in self._plan]
        address[:, :, 4:] = corner[fits][:, None]
        weight = (np.sqrt(block.dose[fits])[:, None] * self._amplitude).astype(np.float32)
        part = np.repeat(remainder[fits][:, None], self.pods, axis=1).astype(np.float32)
        frame = np.stack([np.full(count, self.number), block.slots[fits]], axis=1)
        rows = reconstruction.pods.append(address, part, weight, frame, block.indices[fits])
        self._rows.update(zip(block.slots[fits].tolist(), rows.tolist(), strict=True))
        return rows, block.slots[~fits]

    def row(self, slot: int) -> int | None:
        """Row of the pod table that shows the frame in `slot`: the last, where it was withdrawn and has come back."""
        return self._rows.get(slot)

    def move(self, reconstruction: Reconstruction, row: int, position: tuple[float, float]) -> bool:
        """Give a row another position, as in `Block.positions_m`; whether the canvas may grow to it."""
        corner, remainder = self._corner(self._where(np.array([position], np.float64)))
        if not self._fits(reconstruction.objects[self.storage_id], corner)[0]:
            return False
        self._grow(reconstruction, corner[0] - self.p.margin, corner[0] + self.geometry.view + self.p.margin)
        reconstruction.pods.address[row, : self.pods, 4:] = corner[0]
        reconstruction.pods.remainder[row, : self.pods] = remainder[0]
        reconstruction.pods.moved[row] = 0
        return True

    def may_shift(self, reconstruction: Reconstruction | None, offset_m: NDArray[np.float64]) -> bool:
        """Whether the canvas may become so large, and positions keep their digits."""
        if np.abs(self._where(offset_m)).max() > FARTHEST:
            return False
        if reconstruction is None:
            return True
        _, corner, _, step = self._shifted(reconstruction, offset_m)
        storage = reconstruction.objects.get(self.storage_id)
        return storage is None or bool(self._fits(storage, corner - step).all())

    def shift(self, reconstruction: Reconstruction, offset_m: NDArray[np.float64]) -> None:
        """Move all its frames by (y, x), as in `Block.positions_m`, from where they are now. The object moves with them, by whole
        pixels, where no other scan sees it."""
        rows, corner, remainder, step = self._shifted(reconstruction, offset_m)
        if not len(rows):
            return
        for name in self.object_ids:
            storage = reconstruction.objects[name]
            storage.offset = (storage.offset[0] + int(step[0]), storage.offset[1] + int(step[1]))
        self._grow(reconstruction, corner.min(axis=0), corner.max(axis=0) + self.geometry.view)
        table = reconstruction.pods
        table.address[rows, : self.pods, ROW : COLUMN + 1] = corner[:, None]
        table.remainder[rows, : self.pods] = remainder[:, None]

    def _shifted(
        self, reconstruction: Reconstruction, offset_m: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
        """(its rows, their corners and remainders when they have moved, whole pixels by which the object moves with them)."""
        moved, table = self._where(offset_m), reconstruction.pods
        rows = np.flatnonzero((table.frame[:, 0] == self.number) & (table.address[:, 0, OBJECT] >= 0))
        own = np.isin(table.address[:, 0, OBJECT], self._objects)
        shared = bool((table.frame[own, 0] != self.number).any())
        step = np.rint(0.0 * moved if shared else moved).astype(np.int64)
        now = table.address[rows, 0, ROW : COLUMN + 1] + table.remainder[rows, 0].astype(float)
        corner, remainder = nearest(np.clip(now + moved, -FAR, FAR))
        return rows, corner.astype(np.int64), remainder, step

    def tilt(self, reconstruction: Reconstruction, pixels: tuple[float, float]) -> None:
        """Have its probes meet the detector so many pixels (y, x) of a prepared frame further: by a phase ramp, in the far field.
        A probe that another scan sees too is left as it is."""
        table = reconstruction.pods
        own = np.isin(table.address[:, 0, PROBE], self._probes)
        shared = bool((table.frame[own, 0] != self.number).any())
        if not any(pixels) or shared or self.volumes or self.geometry.near or self.geometry.resample != 1:
            return
        ramp = np.ones(())
        for step, side in zip(pixels, self.geometry.view, strict=True):
            ramp = np.multiply.outer(ramp, np.exp(2j * np.pi * step * (np.arange(side) - side // 2) / side))
        for name in self.probe_ids:
            storage = reconstruction.probes[name]
            storage.data = (storage.data * ramp).astype(storage.data.dtype)

    def measured(self, block: Block, frames: FrameStore) -> dict[str, Any]:
        """What is decided from the counts of a run's first frames: brightest_photons, mean_photons."""
        return self._decide(block, frames)

    def weigh(self, reconstruction: Reconstruction, row: int, dose: float) -> None:
        """Give a row another dose, as in `Block.dose`."""
        reconstruction.pods.weight[row, : self.pods] = np.sqrt(dose) * self._amplitude

    def _grow(self, reconstruction: Reconstruction, low: NDArray[np.int64], high: NDArray[np.int64]) -> None:
        """The objects of all energies together, so that their canvases stay the same."""
        for name in self.object_ids:
            reconstruction.objects[name].grow((int(low[0]), int(low[1])), (int(high[0]), int(high[1])))

    def _probe_layers(self, reconstruction: Reconstruction, count: int) -> NDArray[np.int64]:
        """Layers of the probe that the next `count` frames see, (frame, probe mode)."""
        return np.broadcast_to(np.arange(self.modes[0]), (count, self.modes[0]))

    def _corner(self, pixels: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """First pixel of each view and the remainder in [-1/2, 1/2)."""
        whole, remainder = nearest(np.clip(pixels, -FAR, FAR))
        return whole.astype(np.int64) - np.array([n // 2 for n in self.geometry.view]), remainder

    def _fits(self, storage: Storage, corner: NDArray[np.int64], most: int | None = None) -> NDArray[np.bool_]:
        """Whether each view finds room on a canvas of at most `most` pixels, together with those before it."""
        most = MAX_CANVAS_PIXELS if most is None else most
        low, high = np.array(storage.offset), np.add(storage.offset, storage.shape)
        corner = corner - self.p.margin
        layers = len(storage.data) * len(self.object_ids)

        def small(low: NDArray[np.int64], high: NDArray[np.int64]) -> bool:
            return bool(math.prod((high - low).tolist()) * layers <= most)

        ends = corner + self.geometry.view + 2 * self.p.margin
        if not len(corner) or small(np.minimum(low, corner.min(axis=0)), np.maximum(high, ends.max(axis=0))):
            return np.ones(len(corner), np.bool_)
        fits = np.zeros(len(corner), np.bool_)
        for k, (first, end) in enumerate(zip(corner, ends, strict=True)):
            lower, upper = np.minimum(low, first), np.maximum(high, end)
            if small(lower, upper):
                low, high, fits[k] = lower, upper, True
        return fits


class Vanilla(ScanModel):
    """One flat round probe and one object."""

    Parameters = VanillaParameters

    def name_of(self, label: str, energy: int) -> str:
        """Without a number, as ptypy names the storages of this model."""
        return f"S{label}"

    def probe(self, photons: float, energy: int = 0, mean: NDArray[np.complex128] | None = None) -> NDArray[np.complex128]:
        """A disc, or the model that stands in the place of `illumination`, with the photons of the brightest frame.

        An engine that goes from frame to frame would put all that a weaker probe lacks into the part of the object that it has
        seen, hundreds of times what lies beside it, and stick there.
        """
        given, begun = Given(photons, self.p.share.probe or self.label, self.seed, mean=mean), self.p.illumination
        if not isinstance(begun, IlluminationParameters):
            begun = IlluminationParameters(aperture=ApertureParameters(size=begun.size, edge=1.0))
        return starting_probe(begun, self.geometry, 1, given)


class Full(ScanModel):
    """Coherence modes of probe and object, energies, and a modelled illumination."""

    Parameters = FullParameters

    def name_of(self, label: str, energy: int) -> str:
        """With the number of the energy, as ptypy names storages."""
        return f"S{label}G{energy:02d}"

    def probe(self, photons: float, energy: int = 0, mean: NDArray[np.complex128] | None = None) -> NDArray[np.complex128]:
        """As `illumination` says."""
        share = self.coherence.shares[energy] if self.coherence.storages[0] > 1 else 1.0
        wanted = self.p.illumination.photons * share if self.p.illumination.photons else photons
        factor = self.coherence.energies[energy] if self.coherence.storages[0] > 1 else 1.0
        given = Given(wanted, self.p.share.probe or self.label, self.seed, factor, mean)
        return starting_probe(self.p.illumination, self.geometry, self.coherence.modes[0], given)
