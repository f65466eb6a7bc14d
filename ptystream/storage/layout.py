"""ptypy's layout of probes and objects in a `.ptyr` file, both ways: `Storage` to nodes and nodes to `Storage`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.model.bragg import BraggGeometry
from ptystream.reconstruction import Stack, Storage, Volume

MAX_LAYERS = 1 << 20


def node(name: str, storage: Storage, number: int, *, probe: bool, grids: bool = False) -> dict[str, Any]:
    """A storage as ptypy lays it out: `_center` is the pixel index of physical zero, `_origin` where pixel [0, 0] lies."""
    pixel = np.array(storage.pixel_size_m or (1.0, 1.0), float)
    center = np.array([n // 2 for n in storage.shape] if probe else [-n for n in storage.offset], float)
    data = storage.data
    if isinstance(storage, Volume):
        pixel, data = np.array([storage.slice_m, *pixel]), data[None]
        center = np.array([storage.slices // 2 if probe else -storage.first, *center], float)
    made: dict[str, Any] = {
        "ID": name,
        "numID": number,
        "data": data,
        "shape": tuple(int(n) for n in data.shape),
        "_psize": pixel,
        "_center": center,
        "_origin": -center * pixel,
        "fill_value": 0.0 if probe else storage.data.dtype.type(storage.fill),
        "layermap": list(range(len(data))),
        "nlayers": len(data),
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
    if grids:
        made["grids"] = coordinates(data.shape, pixel, center)
    return made


def coordinates(shape: tuple[int, ...], pixel: NDArray[np.float64], center: NDArray[np.float64]) -> tuple[Any, ...]:
    """Metres of every pixel along each axis of space, each of `shape` (layer, …): rows and columns; of a volume r3, r1, r2."""
    axes = [(np.arange(n) - c) * p for n, c, p in zip(shape[1:], center, pixel, strict=True)]
    return tuple(np.broadcast_to(axis, shape).copy() for axis in np.meshgrid(*axes, indexing="ij"))


def storage(held: Mapping[str, Any], *, probe: bool) -> Storage:
    """The storage in ptypy's nodes. Raises `KeyError` or `ValueError` for what is missing or no such thing."""
    data = held["data"]
    if not isinstance(data, np.ndarray) or data.ndim != 3 or data.dtype.kind not in "fc" or 0 in data.shape:
        raise ValueError(f"data is {getattr(data, 'dtype', type(data).__name__)} {np.shape(data)}, not complex (layer, y, x)")
    if len(data) > MAX_LAYERS:
        raise ValueError(f"data has {len(data)} layers, {MAX_LAYERS} are allowed")
    if data.dtype.kind == "f":
        data = data.astype(np.result_type(data.dtype, np.complex64))
    y, x = np.broadcast_to(np.asarray(held["_psize"], float), 2)
    if not (y > 0 and x > 0 and np.isfinite([y, x]).all()):
        raise ValueError(f"_psize is {held['_psize']!r}, not metres above 0")
    offset = (0, 0)
    if not probe:
        row, column = np.broadcast_to(np.asarray(held["_center"], float), 2)
        if not max(abs(row), abs(column)) < 2**31:  # false for NaN as well
            raise ValueError(f"_center is {held['_center']!r}, not a pixel")
        offset = (-round(float(row)), -round(float(column)))
    energy = held.get("_energy")
    fill = complex(0.0 if probe else held.get("fill_value", 1.0) or 0.0)
    return Storage(data, (float(y), float(x)), offset, fill, float(energy) if energy else None)


def place(of: Storage) -> dict[str, Any]:
    """What a storage of ours knows and ptypy's layout does not."""
    known = {
        "offset": np.array(of.offset, np.int64),
        "fill": complex(of.fill),
        "pixels_only": of.pixel_size_m is None,
        "energy_kev": of.energy_kev,
    }
    if isinstance(of, Stack):
        known["depth"], known["distances_m"] = of.depth, np.array(of.distances_m, float)
    if isinstance(of, Volume):
        known["first"] = of.first
        known["bragg"] = json.dumps(None if of.bragg is None else asdict(of.bragg))
    return known


def placed(held: Mapping[str, Any], where: Mapping[str, Any]) -> Storage:
    """The storage that `node` and `place` were made of."""
    pixel = None if where["pixels_only"] else (float(held["_psize"][-2]), float(held["_psize"][-1]))
    row, column = (int(n) for n in where["offset"])
    if "first" in where:
        named = json.loads(where["bragg"]) or {}
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in named.items()}
        common = pixel, (row, column), complex(where["fill"]), where["energy_kev"]
        bragg = BraggGeometry(**given) if given else None
        return Volume(held["data"][0], *common, first=int(where["first"]), slice_m=float(held["_psize"][0]), bragg=bragg)
    made = held["data"], pixel, (row, column), complex(where["fill"]), where["energy_kev"]
    if "depth" not in where:
        return Storage(*made)
    depth, distances = int(where["depth"]), tuple(np.asarray(where["distances_m"], float).tolist())
    if depth < 1 or len(held["data"]) % depth or len(distances) != depth - 1:
        raise ValueError(f"{len(held['data'])} layers are no whole number of {depth} slices with {len(distances)} distances")
    return Stack(*made, depth=depth, distances_m=distances)
