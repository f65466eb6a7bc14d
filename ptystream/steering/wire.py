"""Requests and replies as bytes: one msgpack map each, versioned, without I/O. docs/reference/steering.md has the layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from ptystream.events import Buffer

VERSION = 1
MAX_REQUEST_BYTES = 1 << 20
MAX_REPLY_BYTES = 1 << 28
MAX_NAME = 100
MAX_DEPTH = 32
"""Lists and maps within each other: what is nested deeper could not even be shown in a refusal."""


class WireError(ValueError):
    """Bytes are no request, or no reply; the text says what came and what is understood."""


@dataclass(frozen=True, slots=True)
class Request:
    """What somebody asks of a session."""

    id: int
    """Chosen by who asks; the reply has it too."""
    action: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    who: str = ""
    """Who they say they are, for the audit."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a request was refused."""

    path: str
    """Action, argument or parameter."""
    given: str
    """What was given, as text."""
    remedy: str

    def __str__(self) -> str:
        return f"{self.path}: {self.given}: {self.remedy}" if self.given else f"{self.path}: {self.remedy}"


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a request: a value, or a fault."""

    id: int
    value: Any = None
    fault: Fault | None = None


def encode_request(request: Request) -> bytes:
    """Raises `WireError` for what cannot be sent."""
    said = {"version": VERSION, "id": request.id, "action": request.action, "with": dict(request.arguments), "who": request.who}
    return _packed(said, MAX_REQUEST_BYTES)


def encode_reply(reply: Reply) -> bytes:
    """Raises `WireError` for what cannot be sent."""
    if reply.fault is None:
        return _packed({"version": VERSION, "id": reply.id, "value": reply.value}, MAX_REPLY_BYTES)
    fault = {"path": reply.fault.path, "given": reply.fault.given, "remedy": reply.fault.remedy}
    return _packed({"version": VERSION, "id": reply.id, "fault": fault}, MAX_REPLY_BYTES)


def decode_request(raw: Buffer) -> Request:
    """Raises `WireError`."""
    said = _unpacked(raw, MAX_REQUEST_BYTES)
    action, arguments, who = said.get("action"), said.get("with", {}), said.get("who", "")
    if not isinstance(action, str) or len(action) > MAX_NAME:
        raise WireError(f"'action': a name is needed, {action!r:.60} came")
    if not isinstance(arguments, dict) or not all(isinstance(key, str) for key in arguments):
        raise WireError(f"'with': a map of names is needed, {arguments!r:.60} came")
    if not isinstance(who, str) or len(who) > MAX_NAME:
        raise WireError(f"'who': a short text is needed, {who!r:.60} came")
    return Request(_id(said), action, arguments, who)


def decode_reply(raw: Buffer) -> Reply:
    """Raises `WireError`."""
    said = _unpacked(raw, MAX_REPLY_BYTES)
    fault = said.get("fault")
    if fault is None:
        return Reply(_id(said), said.get("value"))
    if not isinstance(fault, dict) or not all(isinstance(fault.get(key), str) for key in ("path", "given", "remedy")):
        raise WireError(f"'fault': path, given and remedy are needed, {fault!r:.60} came")
    return Reply(_id(said), fault=Fault(fault["path"], fault["given"], fault["remedy"]))


def _id(said: Mapping[str, Any]) -> int:
    number = said.get("id")
    if not isinstance(number, int) or isinstance(number, bool):
        raise WireError(f"'id': a number is needed, {number!r:.60} came")
    return number


def _packed(said: Mapping[str, Any], limit: int) -> bytes:
    try:
        raw: bytes = msgpack.packb(said, default=_plain)
    except (TypeError, ValueError, OverflowError) as error:
        raise WireError(f"cannot be sent: {error}") from error
    if len(raw) > limit:
        raise WireError(f"{len(raw)} bytes; {limit} can be sent")
    return raw


def _unpacked(raw: Buffer, limit: int) -> dict[str, Any]:
    view = memoryview(raw).cast("B")
    if view.nbytes > limit:
        raise WireError(f"{view.nbytes} bytes; {limit} are allowed")
    try:
        said = msgpack.unpackb(view, raw=False, strict_map_key=True)
    except Exception as error:  # msgpack raises many kinds
        raise WireError(f"is no msgpack: {type(error).__name__}: {error}"[:200]) from error
    if _is_deep(said):
        raise WireError(f"lists and maps are nested more than {MAX_DEPTH} deep")
    if not isinstance(said, dict):
        raise WireError(f"a map is needed, {said!r:.60} came")
    if said.get("version") != VERSION:
        raise WireError(f"version {said.get('version')!r:.60} is not understood, {VERSION} is")
    return said


def _is_deep(said: Any) -> bool:
    """Whether it is nested deeper than `MAX_DEPTH`; told without recursion."""
    level = [said]
    for _ in range(MAX_DEPTH + 1):
        level = [held for held in level if isinstance(held, (list, dict))]
        if not level:
            return False
        level = [inner for held in level for inner in (held.values() if isinstance(held, dict) else held)]
    return True


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return _plain(value.item()) if isinstance(value, np.complexfloating) else value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, (Path, complex)):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no form on the wire")
