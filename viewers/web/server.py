"""Snapshots in, websocket frames out. One in flight per browser, newest wins, a bounded history of each run for the slider."""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
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
HISTORY, HISTORY_BYTES = 200, 512 << 20
"""Pictures kept of one run, and bytes of all runs together."""
RUNS = 20
LONGEST_DRAW_S = 30.0
"""A browser that has not drawn a picture after this time is given up."""


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


@dataclass(slots=True)
class History:
    """The latest pictures of one run, numbered from the first that came; `first` is the number of the oldest one kept."""

    first: int = 0
    frames: deque[bytes] = field(default_factory=deque)

    @property
    def newest(self) -> int:
        return self.first + len(self.frames) - 1

    def forget(self) -> int:
        """Drop the oldest; returns its bytes."""
        self.first += 1
        return len(self.frames.popleft())


@dataclass(frozen=True, slots=True)
class Found:
    """A picture of a run, and what there is beside it."""

    run: str
    number: int
    frame: bytes
    oldest: int
    newest: int
    runs: tuple[str, ...]
    """In the order in which they were first seen."""


class Histories:
    """What is kept of each run. Not thread-safe."""

    def __init__(self) -> None:
        self._runs: dict[str, History] = {}
        self._bytes = 0

    def keep(self, run: str, frame: bytes) -> None:
        """Add the newest picture of a run; what is too much goes: the oldest run first, its last picture at the very end."""
        history = self._runs.setdefault(run, History())
        history.frames.append(frame)
        self._bytes += len(frame)
        if len(history.frames) > HISTORY:
            self._bytes -= history.forget()
        while len(self._runs) > RUNS or self._bytes > HISTORY_BYTES:
            others = [name for name in self._runs if name != run]
            long = next((h for h in self._runs.values() if len(h.frames) > 1), None)
            if len(self._runs) <= RUNS and long is not None:
                self._bytes -= long.forget()
            elif others:
                self._bytes -= sum(map(len, self._runs.pop(others[0]).frames))
            else:
                break

    def get(self, run: str | None = None, number: int | None = None) -> Found | None:
        """A picture; None: of the run that was first seen last, and its newest. The nearest there is, where it is gone."""
        if not self._runs:
            return None
        run = run if run in self._runs else next(reversed(self._runs))
        history = self._runs[run]
        wanted = history.newest if number is None else min(max(number, history.first), history.newest)
        frame = history.frames[wanted - history.first]
        return Found(run, wanted, frame, history.first, history.newest, tuple(self._runs))


class Feed:
    """Follows a session in a thread and keeps what browsers may ask for."""

    def __init__(self, endpoint: str, *, keys: str | None = None, peer_keys: str | None = None) -> None:
        self.endpoint = endpoint
        self.failure: BaseException | None = None
        self.on_failure: Callable[[], None] = lambda: None
        self._client = Client(endpoint, form="uint8", keys=keys, peer_keys=peer_keys)
        self._histories = Histories()
        self._lock = threading.Lock()
        self._listeners: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="feed", daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        try:
            with self._client as client:
                while not self._over.is_set():
                    shown: Any = client.latest(0.5)
                    if shown is not None:
                        self._keep(shown.about.run, pack(shown))
        except BaseException as error:
            self.failure = error
            self.on_failure()

    def _keep(self, run: str, frame: bytes) -> None:
        with self._lock:
            self._histories.keep(run, frame)
            for loop, event in self._listeners:
                loop.call_soon_threadsafe(event.set)

    def get(self, run: str | None = None, number: int | None = None) -> Found | None:
        """See `Histories.get`."""
        with self._lock:
            return self._histories.get(run, number)

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
        wish = Wish(fresh)
        reader = asyncio.create_task(_read(browser, wish))
        shown: tuple[str, int] | None = None
        said: dict[str, Any] = {}
        try:
            while not wish.gone:
                async with asyncio.timeout_at(wish.due):
                    await fresh.wait()
                fresh.clear()
                found = None if wish.due is not None else feed.get(wish.run, wish.number)
                if found is None:
                    continue
                say = {"run": found.run, "number": found.number, "oldest": found.oldest, "newest": found.newest}
                say["runs"] = list(found.runs)
                if say != said:
                    await browser.send_json(say)
                    said = say
                if shown != (found.run, found.number):
                    shown = found.run, found.number
                    wish.due = asyncio.get_running_loop().time() + LONGEST_DRAW_S
                    await browser.send_bytes(found.frame)
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


class Wish:
    """What a browser wants to see, and whether it is drawing."""

    def __init__(self, changed: asyncio.Event) -> None:
        self.run: str | None = None
        """None: the newest."""
        self.number: int | None = None
        """None: the newest."""
        self.due: float | None = None
        """When a picture that was sent must have been drawn; None: none is on its way."""
        self.gone = False
        self.changed = changed


async def _read(browser: WebSocket, wish: Wish) -> None:
    """Take in what the browser says: {"show": number or null, "run": name or null}, or {"drawn": number}."""
    try:
        while True:
            text = await browser.receive_text()
            try:
                word = json.loads(text[:4000])
            except ValueError:
                continue
            if not isinstance(word, dict):
                continue
            if "drawn" in word:
                wish.due = None
            if "show" in word:
                run, number = word.get("run"), word["show"]
                wish.run = run if isinstance(run, str) else None
                wish.number = number if isinstance(number, int) else None
            wish.changed.set()
    except (WebSocketDisconnect, RuntimeError):
        pass
    finally:
        wish.gone = True
        wish.changed.set()


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
