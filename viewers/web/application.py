"""The routes of the web viewer."""

from __future__ import annotations

import secrets
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket

from .feed import Feed
from .sharing import Shared
from .stream import serve

HERE = Path(__file__).parent


def application(feed: Feed, token: str | None = None) -> Starlette:
    """The web application; with a token, requests without it are refused."""
    shared = Shared()

    def allowed(given: str | None) -> bool:
        return token is None or (given is not None and secrets.compare_digest(given, token))

    async def page(request: Request) -> Response:
        if not allowed(request.query_params.get("token")):
            return PlainTextResponse("The address needs ?token=…, as ptystream view printed it.", 403)
        return HTMLResponse((HERE / "index.html").read_text(encoding="utf-8"))

    async def stream(browser: WebSocket) -> None:
        if not allowed(browser.query_params.get("token")) or not _same_origin(browser):
            await browser.close(4403)
            return
        await serve(browser, feed, shared)

    return Starlette(
        routes=[
            Route("/", page),
            WebSocketRoute("/stream", stream),
            Mount("/static", StaticFiles(directory=HERE / "static")),
        ]
    )


def _same_origin(browser: WebSocket) -> bool:
    origin = browser.headers.get("origin")
    return origin is None or origin.split("://", 1)[-1] == browser.headers.get("host")
