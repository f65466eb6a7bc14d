"""The native wire, version 1: bytes to events and back, without a socket.

A message is one header part and the buffers that it announces. The header is b'PTYS', one byte version, and a msgpack map:

======= =========================================================== =========================================================
t       further keys                                                buffers
======= =========================================================== =========================================================
start   scan, meta                                                  –
frames  scan, first or indices, n, shape, dtype, codec, ts, pos     one of all frames (raw) or one per frame; then timestamps
                                                                    (int64 ns) where ts, then positions (float64 y, x) where pos
samples scan, first, n, names, ts                                   float64 (channel, sample); then timestamps where ts
end     scan, count, reason                                         –
======= =========================================================== =========================================================

`q`, in every header, counts the messages of the sender: what is missing or repeated is seen. On the acknowledged link an
envelope part precedes the header (`link`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import msgpack
import numpy as np
from numpy.typing import NDArray

from ptystream.codecs import CODECS, MAX_FRAME_BYTES
from ptystream.events import Buffer, Event, Frames, Payload, Rejected, Samples, ScanEnded, ScanStarted
from ptystream.transport import Message

from ..wire import WireError
from .link import LinkReceiver, is_envelope

MAGIC = b"PTYS"
VERSION = 1
MAX_HEADER_BYTES = 1 << 20
MAX_FRAMES = 1 << 16
MAX_SIDE = 1 << 15
MAX_INDEX = 1 << 48
DTYPES = frozenset({"|u1", "<u2", "<u4", "<i4", "<f4"})


def header(kind: str, **content: Any) -> bytes:
    """The header part of a message."""
    packed: bytes = msgpack.packb({"t": kind, **content})
    return MAGIC + bytes([VERSION]) + packed


def frames_parts(
    scan: str,
    indices: int | Sequence[int] | NDArray[np.int64],
    encoded: Sequence[Buffer],
    count: int,
    shape: tuple[int, int],
    dtype: np.dtype[Any],
    codec: str,
    timestamps_ns: NDArray[np.int64] | None = None,
    positions: NDArray[np.float64] | None = None,
    **extra: Any,
) -> list[Buffer]:
    """Parts of a frames message; `encoded` is one buffer of all frames (codec 'raw') or one per frame."""
    where = {"first": int(indices)} if isinstance(indices, (int, np.integer)) else {"indices": [int(i) for i in indices]}
    parts: list[Buffer] = [
        header(
            "frames",
            scan=scan,
            **where,
            n=count,
            shape=list(shape),
            dtype=dtype.newbyteorder("<").str,
            codec=codec,
            ts=timestamps_ns is not None,
            pos=positions is not None,
            **extra,
        ),
        *encoded,
    ]
    if timestamps_ns is not None:
        parts.append(np.ascontiguousarray(timestamps_ns, "<i8").tobytes())
    if positions is not None:
        parts.append(np.ascontiguousarray(positions, "<f8").tobytes())
    return parts


def samples_parts(
    scan: str, first: int, channels: Mapping[str, NDArray[np.float64]], timestamps_ns: NDArray[np.int64] | None, **extra: Any
) -> list[Buffer]:
    """Parts of a samples message."""
    table = np.ascontiguousarray(np.stack([np.asarray(v, "<f8").ravel() for v in channels.values()]))
    head = header(
        "samples", scan=scan, first=int(first), n=table.shape[1], names=list(channels), ts=timestamps_ns is not None, **extra
    )
    parts: list[Buffer] = [head, table.tobytes()]
    if timestamps_ns is not None:
        parts.append(np.ascontiguousarray(timestamps_ns, "<i8").tobytes())
    return parts


def bare(parts: Sequence[Buffer]) -> Sequence[Buffer]:
    """A message without what its link put before it: faults happen to messages, and a link repairs what is below."""
    return parts[1:] if parts and is_envelope(parts[0]) else parts


def restamped(parts: Sequence[Buffer], shift_ns: int) -> Sequence[Buffer]:
    """The message with its time stamps `shift_ns` later; itself where it has none, or is no message."""
    own = list(bare(parts))
    try:
        content = header_of(own)
    except WireError:
        return parts
    at = len(own) - 1 - bool(content.get("pos"))
    if not content.get("ts") or at < 1 or memoryview(own[at]).nbytes % 8:
        return parts
    stamps = np.frombuffer(memoryview(own[at]).cast("B"), "<i8")
    own[at] = (stamps + shift_ns).astype("<i8").tobytes()
    return [*parts[: len(parts) - len(own)], *own]


class NativeDecoder:
    """Messages of one channel to events. Keeps the link's state and counts what a plain sender lost."""

    def __init__(self) -> None:
        self.link = LinkReceiver()
        self._next: int | None = None

    @property
    def expected(self) -> int:
        """Number of the sender's next message: 0 before the first."""
        return self._next or 0

    def feed(self, message: Message) -> list[Event]:
        """See `ptystream.decoder.Decoder.feed`."""
        parts = message.parts
        events: list[Event] = []
        if parts and is_envelope(parts[0]):
            missing = self.link.accept(parts[0])
            if missing < 0:
                return [Rejected("duplicate_message", "a message that was already taken came again")]
            if missing:
                events.append(Rejected("gap", f"{missing} messages are missing and the sender no longer has them", missing))
            parts = parts[1:]
        try:
            content = header_of(parts)
            sequence = self._sequence(content)
            if not events:  # on the link, the envelope has told of the same gap
                events += sequence
            events += _EVENTS[content["t"]](content, parts[1:])
        except WireError as error:
            events.append(Rejected(error.reason, str(error)))
        return events

    def _sequence(self, content: Mapping[str, Any]) -> list[Event]:
        number = content.get("q")
        if not _is_index(number):
            return []
        expected, self._next = self._next, number + 1
        if expected is None or number == expected or number == 0:
            return []
        if number < expected:
            self._next = expected
            return [Rejected("out_of_order", f"message {number} came after {expected - 1}")]
        return [Rejected("gap", f"messages {expected} to {number - 1} never came", number - expected)]


