"""The data port of a PandABox, for what a session recorded of one."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence
from typing import Self
from urllib.parse import urlparse

from ptystream.events import Buffer
from ptystream.security import check_listening

from .protocol import CONNECTED

GREETING_BYTES = 100


class DataPort:
    """Serves one client with recorded pieces of the stream; where the recording has a new connection, so has the client."""

    def __init__(self, address: str, timeout_s: float = 600.0) -> None:
        """`address`: tcp://127.0.0.1:8889, or '*' as the port. Raises `ValueError` beyond loopback, `OSError` if taken."""
        check_listening(address, None, False)
        where = urlparse(address.replace(":*", ":0"))
        if where.scheme != "tcp" or where.hostname is None or where.port is None:
            raise ValueError(f"address {address!r}: must be like tcp://127.0.0.1:8889")
        self._timeout_s = timeout_s
        self._listening = socket.create_server((where.hostname, where.port))
        self.address = f"tcp://{where.hostname}:{self._listening.getsockname()[1]}"
        """Where it listens."""
        self._client: socket.socket | None = None
        self._fresh = False

    def wait(self, timeout_s: float) -> None:
        """Let a client connect, and hear what it asks for. Raises `TimeoutError`."""
        self._hang_up()
        self._listening.settimeout(timeout_s)
        self._client, _ = self._listening.accept()
        self._client.settimeout(timeout_s)
        asked = b""
        while not asked.endswith(b"\n") and len(asked) < GREETING_BYTES:
            more = self._client.recv(GREETING_BYTES - len(asked))
            if not more:
                raise OSError(f"{self.address}: the client asked for nothing and went")
            asked += more
        self._client.settimeout(self._timeout_s)
        self._fresh = True

    def again(self, parts: Sequence[Buffer]) -> None:
        """Send one piece as it is. Raises `OSError` where the client has gone."""
        if len(parts) == 2 and bytes(parts[0]) == CONNECTED:
            if not self._fresh:
                self.wait(self._timeout_s)
            self._fresh = False
            return
        if self._client is None:
            self.wait(self._timeout_s)
        assert self._client is not None
        self._fresh = False
        for part in parts:
            self._client.sendall(part)

    def flush(self, timeout_s: float = 30.0) -> None:
        """Say that nothing more comes, and wait until the client has hung up."""
        if self._client is not None:
            self._client.settimeout(timeout_s)
            with contextlib.suppress(OSError):
                self._client.shutdown(socket.SHUT_WR)
                while self._client.recv(GREETING_BYTES):
                    pass

    def _hang_up(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._hang_up()
        self._listening.close()
