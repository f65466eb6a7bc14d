"""What both stream formats have in common: errors by reason, and the encodings of an image."""

from __future__ import annotations

import re
import struct
from typing import Any

import numpy as np

from ptystream.codecs import MAX_FRAME_BYTES
from ptystream.events import Buffer, Payload

from ..wire import WireError

MAX_SIDE = 1 << 15
MAX_INDEX = 1 << 48
DTYPES = {name: np.dtype(name) for name in ("uint8", "uint16", "uint32", "int8", "int16", "int32", "float32")}
"""What an image may consist of, as version 1 names them."""

_ENCODING = re.compile(r"(?:bs(8|16|32)-?)?(lz4)?([<>|])")
_SIZE = struct.Struct(">QI")


def sides(shape: Any) -> tuple[int, int]:
    """Two sides of an image, as they stand there."""
    if (
        not isinstance(shape, (list, tuple))
        or len(shape) != 2
        or not all(isinstance(s, int) and not isinstance(s, bool) and 0 < s <= MAX_SIDE for s in shape)
    ):
        raise WireError("wrong_shape", f"shape {shape!r:.60}: two whole numbers from 1 to {MAX_SIDE} are needed")
    return int(shape[0]), int(shape[1])


def index(value: Any, name: str) -> int:
    """A series or frame number."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < MAX_INDEX:
        raise WireError("index_range", f"{name} {value!r:.40}: must be a whole number from 0 to 2^48")
    return value


def payload(buffer: Buffer, encoding: str, dtype: np.dtype[Any], shape: tuple[int, int]) -> Payload:
    """An image by its encoding in words of version 1: `bs32-lz4<`, `lz4<`, `<`; shape (y, x). The pixels stay where they are."""
    match = _ENCODING.fullmatch(encoding) if isinstance(encoding, str) else None
    if match is None or (match[1] and not match[2]):
        raise WireError("unknown_codec", f"encoding {encoding!r:.40}: must be '<', 'lz4<' or 'bs8-lz4<', 'bs16-…', 'bs32-…'")
    if match[1] and int(match[1]) != 8 * dtype.itemsize:
        raise WireError("unknown_codec", f"encoding {encoding!r:.40} for {dtype}: the number must be that of its bits")
    wanted = shape[0] * shape[1] * dtype.itemsize
    if wanted > MAX_FRAME_BYTES:
        raise WireError("oversized", f"shape {shape} of {dtype}: {wanted} bytes, {MAX_FRAME_BYTES} are allowed")
    stream = memoryview(buffer).cast("B")
    codec = "bslz4" if match[1] else "raw" if not match[2] else _lz4(stream, wanted)
    if codec == "raw" and stream.nbytes != wanted:
        raise WireError("truncated", f"image of {wanted} bytes announced, {stream.nbytes} received")
    return Payload(stream, codec, dtype.newbyteorder(">") if match[3] == ">" else dtype.newbyteorder("<"), shape)


def _lz4(stream: memoryview, wanted: int) -> str:
    """With the head of the HDF5 filter, or a single block without any: version 1 sends either."""
    if stream.nbytes >= _SIZE.size:
        size, block = _SIZE.unpack_from(stream)
        if size == wanted and 0 < block <= max(wanted, 1 << 30):
            return "lz4"
    return "lz4block"
