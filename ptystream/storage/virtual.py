"""Which rows of a virtual dataset are there. HDF5 itself gives zeros where a source is missing or shorter than it will be."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.storage.opened import Opened, RefusedError

MAX_ROWS = 1 << 26
"""Rows of a virtual dataset: what is known of each is kept."""


def rows_there(file: Opened, data: Any, axis: int, known: int) -> NDArray[np.bool_]:
    """Which rows along `axis` of the virtual dataset `data` have all their sources, the first `known` of which had them before.

    A source that lacks altogether is told to `file` (`Opened.missing`), and those that are opened are remembered by it.
    Raises `RefusedError` for sources that must not be opened or cannot be read.
    """
    count = int(data.shape[axis])
    if count > MAX_ROWS:
        raise RefusedError(f"{data.file.filename}: {data.name}: {count} rows are announced: {MAX_ROWS} are allowed")
    mapped, lacking = np.zeros(count, bool), np.zeros(count, bool)
    for source in data.virtual_sources():
        rows = _rows(source.vspace, axis, count)
        mapped[rows] = True
        had = int(np.searchsorted(rows, known))
        lacking[rows[had + _of_source(file, data, source, axis, rows, had) :]] = True
    return np.asarray(mapped & ~lacking)


def leading(there: NDArray[np.bool_]) -> int:
    """Rows before the first one that is not there."""
    return len(there) if there.all() else int(there.argmin())


def _of_source(file: Opened, data: Any, source: Any, axis: int, rows: NDArray[np.intp], had: int) -> int:
    """How many of `rows`, which begin behind `had` others, the source has by now."""
    own = data.file.filename
    if "%b" in source.file_name:
        raise RefusedError(f"{own}: {data.name}: its sources are named by a pattern, {source.file_name!r}: not read")
    path = Path(own) if source.file_name == "." else file.other(source.file_name, own)
    try:
        if had == len(rows):  # it is not opened again, but its writer may have closed it now
            file.note(path)
            return 0
        with file.beside(path) as other:
            name, closed = "/" + source.dset_name.strip("/"), other.closed()
            if not closed and not other.has(name):  # is being made
                file.missing.add(path)
                return 0
            inner = other.dataset(name)
            if inner.is_virtual:
                raise RefusedError(f"{inner.file.filename}: {inner.name}: a virtual dataset of virtual datasets is not read")
            return _written(inner, source, axis, rows, had, closed)
    except OSError:
        file.missing.add(path)
        return 0


def _written(inner: Any, source: Any, axis: int, rows: NDArray[np.intp], had: int, closed: bool) -> int:
    if inner.ndim != source.vspace.get_simple_extent_ndims():  # one row of the whole
        return len(rows) - had if closed or _is_stored(inner, (0,) * inner.ndim) else 0
    every = source.src_space.get_select_type() == _every()
    taken = (np.arange(len(rows)) if every else _rows(source.src_space, axis, int(inner.shape[axis])))[had : len(rows)]
    taken = taken[taken < inner.shape[axis]]
    if closed:
        return len(taken)
    if inner.chunks is None or inner.chunks[axis] > 1:  # of room that was made beforehand nobody knows whether it is filled
        return len(taken) if grows(inner, axis) else 0
    for number, row in enumerate(taken):
        if not _is_stored(inner, (*(0,) * axis, int(row), *(0,) * (inner.ndim - axis - 1))):
            return number
    return len(taken)


def grows(data: Any, axis: int = 0) -> bool:
    """Whether a dataset can become longer than it is."""
    return data.maxshape is not None and data.maxshape[axis] != data.shape[axis]


def _is_stored(inner: Any, at: tuple[int, ...]) -> bool:
    if inner.chunks is None:
        return False
    corner = tuple(k - k % n for k, n in zip(at, inner.chunks, strict=True))
    return inner.id.get_chunk_info_by_coord(corner).byte_offset is not None


def _every() -> int:
    import h5py

    return int(h5py.h5s.SEL_ALL)


def _rows(space: Any, axis: int, limit: int) -> NDArray[np.intp]:
    """Rows along `axis` that a selection takes, in order, below `limit`."""
    if space.get_select_type() == _every():
        return np.arange(limit)
    if not space.is_regular_hyperslab():
        first, last = (int(corner[axis]) for corner in space.get_select_bounds())
        return np.arange(first, min(last + 1, limit))
    start, stride, count, block = (int(told[axis]) for told in space.get_regular_hyperslab())
    if block > limit - start:  # unlimited, or longer than what is there
        return np.arange(start, limit)
    count = min(count, max(0, math.ceil((limit - start) / max(1, stride))))
    rows = (start + stride * np.arange(count)[:, None] + np.arange(block)).ravel()
    return np.asarray(rows[rows < limit])
