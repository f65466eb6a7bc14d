"""Arithmetic on arrays (layer, y, x) that no cache holds, as probes of all frames: some layers at a time, on the threads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from .backend import Backend

Fields = Mapping[str, Any]
"""Name of a storage: an array of its shape."""

T = TypeVar("T")


def by_layers(on: Backend, like: Any, work: Callable[[slice], T]) -> list[T]:
    """work(layers) over all of them, as many at a time as a cache holds of an array `like` this; results in a fixed order."""
    size = max(1, on.tile_bytes // max(1, like[0].nbytes)) if len(like) else 1
    slices = [slice(first, first + size) for first in range(0, len(like), size)]
    parts = on.sweeper.sweep(slices, lambda _, share: [work(layers) for layers in share])
    return [result for part in parts for result in part]


def inner(on: Backend, a: Any, b: Any) -> float:
    """Re Σ conj(a) b; its rows are added up in double precision."""

    def product(layers: slice) -> Any:
        x, y = (v if v.flags.c_contiguous else v.copy() for v in (a[layers], b[layers]))
        rows = np.einsum("...x,...x->...", x.view(x.real.dtype), y.view(y.real.dtype))
        return rows.sum(dtype=np.float64)

    return float(sum(by_layers(on, a, product)))


def scaled(on: Backend, factor: float, field: Any, more: float = 0.0, other: Any = None, out: Any = None) -> Any:
    """factor · field + more · other, in `out`, which may be either of them, or else in a new array."""
    out = on.xp.empty_like(field) if out is None else out
    real = field.real.dtype.type

    def work(layers: slice) -> None:
        part = real(factor) * field[layers]
        if other is not None:
            part += real(more) * other[layers]
        out[layers] = part

    by_layers(on, field, work)
    return out
