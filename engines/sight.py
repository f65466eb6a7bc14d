"""What the frames of a tile see: their probe views, shifted by the sub-pixel remainder, and their part of the object."""

from __future__ import annotations

from typing import Any

import numpy as np

from ptystream.reconstruction import Reconstruction, Storage

from .backend import Backend
from .subpixel import shifted_layers
from .tiles import Tile

Sums = list[tuple[Any, Any]]
"""For each storage numerator (layer, y, x) complex and denominator (layer, y, x) real."""


class Sight:
    """Arguments of the kernels for a tile; all engines with a plain P·O model look through it."""

    def __init__(self, on: Backend, reconstruction: Reconstruction, shape: tuple[int, int], dtype: np.dtype[Any]) -> None:
        self.on, self.reconstruction, self.shape, self.complex = on, reconstruction, shape, dtype
        self.real = np.empty(0, dtype).real.dtype
        self.subpix: str | None = None
        """Sub-pixel interpolation in force."""

    def probe(self, tile: Tile, pod: int) -> Storage:
        """The probe of a pod."""
        return list(self.reconstruction.probes.values())[tile.pods[pod].probe]

    def object(self, tile: Tile, pod: int) -> Storage:
        """The object of a pod."""
        return list(self.reconstruction.objects.values())[tile.pods[pod].object]

    def probes(self, tile: Tile, pod: int, instead: Any = None) -> tuple[Any, Any]:
        """(probe views (view, y, x), which of them each frame sees), of the probe or of layers `instead` of its own."""
        held, data = tile.pods[pod], self.probe(tile, pod).data if instead is None else instead
        if self.subpix is None:
            return data, held.layer
        if self.subpix == "linear":
            views = self.on.xp.empty((len(tile), *self.shape), self.complex)
            self.on.kernels.shifted_views(data, held.layer, held.remainder, views)
        else:
            views = shifted_layers(data, held.layer, held.remainder, self.on.xp)
        return views, tile.counting

    def window(self, tile: Tile, pod: int) -> tuple[Any, tuple[int, int], Any, Any]:
        """(object layer (y, x), its origin on the lattice, corners, weights)."""
        held, seen = tile.pods[pod], self.object(tile, pod)
        return seen.data[held.object_layer], seen.offset, held.corner, held.weight

    def model(self, tile: Tile, pod: int, out: Any) -> Any:
        """out = w P O of one pod, (frame, y, x); returns it."""
        self.on.kernels.model(*self.probes(tile, pod), *self.window(tile, pod), out)
        return out

    def forward(self, tile: Tile, waves: Any) -> Any:
        """Exit waves of all pods (pod, frame, y, x) at the detector, unitary; may overwrite `waves`."""
        return self.on.fft2(waves)

    def backward(self, tile: Tile, waves: Any) -> Any:
        """Adjoint and inverse of `forward`."""
        return self.on.ifft2(waves)

    def empty_sums(self) -> Sums:
        """Zeros on the objects' canvases."""
        xp = self.on.xp
        return [
            (xp.zeros(o.data.shape, self.complex), xp.zeros(o.data.shape, self.real))
            for o in self.reconstruction.objects.values()
        ]

    def of_object(self, sums: Sums, tile: Tile, pod: int) -> tuple[Any, Any]:
        """The object layer's part of `empty_sums` that a pod adds to."""
        held = tile.pods[pod]
        num, den = sums[held.object]
        return num[held.object_layer], den[held.object_layer]
