"""The web server: a listening socket, its address, and the process' loop."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable

import uvicorn

from .application import application
from .feed import Feed


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
