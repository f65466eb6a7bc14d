"""Snapshots as messages and back: msgpack header and raw buffers, versioned, without I/O.

`docs/reference/snapshots.md` describes the layout for those who read it from another language.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import msgpack
import numpy as np
from numpy.typing import NDArray

from ptystream.events import Buffer
from ptystream.publish import measured
from ptystream.publish.display import Display, Picture, display
from ptystream.publish.snapshot import Image, Snapshot

FORMAT = "ptystream.snapshot"
VERSION = 4
FORMS = ("complex64", "uint8")
"""How the images are sent: as the engine holds them, or ready to be drawn (`display.Picture`)."""

MAX_HEADER_BYTES = 1 << 20
MAX_ARRAYS = 256
MAX_MESSAGE_BYTES = 1 << 31
"""Receivers set this as the limit of one part, so that a wrong peer cannot make them take memory."""

Part: TypeAlias = bytes | memoryview
Described: TypeAlias = tuple[dict[str, Any], list[NDArray[Any]]]
"""A header of plain values (as JSON knows them), and the arrays that it announces, in order."""

_RECORDS: dict[str, tuple[str, int]] = {
    "positions": ("<f4", 2),
    "errors": ("<f8", 2),
    "misfit": ("<f8", 2),
    "ledger_map": ("<f4", 2),
}
_COLUMNS = {"positions": 2, "errors": 3, "misfit": 3, "ledger_map": 3}
_TEXTS = ("run", "engine", "state")
_NUMBERS = ("number", "created_ns", "started_ns", "iteration")


class SchemaError(ValueError):
    """A message is no snapshot that this version can read; the text says what was announced and what came."""


def topic(run: str) -> bytes:
    """What a subscriber asks for: the run's name, ended by a zero so that no other name begins with it.

    Raises `ValueError` for a name that is empty or holds a zero character.
    """
    if not run or "\0" in run:
        raise ValueError(f"run name {run!r}: a name of one or more characters without NUL is needed")
    return run.encode() + b"\0"


def encode(snapshot: Snapshot, form: str = "complex64") -> list[Part]:
    """The parts of a message: header, then one raw little-endian C-ordered buffer per array.

    Arrays that already have the dtype of the wire are not copied: they must not change until the parts are sent.
    Raises `ValueError` for an unknown form.
    """
    if form not in FORMS:
        raise ValueError(f"form {form!r} of a snapshot: one of {', '.join(FORMS)} is needed")
    header, arrays = describe(snapshot) if form == "complex64" else describe_display(display(snapshot))
    return [msgpack.packb(header), *(array.reshape(-1).view(np.uint8).data for array in arrays)]


def describe(snapshot: Snapshot) -> Described:
    """Header and arrays of the form 'complex64'."""
    named: dict[str, NDArray[Any]] = {}
    images: dict[str, dict[str, Any]] = {}
    for kind in ("probe", "object"):
        entries: Mapping[str, Image] = getattr(snapshot, kind)
        images[kind] = {name: _place(image) for name, image in entries.items()}
        named |= {f"{kind}/{name}": _as(image.data, "<c8") for name, image in entries.items()}
    named |= {f"coverage/{name}": _as(seen, "<f4") for name, seen in snapshot.coverage.items()}
    return _described(snapshot, "complex64", images, named)


def describe_display(shown: Display) -> Described:
    """Header and arrays of the form 'uint8'."""
    named: dict[str, NDArray[Any]] = {}
    images: dict[str, dict[str, Any]] = {}
    for kind in ("probe", "object"):
        entries: Mapping[str, Picture] = getattr(shown, kind)
        images[kind] = {
            name: _place(p) | {"limits": [list(pair) for pair in p.limits], "scale": list(p.scale), "power": list(p.power)}
            for name, p in entries.items()
        }
        for name, picture in entries.items():
            named |= {f"{kind}/{name}/amplitude": picture.amplitude, f"{kind}/{name}/phase": picture.phase}
    named |= {f"coverage/{name}": seen for name, seen in shown.coverage.items()}
    return _described(shown.about, "uint8", images, named)


def decode(parts: Sequence[Buffer]) -> Snapshot:
    """Read a message of the form 'complex64'; the arrays are read-only views of its parts.

    Raises `SchemaError` for everything else.
    """
    header, arrays = read(parts)
    if header["form"] != "complex64":
        raise SchemaError(f"a snapshot of form {header['form']!r} came where 'complex64' is read; use decode_display")
    images = {
        kind: {name: Image(arrays[f"{kind}/{name}"], *_placed(place)) for name, place in header[kind].items()}
        for kind in ("probe", "object")
    }
    coverage = {key.removeprefix("coverage/"): a for key, a in arrays.items() if key.startswith("coverage/")}
    return _snapshot(header, arrays, images["probe"], images["object"], coverage)


def decode_display(parts: Sequence[Buffer]) -> Display:
    """Read a message of the form 'uint8'. Raises `SchemaError` for everything else."""
    header, arrays = read(parts)
    if header["form"] != "uint8":
        raise SchemaError(f"a snapshot of form {header['form']!r} came where 'uint8' is read; use decode")
    pictures = {
        kind: {
            name: Picture(
                arrays[f"{kind}/{name}/amplitude"],
                arrays[f"{kind}/{name}/phase"],
                tuple((float(low), float(high)) for low, high in place["limits"]),
                tuple(map(float, place["scale"])),
                tuple(map(float, place["power"])),
                *_placed(place),
            )
            for name, place in header[kind].items()
        }
        for kind in ("probe", "object")
    }
    codes = {key.removeprefix("coverage/"): a for key, a in arrays.items() if key.startswith("coverage/")}
    coverage = {name: (seen / np.float32(255)).astype(np.float32) for name, seen in codes.items()}
    about = _snapshot(header, arrays, {}, {}, coverage)
    return Display(about, pictures["probe"], pictures["object"], codes)


def read(parts: Sequence[Buffer]) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Header and arrays by name, everything checked: types, dtypes, shapes, and that each buffer has the announced size."""
    if not 1 <= len(parts) <= 1 + MAX_ARRAYS:
        raise SchemaError(f"{len(parts)} parts came; a header and at most {MAX_ARRAYS} arrays are read")
    header = unpack(parts[0])
    if header.get("format") != FORMAT:
        raise SchemaError(f"format {str(header.get('format'))[:80]!r} came; {FORMAT!r} is read")
    if header.get("version") != VERSION:
        raise SchemaError(
            f"version {str(header.get('version'))[:80]} of the snapshot format came; this ptystream reads version {VERSION}: "
            "use the same release on both sides"
        )
    try:
        _check_header(header)
        arrays = _arrays(header, parts[1:])
        _check_images(header, arrays)
    except (KeyError, TypeError, AttributeError) as error:
        raise SchemaError(f"the header of a snapshot is incomplete or of wrong types: {error!r}") from error
    return header, arrays


