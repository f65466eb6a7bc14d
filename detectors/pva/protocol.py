"""Updates of an NTNDArray as messages, and the messages as events. A message is a JSON header and the pixels as they came.

Header: id, codec, type (of the pixels), shape (x first, as the structure's dimensions), stamp_ns, size (bytes when decoded).
"""

from __future__ import annotations

import json
import struct
import zlib
from typing import Any

import numpy as np

from ptystream.codecs import MAX_FRAME_BYTES
from ptystream.events import Buffer, Event, Payload, Rejected
from ptystream.transport import Message

from ..areadetector.protocol import AdZmqDecoder
from ..wire import WireError
from ..zmq.jsonframes import dtype_of, header_of, payload_of, shape_of, whole

SCALARS = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64")
"""Names of the scalar types by their number in `codec.parameters`."""
_HEAD = struct.Struct(">QI")
_BITSHUFFLE_BYTES = 8192


def parts_of(update: Any) -> list[Buffer]:
    """The message of one update of a PV, a structure of normative type NTNDArray. Raises whatever a wrong structure raises."""
    pixels = np.ascontiguousarray(update.value)
    codec = str(update.codec.name or "")
    kind = pixels.dtype.name
    if codec:
        told = update.codec.parameters
        number = int(told) if isinstance(told, (int, np.integer)) else -1
        kind = SCALARS[number] if 0 <= number < len(SCALARS) else "unknown"
    stamp = update.dataTimeStamp
    header = {
        "id": int(update.uniqueId),
        "codec": codec,
        "type": kind,
        "shape": [int(d.size) for d in update.dimension],
        "size": int(update.uncompressedSize),
        "stamp_ns": int(stamp.secondsPastEpoch) * 10**9 + int(stamp.nanoseconds),
    }
    data = pixels.view(np.uint8)[: int(update.compressedSize)] if codec else pixels
    return [json.dumps(header).encode(), data.tobytes()]


class PvaDecoder(AdZmqDecoder):
    """Messages of one PV to events; acquisitions begin as for areaDetector's ZeroMQ plug-in."""

    def feed(self, message: Message) -> list[Event]:
        """See `ptystream.decoder.Decoder.feed`."""
        if len(message.parts) == 2 and bytes(memoryview(message.parts[0]).cast("B")[:7]) == b"refused":
            return [Rejected("malformed_update", bytes(message.parts[1])[:300].decode("utf-8", "replace") or "an update")]
        return super().feed(message)

    def _parse(self, message: Message) -> tuple[int, Payload, int | None]:
        header = header_of(message.parts)
        number, codec = whole(header, "id"), header.get("codec", "")
        if len(message.parts) != 2:
            raise WireError("truncated", f"frame {number}: {len(message.parts)} parts; header and pixels are two")
        if not isinstance(codec, str) or codec not in ("", "bslz4", "lz4", "zlib"):
            known = "set the IOC's codec to none, bslz4, lz4 or zlib"
            raise WireError("unknown_codec", f"codec {codec!r:.40} of frame {number} is not read: {known}")
        shape, dtype = shape_of(header, x_first=True), dtype_of(header.get("type"))
        stamp, blob = header.get("stamp_ns"), message.parts[1]
        size = shape[0] * shape[1] * dtype.itemsize
        if size > MAX_FRAME_BYTES:
            raise WireError("oversized", f"shape {shape} of {dtype}: {size} bytes, {MAX_FRAME_BYTES} are allowed")
        if codec == "bslz4":
            # Without the head that the HDF5 filter puts before it; its blocks have the library's default length.
            blob = _HEAD.pack(size, _BITSHUFFLE_BYTES) + bytes(blob)
        elif codec == "zlib":
            blob = _inflated(blob, size)
        payload = payload_of(blob, {"bslz4": "bslz4", "lz4": "lz4block"}.get(codec, "raw"), dtype, shape)
        sound = type(stamp) is int and 0 < stamp < 1 << 62
        return number, payload, stamp if sound else None


def _inflated(blob: Buffer, size: int) -> bytes:
    try:
        pixels = zlib.decompressobj().decompress(blob, size + 1)
    except zlib.error as error:
        raise WireError("undecodable", f"zlib: {error}") from error
    if len(pixels) != size:
        raise WireError("truncated", f"zlib: {size} bytes announced by shape and type, {len(pixels)} came out or more")
    return pixels
