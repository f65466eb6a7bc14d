"""Parameters of an engine that describe the scan, as some programs have all of theirs in one dictionary.

What such an engine is told of the scan becomes an entry of `scans`; a scan that says the same itself is a contradiction, told
with both paths. A dictionary without `scans` and `engines` is all parameters of such an engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ptystream.params.attached import Attached
from ptystream.params.branches import RootParameters
from ptystream.params.errors import Fault

Path = tuple[str, ...]
SCAN = "scan"
"""Label of a scan that an engine's parameters describe whole."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One parameter of the scan, and that of the engine from which it comes."""

    name: str
    path: Path
    """Below `scans.*`."""
    value: Any
    unless: tuple[Path, ...] = ()
    """Further parameters of the scan that say the same."""
    follows: bool = False
    """Whether it only follows from what was given: the scan may say the same."""


def unfolded(given: Mapping[str, Any], engines: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The tree that a flat dictionary means, and the path of what stood in it ('' where it is a tree already)."""
    tree = dict(given)
    if not tree or {"scans", "engines"} & tree.keys():
        return tree, ""
    for label, engine in engines.items():
        if not hasattr(engine, "describes_scan"):
            continue
        own, told = set(engine.Parameters.model_fields) | set(engine.undocumented), set(RootParameters.model_fields)
        if not own & tree.keys():
            continue
        root = {key: value for key, value in tree.items() if key in told}
        rest = {key: value for key, value in tree.items() if key not in told}
        return {**root, "engines": {label: {**rest, "name": label}}}, f"engines.{label}."
    return tree, ""


def in_memory(given: Mapping[str, Any]) -> dict[str, Any]:
    """The tree with frames that lie in memory as what is noted of them: their shape."""

    def held(value: Any) -> Any:
        return Attached(np.asarray(value)) if isinstance(value, (np.ndarray, list)) else value

    tree = {key: _copied(value) if key in ("scans", "engines") else value for key, value in given.items()}
    for entry in _entries(tree, "scans"):
        data = entry.get("data")
        if isinstance(data, dict) and data.get("array") is not None:
            data["array"] = held(data["array"])
    for entry in _entries(tree, "engines"):
        if entry.get("dataset") is not None:
            entry["dataset"] = held(entry["dataset"])
    if not {"scans", "engines"} & tree.keys() and tree.get("dataset") is not None:
        tree["dataset"] = held(tree["dataset"])
    return tree


def _copied(value: Any) -> Any:
    return {key: _copied(inner) for key, inner in value.items()} if isinstance(value, Mapping) else value


def _entries(tree: Mapping[str, Any], part: str) -> list[dict[str, Any]]:
    branch = tree.get(part)
    return [entry for entry in branch.values() if isinstance(entry, dict)] if isinstance(branch, dict) else []


def described(tree: Mapping[str, Any], label: str, engine: Any, parameters: Any, faults: list[Fault]) -> dict[str, Any]:
    """The tree with what the engine `label` is told of the scan in its scans; contradictions are added to `faults`."""
    given = {key for key, value in tree["engines"][label].items() if value is not None and key != "name"}
    scans = tree.get("scans") or {}
    whole = not scans
    made = dict(tree)
    made["scans"] = {SCAN: {}} if whole else dict(scans)
    for scan, entry in made["scans"].items():
        if not isinstance(entry, Mapping) or (entry.get("name") is None and not whole):
            continue
        try:
            entries = engine.describes_scan(parameters, given, {} if whole else entry, alone=whole)
        except ValueError as error:
            name, _, remedy = str(error).partition(": ")
            value = _shown(parameters, name)
            faults.append(Fault(f"engines.{label}.{name}", value, remedy.removeprefix(f"{value}: ").removeprefix(f"{value!r}: ")))
            continue
        copy, twice = _copied(entry), dict[str, list[str]]()
        for one in entries:
            same = one.follows and _at(entry, one.path) == one.value
            there = [".".join(p) for p in (one.path, *one.unless) if _at(entry, p) is not None and not same]
            if there:
                twice.setdefault(one.name, []).extend(there)
            else:
                _put(copy, one.path, one.value)
        for name, paths in twice.items():
            told = " and ".join(f"scans.{scan}.{path}" for path in dict.fromkeys(paths))
            remedy = f"{told} {'are' if len(paths) > 1 else 'is'} given too: leave one of them out"
            faults.append(Fault(f"engines.{label}.{name}", _shown(parameters, name), remedy))
        made["scans"][scan] = copy
    if whole and made["scans"][SCAN].get("data", {}).get("name") is None:
        del made["scans"][SCAN]
    return made


def _shown(parameters: Any, name: str) -> Any:
    value = getattr(parameters, name, None)
    return f"array of shape {value.shape}" if isinstance(value, np.ndarray) else value


def _at(entry: Mapping[str, Any], path: Path) -> Any:
    value: Any = entry
    for part in path:
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _put(entry: dict[str, Any], path: Path, value: Any) -> None:
    for part in path[:-1]:
        entry = entry.setdefault(part, {})
    entry[path[-1]] = value


def refused(engine: Any, entry: dict[str, Any], path: str) -> list[Fault]:
    """Parameters of an entry that the engine knows and does not have, taken out of it, with what to do."""
    known: Mapping[str, str] = getattr(engine, "undocumented", {})
    return [Fault(f"{path}.{name}", entry.pop(name), remedy) for name, remedy in known.items() if entry.get(name) is not None]


def without_prefix(faults: list[Fault], prefix: str) -> list[Fault]:
    """With paths as they were written in a flat dictionary."""
    return [replace(fault, path=fault.path.removeprefix(prefix) if prefix else fault.path) for fault in faults]
