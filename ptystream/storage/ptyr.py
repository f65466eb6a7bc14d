"""Results and dumps: `.ptyr` files in ptypy's layout, with what ptystream knows besides in a group of its own.

`/content` holds what ptypy reads: probe, obj, pars, runtime, positions. `/ptystream` holds the ledger, the schedule, versions,
the data misfit, the last iterate where the result is a mean of iterates, and in a dump what a restart needs. Files that ptypy
wrote are read too: they have the first part alone.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ptystream.reconstruction import Storage

from . import h5, layout

FORMAT = 1
Kind = Literal["minimal", "dls", "used_params", "dump"]
LEFT = ("float_intens", "OPR_modes", "OPR_coeffs")
"""What engines leave in ptypy's runtime: by scan the `index` of each frame, (frame,), and the `factor` on its modelled
intensity, (frame,); by probe the modes (probe mode, dimension, y, x) and the coefficients (probe mode, frame, dimension) of the
probes of all frames."""
WITH_GRIDS = ("dls", "dump")
"""Kinds with the coordinates of every pixel."""
DAMAGED = (KeyError, TypeError, ValueError, AttributeError, IndexError, OSError, RuntimeError)
"""What reading a damaged file may raise below."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a run leaves."""

    run: str
    probe: Mapping[str, Storage]
    object: Mapping[str, Storage]
    parameters: Mapping[str, Any]
    """The configuration as it was given."""
    iter_info: Sequence[Mapping[str, Any]]
    positions_m: NDArray[np.float64]
    """Used, (frame, 2), lattice pixels times pixel size (pixels where there is none)."""
    errors: NDArray[np.float64]
    """[fourier, photon, exit] per iteration, (iteration, 3)."""
    misfit: NDArray[np.float64]
    """[amplitude, photon, Poisson expectation] per iteration, (iteration, 3)."""
    ledger: Mapping[str, int]
    """Frames by state and by reason of not being used."""
    ledger_frames: NDArray[np.float32]
    """Every frame whose position is known: [y, x, state code of `publish.snapshot.LEDGER_CODES`], (frame, 3)."""
    schedule: Sequence[Mapping[str, Any]]
    decisions: Mapping[str, Any]
    versions: Mapping[str, str]
    coverage: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    last: Mapping[str, Mapping[str, Storage]] = field(default_factory=dict)
    """{'probe': …, 'object': …} of the last iterate."""
    refined_m: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    """Where position refinement is to be recorded: coordinates of the frames that see each object, (frame, 2)."""
    error_local: Mapping[str, Mapping[str, NDArray[Any]]] = field(default_factory=dict)
    """Where local errors are recorded: by scan the `index` of each frame, (frame,), and its `error`, (frame, 3)."""
    runtime: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What else engines left, by ptypy's names (`LEFT`)."""
    started: float = 0.0
    """Seconds since the epoch."""
    ended: float = 0.0
    """When the result was taken out of its run, seconds since the epoch; 0: not known."""
    uid: str = ""
    """Of the run, unlike that of any other run."""
    made_by: Mapping[str, str] = field(default_factory=dict)
    """'user' and 'host' of the session."""
    frame_numbers: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    """Which frames `positions_m` belong to: place of the scan in `scans`, and the source's number, (frame, 2)."""
    scans: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What is known of each scan, by its key in `scans`: acquisition ([its name, how many had it before]), label,
    experimentID, version, series, angle (degrees), num_frames, shape, psize, energy, acc_voltage, distance, center, and `ended`:
    why it was over."""
    used: Mapping[str, Any] = field(default_factory=dict)
    """Every parameter with the value that was in force; empty where that is not known."""
    quality: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What was measured of it last, as of `Snapshot.quality`."""
    beside: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """What was refined beside object, probe and positions: 'tilts' of each frame, or of all, (frame or 1, 6): before, inside,
    after, each y and x, radians; 'current', factors on the amplitude, (frame,); 'aberrations' of each subscan, (subscan,
    coefficient), Å; 'background', the square root of its photons, centred, (y, x)."""
    checkpoint: Mapping[str, Any] = field(default_factory=dict)
    """Of a dump: what a restart needs besides (`ptystream.checkpoint`)."""


