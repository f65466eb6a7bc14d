"""From waves on the detector to photons in its pixels, and back.

Model and pattern both have zero frequency at [0, 0] (an image plane: the middle of the frame), as frames lie in their slabs. The
model may be finer (`bin` pixels on a side of a detector's) and wider (`pad` of the detector's pixels on each side, which it
does not see). Zero frequency is in the middle of a pixel of the detector: waves arrive with it there (`Optics.middle`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backend import Backend
from .optics import Optics


def places(pixels: int, bin: int, pad: int, *, near: bool) -> NDArray[np.int64]:
    """Pixels of the model, along one axis, that the pixels of the detector see: `bin` for each, one pixel after the other."""
    side = bin * (pixels + 2 * pad)
    centred = (np.arange(pixels) + pixels // 2) % pixels
    fine = (centred[:, None] + pad) * bin + np.arange(bin)
    return np.asarray(fine if near else (fine - side // 2) % side).ravel()


@dataclass(frozen=True, slots=True)
class Detector:
    """Where the waves end."""

    on: Backend
    optics: Optics
    shape: tuple[int, int]
    """(y, x) of a pattern."""
    bin: int = 1
    pad: int = 0
    rows: Any = None
    columns: Any = None
    """Where its pixels lie in the model, as of `places`; None: model and pattern are alike."""
    seen: Any = None
    """Share of each pixel that lies within the band limit: a static background has no more. Shape (y, x), real."""

    @classmethod
    def of(cls, on: Backend, optics: Optics, shape: tuple[int, int], bin: int = 1, pad: int = 0) -> Detector:
        """Of patterns of this shape."""
        if (bin * (shape[0] + 2 * pad), bin * (shape[1] + 2 * pad)) != tuple(optics.shape):
            raise ValueError(f"waves of {optics.shape} pixels do not fit patterns of {shape} with bin {bin} and pad {pad}")
        plain = bin == 1 and pad == 0 and not optics.near
        rows, columns = (None, None) if plain else (on.put(places(n, bin, pad, near=optics.near)) for n in shape)
        found = cls(on, optics, shape, bin, pad, rows, columns)
        limit = on.xp.ones_like(optics.limit) if optics.near else optics.edge
        return cls(on, optics, shape, bin, pad, rows, columns, found._binned(limit[None])[0] / bin**2)

    def photons(self, waves: Any, defocus: Any = None, background: Any = None) -> Any:
        """Waves (frame, …, y, x) as photons (frame, y, x). `background`: its square root, (y, x)."""
        fine = (waves.real**2 + waves.imag**2).sum(axis=tuple(range(1, waves.ndim - 2)))
        fine = self._binned(self._blurred(fine, defocus))
        return fine if background is None else fine + background**2 * self.seen

    def back(self, slope: Any, waves: Any, defocus: Any = None) -> Any:
        """The gradient of the waves, from ∂L/∂I of the pixels (frame, y, x)."""
        fine = self._blurred(self._spread(slope), defocus)
        return waves * fine.reshape(len(fine), *(1,) * (waves.ndim - 3), *fine.shape[1:])

    def background(self, slope: Any, background: Any) -> Any:
        """∂L/∂b of these frames, (y, x): 2 b Σ ∂L/∂I within the band limit."""
        return 2 * background * self.seen * slope.sum(axis=0)

    def _binned(self, fine: Any) -> Any:
        if self.rows is None:
            return fine
        seen = fine[:, self.rows][:, :, self.columns]
        (height, width), b = self.shape, self.bin
        return seen if b == 1 else seen.reshape(len(seen), height, b, width, b).sum(axis=(2, 4))

    def _spread(self, slope: Any) -> Any:
        """Adjoint of `_binned`."""
        if self.rows is None:
            return slope
        xp, b = self.on.xp, self.bin
        fine = xp.zeros((len(slope), *self.optics.shape), slope.dtype)
        each = slope if b == 1 else xp.repeat(xp.repeat(slope, b, axis=1), b, axis=2)
        fine[:, self.rows[:, None], self.columns] = each
        return fine

    def _blurred(self, fine: Any, defocus: Any) -> Any:
        """With the spread of the illumination's angles: exp(-q² (π α D)²) on the transform, its own adjoint."""
        if not self.optics.near or not self.optics.spread:
            return fine
        kind = self.optics.limit.dtype
        width = (np.pi * self.optics.spread * defocus[:, None, None]) ** 2
        wave = self.on.fft2(fine.astype(np.result_type(kind, np.complex64)))
        wave *= self.on.xp.exp(-self.optics.squared * width)
        return self.on.ifft2(wave).real
