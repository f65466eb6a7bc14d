"""The web viewer: a process of its own between the publish socket and browsers."""

from __future__ import annotations

from collections.abc import Callable


class WebViewer:
    """Entry point 'web'."""

    @staticmethod
    def serve(endpoint: str, *, host: str = "127.0.0.1", port: int = 0, on_address: Callable[[str], None] | None = None) -> None:
        """Serve the viewer of the session that publishes on `endpoint` until the process is stopped."""
        from .server import serve

        serve(endpoint, host=host, port=port, on_address=on_address)