def write(path: str | Path, result: Result, kind: Kind = "minimal") -> Path:
    """Write atomically: the file is whole or not there. `kind` is ptypy's: see docs/reference/ptyr.md."""
    level = 1 if kind == "dump" else 4
    with whole(Path(path)) as file:
        h5.stamp(file)
        about = f"ptystream {'dump' if kind == 'dump' else 'result'} in ptypy's layout"
        h5.write(file, "header", {"kind": kind, "description": about})
        h5.write(file, "content", _content(result, kind), level=level)
        for name in result.runtime.get("OPR_modes", ()):  # a second name of the same data, no copy
            file[f"content/runtime/OPR_allprobes/{name}"] = file[f"content/probe/{name}/data"]
        h5.write(file, "ptystream", _ours(result), level=level)
    return Path(path)


@contextmanager
def whole(path: Path) -> Iterator[Any]:
    """An HDF5 file under a name of its own that takes the place of `path` when all of it is written, or vanishes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with h5.open_file(partial, "w", libver="v110") as file:
            yield file
            file.flush()
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read(path: str | Path) -> Result:
    """Read a result or dump, ours or ptypy's. Raises `OSError`, or `h5.H5Error` with the path, what is wrong, what to do.

    Of ptypy's there are `probe`, `object` (physical zero at lattice zero), `parameters`, `iter_info`, `errors`, and
    `positions_m` where they were recorded; the rest is empty. Nothing is unpickled and no link is followed.
    """
    with h5.open_file(path) as file:
        if not h5.has(file, "content"):
            raise h5.H5Error(f"{path}: no /content group: not a .ptyr file")
        ours = _checked(path, lambda: h5.read(h5.inside(file, "ptystream"))) if h5.has(file, "ptystream") else None
        found = None if ours is None else ours.get("format")
        if ours is not None and found != FORMAT:
            raise h5.H5Error(f"{path}: /ptystream/format is {found!r}; this version reads {FORMAT!r}: use the one that wrote it")
        content = _checked(path, lambda: h5.read(h5.inside(file, "content")))
    return _checked(path, lambda: _foreign(content) if ours is None else _result(content, ours))  # type: ignore[no-any-return]


def kind_of(path: str | Path) -> str:
    """What a file's header calls it: 'minimal', 'dls', 'used_params' or 'dump'. Raises as `read`."""
    with h5.open_file(path) as file:
        return str(_checked(path, lambda: h5.read(h5.inside(h5.inside(file, "header"), "kind"))))


def _checked(path: str | Path, do: Callable[[], Any]) -> Any:
    try:
        return do()
    except h5.H5Error as error:
        raise h5.H5Error(f"{path}: {error}") from error
    except DAMAGED as error:
        raise h5.H5Error(f"{path}: incomplete or damaged ({error!r}); save it again, or read it with h5py") from error


def _result(content: Mapping[str, Any], ours: Mapping[str, Any]) -> Result:
    places = ours["storages"]

    def storages(part: str, held: Mapping[str, Any]) -> dict[str, Storage]:
        return {name: layout.placed(node, places[name][part]) for name, node in held.items()}

    return Result(
        run=content["runtime"]["run"],
        probe=storages("probe", content["probe"]),
        object=storages("object", content["obj"]),
        parameters=json.loads(ours["configuration"]),
        iter_info=content["runtime"]["iter_info"],
        positions_m=ours["positions_m"],
        errors=ours["errors"],
        misfit=ours["misfit"],
        ledger=ours["ledger"],
        ledger_frames=ours["ledger_frames"],
        schedule=json.loads(ours["schedule"]),
        decisions=json.loads(ours["decisions"]),
        versions=ours["versions"],
        coverage=ours["coverage"],
        last={part: storages(part, held) for part, held in ours["last"].items()},
        refined_m=content.get("positions", {}),
        error_local=content["runtime"].get("error_local", {}),
        runtime={name: content["runtime"][name] for name in LEFT if name in content["runtime"]},
        started=float(ours["started"]),
        ended=float(ours.get("ended", 0.0)),
        uid=str(ours.get("uid", "")),
        made_by=ours.get("made_by", {}),
        frame_numbers=ours.get("frame_numbers", np.zeros((0, 2), np.int64)),
        scans=json.loads(ours.get("scans", "{}")),
        used=json.loads(ours.get("used", "{}")),
        quality=json.loads(ours.get("quality", "{}")),
        beside=dict(ours.get("beside", {})),
        checkpoint=ours.get("checkpoint", {}),
    )


