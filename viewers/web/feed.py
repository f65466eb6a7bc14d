"""Follows a session in a thread of its own and keeps what browsers may ask for."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

from ptystream.publish.display import display
from ptystream.publish.snapshot import Snapshot

from ..client import Client
from ..hearing import Hearing, Standing
from .exact import Exact
from .history import Found, Histories
from .picture import Picture

BUSY = 0.5
"""Share of its time for which the thread may make pictures: of large objects it then shows fewer."""


class Feed:
    """The pictures of a session; all its methods may be called from any thread, `listen` from an event loop.

    It takes snapshots in full and makes pictures of them here, which costs the session's process nothing.
    """

    def __init__(self, endpoint: str, *, keys: str | None = None, peer_keys: str | None = None) -> None:
        self.endpoint = endpoint
        self.failure: BaseException | None = None
        self.on_failure: Callable[[], None] = lambda: None
        self._client = Client(endpoint, keys=keys, peer_keys=peer_keys)
        self._histories, self._exact = Histories(), Exact()
        self._lock = threading.Lock()
        self._listeners: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        self._over = threading.Event()
        self._hearing = Hearing(endpoint, keys=keys, peer_keys=peer_keys, on_change=self._tell, on_failure=self._fail)
        self._thread = threading.Thread(target=self._follow, name="feed", daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        try:
            with self._client as client:
                while not self._over.is_set():
                    snapshot = client.latest(0.5)
                    if snapshot is not None:
                        began = time.thread_time()
                        self._keep(Picture.of(display(snapshot)), snapshot)
                        self._over.wait((time.thread_time() - began) * (1 - BUSY) / BUSY)
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """One of the threads died."""
        self.failure = self.failure or error
        self.on_failure()

    def _keep(self, picture: Picture, snapshot: Snapshot) -> None:
        with self._lock:
            self._histories.keep(picture)
            self._exact.keep(picture.serial, snapshot)
        self._tell()

    def _tell(self) -> None:
        with self._lock:
            for loop, event in self._listeners:
                loop.call_soon_threadsafe(event.set)

    @property
    def session(self) -> Standing:
        """Whether the session answers."""
        return self._hearing.standing

    def get(self, run: str | None = None, number: int | None = None) -> Found | None:
        """See `Histories.get`."""
        with self._lock:
            return self._histories.get(run, number)

    def picture(self, run: str | None, number: int | None) -> Picture:
        """That picture and no other; None: as of `get`. Raises `LookupError` with the reason where it is not there."""
        with self._lock:
            found = self._histories.get(run, number)
        if found is None:
            raise LookupError("No picture is there yet.")
        if run is not None and found.run != run:
            raise LookupError(f"Nothing is kept of a run {run[:100]!r}; of {', '.join(found.runs)} there is.")
        if number is not None and found.number != number:
            raise LookupError(f"Picture {number} is not kept; {found.oldest} to {found.newest} of {found.run} are.")
        return found.picture

    def snapshot(self, run: str | None, number: int | None) -> Snapshot:
        """The snapshot that a picture was made of. Raises `LookupError`."""
        picture = self.picture(run, number)
        with self._lock:
            snapshot = self._exact.get(picture.serial)
            left = len(self._exact.serials)
        if snapshot is None:
            raise LookupError(f"The picture is kept, its complex numbers are not: they are of the latest {left} pictures.")
        return snapshot

    def listen(self) -> asyncio.Event:
        """An event that is set whenever a new picture is there, and about once a second."""
        event = asyncio.Event()
        with self._lock:
            self._listeners.append((asyncio.get_running_loop(), event))
        return event

    def forget(self, event: asyncio.Event) -> None:
        """The listener is gone."""
        with self._lock:
            self._listeners = [item for item in self._listeners if item[1] is not event]

    def close(self) -> None:
        """End the threads."""
        self._over.set()
        self._hearing.close()
        self._thread.join(5.0)
