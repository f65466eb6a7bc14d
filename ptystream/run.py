"""A run: one reconstruction, from its first frame to its result. Carries out schedule entries and keeps their history.

Live, the loop decides the entries; in a verification they are read from a result. Both end in `Run.apply`.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.checkpoint import Checkpoint
from ptystream.engine import Context, Engine, Progress, headline
from ptystream.model.scan_model import ScanModel, SharingError
from ptystream.publish.snapshot import Image, Snapshot
from ptystream.reconstruction import COLUMN, OBJECT, PROBE, ROW, PodTable, Reconstruction, Volume
from ptystream.scan.block import Block, FrameStore, Revision
from ptystream.scan.ptyscan import PtyScan
from ptystream.scan.series import Series
from ptystream.schedule import Entry, Schedule, from_runs, to_runs
from ptystream.stopwatch import Stopwatch
from ptystream.verbosity import INSPECT

log = logging.getLogger(__name__)

PART_OF = {
    "take": "data_load",
    "decide": "data_load",
    "end": "data_load",
    "iterate": "engine_iterate",
    "finish": "engine_finalize",
}
"""Which part of the benchmark a schedule entry is; others make an engine ready."""


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
    taken: list[Block] = field(default_factory=list)
    """Blocks in the pod table, with what is in force for each frame."""
    rows: list[int] = field(default_factory=list)
    """First row of each of them."""
    frames: int = 0
    """Frames in the pod table that are not withdrawn."""

    def known(self) -> dict[str, NDArray[np.float64]]:
        """'position' (frame, 2) and 'dose' (frame,) in force for the frames in the pod table, in their order."""
        return {
            "position": np.concatenate([np.zeros((0, 2)), *(block.positions_m for block in self.taken)]),
            "dose": np.concatenate([np.zeros(0), *(block.dose for block in self.taken)]),
        }

    def know(self, known: Mapping[str, NDArray[np.float64]]) -> None:
        """Put what `known` gave in force."""
        first = 0
        for block in self.taken:
            rows = slice(first, first + len(block))
            block.positions_m[...], block.dose[...] = known["position"][rows], known["dose"][rows]
            first = rows.stop

    def at(self, row: int) -> tuple[Block, int]:
        """The block that a row of the pod table came with, and its place in it."""
        number = bisect_right(self.rows, row) - 1
        return self.taken[number], row - self.rows[number]


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
        self.acquisitions: dict[str, tuple[str, str, int]] = {}
        """Scan → (label of the scan whose sources sent it, key, turn) of those whose frames it has."""
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
        self.local: NDArray[np.float64] | None = None
        """Errors of every row in the last iteration, where an engine records them."""
        self.intensities: NDArray[np.float64] | None = None
        """Factor on the modelled intensities of every row, as the last engine that fits it has left it."""
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
        self._stores: dict[int, FrameStore] = {}
        """Slabs by number of the scan; a scan enters with its first block."""
        self._withdrawn: set[int] = set()
        """Rows that no engine may visit any more."""
        self._coverage: dict[str, NDArray[np.float32]] = {}
        self.averaging = False
        """Whether the mean of the iterates is being kept."""
        self.stopwatch = Stopwatch()
        """Where the time of the engine's thread goes."""
        self._resumed: Mapping[str, Any] | None = None
        """State of the engine in the checkpoint that the run goes on from."""

    # ------------------------------------------------------------------ entries

    def apply(self, entry: Entry, blocks: Mapping[str, Block] | None = None) -> Progress | None:
        """Carry out one schedule entry and add it to the schedule.

        `blocks` gives the frames of a 'take' (live); without it they are fetched from the scan's buffer by index.
        Raises `KeyError` for an entry that names an unknown scan or engine.
        """
        handler = getattr(self, f"_apply_{entry['do']}", None)
        if handler is None:
            raise KeyError(f"schedule entry 'do: {entry['do']}' is unknown to this version")
        done = dict(entry)
        with self.stopwatch.measure(PART_OF.get(entry["do"], "engine_prepare")):
            progress: Progress | None = handler(done, blocks or {})
        if done:
            self.schedule.append(done)
        return progress

    # A handler completes its entry with what only carrying it out has shown, or empties it where nothing was to be done.

    def _apply_decide(self, entry: dict[str, Any], blocks: Mapping[str, Block]) -> None:
        self.decisions[entry["scan"]] = dict(entry["decisions"])

    def _apply_take(self, entry: dict[str, Any], blocks: Mapping[str, Block]) -> None:
        scan, then = self.scans[entry["scan"]], entry.pop("then", {})
        block = blocks.get(scan.label)
        if block is None:
            block = as_then(scan.buffer.take_exactly(from_runs(entry["indices"]), timeout_s=60.0), then)
        if self.reconstruction is None:
            self.reconstruction = Reconstruction({}, {}, PodTable(max(s.model.pods for s in self.scans.values())))
        if scan.number not in self._stores:
            earlier = self.decisions.get(scan.label)
            others = {s.label: (s.taken[0], s.buffer.frames) for s in self.scans.values() if s.taken}
            try:
                decided = scan.model.start(self.reconstruction, block, scan.buffer.frames, earlier, others)
            except SharingError as error:
                log.error("%s: %s: the scan ends here, without a frame in the picture: %s", self.name, scan.label, error)
                scan.buffer.fail(str(error))
                entry.clear()
                return
            self._stores[scan.number] = scan.buffer.frames
            if earlier != decided:
                decided = {"hot_pixels": [], **scan.buffer.decisions, **decided}
                if not decided["mean_photons"]:
                    log.warning(
                        "%s: %s: no photon on any of the first %d frames: is a shutter closed, or are all pixels masked?",
                        *(self.name, scan.label, len(block)),
                    )
                self.apply({"do": "decide", "scan": scan.label, "decisions": decided})
        elif not scan.frames:
            scan.model.anchor(self.reconstruction, block)
            scan.buffer.retry("off_canvas")
        rows, refused = scan.model.place(self.reconstruction, block)
        if len(refused):
            out = np.isin(block.slots, refused)
            scan.buffer.refuse(block.slots[out], "off_canvas", block.positions_m[out])
            block = select(block, ~out)
            entry["indices"] = to_runs(block.indices)
        if len(block):
            scan.frames += len(block)
            scan.taken.append(block)
            scan.rows.append(int(rows[0]))
            newest = int(block.arrival_ns.max())
            self._newest_taken_ns = max(newest, self._newest_taken_ns or newest)
            self._taken_ns = time.time_ns()
        if self.engine is not None:
            with self.stopwatch.measure("engine_prepare"):
                self.engine.extend(rows)
        log.log(INSPECT, "%s: %s: %d frames taken, %d in all", self.name, scan.label, len(block), self.frames)

    def _apply_revise(self, entry: dict[str, Any], blocks: Mapping[str, Block]) -> None:
        scan, what, value = self.scans[entry["scan"]], entry["what"], entry["value"]
        if what == "mask":
            scan.buffer.mask(value)
            own = (np.arange(first, first + len(block)) for first, block in zip(scan.rows, scan.taken, strict=True))
            rows = np.concatenate([np.zeros(0, np.int64), *own])
        else:
            slot = scan.buffer.slot_of(int(entry["index"]))
            row = None if slot is None else scan.model.row(slot)
            if row is None or row in self._withdrawn or self.reconstruction is None:
                entry.clear()
                return
            rows = np.array([row])
            block, place = scan.at(row)
            entry["before"] = {"position": block.positions_m[place].tolist(), "dose": float(block.dose[place])}
            if what == "position" and not scan.model.move(self.reconstruction, row, tuple(value)):
                scan.buffer.refuse(np.array([slot]), "off_canvas", np.array([value], np.float64))
                entry["what"] = what = "withdrawn"
            elif what == "position":
                block.positions_m[place] = value
            elif what == "dose":
                scan.model.weigh(self.reconstruction, row, float(value[0]))
                block.dose[place] = value[0]
            if what == "withdrawn":
                self._withdrawn.add(row)
                scan.frames -= 1
        if self.engine is not None and len(rows):
            self.engine.revise(rows, what)
        if what == "withdrawn" and self.reconstruction is not None:
            self.reconstruction.pods.withdraw(rows)

    def _apply_engine(self, entry: dict[str, Any], blocks: Mapping[str, Block]) -> None:
        self._start_engine(entry["label"])

    def _apply_resume(self, entry: dict[str, Any], blocks: Mapping[str, Block]) -> None:
        """The engine goes on from probe, object and its own state alone: as after a dump, so in a repetition."""
        state = self._resumed
        if self.engine is not None:
            state = self.engine.state()
            self.engine.finish()
        self._start_engine(entry["label"], state)

    def _start_engine(self, label: str, state: Mapping[str, Any] | None = None) -> None:
        assert self.reconstruction is not None, "an engine starts after the first frames"
        chosen = next(e for e in self.engines if e.label == label)
        decided = [self.decisions[label] for label, scan in self.scans.items() if scan.number in self._stores]  # that have begun
        context = replace(
            self.context,
            mean_photons=float(np.mean([d["mean_photons"] for d in decided])),
            brightest_photons=max(float(d["brightest_photons"]) for d in decided),
        )
        with self.stopwatch.measure("engine_init"):
            engine = chosen.make(chosen.parameters)
        self.engine_entry, self.engine = chosen, None
        if log.isEnabledFor(INSPECT):
            for line in described(self.reconstruction):
                log.log(INSPECT, "%s: %s: %s", self.name, chosen.label, line)
        engine.start(self.reconstruction, self._stores, context, state)
        self.engine = engine  # one that could not start would be asked what there is to save
        if self.complete:
            engine.complete()
        self.averaging, self.last = False, None
        self.state = "running"

    def _apply_iterate(self, entry: dict[str, Any], blocks: Mapping[str, Block]) -> Progress:
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
        self.local = progress.local
        if progress.intensities is not None:
            self.intensities = progress.intensities
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
                **progress.more,
            }
        )
        log.info(
            "%s: %s: iteration %d (%d of all engines): %d frames, %.3f s, %s %.4g, misfit %.4g",
            *(self.name, self.engine_entry.name, progress.iteration, self.iterations, progress.frames, duration),
            *(*headline(progress.errors[-1]), progress.misfit[-1, 1]),
        )
        for note in progress.notes:
            log.info("%s: %s", self.name, note)
        for warning in progress.warnings:
            log.warning("%s: %s", self.name, warning)
        return progress

    def _apply_average(self, entry: dict[str, Any], blocks: Mapping[str, Block]) -> None:
        assert self.engine is not None
        self.engine.average()
        self.averaging = True

    def _apply_restart(self, entry: dict[str, Any], blocks: Mapping[str, Block]) -> None:
        assert self.engine is not None
        self.engine.restart()

    def _apply_finish(self, entry: dict[str, Any], blocks: Mapping[str, Block]) -> None:
        assert self.engine is not None
        self.last = self.engine.snapshot() if self.averaging else None
        self._see_coverage()
        self.engine.finish()
        self.engine = None

    def _apply_end(self, entry: dict[str, Any], blocks: Mapping[str, Block]) -> None:
        self.scans[entry["scan"]].ended = True
        if self.complete and self.engine is not None:
            self.engine.complete()

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint: its frames are taken from the buffers again, the iterations are not repeated.

        For a run that has done nothing. Raises `TimeoutError` where a frame is not there, before anything is taken.
        """
        for label, scan in self.scans.items():
            scan.buffer.has(Schedule(checkpoint.schedule).frames(label), timeout_s=60.0)
        for entry in Schedule(checkpoint.schedule).to_repeat():
            if entry["do"] in ("decide", "take", "revise", "end"):
                getattr(self, f"_apply_{entry['do']}")(entry, {})
        assert self.reconstruction is not None
        self.schedule = Schedule(checkpoint.schedule)
        for held, saved in (
            (self.reconstruction.probes, checkpoint.probes),
            (self.reconstruction.objects, checkpoint.objects),
        ):
            for name, storage in saved.items():
                mine = held[name]
                mine.data, mine.offset = storage.data, storage.offset
                if isinstance(mine, Volume) and isinstance(storage, Volume):
                    mine.first = storage.first
        self.reconstruction.pods.restore(checkpoint.rows)
        known = {label: scan.known() for label, scan in self.scans.items()}
        for label, scan in self.scans.items():
            scan.know(checkpoint.known[label])
        self.iterations, self.iter_info = checkpoint.iterations, [dict(info) for info in checkpoint.iter_info]
        self.errors, self.misfit = [checkpoint.errors], [checkpoint.misfit]
        self.started, self._resumed = checkpoint.started, checkpoint.engine_state
        self.intensities = checkpoint.engine_state.get("float_intensities")
        self.apply({"do": "resume", "label": checkpoint.engine})
        for label, scan in self.scans.items():
            self._catch_up(scan, known[label])

    def _catch_up(self, scan: Scan, known: Mapping[str, NDArray[np.float64]]) -> None:
        """Revise what became known of the frames after the checkpoint: the buffer told it to the run that was cut off."""
        slots = np.concatenate([np.zeros(0, np.int64), *(block.slots for block in scan.taken)])
        before, out = scan.known(), scan.buffer.are_out(slots)
        for k, slot in enumerate(slots.tolist()):
            if out[k] and scan.model.row(slot) not in self._withdrawn:
                self.apply(self.revise_entry(scan, Revision(slot, "withdrawn")))
            for what, values in known.items():
                if not out[k] and (values[k] != before[what][k]).any():
                    self.apply(self.revise_entry(scan, Revision(slot, what, tuple(np.atleast_1d(values[k]).tolist()))))

    # ------------------------------------------------------------------ what the loop asks

    def take_entry(self, scan: Scan, block: Block) -> Entry:
        """The entry that says that `block` is taken."""
        return {"do": "take", "scan": scan.label, "indices": to_runs(block.indices)}

    def revise_entry(self, scan: Scan, revision: Revision) -> Entry:
        """The entry for a change of a frame that was handed out."""
        index = None if revision.slot is None else scan.buffer.index_of(revision.slot)
        value = None if revision.value is None else list(revision.value)
        return {"do": "revise", "scan": scan.label, "index": index, "what": revision.what, "value": value}

    @property
    def series(self) -> Series:
        """Which series its scans belong to: the first that knows says it."""
        return next((found for scan in self.scans.values() if (found := scan.buffer.series)), Series())

    @property
    def failures(self) -> list[str]:
        """Why no frame of a scan can be prepared, for those scans where none can."""
        return [scan.buffer.failure for scan in self.scans.values() if scan.buffer.failure is not None]

    @property
    def frames(self) -> int:
        """Frames that an engine may visit."""
        return 0 if self.reconstruction is None else self.reconstruction.pods.length - len(self._withdrawn)

    def rows(self) -> NDArray[np.int64]:
        """Their rows of the pod table."""
        every = np.arange(0 if self.reconstruction is None else self.reconstruction.pods.length)
        return np.delete(every, sorted(self._withdrawn))

    @property
    def complete(self) -> bool:
        """Whether no further frame will come."""
        return all(scan.ended for scan in self.scans.values())

    def pixels_m(self) -> NDArray[np.float64]:
        """Pixel on the sample (y, x) for each of the rows that an engine may visit; 1 where none is known. Shape (frame, 2)."""
        if self.reconstruction is None:
            return np.zeros((0, 2))
        each = np.array([s.pixel_size_m or (1.0, 1.0) for s in self.reconstruction.objects.values()])
        found: NDArray[np.float64] = each[self.reconstruction.pods.address[:, 0, OBJECT]][self.rows()]
        return found

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
                probes[name] = Image(storage.mean_over_frames(), storage.pixel_size_m, storage.offset)
            for name, storage in now_held.objects.items():
                if name in self._coverage:
                    coverage[name] = self._coverage[name]
                objects[name] = Image(storage.data, storage.pixel_size_m, storage.offset)
            positions = self.positions()[self.rows()].astype(np.float32)
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
            series=self.series.id,
            angle=self.series.angle,
        )

    def positions(self) -> NDArray[np.float64]:
        """Where every row of the pod table is now, refined or as measured, lattice pixels (y, x). Shape (row, 2)."""
        assert self.reconstruction is not None
        pods = self.reconstruction.pods
        half = np.array([[n // 2 for n in probe.shape] for probe in self.reconstruction.probes.values()])
        corner = pods.address[:, 0, ROW : COLUMN + 1] + pods.remainder[:, 0].astype(float)
        return np.asarray(corner + half[pods.address[:, 0, PROBE]])

    def refined(self) -> dict[str, NDArray[np.float64]]:
        """Coordinates of the frames that see each object, metres (pixels where there is none), if an engine was to record
        them. Shape (frame, 2)."""
        wanted = [getattr(entry.parameters, "position_refinement", None) for entry in self.engines]
        if self.reconstruction is None or not any(given is not None and given.record for given in wanted):
            return {}
        rows, places, seen = self.rows(), self.positions(), self.reconstruction.pods.address[:, 0, OBJECT]
        return {
            name: places[rows[seen[rows] == number]] * np.asarray(storage.pixel_size_m or (1.0, 1.0))
            for number, (name, storage) in enumerate(self.reconstruction.objects.items())
        }

    def local_errors(self) -> dict[str, dict[str, NDArray[Any]]]:
        """By scan, for the frames of the last iteration: `index` (frame,) and `error` [fourier, photon, exit] (frame, 3)."""
        if self.reconstruction is None or self.local is None:
            return {}
        pods, rows = self.reconstruction.pods, self.rows()
        rows = rows[rows < len(self.local)]
        rows = rows[~np.isnan(self.local[rows]).all(axis=1)]
        found = {}
        for label, scan in self.scans.items():
            own = rows[pods.frame[rows, 0] == scan.number]
            found[label] = {"index": pods.index[own].copy(), "error": self.local[own]}
        return found

    def floating_intensities(self) -> dict[str, dict[str, NDArray[Any]]]:
        """By scan, where an engine has fitted them: `index` (frame,) and `factor` (frame,) on the modelled intensities."""
        if self.reconstruction is None or self.intensities is None:
            return {}
        pods, rows, found = self.reconstruction.pods, self.rows(), {}
        rows = rows[rows < len(self.intensities)]
        for label, scan in self.scans.items():
            own = rows[pods.frame[rows, 0] == scan.number]
            found[label] = {"index": pods.index[own].copy(), "factor": self.intensities[own]}
        return found

    def _see_coverage(self) -> None:
        assert self.engine is not None
        for name, storage in self.engine.snapshot(("coverage",)).objects.items():
            lit = np.abs(storage.data[0])
            self._coverage[name] = (lit / max(float(lit.max()), 1e-30)).astype(np.float32)

    def ledger(self) -> dict[str, int]:
        """Counts of all scans together."""
        return summed(scan.buffer.ledger.counts() for scan in self.scans.values())

    def notes(self) -> dict[str, int]:
        """What all scans counted that is no frame, as of `Ledger.notes`."""
        return summed(scan.buffer.ledger.notes() for scan in self.scans.values())

    def ledger_map(self) -> NDArray[np.float32]:
        """[y, x, code] of every frame with a known position, lattice pixels. Shape (frame, 3)."""
        parts = []
        for scan in self.scans.values():
            positions, codes = scan.buffer.map()
            pixel = scan.model.to_pixels(positions)
            parts.append(np.concatenate([pixel, codes[:, None]], axis=1))
        return np.concatenate(parts).astype(np.float32) if parts else np.zeros((0, 3), np.float32)


def summed(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Counts of several under the same keys, in one."""
    total: dict[str, int] = {}
    for part in parts:
        for key, count in part.items():
            total[key] = total.get(key, 0) + int(count)
    return total


