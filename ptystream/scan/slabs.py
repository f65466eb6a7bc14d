"""Prepared frames of one scan in slabs of equal length: memory that is taken ahead and never moved."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.scan.memory import Budget, Claim

SLAB_BYTES = 16 << 20
"""Size aimed at: small beside a scan, large beside a frame."""
PAGE_BYTES = 4096
DTYPES = ("uint8", "uint16", "uint32", "int32", "float32")


class Slabs:
    """The `FrameStore` of a scan.

    All but `row` is called under the owner's lock. A slab's memory is touched before it is needed, by `pool` or a thread of
    its own, so that no frame pays for the first touch of a page.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        dtype: np.dtype[Any],
        mask: NDArray[np.uint8],
        *,
        budget: Budget,
        pool: Executor | None = None,
        slab_frames: int | None = None,
        weights: NDArray[np.float32] | None = None,
    ) -> None:
        if weights is not None and weights.shape != shape:
            raise ValueError(f"weights of shape {weights.shape}: must have that of a frame, {shape}")
        if dtype.name not in DTYPES:
            raise ValueError(f"slab dtype {dtype.name}: must be one of {', '.join(DTYPES)}")
        self.shape, self.dtype, self.mask, self.weights = shape, dtype, mask, weights
        self.limit = float(np.iinfo(dtype).max) if dtype.kind in "ui" else float("inf")
        self.frame_bytes = int(np.prod(shape)) * dtype.itemsize
        self.slab_frames = slab_frames or max(1, SLAB_BYTES // self.frame_bytes)
        self._make = partial(_touched, (self.slab_frames, *shape), dtype)
        self._claim = Claim(budget, self.slab_frames * self.frame_bytes)
        self._slabs: list[NDArray[Any]] = []
        self._ahead: _Ahead | None = None
        self._pool = pool

    def reserve(self, frames: int) -> int:
        """Claim the memory of `frames` slots; returns for how many there is memory, at least so many or else all that is left."""
        return self._claim.grow(-(-frames // self.slab_frames)) * self.slab_frames

    def trim(self) -> None:
        """No further frame comes: give back what was claimed and holds none. The rest is given back when nobody, such as who
        saves the frames, holds the slabs any more."""
        self._ahead = None
        self._claim.shrink(len(self._slabs))

    def keep(self, frames: int) -> None:
        """Give back what was claimed for more frames."""
        self._claim.shrink(-(-frames // self.slab_frames))

    def succeed(self, other: Slabs) -> None:
        """Have the memory that another one, for frames alike, has claimed; that has claimed none then. Done twice, by either, all
        is as before. What the other one holds is free when nobody knows it any more."""
        self._claim, other._claim = other._claim, self._claim

    @property
    def nbytes(self) -> int:
        """Memory held, the slab taken ahead included."""
        return (len(self._slabs) + (self._ahead is not None)) * self.slab_frames * self.frame_bytes

    def slab(self, number: int) -> NDArray[Any]:
        """Counts, zero frequency at [0, 0]. Shape (slab_frames, y, x); the same array at every call."""
        return self._slabs[number]

    def __len__(self) -> int:
        return len(self._slabs)

    def require(self, frames: int, expected: int | None = None) -> None:
        """Have slabs for `frames` slots and one ahead, unless `expected` frames need none. Raises `ValueError` where there is no
        memory for so many."""
        if (room := self.reserve(frames)) < frames:
            raise ValueError(f"{frames} frames: only {room} fit into the memory allowed")
        needed = -(-frames // self.slab_frames)
        while len(self._slabs) < needed:
            ahead, self._ahead = self._ahead, None
            self._slabs.append(ahead.result() if ahead is not None else self._make())
        full = len(self._slabs) * self.slab_frames
        if self._ahead is None and (expected is None or expected > full) and self.reserve(full + 1) > full:
            self._ahead = _Ahead(self._make, self._pool)

    def row(self, slot: int) -> NDArray[Any]:
        """The frame of a slot, shape (y, x), to be written or read in place."""
        frame: NDArray[Any] = self._slabs[slot // self.slab_frames][slot % self.slab_frames]
        return frame


def _touched(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    slab = np.empty(shape, dtype)
    slab.reshape(-1).view(np.uint8)[::PAGE_BYTES] = 0
    return slab


class _Ahead:
    """A slab being made elsewhere. Waiting for a pool that will never run it is avoided by making it here instead."""

    def __init__(self, make: Callable[[], NDArray[Any]], pool: Executor | None) -> None:
        self._make = make
        self._claimed = threading.Lock()
        self._done = threading.Event()
        self._slab: NDArray[Any] | None = None
        if pool is not None:
            try:
                pool.submit(self._run)
                return
            except RuntimeError:
                return
        threading.Thread(target=self._run, name="slab", daemon=True).start()

    def _run(self) -> None:
        if self._claimed.acquire(blocking=False):
            try:
                self._slab = self._make()
            except MemoryError:
                self._slab = None
            self._done.set()

    def result(self) -> NDArray[Any]:
        if self._claimed.acquire(blocking=False):
            return self._make()
        self._done.wait(60.0)
        return self._slab if self._slab is not None else self._make()