def _is_index(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_INDEX


def header_of(parts: Sequence[Buffer]) -> dict[str, Any]:
    """The content of a message's header. Raises `WireError` for anything else."""
    if not parts:
        raise WireError("truncated", "a message without parts")
    raw = memoryview(parts[0]).cast("B")
    if len(raw) < 6 or bytes(raw[:4]) != MAGIC:
        raise WireError("not_native", f"the first part ({len(raw)} bytes) does not begin with {MAGIC!r}")
    if raw[4] != VERSION:
        raise WireError("unknown_version", f"wire version {raw[4]}: this receiver speaks {VERSION}")
    if len(raw) > MAX_HEADER_BYTES:
        raise WireError("oversized", f"a header of {len(raw)} bytes; {MAX_HEADER_BYTES} are allowed")
    try:
        content = msgpack.unpackb(raw[5:], strict_map_key=True, ext_hook=_refuse)
    except Exception as error:
        raise WireError("malformed_header", f"the header is not msgpack: {error}") from error
    if not isinstance(content, dict):
        raise WireError("malformed_header", f"the header is no map but {content!r:.60}")
    kind = content.get("t")
    if not isinstance(kind, str) or kind not in _EVENTS:
        raise WireError("unknown_kind", f"kind {kind!r:.60}: must be one of {', '.join(_EVENTS)}")
    scan = content.get("scan")
    if not isinstance(scan, str) or not 0 < len(scan) <= 256:
        raise WireError("malformed_header", "the scan id must be a text of 1 to 256 characters")
    return content


def _is_plain(value: Any) -> bool:
    # msgpack's own timestamps do not pass through its hook for extensions.
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str, bytes))


def _refuse(code: int, data: bytes) -> Any:
    raise ValueError(f"extension type {code} is not part of the wire")


def _start(content: Mapping[str, Any], buffers: Sequence[Buffer]) -> list[Event]:
    metadata = content.get("meta", {})
    if not isinstance(metadata, dict) or not _is_plain(metadata):
        raise WireError("malformed_header", "meta must be a map of texts to plain values")
    return [ScanStarted(content["scan"], metadata)]


def _end(content: Mapping[str, Any], buffers: Sequence[Buffer]) -> list[Event]:
    count, reason = content.get("count"), content.get("reason", "completed")
    if count is not None and not _is_index(count):
        raise WireError("malformed_header", f"count {count!r:.40} must be a whole number from 0 to 2^48")
    return [ScanEnded(content["scan"], count, str(reason)[:200])]


