"""A checkpoint: what a run that was cut off goes on from, in a `.ptyr` file of kind 'dump'.

It holds probe, object, counters, schedule and what loop and engine need besides. The frames are not in it: they are fed again
(from the recording) and taken in the order that the schedule tells, and the exit waves are rebuilt as probe × object.
"""

from __future__ import annotations

import glob
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.reconstruction import Storage
from ptystream.storage import h5, ptyr
from ptystream.storage.leftovers import matching

log = logging.getLogger(__name__)

COLUMNS = ("iteration", "iterations", "numiter", "duration", "frames", "count")
"""Numbers of an entry of `iter_info`."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a run goes on from."""

    probes: Mapping[str, Storage]
    objects: Mapping[str, Storage]
    schedule: Sequence[Mapping[str, Any]]
    decisions: Mapping[str, Mapping[str, Any]]
    """By label of the scan."""
    iter_info: Sequence[Mapping[str, Any]]
    errors: NDArray[np.float64]
    misfit: NDArray[np.float64]
    iterations: int
    engine: str
    """Label of the engine that was running."""
    engine_state: Mapping[str, Any]
    loop: Mapping[str, Any]
    started: float
    rows: Mapping[str, NDArray[Any]]
    """`PodTable.state`: positions that an engine refined are in it."""
    known: Mapping[str, Mapping[str, NDArray[np.float64]]]
    """`Scan.known` by label."""
    acquisitions: Sequence[tuple[str, str, int]] = ()
    """(scan label, key, turn) of those whose frames it has."""

    @property
    def buffer_decisions(self) -> dict[str, dict[str, Any]]:
        """Decisions for the buffers of the scans. A search for hot pixels that found none is made again."""
        made = {label: dict(held) for label, held in self.decisions.items()}
        for entry in self.schedule:
            if entry["do"] == "revise" and entry["what"] == "mask" and entry["scan"] in made:
                made[entry["scan"]]["hot_pixels"] = entry["value"]
            elif entry["do"] == "recut" and entry["scan"] in made:
                made[entry["scan"]] |= {k: v for k, v in entry["decisions"].items() if k in ("center", "hot_pixels")}
        for held in made.values():
            if not held.get("hot_pixels"):
                held.pop("hot_pixels", None)
        return made


def extras(iter_info: Sequence[Mapping[str, Any]], acquisitions: Sequence[Any], **held: Any) -> dict[str, Any]:
    """What a dump holds of a run beside its result.

    `held`: 'session', the name of the recording's session; 'engine', 'state', 'loop', 'rows' and 'known' as in `Checkpoint`.
    """
    engines = sorted({info["engine"] for info in iter_info})
    columns = {name: np.array([info[name] for info in iter_info]) for name in COLUMNS}
    columns["engine"] = np.array([engines.index(info["engine"]) for info in iter_info], np.int64)
    told = {"acquisitions": json.dumps(list(acquisitions)), "engines": engines, "iter_info": columns}
    return {**held, **told}


def checkpoint_of(result: ptyr.Result) -> Checkpoint:
    """The checkpoint in a dump. Raises `h5.H5Error` where it holds none."""
    held = result.checkpoint
    try:
        infos = []
        columns, last = held["iter_info"], np.cumsum(held["iter_info"]["count"]) - 1
        for k, iteration in enumerate(last.tolist()):
            info: dict[str, Any] = {name: columns[name][k].item() for name in COLUMNS}
            infos.append({**info, "engine": held["engines"][int(columns["engine"][k])], "error": result.errors[iteration]})
        return Checkpoint(
            probes=result.probe,
            objects=result.object,
            schedule=result.schedule,
            decisions=result.decisions,
            iter_info=infos,
            errors=result.errors,
            misfit=result.misfit,
            iterations=int(infos[-1]["iterations"]),
            engine=held["engine"],
            engine_state=held["state"],
            loop=held["loop"],
            started=result.started,
            rows=held["rows"],
            known=held["known"],
            acquisitions=[(label, key, turn) for label, key, turn in json.loads(held["acquisitions"])],
        )
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise h5.H5Error(f"the dump of {result.run!r} is not one that a run can go on from ({error!r})") from error


def dumps(home: Path, pattern: str, run: str) -> list[Path]:
    """Files that a pattern of dumps may have made for a run, the newest first."""
    name = matching(pattern, glob.escape(run))
    found = [Path(file) for file in glob.glob(str(home / "*").removesuffix("*") + name)]
    return sorted((file for file in found if file.is_file()), key=lambda file: file.stat().st_mtime_ns, reverse=True)


def session_of(file: Path) -> str | None:
    """Which session wrote a dump, without reading the rest; None where that cannot be told."""
    try:
        with h5.open_file(file) as held:
            return str(h5.read(h5.inside(h5.inside(h5.inside(held, "ptystream"), "checkpoint"), "session")))
    except (OSError, RuntimeError, ValueError, KeyError):
        return None


def newest(home: Path, pattern: str, run: str, session: str) -> tuple[Path, ptyr.Result] | None:
    """The newest dump of a run that belongs to `session`. What cannot be read is named in the log and passed over."""
    for file in dumps(home, pattern, run):
        if session_of(file) != session:
            continue
        try:
            result = ptyr.read(file)
        except (OSError, h5.H5Error) as error:
            log.warning("%s: not used: %s", file, error)
            continue
        if result.run == run:
            return file, result
    return None
