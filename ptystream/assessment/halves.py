"""Two engines, each on half of the frames, with an object, a probe and a state of their own: what they agree on was measured.

They follow a run without touching it: they read its pod table and the counts in its slabs, and keep copies of everything that
they change. A half has the same rows as the run, so that a row number means the same in all three; the rows of the other half
see nothing. Which half a frame belongs to depends on seed and index alone: of two frames in a row each half has one.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.chance import uniform
from ptystream.engine import Engine
from ptystream.reconstruction import COLUMN, OBJECT, PROBE, ROW, PodTable, Reconstruction, Storage, nearest
from ptystream.run import Run
from ptystream.scan.memory import Budget, Claim, allowed_bytes

log = logging.getLogger(__name__)

FEWEST = 32
"""Frames in the run before its halves begin: each then has as many as an engine waits for."""
HALVES = Budget(allowed_bytes() // 4)
"""What the halves of all runs of this process hold for their frames. Frames that find no room are left out of the halves."""

Rows = NDArray[np.int64]


def half_of(seed: int, scan: int, index: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which half each frame belongs to, 0 or 1. Shape (frame,).

    Neighbours 2k and 2k + 1 are always in different halves, so that both see all of the sample; which of them is in which is
    drawn, so that a scan with an even number of columns does not fall into stripes.
    """
    drawn = uniform(seed, "halves of the frames", 0, scan, index >> 1, 1)[:, 0, 0] < 0.5
    return (index & 1) ^ drawn


class Half:
    """One of the two."""

    def __init__(self, number: int, pods: int) -> None:
        self.number = number
        self.made = Reconstruction({}, {}, PodTable(pods))
        self.engine: Engine | None = None
        self.parameters: Any = None
        self.iterations = 0
        """Of all its engines."""
        self.frames = 0
        self.completed = False
        self.restarts = 0
        self.revisions: list[tuple[Rows, str]] = []
        """Those that it has not followed yet."""
        self.rotation = 0

    def rows(self) -> Rows:
        """Rows that it visits."""
        return np.flatnonzero(self.made.pods.address[:, 0, PROBE] >= 0)


