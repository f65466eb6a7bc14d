"""Snapshots as xarray: every axis with its coordinates in metres, every quantity with its unit. Needs the extra `xarray`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ptystream.publish.snapshot import LEDGER_CODES, Image, Snapshot

if TYPE_CHECKING:
    import xarray


def image_to_xarray(image: Image, name: str | None = None, *, centred: bool = False) -> xarray.DataArray:
    """A probe or an object with the axes layer, y and x: metres on the sample, or object pixels where no pixel size is known.

    `centred`: 0 is the middle pixel (N // 2), as of a probe; otherwise physical zero. The data are not copied.
    """
    import xarray

    data = np.asarray(image.data)
    pixel, unit = image.pixel_size_m or (1.0, 1.0), "m" if image.pixel_size_m else "px"
    coordinates: dict[str, Any] = {"layer": np.arange(data.shape[0])}
    for axis, count, size, offset in zip("yx", data.shape[-2:], pixel, image.offset, strict=True):
        first = -(count // 2) if centred else offset
        coordinates[axis] = (axis, (np.arange(count) + first) * size, {"units": unit, "long_name": f"{axis} on the sample"})
    told = {"pixel_size_m": image.pixel_size_m, "ramp": tuple(image.ramp), "long_name": "transmission" if not centred else "wave"}
    return xarray.DataArray(data, coordinates, ("layer", "y", "x"), name, {k: v for k, v in told.items() if v is not None})


def to_xarray(snapshot: Snapshot) -> xarray.DataTree:
    """A whole snapshot: `tree["object/NAME"]` has `wave` and `coverage`, `tree["probe/NAME"]` has `wave`, `tree["curves"]` what
    each iteration came to, `tree["positions"]` and `tree["ledger"]` the frames, `tree["frc"]` the ring correlation where it was
    measured. Its attributes tell run, state, quality and the rest."""
    import xarray

    parts: dict[str, xarray.Dataset] = {}
    for kind, held in (("object", snapshot.object), ("probe", snapshot.probe)):
        for name, image in held.items():
            made = xarray.Dataset({"wave": image_to_xarray(image, "wave", centred=kind == "probe")})
            seen = snapshot.coverage.get(name) if kind == "object" else None
            if seen is not None:
                made["coverage"] = (("y", "x"), seen, {"long_name": "illumination relative to its maximum"})
            parts[f"{kind}/{name}"] = made
    parts["curves"] = _curves(snapshot)
    pixel = next((image.pixel_size_m for image in snapshot.object.values() if image.pixel_size_m), None)
    unit, size = ("m", np.array(pixel)) if pixel else ("px", np.ones(2))
    places, frames = snapshot.positions.astype(float) * size, np.asarray(snapshot.ledger_map, float)
    parts["positions"] = xarray.Dataset({axis: ("frame", places[:, k], {"units": unit}) for k, axis in enumerate("yx")})
    states = {"flag_values": list(range(len(LEDGER_CODES))), "flag_meanings": " ".join(LEDGER_CODES)}
    parts["ledger"] = xarray.Dataset(
        {axis: ("frame", frames[:, k] * size[k], {"units": unit}) for k, axis in enumerate("yx")}
        | {"state": ("frame", frames[:, 2].astype(np.uint8), states)}
    )
    if rings := snapshot.quality.get("frc"):
        columns = {key: ("frequency", np.asarray(rings[key], float)) for key in ("correlation", "threshold")}
        frequency = ("frequency", np.asarray(rings["frequency_per_m"], float), {"units": f"1/{unit}"})
        parts["frc"] = xarray.Dataset(columns, {"frequency": frequency})
    tree = xarray.DataTree.from_dict({f"/{path}": part for path, part in parts.items()})
    tree.attrs = _about(snapshot)
    return tree


def _curves(snapshot: Snapshot) -> Any:
    import xarray

    columns = {
        **{f"misfit_{name}": snapshot.misfit[:, k] for k, name in enumerate(("amplitude", "photon"))},
        "poisson_expectation": snapshot.misfit[:, 2],
        **{f"error_{name}": snapshot.errors[:, k] for k, name in enumerate(("fourier", "photon", "exit"))},
    }
    most = max((len(values) for values in columns.values()), default=0)
    filled = {k: ("iteration", np.concatenate([v, np.full(most - len(v), np.nan)])) for k, v in columns.items()}
    return xarray.Dataset(filled, {"iteration": np.arange(1, most + 1)})


def _about(snapshot: Snapshot) -> dict[str, Any]:
    names = ("run", "number", "created_ns", "engine", "iteration", "state", "newest_frame_ns", "series", "angle", "started_ns")
    told = {name: getattr(snapshot, name) for name in names}
    return (
        {k: v for k, v in told.items() if v is not None}
        | {"ledger": dict(snapshot.ledger), "rates": dict(snapshot.rates)}
        | _measured(snapshot)
    )


def _measured(snapshot: Snapshot) -> dict[str, Any]:
    """The figures of quality, where there are any."""
    return {"quality": {name: dict(figure) for name, figure in snapshot.quality.items()}} if snapshot.quality else {}
