"""Nested mappings in HDF5 with the node types that ptypy's files use; reading executes nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np

REFUSED = ("pickle", "record_array")


class H5Error(ValueError):
    """A node that cannot be written or will not be read; the text names it."""


class Param(dict[str, Any]):
    """A mapping that is written as ptypy's parameter type rather than as a dict."""


def write(group: h5py.Group, key: str, value: Any) -> None:
    """Write one value below `group`."""
    name = key.replace("/", "_SLASH_")
    node: Any
    if isinstance(value, Mapping):
        node, tag = group.create_group(name), "param" if isinstance(value, Param) else "dict"
        for inner, content in value.items():
            write(node, str(inner), content)
    elif value is None:
        node, tag = group.create_dataset(name, data=np.zeros(1)), "None"
    elif isinstance(value, str):
        node, tag = group.create_dataset(name, data=value, dtype=h5py.string_dtype()), "string"
    elif isinstance(value, np.ndarray):
        big = {"compression": "gzip", "shuffle": True} if value.size > 1 else {}
        node, tag = group.create_dataset(name, data=value, **big), "array"
    elif isinstance(value, (bool, int, float, complex, np.generic)):
        node, tag = group.create_dataset(name, data=value), "scalar"
    elif isinstance(value, (list, tuple)):
        word = "list" if isinstance(value, list) else "tuple"
        kinds = {type(v) for v in value}
        if value and len(kinds) == 1 and kinds <= {int, float, complex, bool}:
            node, tag = group.create_dataset(name, data=np.asarray(value)), "array" + word
        else:
            node, tag = group.create_group(name), word
            for k, content in enumerate(value):
                write(node, f"{k:05d}", content)
    else:
        raise H5Error(f"{group.name}/{key}: {type(value).__name__} has no form in this file")
    node.attrs["type"] = tag
    if name != key:
        node.attrs["escaped"] = "1"


def read(node: Any) -> Any:
    """The value of a node. Raises `H5Error` for those that could only be read by executing something, in whatever depth."""
    tag = node.attrs.get("type", "dict" if isinstance(node, h5py.Group) else "array")
    tag = tag.decode() if isinstance(tag, bytes) else str(tag)
    if tag in REFUSED:
        raise H5Error(f"{node.name}: a node of type {tag!r} is not read: it could execute code")
    if isinstance(node, h5py.Group):
        content = {str(k).replace("_SLASH_", "/"): read(v) for k, v in node.items()}
        if tag in ("list", "tuple"):
            ordered = [content[k] for k in sorted(content)]
            return ordered if tag == "list" else tuple(ordered)
        return content
    if tag == "None":
        return None
    if tag == "string":
        raw = node[()]
        return raw.decode() if isinstance(raw, bytes) else str(raw)
    value = node[()]
    if tag == "arraylist":
        return list(value.tolist())
    if tag == "arraytuple":
        return tuple(value.tolist())
    if tag == "scalar" and isinstance(value, np.generic):
        return value.item()
    return value


def stamp(file: h5py.File) -> None:
    """Root attributes of the format."""
    file.attrs["h5rw_version"] = "0.1"
    file.attrs["ctime"] = file.attrs["mtime"] = time.asctime()
