"""File names with the state of a run in them, as ptypy writes them: '%(run)s_%(engine)s_%(iterations)04d'."""

from __future__ import annotations

import os.path
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

START: Mapping[str, Any] = {
    "run": "run",
    "engine": "None",
    "iteration": 0,
    "iterations": 0,
    "numiter": 0,
    "duration": 0.0,
    "error": 0.0,
    "series": "None",
    "angle": 0.0,
}
"""What a pattern may name, and what it is before the first iteration: iterations of this engine and of all, seconds of the
last pass, the engine's fourier error; series and angle of the scan (`scans.*.data.series`), 'None' and 0 where it has none."""
MAX_NAME = 4096
MAX_SERIES = 100
UNSAFE = re.compile(r"[^A-Za-z0-9_+=-]")
"""What a series may be called by its source, and a file may not."""


def fill(pattern: str, run: str, info: Mapping[str, Any] | None = None) -> str:
    """The pattern with `info`, an entry of `Run.iter_info`, filled in. Raises `ValueError` for one that cannot be."""
    keys = {**START, **(info or {}), "run": run}
    keys["series"] = UNSAFE.sub("_", str(keys["series"]))[:MAX_SERIES] or "_"
    keys["error"] = float(np.ravel(keys["error"])[0])
    try:
        made = pattern % keys
    except (KeyError, ValueError, TypeError, OverflowError, MemoryError) as error:
        known = ", ".join(f"%({key})s" for key in START)
        raise ValueError(f"cannot be filled in ({error}); known are {known}") from error
    if not made or len(made) > MAX_NAME or "\0" in made:
        raise ValueError(f"does not make a file name ({len(made)} characters)")
    return kept_below(made)


def kept_below(made: str) -> str:
    """A file name itself. Raises `ValueError` for a relative one that leads out of the folder it is to lie below: who wants a
    file elsewhere says so with an absolute path."""
    if not os.path.isabs(made) and os.path.normpath(made).split(os.sep)[0] == os.pardir:
        raise ValueError(f"leads out of io.home ({made}): set io.home to the folder that holds all, or give an absolute path")
    return made


def checked(pattern: str | None) -> str | None:
    """The pattern itself, after a trial. Raises `ValueError` as `fill` does."""
    if pattern is not None:
        fill(pattern, "run")
    return pattern


def checked_beforehand(pattern: str) -> str:
    """The same for a file that is opened before the first scan begins, when nothing but the run's name is known."""
    for key in re.findall(r"%\((\w+)\)", pattern):
        if key != "run":
            raise ValueError(f"%({key})s: of a scan nothing is known when this file is opened: %(run)s is the only key")
    fill(pattern, "run")
    return pattern
