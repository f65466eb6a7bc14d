"""A run: one reconstruction, from its first frame to its result. Carries out schedule entries and keeps their history.

Live, the loop decides the entries; in a verification they are read from a result. Both end in `Run.apply`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.engine import Context, Engine, Progress
from ptystream.model.scan_model import ScanModel
from ptystream.publish.snapshot import Image, Snapshot
from ptystream.reconstruction import OBJECT, PodTable, Reconstruction
from ptystream.scan.block import Block, Revision
from ptystream.scan.ptyscan import PtyScan
from ptystream.schedule import Entry, Schedule, from_runs, to_runs

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Scan:
    """One entry of `scans`: its buffer, its model, and which rows of the pod table its frames became."""

    label: str
    number: int
    buffer: PtyScan
    model: ScanModel
    waiting: list[Block] = field(default_factory=list)
    """Blocks taken from the buffer before the run could start."""
    ended: bool = False
    slots: list[NDArray[np.int64]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class EngineEntry:
    """One entry of `engines`, validated."""

    label: str
    name: str
    parameters: Any
    make: Callable[[Any], Engine]


class Run:
    """One reconstruction. Not thread-safe: it belongs to the engine's thread."""

    def __init__(
        self,
        name: str,
        scans: Sequence[Scan],
        engines: Sequence[EngineEntry],
        context: Context,
        decisions: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.name = name
        self.scans = {scan.label: scan for scan in scans}
        self.engines = list(engines)
        self.context = context
        self.decisions: dict[str, dict[str, Any]] = {k: dict(v) for k, v in (decisions or {}).items()}
        self.schedule = Schedule()
        self.reconstruction: Reconstruction | None = None
        self.engine: Engine | None = None
        self.engine_entry: EngineEntry | None = None
        self.last: Reconstruction | None = None
        """The last iterate, where the result is a mean of iterates."""
        self.state = "waiting"
        self.iterations = 0
        self.iter_info: list[dict[str, Any]] = []
        self.errors: list[NDArray[np.float64]] = []
        self.misfit: list[NDArray[np.float64]] = []
        self.rows_used = 0
        """Rows of the pod table that were there at the last iteration."""
        self.newest_arrival_ns: int | None = None
        """Arrival of the newest frame that an iteration has used."""
        self.taken_ns = self.used_ns = 0
        """When that frame was taken from its scan, and when the iteration that used it ended."""
        self.started = time.time()
        self._newest_taken_ns: int | None = None
        self._taken_ns = 0
        self._snapshots = 0
        self._withdrawn: list[int] = []
        """Rows that no engine may visit any more."""
        self._coverage: dict[str, NDArray[np.float32]] = {}
        self.averaging = False
        """Whether the mean of the iterates is being kept."""

    # ------------------------------------------------------------------ entries

    def apply(self, entry: Entry, blocks: Mapping[str, Block] | None = None) -> Progress | None:
        """Carry out one schedule entry and add it to the schedule.

        `blocks` gives the frames of a 'take' (live); without it they are fetched from the scan's buffer by index.
        Raises `KeyError` for an entry that names an unknown scan or engine.
        """
        handler = getattr(self, f"_apply_{entry['do']}", None)
        if handler is None:
            raise KeyError(f"schedule entry 'do: {entry['do']}' is unknown to this version")
        progress: Progress | None = handler(entry, blocks or {})
        self.schedule.append(entry)
        return progress

    def _apply_decide(self, entry: Entry, blocks: Mapping[str, Block]) -> None:
        self.decisions[entry["scan"]] = dict(entry["decisions"])

    def _apply_take(self, entry: Entry, blocks: Mapping[str, Block]) -> None:
        scan = self.scans[entry["scan"]]
        block = blocks.get(scan.label)
        if block is None:
            block = scan.buffer.take_exactly(from_runs(entry["indices"]), timeout_s=60.0)
        if self.reconstruction is None:
            self.reconstruction = Reconstruction({}, {}, PodTable(scan.model.pods))
        if scan.label not in self.decisions or not scan.slots:
            decided = scan.model.start(self.reconstruction, block, scan.buffer.frames, self.decisions.get(scan.label))
            if self.decisions.get(scan.label) != decided:
                self.apply({"do": "decide", "scan": scan.label, "decisions": decided})
        rows, refused = scan.model.place(self.reconstruction, block)
        scan.buffer.refuse(refused, "off_canvas")
        if len(refused):
            kept = ~np.isin(block.slots, refused)
            block = select(block, kept)
        scan.slots.append(np.stack([rows, block.slots], axis=1))
        if len(block):
            newest = int(block.arrival_ns.max())
            self._newest_taken_ns = max(newest, self._newest_taken_ns or newest)
            self._taken_ns = time.time_ns()
        if self.engine is not None:
            self.engine.extend(rows)

    def _apply_revise(self, entry: Entry, blocks: Mapping[str, Block]) -> None:
        scan = self.scans[entry["scan"]]
        slot = scan.buffer.slot_of(int(entry["index"]))
        if slot is None or self.reconstruction is None:
            return
        what = entry["what"]
        if what == "position":
            rows = scan.model.revise(self.reconstruction, slot, tuple(entry["value"]))
        else:
            rows = self.rows_of(scan, slot)
        if what == "withdrawn":
            self._withdrawn.extend(rows.tolist())
        if self.engine is not None and len(rows):
            self.engine.revise(rows, what)

    def _apply_engine(self, entry: Entry, blocks: Mapping[str, Block]) -> None:
        assert self.reconstruction is not None, "an engine starts after the first frames"
        chosen = next(e for e in self.engines if e.label == entry["label"])
        decided = [self.decisions[label] for label in self.scans if label in self.decisions]
        context = replace(
            self.context,
            mean_photons=float(np.mean([d["mean_photons"] for d in decided])),
            brightest_photons=max(float(d["brightest_photons"]) for d in decided),
        )
        self.engine_entry, self.engine = chosen, chosen.make(chosen.parameters)
        self.engine.start(self.reconstruction, {scan.number: scan.buffer.frames for scan in self.scans.values()}, context)
        if self._withdrawn:
            self.engine.revise(np.array(self._withdrawn, np.int64), "withdrawn")
        self.averaging, self.last = False, None
        self.state = "running"

    def _apply_iterate(self, entry: Entry, blocks: Mapping[str, Block]) -> Progress:
        assert self.engine is not None and self.engine_entry is not None and self.reconstruction is not None
        rows = None if entry["rows"] is None else from_runs(entry["rows"])
        count = int(entry["iterations"])
        started = time.perf_counter()
        progress = self.engine.iterate(count, rows)
        duration = time.perf_counter() - started
        self.iterations += count
        self.rows_used = self.reconstruction.pods.length
        if self.newest_arrival_ns != self._newest_taken_ns:
            self.newest_arrival_ns = self._newest_taken_ns
            self.taken_ns, self.used_ns = self._taken_ns, time.time_ns()
        self.errors.append(progress.errors)
        self.misfit.append(progress.misfit)
        self.iter_info.append(
            {
                "iteration": progress.iteration,
                "iterations": self.iterations,
                "numiter": int(self.engine_entry.parameters.numiter),
                "engine": self.engine_entry.name,
                "duration": duration,
                "error": progress.errors[-1],
                "frames": progress.frames,
                "count": count,
            }
        )
        for note in progress.notes:
            log.info("%s: %s", self.name, note)
        return progress

    def _apply_average(self, entry: Entry, blocks: Mapping[str, Block]) -> None:
        assert self.engine is not None
        self.engine.average()
        self.averaging = True

    def _apply_restart(self, entry: Entry, blocks: Mapping[str, Block]) -> None:
        assert self.engine is not None
        self.engine.restart()

    def _apply_finish(self, entry: Entry, blocks: Mapping[str, Block]) -> None:
        assert self.engine is not None
        self.last = self.engine.snapshot() if self.averaging else None
        self._see_coverage()
        self.engine.finish()
        self.engine = None

    def _apply_end(self, entry: Entry, blocks: Mapping[str, Block]) -> None:
        self.scans[entry["scan"]].ended = True

    # ------------------------------------------------------------------ what the loop asks

    def take_entry(self, scan: Scan, block: Block) -> Entry:
        """The entry that says that `block` is taken."""
        return {"do": "take", "scan": scan.label, "indices": to_runs(block.indices)}

    def revise_entry(self, scan: Scan, revision: Revision) -> Entry:
        """The entry for a change of a frame that was handed out."""
        index = scan.buffer.index_of(revision.slot)
        return {"do": "revise", "scan": scan.label, "index": index, "what": revision.what, "value": revision.value}

    def rows_of(self, scan: Scan, slot: int) -> NDArray[np.int64]:
        """Rows of the pod table that show the frame in `slot`: the last ones, where it was withdrawn and has come back."""
        for table in reversed(scan.slots):
            rows = table[table[:, 1] == slot, 0]
            if len(rows):
                return np.asarray(rows)
        return np.zeros(0, np.int64)

    @property
    def frames(self) -> int:
        """Frames in the pod table."""
        return 0 if self.reconstruction is None else self.reconstruction.pods.length

    @property
    def complete(self) -> bool:
        """Whether no further frame will come."""
        return all(scan.ended for scan in self.scans.values())

    def history(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Errors and misfit of every iteration so far, each of shape (iteration, 3)."""
        nothing = np.zeros((0, 3))
        return (
            np.concatenate(self.errors) if self.errors else nothing,
            np.concatenate(self.misfit) if self.misfit else nothing,
        )

    def snapshot(self, rates: Mapping[str, float]) -> Snapshot:
        """Copy out what viewers see."""
        now = time.time_ns()
        probes: dict[str, Image] = {}
        objects: dict[str, Image] = {}
        coverage: dict[str, NDArray[np.float32]] = {}
        positions = np.zeros((0, 2), np.float32)
        if self.reconstruction is not None:
            if self.engine is not None:
                now_held = self.engine.snapshot(("probe", "object"))
                self._see_coverage()
            else:
                now_held = self.reconstruction.copy()
            for name, storage in now_held.probes.items():
                probes[name] = Image(storage.data, storage.pixel_size_m, storage.offset)
            for name, storage in now_held.objects.items():
                if name in self._coverage:
                    coverage[name] = self._coverage[name]
                objects[name] = Image(storage.data, storage.pixel_size_m, storage.offset)
            pods = self.reconstruction.pods
            corners = pods.address[:, 0, OBJECT + 2 : OBJECT + 4].astype(np.float32) + pods.remainder[:, 0]
            half = np.array([s // 2 for s in next(iter(now_held.probes.values())).shape], np.float32)
            positions = corners + half
        errors, misfit = self.history()
        self._snapshots += 1
        return Snapshot(
            run=self.name,
            number=self._snapshots - 1,
            created_ns=now,
            engine=self.engine_entry.name if self.engine_entry else "",
            iteration=self.iterations,
            state=self.state,
            probe=probes,
            object=objects,
            coverage=coverage,
            positions=positions,
            errors=errors,
            misfit=misfit,
            ledger=self.ledger(),
            ledger_map=self.ledger_map(),
            newest_frame_ns=self.newest_arrival_ns,
            rates=dict(rates),
        )

    def _see_coverage(self) -> None:
        assert self.engine is not None
        for name, storage in self.engine.snapshot(("coverage",)).objects.items():
            lit = np.abs(storage.data[0])
            self._coverage[name] = (lit / max(float(lit.max()), 1e-30)).astype(np.float32)

    def ledger(self) -> dict[str, int]:
        """Counts of all scans together."""
        total: dict[str, int] = {}
        for scan in self.scans.values():
            for key, count in scan.buffer.ledger.counts().items():
                total[key] = total.get(key, 0) + int(count)
        return total

    def notes(self) -> dict[str, int]:
        """What all scans counted that is no frame, as of `Ledger.notes`."""
        total: dict[str, int] = {}
        for scan in self.scans.values():
            for key, count in scan.buffer.ledger.notes().items():
                total[key] = total.get(key, 0) + int(count)
        return total

    def ledger_map(self) -> NDArray[np.float32]:
        """[y, x, code] of every frame with a known position, lattice pixels. Shape (frame, 3)."""
        parts = []
        for scan in self.scans.values():
            positions, codes = scan.buffer.map()
            pixel = scan.model.to_pixels(positions)
            parts.append(np.concatenate([pixel, codes[:, None]], axis=1))
        return np.concatenate(parts).astype(np.float32) if parts else np.zeros((0, 3), np.float32)


def select(block: Block, chosen: NDArray[np.bool_]) -> Block:
    """The chosen frames of a block."""
    return Block(
        block.scan,
        block.slots[chosen],
        block.indices[chosen],
        block.positions_m[chosen],
        block.dose[chosen],
        block.arrival_ns[chosen],
    )


def join(blocks: Sequence[Block]) -> Block:
    """Several blocks of one scan as one."""
    return Block(
        blocks[0].scan,
        *(
            np.concatenate([getattr(b, name) for b in blocks])
            for name in ("slots", "indices", "positions_m", "dose", "arrival_ns")
        ),
    )


def revised(block: Block, revision: Revision) -> Block:
    """The block after a revision of one of its frames (itself, where the frame is not in it)."""
    here = block.slots == revision.slot
    if not here.any():
        return block
    if revision.what == "withdrawn":
        return select(block, ~here)
    if revision.what == "position" and revision.value is not None:
        positions = block.positions_m.copy()
        positions[here] = revision.value
        return replace(block, positions_m=positions)
    return block
