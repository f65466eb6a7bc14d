"""Plan stubs that look at a reconstruction."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import bluesky.plan_stubs as bps
from bluesky.utils import MsgGenerator

Point = TypeVar("Point")


def until_converged(
    points: Iterable[Point],
    measure: Callable[[Point], MsgGenerator[Any]],
    reconstruction: Any,
    *,
    error: float,
    least: int = 1,
    most: int | None = None,
    steady: int = 3,
) -> MsgGenerator[int]:
    """Measure point after point until the reconstruction is good enough; returns how many were measured.

    `points` may be without an end, as a spiral that is followed outwards: a scan then goes on for as long as the data do not
    suffice. `measure(point)` is the plan of one point. It ends when `reconstruction` (a `Reconstruction`, staged) has told
    an error of at most `error` after each of `steady` points in a row, with at least `least` points measured, or after `most`
    points, or with the last.
    Raises `ValueError` where that could not be reached.
    """
    if not (error > 0 and steady >= 1 and least >= 1 and (most is None or most >= least)):
        raise ValueError(
            f"error {error}, steady {steady}, least {least}, most {most}: error > 0, 1 <= least <= most, steady >= 1"
        )
    measured = good = 0
    for point in points:
        yield from measure(point)
        measured += 1
        yield from bps.trigger(reconstruction, wait=True)
        told = yield from bps.rd(reconstruction.error)
        good = good + 1 if told is not None and told <= error else 0
        if (good >= steady and measured >= least) or measured == most:
            break
    return measured
