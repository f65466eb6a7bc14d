"""Values as bytes and back, for those who work on one reconstruction: numbers, texts, arrays, and the dataclasses named here.

Nothing else is made from bytes, and nothing is executed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from ptystream.model.bragg import BraggGeometry, RockingCurve
from ptystream.model.geometry import Geometry
from ptystream.model.propagate import Propagator
from ptystream.reconstruction import Dispersion, Stack, Storage, Volume

KNOWN: dict[str, type] = {
    t.__name__: t for t in (Storage, Volume, Stack, Dispersion, Geometry, BraggGeometry, Propagator, RockingCurve)
}
"""What may be packed beside plain values."""

TUPLE, COMPLEX, ARRAY, RECORD = 1, 2, 3, 4
"""Codes of msgpack's extensions."""


def pack(value: Any) -> bytes:
    """Raises `TypeError` for what is not known here."""
    packed: bytes = msgpack.packb(value, default=_extension, strict_types=True)
    return packed


def unpack(data: bytes) -> Any:
    """The value. Raises `ValueError` for bytes that hold something else; arrays are copies that may be written."""
    return msgpack.unpackb(data, ext_hook=_value, strict_map_key=False)


def _extension(value: Any) -> Any:
    if isinstance(value, tuple):
        return msgpack.ExtType(TUPLE, pack(list(value)))
    if isinstance(value, np.generic) and not isinstance(value, np.complexfloating):
        return value.item()
    if isinstance(value, complex | np.complexfloating):
        return msgpack.ExtType(COMPLEX, pack([float(value.real), float(value.imag)]))
    if isinstance(value, np.ndarray):
        return msgpack.ExtType(ARRAY, pack([value.dtype.str, list(value.shape), np.ascontiguousarray(value).tobytes()]))
    if isinstance(value, Mapping):
        return dict(value)
    name, kind = type(value).__name__, type(value)
    if KNOWN.get(name) is kind:
        return msgpack.ExtType(RECORD, pack([name, {field.name: getattr(value, field.name) for field in fields(kind)}]))
    raise TypeError(f"{type(value).__name__} is not known to those who would receive it")


def _value(code: int, data: bytes) -> Any:
    held = unpack(bytes(data))
    try:
        if code == TUPLE:
            return tuple(held)
        if code == COMPLEX:
            return complex(*held)
        if code == ARRAY:
            return _array(*held)
        if code == RECORD and held[0] in KNOWN:
            return KNOWN[held[0]](**held[1])
    except (TypeError, LookupError) as error:
        raise ValueError(f"extension {code} holds something else: {error}") from error
    raise ValueError(f"extension {code} is not known")


def _array(kind: str, shape: list[int], data: bytes) -> NDArray[Any]:
    dtype = np.dtype(kind)
    if dtype.hasobject:
        raise ValueError("an array of objects")
    return np.frombuffer(data, dtype).reshape(shape).copy()