def _foreign(content: Mapping[str, Any]) -> Result:
    """What ptypy's files tell."""
    runtime = content.get("runtime") or {}
    infos = list(runtime.get("iter_info") or ())
    refined = {str(k): np.asarray(v, float).reshape(-1, 2) for k, v in (content.get("positions") or {}).items()}
    return Result(
        run=str(runtime.get("run") or ""),
        probe={name: layout.storage(node, probe=True) for name, node in content["probe"].items()},
        object={name: layout.storage(node, probe=False) for name, node in content["obj"].items()},
        parameters=content.get("pars") or {},
        iter_info=infos,
        positions_m=np.concatenate([*refined.values(), np.zeros((0, 2))]),
        errors=np.array([info["error"] for info in infos], float).reshape(-1, 3),
        misfit=np.zeros((0, 3)),
        ledger={},
        ledger_frames=np.zeros((0, 3), np.float32),
        schedule=[],
        decisions={},
        versions={},
        refined_m=refined,
    )


def _content(result: Result, kind: Kind) -> h5.Param:
    now, began = time.asctime(), time.asctime(time.localtime(result.started))
    infos = [{**info, "error": np.asarray(info["error"], float)} for info in result.iter_info]
    grids = kind in WITH_GRIDS
    local = {"error_local": result.error_local} if result.error_local else {}
    refined = {"positions": dict(result.refined_m)} if result.refined_m else {}
    return h5.Param(
        probe={k: layout.node(k, s, n, probe=True, grids=grids) for n, (k, s) in enumerate(result.probe.items())},
        obj={k: layout.node(k, s, n, probe=False, grids=grids) for n, (k, s) in enumerate(result.object.items())},
        pars=as_nodes(_shown(result, kind)),
        runtime=h5.Param(
            run=result.run,
            start=began,
            stop=now,
            allstart=began,
            allstop=now,
            last_save=int(infos[-1]["iterations"]) if infos else 0,
            last_plot=0,
            iter_info=infos[-1:] if kind == "dump" else infos,
            **local,
            **{name: result.runtime[name] for name in LEFT if name in result.runtime},
        ),
        **refined,
    )


def _shown(result: Result, kind: Kind) -> dict[str, Any]:
    """ptypy's `pars`: the root with its defaults; scans and engines as given, or with their defaults ('used_params')."""
    as_given = () if kind == "used_params" else ("scans", "engines")
    return {**result.parameters, **{key: value for key, value in result.used.items() if key not in as_given}}


def as_nodes(value: Any) -> Any:
    """Parameters in types that the file has; a callable, say, is told by its name."""
    if isinstance(value, Mapping):
        return h5.Param({str(k): as_nodes(v) for k, v in value.items()})
    if isinstance(value, (list, tuple)):
        return type(value)(as_nodes(v) for v in value) if type(value) in (list, tuple) else [as_nodes(v) for v in value]
    known = value is None or isinstance(value, (str, bool, float, complex))
    if known or (isinstance(value, int) and abs(value) < 1 << 63):
        return value
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biufc":
        return value
    return str(value)


def _ours(result: Result) -> dict[str, Any]:
    places: dict[str, dict[str, Any]] = {}
    for part, held in (("probe", result.probe), ("object", result.object)):
        for name, storage in held.items():
            places.setdefault(name, {})[part] = layout.place(storage)
    return {
        "format": FORMAT,
        "configuration": json.dumps(result.parameters, default=plain),
        "used": json.dumps(result.used, default=plain),
        "schedule": json.dumps(list(result.schedule), default=plain),
        "decisions": json.dumps(result.decisions, default=plain),
        "versions": dict(result.versions),
        "ledger": {k: int(v) for k, v in result.ledger.items()},
        "ledger_frames": np.asarray(result.ledger_frames, np.float32),
        "positions_m": np.asarray(result.positions_m, float),
        "errors": np.asarray(result.errors, float),
        "misfit": np.asarray(result.misfit, float),
        "coverage": dict(result.coverage),
        "storages": places,
        "last": {
            part: {k: layout.node(k, s, n, probe=part == "probe") for n, (k, s) in enumerate(held.items())}
            for part, held in result.last.items()
        },
        "started": result.started,
        "ended": result.ended,
        "uid": result.uid,
        "made_by": dict(result.made_by),
        "frame_numbers": np.asarray(result.frame_numbers, np.int64),
        "scans": json.dumps(result.scans, default=plain),
        "quality": json.dumps(result.quality, default=plain),
        "beside": {name: np.asarray(array, float) for name, array in result.beside.items()},
        "checkpoint": dict(result.checkpoint),
    }


def plain(value: Any) -> Any:
    """What JSON has no form for, as lists, numbers and texts."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    return str(value)
