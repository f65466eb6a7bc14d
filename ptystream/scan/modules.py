"""Detectors made of modules and chips: which pixels have no sensor of their own."""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from ptystream.params.base import Branch, parameter

SPLIT = 2
"""Raw pixels that an edge pixel of double width is given as."""


class ModulesParameters(Branch):
    """How the raw frame is put together of equal modules; gaps and split pixels are masked."""

    shape: tuple[int, int] | None = parameter(None, ours=True)
    """Raw pixels (rows, columns) of one module; None: the frame is one module."""

    gap: tuple[int, int] = parameter((0, 0), ours=True)
    """Raw pixels (rows, columns) between neighbouring modules: no sensor is there."""

    chip: tuple[int, int] | None = parameter(None, ours=True)
    """Pixels (rows, columns) of one readout chip, where the pixels at the inner edges of chips have double width and are given as
    two raw ones that share their counts: (256, 256) for an Eiger, whose module of 2 x 4 chips has 514 x 1030 raw pixels. None:
    there are none."""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        for name, least in (("shape", 1), ("gap", 0), ("chip", 2)):
            value = getattr(self, name)
            if value is not None and min(value) < least:
                raise ValueError(f"{name}: {value}: must be {least} or more")
        if self.gap != (0, 0) and self.shape is None:
            raise ValueError(f"gap: {self.gap}: give the shape of a module too")
        for side, chip in zip(self.shape or (), self.chip or (), strict=False):
            if (side + SPLIT) % (chip + SPLIT):
                raise ValueError(f"chip: {self.chip}: chips of {chip} pixels do not make up a module of {side}")
        return self

    def valid(self, raw_shape: tuple[int, int]) -> NDArray[np.bool_] | None:
        """Which raw pixels (y, x) have a sensor of their own; None: all."""
        if self.shape is None and self.chip is None:
            return None
        rows, columns = (self._along(axis, n) for axis, n in enumerate(raw_shape))
        return np.asarray(rows[:, None] & columns[None, :])

    def _along(self, axis: int, length: int) -> NDArray[np.bool_]:
        side = length if self.shape is None else self.shape[axis]
        place = np.arange(length) % (side + self.gap[axis])
        valid = place < side
        if self.chip is not None:
            pitch = self.chip[axis] + SPLIT
            for first in range(pitch, side + SPLIT, pitch)[: (side + SPLIT) // pitch - 1]:  # of the next chip, without its edge
                valid &= (place < first - SPLIT - 1) | (place >= first - SPLIT - 1 + 2 * SPLIT)
        return np.asarray(valid)
