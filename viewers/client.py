"""Look at a running session from Python: `for snapshot in Client(endpoint): …`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import zmq

from ptystream.publish.schema import FORMS, SchemaError, decode, decode_display
from ptystream.publish.snapshot import Snapshot
from ptystream.publish.subscribing import subscriber

OVER = ("finished", "failed")
SETTLE_MS, LONGEST_SETTLE_S = 5, 0.1
RUNS_HELD = 16
"""Runs of which a snapshot waits to be given, at the most."""


class Client:
    """Subscribes to the snapshots of a session. Always the newest of each run: what came in between is counted in `skipped`.

    `form` 'complex64' gives `Snapshot`s, 'uint8' display-ready `Display`s. Not to be shared between threads.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        run: str = "",
        form: str = "complex64",
        timeout_s: float = 30.0,
        keys: str | None = None,
        peer_keys: str | None = None,
    ) -> None:
        """`keys`, `peer_keys`: CURVE certificates as of `ptystream.security.secure`; the session's public one is needed."""
        if form not in FORMS:
            raise ValueError(f"form: {form!r}: must be one of {', '.join(FORMS)}")
        self.endpoint, self.timeout_s = endpoint, timeout_s
        self.skipped: int = 0
        self.refused: int = 0
        """Messages that were no snapshot of this version."""
        self._decode: Any = decode if form == "complex64" else decode_display
        self._number: tuple[str, int] | None = None
        self._waiting: dict[bytes, list[zmq.Frame]] = {}
        """The newest message of each run, by topic, that was not given yet."""
        self._socket = subscriber(endpoint, form, run, keys=keys, peer_keys=peer_keys)

    def latest(self, timeout_s: float | None = None) -> Snapshot | None:
        """The newest snapshot that was not given yet, or None after `timeout_s`."""
        deadline = time.monotonic() + (self.timeout_s if timeout_s is None else timeout_s)
        while True:
            if not self._waiting and not self._socket.poll(max(0, int((deadline - time.monotonic()) * 1000))):
                return None
            self._receive()
            if not self._waiting:
                continue
            parts = self._waiting.pop(next(iter(self._waiting)))
            try:
                snapshot: Snapshot = self._decode([frame.buffer for frame in parts[1:]])
            except SchemaError:
                self.refused += 1
                continue
            about: Snapshot = getattr(snapshot, "about", snapshot)
            if self._number == (about.run, about.number):
                continue
            self._number = (about.run, about.number)
            return snapshot

    def _receive(self) -> None:
        """Take in what is there."""
        settle_ms, until = 0, time.monotonic() + LONGEST_SETTLE_S
        while time.monotonic() < until and self._socket.poll(settle_ms):
            parts = self._socket.recv_multipart(copy=False)
            if self._waiting:
                settle_ms = SETTLE_MS  # there is a backlog: what lies in the kernel's buffers follows at once
            replaced = self._waiting.pop(parts[0].bytes, None)
            self._waiting[parts[0].bytes] = parts
            if replaced is None and len(self._waiting) > RUNS_HELD:
                replaced = self._waiting.pop(next(iter(self._waiting)))
            self.skipped += replaced is not None

    def __iter__(self) -> Iterator[Snapshot]:
        """Snapshots until the run is over, or none came for `timeout_s`."""
        while (snapshot := self.latest()) is not None:
            yield snapshot
            if getattr(snapshot, "about", snapshot).state in OVER:
                return

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
