"""Results: `.ptyr` files in ptypy's 'minimal' layout, with what ptystream knows besides in a group of its own.

`/content` holds what ptypy reads: probe, obj, pars, runtime. `/ptystream` holds the ledger, the schedule, versions, the data
misfit, and the last iterate where the result is a mean of iterates.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ptystream.reconstruction import Storage

from . import h5

FORMAT = 1


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
    started: float = 0.0
    """Seconds since the epoch."""
    scans: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What is known of each scan, by its key in `scans`: label, experimentID, version, num_frames, shape, psize, energy,
    distance, center."""


def write(path: str | Path, result: Result) -> Path:
    """Write atomically: the file is whole or not there."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with h5py.File(partial, "w", libver="v110") as file:
            h5.stamp(file)
            h5.write(file, "header", {"kind": "minimal", "description": "ptystream result, ptypy's minimal layout"})
            h5.write(file, "content", _content(result))
            h5.write(file, "ptystream", _ours(result))
            file.flush()
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def read(path: str | Path) -> Result:
    """Read a result of ours. Raises `OSError`, or `h5.H5Error` with the path, what is wrong and what to do."""
    with h5py.File(path, "r") as file:
        if "ptystream" not in file or "content" not in file:
            raise h5.H5Error(f"{path}: no /ptystream group: written by another program; read /content with h5py")
        found = h5.read(file["ptystream/format"]) if "ptystream/format" in file else None
        if found != FORMAT:
            raise h5.H5Error(f"{path}: /ptystream/format is {found!r}; this version reads {FORMAT!r}: use the one that wrote it")
        content, ours = h5.read(file["content"]), h5.read(file["ptystream"])
    try:
        return _result(content, ours)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise h5.H5Error(f"{path}: incomplete or damaged ({error!r}); save it again, or read it with h5py") from error


def _result(content: Mapping[str, Any], ours: Mapping[str, Any]) -> Result:
    places = ours["storages"]

    def storages(part: str, held: Mapping[str, Any]) -> dict[str, Storage]:
        return {name: _storage(node, places[name][part]) for name, node in held.items()}

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
        started=float(ours["started"]),
        scans=json.loads(ours.get("scans", "{}")),
    )


def _content(result: Result) -> h5.Param:
    now, began = time.asctime(), time.asctime(time.localtime(result.started))
    infos = [{**info, "error": np.asarray(info["error"], float)} for info in result.iter_info]
    local = {"error_local": result.error_local} if result.error_local else {}
    refined = {"positions": dict(result.refined_m)} if result.refined_m else {}
    return h5.Param(
        probe={k: _node(k, s, n, probe=True) for n, (k, s) in enumerate(result.probe.items())},
        obj={k: _node(k, s, n, probe=False) for n, (k, s) in enumerate(result.object.items())},
        pars=_parameters(result.parameters),
        runtime=h5.Param(
            run=result.run,
            start=began,
            stop=now,
            allstart=began,
            allstop=now,
            last_save=int(infos[-1]["iterations"]) if infos else 0,
            last_plot=0,
            iter_info=infos,
            **local,
        ),
        **refined,
    )


def _parameters(value: Any) -> Any:
    if isinstance(value, Mapping):
        return h5.Param({str(k): _parameters(v) for k, v in value.items()})
    if isinstance(value, (list, tuple)):
        return type(value)(_parameters(v) for v in value)
    return value


def _node(name: str, storage: Storage, number: int, *, probe: bool) -> dict[str, Any]:
    """A storage as ptypy lays it out: `_center` is the pixel index of physical zero."""
    pixel = np.array(storage.pixel_size_m or (1.0, 1.0), float)
    center = np.array([n // 2 for n in storage.shape] if probe else storage.offset, float) * (1 if probe else -1)
    return {
        "ID": name,
        "numID": number,
        "data": storage.data,
        "shape": tuple(int(n) for n in storage.data.shape),
        "_psize": pixel,
        "_center": center,
        "_origin": -center * pixel,
        "fill_value": 0.0 if probe else storage.data.dtype.type(storage.fill),
        "layermap": list(range(len(storage.data))),
        "nlayers": len(storage.data),
        "padding": 0,
        "padonly": False,
        "_energy": 0.0 if storage.energy_kev is None else float(storage.energy_kev),
        "DataTooSmall": False,
        "_is_scattered": False,
        "model_initialized": True,
        "_record": np.array((name.encode()[:16],), dtype=[("ID", "S16")])[()],
        "_pool": {},
        "_recs": {},
    }


def _place(storage: Storage) -> dict[str, Any]:
    """What a storage of ours knows and ptypy's layout does not."""
    return {
        "offset": np.array(storage.offset, np.int64),
        "fill": complex(storage.fill),
        "pixels_only": storage.pixel_size_m is None,
        "energy_kev": storage.energy_kev,
    }


def _storage(node: Mapping[str, Any], place: Mapping[str, Any]) -> Storage:
    pixel = None if place["pixels_only"] else (float(node["_psize"][0]), float(node["_psize"][1]))
    row, column = (int(n) for n in place["offset"])
    return Storage(node["data"], pixel, (row, column), complex(place["fill"]), place["energy_kev"])


def _ours(result: Result) -> dict[str, Any]:
    places: dict[str, dict[str, Any]] = {}
    for part, held in (("probe", result.probe), ("object", result.object)):
        for name, storage in held.items():
            places.setdefault(name, {})[part] = _place(storage)
    return {
        "format": FORMAT,
        "configuration": json.dumps(result.parameters, default=_plain),
        "schedule": json.dumps(list(result.schedule), default=_plain),
        "decisions": json.dumps(result.decisions, default=_plain),
        "versions": dict(result.versions),
        "ledger": {k: int(v) for k, v in result.ledger.items()},
        "ledger_frames": np.asarray(result.ledger_frames, np.float32),
        "positions_m": np.asarray(result.positions_m, float),
        "errors": np.asarray(result.errors, float),
        "misfit": np.asarray(result.misfit, float),
        "coverage": dict(result.coverage),
        "storages": places,
        "last": {
            part: {k: _node(k, s, n, probe=part == "probe") for n, (k, s) in enumerate(held.items())}
            for part, held in result.last.items()
        },
        "started": result.started,
        "scans": json.dumps(result.scans, default=_plain),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    return str(value)
