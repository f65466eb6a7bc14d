"""The pieces of a NeXus file: groups of a class, numbers with units, texts with a type, times."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import h5py
import numpy as np


def group(parent: Any, name: str, kind: str, **attributes: Any) -> h5py.Group:
    """A group of a NeXus class."""
    made = parent.create_group(name)
    made.attrs["NX_class"] = kind
    for key, value in attributes.items():
        made.attrs[key] = value
    return made


def number(parent: h5py.Group, name: str, value: Any, units: str | None = None) -> h5py.Dataset:
    """Real numbers with their unit."""
    made = parent.create_dataset(name, data=np.asarray(value, float))
    if units is not None:
        made.attrs["units"] = units
    return made


def note(parent: Any, name: str, description: str, value: Any) -> None:
    """Nested plain values as an NXnote of JSON."""
    made = group(parent, name, "NXnote")
    made["description"], made["type"] = description, "application/json"
    made["data"] = json.dumps(value, default=_as_json)


def values(parent: Any, name: str, held: Mapping[str, Any]) -> None:
    """A nested mapping of plain values as an NXcollection: numbers and texts as they are, what HDF5 has no form for as JSON, and
    None as an empty dataset."""
    made = group(parent, name, "NXcollection")
    for key, value in held.items():
        safe = str(key).replace("/", "|") or "_"
        if isinstance(value, Mapping):
            values(made, safe, value)
        elif value is None:
            made[safe] = h5py.Empty("f")
        elif isinstance(value, (str, bool, int, float)) and not (isinstance(value, int) and abs(value) >= 1 << 63):
            made[safe] = value.replace("\0", "") if isinstance(value, str) else value
        elif isinstance(value, (list, tuple, np.ndarray)) and np.asarray(value, object).size and _numbers(value):
            made[safe] = np.asarray(value)
        else:
            made[safe] = json.dumps(value, default=_as_json)


def moment(seconds: float) -> str:
    """Seconds since the epoch as ISO 8601, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _numbers(value: Any) -> bool:
    try:
        return np.asarray(value).dtype.kind in "biuf"
    except ValueError:  # of unequal lengths
        return False


def _as_json(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value.item() if isinstance(value, np.generic) else str(value)