def unpack(part: Buffer) -> dict[str, Any]:
    """A msgpack map from untrusted bytes. Raises `SchemaError`."""
    if len(part) > MAX_HEADER_BYTES:
        raise SchemaError(f"a header of {len(part)} bytes came; at most {MAX_HEADER_BYTES} are read")
    try:
        value = msgpack.unpackb(part)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise SchemaError(f"the header is no msgpack: {error}") from error
    if not isinstance(value, dict):
        raise SchemaError(f"the header is a {type(value).__name__}; a map is needed")
    return value


def _described(snapshot: Snapshot, form: str, images: Mapping[str, dict[str, Any]], named: dict[str, NDArray[Any]]) -> Described:
    named |= {name: _as(getattr(snapshot, name), dtype) for name, (dtype, _) in _RECORDS.items()}
    header: dict[str, Any] = {"format": FORMAT, "version": VERSION, "form": form}
    header |= {name: getattr(snapshot, name) for name in _TEXTS}
    header |= {name: int(getattr(snapshot, name)) for name in _NUMBERS}
    header["newest_frame_ns"] = None if snapshot.newest_frame_ns is None else int(snapshot.newest_frame_ns)
    header["series"] = snapshot.series
    header["angle"] = None if snapshot.angle is None else float(snapshot.angle)
    header["ledger"] = {name: int(count) for name, count in snapshot.ledger.items()}
    header["rates"] = {name: float(rate) for name, rate in snapshot.rates.items()}
    header["scans"] = list(snapshot.scans)
    header["quality"] = {name: dict(values) for name, values in snapshot.quality.items()}
    header |= images
    header["arrays"] = [{"name": k, "dtype": a.dtype.str, "shape": list(a.shape)} for k, a in named.items()]
    return header, list(named.values())


