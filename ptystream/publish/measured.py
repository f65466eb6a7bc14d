"""What a snapshot tells of its own quality (`Snapshot.quality`): which figures there are, and the check of those that came."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

NUMBER, COUNT, TEXT, NUMBERS, PAIR, NAMES, RANKING = (
    "a number",
    "an integer",
    "text",
    "numbers",
    "[y, x]",
    "lists of names",
    "ranking",
)
OR_NONE = " or none"

FIGURES: Mapping[str, Mapping[str, str]] = {
    "frc": {
        "frequency_per_m": NUMBERS,
        "correlation": NUMBERS,
        "threshold": NUMBERS,
        "resolution_m": NUMBER + OR_NONE,
        "frames": COUNT,
        "iterations": COUNT,
        "share": NUMBER,
    },
    "coverage": {"overlap": NUMBER, "holes": NUMBER, "frames_per_beam": NUMBER},
    "drift": {"probe_m": PAIR, "positions_m": PAIR, "rms_m": NUMBER, "trend_m": PAIR},
    "convergence": {"state": TEXT, "per_iteration": NUMBER},
    "convention": {"ranking": RANKING, "ties": NAMES, "lead": NUMBER, "chosen": TEXT + OR_NONE, "why": TEXT},
}
"""Figure → its values and what they are. Each is there once it was measured, and says so: `measured_ns` (clock of
`Snapshot.started_ns`) and `iteration` (of the run) come with every figure. Lengths are metres, or object pixels where the run
knows no pixel size; frequencies the inverse of that."""
ALWAYS = {"measured_ns": COUNT, "iteration": COUNT}
CONVERGENCE = ("too early", "falling", "converged", "rising")
"""What `convergence.state` can be."""
MOST = 1 << 14
"""Entries of a list at most."""


def faults(quality: Any) -> str:
    """What is wrong with figures that came; '' where nothing is."""
    if not isinstance(quality, dict):
        return f"quality is a {type(quality).__name__}; dict is needed"
    for name, values in quality.items():
        if not isinstance(name, str) or name not in FIGURES:
            return f"quality: {str(name)[:80]!r} is no figure that is known"
        if not isinstance(values, dict) or not values.keys() >= ALWAYS.keys():
            return f"quality.{name}: {', '.join(ALWAYS)} are needed"
        wanted = {**FIGURES[name], **ALWAYS}
        for key, value in values.items():
            if not isinstance(key, str) or key not in wanted:
                return f"quality.{name}: {str(key)[:80]!r} is no value that is known"
            if not _is(value, wanted[key]):
                return f"quality.{name}.{key} is {str(value)[:80]!r}; {wanted[key]} is needed"
    return ""


def _is(value: Any, kind: str) -> bool:
    if kind.endswith(OR_NONE):
        return value is None or _is(value, kind.removesuffix(OR_NONE))
    if kind == TEXT:
        return isinstance(value, str)
    if kind == COUNT:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind == NUMBER:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not isinstance(value, list) or len(value) > MOST:
        return False
    if kind == NAMES:
        return all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in value)
    if kind == RANKING:
        return all(isinstance(entry, dict) and _is_entry(entry) for entry in value)
    return all(_is(number, NUMBER) for number in value) and (kind != PAIR or len(value) == 2)


def _is_entry(entry: Mapping[Any, Any]) -> bool:
    kinds = {"name": TEXT, "orientation": COUNT, "misfit": NUMBER}
    return entry.keys() == kinds.keys() and all(_is(entry[key], kind) for key, kind in kinds.items())
