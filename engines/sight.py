"""What the frames of a tile see: their probe views, shifted by the sub-pixel remainder, and their part of the object; and how
waves reach the detector and come back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ptystream.model.propagate import Propagator
from ptystream.reconstruction import Reconstruction, Storage, Volume

from .backend import Backend
from .subpixel import shifted_layers
from .tiles import Pod, Tile

Sums = list[tuple[Any, Any]]
"""For each storage numerator (layer, y, x) complex and denominator (layer, y, x) real."""


class Sight:
    """Arguments of the kernels for a tile; all engines with a plain P·O model look through it."""

    def __init__(self, on: Backend, reconstruction: Reconstruction, dtype: np.dtype[Any]) -> None:
        self.on, self.reconstruction, self.complex = on, reconstruction, dtype
        self.real = np.empty(0, dtype).real.dtype
        self.subpix: str | None = None
        """Sub-pixel interpolation in force."""
        self._ways: dict[int, tuple[Propagator, Propagator]] = {}
        """Propagators by their id, and the same with their arrays on the device."""

    def view(self, tile: Tile) -> tuple[int, int]:
        """(y, x) of the waves of a tile."""
        return self.probe(tile, 0).shape

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
            views = self.on.xp.empty((len(held.layer), *data.shape[-2:]), self.complex)
            self.on.kernels.shifted_views(data, held.layer, held.remainder, views)
        else:
            views = shifted_layers(data, held.layer, held.remainder, self.on.xp)
        return views, tile.counting

    def window(self, tile: Tile, pod: int) -> tuple[Any, tuple[int, int], Any, Any]:
        """(object layer (y, x), its origin on the lattice, corners, weights)."""
        held, seen = tile.pods[pod], self.object(tile, pod)
        if isinstance(seen, Volume):
            return stacked(seen.data), (0, 0), self.stacked_corner(held, seen), held.weight
        return seen.data[held.object_layer], seen.offset, held.corner, held.weight

    def model(self, tile: Tile, pod: int, out: Any) -> Any:
        """out = w P O of one pod, (frame, y, x); returns it."""
        self.on.kernels.model(*self.probes(tile, pod), *self.window(tile, pod), out)
        return out

    def forward(self, tile: Tile, waves: Any) -> Any:
        """Exit waves of all pods (pod, frame, y, x) at the detector; may overwrite `waves`.

        The result (part, frame, detector y, detector x) has as many parts as pods, times the square of the scan's `resample`:
        a pixel of the detector sees the sum of |part|² over the first axis, whatever the parts are.
        """
        ways = self._ways_of(tile)
        if ways is None:
            return self.on.fft2(waves)
        moved = [way.forward(waves[first:stop], self.on.fft2, self.on.ifft2) for way, first, stop in ways]
        return _split(self._whole(moved), ways[0][0].resample)

    def backward(self, tile: Tile, waves: Any) -> Any:
        """Adjoint of `forward`, and its inverse: exactly in the near field and for the energy that sets the pixel; for another,
        on the waves that frame and detector both hold."""
        ways = self._ways_of(tile)
        if ways is None:
            return self.on.ifft2(waves)
        waves = _joined(waves, ways[0][0].resample)
        return self._whole([way.backward(waves[first:stop], self.on.fft2, self.on.ifft2) for way, first, stop in ways])

    def through(self, tile: Tile, waves: Any, change: Callable[[Any], None]) -> Any:
        """Exit waves after `change` was done to them on the detector, in place; may overwrite `waves`.

        What no detector pixel sees of a wave, because its energy or resolution leads beyond, stays as it is: together with
        `change` as a projection this is a projection too. (Going there and back alone would set it to nothing.)
        """
        ways = self._ways_of(tile)
        if ways is None or all(way.zoom is None for way, _, _ in ways):
            waves = self.forward(tile, waves)
            change(waves)
            return self.backward(tile, waves)
        before = self.forward(tile, waves.copy())
        after = before.copy()
        change(after)
        after -= before
        return waves + self.backward(tile, after)

    def _ways_of(self, tile: Tile) -> list[tuple[Propagator, int, int]] | None:
        """(propagator, first pod, pod after the last) of a tile; None where all is the plain transform."""
        ways: list[tuple[Propagator, int, int]] = []
        for k, given in enumerate(self.reconstruction.propagators.get(tile.scan, ())[: len(tile.pods)]):
            if id(given) not in self._ways:
                there = given.put(lambda array: self.on.put(np.ascontiguousarray(array, self.complex)))
                self._ways[id(given)] = given, there
            way = self._ways[id(given)][1]
            if ways and ways[-1][0] is way:
                ways[-1] = way, ways[-1][1], k + 1
            else:
                ways.append((way, k, k + 1))
        return None if all(way.plain for way, _, _ in ways) else ways

    def _whole(self, parts: list[Any]) -> Any:
        return parts[0] if len(parts) == 1 else self.on.xp.concatenate(parts)

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
        return self.canvas(tile, pod, num), self.canvas(tile, pod, den)

    def canvas(self, tile: Tile, pod: int, data: Any) -> Any:
        """What a pod sees (y, x) of an array shaped as its object."""
        return stacked(data) if isinstance(self.object(tile, pod), Volume) else data[tile.pods[pod].object_layer]

    def stacked_corner(self, held: Pod, seen: Volume) -> Any:
        """First pixels of views on the `stacked` slices of a volume, (view, 2)."""
        first, y, x = seen.corner
        row = (held.slice - first) * seen.shape[0] + held.corner[:, 0] - y
        return self.on.xp.stack([row, held.corner[:, 1] - x], axis=1)


def summed(on: Backend, parts: Sequence[Sums]) -> Sums:
    """Partial sums added in their order, and then over the ranks."""
    total = parts[0]
    for part in parts[1:]:
        for (num, den), (more, further) in zip(total, part, strict=True):
            if more is not num:  # of probes with layers of each frame there is one sum
                num += more
                den += further
    return [(on.total(num), on.total(den)) for num, den in total]


def stacked(volume: Any) -> Any:
    """Slices (r3, r1, r2) one below the other, (r3 · r1, r2): the same memory."""
    return volume.reshape(-1, volume.shape[-1])


def _split(waves: Any, parts: int) -> Any:
    """Fine waves (pod, frame, parts · y, parts · x) as parts (pod · parts², frame, y, x)."""
    if parts == 1:
        return waves
    pods, frames, height, width = waves.shape
    blocks = waves.reshape(pods, frames, height // parts, parts, width // parts, parts).transpose(0, 3, 5, 1, 2, 4)
    return blocks.reshape(pods * parts**2, frames, height // parts, width // parts)


def _joined(waves: Any, parts: int) -> Any:
    """The inverse of `_split`."""
    if parts == 1:
        return waves
    count, frames, height, width = waves.shape
    blocks = waves.reshape(count // parts**2, parts, parts, frames, height, width).transpose(0, 3, 4, 1, 5, 2)
    return blocks.reshape(count // parts**2, frames, height * parts, width * parts)
