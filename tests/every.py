"""What the tests share that change every declared parameter and look whether anything comes of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import h5py
import numpy as np
from beginnings import result
from pydantic import BaseModel

Cases = Mapping[str, tuple[list[Any], dict[str, Any]]]
"""Path: (values, each of which must make a difference, what is set beside it)."""
FILE, OTHER_FILE = "FILE", "OTHER_FILE"
"""In a case: the names of earlier results, see `results`."""
RECON = {"illumination": {"model": "recon", "recon": {"rfile": FILE}}}
RAMP = (np.arange(400.0).reshape(20, 20) / 400).tolist()
PHYSICAL = {"sample": {"model": RAMP, "process": {"formula": "Au"}}}


def leaves(model: type[BaseModel], before: str = "") -> Iterator[str]:
    """Paths of all parameters of a branch."""
    for name, field in model.model_fields.items():
        kinds = (field.annotation, *get_args(field.annotation))
        branch = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if branch is None:
            yield f"{before}{name}"
        else:
            yield from leaves(branch, f"{before}{name}.")


def laid(beside: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """`beside` with the value at a path."""
    first, _, rest = path.partition(".")
    return {**beside, first: laid(beside.get(first) or {}, rest, value) if rest else value}


def digest(*parts: Any) -> str:
    """The bits of arrays, and the text of whatever else is in there."""
    made = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, Mapping):
            for key, value in part.items():
                made.update(str(key).encode())
                add(value)
        elif isinstance(part, list | tuple):
            made.update(str(len(part)).encode())
            for inner in part:
                add(inner)
        elif isinstance(part, np.ndarray):
            made.update(str(part.shape).encode() + np.ascontiguousarray(part).tobytes())
        else:
            made.update(str(part).encode())

    add(parts)
    return made.hexdigest()


def aperture(pixel: float) -> Cases:
    """Of a beam that is modelled on a `pixel` of so many metres."""
    return {
        "illumination.aperture.rotate": ([0.5], {"illumination": {"aperture": {"form": "rect"}}}),
        "illumination.aperture.central_stop": ([0.4], {}),
        "illumination.aperture.diffuser": ([(0.3, 2.0), (0.3, 2.0, 0.1, 2.0)], {}),
        "illumination.aperture.edge": ([5.0], {}),
        "illumination.aperture.form": (["rect", None], {}),
        "illumination.aperture.offset": ([3 * pixel, (3 * pixel, -2 * pixel)], {}),
        "illumination.aperture.size": ([8 * pixel, (8 * pixel, 12 * pixel)], {}),
        "illumination.photons": ([1e6], {}),
        "illumination.propagation.antialiasing": ([2.0], {"illumination": {"propagation": {"parallel": 2e-3}}}),
        "illumination.propagation.focussed": ([1e-3], {}),
        "illumination.propagation.parallel": ([1e-3], {}),
        "illumination.propagation.spot_size": ([4 * pixel], {"illumination": {"propagation": {"focussed": 1e-3}}}),
    }


def beam_modes(pixel: float, two: dict[str, Any]) -> Cases:
    """How modes differ; `two` makes two of them."""
    return {
        "illumination.diversity.noise": ([None, (0.3, 2.0, 0.1, 2.0)], two),
        "illumination.diversity.power": ([0.5], two),
        "illumination.diversity.shift": ([3 * pixel], two),
    }


def beam_models(side: int, *more: str) -> Cases:
    """What a beam begins as, on a frame of `side` pixels."""
    array = np.full((side, side), 1 + 2j) + np.arange(side)
    return {
        "illumination.model": (["moon", "flower", "tree", array, *more], {}),
        "illumination.recon.label": (["b"], RECON),
        "illumination.recon.rfile": ([OTHER_FILE], RECON),
    }


def specimen(pixel: float, two: dict[str, Any], *more: str) -> Cases:
    """What an object begins as; `two` makes two modes of it."""
    ramp = {"sample": {"model": RAMP}}
    both = laid(two, "sample.model", RAMP)
    return {
        "sample.fill": ([0.5], {}),
        "sample.model": (["moon", "flower", "tree", RAMP, *more], {}),
        "sample.recon.rfile": ([OTHER_FILE], {"sample": {"model": "recon", "recon": {"rfile": FILE}}}),
        "sample.process.offset": ([(3, 4)], ramp),
        "sample.process.zoom": ([1.5, (1.5, 2.0)], ramp),
        "sample.process.formula": (["Ni"], PHYSICAL),
        "sample.process.density": ([10.0, None], PHYSICAL),
        "sample.process.thickness": ([2e-6, None], {"sample": {"model": RAMP, "process": {"ref_index": (1e-5, 1e-6)}}}),
        "sample.process.ref_index": ([(1e-5, 1e-6), None], ramp),
        "sample.process.smoothing": ([0, 5], PHYSICAL),
        "sample.diversity.noise": ([(0.3, 2.0), (0.3, 2.0, 0.1, 2.0)], both),
        "sample.diversity.power": ([0.5], two),
        "sample.diversity.shift": ([3 * pixel], both),
    }


def results(folder: Path, shape: tuple[int, ...]) -> dict[str, str]:
    """FILE and OTHER_FILE: two earlier results, each of scans a and b, with probes of that shape."""
    names: tuple[str, ...] = ("SaG00", "SbG00")
    made = {}
    for number, name in enumerate((FILE, OTHER_FILE)):
        made[name] = result(folder / f"{len(shape)}_{name}.ptyr", None, names)
        with h5py.File(made[name], "r+") as file:
            for scan, storage in enumerate(names):
                node, more = file["content/probe"][storage], np.arange(shape[-1]) * (1 + number + 2 * scan)
                values = np.resize(node["data"][()], shape)
                del node["data"]
                node["data"] = values + more
                sample = file["content/obj"][storage]["data"]
                sample[...] = sample[()] * (number + 1)
    return made


def put_in(given: Any, named: Mapping[str, str]) -> Any:
    """With the files in the place of their names."""
    if isinstance(given, dict):
        return {key: put_in(value, named) for key, value in given.items()}
    return named.get(given, given) if isinstance(given, str) else given
