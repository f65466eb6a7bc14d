"""HDF5 files of others, with the files that they lead to, opened under a list of folders.

A path is followed link by link, so that a file cannot lead the reader to any other file of the machine: an external link or
a virtual dataset may lead to files in the folder of its own file, or below it, and to the folders that are allowed by name.
"""

from __future__ import annotations

import math
import stat
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from ptystream.codecs import MAX_FRAME_BYTES
from ptystream.storage.h5 import H5Error

MAX_LINKS = 32
"""Links from one name to what it means; more are taken for a ring."""
MAX_CHUNK_BYTES = MAX_FRAME_BYTES
"""The largest stored piece (HDF5 'chunk'): the library takes memory for the whole of one, however little is read."""
MAX_ATTRIBUTE_BYTES = 1 << 20


class RefusedError(H5Error):
    """What must not be opened, or is too large: to wait for it is of no use."""


def permitted(path: Path, folders: Sequence[str | Path]) -> Path:
    """`path` with every link of the file system followed. Raises `RefusedError` where it then lies in none of `folders`."""
    found = path.resolve()
    if not any(found.is_relative_to(Path(folder).resolve()) for folder in folders):
        listed = ", ".join(map(str, folders)) or "allowed folders, of which there are none"
        raise RefusedError(f"{path}: only files below {listed} are opened; name {found.parent} in `folders`")
    return found


