"""Gives the documents of runs to whoever wants them: a file, a socket, callbacks. A thread of its own; nothing waits for it."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import msgpack
import zmq

from ptystream.publish.documents import Facts, RunDocuments
from ptystream.run import Run
from ptystream.security import check_listening, secure, stop
from ptystream.wiring import Plan

log = logging.getLogger(__name__)

MAX_RUNS = 1000
"""Runs that wait to be told of; further ones are counted as failed."""
CLOSE_S = 10.0
"""How long the end of a session waits for the last documents."""
LINGER_MS = 1000
Callback = Callable[[str, dict[str, Any]], object]


class DocumentsError(RuntimeError):
    """Documents cannot go where they are to go."""


class Sink(Protocol):
    """Takes documents; everything is called in one thread."""

    def put(self, name: str, document: dict[str, Any]) -> None:
        """Take one. Raises `OSError` where it cannot."""

    def close(self) -> None:
        """No more will come."""


class Lines:
    """JSON lines, each [name, document], appended to a file."""

    def __init__(self, path: Path) -> None:
        """Raises `DocumentsError` where the file cannot be written."""
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise DocumentsError(f"io.documents.file: {path}: {error.strerror}") from error

    def put(self, name: str, document: dict[str, Any]) -> None:
        """One line, which another process can read at once."""
        self._file.write(as_json([name, document]) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):  # what could not be written was told
            self._file.close()


class Published:
    """A ZeroMQ publisher: messages `prefix name body`, which Bluesky's RemoteDispatcher takes."""

    def __init__(
        self,
        address: str,
        *,
        bind: bool = True,
        form: str = "msgpack",
        prefix: str = "",
        keys: str | None = None,
        peer_keys: str | None = None,
        insecure: bool = False,
    ) -> None:
        """`keys`, `peer_keys`: CURVE certificates as of `ptystream.security.secure`. Raises `DocumentsError`."""
        self._prefix, self._pack = prefix.encode(), _packed if form == "msgpack" else lambda d: as_json(d).encode()
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.PUB)
        self._socket.linger = LINGER_MS
        self._authenticator = None
        try:
            if bind:
                check_listening(address, keys, insecure)
            self._authenticator = secure(self._context, self._socket, bind, keys, peer_keys)
            (self._socket.bind if bind else self._socket.connect)(address)
        except (ValueError, zmq.ZMQError) as error:
            stop(self._authenticator)
            self._context.destroy(linger=0)
            why = error.strerror if isinstance(error, zmq.ZMQError) else str(error)
            raise DocumentsError(f"io.documents.address: {address!r}: {why}") from error
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def put(self, name: str, document: dict[str, Any]) -> None:
        """Send one; who does not keep up loses it."""
        self._socket.send(b" ".join((self._prefix, name.encode(), self._pack(document))))

    def close(self) -> None:
        """Close the socket; what was sent last has a second to go."""
        self._socket.close()
        stop(self._authenticator)
        self._context.term()


@dataclass(slots=True)
class _Waiting:
    """What is to be told of one run: the newest facts, whatever came before them."""

    facts: Facts
    path: Path | None = None
    over: bool = False


