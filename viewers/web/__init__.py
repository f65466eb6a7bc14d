"""The web viewer: a process of its own between the publish socket and browsers."""

from __future__ import annotations

from typing import Any


class WebViewer:
    """Entry point 'web'."""

    @staticmethod
    def serve(endpoint: str, **options: Any) -> None:
        """Serve the viewer of the session that publishes on `endpoint` until the process is stopped.

        Options as of `ptystream.viewers.web.serving.serve`.
        """
        from .serving import serve

        serve(endpoint, **options)
