"""The subspace of few dimensions that holds most of many rows: what probes of all frames have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.chance import generator

PRESENT = 1e-6
"""Part of the largest squared singular value from which on probes are taken to have a dimension: what single precision tells."""
SPARE = 7
"""Directions that the search for a subspace has beside those that are wanted: the more, the fewer passes."""
RANDOM = 3
"""Of them, where the others are known."""
PASSES = 40
"""At most, over the rows."""
TOLERANCE = 1000
"""Times the precision at hand: how much of the largest singular value a pass still has to move for another to follow."""
STILL = 0.8
"""A pass that leaves more than so much of what had to change was the last: the rest is rounding, or no matter."""

Basis = tuple[Any, Any]
"""(U (row, dimension), U† rows (dimension, pixel)): see `leading`."""


@dataclass(frozen=True, slots=True)
class Products:
    """Where arrays are, and how the products are made that pass over all rows."""

    xp: Any
    """numpy or cupy."""
    put: Callable[[Any], Any]
    """Host array to where the rows are."""
    along: Callable[[Any, Any], Any]
    """rows (row, pixel) @ right (pixel, direction)."""
    across: Callable[[Any, Any], Any]
    """left (row, direction)† @ rows (row, pixel)."""


PLAIN = Products(np, np.asarray, np.matmul, lambda left, rows: left.conj().T @ rows)
"""NumPy's."""


def leading(products: Products, rows: Any, dimensions: int, among: Any = None) -> Basis:
    """(U (row, dimension), U† rows): the left singular vectors of the largest singular values of `rows` (row, pixel), the
    largest first, and what the rows are in them.

    Subspace iteration with a few directions to spare: Halko, Martinsson & Tropp, SIAM Review 53, 217 (2011). It costs a few
    products with as many columns, where all inner products of frames would cost their number squared. It ends where what
    U U† rows still would change by is far below single precision's part of the power, or after `PASSES`: among singular values
    that are nearly the same any choice is nearly the best. `among` (row, pixel) are rows of few dimensions in which these lie, or
    nearly: some of them are a better beginning than random directions, of which a few remain in case they are not. They may be
    these rows themselves, where they have few more dimensions than are wanted.
    """
    xp, spare = products.xp, min(len(rows), dimensions + SPARE)
    wide, precise = rows.dtype, np.dtype(np.complex128)
    tolerance = TOLERANCE * float(np.finfo(wide).eps)
    begin, last = products.put(directions(rows.shape[1], spare, wide)), np.inf
    if among is not None:
        some = among[np.linspace(0, len(among) - 1, max(spare - RANDOM, 0)).astype(np.int64)].conj().T
        begin = xp.concatenate([some, begin[:, : spare - some.shape[1]] * xp.abs(some).max(initial=1e-30)], axis=1)
    image = products.along(rows, begin)
    for _ in range(PASSES):
        basis = xp.linalg.qr(image.astype(precise))[0].astype(wide)
        seen = products.across(basis, rows)
        exact = seen.astype(precise)  # a dimension of a thousandth of the amplitude has a millionth of the power
        powers, turn = xp.linalg.eigh(exact @ exact.conj().T)
        powers, turn = powers[::-1][:dimensions], turn[:, ::-1][:, :dimensions].astype(wide)
        left, right = basis @ turn, turn.conj().T @ seen
        if spare == len(rows):
            break
        image = products.along(rows, xp.ascontiguousarray(seen.conj().T))
        # rows rows† U - U Λ is, to first order, what U still turns by, times Λ
        rest = xp.linalg.norm(image @ turn - left * powers, axis=0) ** 2
        missing = xp.where(powers > tolerance**2 * powers[0], rest / xp.maximum(powers, 1e-300), 0).sum()
        moved = float(xp.sqrt(missing / xp.maximum(powers[0], 1e-300)))
        if moved <= tolerance or moved > STILL * last:
            break
        last = moved
    return left, right


@lru_cache(maxsize=4)
def directions(pixels: int, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Where the search for a subspace begins: random numbers (pixel, direction), always the same."""
    random = generator(0, "directions of a search for a subspace", pixels, count)
    return (random.normal(size=(pixels, count)) + 1j * random.normal(size=(pixels, count))).astype(dtype)
