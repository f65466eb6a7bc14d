"""Whether a session answers: its heartbeats are listened for in a thread, however long its snapshots take."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import zmq

from ptystream.publish.heartbeat import ALIVE, ENDED, RunBeat, decode
from ptystream.publish.schema import SchemaError
from ptystream.publish.subscribing import listener
from ptystream.waker import Waker

log = logging.getLogger(__name__)

UNKNOWN, SILENT = "unknown", "silent"
SILENT_S = 5.0
"""Without a heartbeat for so long it does not answer."""
CLOSE_S = 5.0


@dataclass(frozen=True, slots=True)
class Standing:
    """How a session is."""

    state: str = UNKNOWN
    """'alive'; 'silent': nothing was heard for `SILENT_S`; 'ended': it said goodbye; 'unknown': nothing was heard of it yet."""
    silent_s: float = 0.0
    """Since its last heartbeat; since it is listened for where none has come."""
    runs: tuple[RunBeat, ...] = ()
    """As the last heartbeat told."""
    failure: str = ""
    """Why nothing is known from now on."""

    @property
    def text(self) -> str:
        """What a person should know of it; nothing while all is well."""
        if self.failure:
            return f"not known whether the session answers: {self.failure}"
        if self.state == SILENT:
            return f"session not answering for {self.silent_s:.0f} s"
        if self.state == ENDED:
            return "session ended"
        return f"nothing heard of the session for {self.silent_s:.0f} s" if self.silent_s > SILENT_S else ""


class Hearing:
    """Listens until `close`. `standing` may be asked from any thread."""

    def __init__(
        self,
        endpoint: str,
        *,
        keys: str | None = None,
        peer_keys: str | None = None,
        on_change: Callable[[], object] = lambda: None,
        on_failure: Callable[[BaseException], object] = lambda error: None,
    ) -> None:
        """`on_change` is called in the thread that listens: at every heartbeat, and at least once a second while there is none;
        `on_failure` where that thread dies.
        `keys`, `peer_keys`, errors: as of `Client`."""
        self.refused = 0
        """Messages that were no heartbeat of this version."""
        self.failure: BaseException | None = None
        """Why the thread died: nothing is known from then on."""
        self._socket = listener(endpoint, keys=keys, peer_keys=peer_keys)
        self._on_change, self._on_failure = on_change, on_failure
        self._heard: tuple[float, str, tuple[RunBeat, ...]] = (time.monotonic(), UNKNOWN, ())
        self._leaving, self._waker = False, Waker()
        self._thread = threading.Thread(target=self._listen, name=f"hearing {endpoint}", daemon=True)
        self._thread.start()

    @property
    def standing(self) -> Standing:
        """As it is now."""
        at, state, runs = self._heard
        silent = time.monotonic() - at
        if self.failure is not None:
            return Standing(UNKNOWN, 0.0, runs, f"{type(self.failure).__name__}: {self.failure}")
        return Standing(SILENT if state == ALIVE and silent > SILENT_S else state, silent, runs)

    def close(self) -> None:
        """End the thread. May be called twice."""
        if not self._leaving:
            self._leaving = True
            self._waker.wake()
            self._thread.join(CLOSE_S)
            self._waker.close()

    def _listen(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._waker.fileno(), zmq.POLLIN)
        try:
            while not self._leaving:
                if self._socket in dict(poller.poll(1000)):
                    try:
                        parts = self._socket.recv_multipart()
                        beat = decode(parts[-1])
                        self._heard = (time.monotonic(), beat.state, beat.runs)
                    except SchemaError:
                        self.refused += 1
                self._on_change()
        except BaseException as error:
            self.failure = error
            log.error("it is not known any more whether the session answers: %s: %s", type(error).__name__, error)
            self._on_failure(error)
        finally:
            self._socket.close()