def _as(array: NDArray[Any], dtype: str) -> NDArray[Any]:
    return np.ascontiguousarray(array, dtype=np.dtype(dtype))


def _place(image: Image | Picture) -> dict[str, Any]:
    size = image.pixel_size_m
    depths = {"depths_m": [float(v) for v in image.depths_m]} if image.depths_m else {}
    return depths | {
        "pixel_size_m": None if size is None else [float(size[0]), float(size[1])],
        "offset": [int(n) for n in image.offset],
        "ramp": [float(v) for v in image.ramp],
    }


def _placed(
    place: Mapping[str, Any],
) -> tuple[tuple[float, float] | None, tuple[int, int], tuple[float, float, float], tuple[float, ...]]:
    size, (row, column), (a, b, c) = place["pixel_size_m"], place["offset"], place["ramp"]
    depths = tuple(float(v) for v in place.get("depths_m", ()))
    return None if size is None else (float(size[0]), float(size[1])), (int(row), int(column)), (a, b, c), depths


def _snapshot(
    header: Mapping[str, Any],
    arrays: Mapping[str, NDArray[Any]],
    probe: Mapping[str, Image],
    objects: Mapping[str, Image],
    coverage: Mapping[str, NDArray[np.float32]],
) -> Snapshot:
    named: dict[str, Any] = {name: header[name] for name in (*_TEXTS, *_NUMBERS)} | {name: arrays[name] for name in _RECORDS}
    return Snapshot(
        probe=probe,
        object=objects,
        coverage=coverage,
        newest_frame_ns=header["newest_frame_ns"],
        series=header["series"],
        angle=header["angle"],
        ledger=header["ledger"],
        rates=header["rates"],
        scans=tuple(header["scans"]),
        quality=header["quality"],
        **named,
    )


# ---------------------------------------------------------------- checks


def _check_header(header: Mapping[str, Any]) -> None:
    for name in _TEXTS:
        _need(header[name], str, name)
    for name in _NUMBERS:
        _need(header[name], int, name)
    if header["newest_frame_ns"] is not None:
        _need(header["newest_frame_ns"], int, "newest_frame_ns")
    if header["series"] is not None:
        _need(header["series"], str, "series")
    if header["angle"] is not None and not _number(header["angle"], (int, float)):
        raise SchemaError(f"angle is {str(header['angle'])[:80]!r}; a finite number is needed")
    if header["form"] not in FORMS:
        raise SchemaError(f"form {str(header['form'])[:80]!r} is unknown; {' or '.join(FORMS)} is read")
    for name, kind in (("ledger", int), ("rates", float), ("probe", dict), ("object", dict)):
        _need(header[name], dict, name)
        for key, value in header[name].items():
            _need(key, str, f"a name in {name}")
            _need(value, kind, f"{name}.{key}")
    _need(header["scans"], list, "scans")
    for label in header["scans"]:
        _need(label, str, "a label in scans")
    if wrong := measured.faults(header["quality"]):
        raise SchemaError(wrong)
    for images in ("probe", "object"):
        for name, place in header[images].items():
            _check_place(f"{images}.{name}", place, header["form"])


def _check_place(path: str, place: Mapping[str, Any], form: str) -> None:
    size = place["pixel_size_m"]
    if size is not None and not (_are(size, 2, float) and min(size) > 0):
        raise SchemaError(f"{path}.pixel_size_m is {str(size)[:80]}; two positive lengths or none are needed")
    if not _are(place["offset"], 2, int):
        raise SchemaError(f"{path}.offset is {str(place['offset'])[:80]}; two integers are needed")
    if not _are(place["ramp"], 3, float):
        raise SchemaError(f"{path}.ramp is {str(place['ramp'])[:80]}; three finite numbers are needed")
    depths = place.get("depths_m", [])
    if not isinstance(depths, list) or not _are(depths, len(depths), float):
        raise SchemaError(f"{path}.depths_m is {str(depths)[:80]}; a list of finite numbers is needed")
    if form == "uint8":
        for name in ("scale", "power"):
            if not _are(place[name], len(place["limits"]), float):
                raise SchemaError(f"{path}.{name} needs one finite number per layer")
        if not all(_are(pair, 2, float) for pair in place["limits"]):
            raise SchemaError(f"{path}.limits needs two finite numbers per layer")


