"""Digests of the arrays that a scan's parameters mean: a file that was changed since is noticed where only its name is kept."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ptystream.scan.parameters import PtyScanParameters


def digest(array: Any) -> str:
    """Of shape and values, whatever type of number they are kept as: a list in a result is the array that it was made of."""
    plain = np.asarray(array)
    plain = np.ascontiguousarray(plain, np.complex128 if plain.dtype.kind == "c" else np.float64)
    return hashlib.sha256(repr(plain.shape).encode() + plain.tobytes()).hexdigest()[:32]


def contents(parameters: PtyScanParameters) -> dict[str, str]:
    """Name of a parameter → digest, for those that mean an array."""
    held = {name: getattr(parameters, name) for name in type(parameters).model_fields}
    return {name: digest(value) for name, value in held.items() if isinstance(value, np.ndarray)}


def differing(now: Mapping[str, str], then: Mapping[str, str]) -> list[str]:
    """Names of the arrays that were known then and are others now."""
    return sorted(name for name, known in then.items() if now.get(name) != known)