def _frames(content: Mapping[str, Any], buffers: Sequence[Buffer]) -> list[Event]:
    count, shape, name, codec = (content.get(k) for k in ("n", "shape", "dtype", "codec"))
    if not _is_index(count) or not 0 < count <= MAX_FRAMES:
        raise WireError("malformed_header", f"n {count!r:.40}: must be 1 to {MAX_FRAMES}")
    if not isinstance(shape, list) or len(shape) != 2 or not all(_is_index(s) and 0 < s <= MAX_SIDE for s in shape):
        raise WireError("wrong_shape", f"shape {shape!r:.60}: must be [y, x], each 1 to {MAX_SIDE}")
    if not isinstance(name, str) or name not in DTYPES:
        raise WireError("wrong_dtype", f"dtype {name!r:.40}: must be one of {', '.join(sorted(DTYPES))}")
    if not isinstance(codec, str) or codec not in CODECS:
        raise WireError("unknown_codec", f"codec {codec!r:.40}: must be one of {', '.join(CODECS)}")
    indices = _indices(content, count)
    dtype = np.dtype(name)
    size = shape[0] * shape[1] * dtype.itemsize
    if size > MAX_FRAME_BYTES:
        raise WireError("oversized", f"shape {shape} of {name}: {size} bytes, {MAX_FRAME_BYTES} are allowed")
    wanted = (1 if codec == "raw" else count) + bool(content.get("ts")) + bool(content.get("pos"))
    if len(buffers) != wanted:
        raise WireError("truncated", f"frames {indices[0]}…: {wanted} buffers announced, {len(buffers)} received")
    rest = list(buffers)
    places = _numbers(rest.pop(), "<f8", 2 * count, "positions").reshape(count, 2) if content.get("pos") else None
    stamps = _numbers(rest.pop(), "<i8", count, "timestamps") if content.get("ts") else None
    if codec == "raw":
        whole = memoryview(rest[0]).cast("B")
        if len(whole) != size * count:
            raise WireError("truncated", f"frames {indices[0]}…: {size * count} bytes announced, {len(whole)} received")
        encoded: list[Buffer] = [whole[k * size : (k + 1) * size] for k in range(count)]
    else:
        encoded = rest
    both = (int(shape[0]), int(shape[1]))
    events: list[Event] = [
        Frames(content["scan"], indices, tuple(Payload(buffer, codec, dtype, both) for buffer in encoded), stamps)
    ]
    if places is not None:
        for run in np.split(np.arange(count), np.flatnonzero(np.diff(indices) != 1) + 1):
            part = {"y": places[run, 0], "x": places[run, 1]}
            events.append(Samples(content["scan"], int(indices[run[0]]), part, None if stamps is None else stamps[run]))
    return events


def _indices(content: Mapping[str, Any], count: int) -> NDArray[np.int64]:
    first, listed = content.get("first"), content.get("indices")
    if listed is None:
        if not _is_index(first) or first + count > MAX_INDEX:
            raise WireError("index_range", f"first index {first!r:.40}: must be 0 to 2^48")
        return np.arange(first, first + count, dtype=np.int64)
    if not isinstance(listed, list) or len(listed) != count or not all(_is_index(i) for i in listed):
        raise WireError("index_range", f"indices: {count} whole numbers from 0 to 2^48 announced")
    return np.array(listed, np.int64)


def _samples(content: Mapping[str, Any], buffers: Sequence[Buffer]) -> list[Event]:
    count, names, first = (content.get(k) for k in ("n", "names", "first"))
    if not _is_index(count) or not 0 < count <= 1 << 24:
        raise WireError("malformed_header", f"n {count!r:.40}: must be 1 to 2^24")
    if not isinstance(names, list) or not 0 < len(names) <= 256 or not all(isinstance(n, str) for n in names):
        raise WireError("malformed_header", "names must be a list of 1 to 256 channel names")
    if len(set(names)) != len(names):
        raise WireError("malformed_header", f"names {names!r:.60}: each once")
    if not _is_index(first) or first + count > MAX_INDEX:
        raise WireError("index_range", f"first sample {first!r:.40}: must be 0 to 2^48")
    if len(buffers) != 1 + bool(content.get("ts")):
        raise WireError(
            "truncated", f"samples {first}…: {1 + bool(content.get('ts'))} buffers announced, {len(buffers)} received"
        )
    table = _numbers(buffers[0], "<f8", len(names) * count, "samples").reshape(len(names), count)
    stamps = _numbers(buffers[1], "<i8", count, "timestamps") if content.get("ts") else None
    return [Samples(content["scan"], first, dict(zip(names, table, strict=True)), stamps)]


def _numbers(buffer: Buffer, dtype: str, count: int, what: str) -> NDArray[Any]:
    raw = memoryview(buffer).cast("B")
    if len(raw) != 8 * count:
        raise WireError("truncated", f"{what}: {8 * count} bytes announced, {len(raw)} received")
    return np.frombuffer(raw, dtype)


_EVENTS = {"start": _start, "frames": _frames, "samples": _samples, "end": _end}
