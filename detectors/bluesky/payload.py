"""One document on the wire: `prefix name body`, a line of JSON, or a Kafka value; never a pickle.

A body is msgpack (arrays in the layout of msgpack_numpy, decoded here, without its pickled objects) or JSON, as orjson
writes it too. What it is, is seen from its first byte.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np

from ptystream.events import Buffer

from ..wire import WireError

NAMES = frozenset(
    (
        *("start", "stop", "descriptor", "event", "event_page", "datum", "datum_page", "resource"),
        *("stream_resource", "stream_datum", "bulk_events", "bulk_datum"),
    )
)
MAX_NAME_BYTES = 512
"""Prefix and name of a document lie within so many bytes."""
SWITCH = (
    "the publisher sends pickles, which are never opened: give it another serializer, "
    "Publisher(address, serializer=msgpack.dumps) after `import msgpack_numpy; msgpack_numpy.patch()`, or orjson.dumps"
)


def on_the_wire(raw: Buffer, prefix: bytes = b"") -> tuple[str, dict[str, Any]]:
    """(name, document) of `prefix name body`, as `bluesky.callbacks.zmq.Publisher` sends it. Raises `WireError`."""
    view = memoryview(raw).cast("B")
    head = bytes(view[: MAX_NAME_BYTES + len(prefix)])
    if not head.startswith(prefix + b" "):
        raise WireError("other_prefix", f"a message that begins with {head[:40]!r}; wanted is the prefix {prefix!r}")
    begin = len(prefix) + 1
    end = head.find(b" ", begin)
    if end < 0:
        raise WireError("malformed", f"{len(view)} bytes {head[:40]!r} that are not 'prefix name body'")
    name = _known(head[begin:end].decode("ascii", "replace"))
    return name, document_of(name, body(view[end + 1 :]))


def line(raw: Buffer) -> tuple[str, dict[str, Any]]:
    """(name, document) of a line of JSON: ["start", {…}] or {"name": "start", "doc": {…}}. Raises `WireError`."""
    return _pair(body(raw))


def value(raw: Buffer) -> tuple[str, dict[str, Any]]:
    """(name, document) of a Kafka message: msgpack or JSON of the pair. Raises `WireError`."""
    return _pair(body(raw))


def _pair(content: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(content, dict) and "name" in content and "doc" in content:
        content = [content["name"], content["doc"]]
    if not isinstance(content, list) or len(content) != 2 or not isinstance(content[0], str):
        raise WireError("malformed", f"{content!r:.60} is no pair of a name and a document")
    name = _known(content[0])
    return name, document_of(name, content[1])


def _known(name: str) -> str:
    if name not in NAMES:
        raise WireError("unknown_document", f"a document of the kind {name!r:.60}")
    return name


def document_of(name: str, content: Any) -> dict[str, Any]:
    """The document that a body holds. Raises `WireError`."""
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise WireError("malformed", f"the {name} document is {content!r:.60} and no mapping of names")
    return content


def body(raw: Buffer) -> Any:
    """What a body says. Raises `WireError`."""
    view = memoryview(raw).cast("B")
    first = bytes(view[:2])
    if not first:
        raise WireError("truncated", "a document without a body")
    if first[0] == 0x80 and len(first) > 1 and 0 < first[1] <= 5:
        raise WireError("pickle_refused", SWITCH)
    try:
        if first[:1] in b"{[":
            return json.loads(bytes(view))
        return msgpack.unpackb(view, raw=False, strict_map_key=True, object_hook=_array, ext_hook=_refuse)
    except WireError:
        raise
    except RecursionError as error:
        raise WireError("malformed", "a body that is nested too deeply") from error
    except Exception as error:  # msgpack documents several classes, and raises others
        raise WireError("malformed", f"a body of {len(view)} bytes is neither msgpack nor JSON: {error!s:.100}") from error


def _array(content: dict[Any, Any]) -> Any:
    """Arrays and numbers of NumPy, in msgpack_numpy's layout."""
    if b"complex" in content:
        raise WireError("malformed", "complex numbers are in no document")
    if b"nd" not in content:
        return content
    kind, data = content.get(b"type"), content.get(b"data")
    if content.get(b"kind") == b"O":
        raise WireError("pickle_refused", "an array of Python objects, which msgpack_numpy pickles: it is not opened")
    if isinstance(kind, bytes):
        kind = kind.decode("ascii", "replace")
    dtype = np.dtype(kind) if isinstance(kind, str) and len(kind) < 16 else None
    if dtype is None or dtype.kind not in "biufUS" or not dtype.itemsize or not isinstance(data, bytes):
        raise WireError("malformed", f"an array of {kind!r:.60}: numbers and texts are taken")
    if not content[b"nd"]:
        if len(data) != dtype.itemsize:
            raise WireError("truncated", f"a number of {dtype} in {len(data)} bytes")
        return np.frombuffer(data, dtype)[0].item()
    shape = content.get(b"shape")
    if not isinstance(shape, list) or len(shape) > 8 or not all(isinstance(n, int) and 0 <= n < 1 << 32 for n in shape):
        raise WireError("malformed", f"an array of shape {shape!r:.60}")
    size = dtype.itemsize
    for length in shape:
        size *= length
    if size != len(data):
        raise WireError("truncated", f"an array {shape} of {dtype}: {size} bytes announced, {len(data)} received")
    return np.frombuffer(data, dtype).reshape(shape)


def _refuse(code: int, data: bytes) -> Any:
    raise WireError("malformed", f"extension type {code} is in no document")


def packed(name: str, document: Mapping[str, Any], prefix: bytes = b"") -> bytes:
    """The same message with a msgpack body, which `on_the_wire` takes. Raises `TypeError` for what no document holds."""
    content: bytes = msgpack.packb(document, default=plain)
    return prefix + b" " + name.encode() + b" " + content


def plain(item: Any) -> Any:
    """What msgpack and JSON do not hold, as something that they do."""
    if isinstance(item, np.ndarray) and item.dtype.kind in "biufUS":
        return {b"nd": True, b"type": item.dtype.str, b"kind": b"", b"shape": list(item.shape), b"data": item.tobytes()}
    if isinstance(item, np.generic):
        return item.item()
    if isinstance(item, Mapping):
        return dict(item)
    if isinstance(item, (set, frozenset, tuple)):
        return list(item)
    return str(item)  # a path or a date that a plan left in its metadata
