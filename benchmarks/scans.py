"""Simulated scans for `engines.py`: what an engine starts from and how further frames come to it, as a scan model does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

from ptystream.engine import Context
from ptystream.engines.subpixel import shifted_layers
from ptystream.model.bragg import BraggGeometry, rocking_curve
from ptystream.reconstruction import PodTable, Reconstruction, Storage, Volume

ANGLES = 16
"""Of a rocking curve."""


class Counts:
    """Photons in one slab."""

    limit, weights = 65535.0, None

    def __init__(self, counts: Any) -> None:
        self.slab_frames, self.shape, self.dtype = len(counts), counts.shape[1:], counts.dtype
        self.mask = np.ones(self.shape, np.uint8)
        self._counts = counts

    def slab(self, number: int) -> Any:
        """The only one."""
        return self._counts


@dataclass
class Scan:
    """Frames of a raster with steps of an eighth of a frame."""

    counts: Any
    probe: Any
    """What a reconstruction starts from: (layer, y, x), of a volume (r3, r1, r2)."""
    corner: Any
    remainder: Any
    modes: int
    per_frame: bool = False
    """Whether each frame has a probe of its own."""
    bragg: BraggGeometry | None = None

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def store(self) -> dict[int, Counts]:
        """The frames for an engine."""
        return {0: Counts(self.counts)}

    def context(self, threads: int) -> Context:
        """With what a run decides once."""
        totals = self.counts.sum(axis=(1, 2), dtype=np.float64)
        pixels = float(np.prod(self.counts.shape[1:]))
        return Context(threads=threads, mean_photons=float(totals.mean()) / pixels, brightest_photons=float(totals.max()))

    def begin(self) -> Reconstruction:
        """Nothing but the probe and an empty object that a first frame will make grow."""
        side = self.probe.shape[-2:]
        if self.bragg is not None:
            r3, r1, r2 = self.bragg.resolution_m
            common: dict[str, Any] = {"slice_m": r3, "bragg": self.bragg}
            probe: Storage = Volume(self.probe.copy(), (r1, r2), (0, 0), 0.0, **common)
            sample: Storage = Volume(np.ones(self.probe.shape, np.complex64), (r1, r2), (0, 0), 1.0, **common)
            return Reconstruction({"S": probe}, {"S": sample}, PodTable(1), {0: (rocking_curve(len(self.probe)),)})
        probe = Storage(self.probe.copy(), None, modes_per_frame=self.modes if self.per_frame else 0)
        return Reconstruction({"S": probe}, {"S": Storage(np.ones((1, *side), np.complex64), None)}, PodTable(self.modes))

    def add(self, made: Reconstruction, first: int, stop: int) -> Any:
        """Rows of the frames [first, stop); probe and object grow."""
        count, (height, width), corner = stop - first, self.probe.shape[-2:], self.corner[first:stop]
        low, high = corner.min(axis=0), corner.max(axis=0) + np.array([height, width])
        made.objects["S"].grow((int(low[0]), int(low[1])), (int(high[0]), int(high[1])))
        probe = made.probes["S"]
        if self.per_frame and stop * self.modes > len(probe.data):
            probe.add_frames(stop - len(probe.data) // self.modes)
        address = np.zeros((count, self.modes, 6), np.int32)
        address[:, :, 1] = np.arange(self.modes)
        if self.per_frame:
            address[:, :, 1] += self.modes * np.arange(first, stop)[:, None]
        address[:, :, 4:] = corner[:, None]
        remainder = np.repeat(self.remainder[first:stop, None], self.modes, axis=1)
        slots = np.stack([np.zeros(count, int), np.arange(first, stop)], axis=1)
        return made.pods.append(address, remainder, np.ones((count, self.modes), np.float32), slots)


def flat_scan(frames: int, side: int, modes: int, *, per_frame: bool = False) -> Scan:
    """Poisson counts of smooth probes and a smooth object, and probes that are nearly right."""
    random = np.random.default_rng(0)
    steps = int(np.ceil(np.sqrt(frames)))
    corner = np.stack(np.divmod(np.arange(frames), steps), axis=1) * (side // 8)
    remainder = random.uniform(-0.5, 0.5, (frames, 2)).astype(np.float32)
    size = int(corner.max()) + side
    sample = np.exp(1j * gaussian_filter(random.normal(size=(size, size)), 3) * 8) * (1 - 0.1 * random.random((size, size)))
    y, x = (np.indices((side, side)) - side / 2) / (side / 5)
    beam = 50 * np.exp(-(y**2 + x**2) * (1 + 0.7j))
    true = np.stack([beam * 0.5**k * x**k for k in range(modes)])
    counts = np.zeros((frames, side, side), np.uint16)
    for j in range(frames):
        window = sample[tuple(slice(c, c + side) for c in corner[j])]
        shifted = shifted_layers(true, np.arange(modes), np.repeat(remainder[j : j + 1], modes, axis=0))
        waves = np.fft.fft2(shifted * window, norm="ortho")
        counts[j] = random.poisson((np.abs(waves) ** 2).sum(axis=0))
    noise = random.normal(size=(2, *true.shape))  # as in every measured probe; no denormal numbers far out
    probe = (true + 0.05 * (noise[0] + 1j * noise[1])).astype(np.complex64)
    if per_frame:
        probe = np.tile(probe, (1, 1, 1))
    return Scan(counts, probe, corner, remainder, modes, per_frame)


def bragg_scan(frames: int, side: int) -> Scan:
    """Rocking curves with counts of noise: no sample is wanted of them."""
    random = np.random.default_rng(0)
    shape = (ANGLES, side, side)
    geometry = BraggGeometry(shape, 8.5, 2.0, (7040e-6 / side, 7040e-6 / side), 0.08 / ANGLES, 22.32)
    view = geometry.plane().view
    across = np.zeros(view, complex)
    y, x = view[0] // 2, view[1] // 2
    across[y - side // 6 : y + side // 6, x - side // 6 : x + side // 6] = 30
    probe = geometry.extruded(across).astype(np.complex64)
    corner = np.stack([np.zeros(frames, int), np.arange(frames) * 4], axis=1)
    counts = random.poisson(2.0, (frames, ANGLES * side, side)).astype(np.uint16)
    remainder = random.uniform(-0.5, 0.5, (frames, 2)).astype(np.float32)
    return Scan(counts, probe, corner, remainder, 1, bragg=geometry)
