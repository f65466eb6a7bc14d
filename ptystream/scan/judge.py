"""Which positions and doses are believed. Independent of order: the measure is taken again as more become known."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ptystream.scan.parameters import PositionsParameters

CANVAS_BYTES = 1 << 30
"""Canvas (complex64) that a position may ask for."""
SPREADS = 20.0
"""A position may be this many median distances from the median of all."""
FRAME_WIDTHS = 4.0
"""… or this many frame widths, whichever is more."""
SURE = 16
"""Positions from which on the measure is trusted to refuse a correction."""

REFUSED, SETTLING, BEAM_OFF, CLOSED = (np.uint8(1 << bit) for bit in range(4))
REASONS = ((REFUSED, "position_refused"), (SETTLING, "settling"), (CLOSED, "shutter_closed"), (BEAM_OFF, "beam_off"))


class Judge:
    """Verdicts by record. The median and the reach are renewed whenever the number of positions has doubled, and at
    the end."""

    def __init__(
        self,
        pixel: tuple[float, float] | None,
        shape: int | tuple[int, int] | None,
        parameters: PositionsParameters | None,
    ) -> None:
        self.scale(pixel, shape)
        self._fixed = None if parameters is None else parameters.position_limit
        self._settling = None if parameters is None else parameters.spread_limit
        self._median = np.zeros(2)
        self._reach = np.zeros(2)
        self._known = np.zeros(0, np.bool_)
        self._bad = np.zeros(0, np.uint8)
        self._count = 0
        self._measured_at = 0

    def scale(self, pixel: tuple[float, float] | None, shape: int | tuple[int, int] | None) -> None:
        """Object pixel (y, x), None where not known, and pixels of a frame; `again` measures by them."""
        side = 256 if shape is None else shape if isinstance(shape, int) else min(shape)
        self._floor = np.zeros(2) if pixel is None else FRAME_WIDTHS * side * np.asarray(pixel)
        self._most = np.full(2, np.inf) if pixel is None else np.sqrt(CANVAS_BYTES / 8) / 2 * np.asarray(pixel)

    def positions(
        self,
        records: NDArray[np.int64],
        values: NDArray[np.float64],
        spread: NDArray[np.float64],
        everything: NDArray[np.float64],
    ) -> NDArray[np.int64]:
        """Positions of `records` are `values`; `everything` holds those of all records. Returns the records whose
        verdict may have changed."""
        self._extend(len(everything))
        self._count += int(np.count_nonzero(~self._known[records]))
        self._known[records] = True
        if self._settling is not None:
            self._mark(records, SETTLING, spread > self._settling)
        if self._count >= 2 * self._measured_at:
            return np.union1d(records, self.again(everything, self._known[: len(everything)]))
        self._mark(records, REFUSED, self._far(values))
        return records

    def again(self, everything: NDArray[np.float64], known: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Measure anew over all positions; returns the records whose verdict changed."""
        records = np.flatnonzero(known & np.isfinite(everything).all(axis=1))
        self._extend(len(everything))
        self._measured_at = max(1, self._count)
        if len(records):
            values = everything[records]
            with np.errstate(over="ignore"):
                self._median = np.median(values, axis=0)
                distance = np.hypot(*(values - self._median).T)
            reach = np.maximum(SPREADS * float(np.median(distance)), self._floor)
            self._reach = np.where(np.isfinite(reach) & (reach > 0), np.minimum(reach, self._most), self._most)
            if self._fixed is not None:
                self._reach = np.full(2, self._fixed)
        records = np.flatnonzero(known)
        before = self._bad[records] & REFUSED != 0
        now = self._far(everything[records])
        self._mark(records, REFUSED, now)
        changed: NDArray[np.int64] = records[before != now]
        return changed

    def beam_off(self, records: NDArray[np.int64], off: NDArray[np.bool_]) -> None:
        """Which of `records` had no beam."""
        self._dark(records, BEAM_OFF, off)

    def closed(self, records: NDArray[np.int64], closed: NDArray[np.bool_]) -> None:
        """For which of `records` the shutter was closed."""
        self._dark(records, CLOSED, closed)

    def are_refused(self, records: NDArray[np.int64]) -> NDArray[np.bool_]:
        """For each of these whether its position is not believed."""
        self._extend(int(records.max(initial=-1)) + 1)
        return np.asarray(self._bad[records] & REFUSED != 0)

    def _dark(self, records: NDArray[np.int64], bit: np.uint8, dark: NDArray[np.bool_]) -> None:
        if len(records):
            self._extend(int(records.max()) + 1)
            self._mark(records, bit, dark)

    def verdicts(self, records: NDArray[np.int64]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """(reason, which of `records` it holds against), in order of precedence."""
        if len(records):
            self._extend(int(records.max()) + 1)
        bad = self._bad[records]
        for bit, reason in REASONS:
            yield reason, bad & bit != 0

    def believes(self, records: NDArray[np.int64]) -> bool:
        """Whether there is nothing against any of `records`."""
        self._extend(int(records.max()) + 1 if len(records) else 0)
        return not self._bad[records].any()

    def refuses_correction(self, old: NDArray[np.float64], new: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Where a believed position is to be replaced by one that is not. Shape (position,)."""
        if self._measured_at < SURE:
            return np.asarray(np.isfinite(old).all(axis=1) & ~np.isfinite(new).all(axis=1))
        return self._far(new) & ~self._far(old)

    def _far(self, values: NDArray[np.float64]) -> NDArray[np.bool_]:
        with np.errstate(invalid="ignore", over="ignore"):
            near = np.asarray((np.abs(values - self._median) <= self._reach).all(axis=1))
        return ~near

    def _mark(self, records: NDArray[np.int64], bit: np.uint8, bad: NDArray[np.bool_]) -> None:
        self._bad[records] = np.where(bad, self._bad[records] | bit, self._bad[records] & ~bit)

    def _extend(self, length: int) -> None:
        if length > len(self._bad):
            capacity = max(1024, 2 * len(self._bad), length)
            for name in ("_known", "_bad"):
                old = getattr(self, name)
                grown = np.zeros(capacity, old.dtype)
                grown[: len(old)] = old
                setattr(self, name, grown)
