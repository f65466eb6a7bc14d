"""What wires have in common that send a JSON header and the pixels behind it; every field is checked before it is believed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ptystream.codecs import CODECS, FILTER_ID, MAX_FRAME_BYTES
from ptystream.events import Buffer, Payload

from ..wire import WireError, json_object
from .protocol import MAX_HEADER_BYTES, MAX_INDEX, MAX_SIDE

DTYPES = {
    "uint8": "|u1",
    "uint16": "<u2",
    "uint32": "<u4",
    "int8": "|i1",
    "int16": "<i2",
    "int32": "<i4",
    "float32": "<f4",
    "float64": "<f8",
}


def header_of(parts: Sequence[Buffer]) -> dict[str, Any]:
    """The JSON object in the first part. Raises `WireError`."""
    if not parts:
        raise WireError("truncated", "a message without parts")
    return json_object(parts[0], MAX_HEADER_BYTES, "a header")


def whole(header: Mapping[str, Any], key: str) -> int:
    """A whole number from 0. Raises `WireError`."""
    value = header.get(key)
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not int or not 0 <= value < MAX_INDEX:
        raise WireError("index_range", f"{key} {header.get(key)!r:.40}: must be a whole number from 0 to 2^48")
    return value


def shape_of(header: Mapping[str, Any], *, x_first: bool) -> tuple[int, int]:
    """(y, x) of 'shape', whose order the wire says; a third axis of length 1 is taken away. Raises `WireError`."""
    listed = header.get("shape")
    if isinstance(listed, list) and all(type(n) is int for n in listed):
        sides = [n for n in listed if n != 1] if len(listed) > 2 else listed
        if len(sides) == 2 and all(0 < n <= MAX_SIDE for n in sides):
            return (sides[1], sides[0]) if x_first else (sides[0], sides[1])
    raise WireError("wrong_shape", f"shape {listed!r:.60}: must be two sides, each 1 to {MAX_SIDE}")


def dtype_of(name: Any) -> np.dtype[Any]:
    """A type by its name. Raises `WireError`."""
    if not isinstance(name, str) or name not in DTYPES:
        raise WireError("wrong_dtype", f"type {name!r:.40}: must be one of {', '.join(DTYPES)}")
    return np.dtype(DTYPES[name])


def payload_of(blob: Buffer, codec: str, dtype: np.dtype[Any], shape: tuple[int, int]) -> Payload:
    """One frame; a raw one must have the right size. Raises `WireError`."""
    if codec not in CODECS:
        raise WireError("unknown_codec", f"codec {codec!r:.40}: must be one of {', '.join(('raw', *FILTER_ID))}")
    wanted, received = shape[0] * shape[1] * dtype.itemsize, memoryview(blob).nbytes
    if wanted > MAX_FRAME_BYTES:
        raise WireError("oversized", f"shape {shape} of {dtype}: {wanted} bytes, {MAX_FRAME_BYTES} are allowed")
    if codec == "raw" and received != wanted:
        raise WireError("truncated", f"{wanted} bytes announced by shape and type, {received} received")
    return Payload(blob, codec, dtype, shape)
