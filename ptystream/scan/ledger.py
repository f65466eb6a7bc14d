"""The ledger: one record per frame of which anything is known, and counters that always close.

    received = used + waiting + the sum over the reasons

A frame that came is counted once for every time that it came. Arrivals that never got a record (repetitions, damaged
frames, indices out of range) are counted alone; a record may be excluded later, and taken back.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.publish.snapshot import LEDGER_CODES

log = logging.getLogger(__name__)

PREPARED, POSITION, DOSE, QUEUED, USED, SHUTTER, GUESSED = (np.uint8(1 << bit) for bit in range(7))
"""Flags of a record: the frame lies in its slot; its position is known; its dose; it waits for `take`; it was handed out;
whether the shutter was open is known; what is known is interpolated over samples that are late."""

MAX_REASONS = 200

_COLUMNS: dict[str, tuple[Any, tuple[int, ...], Any]] = {
    "index": (np.int64, (), 0),
    "slot": (np.int64, (), -1),
    "arrival_ns": (np.int64, (), 0),
    "time_ns": (np.int64, (), 0),
    "position": (np.float64, (2,), np.nan),
    "dose": (np.float64, (), np.nan),
    "shutter": (np.float64, (), np.nan),
    "further": (np.float64, (2,), np.nan),
    "flags": (np.uint8, (), 0),
    "reason": (np.uint8, (), 0),
}


class Ledger:
    """Records in growing arrays. Not thread-safe: `PtyScan` holds its lock around every call.

    Whatever is counted under a reason for the first time is named in the log, once.
    """

    index: NDArray[np.int64]
    """The source's number of the frame. Shape (record,), as all; the arrays are longer than `length`."""
    slot: NDArray[np.int64]
    """Slot in the slabs; -1: no frame."""
    arrival_ns: NDArray[np.int64]
    time_ns: NDArray[np.int64]
    """Time stamp of the exposure by the source's clock; 0: none."""
    position: NDArray[np.float64]
    """(y, x) on the sample, NaN while not known. Shape (record, 2)."""
    dose: NDArray[np.float64]
    shutter: NDArray[np.float64]
    """Mean reading of the shutter during the exposure."""
    further: NDArray[np.float64]
    """[z (metres), rocking angle (degrees)] where they are measured, otherwise NaN. Shape (record, 2)."""
    flags: NDArray[np.uint8]
    reason: NDArray[np.uint8]
    """0: none; otherwise see `reasons`."""

    def __init__(self, label: str = "") -> None:
        self.label = label
        self.length = 0
        self.expected = 0
        """Frames that are to come as far as is known; 0: not known."""
        self.ended = False
        self.received = self.decoded = self.paired = self.prepared = self.used = self.distinct = 0
        self.reasons: list[str] = [""]
        self._excluded: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._notes: Counter[str] = Counter()
        self._said: set[str] = set()
        self._of_index: dict[int, int] = {}
        for name, (dtype, tail, _) in _COLUMNS.items():
            setattr(self, name, np.zeros((0, *tail), dtype))

    # ------------------------------------------------------------------ records

    def find(self, index: int) -> int | None:
        """Record of a frame number."""
        return self._of_index.get(index)

    def record(self, index: int, room: int) -> int | None:
        """Record of a frame number, made while there are fewer than `room`."""
        known = self._of_index.get(index)
        if known is None and len(self._of_index) < room:
            known = self._of_index[index] = len(self._of_index)
            self._extend(known + 1)
            self.index[known] = index
        return known

    def records(self, indices: NDArray[np.int64], room: int) -> NDArray[np.int64]:
        """Records of frame numbers, new ones made while there are fewer than `room`; -1 where there is none."""
        found = self._of_index
        numbers = indices.tolist()
        result = [found.get(i, -1) for i in numbers]
        if -1 in result:
            made = [self.record(i, room) for i in numbers]
            result = [-1 if record is None else record for record in made]
        return np.array(result, np.int64)

    def _extend(self, length: int) -> None:
        if length > len(self.index):
            capacity = max(1024, 2 * len(self.index), length)
            for name, (dtype, tail, empty) in _COLUMNS.items():
                grown = np.full((capacity, *tail), empty, dtype)
                grown[: self.length] = getattr(self, name)[: self.length]
                setattr(self, name, grown)
        self.length = length

    # ------------------------------------------------------------------ counters

    def drop(self, reason: str, count: int = 1, detail: object = "") -> None:
        """Count arrivals that are not kept. `detail`, for the log: what was expected and what came."""
        if count:
            reason = self._known(reason)
            self._dropped[reason] += count
            self._say(reason, detail)

    def note(self, name: str, count: int = 1, detail: object = "") -> None:
        """Count something that is not a frame: messages, samples, pixels."""
        if count:
            if name not in self._notes and len(self._notes) >= MAX_REASONS:
                name = "other"
            self._notes[name] += count
            self._say(name, detail)

    def _say(self, reason: str, detail: object) -> None:
        if reason not in self._said:
            self._said.add(reason)
            log.warning("%s: %s (logged once per reason): %s", self.label, reason, detail)

    def exclude(self, records: NDArray[np.int64], reason: str) -> NDArray[np.int64]:
        """Exclude those of `records` that have a frame and no reason yet; returns them. Handed-out ones are taken
        back."""
        chosen: NDArray[np.int64] = records[(self.slot[records] >= 0) & (self.reason[records] == 0)]
        if len(chosen):
            self._excluded[self._known(reason)] += len(chosen)
            self.reason[chosen] = self.reasons.index(self._known(reason))
            self.used -= int(np.count_nonzero(self.flags[chosen] & USED))
            first = chosen[0]
            self._say(reason, f"frame {self.index[first]} at {self.position[first].tolist()}")
        return chosen

    def include(self, records: NDArray[np.int64]) -> None:
        """Take back the exclusion of records; those that were handed out are to be handed out again."""
        for code in np.unique(self.reason[records]).tolist():
            if code:
                self._excluded[self.reasons[code]] -= int(np.count_nonzero(self.reason[records] == code))
        self.reason[records] = 0

    def excluded(self, reason: str) -> NDArray[np.int64]:
        """Records that are out for `reason`."""
        if reason not in self.reasons:
            return np.zeros(0, np.int64)
        return np.flatnonzero(self.reason[: self.length] == self.reasons.index(reason))

    def is_out(self, records: NDArray[np.int64], reasons: Iterable[str]) -> NDArray[np.bool_]:
        """Which of `records` are out for one of `reasons`."""
        codes = [self.reasons.index(r) for r in reasons if r in self.reasons]
        return np.isin(self.reason[records], codes)

    def _known(self, reason: str) -> str:
        if reason not in self.reasons:
            if len(self.reasons) >= MAX_REASONS:
                return self._known("other") if "other" in self.reasons else self.reasons[-1]
            self.reasons.append(reason)
        return reason

    # ------------------------------------------------------------------ views

    @property
    def waiting(self) -> int:
        """Frames that came and are neither used nor given up."""
        return self.received - self.used - self._excluded.total() - self._dropped.total()

    def counts(self) -> dict[str, int]:
        """expected, received, decoded, paired, prepared, used, waiting, frame_missing (once ended), and every reason.

        Takes the same time however many frames are there; may be called from any thread.
        """
        counts = {
            "expected": self.expected,
            "received": self.received,
            "decoded": self.decoded,
            "paired": self.paired,
            "prepared": self.prepared,
            "used": self.used,
            "waiting": self.waiting,
        }
        if self.ended and self.expected:
            counts["frame_missing"] = max(0, self.expected - self.distinct)
        for source in (self._dropped, self._excluded):
            for reason, count in list(source.items()):
                if count:
                    counts[reason] = counts.get(reason, 0) + count
        return counts

    def reason_counts(self) -> dict[str, int]:
        """Frames by reason of not being used; with `used` and `waiting` they add up to `received`."""
        fixed = {"expected", "received", "decoded", "paired", "prepared", "used", "waiting", "frame_missing"}
        return {key: count for key, count in self.counts().items() if key not in fixed}

    def notes(self) -> dict[str, int]:
        """Counts of things that are not frames: rejected messages, repeated and refused samples, negative pixels."""
        return dict(self._notes)

    def map(self) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Every frame whose position is known: positions (frame, 2) and codes (frame,), places in `LEDGER_CODES`.

        A copy, for snapshots; positions without a frame appear as 'missing' when the scan has ended,
        positions that were refused do not appear.
        """
        n = self.length
        slot, position = self.slot[:n], self.position[:n]
        shown = np.isfinite(position).all(axis=1) & ((slot >= 0) | self.ended)
        shown &= ~self.is_out(np.arange(n), ("position_refused",))
        return position[shown].copy(), self.states()[shown].astype(np.float32)

    def states(self, chosen: slice | None = None) -> NDArray[np.uint8]:
        """State of the chosen records (None: of all), as places in `LEDGER_CODES`. Shape (record,); a copy."""
        part = slice(0, self.length) if chosen is None else chosen
        flags = self.flags[part]
        code = np.full(len(flags), LEDGER_CODES.index("received"), np.uint8)
        code[(flags & (PREPARED | POSITION)) == (PREPARED | POSITION)] = LEDGER_CODES.index("paired")
        code[(flags & USED) != 0] = LEDGER_CODES.index("used")
        code[(flags & (USED | GUESSED)) == (USED | GUESSED)] = LEDGER_CODES.index("interpolated")
        code[self.reason[part] != 0] = LEDGER_CODES.index("excluded")
        code[self.slot[part] < 0] = LEDGER_CODES.index("missing")
        return code
