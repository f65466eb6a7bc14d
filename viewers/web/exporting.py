"""The routes that give pictures and numbers away as files."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from starlette.requests import Request
from starlette.responses import Response

from .access import Access
from .api import Denied, may, number_of
from .export import as_hdf5, as_png
from .feed import Feed

WAITING = 8
"""Exports that are made or wait; further ones are refused."""


class Exporting:
    """One file at a time, in a thread of its own."""

    def __init__(self, access: Access, feed: Feed) -> None:
        self._access, self._feed = access, feed
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="exporting")
        self._waiting = 0

    async def png(self, request: Request) -> Response:
        """`run`, `number` as of the stream's `show` (the newest where they are left out), `what`, `part`, `name`."""
        may(self._access, request, "view")
        what, part = request.query_params.get("what", "object"), request.query_params.get("part", "phase")
        if what not in ("object", "probe") or part not in ("amplitude", "phase"):
            raise Denied(400, "what: object or probe, part: amplitude or phase")
        name = request.query_params.get("name", "")
        run, number = _which(request)
        content = await self._made(lambda: as_png(self._feed.picture(run, number), what, part, name))
        return _file(content, "image/png", f"{self._stem(run, number)}_{what}_{part}.png")

    async def hdf5(self, request: Request) -> Response:
        """`run`, `number`: as of `png`."""
        may(self._access, request, "view")
        run, number = _which(request)
        content = await self._made(lambda: as_hdf5(self._feed.snapshot(run, number)))
        return _file(content, "application/x-hdf5", f"{self._stem(run, number)}.h5")

    async def _made(self, make: Callable[[], bytes]) -> bytes:
        if self._waiting >= WAITING:
            raise Denied(503, f"{WAITING} files are being made already: ask again later")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, make)
        except LookupError as error:
            raise Denied(404, str(error.args[0])) from None
        finally:
            self._waiting -= 1

    def _stem(self, run: str | None, number: int | None) -> str:
        return f"{run or 'newest'}{'' if number is None else f'_{number:06d}'}"

    def close(self) -> None:
        """Let the thread end."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def _which(request: Request) -> tuple[str | None, int | None]:
    number = number_of(request, "number") if request.query_params.get("number") else None
    return request.query_params.get("run") or None, number


def _file(content: bytes, kind: str, name: str) -> Response:
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", name)[-120:]
    return Response(content, media_type=kind, headers={"Content-Disposition": f'attachment; filename="{plain}"'})
