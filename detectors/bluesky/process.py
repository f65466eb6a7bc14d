"""Documents within one process: an object that a RunEngine is given and a session reads."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping
from typing import Any

from ptystream.transport import Message, TransportClosed

from .payload import packed

log = logging.getLogger(__name__)

_OPEN: weakref.WeakValueDictionary[str, Documents] = weakref.WeakValueDictionary()


class Documents:
    """Give it to `RE.subscribe` and name it in the configuration: `{name: BlueskyScan, via: process, feed: <name>}`.

    Never waits and never raises into the RunEngine: documents beyond `capacity_bytes` that a session did not take are
    dropped, and show as gaps. A session that begins during a run gets that run from its start. Keep a reference to it.
    """

    def __init__(self, name: str = "bluesky", capacity_bytes: int = 1 << 30) -> None:
        self.name, self.capacity_bytes = name, capacity_bytes
        self.dropped = 0
        self._changed = threading.Condition()
        self._queues: dict[int, deque[tuple[int, bytes]]] = {}
        self._sizes: dict[int, int] = {}
        self._history: list[tuple[int, bytes]] = []
        self._history_bytes = 0
        self._open: set[str] = set()
        self._closed = False
        _OPEN[name] = self

    def __call__(self, name: str, document: Mapping[str, Any]) -> None:
        """One document, as a RunEngine gives it."""
        try:
            raw = packed(str(name), document)
        except Exception as error:  # nothing of ours may end a scan
            self.dropped += 1
            log.warning("%s: a %s document cannot be packed and is left out: %r", self.name, name, error)
            return
        entry = (time.time_ns(), raw)
        with self._changed:
            self._remember(str(name), document, entry)
            for reader, waiting in self._queues.items():
                if waiting and self._sizes[reader] + len(raw) > self.capacity_bytes:
                    self.dropped += 1
                    continue
                waiting.append(entry)
                self._sizes[reader] += len(raw)
            self._changed.notify_all()

    def close(self) -> None:
        """No more documents will come: sessions end when they have taken what there is."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _remember(self, name: str, document: Mapping[str, Any], entry: tuple[int, bytes]) -> None:
        """What a session needs that begins now: the runs in progress, as far as they fit."""
        if name == "start":
            if not self._open:
                self._history.clear()
                self._history_bytes = 0
            self._open.add(str(document.get("uid")))
        elif name == "stop":
            self._open.discard(str(document.get("run_start")))
        if self._history_bytes + len(entry[1]) <= self.capacity_bytes:
            self._history.append(entry)
            self._history_bytes += len(entry[1])
        if not self._open:
            self._history.clear()
            self._history_bytes = 0

    def join(self, reader: int) -> None:
        """`reader` takes part from now on."""
        with self._changed:
            self._queues[reader] = deque(self._history)
            self._sizes[reader] = self._history_bytes

    def leave(self, reader: int) -> None:
        """`reader` takes no more."""
        with self._changed:
            self._queues.pop(reader, None)
            self._sizes.pop(reader, None)

    def take(self, reader: int, timeout_s: float) -> tuple[int, bytes] | None:
        """The next document of `reader`, or None after `timeout_s`. Raises `TransportClosed` behind the last one."""
        with self._changed:
            waiting = self._queues[reader]
            self._changed.wait_for(lambda: bool(waiting) or self._closed, timeout_s)
            if waiting:
                entry = waiting.popleft()
                self._sizes[reader] -= len(entry[1])
                return entry
            if self._closed:
                raise TransportClosed(f"{self.name}: closed")
            return None


class ProcessTransport:
    """Reads a `Documents`. See `ptystream.transport.Transport`."""

    def __init__(self, feed: str, channel: str) -> None:
        self.channel, self._name = channel, feed
        self._documents: Documents | None = None

    def open(self) -> None:
        """The `Documents` of that name must exist."""
        self._documents = _OPEN.get(self._name)
        if self._documents is None:
            known = ", ".join(sorted(_OPEN)) or "none"
            made = f"make ptystream.detectors.bluesky.Documents({self._name!r}) first and keep it"
            raise OSError(f"{self.channel}: feed {self._name!r}: {made}; there are: {known}")
        self._documents.join(id(self))

    def receive(self, timeout_s: float) -> Message | None:
        """The next document, or None after `timeout_s`."""
        assert self._documents is not None, "open() comes first"
        entry = self._documents.take(id(self), timeout_s)
        return None if entry is None else Message(entry[0], self.channel, (entry[1],))

    def acknowledge(self, message: Message) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Take no more."""
        if self._documents is not None:
            self._documents.leave(id(self))
            self._documents = None
