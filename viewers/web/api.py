"""What a page or a script may ask beside the stream of pictures: who it is, frames, the ledger, and steering."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ptystream.steering.client import whoami
from ptystream.steering.desk import Refused
from ptystream.steering.wire import WireError

from .access import Access, Role, same_origin, token_of
from .bridge import Bridge, Busy, Line
from .picture import framed

MAX_BODY_BYTES = 1 << 20
"""Of a request to steer: as much as the steering socket takes."""
MAX_NUMBER = 1 << 53


class Denied(Exception):
    """The answer is no: status and reason."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status, self.why = status, why

    def response(self) -> Response:
        """As JSON."""
        return JSONResponse({"error": self.why}, self.status)


class Api:
    """The routes below /api/ that ask the session."""

    def __init__(self, access: Access, bridge: Bridge | None) -> None:
        self._access, self._bridge = access, bridge

    async def me(self, request: Request) -> Response:
        """What the asker may do, and the address (below this server's) by which others may look."""
        role = may(self._access, request, "view")
        link = "/" if self._access.view is None else f"/?token={self._access.view}"
        return JSONResponse({"role": role, "steering": self._bridge is not None, "link": link})

    async def steer(self, request: Request) -> Response:
        """POST of JSON {action, arguments}: {value}, or {fault: {path, given, remedy}} where the session refuses it."""
        may(self._access, request, "operate")
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Denied(415, "Content-Type: application/json is needed.")
        if "origin" not in request.headers and token_of(request) is None:
            raise Denied(
                403, "A page of this server may steer, and who gives the token in the address or as Authorization: Bearer."
            )
        action, arguments = _asked(await _body(request))
        try:
            value = await self._ask(self._need().steer, action, arguments, request)
        except Refused as error:
            fault = error.fault
            return JSONResponse({"fault": {"path": fault.path, "given": fault.given, "remedy": fault.remedy}}, 409)
        return JSONResponse({"value": plain(value)})

    async def frame(self, request: Request) -> Response:
        """One frame, as the steering action `frame` tells it."""
        return await self._look(request, "frame", {"frame": number_of(request, "frame")})

    async def ledger(self, request: Request) -> Response:
        """Every frame that has a record, as the steering action `ledger` tells it."""
        given = {"first": number_of(request, "first")} if "first" in request.query_params else {}
        return await self._look(request, "ledger", given)

    async def _look(self, request: Request, action: str, arguments: dict[str, Any]) -> Response:
        may(self._access, request, "view")
        for name in ("run", "scan"):
            if name in request.query_params:
                arguments[name] = request.query_params[name][:1000]
        try:
            value = await self._ask(self._need().look, action, arguments, request)
        except Refused as error:
            raise Denied(404, str(error.fault)) from None
        try:
            return Response(packed(value), media_type="application/octet-stream")
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise Denied(502, f"The session answered {action!r} in a way that is not understood: {error}") from None

    async def _ask(self, line: Line, action: str, arguments: Mapping[str, Any], request: Request) -> Any:
        host = "somewhere" if request.client is None else request.client.host
        try:
            return await line.ask(action, arguments, f"web {host}, through {whoami()}")
        except WireError as error:
            raise Denied(400, f"{action!r} cannot be asked so: {error}") from None
        except TimeoutError as error:
            raise Denied(504, str(error)) from None
        except Busy as error:
            raise Denied(503, str(error)) from None
        except RuntimeError as error:  # the server ends
            raise Denied(503, str(error)) from None

    def _need(self) -> Bridge:
        if self._bridge is None:
            raise Denied(404, "No steering address is known: start it as `ptystream view ENDPOINT --steer STEERING`.")
        return self._bridge


def may(access: Access, request: Request, role: Role) -> Role:
    """The role of who asks. Raises `Denied` where it is not enough, or where a page of another site asks."""
    if not same_origin(request):
        raise Denied(403, "Pages of other sites may not ask here.")
    has = access.role(request)
    if has is None:
        raise Denied(403, "The token is missing or wrong: use the address that ptystream view printed.")
    if role == "operate" and has != "operate":
        raise Denied(403, "Only operators may: use the address for operators that ptystream view printed.")
    return has


def number_of(request: Request, name: str) -> int:
    """An argument of the address that must be a whole number. Raises `Denied`."""
    text = request.query_params.get(name, "")
    if not (text.isascii() and text.isdecimal()) or len(text) > 16 or int(text) > MAX_NUMBER:
        raise Denied(400, f"{name}: a whole number is needed, {text[:60]!r} came")
    return int(text)


def packed(value: Mapping[str, Any]) -> bytes:
    """An answer with arrays as one message, as `picture.framed`; `arrays` of the header tell name, dtype and shape of the raw
    arrays behind it, each padded to 8 bytes. Raises `ValueError`, or `TypeError`, for what is no such answer."""
    entries: list[dict[str, Any]] = []
    body: list[Any] = []
    for entry in value["arrays"]:
        shape, data = [int(n) for n in entry["shape"]], memoryview(entry["data"])
        if math.prod(shape) * np.dtype(entry["dtype"]).itemsize != data.nbytes or min(shape, default=0) < 0:
            raise ValueError(f"array {entry['name']!r}: {data.nbytes} bytes for {shape}")
        entries.append({"name": str(entry["name"]), "dtype": str(entry["dtype"]), "shape": shape})
        body += [data, b"\0" * (-data.nbytes % 8)]
    return framed(plain({**value, "arrays": entries}), b"".join(body))


def plain(value: Any) -> Any:
    """As JSON can say it: null for numbers that are none, the size of raw bytes."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return f"{len(value)} bytes" if isinstance(value, bytes) else value


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise Denied(413, f"More than {MAX_BODY_BYTES} bytes.")
    return bytes(body)


def _asked(body: bytes) -> tuple[str, dict[str, Any]]:
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        raise Denied(400, "That is no JSON.") from None
    if not isinstance(said, dict) or not isinstance(said.get("action"), str):
        raise Denied(400, 'A map {"action": name, "arguments": {...}} is needed.')
    arguments = said.get("arguments") or {}
    if not isinstance(arguments, dict):
        raise Denied(400, "arguments: a map is needed.")
    return said["action"], arguments
