"""Publishes snapshots: newest wins, a late joiner gets the last one at once, a viewer that hangs costs nothing.

One XPUB socket in a thread of its own. Topics are '<form>/<run>\\0'; a form is only encoded while somebody subscribes to it.
Once a second the thread says that it lives (`heartbeat`), whatever the engine does meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence

import zmq

from ptystream.publish import heartbeat
from ptystream.publish.display import with_ramps
from ptystream.publish.heartbeat import ALIVE, ENDED, INTERVAL_S, Heartbeat, RunBeat, RunBeats
from ptystream.publish.schema import FORMS, encode, topic
from ptystream.publish.snapshot import Snapshot
from ptystream.security import check_listening, secure, stop
from ptystream.waker import Waker

QUEUE = 2
"""Snapshots queued for one viewer; further ones are dropped for it alone."""
RETRY_S, LONGEST_RETRY_S = 0.25, 8.0
"""ZeroMQ drops the newest for a viewer whose queue is full, and does not say when there is room again. Once that has happened,
the last snapshot is sent again whenever nothing newer comes, after pauses that double: to a viewer that has caught up it is the
newest, others know it by its number."""
LAST_S = 1.0
"""For how long a closing publisher does that."""


RUNS_KEPT = 2
"""Runs whose last snapshot late joiners get: the newest, and the one before, whose end may still be looked at."""
MAX_SUBSCRIPTIONS = 10_000
"""Different topics that are remembered, and subscriptions that are read at a time."""
MAX_SUBSCRIPTION_BYTES = 1024
"""Whoever sends more to the publisher is disconnected."""


class PublisherError(RuntimeError):
    """The publisher cannot start, or its thread died."""


def topic_of(form: str, run: str = "") -> bytes:
    """What to subscribe to: one run's snapshots in one form, or with an empty name all runs'."""
    return form.encode() + b"/" + (topic(run) if run else b"")


class Publisher:
    """Owns the publish socket. `offer` may be called from any thread and does not wait."""

    def __init__(
        self,
        address: str = "tcp://127.0.0.1:*",
        *,
        keys: str | None = None,
        peer_keys: str | None = None,
        insecure: bool = False,
    ) -> None:
        """`keys`, `peer_keys`: CURVE certificates as of `ptystream.security.secure`."""
        try:
            check_listening(address, keys, insecure)
        except ValueError as error:
            raise PublisherError(f"io.publish: {error}") from error
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.XPUB)
        self._socket.sndhwm = QUEUE
        self._socket.maxmsgsize = MAX_SUBSCRIPTION_BYTES
        self._socket.linger = 500
        self._socket.setsockopt(zmq.XPUB_VERBOSER, 1)
        self._socket.setsockopt(zmq.XPUB_NODROP, 1)
        self._authenticator = None
        try:
            self._authenticator = secure(self._context, self._socket, True, keys, peer_keys)
            self._socket.bind(address)
        except (ValueError, zmq.ZMQError) as error:
            stop(self._authenticator)
            self._context.destroy(linger=0)
            why = error.strerror if isinstance(error, zmq.ZMQError) else str(error)
            raise PublisherError(f"io.publish.address: {address!r}: {why}") from error
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.viewers = 0
        """Subscriptions to snapshots that are open."""
        self.runs: RunBeats | None = None
        """Tells, from any thread and at once, how far the runs are; None: as far as the last snapshots say."""
        self.failure: BaseException | None = None
        self._dropped = False
        self._beats, self._beat_due, self._started_ns = 0, 0.0, time.time_ns()
        self._lock = threading.Lock()
        self._newest: dict[str, Snapshot] = {}
        self._closed, self._waker = False, Waker()
        self._thread = threading.Thread(target=self._serve, name="publisher", daemon=True)
        self._thread.start()

    def offer(self, snapshot: Snapshot) -> None:
        """Publish this one next; one that was offered before and is not out yet is forgotten."""
        if self.failure is not None:
            raise PublisherError(f"{self.endpoint}: the publisher's thread died: {self.failure}") from self.failure
        with self._lock:
            self._newest[snapshot.run] = snapshot
        self._waker.wake()

    def close(self) -> None:
        """Send what was offered last and close. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self._waker.wake()
        self._thread.join(5.0)
        stop(self._authenticator)
        self._context.term()
        self._waker.close()

    def _serve(self) -> None:
        subscriptions: Counter[bytes] = Counter()
        last: dict[str, Snapshot] = {}
        pause, due = RETRY_S, 0.0
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._waker.fileno(), zmq.POLLIN)
        try:
            while True:
                now = time.monotonic()
                wait = min([self._beat_due - now] + ([due - now] if self._dropped else []))
                if self._waker.fileno() in dict(poller.poll(int(1000 * max(0.0, wait)) + 1)):
                    self._waker.clear()
                asked = []
                for _ in range(MAX_SUBSCRIPTIONS):
                    if not self._socket.poll(0):
                        break
                    word = self._socket.recv()
                    if word[:1] == b"\1" and (word[1:] in subscriptions or len(subscriptions) < MAX_SUBSCRIPTIONS):
                        subscriptions[word[1:]] += 1
                        asked.append(word[1:])
                    elif word[:1] == b"\0" and subscriptions[word[1:]] > 1:
                        subscriptions[word[1:]] -= 1
                    elif word[:1] == b"\0":
                        del subscriptions[word[1:]]
                everyone = list(subscriptions)
                self.viewers = subscriptions.total() - subscriptions[heartbeat.TOPIC]
                if heartbeat.TOPIC in asked or time.monotonic() >= self._beat_due:
                    self._beat(last)
                with self._lock:
                    fresh, self._newest = self._newest, {}
                if asked and fresh:  # who has just come gets what is kept of other runs too, the older first
                    older = [run for run in last if run not in fresh]
                    for run in older[len(older) - min(len(older), max(0, RUNS_KEPT - len(fresh))) :]:
                        self._send(last[run], asked)
                for run, snapshot in fresh.items():
                    last.pop(run, None)
                    last[run] = with_ramps(snapshot)
                    self._send(last[run], everyone)
                for run in list(last)[:-RUNS_KEPT]:
                    del last[run]
                if fresh:
                    pause, due = RETRY_S, time.monotonic() + RETRY_S
                elif self._dropped and time.monotonic() >= due:
                    self._send_all(last, everyone)
                    pause = min(2 * pause, LONGEST_RETRY_S)
                    due = time.monotonic() + pause
                elif asked:
                    self._send_all(last, asked)
                if self._closed and not self._newest:
                    if self._dropped:
                        self._send_to_slow_ones(last, everyone)
                    self._beat(last, ENDED)
                    return
        except BaseException as error:
            self.failure = error
        finally:
            self._socket.close()

    def _send_all(self, last: dict[str, Snapshot], wanted: list[bytes]) -> None:
        for snapshot in last.values():
            self._send(snapshot, wanted)

    def _send(self, snapshot: Snapshot, wanted: list[bytes]) -> None:
        """To every viewer that has room; remembers if one had none."""
        for form in FORMS:
            name = topic_of(form, snapshot.run)
            if not any(name.startswith(subscription) for subscription in wanted):
                continue
            if not self._put([name, *encode(snapshot, form)]):
                self._dropped = True

    def _put(self, parts: Sequence[bytes | memoryview]) -> bool:
        """Send; False where some viewer had no room, and all others have it."""
        try:
            self._socket.send_multipart(parts, zmq.NOBLOCK, copy=False)
        except zmq.Again:
            self._socket.setsockopt(zmq.XPUB_NODROP, 0)
            self._socket.send_multipart(parts, copy=False)
            self._socket.setsockopt(zmq.XPUB_NODROP, 1)
            return False
        return True

    def _beat(self, last: dict[str, Snapshot], state: str = ALIVE) -> None:
        """Say that it lives, or goodbye."""
        if self.runs is not None:
            runs = tuple(self.runs())
        else:
            runs = tuple(RunBeat(shown.run, shown.state, shown.iteration) for shown in last.values())
        self._put(heartbeat.encode(Heartbeat(self._beats, time.time_ns(), self._started_ns, state, runs)))
        self._beats += 1
        self._beat_due = time.monotonic() + INTERVAL_S

    def _send_to_slow_ones(self, last: dict[str, Snapshot], wanted: list[bytes]) -> None:
        """Before the end: a little time for viewers whose queue was full, so that they see the last picture too."""
        deadline = time.monotonic() + LAST_S
        while time.monotonic() < deadline:
            time.sleep(RETRY_S)  # ZeroMQ tells no event for "there is room again"
            self._send_all(last, wanted)
