"""What single entries of documents mean: ids, numbers, ranges, times, and frames that stand in them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ptystream.codecs import MAX_FRAME_BYTES
from ptystream.events import Frames, Payload, Rows

from ..wire import WireError

MAX_RANGE = 1 << 20
"""Events of one stream_datum or event_page."""
MAX_SEQUENCE = 1 << 40


def frames_of(epoch: str, first: int, payloads: list[Any], stamp_ns: int | None) -> Frames:
    """Consecutive frames of one moment."""
    indices = np.arange(first, first + len(payloads), dtype=np.int64)
    times = None if stamp_ns is None else np.full(len(payloads), stamp_ns, np.int64)
    return Frames(epoch, indices, tuple(payloads), times)


def inline(held: Any, named: Any) -> list[Payload]:
    """Frames that stand in the event itself, (y, x) or (frame, y, x). Raises `WireError`."""
    if isinstance(held, list):
        try:
            dtype = np.dtype(named) if isinstance(named, str) and len(named) < 8 else None
            held = np.asarray(held, dtype if dtype is not None and dtype.kind in "biuf" else None)
        except (TypeError, ValueError, OverflowError) as error:
            raise WireError("malformed", f"a frame that is no rectangle of numbers: {error!s:.100}") from error
    if not isinstance(held, np.ndarray) or held.ndim < 2 or held.dtype.kind not in "biuf":
        raise WireError("malformed", f"a frame that is {held!r:.60}")
    if held.dtype.kind == "b":
        held = held.astype(np.uint8)
    if held.dtype.itemsize == 8 and held.dtype.kind in "iu" and held.size and held.min() >= 0 and held.max() < 1 << 32:
        held = held.astype(np.uint32)  # counts that went through JSON, or a simulation
    shape = held.shape[-2:]
    if 0 in shape or held.dtype.itemsize * shape[0] * shape[1] > MAX_FRAME_BYTES:
        raise WireError("wrong_shape", f"a frame of {shape} pixels")
    stack = np.ascontiguousarray(held, held.dtype.newbyteorder("<")).reshape(-1, *shape)
    return [Payload(memoryview(frame).cast("B"), "raw", stack.dtype, (int(shape[0]), int(shape[1]))) for frame in stack]


def nanoseconds(row: Mapping[str, Any], key: str) -> int | None:
    """When a key of an event was read."""
    stamps = row.get("timestamps")
    stamp = stamps.get(key) if isinstance(stamps, Mapping) else None
    if isinstance(stamp, (int, float)) and math.isfinite(stamp) and 0 < stamp < 1e10:
        return round(stamp * 1e9)
    return None


def length(samples: Any) -> int:
    """Samples of an event."""
    column = next(iter(samples.channels.values()))
    return (column.stop - column.first) // column.average if isinstance(column, Rows) else len(column)


def number_range(document: Mapping[str, Any], name: str, lowest: int) -> tuple[int, int]:
    """(start, stop) under `name`. Raises `WireError`."""
    told = document.get(name)
    start, stop = (told.get("start"), told.get("stop")) if isinstance(told, Mapping) else (None, None)
    if not (is_number(start, lowest) and is_number(stop, lowest)) or not 0 <= stop - start <= MAX_RANGE:  # type: ignore[operator]
        raise WireError("malformed", f"{name}: {told!r:.80} is no range")
    return int(start), int(stop)  # type: ignore[arg-type]


def is_number(number: Any, lowest: int = 1) -> bool:
    """Whether it counts something, from `lowest` on."""
    return isinstance(number, int) and not isinstance(number, bool) and lowest <= number < MAX_SEQUENCE


def text_id(document: Mapping[str, Any], name: str) -> str:
    """An id in a document. Raises `WireError`."""
    uid = document.get(name)
    if not isinstance(uid, str) or not 0 < len(uid) <= 256:
        raise WireError("malformed", f"{name}: {uid!r:.60} must be a text of 1 to 256 characters")
    return uid
