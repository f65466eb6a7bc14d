"""The HTTP endpoint of a session: /metrics for Prometheus, /healthz and /readyz for whoever restarts it or waits for it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from ptystream.health import Health

Application: TypeAlias = Callable[..., Iterable[bytes]]
PATIENCE_S = 10.0
"""Whoever has not sent a whole request by then is disconnected."""


class Handler(WSGIRequestHandler):
    """Of one request: silent, and of limited patience."""

    timeout = PATIENCE_S

    def log_message(self, format: str, *given: Any) -> None:
        """Scrapes come every few seconds, and are no news."""


class Listening(ThreadingWSGIServer):
    """A thread for each request, none of which holds the session's end up."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news either."""


class IPv6Listening(Listening):
    """The same at an IPv6 address."""

    address_family = socket.AF_INET6


def application(
    registry: CollectorRegistry, health: Health | None, refresh: Callable[[], None]
) -> Callable[..., Iterable[bytes]]:
    """The WSGI application. `refresh` is called before each scrape."""
    metrics = make_wsgi_app(registry)

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path in ("/", "/metrics"):
            refresh()
            found: Iterable[bytes] = metrics(environ, start_response)
            return found
        wanted = {} if health is None else {"/healthz": health.ills, "/readyz": health.waits}
        if path not in wanted or health is None:
            return _said(start_response, "404 Not Found", ["there are /metrics, /healthz and /readyz"])
        wrong = wanted[path]()
        lines = [*(wrong or ["ok"]), *(f"warning: {line}" for line in health.concerns())]
        return _said(start_response, "503 Service Unavailable" if wrong else "200 OK", lines)

    return answer


def _said(start_response: Callable[..., Any], status: str, lines: list[str]) -> Iterable[bytes]:
    start_response(status, [("Content-Type", "text/plain; charset=utf-8"), ("Cache-Control", "no-store")])
    return [("\n".join(lines) + "\n").encode()]


def serve(application: Application, address: str, port: int) -> tuple[str, Callable[[], None]]:
    """Answer over HTTP; returns (URL of the metrics, function that ends it). Raises `OSError` where the port is taken."""
    kind, host = (IPv6Listening, f"[{address}]") if ":" in address else (Listening, address)
    server = make_server(address, port, application, kind, Handler)
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join(5.0)

    return f"http://{host}:{server.server_port}/metrics", close
