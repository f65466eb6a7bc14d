"""Nested mappings in HDF5 with the node types that ptypy's files use; reading executes nothing and follows no link.

A node's attribute `type` says what it was:

================== ===============================================================================================
type               node
================== ===============================================================================================
dict, param        group; 'param' is ptypy's parameter type
list, tuple        group with the keys 00000, 00001, …
arraylist, -tuple  dataset: a list or tuple of equal numbers, or of arrays of equal shape
array              dataset
scalar             dataset without axes: number, complex, bool, or a record of such
string             dataset: UTF-8 of variable length
None               dataset of one 0.0
pickle, …          never written; refused where they are met, because reading them could execute code
================== ===============================================================================================

A '/' in a key is written as `_SLASH_`, and the attribute `escaped` says so.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

REFUSED = ("pickle", "record_array")
MAX_BYTES = 1 << 34
"""What one `read` takes into memory at most."""
MAX_NODE_BYTES = 1 << 32
"""The largest dataset, and the largest stored piece (HDF5 'chunk') of one, that is read."""
MAX_DEPTH = 32
MAX_NODES = 10_000_000


class H5Error(ValueError):
    """A node that cannot be written or will not be read; the text names it."""


class Param(dict[str, Any]):
    """A mapping that is written as ptypy's parameter type rather than as a dict."""


def write(group: h5py.Group, key: str, value: Any, *, level: int = 4) -> None:
    """Write one value below `group`; arrays are compressed with gzip `level`. Raises `H5Error` for what has no form."""
    name = key.replace("/", "_SLASH_")
    node: Any
    if isinstance(value, Mapping):
        node, tag = group.create_group(name), "param" if isinstance(value, Param) else "dict"
        for inner, content in value.items():
            write(node, str(inner), content, level=level)
    elif value is None:
        node, tag = group.create_dataset(name, data=np.zeros(1)), "None"
    elif isinstance(value, str):
        node, tag = group.create_dataset(name, data=value, dtype=h5py.string_dtype()), "string"
    elif isinstance(value, np.ndarray):
        if value.dtype.kind not in "biufc":
            raise H5Error(f"{group.name}/{key}: an array of {value.dtype} has no form in this file")
        node, tag = _array(group, name, value, level), "array" if value.ndim else "scalar"
    elif isinstance(value, (bool, int, float, complex, np.generic)):
        node, tag = _scalar(group, key, name, value), "scalar"
    elif isinstance(value, (list, tuple)):
        word = "list" if isinstance(value, list) else "tuple"
        if _is_homogeneous(value):
            node, tag = _array(group, name, np.asarray(value), level), "array" + word
        else:
            node, tag = group.create_group(name), word
            for k, content in enumerate(value):
                write(node, f"{k:05d}", content, level=level)
    else:
        raise H5Error(f"{group.name}/{key}: {type(value).__name__} has no form in this file")
    node.attrs["type"] = tag
    if name != key:
        node.attrs["escaped"] = "1"


def _array(group: h5py.Group, name: str, value: np.ndarray[Any, Any], level: int) -> Any:
    packed = value.ndim > 0 and value.size > 0
    how: dict[str, Any] = {"compression": "gzip", "compression_opts": level, "shuffle": True} if packed else {}
    return group.create_dataset(name, data=value, **how)


def _scalar(group: h5py.Group, key: str, name: str, value: Any) -> Any:
    if isinstance(value, np.generic) and value.dtype.kind not in "biufcV":
        raise H5Error(f"{group.name}/{key}: {value.dtype} has no form in this file")
    try:
        return group.create_dataset(name, data=value)
    except (TypeError, OverflowError) as error:  # a whole number of more than 64 bits
        raise H5Error(f"{group.name}/{key}: {value!r:.60} has no form in this file") from error


def _is_homogeneous(value: list[Any] | tuple[Any, ...]) -> bool:
    """Equal numbers (whole ones of 64 bits), or arrays of one shape and type."""
    if not value:
        return False
    kinds = {type(v) for v in value}
    if len(kinds) != 1:
        return False
    if isinstance(value[0], np.ndarray):
        return len({(v.shape, v.dtype) for v in value}) == 1 and value[0].dtype.kind in "biufc"
    if kinds == {int}:
        return all(-(1 << 63) <= v < 1 << 63 for v in value)
    return kinds <= {float, complex, bool} or issubclass(next(iter(kinds)), np.number)


def read(node: Any) -> Any:
    """The value of a node and all below it.

    Raises `H5Error` for nodes that could only be read by executing something, for links that leave the file, for datasets
    that lie outside it, and for sizes above the limits, before memory is taken.
    """
    return _Reader().value(node, 0)


