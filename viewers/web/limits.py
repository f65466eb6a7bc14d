"""What one machine may take of the server: connections, and time without a request."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

MAX_CONNECTIONS = 500
"""At a time, browsers that follow among them; a further one is closed at once."""
FIRST_REQUEST_S = 10.0
"""For so long a connection may be open without a whole request."""
LAST_S = 5.0
"""For so long what was sent to a browser that is given up may still be taken."""
MAX_WORD_BYTES = 1 << 16
"""Of what a browser says on its websocket; one that says more is disconnected."""


class Limited(H11Protocol):
    """A connection that is counted, and closed where it asks nothing."""

    def connection_made(self, transport: Any) -> None:
        """A connection was opened."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
            return
        self._late = self.loop.call_later(FIRST_REQUEST_S, self._close_where_idle, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        if (late := getattr(self, "_late", None)) is not None:
            late.cancel()
        super().connection_lost(exc)

    def _close_where_idle(self, transport: asyncio.Transport) -> None:
        if self.cycle is None and transport.get_protocol() is self:  # a websocket has been given another protocol
            transport.close()


class Ended(WebSocketsSansIOProtocol):
    """A websocket that does end: a browser that hangs takes nothing, and closing would wait for it without an end."""

    async def run_asgi(self) -> None:
        """From the first word to the last."""
        try:
            await super().run_asgi()
        finally:
            self.loop.call_later(LAST_S, self.transport.abort)
