"""Reading `.ptyd` files, ptypy's and ours, while they may still be written: chunk by chunk, never more at once than is asked.

A chunk that another file holds is opened here and not by HDF5: its file must lie in the master's folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from . import h5
from .ptyd import Chunk

MAX_SIDE = 1 << 15
MAX_CHUNK_FRAMES = 1 << 20
MAX_FRAME_BYTES = 1 << 30
MAX_CHUNKS = 1 << 20
PIECE_BYTES = 1 << 24
"""Frames are read in pieces of about this size."""
DAMAGED = (KeyError, TypeError, ValueError, AttributeError, IndexError, OSError, RuntimeError)


@dataclass(frozen=True, slots=True)
class Meta:
    """What a file says about its frames; None where it does not."""

    shape: tuple[int, int]
    num_frames: int | None
    label: str | None
    psize: tuple[float, float] | None
    energy: float | None
    center: tuple[float, float] | None
    distance: float | None


def read_meta(path: Path) -> Meta:
    """`/meta` of a file. Raises `OSError` or `h5.H5Error` with the path and what is wrong."""
    with opened(path) as file:
        held = h5.read(h5.inside(file, "meta"))
        y, x = (int(n) for n in np.broadcast_to(np.asarray(held["shape"]), 2))
        if not (0 < y <= MAX_SIDE and 0 < x <= MAX_SIDE):
            raise h5.H5Error(f"/meta/shape is {held['shape']}: must be 1 to {MAX_SIDE}")
        count, label = held.get("num_frames"), held.get("label")
        if count is not None and not 0 <= int(count) < 1 << 48:
            raise h5.H5Error(f"/meta/num_frames is {count}")
        return Meta(
            (y, x),
            None if count is None else int(count),
            None if label is None else str(label)[:200],
            _pair(held, "psize"),
            _number(held, "energy"),
            _pair(held, "center", positive=False),
            _number(held, "distance"),
        )


def chunks(path: Path) -> tuple[dict[int, Path], bool]:
    """Number → file of every chunk that is there, in order from 0 without a gap: the master itself, or a file beside it; and
    whether a file that the master names is not there (yet).

    Raises `OSError`, or `h5.H5Error` for a link that leaves the master's folder.
    """
    folder = path.resolve().parent
    found: dict[int, Path] = {}
    with opened(path) as file:
        if not h5.has(file, "chunks"):
            return {}, False
        group = h5.inside(file, "chunks")
        if not isinstance(group, h5py.Group) or len(group) > MAX_CHUNKS:
            raise h5.H5Error(f"/chunks is no group of at most {MAX_CHUNKS} chunks")
        while h5.has(group, name := str(len(found))):
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.ExternalLink):
                found[len(found)] = path
                continue
            part = _part(folder, link)
            if not part.is_file():
                return found, True  # what follows waits for it
            found[len(found)] = part
    return found, False


def frames_in(path: Path, found: Mapping[int, Path]) -> int:
    """Frames that are in these `chunks`. Raises as `read_piece`."""
    total = 0
    for number, file in found.items():
        with opened(file) as held:
            data = h5.inside(held if file != path else h5.inside(h5.inside(held, "chunks"), str(number)), "data")
            total += len(data) if isinstance(data, h5py.Dataset) and data.ndim else 0
    return total


def _part(folder: Path, link: h5py.ExternalLink) -> Path:
    """The file that a link means. ptypy writes absolute names: where the folder was moved, the file beside the master is it."""
    named = Path(link.filename)
    part = (folder / named).resolve()
    if not part.is_relative_to(folder):
        part = folder / named.name
        if not part.is_file() or not part.resolve().is_relative_to(folder):
            raise h5.H5Error(f"/chunks links to {link.filename!r}, which lies outside {folder}: only files beside it are opened")
    if link.path.strip("/"):
        raise h5.H5Error(f"/chunks links to {link.path!r} in {part.name}: a part holds its chunk at its root")
    return part


def read_piece(path: Path, number: int, file: Path, first: int, shape: tuple[int, int]) -> tuple[int, Chunk]:
    """Frames of chunk `number`, which `file` holds, from row `first` on, about `PIECE_BYTES`; and how many the chunk has.

    The file is closed again, so that whoever writes it can. `shape` is that of `/meta`.
    Raises `OSError`, or `h5.H5Error` for anything but what the format says.
    """
    with opened(file) as held:
        group = held if file != path else h5.inside(h5.inside(held, "chunks"), str(number))
        data, places = h5.inside(group, "data"), h5.inside(group, "positions")
        if not isinstance(data, h5py.Dataset) or data.ndim != 3 or data.dtype.kind not in "biuf" or len(data) < 1:
            raise h5.H5Error(f"{data.name}: must be real numbers (frame, y, x)")
        h5.check(data, MAX_CHUNK_FRAMES * MAX_FRAME_BYTES)
        count, frame_bytes = len(data), int(np.prod(data.shape[1:], dtype=object)) * max(data.dtype.itemsize, 8)
        if count > MAX_CHUNK_FRAMES or frame_bytes > MAX_FRAME_BYTES or max(data.shape[1:]) > MAX_SIDE:
            raise h5.H5Error(
                f"{data.name}: {data.shape}: more than {MAX_CHUNK_FRAMES} frames, or of more than {MAX_FRAME_BYTES} bytes"
            )
        if data.shape[1:] != shape:
            raise h5.H5Error(f"{data.name}: frames of {data.shape[1:]}, /meta says {shape}")
        if int(np.prod(data.chunks or (1,), dtype=object)) * data.dtype.itemsize > MAX_FRAME_BYTES:
            raise h5.H5Error(f"{data.name}: is stored in pieces of {data.chunks}")
        if data.id.get_storage_size() == 0:
            raise h5.H5Error(f"{data.name}: {data.shape} is announced and nothing is stored: the file is not whole")
        positions = np.asarray(h5.read(places), np.float64)
        if positions.shape != (count, 2):
            raise h5.H5Error(f"{places.name}: shape {positions.shape}, not ({count}, 2)")
        indices = _indices(group, count)
        weights = _weights(group, data.shape)
        rows = slice(first, min(first + max(1, PIECE_BYTES // frame_bytes), count))
        valid = np.ones((rows.stop - first, *shape), np.bool_) if weights is None else _valid(weights, rows, data.shape)
        return count, Chunk(data[rows], valid, positions[rows], indices[rows])


def _indices(group: h5py.Group, count: int) -> NDArray[np.int64]:
    """Numbers of a chunk's frames; -1: the file does not say."""
    if not h5.has(group, "indices"):
        return np.full(count, -1, np.int64)
    held = np.asarray(h5.read(h5.inside(group, "indices")))
    sound = held.shape == (count,) and held.dtype.kind in "iu" and held.min() >= 0 and held.max() < 1 << 48
    if not sound or len(np.unique(held)) != count:
        return np.full(count, -1, np.int64)
    return held.astype(np.int64)


