"""A prior that likes smooth objects: the squared differences of neighbouring pixels (`reg_del2`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.reconstruction import COLUMN, OBJECT, OBJECT_LAYER, PROBE, ROW, Reconstruction

from .backend import Backend
from .fields import inner


def seen(reconstruction: Reconstruction, rows: NDArray[np.int64]) -> list[NDArray[np.bool_]]:
    """Which pixels of each object (layer, y, x) lie in the view of any of these rows.

    By sums over the corners of the views, so that the cost does not grow with their size.
    """
    table = reconstruction.pods.address[rows].reshape(-1, 6)
    found = []
    for number, storage in enumerate(reconstruction.objects.values()):
        edges = np.zeros((len(storage.data), storage.shape[0] + 1, storage.shape[1] + 1), np.int64)
        for which, probe in enumerate(reconstruction.probes.values()):
            here = table[(table[:, OBJECT] == number) & (table[:, PROBE] == which)]
            layer, y, x = here[:, OBJECT_LAYER], here[:, ROW] - storage.offset[0], here[:, COLUMN] - storage.offset[1]
            for down, right, sign in ((0, 0, 1), (0, 1, -1), (1, 0, -1), (1, 1, 1)):
                np.add.at(edges, (layer, y + down * probe.shape[0], x + right * probe.shape[1]), sign)
        found.append(edges.cumsum(axis=1).cumsum(axis=2)[:, :-1, :-1] > 0)
    return found


class Smoothness:
    """R(O) = 2 amplitude Σ |O_i - O_k|² over pairs of neighbours both of which are `seen`; every method is for all objects.

    (The factor 2: ptypy counts each pair forward and backward.) Pixels that no frame sees take no part, so the size of the
    canvas around a scan does not matter.
    """

    def __init__(self, on: Backend, pixels: Sequence[NDArray[np.bool_]], real: np.dtype[Any]) -> None:
        self.on = on
        self.pixels = int(sum(p.sum() for p in pixels))
        """Number of pixels seen."""
        self._pairs = [
            [on.put((p[:, 1:] & p[:, :-1]).astype(real)), on.put((p[..., 1:] & p[..., :-1]).astype(real))] for p in pixels
        ]

    def value(self, objects: Sequence[Any], amplitude: float) -> float:
        """R(O)."""
        return self._product(objects, objects, amplitude)

    def gradients(self, objects: Sequence[Any], amplitude: float) -> list[Any]:
        """∂R/∂conj(O)."""
        found = []
        for data, pairs in zip(objects, self._pairs, strict=True):
            gradient = self.on.xp.zeros_like(data)
            for (low, high), difference in _differences(data, pairs):
                difference *= difference.real.dtype.type(2 * amplitude)
                gradient[high] += difference
                gradient[low] -= difference
            found.append(gradient)
        return found

    def line(self, objects: Sequence[Any], steps: Sequence[Any], amplitude: float) -> tuple[float, float]:
        """Coefficients of t and t² in R(O + t step)."""
        return 2 * self._product(objects, steps, amplitude), self._product(steps, steps, amplitude)

    def _product(self, first: Sequence[Any], second: Sequence[Any], amplitude: float) -> float:
        total = 0.0
        for a, b, pairs in zip(first, second, self._pairs, strict=True):
            for (_, x), (_, y) in zip(_differences(a, pairs), _differences(b, pairs), strict=True):
                total += inner(self.on, x, y)
        return 2 * amplitude * total


Cut = tuple[slice | Any, ...]


def _differences(data: Any, pairs: Sequence[Any]) -> Iterator[tuple[tuple[Cut, Cut], Any]]:
    """For each axis (where the first and the second of a pair lie, their difference where both are seen)."""
    whole, ahead, behind = slice(None), slice(1, None), slice(None, -1)
    for cuts, both in zip((((whole, behind), (whole, ahead)), ((..., behind), (..., ahead))), pairs, strict=True):
        yield cuts, (data[cuts[1]] - data[cuts[0]]) * both
