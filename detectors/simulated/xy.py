"""Where the beam goes in a simulated scan: a pattern by its name and size, or positions as they are given."""

from __future__ import annotations

import math
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, field_validator, model_validator

from ptystream.chance import generator
from ptystream.params.base import Branch, parameter
from ptystream.scan.parameters import ArrayParameter, load_array
from ptystream.scan.positions import raster_scan, round_scan, spiral_scan

MODELS = ("round", "raster", "spiral")
MAX_FRAMES = 1 << 24
TOLERANCE = 1 + 1e-9
"""A point on the edge is inside."""


def pattern_of(value: Any) -> Any:
    """A pattern's name as it is, anything else as the positions that it means."""
    return value if isinstance(value, str) and value in MODELS else load_array(value)


class XyParameters(Branch):
    """The scan pattern, (y, x) in metres

    Of `extent`, `spacing` and `steps` two are enough: those that are given decide, and the third follows. Where all three are
    given, `steps` and `spacing` make the pattern and `extent` cuts it. (ptypy cuts with the default `extent` even where only
    the other two are given, and a raster, which begins at (0, 0), to a quarter.)"""

    override: ArrayParameter = parameter(None)
    """Positions to use instead of a pattern, (frame, 2), (y, x) in metres; an array, nested list or file. Nothing of this branch
    changes them."""

    model: Annotated[np.ndarray | list[Any] | str | None, AfterValidator(pattern_of)] = parameter(None)
    """None, 'round', 'raster', 'spiral' or array-like

    'round': shells of radius i · `spacing` with 5 i points each, and the centre. 'raster': rows and columns from (0, 0) upwards,
    row after row, not cut. 'spiral': an Archimedean spiral, out to a diameter of `extent`. An array: positions (frame, 2) in
    metres, to which `offset`, `jitter` and `count` apply. None: positions must come from `override` or `positions_theory`."""

    extent: float | tuple[float, float] | None = parameter(15e-6)
    """Height and width of the square (or rectangle) that a 'round' pattern is cut to, diameter of a 'spiral'; metres, one number
    or (y, x). None: `steps` times `spacing`."""

    spacing: float | tuple[float, float] | None = parameter(1.5e-6)
    """Step size (grid spacing)

    Metres, one number or (y, x). None: `extent` / `steps`."""

    steps: int | tuple[int, int] | None = parameter(10)
    """Steps across the pattern, one number or (rows, columns): half as many shells of a 'round' one and one more, whose parts
    outside are cut off. None: `extent` / `spacing`."""

    offset: float | tuple[float, float] = parameter(0.0)
    """Added to the whole pattern, metres, one number or (y, x)."""

    jitter: float | None = parameter(None)
    """Each position is moved at random by up to this in either direction of either axis, metres; None or 0: not at all. The same
    for the same `seed`. (ptypy declares this parameter and does not use it.)"""

    count: int | None = parameter(None)
    """Use only so many positions, the first ones; None: all."""

    @field_validator("extent", "spacing", "steps")
    @classmethod
    def _positive(cls, value: Any) -> Any:
        if value is not None and not all(math.isfinite(v) and v > 0 for v in np.atleast_1d(value)):
            raise ValueError("must be above 0")
        return value

    @field_validator("jitter")
    @classmethod
    def _jitter(cls, value: float | None) -> float | None:
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise ValueError("must be 0 (none) or above (metres)")
        return value

    @field_validator("count")
    @classmethod
    def _count(cls, value: int | None) -> int | None:
        if value is not None and value < 1:
            raise ValueError("must be 1 or more, or None")
        return value

    @field_validator("override", "model")
    @classmethod
    def _pairs(cls, value: Any) -> Any:
        if isinstance(value, np.ndarray) and (value.ndim != 2 or value.shape[1] != 2 or not np.isfinite(value).all()):
            raise ValueError(f"has shape {value.shape}: must be (frame, 2), (y, x) in metres")
        return value

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if isinstance(self.model, str):
            self.sizes()
        return self

    def sizes(self) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        """(steps, spacing, extent), each (y, x). Raises `ValueError` where too little is given, or the pattern is too large."""
        names = ("steps", "spacing", "extent")
        values = {name: getattr(self, name) for name in names}
        known = [name for name in names if values[name] is not None]
        if len(known) < 2:
            raise ValueError(f"give two of steps, spacing and extent; {', '.join(known) or 'none'} is given")
        told = [name for name in known if name in self.model_fields_set]
        if len(known) == 3 and 0 < len(told) < 3:
            # What was given decides; of the defaults, spacing is kept before steps, and extent only where both were given.
            drop = "steps" if "extent" in told and "steps" not in told else "spacing" if "extent" in told else "extent"
            values[drop] = None
        steps, spacing, extent = (
            None if values[name] is None else np.broadcast_to(np.asarray(values[name], float), 2) for name in names
        )
        if steps is None:
            assert extent is not None and spacing is not None
            steps = np.maximum(1, np.rint(extent / spacing))
        elif spacing is None:
            assert extent is not None
            spacing = extent / steps
        elif extent is None:
            extent = steps * spacing
        assert spacing is not None and extent is not None
        if steps.prod() > MAX_FRAMES or (math.pi / 4 * extent / spacing).prod() > MAX_FRAMES:
            raise ValueError(f"steps: {steps.astype(int).tolist()} would be more than {MAX_FRAMES} positions")
        return steps.astype(np.int64), np.asarray(spacing), np.asarray(extent)

    def positions(self, seed: int) -> NDArray[np.float64] | None:
        """Positions (frame, 2), (y, x) in metres; None where nothing says which."""
        if isinstance(self.override, np.ndarray):
            return np.asarray(self.override, np.float64)
        if self.model is None:
            return None
        points = self._pattern() if isinstance(self.model, str) else np.asarray(self.model, np.float64)
        points = points[: self.count] + np.broadcast_to(np.asarray(self.offset, float), 2)
        if self.jitter:
            points = points + generator(seed, "jitter").uniform(-self.jitter, self.jitter, points.shape)
        return np.asarray(points)

    def _pattern(self) -> NDArray[np.float64]:
        steps, spacing, extent = self.sizes()
        if self.model == "raster":
            return raster_scan((int(steps[0]), int(steps[1])), (float(spacing[0]), float(spacing[1])))
        # In units of the spacing, because that of rows may differ from that of columns.
        if self.model == "round":
            unit = round_scan(1.0, int(steps.max()) // 2 + 1)
        else:
            unit = spiral_scan(1.0, float((extent / spacing).max()) * TOLERANCE)
        inside = (np.abs(unit * spacing) <= extent / 2 * TOLERANCE).all(axis=1)
        return np.asarray(unit[inside] * spacing)
