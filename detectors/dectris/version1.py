"""Stream version 1: multipart messages of JSON and blobs, port 9999.

Header: `dheader-1.0`, then (details basic and all) the configuration, then (all) flat field, pixel mask and count rate table,
each a JSON part and a blob, then perhaps an appendix. Image: `dimage-1.0`, `dimage_d-1.0`, blob, `dconfig-1.0`, perhaps an
appendix. End: `dseries_end-1.0`. Shapes are [x, y].
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.codecs import MAX_FRAME_BYTES
from ptystream.events import Buffer, Frames

from ..wire import WireError, json_object
from .header import appended, number, of_rates, response, told_v1, usable
from .wire import DTYPES, index, payload, sides

MAX_JSON_BYTES = 1 << 20
ARRAYS = {"flatfield": ("flatfield", "float32"), "pixelmask": ("pixelmask", "uint32"), "countrate_table": ("table", "float32")}


@dataclass(frozen=True, slots=True)
class Start:
    """The header of a series."""

    series: int
    told: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Image:
    """One image."""

    frames: Frames
    appendix: Any = None
    """What the beamline has put behind it: bytes, or what its `user_data` is."""


@dataclass(frozen=True, slots=True)
class End:
    """The end of a series."""

    series: int


def is_version1(first: Buffer) -> bool:
    """Whether a message whose first part this is can be one: JSON begins with a brace."""
    raw = memoryview(first).cast("B")
    return raw.nbytes > 0 and raw[0] in b"{ \t\r\n"


def read(parts: Sequence[Buffer]) -> Start | Image | End:
    """What a message says. Raises `WireError`."""
    head = _json(parts, 0)
    kind = _kind(head)
    series = index(head.get("series"), "series")
    if kind == "dimage-1.0":
        return _image(head, series, parts)
    if kind == "dheader-1.0":
        return _start(head, series, parts)
    if kind == "dseries_end-1.0":
        return End(series)
    raise WireError("unknown_kind", f"htype {kind!r:.60}: must be dheader-1.0, dimage-1.0 or dseries_end-1.0")


def _image(head: Mapping[str, Any], series: int, parts: Sequence[Buffer]) -> Image:
    number = index(head.get("frame"), "frame")
    if len(parts) < 3:
        raise WireError("truncated", f"image {number}: 4 parts announced, {len(parts)} received")
    described = _json(parts, 1)
    if _kind(described) != "dimage_d-1.0":
        raise WireError("unknown_kind", f"second part of image {number}: {described.get('htype')!r:.60}, dimage_d-1.0 expected")
    x, y = sides(described.get("shape"))
    dtype = _dtype(described.get("type"))
    size = described.get("size")
    blob = memoryview(parts[2]).cast("B")
    if isinstance(size, int) and size not in (0, blob.nbytes):
        raise WireError("truncated", f"image {number}: {size} bytes announced, {blob.nbytes} received")
    frame = payload(blob, described.get("encoding", "<"), dtype, (y, x))
    stamps: NDArray[np.int64] | None = None
    if len(parts) > 3:
        start = _json(parts, 3).get("start_time")
        if isinstance(start, int) and not isinstance(start, bool) and 0 <= start < 1 << 62:
            stamps = np.array([start], np.int64)
    made = Frames(str(series), np.array([number], np.int64), (frame,), stamps)
    return Image(made, parts[4] if len(parts) > 4 else None)


def _start(head: Mapping[str, Any], series: int, parts: Sequence[Buffer]) -> Start:
    detail = head.get("header_detail", "none")
    if detail not in ("none", "basic", "all"):
        raise WireError("malformed_header", f"header_detail {detail!r:.40}: must be none, basic or all")
    told: dict[str, Any] = {"series": series}
    rest = list(parts[1:])
    config: dict[str, Any] = {}
    if detail != "none":
        config = _json(parts, 1)
        told = told_v1(config, series)
        del rest[0]
    while rest:
        name = _array_name(rest[0])
        if name is None or len(rest) < 2:
            appended(rest[-1], told)
            break
        _tell_array(name, _array(_json(rest, 0), rest[1], name), config, told)
        del rest[:2]
    return Start(series, told)


def _tell_array(name: str, array: NDArray[Any], config: Mapping[str, Any], told: dict[str, Any]) -> None:
    if name == "pixelmask":
        told["mask"] = usable(array)
    elif name == "flatfield" and config.get("flatfield_correction_applied") is False:
        told["flat"] = response(array)
    elif name == "countrate_table":
        told["count_rate_table"] = array
        seconds = number(config.get("count_time"))
        if config.get("countrate_correction_applied") is False and seconds is not None:
            told["count_table"] = of_rates(array, seconds)


def _array_name(part: Buffer) -> str | None:
    raw = memoryview(part).cast("B")
    if raw.nbytes > MAX_JSON_BYTES:
        return None
    try:
        kind = json.loads(bytes(raw)).get("htype")
    except (ValueError, RecursionError, AttributeError):
        return None
    name = kind.removeprefix("d").removesuffix("-1.0") if isinstance(kind, str) else None
    return name if name in ARRAYS else None


def _array(described: Mapping[str, Any], blob: Buffer, name: str) -> NDArray[Any]:
    x, y = sides(described.get("shape"))
    if name == "countrate_table":
        x, y = y, x  # [n, 2]: rows first, as nothing else here
    dtype = _dtype(described.get("type", ARRAYS[name][1]))
    raw = memoryview(blob).cast("B")
    if not raw.nbytes == x * y * dtype.itemsize <= MAX_FRAME_BYTES:
        raise WireError("truncated", f"{name}: {x * y * dtype.itemsize} bytes announced, {raw.nbytes} received")
    return np.frombuffer(raw, dtype.newbyteorder("<")).reshape(y, x)


def _dtype(name: Any) -> np.dtype[Any]:
    if not isinstance(name, str) or name not in DTYPES:
        raise WireError("wrong_dtype", f"type {name!r:.40}: must be one of {', '.join(DTYPES)}")
    return DTYPES[name]


def _kind(part: Mapping[str, Any]) -> str:
    kind = part.get("htype")
    if not isinstance(kind, str):
        raise WireError("unknown_kind", f"htype {kind!r:.60} is no text")
    return kind


def _json(parts: Sequence[Buffer], number: int) -> dict[str, Any]:
    if number >= len(parts):
        raise WireError("truncated", f"part {number + 1} is missing")
    return json_object(parts[number], MAX_JSON_BYTES, f"part {number + 1}")
