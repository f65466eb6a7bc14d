"""Storages of several energies as one linear function of the energy: the least-squares update under that constraint, and the
part of a gradient that it leaves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ptystream.reconstruction import Dispersion


def disperse(xp: Any, groups: Iterable[Dispersion], names: Sequence[str], found: Sequence[tuple[Any, Any]]) -> None:
    """Make the values of each group a + t b, in place; `found`: (value, weight) of each storage in `names`, (layer, y, x)."""
    for group in groups:
        straighten(xp, group.t, [found[names.index(name)] for name in group.names])


def straighten(xp: Any, energies: Sequence[float], members: Sequence[tuple[Any, Any]]) -> None:
    """Make values a + t b, in place. `members`: (value, weight) for each of the energies t, arrays of one shape.

    The weights are the denominators of the update that found the values: a and b minimise Σ_e weight_e |value_e - a - t_e b|²,
    which is the update's own least squares with a + t b in the place of free values. Pixels without any weight stay.
    """
    t = np.asarray(energies)
    t = (t - t.mean()) / max(float(np.abs(t - t.mean()).max()), 1e-12)
    weighted = [(float(e), *member) for e, member in zip(t, members, strict=True)]
    s0 = sum(w for _, _, w in weighted)
    s1 = sum(e * w for e, _, w in weighted)
    s2 = sum(e**2 * w for e, _, w in weighted)
    n0 = sum(w * value for _, value, w in weighted)
    n1 = sum(e * w * value for e, value, w in weighted)
    determinant = s0 * s2 - s1 * s1
    both = determinant > 1e-5 * s0 * s0  # elsewhere one energy alone is lit: a constant
    safe = xp.where(both, determinant, determinant.dtype.type(1))
    lit = s0 > 0
    a = xp.where(both, (s2 * n0 - s1 * n1) / safe, n0 / xp.where(lit, s0, s0.dtype.type(1)))
    b = xp.where(both, (s0 * n1 - s1 * n0) / safe, 0)
    for e, value, _ in weighted:
        value[:] = xp.where(lit, a + e * b, value)


def linear_part(xp: Any, energies: Sequence[float], fields: Sequence[Any]) -> list[Any]:
    """The part of fields (layer, y, x), one for each energy, that is a + t b: an orthogonal projection, so that of a gradient
    by free values it leaves the gradient by a and b."""
    fields = [field.copy() for field in fields]
    straighten(xp, energies, [(field, xp.ones((1, 1, 1), field.real.dtype)) for field in fields])
    return fields
