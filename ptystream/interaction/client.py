"""A client of ptypy's interaction wire, with the methods of ptypy's own: for a session of ours, or a reconstruction of ptypy."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from concurrent.futures import Future
from types import TracebackType
from typing import Any

import zmq

from ptystream.events import Buffer
from ptystream.interaction.framing import FramingError, decode, encode
from ptystream.params.interaction import ClientParameters
from ptystream.waker import Waker

MAX_PART_BYTES = 1 << 32
LOOK_MS = 50
FAREWELL_S = 2.0
"""How long a client that is stopped waits for a server that does not reply."""
MAX_KEPT = 10_000
"""Answers that are kept until somebody asks for them; the oldest are forgotten."""


class NoAnswer(RuntimeError):
    """The server refused, or was not there; the text says why."""


class Client:
    """Connects, pings, and keeps what comes: `data[ticket]` and `status[ticket]`, 'ok' or why not.

    >>> with Client(port=5560) as client:
    ...     home = client.get_now("Ptycho.p.io.home")
    ...     ticket = client.get("Ptycho.obj.S['SscanG00'].data")
    ...     client.wait(ticket)
    ...     image = client.data[ticket]
    """

    def __init__(self, parameters: ClientParameters | None = None, *, name: str = "Client", **more: Any) -> None:
        """`parameters`, or by name those of `io.interaction.client`. Raises `NoAnswer` where no server lets it in, and
        `ValueError` for parameters that cannot be right."""
        self.p = ClientParameters(**(parameters.model_dump() if parameters else {}) | more)
        self.data: dict[int, Any] = {}
        self.status: dict[int, str] = {}
        self.connected = False
        self.failure: str = ""
        """Why it is no longer connected."""
        self._patience_s = math.inf
        self._ticket, self._pending = 0, set[int]()
        self._changed, self._waker = threading.Condition(), Waker()
        self._inbox: deque[tuple[dict[str, Any], Future[dict[str, Any]]]] = deque()
        self._context = zmq.Context()
        self._requests: zmq.Socket[bytes] = self._context.socket(zmq.REQ)
        self._stream: zmq.Socket[bytes] = self._context.socket(zmq.SUB)
        for socket in (self._requests, self._stream):
            socket.linger, socket.maxmsgsize = 0, MAX_PART_BYTES
        try:
            self._requests.connect(f"{self.p.address}:{self.p.port}")
            self._id: str | None = None
            reply = self._asked("CONNECT", {"name": name})
            if reply.get("status") != "ok" or not isinstance(reply.get("ID"), str) or not isinstance(reply.get("port"), int):
                raise NoAnswer(f"{self.p.address}:{self.p.port}: {reply.get('status')}")
            self._id = reply["ID"]
            self._stream.connect(f"{self.p.address}:{reply['port']}")
            self._stream.setsockopt(zmq.SUBSCRIBE, b"")
        except (zmq.ZMQError, NoAnswer) as error:
            self._context.destroy(linger=0)
            self._waker.close()
            raise NoAnswer(str(error)) from error
        self.connected = True
        self._thread = threading.Thread(target=self._run, name="interaction client", daemon=True)
        self._thread.start()

    def get_now(self, text: str) -> Any:
        """The answer at once. Raises `NoAnswer`."""
        reply = self._command("GETNOW", {"str": text})
        if reply.get("status") != "ok":
            raise NoAnswer(str(reply.get("status")))
        return reply.get("out")

    def avail(self) -> list[str]:
        """Names of the objects that can be asked for. Raises `NoAnswer`."""
        return list(self._command("AVAIL", None).get("avail") or ())

    def get(self, text: str) -> int:
        """Ask for a value of the next state; returns the ticket under which it comes. Raises `NoAnswer`."""
        return self._queued("GET", text)

    def set(self, text: str, value: Any) -> int:
        """Assign a parameter; returns a ticket. Raises `NoAnswer`."""
        return self._queued("SET", text, val=value)

    def do(self, text: str) -> int:
        """Have something done; returns a ticket. Raises `NoAnswer`."""
        return self._queued("DO", text)

    def poll(self, ticket: int | None = None) -> bool:
        """Whether this ticket has been answered; None: whether all have."""
        return not self._pending if ticket is None else ticket not in self._pending

    def wait(self, ticket: int | None = None, timeout: float | None = None) -> bool:
        """Wait for the answer to a ticket, None: to all. False where it did not come within `timeout` seconds, or cannot any
        more."""
        with self._changed:
            self._changed.wait_for(lambda: self.poll(ticket) or not self.connected, timeout)
            return self.poll(ticket)

    def flush(self) -> None:
        """Forget all answers."""
        with self._changed:
            self.data, self.status = {}, {}

    def stop(self) -> None:
        """Say DISCONNECT and close. May be called twice."""
        self._patience_s = FAREWELL_S
        if self.connected:
            with contextlib.suppress(NoAnswer):
                self._command("DISCONNECT", None)
        self._end("it was stopped")
        self._thread.join(5.0)
        self._context.destroy(linger=0)
        self._waker.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        self.stop()

    def _queued(self, command: str, text: str, **more: Any) -> int:
        with self._changed:
            self._ticket += 1
            ticket = self._ticket
            self._pending.add(ticket)
        reply = self._command(command, {"ticket": ticket, "str": text, **more})
        if reply.get("status") != "ok":
            with self._changed:
                self._pending.discard(ticket)
            raise NoAnswer(str(reply.get("status")))
        return ticket

    def _command(self, command: str, arguments: Any) -> dict[str, Any]:
        """Have the thread ask, and wait for the reply."""
        if not self.connected:
            raise NoAnswer(f"not connected: {self.failure}")
        future: Future[dict[str, Any]] = Future()
        self._inbox.append(({"cmd": command, "args": arguments}, future))
        self._waker.wake()
        if not self.connected:  # the thread may have gone through the inbox for the last time
            self._end(self.failure)
        return future.result()

    # ------------------------------------------------------------------ the thread

    def _asked(self, command: str, arguments: Any) -> dict[str, Any]:
        """One request and its reply. Raises `NoAnswer`."""
        where = f"{self.p.address}:{self.p.port}"
        try:
            parts = encode({"ID": self._id, "cmd": command, "args": arguments})
        except FramingError as error:
            raise NoAnswer(f"{command}: {error}") from error
        self._requests.send_multipart(parts)
        asked = time.monotonic()
        while not self._requests.poll(LOOK_MS):
            if time.monotonic() - asked > min(self.p.connection_timeout / 1000.0, self._patience_s):
                self._end(f"{where}: no reply within {time.monotonic() - asked:.1f} s")
                raise NoAnswer(self.failure)
        reply = self._received(self._requests)
        if not isinstance(reply, dict):
            raise NoAnswer(f"{where}: what replies does not speak ptypy's wire")
        return reply

    def _received(self, socket: zmq.Socket[bytes]) -> Any:
        parts: list[Buffer] = [frame.buffer for frame in socket.recv_multipart(copy=False)]
        try:
            return decode(parts)
        except FramingError:
            return None

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._stream, zmq.POLLIN)
        poller.register(self._waker.fileno(), zmq.POLLIN)
        pinged = -self.p.pinginterval
        try:
            while self.connected:
                if time.monotonic() - pinged >= self.p.pinginterval:
                    pinged = time.monotonic()
                    self._asked("PING", None)
                ready = dict(poller.poll(int(self.p.poll_timeout)))
                if self._waker.fileno() in ready:
                    self._waker.clear()
                while self._inbox and self.connected:
                    said, future = self._inbox.popleft()
                    try:
                        future.set_result(self._asked(said["cmd"], said["args"]))
                    except NoAnswer as error:
                        future.set_exception(error)
                if self._stream in ready:
                    self._take(self._received(self._stream))
        except (zmq.ZMQError, NoAnswer) as error:
            self._end(str(error))
        finally:
            self._end(self.failure)

    def _take(self, message: Any) -> None:
        """What was published: an answer, or a word of the server to all."""
        if not isinstance(message, dict) or not isinstance(ticket := message.get("ticket"), int):
            return
        with self._changed:
            self.data[ticket], self.status[ticket] = message.get("out"), str(message.get("status"))
            self._pending.discard(ticket)
            while len(self.data) > MAX_KEPT:
                forgotten = next(iter(self.data))
                del self.data[forgotten], self.status[forgotten]
            self._changed.notify_all()

    def _end(self, why: str) -> None:
        """Nobody waits for it any more."""
        with self._changed:
            self.failure = self.failure or why
            self.connected = False
            self._changed.notify_all()
        with contextlib.suppress(IndexError):  # the last one may be taken by another thread
            while True:
                self._inbox.popleft()[1].set_exception(NoAnswer(f"not connected: {self.failure}"))
        self._waker.wake()
