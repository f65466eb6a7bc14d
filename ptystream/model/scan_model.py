"""Scan models: from blocks of frames to storages and rows of the pod table.

A model owns no data: it makes probe and object when a run's first frames are there, and places every later block in constant
time per frame.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ptystream.model.geometry import Geometry
from ptystream.model.illumination import ApertureParameters, IlluminationParameters, starting_probe
from ptystream.params.base import Branch, parameter
from ptystream.reconstruction import Reconstruction, Storage, nearest
from ptystream.scan.block import Block, FrameStore
from ptystream.scan.parameters import ArrayParameter, load_array

MAX_CANVAS_PIXELS = 1 << 28
"""An object that would become larger (2 GiB as complex64) is not grown; the frame that asks for it is refused."""


FAR = 2.0**40
"""Lattice coordinates end here (object pixels), so that differences of whole numbers cannot overflow."""


class ScanModelParameters(Branch):
    """Parameters of every scan model."""

    propagation: Literal["farfield"] = parameter("farfield")
    """Propagation type: 'farfield'."""

    ffttype: Literal["scipy", "numpy", "fftw"] = parameter("scipy")
    """FFT library"""


class VanillaIlluminationParameters(Branch):
    """Illumination parameters."""

    size: float | None = parameter(None)
    """Diameter of the flat round probe, metres; None: a third of the frame."""


class SampleParameters(Branch):
    """Initial object."""

    fill: complex = parameter(1.0)
    """Value of object pixels before the first update, and of pixels that are new."""


class FullSampleParameters(SampleParameters):
    """Initial object modelization."""

    model: ArrayParameter = parameter(None)
    """Type of initial object model

    None: `fill` everywhere. An array (y, x) or (mode, y, x), nested list, or file 'name.npy', 'name.npz:array' or
    'name.h5:/dataset', in object pixels, its middle at physical zero; `fill` around it."""


class VanillaParameters(ScanModelParameters):
    """One probe, one object."""

    name: str = parameter("Vanilla")
    """Name of the model."""

    illumination: VanillaIlluminationParameters = VanillaIlluminationParameters()
    """Illumination parameters"""

    sample: SampleParameters = SampleParameters()
    """Initial object"""


class CoherenceParameters(Branch):
    """Coherence parameters."""

    num_probe_modes: int = parameter(1, lower=0)
    """Number of probe modes; 0 counts as 1"""

    num_object_modes: int = parameter(1, lower=0)
    """Number of object modes; 0 counts as 1"""


class FullParameters(ScanModelParameters):
    """Probe and object modes."""

    name: str = parameter("Full")
    """Name of the model."""

    coherence: CoherenceParameters = CoherenceParameters()
    """Coherence parameters"""

    illumination: IlluminationParameters = IlluminationParameters()
    """Illumination model (probe)"""

    sample: FullSampleParameters = FullSampleParameters()
    """Initial object modelization parameters"""


class ScanModel:
    """What the two models share: everything but the starting probe and the names of storages."""

    Parameters: type[Branch]

    def __init__(self, label: str, number: int, parameters: Any, geometry: Geometry, seed: int = 0) -> None:
        self.label, self.number, self.p, self.geometry, self.seed = label, number, parameters, geometry, seed
        self._rows: dict[int, int] = {}
        self._probe = self._object = 0

    @property
    def modes(self) -> tuple[int, int]:
        """Probe and object modes."""
        return 1, 1

    @property
    def pods(self) -> int:
        """Pods of a frame."""
        return self.modes[0] * self.modes[1]

    @property
    def storage_id(self) -> str:
        """Name of the probe and of the object."""
        return f"S{self.label}"

    def probe(self, photons: float) -> NDArray[np.complex128]:
        """The starting probe, (mode, y, x)."""
        raise NotImplementedError

    def start(
        self, reconstruction: Reconstruction, block: Block, frames: FrameStore, decisions: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Make the storages from the run's first frames; returns what was decided from the data (or `decisions`)."""
        decided = dict(decisions or self._decide(block, frames))
        pixel, name = self.geometry.pixel_size_m, self.storage_id
        probe = self.probe(float(decided["brightest_photons"]))
        fill = complex(self.p.sample.fill)
        given = load_array(getattr(self.p.sample, "model", None), "sample.model")
        layers = self.modes[1]
        if given is None:
            height, width = self.geometry.shape
            data = np.full((layers, height, width), fill)
            offset = self._first_view(block)
        else:
            data = np.broadcast_to(np.asarray(given, complex), (layers, *np.shape(given)[-2:])).copy()
            offset = -(data.shape[1] // 2), -(data.shape[2] // 2)
        self._probe, self._object = len(reconstruction.probes), len(reconstruction.objects)
        energy = self.geometry.energy_kev
        reconstruction.probes[name] = Storage(probe.astype(np.complex64), pixel, (0, 0), 0.0, energy)
        reconstruction.objects[name] = Storage(data.astype(np.complex64), pixel, offset, fill, energy)
        return decided

    def anchor(self, reconstruction: Reconstruction, block: Block) -> None:
        """Begin the canvas anew where these frames are: those that it was made for have all been withdrawn."""
        if getattr(self.p.sample, "model", None) is None:
            storage = reconstruction.objects[self.storage_id]
            shape = (len(storage.data), *self.geometry.shape)
            storage.data, storage.offset = np.full_like(storage.data, storage.fill, shape=shape), self._first_view(block)

    def _first_view(self, block: Block) -> tuple[int, int]:
        """Corner of the view in the middle of a block. The lattice is anchored at physical zero, but the canvas begins where
        the frames are: a stage may read anything at the sample."""
        corner, _ = self._corner(self.to_pixels(block.positions_m))
        y, x = np.sort(corner, axis=0)[len(corner) // 2].tolist()
        return y, x

    def _decide(self, block: Block, frames: FrameStore) -> dict[str, Any]:
        totals = np.zeros(len(block))
        for k, slot in enumerate(block.slots.tolist()):
            counts = frames.slab(slot // frames.slab_frames)[slot % frames.slab_frames].astype(np.float32)
            totals[k] = counts[(counts < frames.limit) & (frames.mask != 0)].sum(dtype=np.float64)
        return {
            "brightest_photons": max(float(totals.max()), 1.0),
            "mean_photons": float(totals.mean()) / (frames.shape[0] * frames.shape[1]),
        }

    def to_pixels(self, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Positions (frame, 2) as lattice coordinates (y, x) of object pixels."""
        pixel = self.geometry.pixel_size_m
        return positions if pixel is None else positions / np.asarray(pixel)

    def place(self, reconstruction: Reconstruction, block: Block) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Append the block's frames to the pod table and grow the object; returns (rows, slots that were refused)."""
        corner, remainder = self._corner(self.to_pixels(block.positions_m))
        storage = reconstruction.objects[self.storage_id]
        fits = self._fits(storage, corner)
        if fits.any():
            low, high = corner[fits].min(axis=0), corner[fits].max(axis=0) + self.geometry.shape
            storage.grow((int(low[0]), int(low[1])), (int(high[0]), int(high[1])))
        count = int(fits.sum())
        address = np.zeros((count, self.pods, 6), np.int32)
        probe_modes, object_modes = self.modes
        layers = np.indices((probe_modes, object_modes)).reshape(2, -1)
        address[:, :, 0], address[:, :, 2] = self._probe, self._object
        address[:, :, 1] = self._probe_layers(reconstruction, count)[:, layers[0]]
        address[:, :, 3] = layers[1]
        address[:, :, 4:] = corner[fits][:, None]
        weight = np.repeat(np.sqrt(block.dose[fits])[:, None], self.pods, axis=1).astype(np.float32)
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
        corner, remainder = self._corner(self.to_pixels(np.array([position], np.float64)))
        storage = reconstruction.objects[self.storage_id]
        if not self._fits(storage, corner)[0]:
            return False
        low, high = corner[0], corner[0] + self.geometry.shape
        storage.grow((int(low[0]), int(low[1])), (int(high[0]), int(high[1])))
        reconstruction.pods.address[row, :, 4:] = corner[0]
        reconstruction.pods.remainder[row] = remainder[0]
        reconstruction.pods.moved[row] = 0
        return True

    def weigh(self, reconstruction: Reconstruction, row: int, dose: float) -> None:
        """Give a row another dose, as in `Block.dose`."""
        reconstruction.pods.weight[row] = np.sqrt(dose)

    def _probe_layers(self, reconstruction: Reconstruction, count: int) -> NDArray[np.int64]:
        """Layers of the probe that the next `count` frames see, (frame, probe mode)."""
        return np.broadcast_to(np.arange(self.modes[0]), (count, self.modes[0]))

    def _corner(self, pixels: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """First pixel of each view and the remainder in [-1/2, 1/2)."""
        whole, remainder = nearest(np.clip(pixels, -FAR, FAR))
        return whole.astype(np.int64) - np.array([n // 2 for n in self.geometry.shape]), remainder

    def _fits(self, storage: Storage, corner: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each view finds room on a canvas within the limit, together with those before it."""
        low, high = np.array(storage.offset), np.add(storage.offset, storage.shape)

        def small(low: NDArray[np.int64], high: NDArray[np.int64]) -> bool:
            return bool(math.prod((high - low).tolist()) * len(storage.data) <= MAX_CANVAS_PIXELS)

        ends = corner + self.geometry.shape
        if not len(corner) or small(np.minimum(low, corner.min(axis=0)), np.maximum(high, ends.max(axis=0))):
            return np.ones(len(corner), np.bool_)
        fits = np.zeros(len(corner), np.bool_)
        for k, (first, end) in enumerate(zip(corner, ends, strict=True)):
            lower, upper = np.minimum(low, first), np.maximum(high, end)
            if small(lower, upper):
                low, high, fits[k] = lower, upper, True
        return fits


class Vanilla(ScanModel):
    """One flat round probe of unit modulus and one object."""

    Parameters = VanillaParameters

    def probe(self, photons: float) -> NDArray[np.complex128]:
        """A disc; photons are left to the first updates."""
        shape = ApertureParameters(size=self.p.illumination.size, edge=1.0)
        like = IlluminationParameters(aperture=shape)
        made = starting_probe(like, self.geometry, 1, 1.0)
        return np.asarray(made / np.abs(made).max())


class Full(ScanModel):
    """Coherence modes of probe and object, and a modelled illumination."""

    Parameters = FullParameters

    @property
    def modes(self) -> tuple[int, int]:
        """Probe and object modes."""
        return max(1, self.p.coherence.num_probe_modes), max(1, self.p.coherence.num_object_modes)

    @property
    def storage_id(self) -> str:
        """With the number of the energy, as ptypy names storages."""
        return f"S{self.label}G00"

    def probe(self, photons: float) -> NDArray[np.complex128]:
        """As `illumination` says."""
        wanted = self.p.illumination.photons or photons
        return starting_probe(self.p.illumination, self.geometry, self.modes[0], wanted, self.seed)
