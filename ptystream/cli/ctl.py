"""`ptystream ctl`: ask a running session, or steer it."""

from __future__ import annotations

import json
import re
import sys
from datetime import datetime
from typing import Any

import numpy as np
import yaml

from ptystream.steering.arrays import array_of
from ptystream.steering.client import Steering
from ptystream.steering.desk import Refused


def ctl(
    endpoint: str, action: str, arguments: list[str], keys: str | None, peer_keys: str | None, timeout_s: float, as_json: bool
) -> int:
    """Body of the command; prints the answer. Raises `RuntimeError` where the session refuses or does not answer."""

    def waits() -> None:
        told = "nobody has answered yet; a session answers most requests when the pass of its engine is over"
        print(f"ptystream: {endpoint}: waiting, {timeout_s:g} s at most: {told}", file=sys.stderr, flush=True)

    try:
        with Steering(endpoint, keys=keys, peer_keys=peer_keys, timeout_s=timeout_s, on_wait=waits) as steering:
            takes = _takes(steering, action) if arguments else {}
            value = steering.ask(action, **_given(action, arguments, takes))
    except Refused as error:
        raise RuntimeError(f"refused: {error.fault}") from None
    except (ValueError, TimeoutError) as error:
        raise RuntimeError(str(error)) from None
    print(
        json.dumps(_plain(value), indent=2) if as_json else told(action, value), end="\n" if value is not None or as_json else ""
    )
    return 0


def told(action: str, value: Any) -> str:
    """The answer for a person."""
    if value is None:
        return ""
    if action == "actions":
        lines = []
        for entry in value:
            takes = " ".join(name if of["needed"] else f"[{name}]" for name, of in entry["with"].items())
            asked = f"{entry['action']} {takes}".strip()
            lines.append(f"{asked:<24} {entry['role']:<9} {entry['doc'].splitlines()[0]}")
        return "\n".join(lines)
    if isinstance(value, dict):
        if "arrays" in value:
            value = {**value, "arrays": [_summary(entry) for entry in value["arrays"]]}
        if action == "frame" and isinstance(value.get("ledger"), dict):
            value = {**value, "ledger": _way(value["ledger"])}
        below = action in ("status", "frame")
        return "\n".join(f"{key}: {_below(entry) if below else _short(entry)}" for key, entry in value.items())
    if isinstance(value, list):
        return "\n".join(told("", entry) + "\n" if isinstance(entry, dict) else _short(entry) for entry in value)
    return _short(value)


def _way(ledger: dict[str, Any]) -> dict[str, Any]:
    """What the ledger has of a frame, with a line for each step on its way: when, where that is known."""
    steps = {step["state"]: _moment(step["at_ns"]) for step in ledger.get("history") or ()}
    return {key: entry for key, entry in ledger.items() if key != "history"} | steps


def _moment(at_ns: int | None) -> str:
    """Date and time here, to the millisecond."""
    if at_ns is None:
        return "at a time that is not kept"
    return datetime.fromtimestamp(at_ns / 1e9).astimezone().isoformat(" ", "milliseconds")


def _below(value: Any) -> str:
    """What is inside on lines of its own."""
    if not isinstance(value, dict):
        return _short(value)
    return "".join(f"\n  {key}: {_short(entry)}" for key, entry in value.items()) or "-"


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(entry)}" for key, entry in value.items()) or "-"
    if isinstance(value, list):
        return " ".join(_short(entry) for entry in value) or "-"
    return f"{value:.6g}" if isinstance(value, float) else "-" if value is None else str(value)


def _summary(entry: dict[str, Any]) -> str:
    """An array in a few words."""
    array = array_of(entry)
    known = array[np.isfinite(array)]
    extent = f"from {known.min():.6g} to {known.max():.6g}" if known.size else "empty"
    return f"{entry['name']} ({' × '.join(map(str, array.shape))}) {extent};"


def _plain(value: Any) -> Any:
    """The answer as JSON can say it: arrays as nested lists, null for what is no number."""
    if not isinstance(value, dict) or "arrays" not in value:
        return value
    named = {}
    for entry in value["arrays"]:
        array = array_of(entry)
        named[entry["name"]] = array.tolist() if np.isfinite(array).all() else _finite(array.tolist())
    return {**value, "arrays": named}


def _finite(values: Any) -> Any:
    """Nested lists with null for what is no number."""
    if isinstance(values, list):
        return [_finite(value) for value in values]
    return values if np.isfinite(values) else None


def _takes(steering: Steering, action: str) -> dict[str, str]:
    """Names of an action's arguments, in order, with their types."""
    known = {entry["action"]: entry["with"] for entry in steering.ask("actions")}
    return {name: of["type"] for name, of in known.get(action, {}).items()}


def _given(action: str, arguments: list[str], takes: dict[str, str]) -> dict[str, Any]:
    """What an action is asked with. Words without a name are its arguments in order; names that are none of them are those of
    parameters, with dots for branches, where the action takes some."""
    given: dict[str, Any] = {}
    for text in arguments:
        name, equals, value = text.partition("=")
        if not (equals and re.fullmatch(r"[A-Za-z_][\w.]*", name)):
            name, value = next((free for free in takes if free not in given and free != "parameters"), ""), text
            if not name:
                raise RuntimeError(f"{text!r}: {action} takes {', '.join(takes) or 'nothing'}; arguments look like name=value")
            given[name] = text if takes[name].startswith("str") else _value(text, value)
        elif name not in takes and "parameters" in takes:
            *branches, leaf = name.split(".")
            inner = given.setdefault("parameters", {})
            for branch in branches:
                inner = inner.setdefault(branch, {})
                if not isinstance(inner, dict):
                    raise RuntimeError(f"{text!r}: {branch} was given a value already")
            inner[leaf] = _value(text, value)
        else:
            given[name] = _value(text, value)
    return given


def _value(text: str, value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RuntimeError(f"{text!r}: {error}") from None