class Opened:
    """A file with those that its links lead to: a context manager, read only."""

    def __init__(
        self,
        path: Path,
        folders: Sequence[str | Path] = (),
        idle_s: float | None = None,
        growing: bool = False,
        opener: Callable[[Path], Any] | None = None,
    ) -> None:
        """`folders`: where links may lead, beside the folder of the file itself. `idle_s`: a file whose format does not tell
        whether it is closed is so when nobody has touched it for so long. `growing`: a file that it leads to is still being
        written. `opener` opens files instead of `open_growing`."""
        self._path, self._folders, self._idle_s = path, [Path(folder).resolve() for folder in folders], idle_s
        self._growing, self._opener = growing, opener
        self._files: dict[Path, Any] = {}
        self._closed: dict[Path, bool] = {}
        self.missing: set[Path] = set()
        """Sources of virtual datasets that could not be opened."""

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        """Files that are open."""
        return len(self._files)

    def open(self) -> None:
        """Open the file itself. Raises `OSError` where it cannot be read (yet)."""
        self._open(self._path)

    def close(self) -> None:
        """Close the file and those that it led to."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    def node(self, path: str) -> Any:
        """The group or dataset at `path`. Raises `H5Error` where there is none, or where it must not be followed."""
        return self._follow(self._open(self._path), path, MAX_LINKS)

    def has(self, path: str) -> bool:
        """Whether there is something at `path`. Raises `RefusedError` where it must not be followed."""
        try:
            self.node(path)
        except RefusedError:
            raise
        except H5Error:
            return False
        return True

    def other(self, file: str, beside: str) -> Path:
        """The file that a link in the file `beside` means. Raises `RefusedError` where it must not be opened."""
        try:
            return permitted(Path(beside).parent / file, [self._path.resolve().parent, *self._folders])
        except RefusedError as error:
            raise RefusedError(f"{beside}: a link leads to {error}") from None

    def beside(self, path: Path) -> Opened:
        """Another one, of which this one knows what was opened and what is missing."""
        other = Opened(path, self._folders, self._idle_s, self._growing, self._opener)
        other._closed, other.missing = self._closed, self.missing
        return other

    def note(self, path: Path) -> None:
        """Find out whether a file is closed, once. Raises `OSError` where it cannot be read, `RefusedError` for no file."""
        if path.resolve() not in self._closed:
            if not stat.S_ISREG(path.stat().st_mode):  # to open a pipe would wait for ever
                raise RefusedError(f"{path}: is no regular file")
            self._closed[path.resolve()] = is_over(path, self._idle_s)

    def closed(self, every: bool = False) -> bool:
        """Whether the file had been closed by its writer when it was opened; `every`: it and all that it led to."""
        return all(self._closed.values()) if every else self._closed[self._path.resolve()]

    @property
    def alone(self) -> bool:
        """Whether no other file was opened, or missed."""
        return len(self._closed) == 1 and not self.missing

    def _open(self, path: Path) -> Any:
        if path not in self._files:
            self.note(path)  # before anything is read: what is read afterwards is then all there is
            self._files[path] = open_growing(path, self._growing) if self._opener is None else self._opener(path)
        return self._files[path]

    def _follow(self, group: Any, path: str, links: int) -> Any:
        import h5py

        if links < 0:
            raise RefusedError(f"{group.file.filename}: {path}: more than {MAX_LINKS} links: a ring?")
        node = group.file["/"] if path.startswith("/") else group
        parts = [part for part in path.split("/") if part not in ("", ".")]
        for part in parts:
            link = node.get(part, getlink=True) if isinstance(node, h5py.Group) else None
            if link is None:
                there = ", ".join(sorted(node)[:20]) if isinstance(node, h5py.Group) else "a dataset"
                raise H5Error(f"{node.file.filename}: {path}: there is no {part!r} in {node.name} ({there or 'nothing'})")
            if isinstance(link, h5py.ExternalLink):
                other = self._open(self.other(link.filename, node.file.filename))
                node = self._follow(other, link.path, links - 1)
            elif isinstance(link, h5py.SoftLink):
                node = self._follow(node, link.path, links - 1)
            else:
                node = node[part]
        return node

    def dataset(self, path: str) -> Any:
        """The dataset of numbers at `path`. Raises `H5Error` as `node` does, and for anything else."""
        import h5py

        node = self.node(path)
        if not isinstance(node, h5py.Dataset):
            raise H5Error(f"{node.file.filename}: {path}: is a group ({', '.join(sorted(node)[:20])}), not a dataset")
        if node.dtype.kind not in "biuf" or node.shape is None:
            raise H5Error(f"{node.file.filename}: {path}: holds {node.dtype} of shape {node.shape}, not numbers")
        affordable(node)
        for source in node.virtual_sources() if node.is_virtual else ():
            if source.file_name != ".":
                self.other(source.file_name, node.file.filename)
        return node


def affordable(dataset: Any) -> None:
    """Raises `RefusedError` for a dataset of which nothing may be read: its values lie in a file that is no HDF5 file, or the
    library would take too much memory for whatever is read."""
    name = f"{dataset.file.filename}: {dataset.name}"
    if dataset.external:
        raise RefusedError(f"{name}: its values lie in a file that is no HDF5 file: not opened")
    piece = math.prod(int(n) for n in dataset.chunks or ()) * dataset.dtype.itemsize
    if piece > MAX_CHUNK_BYTES:
        pieces = f"is stored in pieces of {dataset.chunks}, {piece} bytes each: {MAX_CHUNK_BYTES} are allowed"
        raise RefusedError(f"{name}: {pieces}; write it in smaller chunks")


def attribute(node: Any, name: str) -> Any:
    """An attribute of a group or dataset; None where it has none. Raises `RefusedError` for one that is too large."""
    import h5py

    if name not in node.attrs:
        return None
    size = h5py.h5a.get_info(node.id, name.encode()).data_size
    if size > MAX_ATTRIBUTE_BYTES:
        raise RefusedError(f"{node.file.filename}: {node.name}@{name}: {size} bytes: {MAX_ATTRIBUTE_BYTES} are allowed")
    return node.attrs[name]


def open_growing(path: Path, growing: bool = False) -> Any:
    """An HDF5 file that another program may be writing. Raises `OSError` where it cannot be read (yet).

    `growing`: a source of its virtual datasets is being written: the library opens it as it opened this one.
    """
    import h5py
    import hdf5plugin  # noqa: F401  (its filters are registered by the import)

    # Only a file that is not being written is held against its announced length.
    ways: list[dict[str, Any]] = [{}, {"libver": "latest", "swmr": True}]
    failure = None
    for way in ways[::-1] if growing or is_closed(path) is False else ways:
        try:
            return h5py.File(path, "r", locking=False, **way)
        except OSError as error:
            failure = failure or error
            if "truncated" in str(error):
                break
    raise OSError(f"{path}: {failure}") from failure


def is_closed(path: Path) -> bool | None:
    """Whether the writer has closed the file; None where its format does not tell (older than HDF5 1.10's).

    The consistency flags of the superblock are set while a file is open for writing, and stay where the writer was killed.
    """
    with open(path, "rb") as file:
        for offset in (0, 512, 1024, 2048):
            file.seek(offset)
            head = file.read(12)
            if len(head) == 12 and head[:8] == b"\x89HDF\r\n\x1a\n":
                return not head[11] & 5 if head[8] >= 3 else None
    return None


def is_over(path: Path, idle_s: float | None) -> bool:
    """Whether the writer has closed the file, or, where its format does not tell, has left it alone for `idle_s`."""
    closed = is_closed(path)
    if closed is None and idle_s is not None:
        return time.time() - path.stat().st_mtime > max(idle_s, 1.0)
    return closed is True