def _weights(group: h5py.Group, shape: tuple[int, ...]) -> Any:
    """The dataset of weights, which may be one frame's for all; None: every pixel is valid."""
    if not h5.has(group, "weights"):
        return None
    held = h5.inside(group, "weights")
    if not isinstance(held, h5py.Dataset) or held.dtype.kind not in "biuf" or 0 in held.shape:
        raise h5.H5Error(f"{held.name}: must be numbers")
    h5.check(held, MAX_CHUNK_FRAMES * MAX_FRAME_BYTES)
    if int(np.prod(held.chunks or (1,), dtype=object)) * held.dtype.itemsize > MAX_FRAME_BYTES:
        raise h5.H5Error(f"{held.name}: is stored in pieces of {held.chunks}")
    if held.shape not in (shape, shape[1:], (1, *shape[1:])):
        raise h5.H5Error(f"{held.name}: shape {held.shape}, the data have {shape}")
    return held


def _valid(weights: Any, rows: slice, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    held = weights[rows] if weights.shape == shape else weights[...]
    return np.broadcast_to(np.nan_to_num(held) > 0, (rows.stop - rows.start, *shape[1:]))


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """The file, open for reading; whatever is wrong inside it is told with its path."""
    with h5.open_file(path) as file:
        try:
            yield file
        except h5.H5Error as error:
            raise h5.H5Error(f"{path}: {error}") from error
        except DAMAGED as error:
            raise h5.H5Error(f"{path}: incomplete or damaged ({error!r})") from error


def _number(held: dict[str, Any], name: str) -> float | None:
    value = held.get(name)
    if value is None:
        return None
    if not (np.ndim(value) == 0 and np.isfinite(value) and value > 0):
        raise h5.H5Error(f"/meta/{name} is {value!r}: must be a number above 0")
    return float(value)


def _pair(held: dict[str, Any], name: str, *, positive: bool = True) -> tuple[float, float] | None:
    value = held.get(name)
    if value is None:
        return None
    y, x = (float(v) for v in np.broadcast_to(np.asarray(value, float), 2))
    if not np.isfinite([y, x]).all() or min(y, x) < 0 or (positive and not min(y, x) > 0):
        raise h5.H5Error(f"/meta/{name} is {value!r}: must be one or two numbers above 0")
    return y, x
