"""The ordered log of everything the loop did between iterations: enough, with recording and configuration, to do it again.

An entry is a plain mapping with the key 'do'. The live loop decides entries and `Run.apply` carries them out; a
verification reads the same entries from a result and applies them: one mechanism, two sources.

======== ================================================== ==========================================================
do       further keys                                       meaning
======== ================================================== ==========================================================
decide   scan, decisions                                    values taken from the data once (centre, photons, fill…)
take     scan, indices                                      frames, in the order in which the engine got them
revise   scan, index, what, value, before                   a frame that was already in, or the scan's mask, changed
engine   label, name, parameters                            an engine starts
iterate  iterations, rows (or None)                         iterations over these rows of the pod table (None: all)
average  –                                                  the mean of the iterates begins
steer    path, value, before, who, time_ns                   a parameter changed on request
resume   label                                              the engine starts again from probe, object and its state
recut    scan, parameters, before, decisions, anew, who,…   frames are cut another way, or moved, on request
append   label, name, parameters, place, who, time_ns       an engine was put among those to come, on request
restart  who, time_ns (on request)                          the engine took its starting probe again
finish   who, time_ns (on request)                          the engine ended and wrote its result
end      scan, reason                                       the scan was complete; with the last the engine is told so
======== ================================================== ==========================================================

Where an acquisition is fed again, positions and doses are from the start what they became; `Schedule.to_repeat` tells
each 'take' what they were then.
Index lists are kept as runs [[first, count], …], so that an hour of scanning stays small.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Entry: TypeAlias = Mapping[str, Any]


def to_runs(numbers: NDArray[np.int64]) -> list[list[int]]:
    """Consecutive numbers as [[first, count], …], order kept."""
    if len(numbers) == 0:
        return []
    breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
    starts = np.concatenate(([0], breaks))
    counts = np.diff(np.concatenate((starts, [len(numbers)])))
    return [[int(numbers[s]), int(c)] for s, c in zip(starts, counts, strict=True)]


def from_runs(runs: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """Inverse of `to_runs`."""
    if not runs:
        return np.zeros(0, np.int64)
    return np.concatenate([np.arange(first, first + count, dtype=np.int64) for first, count in runs])


def steered(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Every parameter that was changed on request, those of how frames are cut and where they lie too: who, path, before, value,
    time_ns."""
    found: list[dict[str, Any]] = []
    for entry in entries:
        told = {"who": entry.get("who"), "time_ns": entry.get("time_ns", 0)}
        if entry["do"] == "steer":
            found.append({"path": entry.get("path"), "before": entry.get("before"), "value": entry.get("value"), **told})
        elif entry["do"] == "recut":
            for name, value in entry["parameters"].items():
                path = f"scans.{entry['scan']}.data.{name}"
                found.append({"path": path, "before": entry["before"].get(name), "value": value, **told})
    return found


class Schedule:
    """Entries in order. Equal neighbouring 'iterate' entries are merged by a count of repetitions."""

    def __init__(self, entries: Sequence[Entry] = ()) -> None:
        self._entries: list[dict[str, Any]] = [dict(entry) for entry in entries]

    def append(self, entry: Entry) -> None:
        """Add what was just done."""
        last = self._entries[-1] if self._entries else None
        if last is not None and entry["do"] == "iterate" and {**last, "times": None} == {**entry, "times": None}:
            last["times"] = last.get("times", 1) + 1
            return
        self._entries.append(dict(entry))

    def __iter__(self) -> Iterator[Entry]:
        """Every entry as it was applied: merged ones come out one by one."""
        for entry in self._entries:
            single = {key: value for key, value in entry.items() if key != "times"}
            for _ in range(entry.get("times", 1)):
                yield single

    def to_repeat(self) -> list[dict[str, Any]]:
        """Every entry, and in each 'take' under 'then' what the frames had that were revised afterwards: what → [[index,
        value], …]."""
        entries = [dict(entry) for entry in self]
        later: dict[tuple[str, int, str], Any] = {}
        for entry in reversed(entries):
            if entry["do"] == "revise" and entry["index"] is not None:
                for what, value in entry["before"].items():
                    later[entry["scan"], entry["index"], what] = value
            elif entry["do"] == "recut" and "offset" in entry["parameters"]:
                moved = np.subtract(entry["parameters"]["offset"], entry["before"]["offset"])
                for key in [key for key in later if key[0] == entry["scan"] and key[2] == "position"]:
                    later[key] = np.subtract(later[key], moved).tolist()
            elif entry["do"] == "take":
                then: dict[str, list[Any]] = {}
                for index in from_runs(entry["indices"]).tolist():
                    for what in ("position", "dose"):
                        if (value := later.pop((entry["scan"], index, what), None)) is not None:
                            then.setdefault(what, []).append([index, value])
                if then:
                    entry["then"] = then
        return entries

    def __len__(self) -> int:
        return sum(entry.get("times", 1) for entry in self._entries)

    def to_list(self) -> list[dict[str, Any]]:
        """For files: plain lists, numbers and text."""
        return [dict(entry) for entry in self._entries]

    def frames(self, scan: str) -> NDArray[np.int64]:
        """Indices of the scan's frames in the order in which they were taken."""
        parts = [from_runs(e["indices"]) for e in self._entries if e["do"] == "take" and e["scan"] == scan]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)
