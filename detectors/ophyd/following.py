"""Numbers of a running reconstruction, as they are published."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import zmq

from ptystream.publish.schema import SchemaError, decode_display
from ptystream.publish.snapshot import Snapshot
from ptystream.publish.subscribing import subscriber

log = logging.getLogger(__name__)

RUNS_HELD = 16
"""Runs whose newest snapshot is kept while a backlog is read."""
POLL_MS = 200
"""How long the thread waits before it looks whether it should stop."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """A snapshot without its pictures."""

    run: str
    state: str
    """'waiting', 'running', 'paused', 'finished', 'failed'."""
    iteration: int
    """Of all engines so far."""
    error: float
    """Amplitude misfit of probe × object to the data, per valid pixel; NaN where none is known yet."""
    frames_received: int
    frames_used: int
    latency: float
    """Seconds from the arrival of the newest frame until an iteration had used it; NaN before."""
    created_ns: int
    newest_frame_ns: int | None = None
    """Arrival of the newest frame that an iteration has used."""
    started_ns: int = 0
    """When the run began."""

    @classmethod
    def of(cls, snapshot: Snapshot) -> Numbers:
        """From a snapshot."""
        known = snapshot.misfit[:, 0][np.isfinite(snapshot.misfit[:, 0])] if len(snapshot.misfit) else np.zeros(0)
        return cls(
            run=snapshot.run,
            state=snapshot.state,
            iteration=snapshot.iteration,
            error=float(known[-1]) if len(known) else float("nan"),
            frames_received=int(snapshot.ledger.get("received", 0)),
            frames_used=int(snapshot.ledger.get("used", 0)),
            latency=float(snapshot.rates.get("latency_seconds", float("nan"))),
            created_ns=snapshot.created_ns,
            newest_frame_ns=snapshot.newest_frame_ns,
            started_ns=snapshot.started_ns,
        )


class Newest:
    """Of runs that are reconstructed beside one another only the one that began last: an earlier one, which is still refined, has
    nothing to say of what a plan measures now."""

    def __init__(self) -> None:
        self._started_ns = 0

    def hear(self, numbers: Numbers) -> bool:
        """Take numbers of any run; returns whether they are of the newest one so far."""
        self._started_ns = max(self._started_ns, numbers.started_ns)
        return numbers.started_ns >= self._started_ns


class Counted:
    """Counts the frames of one acquisition, which begins with a staging, while runs of earlier ones may still be refined."""

    def __init__(self, per_event: int) -> None:
        self.per_event = per_event
        self.begin()

    def begin(self) -> None:
        """What came before belongs to another acquisition."""
        self.wanted = self.arrived = 0
        self._since_ns = time.time_ns()
        self._run: str | None = None
        self._earlier: dict[str, int] = {}
        """Run that had frames before → how many."""

    def hear(self, numbers: Numbers) -> bool:
        """Take numbers of any run; returns whether they are of this acquisition's."""
        name, received = numbers.run, numbers.frames_received
        over = numbers.state not in ("waiting", "running", "paused")
        earlier = numbers.newest_frame_ns is not None and numbers.newest_frame_ns < self._since_ns
        if received < self._earlier.get(name, 0) or over:  # of a session that was started again the name means another run
            self._earlier.pop(name, None)
        if earlier and name == self._run:  # it had waited when it was heard of first
            self._run, self.arrived = None, 0
        if numbers.created_ns < self._since_ns or earlier:
            if received and not over:
                self._earlier[name] = received
            return False
        if name in self._earlier or (over and name != self._run) or self._run not in (None, name):
            return False
        self._run, self.arrived = name, received
        return True

    def look(self, numbers: Numbers) -> bool:
        """Whether all that is wanted has arrived."""
        return self._run is not None and self.arrived >= self.wanted

    @property
    def events(self) -> int:
        """Of those that are wanted, the ones of which every frame has arrived."""
        return min(self.arrived, self.wanted) // self.per_event


class Follower(threading.Thread):
    """Calls `told(numbers)`, in its own thread, for each snapshot of a session at `endpoint`; of a backlog for each run's newest.

    `run`: only runs of that name. `keys`, `peer_keys`: CURVE certificates as of `ptystream.security.secure`. Raises
    `ValueError` for an endpoint or keys that cannot be right; a session that is not there yet is waited for.
    """

    def __init__(
        self,
        endpoint: str,
        told: Callable[[Numbers], None],
        *,
        run: str = "",
        keys: str | None = None,
        peer_keys: str | None = None,
    ) -> None:
        super().__init__(name=f"following {endpoint}", daemon=True)
        self._told, self._over = told, threading.Event()
        self._socket = subscriber(endpoint, "uint8", run, keys=keys, peer_keys=peer_keys)

    def run(self) -> None:
        """Thread body."""
        with self._socket as socket:
            while not self._over.is_set():
                if not socket.poll(POLL_MS):
                    continue
                newest: dict[bytes, list[zmq.Frame]] = {}
                while socket.poll(0) and len(newest) < RUNS_HELD:
                    parts = socket.recv_multipart(copy=False)
                    newest[parts[0].bytes] = parts
                for parts in newest.values():
                    self._tell(parts)

    def _tell(self, parts: list[zmq.Frame]) -> None:
        try:
            numbers = Numbers.of(decode_display([frame.buffer for frame in parts[1:]]).about)
        except SchemaError as error:
            log.warning("%s: not a snapshot: %s", self.name, error)
            return
        try:
            self._told(numbers)
        except Exception:  # whoever waits for the next numbers must not wait for ever
            log.exception("%s: what was told could not be taken", self.name)

    def stop(self, timeout_s: float = 5.0) -> None:
        """End the thread and wait for it."""
        self._over.set()
        if not self.ident:
            self._socket.close()
        elif self is not threading.current_thread():
            self.join(timeout_s)
