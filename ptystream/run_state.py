"""What a run holds, and what can be read of it: for the loop, for viewers, and for its result."""

from __future__ import annotations

import time
import uuid
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.engine import Context, Engine
from ptystream.model.scan_model import ScanModel
from ptystream.publish.snapshot import Image, Snapshot
from ptystream.reconstruction import COLUMN, OBJECT, PROBE, ROW, Reconstruction, Stack, Storage
from ptystream.scan.block import Block, FrameStore, Revision
from ptystream.scan.contents import contents
from ptystream.scan.ptyscan import PtyScan
from ptystream.scan.series import Series
from ptystream.schedule import Entry, Schedule, to_runs
from ptystream.stopwatch import Stopwatch


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
    times_ns: list[int] = field(default_factory=list)
    """When each of them was taken (`time.time_ns()`)."""
    frames: int = 0
    """Frames in the pod table that are not withdrawn."""
    contents: dict[str, str] = field(init=False)
    """What the arrays in the parameters were at its beginning, as of `ptystream.scan.contents`."""

    def __post_init__(self) -> None:
        """Before anything is changed."""
        self.contents = contents(self.buffer.parameters)

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

    def taken_at(self, row: int) -> int:
        """When a row of the pod table was taken."""
        return self.times_ns[bisect_right(self.rows, row) - 1]


@dataclass(frozen=True, slots=True)
class EngineEntry:
    """One entry of `engines`, validated."""

    label: str
    name: str
    parameters: Any
    make: Callable[[Any], Engine]


class RunState:
    """One reconstruction as it is now. Not thread-safe: it belongs to the engine's thread."""

    def __init__(
        self,
        name: str,
        scans: Sequence[Scan],
        engines: Sequence[EngineEntry],
        context: Context,
        decisions: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.name = name
        self.uid = str(uuid.uuid4())
        """Unlike that of any other run, in any session."""
        self.acquisitions: dict[str, tuple[str, str, int]] = {}
        """Scan → (label of the scan whose sources sent it, key, turn) of those whose frames it has."""
        self.scans = {scan.label: scan for scan in scans}
        self.engines = list(engines)
        self.context = context
        self.decisions: dict[str, dict[str, Any]] = {k: dict(v) for k, v in (decisions or {}).items()}
        self.recut: dict[str, dict[str, Any]] = {}
        """By scan, what is decided otherwise than at its start since its frames are cut another way."""
        self.schedule = Schedule()
        self.reconstruction: Reconstruction | None = None
        self.engine: Engine | None = None
        self.engine_entry: EngineEntry | None = None
        self.ended: Any = None
        """The engine that is finished, where it has refined more than probe and object, until the run is forgotten."""
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
        self.starting: dict[str, Storage] = {}
        """The probes as they began, each once its scan has."""
        self._starting_of: Reconstruction | None = None
        self.engine_context: Context | None = None
        """Context of the engine at work."""
        self.restarts = 0
        """How often the starting probe was taken again."""
        self.unlike: list[str] = []
        """Arrays by which frames are to be cut, and that are not what they were: path and file of each."""
        self.cuts = 0
        """How often frames were cut another way, or moved, on request."""
        self.revisions: list[tuple[NDArray[np.int64], str]] | None = None
        """Rows that changed, and what of them, since somebody who follows the run has looked; None: nobody does."""
        self.quality: dict[str, dict[str, Any]] = {}
        """What was measured of it: `Snapshot.quality`."""
        self.looks: dict[str, tuple[Image, NDArray[np.float32] | None]] = {}
        """Pictures made without iteration, by the name that viewers show, each with where something of it is known."""
        self.beside: dict[str, NDArray[Any]] = {}
        """What an engine that is done has refined beside probe, object and positions, by name; rows as in the pod table."""
        self._resumed: Mapping[str, Any] | None = None
        """State of the engine in the checkpoint that the run goes on from."""

    def take_entry(self, scan: Scan, block: Block) -> Entry:
        """The entry that says that `block` is taken."""
        return {"do": "take", "scan": scan.label, "indices": to_runs(block.indices)}

    def revise_entry(self, scan: Scan, revision: Revision) -> Entry:
        """The entry for a change of a frame that was handed out."""
        index = None if revision.slot is None else scan.buffer.index_of(revision.slot)
        value = None if revision.value is None else list(revision.value)
        return {"do": "revise", "scan": scan.label, "index": index, "what": revision.what, "value": value}

    @property
    def in_metres(self) -> bool:
        """Whether lengths on the sample are metres, and not object pixels."""
        held = {} if self.reconstruction is None else self.reconstruction.objects
        return all(storage.pixel_size_m is not None for storage in held.values())

    @property
    def stores(self) -> Mapping[int, FrameStore]:
        """Slabs by number of the scan, of the scans that have begun; changes as scans do."""
        return self._stores

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

    @property
    def withdrawn(self) -> frozenset[int]:
        """Rows of the pod table that no engine may visit any more."""
        return frozenset(self._withdrawn)

    def rows(self) -> NDArray[np.int64]:
        """Their rows of the pod table."""
        every = np.arange(0 if self.reconstruction is None else self.reconstruction.pods.length)
        return np.delete(every, sorted(self._withdrawn))

    @property
    def complete(self) -> bool:
        """Whether no further frame will come."""
        return all(scan.ended for scan in self.scans.values())

    def frame_numbers(self) -> NDArray[np.int64]:
        """Which frames those rows are: place of the scan in `scans`, and the source's number. Shape (frame, 2)."""
        if self.reconstruction is None:
            return np.zeros((0, 2), np.int64)
        pods, rows = self.reconstruction.pods, self.rows()
        return np.stack([pods.frame[rows, 0], pods.index[rows]], axis=1).astype(np.int64)

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
                self.see_coverage()
            else:
                now_held = self.reconstruction.copy()
            for name, storage in now_held.probes.items():
                probes[name] = Image(storage.mean_over_frames(), storage.pixel_size_m, storage.offset)
            for name, storage in now_held.objects.items():
                if name in self._coverage:
                    coverage[name] = self._coverage[name]
                objects[name] = Image(storage.data, storage.pixel_size_m, storage.offset, depths_m=_depths(storage))
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
            started_ns=round(self.started * 1e9),
            scans=tuple(self.scans),
            quality=dict(self.quality),
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

    def see_coverage(self) -> Mapping[str, NDArray[np.float32]]:
        """Illumination of each object's pixels relative to its maximum, (y, x), now or as the last engine has left it."""
        for name, storage in ({} if self.engine is None else self.engine.snapshot(("coverage",)).objects).items():
            lit = np.abs(storage.data[0])
            self._coverage[name] = (lit / max(float(lit.max()), 1e-30)).astype(np.float32)
        return self._coverage

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


def _depths(storage: Storage) -> tuple[float, ...]:
    """As of `Image.depths_m`."""
    if not isinstance(storage, Stack) or storage.depth == 1:
        return ()
    return (0.0, *np.cumsum(storage.distances_m[: storage.depth - 1]).tolist())


def summed(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Counts of several under the same keys, in one."""
    total: dict[str, int] = {}
    for part in parts:
        for key, count in part.items():
            total[key] = total.get(key, 0) + int(count)
    return total
