"""Saves the frames of a scan as they become usable: a thread of its own between `PtyScan` and a `.ptyd` file."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ptystream.scan.block import Block, FrameStore, Revision
from ptystream.scan.parameters import PtyScanParameters
from ptystream.storage.ptyd import Chunk, PtydWriter
from ptystream.storage.ptyr import as_nodes

log = logging.getLogger(__name__)

GATHER_S = 1.0
"""Frames that became usable within so long are one chunk."""
MAX_CHUNK_BYTES = 1 << 26
"""Counts of one chunk: what is copied at once."""


def chunk_of(store: FrameStore, slots: Sequence[int], indices: Sequence[int], places: Sequence[tuple[float, float]]) -> Chunk:
    """Frames of a store as files hold them: zero frequency at n // 2, invalid pixels 0."""
    data = np.empty((len(slots), *store.shape), store.dtype)
    weights = np.empty(data.shape, np.bool_)
    for k, slot in enumerate(slots):
        counts = store.slab(slot // store.slab_frames)[slot % store.slab_frames]
        valid = (counts < store.limit) & (store.mask != 0)
        weights[k] = np.fft.fftshift(valid)
        data[k] = np.fft.fftshift(np.where(valid, counts, 0))
    return Chunk(data, weights, np.array(places, np.float64).reshape(-1, 2), np.array(indices, np.int64))


class Saver(threading.Thread):
    """Saves one scan. `take` and `revise` cost nothing but a queue of frame numbers: the frames lie in the scan's slabs.

    `max_frames` of a chunk: frames_per_block. `after`: the saver of an earlier scan that writes the same file. A failure is
    logged and kept in `failure`; the scan goes on without saving.
    """

    def __init__(
        self, label: str, parameters: PtyScanParameters, path: Path, *, max_frames: int, after: Saver | None = None
    ) -> None:
        assert parameters.save is not None
        super().__init__(name=f"saver {label}")
        self.label, self.parameters = label, parameters
        self.failure: BaseException | None = None
        self.saved = 0
        """Frames that are in the file."""
        self._writer = PtydWriter(path, parameters.save, parameters.chunk_format)
        self._max_frames, self._after = max_frames, after
        self._changed = threading.Condition()
        self._queue: deque[Block | Revision] = deque()
        self._frames: FrameStore | None = None
        self._expected = 0
        self._closing = self._begun = False
        self._pending: dict[int, tuple[int, tuple[float, float]]] = {}
        """Slot → (index, position) of frames that are not written yet."""
        self._place: dict[int, tuple[int, int]] = {}
        """Slot → (chunk, row)."""
        self._positions: list[tuple[float, float]] = []
        self._offsets: list[int] = []
        """Number of the first frame of each chunk."""
        self._moved: dict[tuple[int, int], tuple[float, float]] = {}
        self._withdrawn: set[tuple[int, int]] = set()

    # ------------------------------------------------------------------ called by the scan

    def take(self, block: Block, frames: FrameStore, expected: int) -> None:
        """Save the frames of a block, which lie in `frames`; `expected` is how many the scan will have, 0: not known."""
        with self._changed:
            if self.failure is not None or self._closing:
                return
            self._frames, self._expected = frames, expected
            self._queue.append(block)
            if not self._begun:
                self._begun = True
                self.start()
            self._changed.notify_all()

    def revise(self, revisions: Sequence[Revision]) -> None:
        """Frames that were taken have other positions, or are out."""
        with self._changed:
            if self._begun and self.failure is None:
                self._queue.extend(r for r in revisions if r.what in ("position", "withdrawn"))
                self._changed.notify_all()

    def close(self) -> None:
        """Nothing more will come: the file is finished by the thread, `wait` until it is."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def wait(self, timeout_s: float | None = None) -> None:
        """Until the file is finished, once `close` was called; and those of earlier scans."""
        before = self._after
        if before is not None:
            before.wait(timeout_s)
        if self._begun:
            self.join(timeout_s)

    # ------------------------------------------------------------------ the thread

    def run(self) -> None:
        """Thread body."""
        try:
            if self._after is not None:
                self._after.wait()
                self._after = None
            while self._gather():
                while self._pending:
                    self._write()
            self._revise_file()
            meta, info = self._head(self.saved)
            self._writer.finish(meta, info)
            log.info("%s: %d frames saved in %s", self.label, self.saved, self._writer.path)
        except BaseException as error:
            self.failure = error
            log.error("%s: %s: the prepared frames are not saved any more: %s", self.label, self._writer.path, error)
        finally:
            with self._changed:
                self._queue.clear()
                self._frames = None

    def _gather(self) -> bool:
        """Wait for frames and those that follow within `GATHER_S`; whether there is anything to write."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._queue) or self._closing)
            deadline = time.monotonic() + GATHER_S
            while True:
                while self._queue:
                    self._enter(self._queue.popleft())
                left = deadline - time.monotonic()
                if len(self._pending) >= self._limit() or self._closing or left <= 0:
                    return bool(self._pending) or not self._closing
                self._changed.wait(left)

    def _enter(self, item: Block | Revision) -> None:
        if isinstance(item, Block):
            for slot, index, (y, x) in zip(item.slots.tolist(), item.indices.tolist(), item.positions_m.tolist(), strict=True):
                self._pending[slot] = (index, (y, x))
            return
        slot = -1 if item.slot is None else item.slot
        if item.what == "withdrawn":
            if self._pending.pop(slot, None) is None and slot in self._place:
                self._withdrawn.add(self._place.pop(slot))
        elif item.value is not None:
            position = (float(item.value[0]), float(item.value[1]))
            if slot in self._pending:
                self._pending[slot] = (self._pending[slot][0], position)
            elif slot in self._place:
                self._moved[self._place[slot]] = position

    def _limit(self) -> int:
        assert self._frames is not None
        frame_bytes = int(np.prod(self._frames.shape)) * self._frame_dtype().itemsize
        return max(1, min(self._max_frames, MAX_CHUNK_BYTES // frame_bytes))

    def _frame_dtype(self) -> np.dtype[Any]:
        assert self._frames is not None
        return np.dtype(self._frames.dtype)

    def _write(self) -> None:
        limit = self._limit()
        slots = list(self._pending)[:limit]
        indices, places = zip(*(self._pending.pop(slot) for slot in slots), strict=True)
        chunk = self._chunk(slots, indices, places)
        self._offsets.append(self.saved)
        self._positions += places
        self.saved += len(chunk)
        number = self._writer.add(chunk, *self._head(self._expected or None))
        self._place.update({slot: (number, row) for row, slot in enumerate(slots)})

    def _chunk(self, slots: Sequence[int], indices: Sequence[int], places: Sequence[tuple[float, float]]) -> Chunk:
        assert self._frames is not None
        return chunk_of(self._frames, slots, indices, places)

    def _revise_file(self) -> None:
        for number in sorted({chunk for chunk, _ in (*self._moved, *self._withdrawn)}):
            moved = {row: place for (chunk, row), place in self._moved.items() if chunk == number}
            self._writer.revise(number, moved, [row for chunk, row in self._withdrawn if chunk == number])
            for row, place in moved.items():
                self._positions[self._offsets[number] + row] = place

    def _head(self, frames: int | None) -> tuple[dict[str, Any], dict[str, Any]]:
        """`/meta` and `/info`."""
        p, store = self.parameters, self._frames
        assert store is not None
        meta: dict[str, Any] = {
            "version": float(p.version),
            "num_frames": frames,
            "label": p.label,
            "shape": np.array(store.shape, np.int64),
            "psize": None if p.psize is None else np.broadcast_to(np.asarray(p.psize, float), 2) * (p.rebin or 1),
            "energy": p.energy,
            "center": np.array([n // 2 for n in store.shape], np.float64),
            "distance": p.distance,
        }
        positions = np.array(self._positions, np.float64).reshape(-1, 2)
        info = {**p.model_dump(), "positions_scan": positions, "weight2d": True, "rebin": p.rebin or 1}
        info |= {"num_frames": frames, "shape": meta["shape"], "center": meta["center"]}
        return meta, {key: as_nodes(value) for key, value in info.items()}
