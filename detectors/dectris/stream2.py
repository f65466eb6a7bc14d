"""Stream2: one CBOR map per message, port 31001.

`type` is start, image or end. Arrays are tag 40 (row-major) or 1040 (column-major) around [shape, typed array]; typed arrays are
the tags 64 to 86 of RFC 8746 around a byte string, or around tag 56500: [algorithm, element size, bytes] standing for the bytes
that they decode to. The tags are walked here; nothing is decoded that is not asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import cbor2
import numpy as np
from numpy.typing import NDArray

from ptystream.codecs import CodecError, decode
from ptystream.events import Buffer, Frames, Payload

from ..wire import WireError
from .header import appended, of_lookup, response, told_v2, usable
from .version1 import End, Image, Start
from .wire import index, payload, sides

ROW_MAJOR, COLUMN_MAJOR, COMPRESSED = 40, 1040, 56500
TYPES = {
    **{64: "u1", 68: "u1", 65: ">u2", 66: ">u4", 69: "<u2", 70: "<u4", 72: "i1", 73: ">i2", 74: ">i4", 77: "<i2", 78: "<i4"},
    **{81: ">f4", 82: ">f8", 85: "<f4", 86: "<f8"},
}
"""Tags of typed arrays that images and arrays of a header may consist of."""
TAG_OF = {np.dtype(name).newbyteorder("<").str: tag for tag, name in sorted(TYPES.items(), reverse=True) if name[0] != ">"}
MAX_DIVISOR = 1 << 62
MAX_LOOKUP = 1 << 22
"""Entries of a lookup table."""


def read(message: Buffer, channel: str | None) -> Start | Image | End:
    """What a message says of one channel (None: the first). Raises `WireError`."""
    content = _map(message)
    kind = content.get("type")
    if kind not in ("start", "image", "end"):
        raise WireError("unknown_kind", f"type {kind!r:.60}: must be start, image or end")
    series = index(content.get("series_id"), "series_id")
    if kind == "end":
        return End(series)
    return _start(content, series, channel) if kind == "start" else _image(content, series, channel)


def _map(message: Buffer) -> dict[Any, Any]:
    try:
        content = cbor2.loads(memoryview(message).cast("B"))
    except Exception as error:  # whatever a library says about bytes of anybody
        raise WireError("malformed_header", f"the message is not CBOR: {error!r:.200}") from error
    if not isinstance(content, dict):
        raise WireError("malformed_header", f"the message is no map but {type(content).__name__}")
    return content


def _image(content: Mapping[str, Any], series: int, channel: str | None) -> Image:
    number = index(content.get("image_id"), "image_id")
    frame = _of(content.get("data"), channel, f"image {number}")
    stamp = _seconds(content.get("start_time"))
    date = content.get("series_date")
    stamps = None
    if stamp is not None:
        since = int(date.timestamp()) * 10**9 + date.microsecond * 1000 if isinstance(date, datetime) and date.year >= 1970 else 0
        if since + stamp < 1 << 63:
            stamps = np.array([since + stamp], np.int64)
    return Image(Frames(str(series), np.array([number], np.int64), (_frame(frame),), stamps), content.get("user_data"))


def _start(content: Mapping[str, Any], series: int, channel: str | None) -> Start:
    told = told_v2(content, series)
    mask, flat = (_array(content.get(name), channel, name) for name in ("pixel_mask", "flatfield"))
    if mask is not None:
        told["mask"] = usable(mask)
    if flat is not None and content.get("flatfield_enabled") is False:
        told["flat"] = response(flat)
    table = content.get("countrate_correction_lookup_table")
    if content.get("countrate_correction_enabled") is False and table is not None:
        lookup = _lookup(table, channel)
        told["count_table"] = "no plain array" if lookup is None else of_lookup(lookup)
    appended(content.get("user_data"), told)
    return Start(series, told)


def _of(channels: Any, channel: str | None, what: str) -> Any:
    """The entry of a channel."""
    if not isinstance(channels, dict) or not channels:
        raise WireError("malformed_header", f"{what}: no map of channels")
    if channel is None:
        return next(iter(channels.values()))
    if channel not in channels:
        raise WireError("channel_missing", f"{what}: no channel {channel!r}; there are {', '.join(map(str, list(channels)[:8]))}")
    return channels[channel]


def _array(channels: Any, channel: str | None, what: str) -> NDArray[Any] | None:
    """An array of the header; None where there is none for this channel."""
    if not isinstance(channels, dict) or not channels or (channel is not None and channel not in channels):
        return None
    frame = _frame(_of(channels, channel, what))
    try:
        return decode(frame)
    except CodecError as error:
        raise WireError("undecodable", f"{what}: {error}") from error


def _lookup(value: Any, channel: str | None) -> NDArray[Any] | None:
    """The lookup table of count rates: a typed array of one axis, or a map of channels to such; None where it is neither."""
    if isinstance(value, dict):
        value = value.get(channel) if channel is not None else next(iter(value.values()), None)
    kind, data = _tagged(value)
    dtype = np.dtype(TYPES.get(kind or 0, "u1"))
    if kind not in TYPES or not isinstance(data, (bytes, bytearray)) or len(data) % dtype.itemsize:
        return None
    return np.frombuffer(data, dtype) if 2 <= len(data) // dtype.itemsize <= MAX_LOOKUP else None


def _frame(value: Any) -> Payload:
    tag, inner = _tagged(value)
    if tag not in (ROW_MAJOR, COLUMN_MAJOR) or not isinstance(inner, (list, tuple)) or len(inner) != 2:
        raise WireError("malformed_header", f"no array of two axes: tag {tag}")
    shape = sides(inner[0])
    kind, data = _tagged(inner[1])
    if kind not in TYPES:
        raise WireError("wrong_dtype", f"typed array of tag {kind}: must be one of {', '.join(map(str, sorted(TYPES)))}")
    dtype, encoding = np.dtype(TYPES[kind]), ">" if TYPES[kind][0] == ">" else "<"
    if not isinstance(data, (bytes, bytearray)):
        data, encoding = _compressed(data, dtype, encoding)
    if tag == ROW_MAJOR:
        return payload(data, encoding, dtype, shape)
    return _turned(payload(data, encoding, dtype, (shape[1], shape[0])))


def _compressed(value: Any, dtype: np.dtype[Any], order: str) -> tuple[bytes, str]:
    """(bytes, encoding in words of version 1)."""
    tag, inner = _tagged(value)
    sound = tag == COMPRESSED and isinstance(inner, (list, tuple)) and len(inner) == 3
    if not sound or not isinstance(inner[2], (bytes, bytearray)):
        raise WireError("malformed_header", f"a typed array without bytes: tag {tag}")
    algorithm, element, data = inner
    if algorithm == "lz4":
        return bytes(data), f"lz4{order}"
    if algorithm == "bslz4" and element == dtype.itemsize:
        return bytes(data), f"bs{8 * dtype.itemsize}-lz4{order}"
    raise WireError("unknown_codec", f"compression {algorithm!r:.40} of elements of {element!r:.20} bytes for {dtype}")


def _turned(frame: Payload) -> Payload:
    """Column-major pixels in rows: decoded here, because nobody else knows of columns."""
    try:
        pixels = np.ascontiguousarray(decode(frame).T)
    except CodecError as error:
        raise WireError("undecodable", str(error)) from error
    return Payload(pixels.data.cast("B"), "raw", frame.dtype, pixels.shape)


def _tagged(value: Any) -> tuple[int | None, Any]:
    return (value.tag, value.value) if isinstance(value, cbor2.CBORTag) else (None, value)


def _seconds(value: Any) -> int | None:
    """Nanoseconds of [numerator, denominator] in seconds."""
    if not isinstance(value, (list, tuple)) or len(value) != 2 or not all(type(n) is int for n in value):
        return None
    above, below = value
    if not (0 <= above < MAX_DIVISOR and 0 < below < MAX_DIVISOR):
        return None
    stamp = above * 10**9 // below
    return stamp if stamp < 1 << 62 else None
