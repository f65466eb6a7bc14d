"""ptypy's interaction server, for its clients: a thread of its own, which nothing that comes can end or hold up.

What is asked is answered from the last snapshot (`Namespace`); what is to be done goes to the `Desk`, as any steering does.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from threading import Event, Thread
from typing import Any

import zmq

from ptystream.interaction.clients import MAX_WAITING, Client, Pool, Waiting
from ptystream.interaction.framing import MAX_HEADER_BYTES, FramingError, decode, encode
from ptystream.interaction.namespace import NAME, Namespace
from ptystream.interaction.paths import Assignment, Call, PathError, answer, order, path, question
from ptystream.params.interaction import ServerParameters
from ptystream.steering.desk import Desk, Role
from ptystream.steering.wire import Reply, Request
from ptystream.waker import Waker

log = logging.getLogger(__name__)

ATTEMPTS, STRIDE = 10, 20
"""Ports that are tried, and how far apart they lie."""
MAX_PARTS = 64
MAX_AT_ONCE = 100
"""Requests that are read before answers are sent again."""
LONGEST_S = 1.0
"""So long a question waits for a snapshot that its client has not seen yet; then it is answered from the one that is there."""
FAREWELL_S = 2.0
"""How long a server that closes goes on answering clients that have not asked since the session's end, so that they see it."""
LEAVE_S = 0.5
"""How long one that has seen it has to say DISCONNECT."""
MAX_NAME = 100
MAX_WARNINGS, MAX_TEXT = 100, 2000


class InteractionError(RuntimeError):
    """The socket cannot be opened; the text says which and why."""


