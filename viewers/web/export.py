"""A picture as PNG, a snapshot as HDF5: both in memory."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ptystream.publish.display import visible
from ptystream.publish.snapshot import Image, Snapshot

from .picture import Picture
from .png import cyclic, png

ATTRIBUTES = ["run", "number", "engine", "state", "iteration", "created_ns", "started_ns", "newest_frame_ns", "series", "angle"]
"""Of the file, by their names in a snapshot."""
COLUMNS = {
    "errors": "fourier photon exit",
    "misfit": "amplitude photon poisson",
    "positions": "y x",
    "ledger_map": "y x code",
}


def as_png(picture: Picture, what: str, part: str, name: str = "") -> bytes:
    """`what`: 'object' or 'probe', of `name`, or the first; `part`: 'amplitude' or 'phase'. Modes stand side by side.

    What hardly saw light of an object is transparent. Raises `LookupError` where there is none of it.
    """
    names = list(picture.header[what])
    if not names or (name and name not in names):
        raise LookupError(f"There is no {what} {name[:100]!r} in this picture." if names else f"There is no {what} yet.")
    name = name or names[0]
    codes = np.concatenate(list(picture.arrays[f"{what}/{name}/{part}"]), axis=1)
    layers = len(picture.arrays[f"{what}/{name}/{part}"])
    opaque = np.full((*codes.shape, 1), 255, np.uint8)
    seen = picture.arrays.get(f"coverage/{name}") if what == "object" else None
    if seen is not None:
        opaque[~np.tile(visible(seen), (1, layers))] = 0
    pixels = codes[..., None] if part == "amplitude" else cyclic()[codes]
    return png(np.concatenate([pixels, opaque], axis=-1), _texts(picture.header, what, name, part))


def _texts(header: Mapping[str, Any], what: str, name: str, part: str) -> dict[str, str]:
    place = header[what][name]
    said = {"Title": f"{header['run']}: {part} of {what} {name}, iteration {header['iteration']}", "Software": "ptystream"}
    if place["pixel_size_m"] is not None:
        said["Pixel size (y, x), metres"] = " ".join(f"{size:.9g}" for size in place["pixel_size_m"])
    if part == "amplitude":
        limits = "; ".join(f"{low:.6g} to {high:.6g}" for low, high in place["limits"])
        said["Grey values"] = f"black to white: {limits}, in units of {' '.join(f'{s:.6g}' for s in place['scale'])}"
    else:
        said["Colours"] = "-pi to pi, phase ramp removed: " + " ".join(f"{v:.6g}" for v in place["ramp"])
    return said


def as_hdf5(snapshot: Snapshot) -> bytes:
    """What the engine held: groups `object/NAME` and `probe/NAME` (NXdata: complex `data` over mode, y, x in metres), coverage,
    positions, errors, misfit; which run, iteration and moment as attributes of the file."""
    held = io.BytesIO()
    with h5py.File(held, "w", libver=("earliest", "v110")) as file:
        for key in ATTRIBUTES:
            if (value := getattr(snapshot, key)) is not None:
                file.attrs[key] = value
        for kind in ("object", "probe"):
            for name, image in getattr(snapshot, kind).items():
                group = file.create_group(f"{kind}/{_safe(name)}")
                _image(group, image)
                if kind == "object" and name in snapshot.coverage:
                    group["coverage"] = snapshot.coverage[name]
        for name, columns in COLUMNS.items():
            table = file.create_dataset(name, data=getattr(snapshot, name))
            table.attrs["columns"] = columns.split()
        for name in ("positions", "ledger_map"):
            file[name].attrs["units"] = "object pixels on the lattice"
        for name, count in snapshot.ledger.items():
            file.require_group("ledger").attrs[name] = count
    return held.getvalue()


def _image(group: h5py.Group, image: Image) -> None:
    group.attrs["NX_class"], group.attrs["signal"], group.attrs["axes"] = "NXdata", "data", ["mode", "y", "x"]
    data: h5py.Dataset = group.create_dataset("data", data=image.data)
    data.attrs["long_name"] = "as the engine holds it: no phase ramp removed"
    group.attrs["offset_px"], group.attrs["ramp"] = image.offset, image.ramp
    group["mode"] = np.arange(len(image.data))
    size: tuple[float, float] = image.pixel_size_m or (1.0, 1.0)
    if image.pixel_size_m is not None:
        group.attrs["pixel_size_m"] = size
    for axis, count, step, first in zip("yx", image.data.shape[1:], size, image.offset, strict=True):
        places: NDArray[np.float64] = (first + np.arange(count)) * step
        group[axis] = places
        group[axis].attrs["units"] = "m" if image.pixel_size_m is not None else "pixel"
    for number, axis in enumerate(("mode", "y", "x")):
        group[axis].make_scale(axis)
        data.dims[number].attach_scale(group[axis])


def _safe(name: str) -> str:
    """A name of a group: a slash would make two of it, a dot alone none."""
    return name.replace("/", "_").strip(".") or "_"
