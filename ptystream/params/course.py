"""Parameters that may change from epoch to epoch: declared like others, with a value for each epoch.

What is given stays in the tree as it was given (a number, or the text of an expression), and is looked up by `at`. All the epochs
that are looked at are so when a configuration is read (`epochs`); what holds in the last of them holds in all that follow.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, PlainSerializer
from pydantic.fields import FieldInfo

from ptystream.params.base import parameter
from ptystream.params.expression import ExpressionError, is_expression, parsed, tabulated

log = logging.getLogger(__name__)

MOST_EPOCHS = 10_000
"""Epochs that are looked at when a configuration is read."""
TABLES = ({"from"}, {"every"}, {"table"})


def _understood(value: Any) -> Any:
    value = plain(value)
    if is_expression(value):
        try:
            parsed(value)
        except ExpressionError as error:
            raise ValueError(str(error)) from None
    if is_table(value):
        try:
            tabulated(value)
        except ExpressionError as error:
            raise ValueError(str(error)) from None
    return value


def _noted(value: Any) -> Any:
    """Where parameters are noted."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return repr(value) if callable(value) or (isinstance(value, float) and math.isinf(value)) else value


Course = Annotated[Any, BeforeValidator(_understood), PlainSerializer(_noted, when_used="json")]
"""A number, true, false, None, 'lambda x: …', {from, value, before}, {every} or {table}; from Python a function of the epoch."""


def is_table(value: Any) -> bool:
    """Whether a map is meant to be one of those of `expression.tabulated`."""
    return isinstance(value, Mapping) and any(keys <= set(value) for keys in TABLES)


def varies(value: Any) -> bool:
    """Whether it may be another one in another epoch."""
    return callable(value) or is_expression(value) or is_table(value)


def plain(value: Any) -> Any:
    """A single number of NumPy's as Python's own; anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def at(value: Any, epoch: int) -> Any:
    """The value in an epoch. Raises `ExpressionError`."""
    if callable(value):
        return plain(value(epoch))
    if is_expression(value):
        return _read(value)(epoch)
    return tabulated(value)(epoch) if is_table(value) else value


@lru_cache(maxsize=256)
def _read(text: str) -> Callable[[int], Any]:
    return parsed(text)


def course(
    default: Any, *, lower: float | None = None, upper: float | None = None, infinite: bool = False, kind: str = "number"
) -> Any:
    """Declare a leaf of type `Course`. `kind`: 'number', 'switch' (true or false, or a number that is one), 'any'."""
    field = parameter(default, steerable=True, validated=(lower, upper))
    field.json_schema_extra |= {"course": {"lower": lower, "upper": upper, "infinite": infinite, "kind": kind}}
    return field


def limits_of(field: FieldInfo) -> dict[str, Any] | None:
    """What a field that is a course was declared with; None for another one."""
    extra = field.json_schema_extra
    found = extra.get("course") if isinstance(extra, dict) else None
    return dict(found) if isinstance(found, dict) else None


def epochs(first: int, stop: int) -> range:
    """Those from `first` to before `stop` in which courses have values of their own: at least one, `MOST_EPOCHS` at most."""
    return range(first, max(first + 1, min(stop, first + MOST_EPOCHS)))


def checked(
    name: str,
    value: Any,
    limits: Mapping[str, Any],
    first: int,
    last: int,
    wrong_with: Callable[[Any], str | None] = lambda value: None,
) -> str | None:
    """What is wrong with a course from `first` to before `last`; None: nothing. A value that toggles is warned of.

    `wrong_with`: the same of a value of kind 'any'."""
    changes, before = 0, None
    for epoch in epochs(first, last) if varies(value) else (first,):
        try:
            found = at(value, epoch)
        except Exception as error:  # a function of the user's own may raise anything
            return f"{error}" if isinstance(error, ExpressionError) else f"has no value at epoch {epoch}: {error!r}"
        wrong = wrong_with(found) if limits["kind"] == "any" else _wrong(found, limits)
        if wrong is not None:
            return f"{wrong}; it is {found!r:.40} at epoch {epoch}" if varies(value) else wrong
        changes += epoch > first and not _same(found, before)
        before = found
    if changes > 2 and limits["kind"] != "any":
        why = "each change makes the optimiser forget what it knew of the curvature; let it change once"
        log.warning("%s changes %d times: %s", name, changes, why)
    return None


def _same(one: Any, other: Any) -> bool:
    return bool(np.array_equal(one, other)) if isinstance(one, list | np.ndarray) else one == other


def _wrong(value: Any, limits: Mapping[str, Any]) -> str | None:
    if limits["kind"] == "switch":
        return None if isinstance(value, bool | int | float) else "must be true, false or a number"
    if isinstance(value, bool):
        value = int(value)
    if not isinstance(value, int | float) or math.isnan(value):
        return "must be a number, or an expression such as 'lambda x:1e-3*(x>=20)'"
    lower, upper = limits["lower"], limits["upper"]
    if math.isinf(value) and not limits["infinite"]:
        return "must be finite"
    if lower is not None and value < lower:
        return f"must be {lower:g} or more"
    return f"must be {upper:g} or less" if upper is not None and value > upper else None
