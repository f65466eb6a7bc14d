"""The routes of the web viewer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket

from .access import Access, same_origin, token_of
from .api import Api, Denied
from .bridge import Bridge
from .exporting import Exporting
from .feed import Feed
from .guard import Guard
from .sharing import Shared
from .stream import serve

HERE = Path(__file__).parent
MAX_BROWSERS = 200
"""Browsers that follow at a time; further ones are turned away."""


def application(feed: Feed, access: Access | None = None, bridge: Bridge | None = None) -> Starlette:
    """The web application. `access`, None: whoever is on this machine may look, and nobody may steer."""
    access = access or Access.to("localhost")
    shared, exporting = Shared(), Exporting(access, feed)
    api = Api(access, bridge)
    browsers: set[WebSocket] = set()

    async def page(request: Request) -> Response:
        if access.role(request) is None:
            return PlainTextResponse("The address needs its ?token=…, as ptystream view printed it.", 403)
        answer = HTMLResponse((HERE / "index.html").read_text(encoding="utf-8"))
        if (token := token_of(request)) is not None:
            secure = request.url.scheme == "https"
            answer.set_cookie(access.cookie, token, httponly=True, samesite="strict", secure=secure, path="/")
        return answer

    async def stream(browser: WebSocket) -> None:
        if access.role(browser) is None or not same_origin(browser):
            await browser.close(4403)
            return
        if len(browsers) >= MAX_BROWSERS:
            await browser.close(1013)
            return
        browsers.add(browser)
        try:
            await serve(browser, feed, shared)
        finally:
            browsers.discard(browser)

    async def denied(request: Request, error: Exception) -> Response:
        assert isinstance(error, Denied)
        return error.response()

    @asynccontextmanager
    async def ends(app: Starlette) -> AsyncIterator[None]:
        yield
        shared.close()
        exporting.close()

    return Starlette(
        routes=[
            Route("/", page),
            Route("/api/me", api.me),
            Route("/api/steer", api.steer, methods=["POST"]),
            Route("/api/frame", api.frame),
            Route("/api/ledger", api.ledger),
            Route("/api/export.png", exporting.png),
            Route("/api/export.h5", exporting.hdf5),
            WebSocketRoute("/stream", stream),
            Mount("/static", StaticFiles(directory=HERE / "static")),
        ],
        middleware=[Middleware(Guard, access=access)],
        exception_handlers={Denied: denied},
        lifespan=ends,
    )
