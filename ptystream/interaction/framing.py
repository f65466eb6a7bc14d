"""Messages of ptypy's interaction wire as bytes: JSON, with arrays as raw parts behind it, without I/O.

docs/reference/interaction.md has the layout.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.events import Buffer

MAX_HEADER_BYTES = 1 << 20
MAX_ARRAYS = 1000
"""An array's number has three digits on the wire."""
MAX_DEPTH = 40
MAX_DIMENSIONS = 8
MAX_ELEMENTS = 1 << 40

PLACE = re.compile(r"NPYARRAY\[([0-9]{3})\]")
"""What stands in the message for an array."""
DTYPE = re.compile(r"[<>=|]?(?:b1|[iu][1248]|f[248]|c(?:8|16))")


class FramingError(ValueError):
    """Bytes are no message of this wire, or a value has no form on it; the text says why."""


def encode(message: Any) -> list[Buffer]:
    """The parts of a message: JSON, and each array in it as it lies in memory. Arrays are copied only where they have gaps.

    Mappings have texts as keys; sequences become lists; what has no form of its own is told by its text. Raises `FramingError`.
    """
    arrays: list[NDArray[Any]] = []
    plain = _plain(message, arrays, 0)
    if not arrays:
        return [_dumped({"hasarray": False, "message": plain})]
    if _has_place(message):
        raise FramingError("a text that looks like an array's place cannot be sent beside arrays")
    shapes = [{"dtype": array.dtype.str, "shape": list(array.shape)} for array in arrays]
    header = _dumped({"hasarray": True, "message": plain, "arraylist": shapes})
    return [header, *(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data for array in arrays)]


def decode(parts: Sequence[Buffer]) -> Any:
    """The message in these parts; its arrays are views of them. Raises `FramingError` for whatever is none."""
    if not parts:
        raise FramingError("no parts")
    first = memoryview(parts[0]).cast("B")
    if first.nbytes > MAX_HEADER_BYTES:
        raise FramingError(f"{first.nbytes} bytes of JSON; {MAX_HEADER_BYTES} are allowed")
    try:
        header = json.loads(bytes(first))
    except (ValueError, RecursionError) as error:
        raise FramingError(f"is no JSON: {error}"[:200]) from error
    if not isinstance(header, dict) or "message" not in header:
        raise FramingError("a map with 'message' and 'hasarray' is needed")
    if header.get("hasarray") is not True:
        if len(parts) > 1:
            raise FramingError(f"{len(parts) - 1} parts too many: no arrays are announced")
        _check_depth(header["message"], 0)
        return header["message"]
    listed = header.get("arraylist")
    if not isinstance(listed, list) or len(listed) != len(parts) - 1 or len(listed) > MAX_ARRAYS:
        raise FramingError(f"'arraylist' does not announce the {len(parts) - 1} arrays that came")
    arrays = [_array(told, part) for told, part in zip(listed, parts[1:], strict=True)]
    return _filled(header["message"], arrays, 0)


def _dumped(header: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(header).encode()
    except (ValueError, RecursionError) as error:
        raise FramingError(f"cannot be sent: {error}") from error


def _plain(value: Any, arrays: list[NDArray[Any]], depth: int) -> Any:
    """What JSON has a form for, with places instead of arrays, which are appended."""
    if depth > MAX_DEPTH:
        raise FramingError(f"is nested deeper than {MAX_DEPTH}")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(inside, arrays, depth + 1) for key, inside in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray, memoryview)):
        return [_plain(inside, arrays, depth + 1) for inside in value]
    if isinstance(value, (np.bool_, np.integer, np.floating)):
        return value.item()
    if isinstance(value, (complex, np.complexfloating)):
        value = np.asarray(value)
    if isinstance(value, np.ndarray) and DTYPE.fullmatch(value.dtype.str):
        if len(arrays) == MAX_ARRAYS:
            raise FramingError(f"has more than {MAX_ARRAYS} arrays")
        arrays.append(value)
        return f"NPYARRAY[{len(arrays) - 1:03d}]"
    return str(value)


def _has_place(value: Any) -> bool:
    """Whether a text in it would be taken for an array."""
    if isinstance(value, str):
        return PLACE.search(value) is not None
    if isinstance(value, Mapping):
        return any(_has_place(inside) for inside in value.values())
    return isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)) and any(map(_has_place, value))


def _array(told: Any, part: Buffer) -> NDArray[Any]:
    """One announced array as a view of its part."""
    dtype, shape = (told.get("dtype"), told.get("shape")) if isinstance(told, dict) else (None, None)
    if not isinstance(dtype, str) or not DTYPE.fullmatch(dtype):
        raise FramingError(f"dtype {dtype!r:.60} is not one of plain numbers")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(type(n) is int and n >= 0 for n in shape):
        raise FramingError(f"shape {shape!r:.60} is none")
    if math.prod(max(n, 1) for n in shape) > MAX_ELEMENTS:
        raise FramingError(f"shape {shape!r:.60} is too large")
    view, kind = memoryview(part).cast("B"), np.dtype(dtype)
    if view.nbytes != math.prod(shape) * kind.itemsize:
        raise FramingError(f"{view.nbytes} bytes are no {dtype} {shape!r:.60}")
    return np.frombuffer(view, kind).reshape(shape)


def _filled(value: Any, arrays: list[NDArray[Any]], depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise FramingError(f"is nested deeper than {MAX_DEPTH}")
    if isinstance(value, str) and (found := PLACE.fullmatch(value)):
        if int(found[1]) >= len(arrays):
            raise FramingError(f"{value} was not sent")
        return arrays[int(found[1])]
    if isinstance(value, dict):
        return {key: _filled(inside, arrays, depth + 1) for key, inside in value.items()}
    if isinstance(value, list):
        return [_filled(inside, arrays, depth + 1) for inside in value]
    return value


def _check_depth(value: Any, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise FramingError(f"is nested deeper than {MAX_DEPTH}")
    for inside in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_depth(inside, depth + 1)
