"""What goes into a result's file, and what it is called."""

from __future__ import annotations

import contextlib
import getpass
import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ptystream import __version__
from ptystream.params.errors import ConfigurationError, Fault
from ptystream.params.load import Configuration, ScanConfiguration
from ptystream.params.patterns import fill
from ptystream.scan.contents import contents, differing
from ptystream.storage import ptyr


def as_json(given: Mapping[str, Any]) -> str:
    """A configuration as text: what JSON has no form for is told by its text."""
    return json.dumps(given, default=ptyr.plain)


def file_name(pattern: str, run: str, info: Mapping[str, Any] | None = None) -> str:
    """A path pattern filled in, as ptypy's: %(run)s, %(engine)s, %(iteration)d, %(iterations)04d, …

    `info` is the last entry of `iter_info`; before there is one the engine is 'None' and the numbers are 0.
    Raises `ConfigurationError` for a pattern with unknown keys.
    """
    try:
        return fill(pattern, run, info)
    except ValueError as error:
        raise ConfigurationError([Fault("io", pattern, str(error))]) from error


def changed_files(configuration: Configuration, known: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Arrays of the scans that are not what was `known` of them, by label and name: path and file of each."""
    found = []
    for scan in configuration.scans:
        for name in differing(contents(scan.data.parameters), known.get(scan.label, {})):
            found.append(f"scans.{scan.label}.data.{name}: {given_of(configuration, scan.label, name)}")
    return found


def given_of(configuration: Configuration, label: str, name: str) -> str:
    """A parameter of a scan's frames as it was given, in a few words: the name of a file, say."""
    found: Any = configuration.given
    for key in ("scans", label, "data", name):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found[:200] if isinstance(found, str) else "its value"


def versions() -> dict[str, str]:
    """Of what decides the bits of a result: packages, and the machine, because kernels are compiled for its processor."""
    packages = {name: version(name) for name in ("scipy", "numba")}
    return {
        "ptystream": __version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        **packages,
        "machine": machine(),
    }


def made_by() -> dict[str, str]:
    """Who runs this, and where; what the system does not tell is left out."""
    found = {"host": platform.node()}
    with contextlib.suppress(OSError, KeyError, ImportError):  # a container may know no name for its user
        found["user"] = getpass.getuser()
    return {name: value for name, value in found.items() if value}


def machine() -> str:
    """Kind of processor."""
    model = ""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    except (OSError, ValueError):
        pass
    return f"{platform.machine()} {model or platform.processor()}".strip()


def effective(configuration: Configuration) -> dict[str, Any]:
    """Every parameter with the value in force, nested as in a configuration."""

    def scan_of(scan: ScanConfiguration) -> dict[str, Any]:
        data = scan.data.parameters.model_dump()
        if scan.positions is not None:
            data["positions"] = scan.positions.parameters.model_dump()
        if scan.also:
            data["also"] = [source.parameters.model_dump() for source in scan.also]
        return {**scan.parameters.model_dump(), "data": data}

    return {
        **configuration.root.model_dump(),
        "run": configuration.name,
        "scans": {scan.label: scan_of(scan) for scan in configuration.scans},
        "engines": {engine.label: {**engine.parameters.model_dump(), "name": engine.name} for engine in configuration.engines},
    }
