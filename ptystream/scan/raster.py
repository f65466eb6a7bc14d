"""Where the beam of a scanning microscope was, from the settings of its scan generator: such a scan sends no positions."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from pydantic import field_validator, model_validator

from ptystream.params.base import Branch, parameter

MAX_POINTS = 1 << 26


class RasterParameters(Branch):
    """Points of a raster, one frame for each, row by row."""

    points: tuple[int, int] = parameter((1, 1), ours=True)
    """Points (slow, fast): rows, and points in a row."""

    step: float | tuple[float, float] = parameter(1e-10, ours=True)
    """Distance between neighbours, metres (object pixels where the positions' `unit` is 'px'): (slow, fast), or one for both;
    below 0: the other way."""

    rotation: float = parameter(0.0, ours=True)
    """By how much the scan is turned against the detector, degrees: 90 takes a step to the right into one downwards."""

    snake: bool = parameter(False, ours=True)
    """Whether every second row is scanned backwards."""

    flyback: int = parameter(0, lower=0, upper=1 << 20, ours=True)
    """Frames at the end of each row that the detector took while the beam went back: they are excluded as 'flyback'."""

    @field_validator("points")
    @classmethod
    def _some(cls, value: tuple[int, int]) -> tuple[int, int]:
        if min(value) < 1 or value[0] * value[1] > MAX_POINTS:
            raise ValueError(f"must be two numbers of points (slow, fast), 1 or more, {MAX_POINTS} together at most")
        return value

    @model_validator(mode="after")
    def _not_too_many(self) -> RasterParameters:
        if self.frames > MAX_POINTS:
            raise ValueError(f"flyback: {self.flyback}: makes {self.frames} frames; {MAX_POINTS} are allowed")
        if not all(math.isfinite(s) and s != 0 for s in np.atleast_1d(self.step)):
            raise ValueError(f"step: {self.step}: must be other than 0 (metres)")
        return self

    @property
    def frames(self) -> int:
        """Frames of a whole scan, those of the flyback with them; none is taken after the last row."""
        slow, fast = self.points
        return slow * fast + (slow - 1) * self.flyback

    def numbers(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Point of the raster (row × points in a row + column) at which each frame was taken; -1: none."""
        slow, fast = self.points
        row, column = np.divmod(np.asarray(index, np.int64), fast + self.flyback)
        on = (row >= 0) & (row < slow) & (column < fast)
        if self.snake:
            column = np.where(row % 2 == 1, fast - 1 - column, column)
        return np.where(on, row * fast + column, -1)

    def positions(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """(numbers of the frames on the raster, their positions (frame, 2), (y, x)), the middle of the raster at 0."""
        slow, fast = self.points
        row, column = (n.ravel() for n in np.indices((slow, fast)))
        index = row * (fast + self.flyback) + column
        if self.snake:
            column = np.where(row % 2 == 1, fast - 1 - column, column)
        step_slow, step_fast = np.broadcast_to(np.asarray(self.step, float), 2)
        y, x = (row - (slow - 1) / 2) * step_slow, (column - (fast - 1) / 2) * step_fast
        turn = math.radians(self.rotation)
        cos, sin = math.cos(turn), math.sin(turn)
        return index.astype(np.int64), np.stack([cos * y + sin * x, cos * x - sin * y], axis=1)
