"""Who is connected to the interaction server: a name, a port with a PUB socket of their own, and what they wait for."""

from __future__ import annotations

import secrets
import string
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import zmq

from ptystream.interaction.framing import FramingError, encode
from ptystream.interaction.paths import Question

LETTERS = string.ascii_uppercase + string.digits
MAX_WAITING = 200
"""Questions of one client that wait for a snapshot; further ones are refused."""
MAX_BEHIND_BYTES = 512 << 20
"""What one client may leave unread; it is told no more until it has read."""
MAX_SUBSCRIPTIONS = 100
TOO_SLOW = f"Error: more than {MAX_BEHIND_BYTES >> 20} MiB were sent to this client and not read"


@dataclass(slots=True)
class Waiting:
    """A question, until there is a snapshot to answer it from."""

    ticket: Any
    asked: Question
    since: float


@dataclass(slots=True)
class Client:
    """One that has said CONNECT."""

    id: str
    name: str
    port: int
    socket: zmq.Socket[bytes]
    heard: float
    """When it last said anything."""
    has_pinged: bool = False
    listens: bool = False
    """Whether it has subscribed: what is published before that is lost."""
    answered: int = -1
    """Number of the state that its last answers were made of."""
    told_of_the_end: float | None = None
    """When it was answered after the session's end."""
    waiting: deque[Waiting] = field(default_factory=deque)
    held: deque[dict[str, Any]] = field(default_factory=deque)
    """Messages for it, until it listens."""
    unread: deque[tuple[Any, int]] = field(default_factory=deque)

    def look(self) -> None:
        """Take note of whether it listens."""
        for _ in range(MAX_SUBSCRIPTIONS):
            if not self.socket.poll(0):
                break
            word = self.socket.recv()[:1]
            self.listens = word == b"\1" or (self.listens and word != b"\0")
        while self.listens and self.held:
            self.publish(self.held.popleft())

    def publish(self, message: dict[str, Any]) -> None:
        """Send it, once the client listens. Arrays are not copied, and those that it does not read are bounded."""
        if not self.listens:
            if len(self.held) < 2 * MAX_WAITING:
                self.held.append(message)
            return
        while self.unread and self.unread[0][0].done:
            self.unread.popleft()
        try:
            parts = encode(message)
        except FramingError as error:
            parts = encode({"ticket": message["ticket"], "status": f"Error: {error}", "out": None})
        size = sum(memoryview(part).nbytes for part in parts)
        if self.unread and sum(behind for _, behind in self.unread) + size > MAX_BEHIND_BYTES:
            parts = encode({"ticket": message["ticket"], "status": TOO_SLOW, "out": None})
        for k, part in enumerate(parts):
            more = zmq.SNDMORE if k + 1 < len(parts) else 0
            tracker = self.socket.send(part, more, copy=False, track=True)
            if not tracker.done:
                self.unread.append((tracker, memoryview(part).nbytes))

    def is_gone(self, now: float, patience_s: float) -> bool:
        """Whether nothing was heard of it for so long; of one that never pings, whether it listens counts."""
        return now - self.heard > patience_s and (self.has_pinged or not self.listens)


CLOSING_S = 0.5
"""How long a client waits at most for a port that another has just left."""


class Pool:
    """The ports beside the server's, each with the ID of who gets it next. Taken from the end, as ptypy does."""

    def __init__(self, port: int, connections: int) -> None:
        self._free: list[tuple[str, int]] = []
        for number in range(port + 1, port + connections + 1):
            self.give_back(number)

    def give_back(self, port: int) -> None:
        """A port is free again, under a new ID."""
        self._free.append(("".join(secrets.choice(LETTERS) for _ in range(6)), port))

    def take(self, context: zmq.Context[Any], address: str, name: str) -> Client | None:
        """A client on the next port that is free; None where none is left."""
        deadline = time.monotonic() + CLOSING_S
        while True:
            for k in reversed(range(len(self._free))):
                socket: zmq.Socket[bytes] = context.socket(zmq.XPUB)
                socket.linger = 500
                socket.sndhwm = 2 * MAX_WAITING
                socket.maxmsgsize = 1024
                try:
                    socket.bind(f"{address}:{self._free[k][1]}")
                except zmq.ZMQError:  # somebody else's now; it may be free later
                    socket.close(0)
                    continue
                key, port = self._free.pop(k)
                return Client(key, name, port, socket, time.monotonic())
            if not self._free or time.monotonic() > deadline:
                return None
            time.sleep(0.01)  # ZeroMQ gives a port back some time after its socket was closed, and tells no event of it
