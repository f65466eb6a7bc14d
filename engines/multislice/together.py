"""One loss on several ranks: each evaluates its own frames, and all go on from the same sums.

What is refined is the same on all ranks, and so is whatever follows from the sums. Decisions hang on numbers of rank 0, so that
machines that round otherwise do not go on otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ptystream.parallel import Ranks

from ..backend import Backend
from .objective import Batch, Found

Agree: TypeAlias = Callable[..., list[float]]
"""(number, …) → these numbers as rank 0 has them."""


def own(*numbers: float) -> list[float]:
    """The numbers as they are: where there is one rank."""
    return list(numbers)


def agreed(ranks: Ranks, *numbers: float) -> list[float]:
    """The numbers as rank 0 has them."""
    return [float(number) for number in of_rank_0(ranks, np.array(numbers, np.float64))]


def of_rank_0(ranks: Ranks, held: NDArray[Any]) -> NDArray[Any]:
    """An array as rank 0 has it, on the host; of the same shape on all."""
    return held if ranks.size == 1 else ranks.total(held.copy() if ranks.rank == 0 else np.zeros_like(held))


def rows_of(batches: Sequence[Batch]) -> NDArray[np.int64]:
    """Rows of this rank's frames in them."""
    return np.concatenate([np.zeros(0, np.int64), *(batch.rows for batch in batches)])


def count(ranks: Ranks, batches: Sequence[Batch]) -> int:
    """Frames in the batches of all ranks."""
    return int(ranks.total(np.array([sum(len(batch.rows) for batch in batches)]))[0])


def summed(on: Backend, ranks: Ranks, found: Found) -> Found:
    """What all ranks have found together; of what each frame has of its own a rank has found that of its frames, and 0 else."""
    if ranks.size == 1:
        return found
    rows = len(found.losses)
    visited = ~np.isnan(found.fits[:, 0])
    fits = np.where(visited[:, None], found.fits, 0)
    told = ranks.total(np.concatenate([[found.squares, *found.photons], found.losses, visited, fits.ravel()]))
    losses, visited, fits = np.split(told[3:], [rows, 2 * rows])
    return replace(
        found,
        loss=float(losses.sum()),
        squares=float(told[0]),
        photons=(float(told[1]), float(told[2])),
        gradient={name: on.total(held) for name, held in found.gradient.items()},
        losses=losses,
        fits=np.where(visited[:, None] > 0, fits.reshape(rows, 2), np.nan),
        curvature={name: on.total(held) for name, held in found.curvature.items()},
    )
