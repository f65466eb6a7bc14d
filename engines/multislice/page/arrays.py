"""Arrays among an engine's parameters."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, PlainSerializer

from ptystream.params.attached import Attached, attached
from ptystream.scan.parameters import load_array

MOST_LISTED = 64
"""Numbers of an array that is written out where parameters are noted."""


def noted(value: Any) -> Any:
    """An array as lists where it is short and real; otherwise its shape, type and a digest of its content."""
    if not isinstance(value, np.ndarray):
        return value
    if value.size <= MOST_LISTED and value.dtype.kind in "biuf":
        return value.tolist()
    digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
    return {"shape": list(value.shape), "dtype": value.dtype.str, "sha256": digest}


def _array_or_number(value: Any) -> Any:
    return value if value is None or isinstance(value, int | float) else load_array(value)


ArrayParameter = Annotated[
    np.ndarray | list[Any] | str | None, AfterValidator(load_array), PlainSerializer(noted, when_used="json")
]
"""An array, a nested list, or a file as of `ptystream.scan.parameters.load_array`."""
DatasetInMemory = Annotated[
    np.ndarray | Attached | list[Any] | str | None, AfterValidator(attached), PlainSerializer(str, when_used="json")
]
"""Measurements that a script hands over."""
ArrayOrNumber = Annotated[
    float | np.ndarray | list[Any] | str | None, AfterValidator(_array_or_number), PlainSerializer(noted, when_used="json")
]

APERTURE = "aperture"
"""A probe that is made from the aperture's mask."""


def _probe(value: Any) -> Any:
    return value if isinstance(value, str) and value == APERTURE else load_array(value)


ProbeParameter = Annotated[np.ndarray | list[Any] | str | None, AfterValidator(_probe), PlainSerializer(noted, when_used="json")]
"""An array as of `ArrayParameter`, or `APERTURE`."""
