"""Snapshots in, websocket frames out. One in flight per browser, newest wins, a bounded history for the slider."""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket, WebSocketDisconnect

from ptystream.publish.schema import describe_display

from ..client import Client

HERE = Path(__file__).parent
HISTORY = 200
HISTORY_BYTES = 512 << 20


def pack(shown: Any) -> bytes:
    """One websocket frame: u32 length of the JSON header (little endian), the header padded to 8 bytes, the raw arrays."""
    header, arrays = describe_display(shown)
    text = json.dumps(header).encode()
    text += b" " * (-(4 + len(text)) % 8)
    parts = [struct.pack("<I", len(text)), text]
    for array in arrays:
        raw = np.ascontiguousarray(array).tobytes()
        parts.append(raw + b"\0" * (-len(raw) % 8))
    return b"".join(parts)


class Feed:
    """Follows a session in a thread and keeps what browsers may ask for."""

    def __init__(self, endpoint: str, *, keys: str | None = None, peer_keys: str | None = None) -> None:
        self.endpoint = endpoint
        self.failure: BaseException | None = None
        self.on_failure: Callable[[], None] = lambda: None
        self._client = Client(endpoint, form="uint8", keys=keys, peer_keys=peer_keys)
        self.frames: OrderedDict[int, bytes] = OrderedDict()
        """Packed snapshots by a number of our own that only grows."""
        self.newest = -1
        self._bytes = 0
        self._lock = threading.Lock()
        self._listeners: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="feed", daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        try:
            with self._client as client:
                while not self._over.is_set():
                    shown = client.latest(0.5)
                    if shown is not None:
                        self._keep(pack(shown))
        except BaseException as error:
            self.failure = error
            self.on_failure()

    def _keep(self, frame: bytes) -> None:
        with self._lock:
            self.newest += 1
            self.frames[self.newest] = frame
            self._bytes += len(frame)
            while len(self.frames) > HISTORY or (self._bytes > HISTORY_BYTES and len(self.frames) > 1):
                self._bytes -= len(self.frames.popitem(last=False)[1])
            for loop, event in self._listeners:
                loop.call_soon_threadsafe(event.set)

    def get(self, number: int | None) -> tuple[int, bytes, int] | None:
        """(number, frame, oldest number) of the frame asked for, None: the newest; the nearest where it is gone."""
        with self._lock:
            if not self.frames:
                return None
            oldest = next(iter(self.frames))
            wanted = self.newest if number is None else min(max(number, oldest), self.newest)
            return wanted, self.frames[wanted], oldest

    def listen(self) -> asyncio.Event:
        """An event that is set whenever a new frame is there."""
        event = asyncio.Event()
        with self._lock:
            self._listeners.append((asyncio.get_running_loop(), event))
        return event

    def forget(self, event: asyncio.Event) -> None:
        """The listener is gone."""
        with self._lock:
            self._listeners = [item for item in self._listeners if item[1] is not event]

    def close(self) -> None:
        """End the thread."""
        self._over.set()
        self._thread.join(5.0)


def application(feed: Feed, token: str | None = None) -> Starlette:
    """The web application; with a token, requests without it are refused."""

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
        await browser.accept()
        fresh = feed.listen()
        fresh.set()
        asked: asyncio.Queue[dict[str, Any]] = asyncio.Queue(16)
        reader = asyncio.create_task(_read(browser, asked))
        shown, following = -1, True
        try:
            while not reader.done():
                waiting = {asyncio.ensure_future(fresh.wait()), asyncio.ensure_future(asked.get()), reader}
                done, rest = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                number: int | None = None
                for task in rest - {reader}:
                    task.cancel()
                for task in done - {reader}:
                    word = task.result()
                    if isinstance(word, dict):
                        number = word.get("show") if isinstance(word.get("show"), int) else None
                        following = number is None
                fresh.clear()
                found = feed.get(number)
                if found is None or (following and found[0] == shown) or (not following and number is None):
                    continue
                shown, frame, oldest = found
                await browser.send_json({"number": shown, "oldest": oldest, "newest": feed.newest})
                await browser.send_bytes(frame)
                acknowledged = await asyncio.wait_for(_acknowledged(asked, reader), 30.0)
                if acknowledged is not None:
                    following = acknowledged.get("show") is None
                    fresh.set()
                    if not following:
                        await asked.put(acknowledged)
        except (WebSocketDisconnect, TimeoutError, RuntimeError):
            pass  # the browser is gone
        finally:
            feed.forget(fresh)
            reader.cancel()

    return Starlette(
        routes=[
            Route("/", page),
            WebSocketRoute("/stream", stream),
            Mount("/static", StaticFiles(directory=HERE / "static")),
        ]
    )


async def _read(browser: WebSocket, asked: asyncio.Queue[dict[str, Any]]) -> None:
    while True:
        text = await browser.receive_text()
        try:
            word = json.loads(text[:1000])
        except ValueError:
            continue
        if isinstance(word, dict):
            await asked.put(word)


async def _acknowledged(asked: asyncio.Queue[dict[str, Any]], reader: asyncio.Task[None]) -> dict[str, Any] | None:
    """Wait for the browser's 'drawn'; a request that comes instead counts as one and is returned."""
    while not reader.done():
        word = await asked.get()
        if "drawn" in word:
            return None
        if "show" in word:
            return word
    return None


def _same_origin(browser: WebSocket) -> bool:
    origin = browser.headers.get("origin")
    return origin is None or origin.split("://", 1)[-1] == browser.headers.get("host")


def serve(
    endpoint: str,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    keys: str | None = None,
    peer_keys: str | None = None,
    on_address: Callable[[str], None] | None = None,
) -> None:
    """Serve until the process is stopped. Beyond loopback a token is made and becomes part of the address.

    `keys`, `peer_keys`: as of `Client`. Raises `RuntimeError` where the session could not be followed any more.
    """
    token = None if host in ("127.0.0.1", "localhost", "::1") else secrets.token_urlsafe(16)
    listening = socket.create_server((host, port))
    feed = Feed(endpoint, keys=keys, peer_keys=peer_keys)
    config = uvicorn.Config(
        application(feed, token), log_level="warning", ws_per_message_deflate=False, timeout_graceful_shutdown=1
    )
    if on_address is not None:
        on_address(f"http://{host}:{listening.getsockname()[1]}/" + (f"?token={token}" if token else ""))
    server = uvicorn.Server(config)
    feed.on_failure = lambda: setattr(server, "should_exit", True)
    try:
        server.run(sockets=[listening])
    finally:
        feed.close()
        listening.close()
    if feed.failure is not None:
        raise RuntimeError(f"{endpoint} cannot be followed any more: {feed.failure}") from feed.failure
