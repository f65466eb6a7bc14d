"""Follows a session in a thread of its own and keeps what browsers may ask for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from ..client import Client
from .history import Found, Histories
from .picture import Picture


class Feed:
    """The pictures of a session; all its methods may be called from any thread, `listen` from an event loop."""

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
                        self._keep(Picture.of(shown))
        except BaseException as error:
            self.failure = error
            self.on_failure()

    def _keep(self, picture: Picture) -> None:
        with self._lock:
            self._histories.keep(picture)
            for loop, event in self._listeners:
                loop.call_soon_threadsafe(event.set)

    def get(self, run: str | None = None, number: int | None = None) -> Found | None:
        """See `Histories.get`."""
        with self._lock:
            return self._histories.get(run, number)

    def exact(self, run: str, number: int) -> Picture | None:
        """See `Histories.exact`."""
        with self._lock:
            return self._histories.exact(run, number)

    def listen(self) -> asyncio.Event:
        """An event that is set whenever a new picture is there."""
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
