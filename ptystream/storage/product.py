"""A result as a file that others show: NeXus images under `/entry_1`, which CXI's readers find too, and at the root."""

from __future__ import annotations

import json
from typing import Any

import h5py
import numpy as np

from ptystream import __version__
from ptystream.reconstruction import Storage

from .ptyr import Result, plain

KEV_EV = 1000.0


def write_product(file: h5py.File, result: Result, name: str) -> None:
    """Object and probe `name` of a result, or the first ones, into an open file. Raises `ValueError` where there is none."""
    if name not in result.object or name not in result.probe:
        raise ValueError(f"{name!r}: the result has objects {', '.join(result.object)} and probes {', '.join(result.probe)}")
    sample, probe = result.object[name], result.probe[name]
    file["cxi_version"] = 160
    file.attrs.update({"default": "entry_1", "creator": f"ptystream {__version__}"})
    entry = file.create_group("entry_1")
    entry.attrs.update({"NX_class": "NXentry", "default": "object"})
    entry["title"] = result.run
    for key, storage in (("object", sample), ("probe", probe)):
        _image(entry, key, storage, centred=key == "probe")
    for number, key in enumerate(("object", "probe"), 1):
        image = entry[f"image_{number}"] = entry[key]
        image["data_space"], image["data_type"] = "real", f"{key} transmission" if key == "object" else "illumination"
        image["image_size"] = np.array([n * p for n, p in zip(sample.shape, sample.pixel_size_m or (1, 1), strict=True)])
        image["image_size"].attrs["units"] = "m" if sample.pixel_size_m else "px"
    process = entry.create_group("process_1")
    process.attrs["NX_class"] = "NXprocess"
    process["program"], process["version"], process["sequence_index"] = "ptystream", __version__, 1
    process["configuration"] = json.dumps(result.parameters, default=plain)
    errors = entry.create_group("metrics")
    errors.attrs.update({"NX_class": "NXdata", "signal": "misfit"})
    errors["errors"], errors["misfit"] = result.errors, result.misfit
    places = np.zeros((len(result.positions_m), 3))
    places[:, 0], places[:, 1] = result.positions_m[:, 1], result.positions_m[:, 0]
    geometry = entry.create_group("sample_1/geometry_1")
    geometry["translation"] = places
    geometry["translation"].attrs["units"] = "m"
    file["object"], file["probe"] = entry["object/data"], entry["probe/data"]
    for key, storage in (("object", sample), ("probe", probe)):
        y, x = storage.pixel_size_m or (1.0, 1.0)
        file[key].attrs.update({"pixel_height_m": y, "pixel_width_m": x})
    file["probe_position_indexes"] = np.arange(len(places))
    file["probe_position_y_m"], file["probe_position_x_m"] = places[:, 1], places[:, 0]
    told: Any = next(iter(result.scans.values()), {})
    about = {"name": result.run, "comments": "", "detector_object_distance_m": told.get("distance")}
    energy = told.get("energy") or sample.energy_kev
    about["probe_energy_eV"] = None if energy is None else energy * KEV_EV
    file.attrs.update({key: value for key, value in about.items() if value is not None})


def _image(entry: h5py.Group, key: str, storage: Storage, *, centred: bool) -> None:
    group = entry.create_group(key)
    group.attrs.update({"NX_class": "NXdata", "signal": "data", "axes": [".", "y", "x"], "interpretation": "image"})
    group.create_dataset("data", data=storage.data, compression="gzip", compression_opts=4, shuffle=True)
    pixel = storage.pixel_size_m or (1.0, 1.0)
    offset = [-(n // 2) for n in storage.shape] if centred else storage.offset
    for axis, n, p, o in zip("yx", storage.shape, pixel, offset, strict=True):
        group[axis] = (np.arange(n) + o) * p
        group[axis].attrs["units"] = "m" if storage.pixel_size_m else "px"
