"""Arrays in an answer: what they are as plain values, and their raw bytes beside."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

DTYPES = ("|u1", "<u2", "<u4", "<i4", "<i8", "<f4", "<f8")


def carried(name: str, array: NDArray[Any]) -> dict[str, Any]:
    """An array as an entry of `arrays` in an answer: name, dtype, shape, and data in C order.

    Raises `ValueError` for a dtype that is none of `DTYPES`.
    """
    plain = np.ascontiguousarray(array)
    if plain.dtype == np.bool_:
        plain = plain.view(np.uint8)
    if plain.dtype.str not in DTYPES:
        raise ValueError(f"array {name}: dtype {plain.dtype.str}: must be one of {', '.join(DTYPES)}")
    return {"name": name, "dtype": plain.dtype.str, "shape": list(plain.shape), "data": plain.tobytes()}


def array_of(entry: Mapping[str, Any]) -> NDArray[Any]:
    """The array of such an entry, read-only. Raises `ValueError` for what is none."""
    dtype, shape, data = entry.get("dtype"), entry.get("shape"), entry.get("data")
    whole = isinstance(shape, list) and all(isinstance(n, int) and n >= 0 for n in shape)
    if dtype not in DTYPES or not isinstance(shape, list) or not whole or not isinstance(data, bytes):
        raise ValueError(f"no array: dtype {dtype!r:.40}, shape {shape!r:.60}, data {type(data).__name__}")
    if math.prod(shape) * np.dtype(dtype).itemsize != len(data):
        raise ValueError(f"array of shape {shape!r:.60}, {dtype}: {len(data)} bytes came")
    return np.frombuffer(data, dtype).reshape(shape)
