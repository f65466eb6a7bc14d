"""Which rows of a virtual dataset are there. HDF5 itself gives zeros where a source is missing, shorter than it will be, or was
never written."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.storage.opened import Opened, RefusedError

MAX_ROWS = 1 << 26
"""Rows of a virtual dataset: what is known of each is kept."""

PATTERN = re.compile("%[b%]")
"""In the name of a source: its block's number, or a percent sign."""


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
        for name, dataset, rows in _blocks(source, axis, count):
            if not len(rows):  # the block behind the last one: whether it will come is not known
                file.missing.add(file.other(name, data.file.filename))
                continue
            mapped[rows] = True
            had = int(np.searchsorted(rows, known))
            lacking[rows[had:][~_of_source(file, data, source, name, dataset, axis, rows, had)]] = True
    return np.asarray(mapped & ~lacking)


def _blocks(source: Any, axis: int, count: int) -> Iterator[tuple[str, str, NDArray[np.intp]]]:
    """(file, dataset, rows of the whole) of a source; where its names have a pattern, those of each block, numbered from
    0, and one without rows behind them."""
    names = source.file_name, source.dset_name
    rows = _rows(source.vspace, axis, count)
    if not any(found[0] == "%b" for name in names for found in PATTERN.finditer(name)):
        yield _filled(names[0], 0), _filled(names[1], 0), rows
        return
    start, stride, _, block = (int(told[axis]) for told in source.vspace.get_regular_hyperslab())
    for number in range(math.ceil(max(0, count - start) / max(1, stride)) + 1):
        first = start + number * stride
        of_block = np.arange(first, min(first + block, max(first, count)))
        yield _filled(names[0], number), _filled(names[1], number), of_block


def _filled(name: str, number: int) -> str:
    """A name with the number of its block; '%%' stands for '%'."""
    return PATTERN.sub(lambda found: str(number) if found[0] == "%b" else "%", name)


def leading(there: NDArray[np.bool_]) -> int:
    """Rows before the first one that is not there."""
    return len(there) if there.all() else int(there.argmin())


def _of_source(
    file: Opened, data: Any, source: Any, name: str, dataset: str, axis: int, rows: NDArray[np.intp], had: int
) -> NDArray[np.bool_]:
    """Which of `rows`, behind the first `had`, the source has by now."""
    own, none = data.file.filename, np.zeros(len(rows) - had, bool)
    path = Path(own) if name == "." else file.other(name, own)
    try:
        if had == len(rows):  # it is not opened again, but its writer may have closed it now
            file.note(path)
            return none
        with file.beside(path) as other:
            place, closed = "/" + dataset.strip("/"), other.closed()
            if not closed and not other.has(place):  # is being made
                file.missing.add(path)
                return none
            inner = other.dataset(place)
            if inner.is_virtual:
                raise RefusedError(f"{inner.file.filename}: {inner.name}: a virtual dataset of virtual datasets is not read")
            return _written(inner, source, axis, rows, had, closed)
    except OSError:
        file.missing.add(path)
        return none


def _written(inner: Any, source: Any, axis: int, rows: NDArray[np.intp], had: int, closed: bool) -> NDArray[np.bool_]:
    """Of a source that grows, rows are there up to the first that is not; of a closed one, those that were ever written."""
    found = np.zeros(len(rows) - had, bool)
    if inner.ndim != source.vspace.get_simple_extent_ndims():  # one row of the whole
        found[:] = _is_stored(inner, (0,) * inner.ndim, closed)
        return found
    every = source.src_space.get_select_type() == _every()
    taken = (np.arange(len(rows)) if every else _rows(source.src_space, axis, int(inner.shape[axis])))[had : len(rows)]
    taken = taken[taken < inner.shape[axis]]
    if not closed and (inner.chunks is None or inner.chunks[axis] > 1):
        # Of room that was made beforehand nobody knows whether it is filled.
        found[: len(taken)] = grows(inner, axis)
        return found
    if closed and inner.chunks is None:
        found[: len(taken)] = inner.id.get_storage_size() > 0
        return found
    for number, row in enumerate(taken):
        found[number] = _is_stored(inner, (*(0,) * axis, int(row), *(0,) * (inner.ndim - axis - 1)), closed)
        if not closed and not found[number]:
            break
    return found


def grows(data: Any, axis: int = 0) -> bool:
    """Whether a dataset can become longer than it is."""
    return data.maxshape is not None and data.maxshape[axis] != data.shape[axis]


def _is_stored(inner: Any, at: tuple[int, ...], closed: bool) -> bool:
    if inner.chunks is None:
        return closed and inner.id.get_storage_size() > 0
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
