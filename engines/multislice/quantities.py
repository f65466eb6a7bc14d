"""Everything that is refined, as one vector: arrays by name, real and complex, with one inner product over all of them.

The product of two is Σ over arrays of f Re Σ conj(a) b with f = 2 for complex arrays and 1 for real ones: that of a gradient
(∂L/∂conj(X), or a plain derivative) and a step is then the change of the loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

Vector: TypeAlias = Mapping[str, Any]
"""Name → array on the engine's device."""


def product_of(a: Any, b: Any) -> float:
    """Inner product of two arrays."""
    if a.dtype.kind == "c":
        return 2 * float((a.real * b.real).sum(dtype="f8") + (a.imag * b.imag).sum(dtype="f8"))
    return float((a * b).sum(dtype="f8"))


def product(a: Vector, b: Vector) -> float:
    """Inner product over the names that both have."""
    return sum(product_of(a[name], b[name]) for name in a if name in b)


def combined(a: Vector, factor: float, b: Vector) -> dict[str, Any]:
    """a + factor × b; names that only one has are that one's, times its factor."""
    found = {name: array + (factor * b[name]).astype(array.dtype) if name in b else array for name, array in a.items()}
    return found | {name: factor * array for name, array in b.items() if name not in a}


def scaled(a: Vector, factors: Mapping[str, float], other: float = 1.0) -> dict[str, Any]:
    """Every array times the factor of its name."""
    return {name: array * array.real.dtype.type(factors.get(name, other)) for name, array in a.items()}
