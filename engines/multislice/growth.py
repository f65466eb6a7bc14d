"""What the optimiser knows of the curvature, carried over to a loss that has more frames.

A pair (s, y) is a step and the change of the gradient along it. Of the frames that it has seen a pair keeps what it was; what the
frames that have come say to the same step is found from their gradients alone, at the points between which the step was made. So
the sum is the pair that a pass over all of them would have given, for the price of the new ones. (Berahas, Nocedal and Takáč,
NIPS 2016, take for y the frames that two losses share, and do not hear the others.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from .descent import Descent
from .loss import Loss
from .objective import FRAMES_OWN, Batch
from .quantities import combined, scaled
from .together import count
from .variables import Variables

LARGEST = 0.2
"""Frames that may come, part of those there are, for pairs to be kept: with more of them the way leads elsewhere."""
PRICE = 1.0
"""Passes over all frames that it may cost to keep pairs, at most; where that is too little for all of them the oldest go."""


def carry(descent: Descent, loss: Loss, new: Sequence[Batch], at: Mapping[str, Any]) -> None:
    """Make the pairs those of `loss`, which has the frames `new` beside those that the pairs know; or forget them. The notes say
    which. `at`: where the newest pair has led to, with rows for the new frames."""
    history, setting = descent.history, loss.setting
    came = count(loss.ranks, new)
    if not history.pairs or not came:
        return
    had = count(loss.ranks, loss.batches) - came
    held, kept = len(history.pairs), affordable(len(history.pairs), had, came)
    if setting["sequence"] is not None:
        return descent.forget("frames have come, and sequence chooses among them")
    if loss.terms.weights and isinstance(setting["loss_weight"], str):
        return descent.forget("frames have come, and the terms count otherwise beside them")
    if not kept:
        return descent.forget(f"{came} frames have come to {had}")
    history.newest(kept)
    for name in FRAMES_OWN:
        if name in at:
            history.change(name, partial(_with_rows, loss.objective.on.xp, len(at[name])))
    _renew(descent, replace(loss, batches=new, terms=replace(loss.terms, weights={})), at, _shares(loss, had, came))
    descent.notes.append(f"history kept: {len(history.pairs)} of {held} pairs, {came} frames have come to {had}")


def affordable(pairs: int, had: int, came: int) -> int:
    """How many of the newest pairs may be kept: each costs a pass over the frames that came, and the newest one two."""
    if came > LARGEST * had:
        return 0
    return max(0, min(pairs, int(PRICE * (had + came) / came) - 1))


def _shares(loss: Loss, had: int, came: int) -> tuple[float, float]:
    """Of the gradients of the frames that were there, and of those that came, in that of all."""
    whole = loss.weight(had + came) / (had + came)
    return whole * had / loss.weight(had), whole * came / loss.weight(came)


def _renew(descent: Descent, new: Loss, at: Mapping[str, Any], shares: tuple[float, float]) -> None:
    """Add to every pair what the loss of the new frames says; one that has no curvature with it is dropped."""
    history, on = descent.history, new.objective.on
    variables = Variables.of(on, at, new.setting.kinds)

    def gradient(here: Mapping[str, Any]) -> dict[str, Any]:
        point = new(dict(at) | variables.given(here))
        return variables.pulled(point.gradient, point.at)

    pairs = [history.fetched(pair) for pair in history.pairs]
    history.pairs.clear()
    here = variables.taken({name: at[name] for name in sorted(new.setting.moving)})
    before, renewed = gradient(here), []
    for s, y in reversed(pairs):
        here, after = combined(here, -1, s), before
        before = gradient(here)
        renewed.append((s, combined(scaled(y, {}, shares[0]), shares[1], combined(after, -1, before))))
    for s, y in reversed(renewed):
        history.learn(s, y, len(pairs), descent.agree)


def _with_rows(xp: Any, count: int, rows: Any) -> Any:
    """An array of what frames have of their own, 0 in the rows that it has not."""
    missing = count - len(rows)
    return rows if missing <= 0 else xp.concatenate([rows, xp.zeros((missing, *rows.shape[1:]), rows.dtype)])


def within(xp: Any, part: Any, shape: tuple[int, int], corner: tuple[int, int]) -> Any:
    """An array (…, y, x) with zeros around it; `corner`: where its first pixel is in the larger one of this shape."""
    wide, (y, x) = xp.zeros((*part.shape[:-2], *shape), part.dtype), corner
    wide[..., y : y + part.shape[-2], x : x + part.shape[-1]] = part
    return wide