def _arrays(header: Mapping[str, Any], buffers: Sequence[Buffer]) -> dict[str, NDArray[Any]]:
    listed = header["arrays"]
    _need(listed, list, "arrays")
    if len(listed) != len(buffers):
        raise SchemaError(f"{len(listed)} arrays are announced, {len(buffers)} came")
    expected = _expected(header)
    arrays: dict[str, NDArray[Any]] = {}
    for entry, buffer in zip(listed, buffers, strict=True):
        name, shape = entry["name"], entry["shape"]
        if not isinstance(name, str) or name not in expected or name in arrays:
            raise SchemaError(f"array {str(name)[:80]!r} is not expected here, or comes twice")
        dtype, axes = expected[name]
        if entry["dtype"] != dtype:
            raise SchemaError(f"array {name}: dtype {str(entry['dtype'])[:80]!r} is announced, {dtype!r} is needed")
        if not _are(shape, axes, int) or min(shape) < 0:
            raise SchemaError(f"array {name}: shape {str(shape)[:80]} is announced; {axes} axes are needed")
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size != memoryview(buffer).nbytes:
            raise SchemaError(f"array {name}: {size} bytes are announced, {memoryview(buffer).nbytes} came")
        array = np.frombuffer(buffer, dtype).reshape(shape)
        array.flags.writeable = False
        arrays[name] = array
    if missing := expected.keys() - arrays.keys():
        raise SchemaError(f"arrays are missing: {', '.join(sorted(missing))[:200]}")
    for name, columns in _COLUMNS.items():
        if arrays[name].shape[1] != columns:
            raise SchemaError(f"array {name}: shape {arrays[name].shape} came; {columns} columns are needed")
    return arrays


def _expected(header: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
    """Dtype and number of axes of every array that belongs to a header."""
    expected = dict(_RECORDS)
    raw = header["form"] == "complex64"
    for kind in ("probe", "object"):
        for name in header[kind]:
            if raw:
                expected[f"{kind}/{name}"] = ("<c8", 3)
            else:
                expected |= {f"{kind}/{name}/{part}": ("|u1", 3) for part in ("amplitude", "phase")}
    announced = {entry["name"] for entry in header["arrays"]}
    for name in header["object"]:
        if f"coverage/{name}" in announced:
            expected[f"coverage/{name}"] = ("<f4" if raw else "|u1", 2)
    return expected


def _check_images(header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    raw = header["form"] == "complex64"
    for kind in ("probe", "object"):
        for name, place in header[kind].items():
            shape = arrays[f"{kind}/{name}" if raw else f"{kind}/{name}/amplitude"].shape
            if not raw and (arrays[f"{kind}/{name}/phase"].shape != shape or len(place["limits"]) != shape[0]):
                raise SchemaError(f"{kind} {name}: amplitude, phase and limits differ in shape")
            if (depths := place.get("depths_m")) and shape[0] % len(depths):
                raise SchemaError(f"{kind} {name}: {shape[0]} layers are no whole number of stacks of {len(depths)} slices")
            seen = arrays.get(f"coverage/{name}") if kind == "object" else None
            if seen is not None and seen.shape != shape[1:]:
                raise SchemaError(f"coverage of {name} has shape {seen.shape}, the object {shape}")


def _need(value: Any, kind: type, path: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
        raise SchemaError(f"{path[:80]} is a {type(value).__name__}; {kind.__name__} is needed")


def _are(values: Any, count: int, kind: type) -> bool:
    allowed = (int, float) if kind is float else kind
    if not isinstance(values, list) or len(values) != count:
        return False
    numbers: list[Any] = values
    return all(_number(v, allowed) for v in numbers)


def _number(value: Any, allowed: Any) -> bool:
    return isinstance(value, allowed) and not isinstance(value, bool) and math.isfinite(value)