def select(block: Block, chosen: NDArray[np.bool_]) -> Block:
    """The chosen frames of a block."""
    return Block(
        block.scan,
        block.slots[chosen],
        block.indices[chosen],
        block.positions_m[chosen],
        block.dose[chosen],
        block.arrival_ns[chosen],
        block.further[chosen] if len(block.further) else block.further,
    )


def join(blocks: Sequence[Block]) -> Block:
    """Several blocks of one scan as one."""
    return Block(
        blocks[0].scan,
        *(
            np.concatenate([getattr(b, name) for b in blocks])
            for name in ("slots", "indices", "positions_m", "dose", "arrival_ns", "further")
        ),
    )


def as_then(block: Block, then: Mapping[str, Sequence[Sequence[Any]]]) -> Block:
    """The block with the positions and doses that `Schedule.to_repeat` gives."""
    held = {"position": block.positions_m, "dose": block.dose}
    for what, changed in then.items():
        for index, value in changed:
            held[what][block.indices == index] = value
    return block


def revised(block: Block, revision: Revision) -> Block:
    """The block, which no engine has seen, after a revision of one of its frames (itself, where that is not in it)."""
    here = block.slots == revision.slot
    if not here.any() or revision.value is None:
        return select(block, ~here)
    values = {"position": block.positions_m, "dose": block.dose}[revision.what]
    values[here] = revision.value
    return block


def described(reconstruction: Reconstruction) -> list[str]:
    """Sizes and places of what is reconstructed, a line for each storage and one for the frames."""
    lines = []
    for kind, held in (("probe", reconstruction.probes), ("object", reconstruction.objects)):
        for name, storage in held.items():
            pixel = (
                "pixel size unknown"
                if storage.pixel_size_m is None
                else "pixel {:.4g} m × {:.4g} m".format(*storage.pixel_size_m)
            )
            size = " × ".join(str(n) for n in storage.data.shape)
            mebibytes = storage.data.nbytes / 2**20
            lines.append(
                f"{kind} {name}: {size} {storage.data.dtype}, {mebibytes:.1f} MiB, {pixel}, first pixel at {storage.offset}"
            )
    pods = reconstruction.pods
    return [*lines, f"{pods.length} frames, {pods.pods} pods each"]
