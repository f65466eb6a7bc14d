"""The data port's byte stream without its socket: lines, an XML header, framed binary samples, an end.

`OK` answers the request; then, for every acquisition: `<header>` … `</header>` and an empty line, frames of b'BIN ', a u32 that
counts itself, b'BIN ' and the samples behind it (little endian), and b'END <samples> <reason>'. Any cutting into pieces gives
the same; what does not fit is told and skipped up to the next header.
"""

from __future__ import annotations

import struct
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

MAX_LINE_BYTES = 1 << 16
MAX_HEADER_BYTES = 1 << 20
MAX_FRAME_BYTES = 1 << 26
MAX_FIELDS = 256
SAMPLES = ("PCAP.SAMPLES.Value", "PCAP.GATE_DURATION.Value")
"""Names of the field that says how long each sample is: the divisor of a raw mean."""
_TYPES = {"int32": "<i4", "uint32": "<u4", "int64": "<i8", "uint64": "<u8", "double": "<f8", "float": "<f4", "float64": "<f8"}
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Column:
    """One captured field."""

    name: str
    """'<field>.<capture>', such as 'INENC1.VAL.Value'."""
    units: str
    scale: float = 1.0
    offset: float = 0.0
    """Value = number · scale + offset; 1 and 0 where the box has done that."""
    mean: bool = False
    """A sum that is still to be divided by the length of the sample."""


@dataclass(frozen=True, slots=True)
class Start:
    """The header of an acquisition."""

    columns: tuple[Column, ...]
    dtype: np.dtype[Any]
    missed: int
    """Samples that were taken before we connected."""
    told: dict[str, str]
    """The attributes of its `data` element: arm_time, process, hw_time_offset_ns …"""


@dataclass(frozen=True, slots=True)
class Data:
    """Samples, one record each."""

    table: NDArray[Any]


@dataclass(frozen=True, slots=True)
class End:
    """The acquisition is over."""

    samples: int
    reason: str


@dataclass(frozen=True, slots=True)
class Fault:
    """Bytes that are not what should be there; the stream is skipped up to the next header."""

    reason: str
    detail: str


Item: TypeAlias = Start | Data | End | Fault


class StreamError(ValueError):
    """(reason, detail) of a `Fault`."""