class Halves:
    """The two halves of one run. All calls come from the engine's thread."""

    def __init__(self, run: Run, budget: Budget = HALVES) -> None:
        self.run = run
        self.halves: tuple[Half, ...] = ()
        self._engine: Engine | None = None
        """Of the run, when it was looked at last."""
        self._label = ""
        self._source: Reconstruction | None = None
        self._begun: dict[str, int] = {}
        self._cuts = run.cuts
        self.begun = 0
        """How often they have begun with nothing."""
        self._budget, self._claim = budget, Claim(budget, 1)
        self._full = False
        run.revisions = []

    @property
    def frames(self) -> int:
        """Frames in both."""
        return sum(half.frames for half in self.halves)

    @property
    def iterations(self) -> int:
        """Iterations that both have made."""
        return min((half.iterations for half in self.halves), default=0)

    @property
    def due(self) -> bool:
        """Whether there is anything for them to iterate on."""
        return self.run.engine_entry is not None and self.run.engine is not None and self.run.frames >= FEWEST

    @property
    def is_outdated(self) -> bool:
        """Whether the run has begun anew since their last turn, or goes on with frames that are cut, or lie, otherwise."""
        run, source = self.run, self.run.reconstruction
        if not self.halves:
            return False
        if source is None or run.engine_entry is None:  # it waits for frames, as at its beginning
            return True
        elsewhere = any(name not in source.objects or source.objects[name].begun != n for name, n in self._begun.items())
        again = run.engine is not None and run.engine is not self._engine and run.engine_entry.label == self._label
        return source is not self._source or run.cuts != self._cuts or elsewhere or again

    def step(self, latency_s: float | None = None) -> float:
        """Bring the half that is behind up to the run, and iterate it once; returns the seconds that it took.

        `latency_s`: where that is given, as many of its frames are visited as half of that time allows.
        """
        started = time.perf_counter()
        self._follow()
        self._iterate(min(self.halves, key=lambda half: half.iterations), latency_s)
        return time.perf_counter() - started

    def pictures(self, name: str) -> list[tuple[Storage, Storage]]:
        """(object, illumination) of that name in each half, layers as the engine holds them: copies."""
        found = []
        for half in self.halves:
            if half.engine is None:
                return []
            image = half.engine.snapshot(("object",)).objects[name]
            found.append((image, half.engine.snapshot(("coverage",)).objects[name]))
        return found

    def close(self) -> None:
        """Give everything back."""
        self.run.revisions = None
        self._claim.shrink(0)
        self._engine = self._source = None
        try:
            self._stop_engines()
        finally:
            self.halves = ()

    # ------------------------------------------------------------------ following the run

    def _follow(self) -> None:
        """The engine of the run, and where on the sample it is; what else has changed waits for each half's turn.

        Where the run began anew, or its engine in the midst of its work, because frames are cut another way, so do the halves.
        """
        run = self.run
        source = run.reconstruction
        assert source is not None and run.engine_entry is not None
        if self.is_outdated or not self.halves:
            self._stop_engines()
            self._claim.shrink(0)
            self.halves = ()
        elif run.engine_entry.label != self._label:
            self._stop_engines()
        self._begun = {name: storage.begun for name, storage in source.objects.items()}
        self._source, self._engine, self._label, self._cuts = source, run.engine, run.engine_entry.label, run.cuts
        if not self.halves:
            self.halves = tuple(Half(number, source.pods.pods) for number in range(2))
            self.begun += 1
            run.revisions = []
        for half in self.halves:
            half.revisions += run.revisions or []
        run.revisions = []

    def _stop_engines(self) -> None:
        for half in self.halves:
            if half.engine is not None:
                half.engine.finish()
            half.engine, half.completed = None, False

    def _storages(self, made: Reconstruction, source: Reconstruction) -> None:
        """Storages that are new, begun as the run began them, but for objects: those are empty, so that nothing but frames
        can make the halves alike; and canvases and probes as large as the run's."""
        for name in source.probes:
            if name not in made.probes:
                made.probes[name] = self.run.starting[name].copy()
            mine, missing = made.probes[name], len(source.probes[name].data) - len(made.probes[name].data)
            if mine.modes_per_frame and missing > 0:
                mine.add_frames(missing // mine.modes_per_frame)
        for name, canvas in source.objects.items():
            if name not in made.objects:
                data = np.full(canvas.data.shape, canvas.fill, np.complex64)
                for layer, share in zip(data, canvas.shares, strict=False):
                    layer *= share
                made.objects[name] = replace(canvas, data=data)
            (top, left), (height, width) = canvas.offset, canvas.shape
            made.objects[name].grow((top, left), (top + height, left + width))
        made.propagators, made.geometries = source.propagators, source.geometries
        made.probe_dispersion, made.object_dispersion = source.probe_dispersion, source.object_dispersion

    def _append(self, half: Half, source: Reconstruction) -> None:
        """Rows that the run has and the half has not; those of the other half without pods."""
        rows = np.arange(half.made.pods.length, source.pods.length)
        if not len(rows):
            return
        table = source.pods
        scan, index = table.frame[rows, 0], table.index[rows]
        own = np.zeros(len(rows), np.bool_)
        for number in np.unique(scan):
            of_scan = scan == number
            own[of_scan] = half_of(self.run.context.seed, int(number), index[of_scan]) == half.number
        own &= table.address[rows, 0, PROBE] >= 0
        own &= self._room(source, own)
        address, remainder = measured(source, rows)
        address[~own, :, PROBE] = address[~own, :, OBJECT] = -1
        half.made.pods.append(address, remainder, table.weight[rows], table.frame[rows], index, table.depth[rows])
        half.frames += int(own.sum())
        if half.engine is not None:
            half.engine.extend(rows)

    def _room(self, source: Reconstruction, own: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which of them there is memory for: the first ones."""
        wanted = int(own.sum())
        each = self._bytes_per_frame(source)
        before = self._claim.count
        granted = (self._claim.grow(before + wanted * each) - before) // each if each else wanted
        if granted < wanted:
            self._claim.shrink(before + granted * each)
            if not self._full:
                self._full = True
                log.warning(
                    "%s: split halves: no more than %d frames find room in %.3g GiB: the others are left out of them",
                    *(self.run.name, self.frames + granted, self._budget.limit / 2**30),
                )
        return np.asarray(np.cumsum(own) <= granted)

    def _bytes_per_frame(self, source: Reconstruction) -> int:
        """What an engine holds for a frame: its exit waves, where they are its state."""
        engine, pixels = self.run.engine, max(math.prod(storage.data.shape[-2:]) for storage in source.probes.values())
        item = 8 if self.run.context.precision == "single" else 16
        waves = source.pods.pods * pixels * item if getattr(engine, "keeps_waves", True) else 0
        counts = 4 * pixels if self.run.context.device == "gpu" else 0
        return waves + counts + 256

    def _revise(self, half: Half, source: Reconstruction) -> None:
        table = half.made.pods
        for rows, what in half.revisions:
            rows = rows[rows < table.length]
            rows = rows[table.address[rows, 0, PROBE] >= 0]
            if not len(rows):
                continue
            if what == "position":
                table.address[rows], table.remainder[rows] = measured(source, rows)
                table.moved[rows] = 0
            elif what == "dose":
                table.weight[rows] = source.pods.weight[rows]
            if half.engine is not None:
                half.engine.revise(rows, what)
            if what == "withdrawn":
                half.frames -= len(rows)
                table.withdraw(rows)
        half.revisions = []

    # ------------------------------------------------------------------ iterating

    def _iterate(self, half: Half, latency_s: float | None) -> None:
        entry, source = self.run.engine_entry, self.run.reconstruction
        assert entry is not None and source is not None and self.run.engine_context is not None
        self._storages(half.made, source)
        self._revise(half, source)
        self._append(half, source)
        if not half.frames:
            return
        if half.engine is None:
            engine = entry.make(entry.parameters)
            engine.start(half.made, self.run.stores, self.run.engine_context)
            half.engine, half.parameters, half.restarts = engine, entry.parameters, self.run.restarts
        if half.parameters is not entry.parameters:
            half.engine.configure(entry.parameters)
            half.parameters = entry.parameters
        if half.restarts != self.run.restarts:
            half.engine.restart()
            half.restarts = self.run.restarts
        if self.run.complete and not half.completed:
            half.engine.complete()
            half.completed = True
        half.engine.iterate(1, self._share(half, latency_s))
        half.iterations += 1

    def _share(self, half: Half, latency_s: float | None) -> Rows | None:
        """All of its rows, or, in turn, as many as a pass of the run would visit in half of the latency that is wanted."""
        info = self.run.iter_info[-1] if self.run.iter_info else None
        if latency_s is None or info is None or self.run.complete:
            return None
        each = info["duration"] / max(1, info["count"] * info["frames"])
        most = max(1, int(0.5 * latency_s / max(each, 1e-9)))
        if most >= half.frames:
            return None
        rows = half.rows()
        chosen = np.sort((half.rotation + np.arange(most)) % len(rows))
        half.rotation = int((half.rotation + most) % len(rows))
        return rows[chosen]


def measured(source: Reconstruction, rows: Rows) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """(address, remainder) of rows at the places where they were measured, whatever refinement has made of them: copies."""
    table = source.pods
    address, remainder = table.address[rows].copy(), table.remainder[rows].copy()
    moved = np.flatnonzero((table.moved[rows] != 0).any(axis=1))
    if len(moved):
        pixels = np.array([s.pixel_size_m or (1.0, 1.0) for s in source.objects.values()])
        each = pixels[address[moved, 0, OBJECT]]
        at = address[moved, 0, ROW : COLUMN + 1] + remainder[moved, 0].astype(float) - table.moved[rows[moved]] / each
        whole, part = nearest(at)
        address[moved, :, ROW : COLUMN + 1] = whole[:, None]
        remainder[moved] = part[:, None]
    return address, remainder
