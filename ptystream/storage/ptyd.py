"""Prepared frames as `.ptyd` files in ptypy's layout, written chunk by chunk.

`/meta` says what the frames are, `/info` how they were prepared, and `/chunks/<n>` holds `data` (frame, y, x) with zero
frequency at n // 2, `indices`, `positions` (frame, 2) in metres and `weights` (0 where a pixel is not to be used). A chunk is a
group of the master file, or an external link to a file of its own.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from . import h5
from .ptyr import whole

log = logging.getLogger(__name__)

LOCKED_S = 60.0
"""How long to wait for a reader that has the file open."""
Mode = Literal["append", "link", "merge"]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Frames that became usable together."""

    data: NDArray[Any]
    """Counts, (frame, y, x), zero frequency at n // 2."""
    weights: NDArray[np.bool_]
    """Whether a pixel is valid, shape as data."""
    positions: NDArray[np.float64]
    """Metres (y, x), (frame, 2)."""
    indices: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.indices)


class PtydWriter:
    """One `.ptyd` file that grows. `meta` and `info` are given with every call, because they grow too.

    Every file appears whole (written aside, then renamed), but for the master in mode 'append', which is changed in place.
    Raises `OSError` where a file cannot be written, or is kept locked by a reader for longer than `LOCKED_S`.
    """

    def __init__(self, path: Path, mode: Mode, chunk_format: str) -> None:
        self.path, self.mode, self._format = path, mode, chunk_format
        self.chunks = 0

    def part(self, number: int) -> Path:
        """File of a chunk, in the modes with files of their own."""
        return self.path.with_name(self.path.name + self._format % number)

    def add(self, chunk: Chunk, meta: Mapping[str, Any], info: Mapping[str, Any]) -> int:
        """Write a chunk; returns its number."""
        number = self.chunks
        if number == 0:
            set_aside(self.path)
        if self.mode == "append" and number:
            with _changing(self.path) as file:
                write_chunk(h5.inside(file, "chunks"), str(number), chunk)
        elif self.mode == "append":
            with whole(self.path) as file:
                _head(file, meta, info)
                write_chunk(make_group(file, "chunks"), "0", chunk)
        else:
            with whole(self.part(number)) as file:
                h5.stamp(file)
                _write_into(file, chunk)
            self._master(number + 1, meta, info)
        self.chunks += 1
        return number

    def revise(self, number: int, positions: Mapping[int, tuple[float, float]], withdrawn: list[int]) -> None:
        """Change rows of a chunk: other positions, or no valid pixel any more."""
        with _changing(self.path if self.mode == "append" else self.part(number)) as file:
            chunk = file["chunks"][str(number)] if self.mode == "append" else file
            for row, position in positions.items():
                chunk["positions"][row] = position
            for row in withdrawn:
                chunk["weights"][row] = False

    def finish(self, meta: Mapping[str, Any], info: Mapping[str, Any]) -> None:
        """The scan is over: what is known at its end is written, and 'merge' makes one file."""
        if self.chunks == 0:
            return
        if self.mode == "append":
            with _changing(self.path) as file:
                del file["meta"], file["info"]
                _head(file, meta, info, stamped=True)
        elif self.mode == "link":
            self._master(self.chunks, meta, info)
        else:
            self._merge(meta, info)

    def _master(self, chunks: int, meta: Mapping[str, Any], info: Mapping[str, Any]) -> None:
        with whole(self.path) as file:
            _head(file, meta, info)
            links = make_group(file, "chunks")
            for k in range(chunks):
                links[str(k)] = h5py.ExternalLink(self.part(k).name, "/")

    def _merge(self, meta: Mapping[str, Any], info: Mapping[str, Any]) -> None:
        parts = [self.part(k) for k in range(self.chunks)]
        with contextlib.ExitStack() as opened, whole(self.path) as file:
            files = [opened.enter_context(h5.open_file(part)) for part in parts]
            _head(file, meta, info)
            made = make_group(make_group(file, "chunks"), "0")
            indices = np.concatenate([f["indices"][()] for f in files])
            positions = np.concatenate([f["positions"][()] for f in files])
            h5.write(made, "indices", indices.tolist())
            h5.write(made, "positions", positions)
            for name in ("data", "weights"):
                first = files[0][name]
                target = _frames(made, name, (len(indices), *first.shape[1:]), first.dtype)
                at = 0
                for f in files:
                    for row in range(len(f[name])):  # every frame is a piece of its own: it is copied as it is stored
                        skipped, raw = f[name].id.read_direct_chunk((row, 0, 0))
                        target.id.write_direct_chunk((at, 0, 0), raw, skipped)
                        at += 1
        for part in parts:
            part.unlink()


def write_chunk(group: h5py.Group, name: str, chunk: Chunk) -> None:
    """Write a chunk as a group."""
    _write_into(make_group(group, name), chunk)


def _write_into(group: h5py.Group, chunk: Chunk) -> None:
    _frames(group, "data", chunk.data.shape, chunk.data.dtype)[...] = chunk.data
    _frames(group, "weights", chunk.weights.shape, chunk.weights.dtype)[...] = chunk.weights
    h5.write(group, "positions", np.asarray(chunk.positions, np.float64))
    h5.write(group, "indices", [int(i) for i in chunk.indices])


def _frames(group: h5py.Group, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    """A stack of frames, compressed frame by frame, because they are read so."""
    packed = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
    made = group.create_dataset(name, shape=shape, dtype=dtype, chunks=(1, *shape[1:]), **packed)
    made.attrs["type"] = "array"
    return made


def make_group(parent: h5py.Group, name: str) -> h5py.Group:
    made = parent.create_group(name)
    made.attrs["type"] = "dict"
    return made


def _head(file: h5py.File, meta: Mapping[str, Any], info: Mapping[str, Any], *, stamped: bool = False) -> None:
    if not stamped:
        h5.stamp(file)
    h5.write(file, "meta", dict(meta))
    h5.write(file, "info", dict(info))


@contextlib.contextmanager
def _changing(path: Path) -> Iterator[h5py.File]:
    """The file, open for changes; waits for readers to let go of it."""
    deadline = time.monotonic() + LOCKED_S
    while True:
        try:
            file = h5.open_file(path, "r+", libver="v110")
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            break
    with file:
        yield file
        file.attrs["mtime"] = time.asctime()


def set_aside(path: Path) -> Path | None:
    """Rename a file that is there to `<name>.old`, with the parts beside it that it links to; returns the new name."""
    if not path.exists():
        return None
    count = 1
    while (old := path.with_name(f"{path.name}.old{'' if count == 1 else count}")).exists():
        count += 1
    os.replace(path, old)
    log.warning("%s: was there already: renamed to %s", path, old.name)
    try:
        with h5.open_file(old, "r+") as file:
            chunks = file["chunks"]
            for name in list(chunks):
                link = chunks.get(name, getlink=True)
                if not isinstance(link, h5py.ExternalLink):
                    continue
                part = path.with_name(Path(link.filename).name)
                if part.name.startswith(path.name) and part.is_file():
                    moved = part.with_name(old.name + part.name.removeprefix(path.name))
                    os.replace(part, moved)
                    del chunks[name]
                    chunks[name] = h5py.ExternalLink(moved.name, link.path)
    except (OSError, KeyError, h5.H5Error) as error:
        log.warning("%s: its parts stay where they are: %s", old, error)
    return old