class PandaStream:
    """Fed with bytes as they come."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._at = 0
        self._state = self._answer
        self._looked = 0
        """Bytes of the header in which its end was looked for already."""
        self._start: Start | None = None

    def feed(self, piece: Any) -> list[Item]:
        """What is complete by now."""
        self._buffer += piece
        items: list[Item] = []
        while True:
            before = self._at, self._state
            try:
                item = self._state()
            except StreamError as error:
                items.append(Fault(*error.args))
                self._state, self._start = self._search, None
                continue
            if item is not None:
                items.append(item)
            if (self._at, self._state) == before:
                break
        del self._buffer[: self._at]
        self._at = 0
        return items

    @property
    def unfinished(self) -> int:
        """Bytes that wait for more."""
        return len(self._buffer)

    def _line(self, limit: int = MAX_LINE_BYTES) -> bytes | None:
        end = self._buffer.find(b"\n", self._at, self._at + limit + 1)
        if end < 0:
            if len(self._buffer) - self._at > limit:
                raise StreamError("oversized", f"a line of more than {limit} bytes")
            return None
        line = bytes(self._buffer[self._at : end])
        self._at = end + 1
        return line

    def _answer(self) -> Item | None:
        line = self._line()
        if line is not None:
            self._state = self._search
            if line.strip() != b"OK":
                raise StreamError("refused", f"the box answers {line!r:.80} and not OK")
        return None

    def _search(self) -> Item | None:
        place = self._buffer.find(b"<header>", self._at)
        if place < 0:
            self._at = max(self._at, len(self._buffer) - len(b"<header>") + 1)
            return None
        self._at, self._state = place, self._whole_header
        return None

    def _whole_header(self) -> Item | None:
        end = self._buffer.find(b"</header>", self._at + max(0, self._looked - 9), self._at + MAX_HEADER_BYTES)
        self._looked = 0 if end >= 0 else len(self._buffer) - self._at
        stop = end + len(b"</header>")
        if end < 0 or len(self._buffer) < stop + 2:  # its line's end and the empty line behind it
            if len(self._buffer) - self._at > MAX_HEADER_BYTES:
                self._at, self._looked = self._at + 1, 0
                raise StreamError("oversized", f"a header of more than {MAX_HEADER_BYTES} bytes")
            return None
        text, rest = bytes(self._buffer[self._at : stop]), bytes(self._buffer[stop : stop + 2])
        self._at = stop
        start = parse_header(text)
        if rest != b"\n\n":
            raise StreamError("malformed_header", f"{rest!r} and no empty line behind the header")
        self._at = stop + 2
        self._start, self._state = start, self._frame
        return start

    def _frame(self) -> Item | None:
        head = bytes(self._buffer[self._at : self._at + 4])
        if head == b"END ":
            return self._end()
        if not b"BIN ".startswith(head) and not b"END ".startswith(head):
            raise StreamError("framing", f"{head!r} where a frame begins or the end is told")
        if len(self._buffer) - self._at < 8:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer, self._at + 4)
        assert self._start is not None
        size = self._start.dtype.itemsize
        if not 8 < length <= MAX_FRAME_BYTES or (length - 8) % size:
            raise StreamError("framing", f"a frame of {length} bytes; samples have {size}, and {MAX_FRAME_BYTES} are allowed")
        if len(self._buffer) - self._at < length:
            return None
        payload = bytes(self._buffer[self._at + 8 : self._at + length])
        self._at += length
        return Data(np.frombuffer(payload, self._start.dtype))

    def _end(self) -> Item | None:
        line = self._line()
        if line is None:
            return None
        _, number, reason = ([*line.decode("ascii", "replace").split(maxsplit=2), "", ""])[:3]
        if not number.isdigit() or len(number) > 18:
            raise StreamError("framing", f"the end is told as {line!r:.80}")
        self._state, self._start = self._search, None
        return End(int(number), reason.strip() or "unknown")


def parse_header(text: bytes) -> Start:
    """The header as a value. Raises `StreamError`."""
    if b"<!" in text:
        raise StreamError("malformed_header", "declarations are no part of a header")
    try:
        root = ET.fromstring(text)  # noqa: S314  (no declarations, so no entities)
    except (ET.ParseError, ValueError) as error:
        raise StreamError("malformed_header", f"no XML: {error}") from error
    data, fields = root.find("data"), root.find("fields")
    if data is None or fields is None or not 0 < len(fields) <= MAX_FIELDS:
        raise StreamError("malformed_header", f"needs `data`, and `fields` with 1 to {MAX_FIELDS} entries")
    if data.get("format", "Framed") != "Framed":
        raise StreamError("malformed_header", f"format {data.get('format')!r:.40}: must be Framed")
    raw = data.get("process", "Scaled") == "Raw"
    try:
        missed, size = int(data.get("missed", "0")), int(data.get("sample_bytes", "0"))
        found = [_column(field, raw) for field in fields]
        # Servers before 2.1 send the samples' length unasked, and do not name it in raw headers.
        if raw and size - sum(np.dtype(kind).itemsize for _, kind in found) == 4:
            found.insert(0, (Column(SAMPLES[0], ""), "<u4"))
        dtype = np.dtype([(column.name, kind) for column, kind in found])
    except (ValueError, OverflowError) as error:
        raise StreamError("malformed_header", str(error)) from error
    if dtype.itemsize != size or not 0 <= missed < 1 << 48:
        said = f"sample_bytes {size}, missed {missed}"
        raise StreamError("malformed_header", f"{said}: the fields take {dtype.itemsize} bytes")
    columns = tuple(column for column, _ in found)
    if any(column.mean for column in columns) and not any(column.name in SAMPLES for column in columns):
        raise StreamError("malformed_header", "a raw mean needs PCAP.SAMPLES captured too: capture it, or ask for scaled data")
    return Start(columns, dtype, missed, {str(k)[:64]: str(v)[:256] for k, v in data.attrib.items()})


def _column(field: Any, raw: bool) -> tuple[Column, str]:
    name, capture, kind = (str(field.get(key, ""))[:128] for key in ("name", "capture", "type"))
    if not name or not capture:
        raise ValueError("a field without name or capture")
    if kind not in _TYPES:
        raise ValueError(f"field {name}: type {kind!r}: must be one of {', '.join(_TYPES)}")
    scale, offset = (float(field.get(key) or default) for key, default in (("scale", 1.0), ("offset", 0.0)))
    units = str(field.get("units") or "")[:32]
    if not raw:
        return Column(f"{name}.{capture}", units), _TYPES[kind]
    return Column(f"{name}.{capture}", units, scale, offset, capture == "Mean"), _TYPES[kind]


def values(start: Start, table: NDArray[Any], column: Column) -> NDArray[np.float64]:
    """Readings of one column, in its unit."""
    numbers = table[column.name].astype(np.float64)
    if column.mean:
        length = next(name for name in SAMPLES if name in (start.dtype.names or ()))
        numbers /= np.maximum(table[length], 1)
    return np.asarray(numbers * column.scale + column.offset)
