"""What the quick look keeps of each frame of one scan: its centres, and where the picture needs it the middle of its pattern.

Each frame costs the same, however many came before. Positions and what was withdrawn are read from the run when a picture is
made, so that what changes there needs no second look at frames.
"""

from __future__ import annotations

import math
import time
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.direct.moments import centres
from ptystream.direct.quick import Kept, Kind
from ptystream.direct.raster import Raster
from ptystream.direct.window import REACH, Window
from ptystream.model.geometry import Geometry
from ptystream.run import Run
from ptystream.run_state import Scan
from ptystream.scan.block import Block
from ptystream.scan.memory import allowed_bytes

TOGETHER = 16
"""Frames that are looked at in one go."""
FIRST = 32
"""Frames whose mean says where the bright disk is."""
SHARE = 0.03
"""Of the memory that a session may take, for what is kept of patterns: a picture takes some ten times as much for a while."""


class Following:
    """The frames of one scan. Called from the engine's thread."""

    def __init__(self, run: Run, scan: Scan, kind: Kind) -> None:
        self.scan, self.kind = scan, kind
        self._run, self._store, self._cuts = run, scan.buffer.frames, run.cuts
        self._taken = self._waiting = 0
        """Blocks that were seen of those lists."""
        self._queue: deque[NDArray[np.int64]] = deque()
        self._done = np.zeros(0, bool)
        """By slot, as the following."""
        self._centres = np.zeros((0, 2))
        self._patterns = np.zeros((0, 0, 0), np.float32)
        self._window: Window | None = None
        self._first: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = []
        """Frames of which is not known yet what to keep."""
        self.per_pixel = per_pixel(scan.model.geometry)
        y, x = (np.fft.fftfreq(n, 1 / (n * p)) for n, p in zip(self._store.shape, self.per_pixel, strict=True))
        self._frequency = np.asarray(y)[:, None], np.asarray(x)[None]
        self.frames = 0
        """Looked at so far."""

    @property
    def outdated(self) -> bool:
        """Whether the run has its frames cut another way since."""
        return self._cuts != self._run.cuts or self._store is not self.scan.buffer.frames

    def look(self, seconds: float) -> None:
        """Look at frames that came, for at most about so long."""
        began = time.perf_counter()
        self._see_blocks()
        while self._queue and time.perf_counter() - began < seconds:
            slots = self._queue.popleft()
            if len(slots) > TOGETHER:
                self._queue.appendleft(slots[TOGETHER:])
            self._add(slots[:TOGETHER])

    @property
    def behind(self) -> bool:
        """Whether frames have come that were not looked at yet."""
        return bool(self._queue)

    def _see_blocks(self) -> None:
        """Those that were joined, or came again, are seen twice, and their frames added once."""
        if len(self.scan.waiting) < self._waiting:
            self._waiting = 0
        for block in [*self.scan.waiting[self._waiting :], *self.scan.taken[self._taken :]]:
            self._queue.append(block.slots)
        self._waiting, self._taken = len(self.scan.waiting), len(self.scan.taken)

    def _grow(self, slots: int) -> None:
        have = len(self._done)
        if slots > have:
            more = max(slots, 2 * have, 256) - have
            self._done = np.concatenate([self._done, np.zeros(more, bool)])
            self._centres = np.concatenate([self._centres, np.full((more, 2), np.nan)])
            side = 0 if self._window is None else self._window.side
            self._patterns = np.concatenate([self._patterns, np.zeros((more, side, side), np.float32)])

    def _add(self, slots: NDArray[np.int64]) -> None:
        self._grow(int(slots.max()) + 1)
        slots = slots[~self._done[slots]]
        if not len(slots):
            return
        frames = self._frames(slots)
        self._centres[slots] = centres(frames, self._frequency)
        self._done[slots] = True
        self.frames += len(slots)
        if self.kind in REACH:
            self._keep(slots, frames)

    def _frames(self, slots: NDArray[np.int64]) -> NDArray[np.float64]:
        """Counts, 0 where a pixel is not valid."""
        store = self._store
        raw = np.stack([store.slab(s // store.slab_frames)[s % store.slab_frames] for s in slots.tolist()])
        valid = (store.mask != 0) & (raw.astype(np.float32) < np.float32(store.limit))
        return np.where(valid, raw, 0).astype(float)

    def _keep(self, slots: NDArray[np.int64], frames: NDArray[np.float64]) -> None:
        if self._window is None:
            self._first.append((slots, frames))
            if self.frames < FIRST:
                return
            mean = np.concatenate([f for _, f in self._first]).mean(axis=0)
            self._window = Window.about(mean, self.kind)
            self._make_room()
            for early, those in self._first:
                self._patterns[early] = self._window.of(those)
            self._first = []
        else:
            self._patterns[slots] = self._window.of(frames)

    def _make_room(self) -> None:
        assert self._window is not None
        side = self._window.side
        raster = self.scan.buffer.parameters.raster
        needed = (raster.points[0] * raster.points[1] if raster is not None else 0) * side**2 * 4
        if needed > SHARE * allowed_bytes():
            text = f"{side} x {side} numbers of each frame of the raster take {needed:.3g} bytes"
            raise ValueError(f"{text}, of {SHARE * allowed_bytes():.3g} allowed: use 'icom'")
        self._patterns = np.zeros((len(self._done), side, side), np.float32)

    def kept(self) -> Kept | None:
        """What is there, for a picture; None: nothing yet. What it refers to is written to no more, but for frames that are not
        in it."""
        blocks = [*self.scan.taken, *self.scan.waiting]
        if not blocks or not len(self._done):
            return None
        slots, index, places = (np.concatenate([getattr(b, n) for b in blocks]) for n in ("slots", "indices", "positions_m"))
        good = np.zeros(len(slots), bool)
        inside = slots < len(self._done)
        good[inside] = self._done[slots[inside]]
        good[inside] &= np.isfinite(self._centres[slots[inside]]).all(axis=1)
        good &= ~self._withdrawn(self.scan.taken, len(slots))
        p = self.scan.buffer.parameters
        raster, numbers, angle = None, np.zeros(0, np.int64), 0.0
        if p.raster is not None:
            step = np.broadcast_to(np.asarray(p.raster.step, float), 2)
            raster = Raster(p.raster.points, (float(step[0]), float(step[1])))
            numbers = p.raster.numbers(index - p.dark_frames)
            good &= numbers >= 0
            places = raster.places_m()[np.maximum(numbers, 0)]
            angle = -math.radians(p.raster.rotation)
        if not good.any():
            return None
        slots = slots[good]
        patterns = frequency = None
        if self._window is not None:
            patterns, frequency = self._patterns, self._window.frequencies(self.per_pixel)
        held = self._centres[slots]
        wavelength = self.scan.model.geometry.wavelength_m or 0.0
        chosen = numbers[good] if raster is not None else numbers
        return Kept(places[good], held, raster, chosen, patterns, frequency, wavelength, angle, slots)

    def _withdrawn(self, taken: list[Block], count: int) -> NDArray[np.bool_]:
        """Of `count` frames, those of `taken` before the others."""
        gone = np.fromiter(self._run.withdrawn, np.int64)
        if not len(gone) or not taken:
            return np.zeros(count, bool)
        lengths = np.array([len(block) for block in taken])
        first = np.cumsum(lengths) - lengths
        rows = np.arange(lengths.sum()) + np.repeat(np.array(self.scan.rows) - first, lengths)
        return np.pad(np.isin(rows, gone), (0, count - len(rows)))


def per_pixel(geometry: Geometry) -> tuple[float, float]:
    """By how much the frequency changes from one pixel of a pattern to the next, (y, x), 1/metres; 1/object pixels where no
    lengths are known."""
    wavelength, away, pixel = geometry.wavelength_m, geometry.distance_m, geometry.detector_pixel_m
    if wavelength is None or away is None or pixel is None:
        return 1.0 / geometry.padded[0], 1.0 / geometry.padded[1]
    return pixel[0] / (wavelength * away), pixel[1] / (wavelength * away)


def lacking(kind: str, scan: Any, geometry: Geometry) -> tuple[str, Any, str] | None:
    """(parameter of the scan, its value, remedy) where this kind of picture cannot be made of it."""
    none = "or set live.quick_look to none"
    if scan.model.volumes:
        return "name", scan.name, f"live.quick_look: {kind}: a rocking curve has no such picture: {none}"
    if geometry.near:
        return "propagation", "nearfield", f"live.quick_look: {kind}: needs the far field: use it, {none}"
    if geometry.signals is not None:
        return "data.signals", geometry.signals, f"live.quick_look: {kind}: needs patterns: leave signals out, {none}"
    if kind not in REACH:
        return None
    if scan.data.parameters.raster is None:
        return "data.raster", None, f"live.quick_look: {kind}: needs points in rows: describe them here, or use icom or dpc"
    if geometry.wavelength_m is None or geometry.distance_m is None or geometry.detector_pixel_m is None:
        remedy = f"live.quick_look: {kind}: needs energy (or acc_voltage), distance and psize: give them, or use icom or dpc"
        return "data.psize", scan.data.parameters.psize, remedy
    return None
