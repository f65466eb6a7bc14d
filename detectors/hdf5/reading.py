"""What is in a dataset by now: how many frames or numbers have been written, and their bytes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.codecs import MAX_FRAME_BYTES, encode
from ptystream.events import Buffer
from ptystream.pieces import codec_of, piece
from ptystream.storage.h5 import H5Error
from ptystream.storage.opened import Opened, RefusedError, affordable, attribute
from ptystream.storage.virtual import grows, leading, rows_there

from ..ptyd.protocol import wire_dtype
from ..units import factor
from ..zmq.protocol import DTYPES, MAX_INDEX, MAX_SIDE
from .paths import Place

MAX_VALUES = 1 << 26
"""Numbers that one read of a slow channel takes at most."""


class FrameDataset:
    """Frames: the last two axes are a frame, the axes before them count frames, the last of those fastest.

    Raises `H5Error` for what cannot be frames.
    """

    def __init__(self, file: Opened, path: str, vectors: bool = False) -> None:
        """`vectors`: the last axis alone is a frame, a row of signals."""
        self.dataset = data = file.dataset(path)
        self._file, name = file, f"{data.file.filename}: {path}"
        axes = 1 if vectors else 2
        if data.ndim < axes + 1:
            needed = "two axes at least, (frame, signal)" if vectors else "three axes at least, (frame, y, x)"
            raise H5Error(f"{name}: shape {data.shape}: frames need {needed}")
        self.shape: tuple[int, int] = (1 if vectors else int(data.shape[-2]), int(data.shape[-1]))
        self._per: tuple[int, ...] = tuple(int(n) for n in data.shape[1:-axes])
        self.total = math.prod(int(n) for n in data.shape[:-axes])
        """Frames that the dataset has room for."""
        self.dtype = wire_dtype(data.dtype)
        self.frame_bytes = self.shape[0] * self.shape[1] * data.dtype.itemsize
        fits = min(self.shape) > 0 and max(self.shape) <= MAX_SIDE and self.frame_bytes <= MAX_FRAME_BYTES
        if not fits or self.total >= MAX_INDEX:
            raise RefusedError(f"{name}: shape {data.shape} of {data.dtype} is not read: it is too large")
        self.single = not vectors and data.chunks is not None and tuple(data.chunks) == (1,) * (data.ndim - 2) + self.shape
        """Whether every frame is stored as a piece of its own."""
        self.codec = (codec_of(data) if not vectors and data.dtype.newbyteorder("<").str in DTYPES else None) or "raw"
        """As which frames are handed on: as they are stored where the codec is known."""
        self._there: NDArray[np.bool_] | None = None
        """Of a virtual dataset, which of its rows have their sources."""

    def written(self, known: int, final: bool) -> int:
        """How many frames are there, `known` of which were there before; `final`: the writer adds nothing any more."""
        data = self.dataset
        if data.is_virtual:
            per = math.prod(self._per)
            if not final or self._there is None:
                self._there = rows_there(self._file, data, 0, known // per)
            return self.total if final else max(known, leading(self._there) * per)
        if final:
            return self.total
        if not self.single:
            return max(known, self.total) if grows(data) else known
        while known < self.total and self._is_stored(known):
            known += 1
        return known

    def _coordinates(self, row: int) -> tuple[int, ...]:
        lead = (self.total // max(1, math.prod(self._per)), *self._per)
        return (*(int(k) for k in np.unravel_index(row, lead)), 0, 0)

    def _is_stored(self, row: int) -> bool:
        return self.dataset.id.get_chunk_info_by_coord(self._coordinates(row)).byte_offset is not None

    def read(self, first: int, stop: int) -> tuple[list[int], list[Buffer]]:
        """(rows, encoded frames) of the rows [first, stop) that are stored; for 'raw' one buffer of all of them."""
        if self.codec != "raw":
            return self._direct(first, stop)
        rows = list(range(first, stop))
        if self.single:
            rows = [row for row in rows if self._is_stored(row)]
        elif self._there is not None:
            there, every = self._there, math.prod(self._per)
            rows = [row for row in rows if there[row // every]]
        if not rows:
            return [], []
        per = math.prod(self._per)
        if rows == list(range(first, stop)) and per == 1:
            frames = self.dataset[first:stop].reshape(stop - first, *self.shape)
        else:
            frames = np.stack([self.dataset[self._coordinates(row)[:-2]] for row in rows])
        return rows, [np.ascontiguousarray(_in_wire_type(frames, self.dtype)).reshape(-1).view(np.uint8).data]

    def _direct(self, first: int, stop: int) -> tuple[list[int], list[Buffer]]:
        rows, encoded = list[int](), list[Buffer]()
        for row in range(first, stop):
            where = self._coordinates(row)
            stored = piece(self.dataset, where, self.frame_bytes)
            if stored is not None:
                rows.append(row)
                # Frames of one message have one codec.
                encoded.append(stored[0] if stored[1] else encode(self.dataset[where[:-2]], self.codec))
        return rows, encoded


class NumberDataset:
    """One slow channel: a dataset, or a component of a table, flattened. Raises `H5Error` for what it cannot be."""

    def __init__(self, file: Opened, place: Place) -> None:
        self.dataset = data = file.dataset(place.path)
        self.place, self._file = place, file
        name = f"{data.file.filename}: {place.path}"
        if place.component is not None and (data.ndim != 2 or place.component >= data.shape[place.axis]):
            raise H5Error(f"{name}: shape {data.shape} has no component {place.component}")
        self._factor = place.factor if place.factor is not None else factor(unit_of(data))
        per = 1 if place.component is not None else math.prod(int(n) for n in data.shape[1:])
        if per > MAX_VALUES:
            raise RefusedError(f"{name}: shape {data.shape}: {per} numbers in a row: {MAX_VALUES} are allowed")
        self._per = max(1, per)
        self._axis = 1 - place.axis if place.component is not None else 0
        self.total = int(data.shape[self._axis] if data.ndim else 1) * self._per
        """Numbers that there is room for."""
        self._leading: int | None = None

    def written(self, known: int, final: bool) -> int:
        """How many numbers are there; of a virtual dataset no further than the first whose source is missing, `final` or not."""
        if self.dataset.is_virtual:
            if not final or self._leading is None:
                self._leading = leading(rows_there(self._file, self.dataset, self._axis, known // self._per)) * self._per
            return max(known, self._leading)
        return self.total if final or grows(self.dataset) else known

    def read(self, first: int, stop: int) -> NDArray[np.float64]:
        """Numbers [first, stop), in our unit."""
        p, data = self.place, self.dataset
        if p.component is not None:
            values = data[first:stop, p.component] if p.axis == 1 else data[p.component, first:stop]
        else:
            low = first // self._per
            values = np.asarray(data[low : -(-stop // self._per)]).ravel()[first - low * self._per : stop - low * self._per]
        return np.asarray(values, np.float64) * self._factor


def is_there(file: Opened, dataset: Any) -> bool:
    """Whether all that a dataset is made of is there, as far as other files are concerned. Raises `RefusedError` for those that
    must not be opened."""
    return not dataset.is_virtual or bool(dataset.ndim and rows_there(file, dataset, 0, 0).all())


def unit_of(dataset: Any) -> str:
    """What its attribute 'units' says; '' where it has none."""
    told = attribute(dataset, "units")
    return "" if told is None else told.decode(errors="replace") if isinstance(told, bytes) else str(told)


def number(file: Opened, place: Place) -> float | None:
    """The first number at a place, in our unit, or None where nothing is there yet. Raises `H5Error` for anything but numbers."""
    if place.attribute is not None:
        if not file.has(place.path):
            return None
        node = file.node(place.path)
        told = attribute(node, place.attribute)
        values = np.asarray(() if told is None else told).ravel()
        if len(values) and values.dtype.kind not in "biuf":
            raise H5Error(f"{node.file.filename}: {place.path}@{place.attribute}: {told!r:.60} is no number")
        scale = place.factor or 1.0
    else:
        if not file.has(place.path):
            return None
        data = file.dataset(place.path)
        if data.ndim > 2 or data.size > MAX_VALUES:
            raise RefusedError(f"{data.file.filename}: {place.path}: shape {data.shape} is not one number")
        if not is_there(file, data):
            return None
        values = np.asarray(data[()]).ravel()
        scale = place.factor if place.factor is not None else factor(unit_of(data))
    finite = [float(v) for v in values[:64].tolist() if math.isfinite(v)]
    return finite[0] * scale if finite else None


def marks(file: Opened, place: Place) -> bool:
    """Whether something other than zero, nothing or an empty text is at a place."""
    if not file.has(place.path):
        return False
    node = file.node(place.path)
    single = getattr(node, "size", 0) == 1 and not node.is_virtual
    if single:
        affordable(node)
    told = attribute(node, place.attribute) if place.attribute is not None else node[()] if single else None
    return told is not None and bool(np.asarray(told).any() if not isinstance(told, (str, bytes)) else told)


def _in_wire_type(frames: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Values that the wire's type does not hold become its largest: 'no data'."""
    if frames.dtype == dtype:
        return frames
    if dtype.kind in "ui" and frames.dtype.itemsize > dtype.itemsize:
        limits = np.iinfo(dtype)
        frames = np.clip(frames, limits.min, limits.max)
    return np.ascontiguousarray(frames.astype(dtype))
