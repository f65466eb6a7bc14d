"""The same document, read later: what a fault of the clocks does to a recorded message."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgpack
import numpy as np

from ptystream.events import Buffer

from ..wire import WireError
from .payload import MAX_NAME_BYTES, NAMES, body, document_of, packed, plain, value


def restamped(parts: Sequence[Buffer], shift_ns: int) -> Sequence[Buffer]:
    """The message with the times of its readings `shift_ns` later (floats of seconds keep about 0.2 µs); itself where it has
    none, or is no document. In whichever form it came: published, as a line or as a Kafka value."""
    if len(parts) != 1:
        return parts
    raw = memoryview(parts[0]).cast("B")
    prefix, name = (*bytes(raw[: 2 * MAX_NAME_BYTES]).split(b" ", 2), b"", b"")[:2]
    published = name.decode("ascii", "replace") in NAMES
    try:
        content = raw[len(prefix) + len(name) + 2 :] if published else raw
        if published:
            kind = name.decode()
            document = document_of(kind, body(content))
        else:
            kind, document = value(raw)
        events = list(_readings(kind, document))
    except WireError:
        return parts
    if not any(_shift(event, shift_ns / 1e9) for event in events):
        return parts
    in_json = bytes(content[:1]) in (b"{", b"[")
    if published and not in_json:
        return [packed(kind, document, prefix)]
    whole: Any = document if published else [kind, document]
    made = json.dumps(whole, default=plain).encode() if in_json else msgpack.packb(whole, default=plain)
    return [prefix + b" " + name + b" " + made if published else made]


def _readings(kind: str, document: Mapping[str, Any]) -> Iterator[Any]:
    """The events in a document."""
    if kind in ("event", "event_page"):
        yield document
    elif kind == "bulk_events":
        for rows in document.values():
            yield from rows if isinstance(rows, list) else ()


def _shift(event: Any, seconds: float) -> bool:
    """Shift the times of an event, or of a page of them; whether there were any."""
    stamps = event.get("timestamps") if isinstance(event, dict) else None
    if not isinstance(stamps, dict) or not stamps:
        return False
    for key, held in stamps.items():
        if isinstance(held, (list, np.ndarray)):
            stamps[key] = [_later(stamp, seconds) for stamp in (held if isinstance(held, list) else held.tolist())]
        else:
            stamps[key] = _later(held, seconds)
    return True


def _later(stamp: Any, seconds: float) -> Any:
    return stamp + seconds if isinstance(stamp, (int, float)) and not isinstance(stamp, bool) else stamp
