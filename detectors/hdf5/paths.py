"""Where in a file something lies: '/entry/stage/y', '/entry_1/data_1/translation[:,1]', '/entry/energy in eV', '/entry@count'.

A path is followed link by link, so that a file cannot lead the reader to any other file of the machine: an external link or
a virtual dataset may lead to files in the folder of its own file, or below it, and to the folders that are allowed by name.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ptystream.storage.h5 import H5Error

from ..units import factor

MAX_LINKS = 32
"""Links from one name to what it means; more are taken for a ring."""
_FORM = re.compile(r"(?P<path>/[^@\[\]]*?)(?:@(?P<attribute>[^@\[\]]+))?(?:\[(?P<index>[^\]]*)\])?(?: in (?P<unit>\S+))?")


@dataclass(frozen=True, slots=True)
class Place:
    """A dataset, a component of a table in it, or an attribute."""

    path: str
    attribute: str | None = None
    component: int | None = None
    axis: int = 1
    """Axis of the table along which `component` counts."""
    factor: float | None = None
    """To our unit; None: as the dataset's attribute 'units' says."""


def parse(text: str) -> Place:
    """The place that `text` names. Raises `ValueError` with what it should be."""
    match = _FORM.fullmatch(text.strip())
    if match is None or not match["path"].strip("/ "):
        raise ValueError("must be '/group/dataset', '/group/table[:,1]', '/group@attribute', each perhaps with ' in um'")
    index, component, axis = match["index"], None, 1
    if index is not None:
        first, comma, second = (part.strip() for part in index.partition(","))
        number = second if first == ":" and comma else first if second == ":" else ""
        if not number.isdigit():
            raise ValueError(f"[{index}] must be [:,k] (column k of a table) or [k,:] (row k)")
        component, axis = int(number), 1 if first == ":" else 0
    return Place(match["path"], match["attribute"], component, axis, None if match["unit"] is None else factor(match["unit"]))


class Opened:
    """A file with those that its links lead to: a context manager, read only."""

    def __init__(
        self, path: Path, folders: Sequence[str | Path] = (), idle_s: float | None = None, growing: bool = False
    ) -> None:
        """`idle_s`: a file whose format does not tell whether it is closed is so when nobody has touched it for so long.
        `growing`: a file that it leads to is still being written."""
        self._path, self._folders, self._idle_s = path, [Path(folder).resolve() for folder in folders], idle_s
        self._growing = growing
        self._files: dict[Path, Any] = {}
        self._closed: dict[Path, bool] = {}
        self.missing: set[Path] = set()
        """Sources of virtual datasets that could not be opened."""

    def __enter__(self) -> Self:
        self._open(self._path)
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()

    def node(self, path: str) -> Any:
        """The group or dataset at `path`. Raises `H5Error` where there is none, or where it must not be followed."""
        return self._follow(self._open(self._path), path, MAX_LINKS)

    def has(self, path: str) -> bool:
        """Whether there is something at `path`."""
        try:
            self.node(path)
        except H5Error:
            return False
        return True

    def other(self, file: str, beside: str) -> Path:
        """The file that a link in the file `beside` means. Raises `H5Error` where it must not be opened."""
        path = (Path(beside).parent / file).resolve()
        allowed = [self._path.resolve().parent, *self._folders]
        if not any(path.is_relative_to(folder) for folder in allowed):
            raise H5Error(f"{beside}: a link leads to {path}: only files below {allowed[0]} are opened; name others in `folders`")
        return path

    def beside(self, path: Path) -> Opened:
        """Another one, of which this one knows what was opened and what is missing."""
        other = Opened(path, self._folders, self._idle_s, self._growing)
        other._closed, other.missing = self._closed, self.missing
        return other

    def note(self, path: Path) -> None:
        """Find out whether a file is closed, once. Raises `OSError` where it cannot be read."""
        if path.resolve() not in self._closed:
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
            self._files[path] = open_growing(path, self._growing)
        return self._files[path]

    def _follow(self, group: Any, path: str, links: int) -> Any:
        import h5py

        if links < 0:
            raise H5Error(f"{group.file.filename}: {path}: more than {MAX_LINKS} links: a ring?")
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
        if node.external:
            raise H5Error(f"{node.file.filename}: {path}: its values lie in a file that is no HDF5 file: not opened")
        return node


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
