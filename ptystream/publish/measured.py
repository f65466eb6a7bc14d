"""What a snapshot tells of its own quality (`Snapshot.quality`): which figures there are, and the check of those that came."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from ptystream.model.aberrations import MOST as MOST_ABERRATIONS
from ptystream.model.aberrations import names

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
    "quick_look": {
        "kind": TEXT,
        "frames": COUNT,
        "rotation_deg": NUMBER,
        "curl": NUMBER,
        "mirrored": TEXT,
        "center_px": PAIR,
        "descan_px": NUMBERS,
        "aberrations_m": NUMBERS,
    },
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


def told(quality: Mapping[str, Mapping[str, Any]], now_ns: int, *, in_metres: bool = True) -> dict[str, str]:
    """The main figures for a person, by name, each with its age. `in_metres`: whether lengths are, and not object pixels."""
    found = {}
    length = partial(_length, in_metres)
    if frc := _with(quality, "frc", "resolution_m", "iterations", "share"):
        finest = frc["resolution_m"]
        text = f"{length(finest)} (halves" if finest else "a pixel or better (halves"
        found["resolution"] = f"{text}, {frc['iterations']} iterations, {100 * frc['share']:.1f} % of the time)"
    if seen := _with(quality, "coverage", "overlap", "holes", "frames_per_beam"):
        dark = f", holes {100 * seen['holes']:.1f} %" if seen["holes"] else ""
        found["overlap"] = f"{100 * seen['overlap']:.0f} %{dark}, {seen['frames_per_beam']:.1f} frames per beam"
    if moved := _with(quality, "drift", "probe_m"):
        found["drift"] = "probe {}, {}".format(*(length(part) for part in moved["probe_m"]))
        found["drift"] += f"; positions {length(moved['rms_m'])} rms" if "rms_m" in moved else ""
    if falls := _with(quality, "convergence", "state"):
        rate = f" ({100 * falls['per_iteration']:+.2f} % per iteration)" if "per_iteration" in falls else ""
        found["convergence"] = f"{falls['state']}{rate}"
    if way := _with(quality, "convention", "chosen", "why"):
        found["convention"] = f"{way['chosen'] or 'not decided'}: {way['why']}"
    if quick := quality.get("quick_look"):
        found |= of_scan(quick)
    owner = {"resolution": "frc", "overlap": "coverage"} | dict.fromkeys(("scan rotation", "descan", "aberrations"), "quick_look")
    for name in found:
        age = max(0.0, (now_ns - quality[owner.get(name, name)]["measured_ns"]) / 1e9)
        found[name] += f", {age:.0f} s ago"
    return found


def _with(quality: Mapping[str, Mapping[str, Any]], name: str, *needed: str) -> Mapping[str, Any] | None:
    """A figure, where it has what is needed of it: a session of another version, or of another make, may leave values out."""
    figure = quality.get(name, {})
    return figure if figure.keys() >= set(needed) else None


def of_scan(quick: Mapping[str, Any]) -> dict[str, str]:
    """What the quick look says of the scan, but for the picture."""
    found = {}
    if quick.keys() >= {"rotation_deg", "mirrored", "curl", "center_px"}:
        found["scan rotation"] = "{rotation_deg:.1f}° by curl (mirrored: {mirrored}, curl left {curl:.2f})".format(**quick)
        y, x = quick["center_px"]
        found["descan"] = f"patterns {y:+.2f}, {x:+.2f} px from the centre"
    if "descan" in found and len(moved := quick.get("descan_px", ())) == 4:
        a, b, c, d = moved
        found["descan"] += f", moves {a:+.2f}, {b:+.2f} px down the rows and {c:+.2f}, {d:+.2f} px along them"
    if coefficients := quick.get("aberrations_m", ())[:MOST_ABERRATIONS]:
        named = zip(names(len(coefficients)), coefficients, strict=True)
        found["aberrations"] = ", ".join(f"{name} {1e10 * value:+.1f} Å" for name, value in named)
    return found


def _length(in_metres: bool, value: float) -> str:
    if not in_metres:
        return f"{value:.3g} px"
    return f"{value * 1e6:.3g} µm" if abs(value) >= 1e-6 else f"{value * 1e9:.3g} nm"


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
