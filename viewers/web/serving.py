"""The web server: a listening socket, its addresses, and the process' loop."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import ExitStack

import uvicorn

from .access import Access
from .application import application
from .bridge import Bridge
from .feed import Feed
from .limits import MAX_WORD_BYTES, Ended, Limited
from .tokens import kept

EVERYWHERE = ("0.0.0.0", "::", "")  # noqa: S104 (named, not bound)


def serve(
    endpoint: str,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    keys: str | None = None,
    peer_keys: str | None = None,
    steer: str | None = None,
    tokens: str | None = None,
    on_address: Callable[[str], None] | None = None,
    on_operators: Callable[[str], None] | None = None,
) -> None:
    """Serve until the process is stopped. Beyond loopback a token becomes part of the address.

    `keys`, `peer_keys`: as of `Client`, and of `Steering` for `steer`, the session's steering endpoint; `on_operators` is then
    given the address for those who may steer. `tokens`: a file that keeps them. Raises `RuntimeError` where the session could not
    be followed any more, `ValueError` for an endpoint, keys or a file that cannot be right.
    """
    access = Access.to(host, steering=steer is not None, tokens=None if tokens is None else kept(tokens))
    with ExitStack() as stack:
        listening = stack.enter_context(socket.create_server((host, port), family=_family(host)))
        bridge = None if steer is None else Bridge.to(steer, keys=keys, peer_keys=peer_keys)
        if bridge is not None:
            stack.callback(bridge.close)
        feed = Feed(endpoint, keys=keys, peer_keys=peer_keys)
        stack.callback(feed.close)
        server = uvicorn.Server(configured(application(feed, access, bridge)))
        feed.on_failure = lambda: setattr(server, "should_exit", True)
        where = f"http://{_named(host)}:{listening.getsockname()[1]}/"
        if on_address is not None:
            on_address(_with(where, access.view))
        if on_operators is not None and access.operate is not None:
            on_operators(_with(where, access.operate))
        server.run(sockets=[listening])
    if feed.failure is not None:
        raise RuntimeError(f"{endpoint} cannot be followed any more: {feed.failure}") from feed.failure


def configured(app: object, port: int = 0) -> uvicorn.Config:
    """How uvicorn serves it: who asks is who is connected, whatever a header says, and nothing asks without limits."""
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        port=port,
        log_level="warning",
        http=Limited,
        ws=Ended,
        ws_max_size=MAX_WORD_BYTES,
        ws_per_message_deflate=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=1,
    )


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _named(host: str) -> str:
    name = socket.gethostname() if host in EVERYWHERE else host
    return f"[{name}]" if ":" in name else name


def _with(address: str, token: str | None) -> str:
    return address if token is None else f"{address}?token={token}"
