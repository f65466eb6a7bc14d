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
    schedule: Sequence[Mapping[str, Any]]
    decisions: Mapping[str, Any]
    versions: Mapping[str, str]
    coverage: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    last: Mapping[str, Mapping[str, Storage]] = field(default_factory=dict)
    """{'probe': …, 'object': …} of the last iterate."""
    started: float = 0.0
    """Seconds since the epoch."""


def write(path: str | Path, result: Result) -> Path:
    """Write atomically: the file is whole or not there."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with h5py.File(partial, "w", libver="v110") as file:
            h5.stamp(file)
            h5.write(file, "header", {"kind": "minimal", "description": "ptystream result, ptypy's minimal layout"})
            h5.write(file, "content", _content(result), "param")
            for branch in ("probe", "obj"):
                for storage in file[f"content/{branch}"].values():
                    storage.attrs["type"] = "dict"
            h5.write(file, "ptystream", _ours(result))
            file.flush()
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def read(path: str | Path) -> Result:
    """Read a result of ours. Raises `OSError` or `h5.H5Error`."""
    with h5py.File(path, "r") as file:
        if "ptystream" not in file:
            raise h5.H5Error(f"{path}: no /ptystream group: written by another program; read /content with h5py")
        content, ours = h5.read(file["content"]), h5.read(file["ptystream"])
    runtime = content["runtime"]
    return Result(
        run=runtime["run"],
        probe={k: _storage(v) for k, v in content["probe"].items()},
        object={k: _storage(v) for k, v in content["obj"].items()},
        parameters=json.loads(ours["configuration"]),
        iter_info=[runtime["iter_info"][k] for k in sorted(runtime["iter_info"])]
        if isinstance(runtime["iter_info"], dict)
        else list(runtime["iter_info"]),
        positions_m=ours["positions_m"],
        errors=ours["errors"],
        misfit=ours["misfit"],
        ledger=ours["ledger"],
        schedule=json.loads(ours["schedule"]),
        decisions=json.loads(ours["decisions"]),
        versions=ours["versions"],
        coverage=ours["coverage"],
        last={part: {k: _storage(v) for k, v in held.items()} for part, held in ours.get("last", {}).items()},
        started=float(ours["started"]),
    )


def _content(result: Result) -> dict[str, Any]:
    now = time.asctime()
    return {
        "probe": {k: _node(k, s) for k, s in result.probe.items()},
        "obj": {k: _node(k, s) for k, s in result.object.items()},
        "pars": _writable(result.parameters),
        "runtime": {
            "run": result.run,
            "start": time.asctime(time.localtime(result.started)),
            "stop": now,
            "last_save": now,
            "iter_info": {
                f"{k:05d}": {**info, "error": np.asarray(info["error"], float)} for k, info in enumerate(result.iter_info)
            },
        },
    }


def _writable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _writable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_writable(v) for v in value)
    return value


def _node(name: str, storage: Storage) -> dict[str, Any]:
    """A storage as ptypy lays it out: `_center` is the pixel index of physical zero."""
    pixel = np.array(storage.pixel_size_m or (1.0, 1.0), float)
    probe = storage.offset == (0, 0) and storage.fill == 0
    center = np.array([n // 2 for n in storage.shape], float) if probe else -np.array(storage.offset, float)
    return {
        "ID": name,
        "data": storage.data,
        "shape": np.array(storage.data.shape, np.int64),
        "_psize": pixel,
        "_center": center,
        "_origin": -center * pixel,
        "fill_value": storage.fill,
        "layermap": list(range(len(storage.data))),
        "nlayers": len(storage.data),
        "padding": 0,
        "padonly": False,
        "_energy": storage.energy_kev,
        "DataTooSmall": False,
        "_is_scattered": False,
        "model_initialized": True,
        "_ptystream_offset": np.array(storage.offset, np.int64),
        "_ptystream_pixels": storage.pixel_size_m is None,
    }


def _storage(node: Mapping[str, Any]) -> Storage:
    pixel = None if node.get("_ptystream_pixels") else (float(node["_psize"][0]), float(node["_psize"][1]))
    offset = node["_ptystream_offset"]
    return Storage(node["data"], pixel, (int(offset[0]), int(offset[1])), complex(node["fill_value"]), node["_energy"])


def _ours(result: Result) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "configuration": json.dumps(result.parameters, default=_plain),
        "schedule": json.dumps(list(result.schedule), default=_plain),
        "decisions": json.dumps(result.decisions, default=_plain),
        "versions": dict(result.versions),
        "ledger": {k: int(v) for k, v in result.ledger.items()},
        "positions_m": np.asarray(result.positions_m, float),
        "errors": np.asarray(result.errors, float),
        "misfit": np.asarray(result.misfit, float),
        "coverage": dict(result.coverage),
        "last": {part: {k: _node(k, s) for k, s in held.items()} for part, held in result.last.items()},
        "started": result.started,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    return str(value)