class _Reader:
    """One `read`: what it may still take."""

    def __init__(self) -> None:
        self.left, self.nodes = MAX_BYTES, MAX_NODES

    def value(self, node: Any, depth: int) -> Any:
        self.nodes -= 1
        if depth > MAX_DEPTH or self.nodes < 0:
            raise H5Error(f"{node.name}: nested deeper than {MAX_DEPTH}, or more than {MAX_NODES} nodes: links in a ring?")
        tag = node.attrs.get("type", "dict" if isinstance(node, h5py.Group) else "array")
        tag = tag.decode(errors="replace") if isinstance(tag, bytes) else str(tag)
        if tag in REFUSED:
            raise H5Error(f"{node.name}: a node of type {tag!r} is not read: it could execute code")
        if isinstance(node, h5py.Group):
            content = {str(k).replace("_SLASH_", "/"): self.value(inside(node, k), depth + 1) for k in node}
            if tag in ("list", "tuple"):
                ordered = [content[k] for k in sorted(content)]
                return ordered if tag == "list" else tuple(ordered)
            return content
        if tag == "None":
            return None
        self.left -= check(node)
        if self.left < 0:
            raise H5Error(f"{node.name}: with this the file holds more than the {MAX_BYTES} bytes that are read at once")
        raw = node[()]
        if tag == "string" or isinstance(raw, (bytes, str)):
            return raw.decode(errors="replace") if isinstance(raw, bytes) else str(raw)
        return _plain(raw, tag)


def _plain(value: Any, tag: str) -> Any:
    if tag in ("arraylist", "arraytuple") and np.ndim(value):
        inner = value.tolist() if value.ndim == 1 else list(value)
        return inner if tag == "arraylist" else tuple(inner)
    if tag == "scalar" and isinstance(value, np.generic) and value.dtype.kind != "V":
        return value.item()
    return value


def inside(group: h5py.Group, key: str) -> Any:
    """A member that lies in the same file. Raises `H5Error` for a link to another file, or to nothing."""
    link = group.get(key, getlink=True)
    if isinstance(link, h5py.ExternalLink):
        raise H5Error(f"{group.name}/{key}: a link to another file ({link.filename}) is not followed")
    node = group.get(key)
    if not isinstance(node, (h5py.Group, h5py.Dataset)):
        raise H5Error(f"{group.name}/{key}: leads to nothing that can be read")
    return node


def has(group: h5py.Group, key: str) -> bool:
    """Whether there is a member, without following a link to it."""
    return group.get(key, getlink=True) is not None


def check(dataset: Any, largest: int = MAX_NODE_BYTES) -> int:
    """Bytes that a dataset takes in memory. Raises `H5Error` where it must not be read: its type, place or size."""
    dtype = dataset.dtype
    text = h5py.check_string_dtype(dtype) is not None and dataset.shape == ()
    record = dtype.kind == "V" and dtype.names is not None and all(dtype[n].kind in "biufcS" for n in dtype.names)
    if not (text or record or dtype.kind in "biufc"):
        raise H5Error(f"{dataset.name}: values of type {dtype} are not read: numbers and texts are")
    if dataset.is_virtual or dataset.external:
        raise H5Error(f"{dataset.name}: its values lie in other files, which are not opened")
    if dataset.shape is None:
        raise H5Error(f"{dataset.name}: is empty")
    size = piece = int(dtype.itemsize)
    for n in dataset.shape:
        size *= int(n)
    for n in dataset.chunks or ():
        piece *= int(n)
    if size > largest or piece > largest:
        raise H5Error(f"{dataset.name}: shape {dataset.shape} of {dtype}: {max(size, piece)} bytes, {largest} are allowed")
    if size > 1 << 20 and dataset.id.get_storage_size() == 0:
        raise H5Error(f"{dataset.name}: shape {dataset.shape} is announced and nothing is stored: the file is not whole")
    return size


def open_file(path: str | Path, mode: str = "r", **more: Any) -> h5py.File:
    """Open an HDF5 file. Raises `H5Error` with the path where it is none, or cut off; `OSError` where it cannot be opened."""
    try:
        return h5py.File(path, mode, **more)
    except (BlockingIOError, FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except OSError as error:
        if error.errno is not None:
            raise
        raise H5Error(f"{path}: no HDF5 file, or not a whole one ({error})") from error


def stamp(file: h5py.File) -> None:
    """Root attributes of the format."""
    file.attrs["h5rw_version"] = "0.1"
    file.attrs["ctime"] = file.attrs["mtime"] = time.asctime()