class Documents:
    """Makes and gives out the documents of a session's runs. `tell`, `saved` and `over` are called by the engine's thread."""

    def __init__(
        self,
        sinks: Sequence[Sink] = (),
        interval_s: float = 1.0,
        count: Callable[[str, bool], None] = lambda place, done: None,
    ) -> None:
        """`count('documents', done)` is called for each run that is over."""
        self._sinks, self.interval_s, self._count = list(sinks), interval_s, count
        self._callbacks: dict[int, Callback] = {}
        self._number = 0
        self._due: dict[str, float] = {}
        self._paths: dict[str, Path] = {}
        self._lock, self._waiting = threading.Condition(), dict[str, _Waiting]()
        self._runs: dict[str, RunDocuments] = {}
        self._failed: set[str] = set()
        """Runs of which a document did not go everywhere."""
        self._said: set[str] = set()
        self._closed = False
        self.failure: BaseException | None = None
        """Why no document is made any more; None while they are."""
        self._thread = threading.Thread(target=self._serve, name="documents", daemon=True)
        self._thread.start()

    def beside(self, plan: Plan) -> Plan:
        """The plan of whose results documents tell where they lie."""

        def save(run: Run) -> Path | None:
            path = plan.save(run)
            if path is not None:
                self.saved(run, path)
            return path

        return replace(plan, save=save)

    def subscribe(self, callback: Callback) -> Callable[[], None]:
        """Call `callback(name, document)` for each document from now on, in the documents' thread; returns what ends that. What
        it raises is logged, and ends nothing."""
        with self._lock:
            self._number += 1
            number = self._number
            self._callbacks[number] = callback

        def unsubscribe() -> None:
            with self._lock:
                self._callbacks.pop(number, None)

        return unsubscribe

    def tell(self, run: Run) -> None:
        """A run is being reconstructed. Does nothing before `interval_s` is over; does not wait."""
        now = time.monotonic()
        if run.state == "waiting" or now < self._due.get(run.uid, 0.0):
            return
        self._due[run.uid] = now + self.interval_s
        self._put(_Waiting(Facts.of(run)))

    def saved(self, run: Run, path: Path) -> None:
        """A result was written; the last one is what the documents refer to."""
        self._paths[run.uid] = path

    def over(self, run: Run) -> None:
        """Nothing more will come of a run. One for which nothing came is not told of."""
        path, told = self._paths.pop(run.uid, None), self._due.pop(run.uid, None) is not None
        if told or run.ledger().get("received"):
            self._put(_Waiting(Facts.of(run), path, over=True))

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Wait for what is still to be told. May be called twice."""
        with self._lock:
            self._closed = True
            self._lock.notify()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            log.error("documents of the last runs are still being written: the session ends without them")

    def _put(self, waiting: _Waiting) -> None:
        with self._lock:
            dead = self.failure is not None
            if dead or (waiting.facts.uid not in self._waiting and len(self._waiting) >= MAX_RUNS):
                if waiting.over or not dead:
                    self._count("documents", False)
                return
            self._waiting[waiting.facts.uid] = waiting
            self._lock.notify()

    def _serve(self) -> None:
        waiting: dict[str, _Waiting] = {}
        try:
            while True:
                with self._lock:
                    self._lock.wait_for(lambda: self._waiting or self._closed)
                    waiting, self._waiting = self._waiting, {}
                    if not waiting:
                        return
                while waiting:
                    uid, told = next(iter(waiting.items()))
                    try:
                        self._tell(uid, told)
                    except Exception as error:  # a document that cannot be made is no reason to make no further ones
                        self._fail(uid, f"{type(error).__name__}: {error}")
                    if told.over:
                        self._count("documents", uid not in self._failed)
                        self._runs.pop(uid, None)
                        self._failed.discard(uid)
                    del waiting[uid]
        except BaseException as error:  # the session goes on without it
            with self._lock:
                self.failure, behind = error, self._waiting
                self._waiting = {}
            log.exception("documents: none are made any more")
            for told in (waiting | behind).values():
                if told.over:
                    self._count("documents", False)
        finally:
            for sink in self._sinks:
                with contextlib.suppress(Exception):  # the others are closed all the same
                    sink.close()

    def _tell(self, uid: str, told: _Waiting) -> None:
        if uid not in self._runs:
            self._runs[uid] = RunDocuments(told.facts)
            for name, document in self._runs[uid].begin():
                self._give(uid, name, document)
        documents = self._runs[uid]
        for name, document in documents.end(told.facts, told.path) if told.over else documents.progress(told.facts):
            self._give(uid, name, document)

    def _give(self, uid: str, name: str, document: dict[str, Any]) -> None:
        for sink in self._sinks:
            try:
                sink.put(name, document)
            except (OSError, ValueError, zmq.ZMQError) as error:
                self._fail(uid, f"{type(sink).__name__}: {error}")
        with self._lock:
            callbacks = list(self._callbacks.values())
        for callback in callbacks:
            try:
                callback(name, document)
            except Exception:
                self._failed.add(uid)
                log.exception("a callback for documents failed with a %s", name)

    def _fail(self, uid: str, why: str) -> None:
        self._failed.add(uid)
        if why not in self._said and len(self._said) < MAX_RUNS:
            self._said.add(why)
            log.error("documents: %s", why)


def as_json(value: Any) -> str:
    """JSON that every reader takes: what is no number is null."""
    return json.dumps(_without_nan(value), allow_nan=False, default=str)


def _packed(document: Mapping[str, Any]) -> bytes:
    packed: bytes = msgpack.packb(document, default=str)
    return packed


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _without_nan(held) for key, held in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(held) for held in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
