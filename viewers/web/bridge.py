"""From the web server to a session's steering socket: what blocks is done in threads, and the event loop waits for none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ptystream.steering.client import Steering

TIMEOUT_S = 15.0
"""How long the session may take for an answer."""
WAITING = 16
"""Requests that wait for an answer on one line; further ones are refused."""


class Busy(Exception):
    """Too many wait already."""


class Line:
    """One connection, asked by one thread of its own: answers come in the order in which they were asked for."""

    def __init__(self, steering: Steering) -> None:
        self._steering = steering
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="steering")
        self._waiting = 0

    async def ask(self, action: str, arguments: Mapping[str, Any], who: str) -> Any:
        """The value. Raises `Busy`, and what `Steering.ask_for` raises."""
        if self._waiting >= WAITING:
            raise Busy(f"{WAITING} requests wait for the session already: ask again later")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._steering.ask_for, who, action, arguments)
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """Let go who waits."""
        self._steering.close()
        self._thread.shutdown(wait=False, cancel_futures=True)


class Bridge:
    """Two lines: on one things are changed, on the other looked at, so that looking does not wait for a result being saved."""

    def __init__(self, connect: Callable[[], Steering]) -> None:
        """`connect` raises `ValueError` for an endpoint or keys that cannot be right."""
        self.steer = Line(connect())
        try:
            self.look = Line(connect())
        except ValueError:
            self.steer.close()
            raise

    @staticmethod
    def to(endpoint: str, *, keys: str | None = None, peer_keys: str | None = None) -> Bridge:
        """To the steering socket at an endpoint; `keys`, `peer_keys` as of `Steering`."""
        return Bridge(lambda: Steering(endpoint, keys=keys, peer_keys=peer_keys, timeout_s=TIMEOUT_S))

    def close(self) -> None:
        """Close both."""
        self.steer.close()
        self.look.close()
