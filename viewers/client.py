"""Look at a running session from Python: `for snapshot in Client(endpoint): …`, or `client.on_snapshot(callback)`."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self

import zmq

from ptystream.publish.heartbeat import ALIVE, ENDED
from ptystream.publish.schema import FORMS, SchemaError, decode, decode_display
from ptystream.publish.snapshot import Snapshot
from ptystream.publish.subscribing import subscriber

from .hearing import Hearing, Standing

log = logging.getLogger(__name__)

OVER = ("finished", "failed")
SETTLE_MS, LONGEST_SETTLE_S = 5, 0.1
LOOK_S = 0.1
"""How long the thread that serves callbacks waits before it looks whether it should end."""
LOOK_ENDED_S = 1.0
"""How long a loop over snapshots waits before it looks whether the session has ended."""
CLOSE_S = 10.0
RUNS_HELD = 16
"""Runs of which a snapshot waits to be given, at the most."""


class Client:
    """Subscribes to the snapshots of a session. Always the newest of each run: what came in between is counted in `skipped`.

    `form` 'complex64' gives `Snapshot`s, 'uint8' display-ready `Display`s. `on_snapshot`, `wait` and `close` may be called from
    any thread; the rest is for one thread, and for none once there are callbacks.
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
        self.failed: int = 0
        """Calls of callbacks that raised."""
        self.failure: BaseException | None = None
        """Why the thread that serves callbacks died."""
        self._callbacks: dict[int, Callable[[Any], object]] = {}
        self._asked, self._lock = 0, threading.Lock()
        self._thread: threading.Thread | None = None
        self._leaving, self._over = threading.Event(), threading.Event()
        self._decode: Any = decode if form == "complex64" else decode_display
        self._number: tuple[str, int] | None = None
        self._waiting: dict[bytes, list[zmq.Frame]] = {}
        """The newest message of each run, by topic, that was not given yet."""
        self._socket = subscriber(endpoint, form, run, keys=keys, peer_keys=peer_keys)
        self._run, self._keys, self._peer_keys = run, keys, peer_keys
        self._hearing: Hearing | None = None
        if "IPython" in sys.modules:
            from .notebook import register

            register()

    @property
    def session(self) -> Standing:
        """Whether the session answers, told by its heartbeats: these are listened for from the first time on that this is asked.
        One that iterates for long is alive; its snapshots just are far between."""
        with self._lock:
            if self._leaving.is_set():
                raise RuntimeError(f"{self.endpoint}: the client is closed")
            if self._hearing is None:
                self._hearing = Hearing(self.endpoint, keys=self._keys, peer_keys=self._peer_keys)
            return self._hearing.standing

    def on_snapshot(self, callback: Callable[[Any], object]) -> Callable[[], None]:
        """Call `callback(snapshot)` for each newest snapshot from now on, in a thread of the client's. Returns what ends that.

        What it raises is logged and counted in `failed`, and ends neither the thread nor the other callbacks. While one takes
        its time, snapshots are skipped, as everywhere.
        """
        with self._lock:
            if self._leaving.is_set():
                raise RuntimeError(f"{self.endpoint}: the client is closed")
            self._asked += 1
            number = self._asked
            self._callbacks[number] = callback
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name=f"client {self.endpoint}", daemon=True)
                self._thread.start()

        def unsubscribe() -> None:
            with self._lock:
                self._callbacks.pop(number, None)

        return unsubscribe

    def wait(self, timeout_s: float | None = None) -> bool:
        """With callbacks: whether a run was over, after at most `timeout_s`. Raises what ended the thread that serves them."""
        over = self._over.wait(timeout_s)
        if self.failure is not None:
            raise RuntimeError(f"{self.endpoint}: no further snapshots: {self.failure}") from self.failure
        return over

    def _serve(self) -> None:
        try:
            while not self._leaving.is_set():
                snapshot = self._newest(LOOK_S)
                if snapshot is None:
                    continue
                with self._lock:
                    callbacks = list(self._callbacks.values())
                for callback in callbacks:
                    try:
                        callback(snapshot)
                    except Exception:
                        self.failed += 1
                        log.exception("%s: a callback failed", self.endpoint)
                if getattr(snapshot, "about", snapshot).state in OVER:
                    self._over.set()
        except BaseException as error:
            self.failure = error
            self._over.set()
            log.error("%s: no further snapshots: %s", self.endpoint, error)
        finally:
            self._socket.close()

    def latest(self, timeout_s: float | None = None) -> Snapshot | None:
        """The newest snapshot that was not given yet, or None after `timeout_s`. Raises `RuntimeError` where callbacks get it."""
        if self._thread is not None:
            raise RuntimeError(f"{self.endpoint}: the snapshots go to callbacks: use a client of its own to loop over them")
        return self._newest(timeout_s)

    def _newest(self, timeout_s: float | None) -> Snapshot | None:
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
        """Snapshots until the run is over, the session has ended, or nothing came for `timeout_s`: no snapshot, and no heartbeat
        that tells of a run under way."""
        last, ended = time.monotonic(), False
        while True:
            standing = self.session
            left = last + self.timeout_s - time.monotonic()
            snapshot = self.latest(min(LOOK_ENDED_S, max(0.0, left)))
            if snapshot is not None:
                last = time.monotonic()
                yield snapshot
                if getattr(snapshot, "about", snapshot).state in OVER:
                    return
            elif ended:
                return
            elif standing.state == ALIVE and self._under_way(standing):
                last = time.monotonic()
            elif left <= 0:
                return
            ended = standing.state == ENDED  # what was published before has its own way here: one more look

    def _under_way(self, standing: Standing) -> bool:
        return any(beat.state not in OVER and self._run in ("", beat.run) for beat in standing.runs)

    def close(self) -> None:
        """Close the socket; callbacks get nothing more. May be called by one, and twice."""
        with self._lock:
            self._leaving.set()
            thread, hearing = self._thread, self._hearing
        if hearing is not None:
            hearing.close()
        if thread is None:
            self._socket.close()
        elif thread is not threading.current_thread():
            thread.join(CLOSE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
