"""What is put in the place of samples that are late: a reading between those of the frames before and after, until the own one
comes."""

from __future__ import annotations

from heapq import heappop, heappush
from itertools import count

import numpy as np
from numpy.typing import NDArray

from ptystream.scan.join import Join
from ptystream.scan.judge import Judge
from ptystream.scan.ledger import DOSE, POSITION, SHUTTER, Ledger

AGAIN_S = 0.25
"""A frame that has no neighbour on one side yet is looked at again after so long, and then after twice the time each time."""
COLUMNS = {"y": ("position", 0), "x": ("position", 1), "z": ("further", 0), "angle": ("further", 1)}
"""Where the ledger keeps a role: name and column of an array; the others have an array of their own."""


class Gaps:
    """Frames of one scan that wait for the samples of one source. Called under the scan's lock."""

    def __init__(self, ledger: Ledger, source: Join, judge: Judge) -> None:
        self.after_s = source.parameters.interpolate_after_s
        """How long a frame waits, seconds; None: for ever."""
        self.guessed: set[int] = set()
        """Records that have a reading that is not their own."""
        self._ledger, self._judge, self._roles = ledger, judge, source.roles
        self._over = source.parameters.interpolate_over
        self._by_time = source.parameters.interpolate == "time"
        self._flag = np.uint8((POSITION if source.positions else 0) | (DOSE if "dose" in source.roles else 0))
        if "shutter" in source.roles:
            self._flag |= SHUTTER
        self._newest = -1
        """Highest number of a frame with a reading of its own: nothing beyond it can lie between two."""
        self._waiting: list[tuple[float, int, float, NDArray[np.int64]]] = []
        self._order = count()

    def came(self, records: NDArray[np.int64], now_s: float) -> None:
        """These frames came."""
        if self.after_s is not None:
            self._wait(now_s, self.after_s, records)

    def told(self, records: NDArray[np.int64]) -> None:
        """These have a reading of their own."""
        if self.after_s is not None and len(records):
            self._newest = max(self._newest, int(self._ledger.index[records].max()))

    def due(self, now_s: float) -> NDArray[np.int64]:
        """Records that have waited long enough, have no reading and lie before one that has; the others wait on."""
        due = [np.zeros(0, np.int64)]
        while self._waiting and self._waiting[0][0] <= now_s:
            _, _, waited, records = heappop(self._waiting)
            records = records[~self._has(records)]
            self._wait(now_s, max(2.0 * waited, AGAIN_S), records)  # those that are filled meanwhile drop out then
            due.append(records[self._ledger.index[records] < self._newest])
        return np.concatenate(due)

    def _wait(self, now_s: float, wait_s: float, records: NDArray[np.int64]) -> None:
        if len(records):
            heappush(self._waiting, (now_s + wait_s, next(self._order), wait_s, records))

    def lacking(self) -> NDArray[np.int64]:
        """The scan is over: records of all frames that came and have no reading of their own."""
        if self.after_s is None:
            return np.zeros(0, np.int64)
        self._waiting.clear()
        came = np.flatnonzero(self._ledger.slot[: self._ledger.length] >= 0)
        return np.union1d(came[~self._has(came)], np.fromiter(self.guessed, np.int64, len(self.guessed)))

    def guess(self, records: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """(those of `records` that lie between frames with a reading, their readings (frame, role)).

        Linear in the frames' time stamps where samples are joined by time, otherwise in their numbers.
        """
        none = np.zeros(0, np.int64), np.zeros((0, len(self._roles)))
        if self._newest < 0 or not len(records):
            return none
        index = self._ledger.index
        low, high = (self._neighbours(index[records], step) for step in (-1, 1))
        between = (low >= 0) & (high >= 0)
        records, low, high = records[between], low[between], high[between]
        at = self._ledger.time_ns if self._by_time else index
        first, own, last = at[low], at[records], at[high]
        near = (index[high] - index[low] - 1 <= self._over) & (first < own) & (own < last)
        records, low, high, first, own, last = (v[near] for v in (records, low, high, first, own, last))
        if not len(records):
            return none
        part = ((own - first) / (last - first))[:, None]
        before, behind = self._readings(low), self._readings(high)
        return records, before + part * (behind - before)

    def _has(self, records: NDArray[np.int64]) -> NDArray[np.bool_]:
        return np.asarray(self._ledger.flags[records] & self._flag == self._flag)

    def _neighbours(self, index: NDArray[np.int64], step: int) -> NDArray[np.int64]:
        """Records of the next frames with a believed reading of their own, -1 where there is none near enough. Shape (frame,)."""
        found, left = np.full(len(index), -1), np.arange(len(index))
        for k in range(1, self._over + 1):
            if not len(left):
                break
            records = self._ledger.records(index[left] + k * step, 0)
            good = records >= 0
            good[good] = self._are_believed(records[good])
            found[left[good]] = records[good]
            left = left[~good]
        return found

    def _are_believed(self, records: NDArray[np.int64]) -> NDArray[np.bool_]:
        own = np.array([record not in self.guessed for record in records.tolist()], np.bool_)
        finite = np.isfinite(self._readings(records)).all(axis=1)
        return np.asarray(own & self._has(records) & ~self._judge.are_refused(records) & finite)

    def _readings(self, records: NDArray[np.int64]) -> NDArray[np.float64]:
        """What is known of frames. Shape (frame, role)."""
        values = np.empty((len(records), len(self._roles)))
        for k, role in enumerate(self._roles):
            name, column = COLUMNS.get(role, (role, None))
            held = getattr(self._ledger, name)[records]
            values[:, k] = held if column is None else held[:, column]
        return values
