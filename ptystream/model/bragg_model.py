"""Bragg3dModel: from rocking curves to a three-dimensional probe and object and to rows of the pod table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.model import previous
from ptystream.model.bragg import BraggGeometry, rocking_curve
from ptystream.model.bragg_parameters import Bragg3dParameters
from ptystream.model.geometry import LENGTHS, Geometry
from ptystream.model.probe import Given, starting_probe
from ptystream.model.scan_model import FAR, MAX_CANVAS_PIXELS, ScanModel
from ptystream.reconstruction import Reconstruction, Volume
from ptystream.scan.block import Block, FrameStore

STEP = 8
"""Pixels by which a volume grows along r1 and r2 at a time."""


class Bragg3d(ScanModel):
    """One probe and one object in the natural coordinates of the Bragg geometry; a frame is a rocking curve (q3, q1, q2)."""

    Parameters = Bragg3dParameters
    volumes = True

    def __init__(self, label: str, number: int, parameters: Any, geometry: Geometry, seed: int = 0) -> None:
        super().__init__(label, number, parameters, geometry, seed)
        self._depth_of: dict[int, float] = {}
        """z of the rows placed, metres."""
        self.stand(geometry)

    def stand(self, geometry: Geometry) -> None:
        """See `ScanModel.stand`. Raises `ValueError` where a length is not known."""
        super().stand(geometry)
        if geometry.energy_kev is None or geometry.distance_m is None or geometry.detector_pixel_m is None:
            raise ValueError(f"data: Bragg3dModel {LENGTHS}")
        rocking = self.p.rocking
        self.bragg = BraggGeometry(
            (rocking.n_rocking_positions, *geometry.shape),
            geometry.energy_kev,
            geometry.distance_m,
            geometry.detector_pixel_m,
            rocking.rocking_step,
            rocking.theta_bragg,
        )

    @property
    def store_shape(self) -> tuple[int, int]:
        """A rocking curve's angles one below the other: (q3 · q1, q2)."""
        n3, n1, n2 = self.bragg.shape
        return n3 * n1, n2

    def try_out(self) -> None:
        """See `ScanModel.try_out`."""
        self.probe(1.0)

    def name_of(self, label: str, energy: int) -> str:
        """As ptypy names the storages of this model."""
        return f"S{label}G{energy:02d}"

    def probe(self, photons: float, energy: int = 0, mean: NDArray[np.complex128] | None = None) -> NDArray[np.complex128]:
        """The beam spread along itself, (r3, r1, r2); where no object is in its way, Σ|P|² photons reach the detector."""
        p = self.p.illumination
        wanted = p.photons or photons
        if isinstance(p.model, str) and p.model == "recon":
            found = previous.read(p.recon.rfile, "probe", p.recon.label, self.label)
            previous.same_pixel(found, self.bragg.resolution_m[1:], "illumination.recon")
            if found.data.shape != self.bragg.shape:
                raise ValueError(f"illumination.recon: {found.name} has shape {found.data.shape}: must be {self.bragg.shape}")
            volume = found.data
        else:
            plane = self.bragg.plane()
            sides = self.bragg.shape[1] * plane.pixel_m[0], self.bragg.shape[2] * plane.pixel_m[1]
            asked = p.across(min(sides) / 3)
            if isinstance(asked.model, np.ndarray):
                asked.model = previous.centred(asked.model.astype(complex)[None], plane.view)[0]
            volume = self.bragg.extruded(starting_probe(asked, plane, 1, Given(1.0, self.label, self.seed))[0])
        total = float((np.abs(volume) ** 2).sum())
        if not total > 0:
            raise ValueError("illumination: the starting probe is empty; check size and model")
        return np.asarray(volume * np.sqrt(wanted / total))

    def start(
        self,
        reconstruction: Reconstruction,
        block: Block,
        frames: FrameStore,
        decisions: Mapping[str, Any] | None = None,
        others: Mapping[str, tuple[Block, FrameStore]] | None = None,
    ) -> dict[str, Any]:
        """See `ScanModel.start`."""
        decided = dict(decisions or self._decide(block, frames))
        r3, r1, r2 = self.bragg.resolution_m
        probe = self.probe(float(decided["brightest_photons"])).astype(np.complex64)
        fill = complex(self.p.sample.fill)
        first, corner = self._middle_of(block)
        shared: dict[str, Any] = {"energy_kev": self.bragg.energy_kev, "slice_m": r3, "bragg": self.bragg}
        reconstruction.probes[self.probe_ids[0]] = Volume(probe, (r1, r2), (0, 0), 0.0, **shared)
        data = np.full(self.bragg.shape, fill, np.complex64)
        reconstruction.objects[self.object_ids[0]] = Volume(data, (r1, r2), corner, fill, first=first, **shared)
        self._probes = [list(reconstruction.probes).index(self.probe_ids[0])]
        self._objects = [list(reconstruction.objects).index(self.object_ids[0])]
        reconstruction.propagators[self.number] = (rocking_curve(self.bragg.shape[0]),)
        return decided

    def anchor(self, reconstruction: Reconstruction, block: Block) -> None:
        """See `ScanModel.anchor`."""
        storage = self._object_of(reconstruction)
        storage.data = np.full_like(storage.data, storage.fill, shape=self.bragg.shape)
        storage.first, storage.offset = self._middle_of(block)
        storage.begun += 1

    def to_pixels(self, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Positions (frame, [y, x]) as lattice coordinates (r1, r2), at z = 0."""
        return self._lattice(positions, np.zeros(len(positions)))[:, 1:]

    def place(self, reconstruction: Reconstruction, block: Block) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """See `ScanModel.place`."""
        depth, corner, remainder = self._views(block.positions_m, self._z(block))
        storage = self._object_of(reconstruction)
        fits = np.array([self._grown(storage, d, c) for d, c in zip(depth.tolist(), corner, strict=True)], np.bool_)
        count = int(fits.sum())
        address = np.zeros((count, 1, 6), np.int32)
        address[:, :, 0], address[:, :, 2] = self._probes[0], self._objects[0]
        address[:, :, 4:] = corner[fits][:, None]
        weight = np.sqrt(block.dose[fits])[:, None].astype(np.float32)
        frame = np.stack([np.full(count, self.number), block.slots[fits]], axis=1)
        part = remainder[fits][:, None].astype(np.float32)
        rows = reconstruction.pods.append(address, part, weight, frame, block.indices[fits], depth[fits])
        self._rows.update(zip(block.slots[fits].tolist(), rows.tolist(), strict=True))
        self._depth_of.update(zip(rows.tolist(), self._z(block)[fits].tolist(), strict=True))
        return rows, block.slots[~fits]

    def move(self, reconstruction: Reconstruction, row: int, position: tuple[float, float]) -> bool:
        """See `ScanModel.move`; z stays."""
        depth, corner, remainder = self._views(np.array([position], np.float64), np.array([self._depth_of[row]]))
        if not self._grown(self._object_of(reconstruction), int(depth[0]), corner[0]):
            return False
        reconstruction.pods.depth[row] = depth[0]
        reconstruction.pods.address[row, :1, 4:] = corner[0]
        reconstruction.pods.remainder[row, :1] = remainder[0]
        reconstruction.pods.moved[row] = 0
        return True

    # ------------------------------------------------------------------ where a view lies

    def _object_of(self, reconstruction: Reconstruction) -> Volume:
        storage = reconstruction.objects[self.object_ids[0]]
        assert isinstance(storage, Volume)
        return storage

    def _z(self, block: Block) -> NDArray[np.float64]:
        return np.nan_to_num(block.further[:, 0]) if len(block.further) else np.zeros(len(block))

    def _lattice(self, positions: NDArray[np.float64], z: NDArray[np.float64]) -> NDArray[np.float64]:
        """(frame, [r3, r1, r2]), r3 whole; all zero for an empty beam."""
        still = 0.0 if "empty" in self.p.tags else 1.0
        return self.bragg.lattice(still * np.column_stack([positions[:, 1], z, positions[:, 0]]))

    def _views(
        self, positions: NDArray[np.float64], z: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """(first slice (frame,), corner (frame, 2), remainder (frame, 2)) of each view."""
        pixels = np.clip(self._lattice(positions, z), -FAR, FAR)
        corner, remainder = self._corner(pixels[:, 1:])
        return pixels[:, 0].astype(np.int64) - self.bragg.shape[0] // 2, corner, remainder

    def _middle_of(self, block: Block) -> tuple[int, tuple[int, int]]:
        """View in the middle of a block: (first slice, corner)."""
        depth, corner, _ = self._views(block.positions_m, self._z(block))
        y, x = np.sort(corner, axis=0)[len(corner) // 2].tolist()
        return int(np.sort(depth)[len(depth) // 2]), (y, x)

    def _grown(self, storage: Volume, depth: int, corner: NDArray[np.int64]) -> bool:
        """Let the object reach a view; False where it would become too large."""
        low = np.array([depth, *corner.tolist()])
        high = low + self.bragg.shape
        start = np.minimum(low, storage.corner)
        stop = np.maximum(high, np.add(storage.corner, storage.data.shape))
        if float(np.prod((stop - start + STEP).astype(float))) > MAX_CANVAS_PIXELS:
            return False
        storage.grow_slices(int(low[0]), int(high[0]))
        storage.grow((int(low[1]), int(low[2])), (int(high[1]), int(high[2])), margin=STEP)
        return True
