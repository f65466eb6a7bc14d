"""Publishes snapshots: newest wins, a late joiner gets the last one at once, a viewer that hangs costs nothing.

One XPUB socket in a thread of its own. Topics are '<form>/<run>\\0'; a form is only encoded while somebody subscribes to it.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import Counter

import zmq

from ptystream.publish.display import with_ramps
from ptystream.publish.schema import FORMS, encode, topic
from ptystream.publish.snapshot import Snapshot

QUEUE = 2
"""Snapshots queued for one viewer; further ones are dropped for it alone."""


class PublisherError(RuntimeError):
    """The publisher cannot start, or its thread died."""


def topic_of(form: str, run: str = "") -> bytes:
    """What to subscribe to: one run's snapshots in one form, or with an empty name all runs'."""
    return form.encode() + b"/" + (topic(run) if run else b"")


class Publisher:
    """Owns the publish socket. `offer` may be called from any thread and does not wait."""

    def __init__(self, address: str = "tcp://127.0.0.1:*", *, insecure: bool = False) -> None:
        loopback = any(word in address for word in ("127.0.0.1", "localhost", "[::1]", "ipc://", "inproc://"))
        if not loopback and not insecure:
            raise PublisherError(
                f"io.publish.address: {address!r}: beyond loopback everybody could look; use 127.0.0.1, or set "
                "io.publish.insecure: true"
            )
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.XPUB)
        self._socket.sndhwm = QUEUE
        self._socket.linger = 500
        self._socket.setsockopt(zmq.XPUB_VERBOSER, 1)
        try:
            self._socket.bind(address)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise PublisherError(f"io.publish.address: {address!r}: {error.strerror}") from error
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.viewers = 0
        """Subscriptions that are open."""
        self.failure: BaseException | None = None
        self._lock = threading.Lock()
        self._newest: Snapshot | None = None
        self._closed = False
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        self._thread = threading.Thread(target=self._serve, name="publisher", daemon=True)
        self._thread.start()

    def offer(self, snapshot: Snapshot) -> None:
        """Publish this one next; one that was offered before and is not out yet is forgotten."""
        if self.failure is not None:
            raise PublisherError(f"{self.endpoint}: the publisher's thread died: {self.failure}") from self.failure
        with self._lock:
            self._newest = snapshot
        self._wake()

    def close(self) -> None:
        """Send what was offered last and close. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self._wake()
        self._thread.join(5.0)
        self._context.term()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # a full pipe has woken it already
            os.write(self._wake_write, b"x")

    def _serve(self) -> None:
        subscriptions: Counter[bytes] = Counter()
        last: dict[str, Snapshot] = {}
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wake_read, zmq.POLLIN)
        try:
            while True:
                ready = dict(poller.poll(1000))
                if self._wake_read in ready:
                    os.read(self._wake_read, 4096)
                asked = []
                while self._socket.poll(0):
                    word = self._socket.recv()
                    subscriptions[word[1:]] += 1 if word[:1] == b"\1" else -1
                    if word[:1] == b"\1":
                        asked.append(word[1:])
                self.viewers = sum(count for count in subscriptions.values() if count > 0)
                with self._lock:
                    snapshot, self._newest = self._newest, None
                if snapshot is not None:
                    snapshot = with_ramps(snapshot)
                    last = {snapshot.run: snapshot}
                    self._send(snapshot, [t for t, count in subscriptions.items() if count > 0])
                else:
                    for held in last.values():
                        self._send(held, asked)
                if self._closed and self._newest is None:
                    return
        except BaseException as error:
            self.failure = error
        finally:
            self._socket.close()

    def _send(self, snapshot: Snapshot, wanted: list[bytes]) -> None:
        for form in FORMS:
            name = topic_of(form, snapshot.run)
            if any(name.startswith(subscription) for subscription in wanted):
                self._socket.send_multipart([name, *encode(snapshot, form)], copy=False)
