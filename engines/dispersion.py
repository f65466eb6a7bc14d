"""Storages of several energies as one linear function of the energy: the least-squares update under that constraint."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ptystream.reconstruction import Dispersion


def disperse(xp: Any, groups: Iterable[Dispersion], names: Sequence[str], found: Sequence[tuple[Any, Any]]) -> None:
    """Make the values of a group a + t b, in place.

    `found`: (value, weight) of each storage in `names`, (layer, y, x); the weights are the denominators of the update that
    found the values. a and b minimise Σ_e weight_e |value_e - a - t_e b|²: the overlap constraint's own least squares with
    a + t b in the place of free values. Pixels without any weight stay.
    """
    for group in groups:
        t = np.asarray(group.t)
        t = (t - t.mean()) / max(float(np.abs(t - t.mean()).max()), 1e-12)
        members = [(float(e), *found[names.index(name)]) for e, name in zip(t, group.names, strict=True)]
        s0 = sum(w for _, _, w in members)
        s1 = sum(e * w for e, _, w in members)
        s2 = sum(e**2 * w for e, _, w in members)
        n0 = sum(w * value for _, value, w in members)
        n1 = sum(e * w * value for e, value, w in members)
        determinant = s0 * s2 - s1 * s1
        both = determinant > 1e-5 * s0 * s0  # elsewhere one energy alone is lit: a constant
        safe = xp.where(both, determinant, determinant.dtype.type(1))
        lit = s0 > 0
        a = xp.where(both, (s2 * n0 - s1 * n1) / safe, n0 / xp.where(lit, s0, s0.dtype.type(1)))
        b = xp.where(both, (s0 * n1 - s1 * n0) / safe, 0)
        for e, value, _ in members:
            value[:] = xp.where(lit, a + e * b, value)
