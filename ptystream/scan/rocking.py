"""Rocking curves: frames at one position of the beam, one per angle, that together are one three-dimensional measurement."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from ptystream.scan.block import Block, Revision
from ptystream.scan.cut import Cut, CutError
from ptystream.scan.ledger import Ledger
from ptystream.scan.ptyscan import PtyScan
from ptystream.scan.slabs import Slabs

INCOMPLETE = "rocking_incomplete"
"""Reason of frames whose rocking curve lacks others when the scan is over."""
NO_ANGLE = "angle_missing"
"""Reason of frames without a rocking angle."""


class RockingScan(PtyScan):
    """A `PtyScan` whose blocks hold rocking curves: frames wait until all angles of their position are there.

    `angles` frames within `tolerance_m` of each other (each axis) whose angles follow one another in steps of `step_deg`; a
    position may be scanned more than once. A block's slot is the number of a curve, its index that of the frame at the lowest
    angle, its position and dose the frames' means. Slabs hold curves (q3 · q1, q2), rows turned upwards about zero frequency.
    The ledger counts frames; of a curve that lacks one the others are 'rocking_incomplete' when the scan is over.
    """

    def __init__(self, *arguments: Any, angles: int, step_deg: float, tolerance_m: float, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._group, self._step, self._tolerance = angles, step_deg, tolerance_m
        self._members: list[NDArray[np.int64]] = []
        """Records of each curve, by angle."""
        self._curve_of: dict[int, int] = {}
        """Curve of each record that was handed out and is held."""
        self._curves: Slabs | None = None

    @property
    def frames(self) -> Slabs:
        """The curves. Raises `RuntimeError` before the first block."""
        if self._curves is None:
            single = super().frames
            side, width = single.shape
            made = Slabs((self._group * side, width), single.dtype, np.ones((1, 1), np.uint8), budget=self._intake.budget)
            self._curves = made
            self._lay_mask()
        return self._curves

    def mask(self, pixels: Any) -> None:
        """See `PtyScan.mask`; pixels are those of a frame, before its rows are turned."""
        with self._condition:
            super().mask(pixels)
            if self._curves is not None:
                self._lay_mask()

    def _lay_mask(self) -> None:
        assert self._curves is not None and self._intake.slabs is not None
        self._curves.mask = np.tile(upwards(self._intake.slabs.mask), (self._group, 1))

    # ------------------------------------------------------------------ handing out

    def _together(self, ready: NDArray[np.int64], final: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        whole, rest = complete(self.ledger, ready, self._group, self._step, self._tolerance)
        if len(whole):
            wanted = len(self._members) + len(whole) // self._group
            if (room := self.frames.reserve(wanted)) < wanted:
                self._fill()
                beyond = max(room - len(self._members), 0) * self._group
                self.ledger.exclude(whole[beyond:], "memory_limit")
                whole = whole[:beyond]
        if final and len(rest):
            blind = np.isnan(self.ledger.further[rest, 1])
            self.ledger.exclude(rest[blind], NO_ANGLE)
            self.ledger.exclude(rest[~blind], INCOMPLETE)
        return whole, rest

    def _hand_out(self, records: NDArray[np.int64]) -> Block:
        """Curves of `angles` records each."""
        block, n = super()._hand_out(records), self._group
        count, first = len(records) // n, len(self._members)
        slabs, single, ledger = self.frames, super().frames, self.ledger
        slabs.require(first + count)
        order = np.fft.ifftshift(np.arange(n))
        for curve, members in enumerate(records.reshape(count, n), first):
            room = slabs.row(curve).reshape(n, *single.shape)
            for plane, slot in zip(room, ledger.slot[members[order]].tolist(), strict=True):
                plane[:] = upwards(single.slab(slot // single.slab_frames)[slot % single.slab_frames])
            self._members.append(members)
            self._curve_of.update(dict.fromkeys(members.tolist(), curve))
        place, further = self._places(records.reshape(count, n))
        return Block(
            self.label,
            np.arange(first, first + count),
            block.indices[::n],
            place,
            block.dose.reshape(count, n).mean(axis=1),
            block.arrival_ns.reshape(count, n).max(axis=1, initial=0),
            further,
        )

    def _places(self, members: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean positions (curve, 2) and (z, angle) (curve, 2) of curves; z that nobody measures is 0."""
        further = self.ledger.further[members].mean(axis=1)
        further[:, 0] = np.nan_to_num(further[:, 0])
        return self.ledger.position[members].mean(axis=1), further

    def _await(self, indices: NDArray[np.int64], timeout_s: float) -> NDArray[np.int64]:
        """The frames of the curves whose lowest angles have these numbers, out by now or not."""
        deadline, ledger, n = time.monotonic() + timeout_s, self.ledger, self._group
        while True:
            there = np.flatnonzero(self._pairing.is_there(np.arange(ledger.length)))
            there = there[np.argsort(ledger.slot[there], kind="stable")]
            curves = complete(ledger, there, n, self._step, self._tolerance)[0].reshape(-1, n)
            leads = {int(ledger.index[curve[0]]): k for k, curve in enumerate(curves)}
            lacking = [i for i in indices.tolist() if i not in leads]
            if not lacking and self._decide_dose(curves.ravel(), self.ended is not None):
                return np.asarray(curves[[leads[i] for i in indices.tolist()]].ravel(), np.int64)
            left = deadline - time.monotonic()
            if left <= 0 or not self._condition.wait(left):
                what = f"the rocking curve of frame {lacking[0]}" if lacking else "the dose median"
                raise TimeoutError(f"{self.label}: {what} did not come within {timeout_s:g} s")

    # ------------------------------------------------------------------ what changes afterwards

    def recut(self, changes: Mapping[str, Any]) -> Cut | None:
        """See `PtyScan.recut`."""
        raise CutError("frames of rocking curves are not cut again, and curves are not moved")

    def revisions(self) -> list[Revision]:
        """See `PtyScan.revisions`: of the curves. One that loses a frame is withdrawn, and its others wait for another."""
        with self._condition:
            told: list[Revision] = []
            for revision in super().revisions():
                if revision.slot is None:
                    told.append(revision)
                    continue
                curve = self._curve_of.get(self._record_of_slot[revision.slot])
                if curve is None:
                    continue
                members = self._members[curve]
                if revision.what == "withdrawn":
                    told.append(Revision(curve, "withdrawn"))
                    self._let_go(members, INCOMPLETE)
                    self._pairing.retry(INCOMPLETE)
                elif revision.what == "position":
                    y, x = self._places(members[None])[0][0].tolist()
                    told.append(Revision(curve, "position", (y, x)))
                else:
                    dose = float(self.ledger.dose[members].mean()) / self._intake.decisions["dose_median"]
                    told.append(Revision(curve, revision.what, (dose,)))
            return told

    def refuse(self, slots: NDArray[np.int64], reason: str, positions: NDArray[np.float64]) -> None:
        """See `PtyScan.refuse`: all frames of these curves."""
        with self._condition:
            for slot in np.asarray(slots).tolist():
                self._let_go(self._members[slot], reason)

    def _let_go(self, members: NDArray[np.int64], reason: str) -> None:
        self.ledger.exclude(members, reason)
        for record in members.tolist():
            self._curve_of.pop(record, None)

    def are_out(self, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether a frame of these curves is excluded by now."""
        with self._condition:
            out = [bool(self.ledger.reason[self._members[slot]].any()) for slot in np.asarray(slots).tolist()]
            return np.array(out, np.bool_)

    def slot_of(self, index: int) -> int | None:
        """Curve that a frame number is held in."""
        with self._condition:
            record = self.ledger.find(index)
            return None if record is None else self._curve_of.get(record)

    def plane_of(self, index: int) -> int | None:
        """See `PtyScan.plane_of`: along q3 of its curve."""
        with self._condition:
            record = self.ledger.find(index)
            curve = None if record is None else self._curve_of.get(record)
            if curve is None:
                return None
            at = int(np.flatnonzero(self._members[curve] == record)[0])
            return int(np.fft.ifftshift(np.arange(self._group)).tolist().index(at))

    def index_of(self, slot: int) -> int:
        """Number of the frame at a curve's lowest angle."""
        with self._condition:
            return int(self.ledger.index[self._members[slot][0]])

    def release(self) -> None:
        """Forget frames and curves."""
        super().release()
        if self._curves is not None:
            self._curves.trim()
        self._curves = None


def upwards(frame: NDArray[Any]) -> NDArray[Any]:
    """A frame (y, x) with rows counted upwards about zero frequency at [0, 0]."""
    return np.roll(frame[::-1], 1, axis=0)


def complete(
    ledger: Ledger, records: NDArray[np.int64], angles: int, step_deg: float, tolerance_m: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(records of whole curves, curve after curve and by angle; the others)."""
    seen = records[~np.isnan(ledger.further[records, 1])]
    if len(seen) < angles:
        return seen[:0], records
    places = np.column_stack([ledger.position[seen], np.nan_to_num(ledger.further[seen, 0])])
    pairs = cKDTree(places).query_pairs(tolerance_m, p=np.inf, output_type="ndarray")
    links = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(seen), len(seen)))
    _, group = connected_components(links, directed=False)
    found = []
    for number in dict.fromkeys(group.tolist()):
        members = seen[group == number]
        if len(members) >= angles:
            found += _curves(members, ledger.further[members, 1], angles, step_deg)
    whole = np.concatenate(found) if found else seen[:0]
    return whole, records[~np.isin(records, whole)]


def _curves(members: NDArray[np.int64], angle: NDArray[np.float64], count: int, step: float) -> list[NDArray[np.int64]]:
    """Curves among frames at one position, in the order in which they came; each angle once in a curve."""
    bins = np.rint((angle - angle.min()) / step).astype(int)
    turn = np.array([np.count_nonzero(bins[:k] == b) for k, b in enumerate(bins)])
    found = []
    for number in range(int(turn.max()) + 1):
        here = np.flatnonzero(turn == number)
        here = here[np.argsort(bins[here])]
        runs = np.split(here, np.flatnonzero(np.diff(bins[here]) != 1) + 1)
        found += [members[run[:count]] for run in runs if len(run) >= count]
    return found