class InteractionServer:
    """A REP socket for requests, and a PUB socket for each client that has connected."""

    def __init__(self, namespace: Namespace, desk: Desk, p: ServerParameters, *, role: Role = "operator") -> None:
        """`role`: what its clients may do; it cannot tell one from another. Raises `InteractionError`."""
        self._namespace, self._desk, self._p, self._role = namespace, desk, p, role
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.REP)
        self._socket.maxmsgsize = MAX_HEADER_BYTES
        self._socket.linger = 500
        self._socket.sndhwm = 4
        self.port = self._bind()
        self._pool = Pool(self.port, p.connections)
        self._clients: dict[str, Client] = {}
        self._answers: deque[tuple[str, Any, Reply]] = deque()
        self._waker, self._closing, self._poller = Waker(), Event(), zmq.Poller()
        self._done: dict[str, Callable[[str, Any], dict[str, Any]]] = {
            "CONNECT": self._connect,
            "DISCONNECT": self._disconnect,
            "SHUTDOWN": self._disconnect,
            "PING": lambda key, said: {"status": "pong"},
            "AVAIL": lambda key, said: {"status": "ok", "avail": [NAME]},
            "GET": self._get,
            "SET": self._set,
            "DO": self._do,
            "GETNOW": self._get_now,
        }
        self.failure: BaseException | None = None
        """What the thread died of."""
        self._warnings: deque[tuple[str, str]] = deque(maxlen=MAX_WARNINGS)
        """(ticket, text) of what the log said and clients are not told yet; the newest, where that is much."""
        self._listener = _Listener(self._warn)
        logging.getLogger("ptystream").addHandler(self._listener)
        namespace.ring = self._waker.wake
        self._thread = Thread(target=self._serve, name="interaction", daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        """Where clients connect."""
        return f"{self._p.address}:{self.port}"

    def close(self) -> None:
        """The session is over: clients are told so where they ask, then all sockets are closed. May be called twice."""
        if self._closing.is_set():
            return
        logging.getLogger("ptystream").removeHandler(self._listener)
        self._namespace.finish()
        self._closing.set()
        self._waker.wake()
        self._thread.join(FAREWELL_S + 5.0)
        self._namespace.ring = lambda: None
        self._context.term()
        self._waker.close()

    def _bind(self) -> int:
        ports = [port for port in range(self._p.port, self._p.port + ATTEMPTS * STRIDE, STRIDE) if port <= 65535]
        why = ""
        for port in ports:
            try:
                self._socket.bind(f"{self._p.address}:{port}")
                return port
            except zmq.ZMQError as error:
                why = zmq.strerror(error.errno or 0)
        self._context.destroy(linger=0)
        tried = ", ".join(str(port) for port in ports)
        raise InteractionError(f"io.interaction.server: {self._p.address}, ports {tried}: {why}; choose another port")

    # ------------------------------------------------------------------ the thread

    def _serve(self) -> None:
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._waker.fileno(), zmq.POLLIN)
        checked = time.monotonic()
        try:
            while not self._is_over():
                if self._waker.fileno() in dict(self._poller.poll(self._patience_ms(checked))):
                    self._waker.clear()
                for _ in range(MAX_AT_ONCE):
                    if not self._socket.poll(0):
                        break
                    self._take()
                for client in self._clients.values():
                    client.look()
                self._tell()
                now = time.monotonic()
                if now - checked >= self._p.pinginterval:
                    checked = now
                    for client in [c for c in self._clients.values() if c.is_gone(now, self._p.pingtimeout)]:
                        log.info("interaction: %s (%s) was not heard of any more", client.name, client.id)
                        self._drop(client)
        except BaseException as error:  # the session goes on without it
            self.failure = error
            log.exception("%s: nobody can ask any more", self.endpoint)
        finally:
            self._namespace.wanted = False
            for client in self._clients.values():
                client.socket.close()
            self._socket.close()

    def _is_over(self) -> bool:
        """Whether it is to close, and everybody who listens has seen the end and left, or has had time to."""
        if not self._closing.is_set():
            return False
        listening = [client for client in self._clients.values() if client.listens]
        told = [client.told_of_the_end for client in listening if client.told_of_the_end is not None]
        seen = len(told) == len(listening) and time.monotonic() - max(told, default=0.0) > LEAVE_S
        return not listening or seen or self._namespace.stopped_s() > FAREWELL_S

    def _patience_ms(self, checked: float) -> int | None:
        """How long nothing is to be done unless something comes; None: as long as it takes."""
        now = time.monotonic()
        due = [self._due(client) for client in self._clients.values() if client.waiting and client.listens]
        if self._clients:
            due.append(checked + self._p.pinginterval)
        if self._closing.is_set():
            due.append(now + 0.1)
        return None if not due else int(max(0.0, 1000.0 * (min(due) - now))) + 1

    def _due(self, client: Client) -> float:
        """When what a client waits for is to be answered: a little later than the first question, for those that come with it."""
        since, is_new = client.waiting[0].since, client.answered != self._namespace.number or self._closing.is_set()
        return since + (self._p.poll_timeout / 1000.0 if is_new else max(LONGEST_S, self._p.poll_timeout / 1000.0))

    def _tell(self) -> None:
        """Answer what is due."""
        now, is_last = time.monotonic(), self._closing.is_set()
        while self._answers:
            key, ticket, reply = self._answers.popleft()
            if key in self._clients:
                status = "ok" if reply.fault is None else f"Error: {reply.fault}"
                self._clients[key].publish({"ticket": ticket, "status": status, "out": reply.value})
        while self._warnings:
            ticket, text = self._warnings.popleft()
            for client in self._clients.values():
                if client.listens:
                    client.publish({"ticket": ticket, "status": "ok", "out": text})
        for client in self._clients.values():
            if not client.waiting or not client.listens or self._due(client) > now:
                continue
            client.answered, view = self._namespace.view()
            while client.waiting:
                waiting = client.waiting.popleft()
                client.publish({"ticket": waiting.ticket, **_answered(waiting.asked, view)})
            if is_last and client.told_of_the_end is None:
                client.told_of_the_end = now

    def _take(self) -> None:
        """Read one request and reply to it, whatever it is."""
        parts: list[bytes] = []
        while True:
            part = self._socket.recv(copy=True)
            if len(parts) < MAX_PARTS:
                parts.append(part)
            if not self._socket.getsockopt(zmq.RCVMORE):
                break
        try:
            reply = self._replied(decode(parts))
            sent = encode(reply)
        except (FramingError, PathError) as error:
            sent = encode(_refusal(str(error)))
        except Exception as error:
            log.exception("interaction: a request failed")
            sent = encode(_refusal(f"failed: {type(error).__name__}"))
        self._socket.send_multipart(sent, copy=False)  # a REP drops what nobody takes; it never waits

    def _replied(self, request: Any) -> dict[str, Any]:
        if not isinstance(request, dict):
            raise PathError("a request is a map of ID, cmd and args")
        command, key = request.get("cmd"), request.get("ID")
        do = self._done.get(command) if isinstance(command, str) else None
        if do is None:
            raise PathError(f"cmd {command!r:.60}: is unknown; there are {', '.join(self._done)}")
        client = self._clients.get(key) if isinstance(key, str) else None
        if client is not None:
            client.heard = time.monotonic()
            client.has_pinged |= command == "PING"
        return do("" if client is None else client.id, request.get("args"))

    # ------------------------------------------------------------------ commands

    def _connect(self, key: str, said: Any) -> dict[str, Any]:
        name = said.get("name") if isinstance(said, Mapping) else None
        name = name[:MAX_NAME] if isinstance(name, str) else "somebody"
        client = self._pool.take(self._context, self._p.address, name)
        if client is None:
            return {"ID": None, "port": None, **_refusal(f"no more than {self._p.connections} clients can be connected")}
        self._clients[client.id] = client
        self._poller.register(client.socket, zmq.POLLIN)
        self._namespace.wanted = True
        log.info("interaction: %r connected as %s on port %d", name, client.id, client.port)
        return {"status": "ok", "ID": client.id, "port": client.port}

    def _disconnect(self, key: str, said: Any) -> dict[str, Any]:
        """Of SHUTDOWN too: a session that others use is not ended by one of them."""
        self._drop(self._known(key))
        return {"status": "ok"}

    def _drop(self, client: Client) -> None:
        del self._clients[client.id]
        self._poller.unregister(client.socket)
        client.socket.close(0)
        self._pool.give_back(client.port)
        self._namespace.wanted = bool(self._clients)

    def _known(self, key: str) -> Client:
        if not key:
            raise PathError("no client has this ID: CONNECT first")
        return self._clients[key]

    def _get_now(self, key: str, said: Any) -> dict[str, Any]:
        return _answered(question(_argument(said, "str")), self._namespace.view()[1])

    def _get(self, key: str, said: Any) -> dict[str, Any]:
        client, ticket = self._known(key), _ticket(said)
        try:
            asked = question(_argument(said, "str"))
            if len(client.waiting) >= MAX_WAITING:
                raise PathError(f"{MAX_WAITING} questions wait already; ask again later")
        except PathError as error:
            return self._refused(client, ticket, str(error))
        client.waiting.append(Waiting(ticket, asked, time.monotonic()))
        return {"status": "ok"}

    def _set(self, key: str, said: Any) -> dict[str, Any]:
        client, ticket = self._known(key), _ticket(said)
        try:
            asked = Assignment(path(_argument(said, "str")), _argument(said, "val"))
            return self._asked(client, ticket, "set", _assigned(asked))
        except PathError as error:
            return self._refused(client, ticket, str(error))

    def _do(self, key: str, said: Any) -> dict[str, Any]:
        client, ticket = self._known(key), _ticket(said)
        try:
            wanted = order(_argument(said, "str"))
            if isinstance(wanted, Call):
                return self._asked(client, ticket, wanted.name, wanted.arguments)
            return self._asked(client, ticket, "set", _assigned(wanted))
        except PathError as error:
            return self._refused(client, ticket, str(error))

    def _asked(self, client: Client, ticket: Any, action: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Hand it to the desk; what comes of it is published under the ticket."""
        if action == "set" and "set" not in self._desk.actions:
            raise PathError("no parameter of this session can be set while it runs")
        who = f"{client.name!r} ({client.id}, interaction)"
        self._desk.ask(Request(0, action, arguments), partial(self._answer, client.id, ticket), who=who, role=self._role)
        return {"status": "ok"}

    def _answer(self, key: str, ticket: Any, reply: Reply) -> None:
        """Called from any thread."""
        self._answers.append((key, ticket, reply))
        self._waker.wake()

    def _warn(self, ticket: str, text: str) -> None:
        """Called from any thread."""
        if self._clients:
            self._warnings.append((ticket, text))
            self._waker.wake()

    def _refused(self, client: Client, ticket: Any, why: str) -> dict[str, Any]:
        """ptypy's clients wait for the ticket, whatever the reply says: so it is published."""
        client.publish({"ticket": ticket, **_refusal(why)})
        return {"status": "ok"}


class _Listener(logging.Handler):
    """Hands on what the log warns of, as ptypy's tickets WARN and ERROR."""

    def __init__(self, warn: Callable[[str, str], None]) -> None:
        super().__init__(logging.WARNING)
        self._warn = warn

    def emit(self, record: logging.LogRecord) -> None:
        """Of one line; what happens here happens in the thread that warns."""
        told = record.levelno in (logging.WARNING, logging.ERROR, logging.CRITICAL)
        if told and not record.name.startswith(__package__):  # of clients themselves: it could go on for ever
            ticket = "WARN" if record.levelno == logging.WARNING else "ERROR"
            self._warn(ticket, record.getMessage()[:MAX_TEXT])


def _answered(asked: Any, view: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return {"status": "ok", "out": answer(asked, view)}
    except PathError as error:
        return _refusal(str(error))


def _refusal(why: str) -> dict[str, Any]:
    return {"status": f"Error: {why}", "out": None}


def _argument(said: Any, name: str) -> Any:
    if not isinstance(said, Mapping) or name not in said:
        raise PathError(f"args: a map with {name!r} is needed")
    return said[name]


def _ticket(said: Any) -> Any:
    ticket = _argument(said, "ticket")
    short = isinstance(ticket, str) and len(ticket) <= MAX_NAME
    if not short and (type(ticket) is not int or abs(ticket) >= 1 << 63):
        raise PathError("ticket: a number or a short text is needed")
    return ticket


def _assigned(asked: Assignment) -> dict[str, Any]:
    """What the desk's `set` is asked with: the parameter's path in the tree."""
    names = asked.path.names
    if names is None or names[:2] != (NAME, "p") or len(names) < 3:
        raise PathError(f"only parameters can be set: {NAME}.p.…")
    return {"path": ".".join(names[2:]), "value": asked.value}
