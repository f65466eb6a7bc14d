"""Where requests wait for their turn: what only looks is answered at once, what changes something between two passes."""

from __future__ import annotations

import inspect
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias, TypeVar

from pydantic import ConfigDict, ValidationError, validate_call

from ptystream.steering.wire import Fault, Reply, Request

log = logging.getLogger(__name__)
audit = logging.getLogger("ptystream.audit")

ASKING: ContextVar[str] = ContextVar("asking", default="")
"""Who asked for the action that is being done."""
MAX_WAITING = 100
"""Requests that wait for the engine; further ones are refused."""
MAX_LATER = 16
"""Answers that are worked out or wait for it; further ones are refused."""

Role: TypeAlias = Literal["viewer", "operator"]
Answer: TypeAlias = Callable[[Reply], None]
Body = TypeVar("Body", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Later:
    """What an action returns that has copied what it needs: `work` makes the answer, in a thread of its own."""

    work: Callable[[], Any]


class Refused(Exception):
    """A request cannot be met: path, what was given, and a remedy."""

    def __init__(self, path: str, given: object, remedy: str) -> None:
        super().__init__(f"{path}: {remedy}")
        self.fault = Fault(path, "" if given is None else str(given)[:200], remedy)


@dataclass(frozen=True, slots=True)
class Kind:
    """How an action is done, as `action` declares it."""

    role: Role
    at_once: bool
    changes: bool


@dataclass(frozen=True)
class Action:
    """What may be asked."""

    name: str
    kind: Kind
    do: Callable[..., Any]

    @cached_property
    def checked(self) -> Callable[..., Any]:
        """The body, which raises `ValidationError` for arguments that it does not take."""
        return validate_call(config=ConfigDict(strict=True))(self.do)

    def described(self) -> dict[str, Any]:
        """For who asks what there is."""
        parameters = inspect.signature(self.do).parameters.values()
        takes = {p.name: {"type": str(p.annotation), "needed": p.default is p.empty} for p in parameters}
        return {"action": self.name, "role": self.kind.role, "with": takes, "doc": inspect.getdoc(self.do) or ""}


def action(role: Role = "operator", *, at_once: bool = False, changes: bool = True) -> Callable[[Body], Body]:
    """Declare a method as an action that those with this role may ask for.

    `at_once`: it is thread-safe and short, and need not wait for the engine. `changes`: it leaves a line in the audit.
    """

    def declare(body: Body) -> Body:
        body.kind = Kind(role, at_once, changes)  # type: ignore[attr-defined]
        return body

    return declare


def actions_of(actor: object) -> dict[str, Action]:
    """The methods of an object that are declared as actions."""
    found = {}
    for name, body in inspect.getmembers(actor, callable):
        if isinstance(kind := getattr(body, "kind", None), Kind):
            found[name] = Action(name, kind, body)
    return found


class Desk:
    """Takes requests from any thread, and has them done in the engine's."""

    def __init__(
        self, actor: object, ring: Callable[[], None] = lambda: None, count: Callable[[bool], None] = lambda done: None
    ) -> None:
        """`ring` wakes the engine's thread, where `serve` is then called. `count` is told of each request whether it was done."""
        self.actions: Mapping[str, Action] = actions_of(actor)
        self._ring, self._count, self._lock = ring, count, threading.Lock()
        self._waiting: deque[tuple[Request, Action, str, Answer]] = deque()
        self._closed = ""
        self._worker: ThreadPoolExecutor | None = None
        self._later = 0

    def ask(self, request: Request, answer: Answer, *, who: str = "", role: Role = "operator") -> None:
        """Have `answer` called once, in this thread or in the engine's; neither may be held up by it."""
        answer = self._counted(answer)
        asked = self.actions.get(request.action)
        if asked is None:
            known = ", ".join(sorted(self.actions))
            answer(Reply(request.id, fault=Fault("action", request.action, f"is unknown; there are {known}")))
            return
        if asked.kind.role == "operator" and role != "operator":
            remedy = "only operators may: ask with the keys of one (io.steering.operators)"
            audit.warning("%s", one_line(f"{who or 'somebody'}: {request.action} refused: not an operator"))
            answer(Reply(request.id, fault=Fault(request.action, "", remedy)))
            return
        if asked.kind.at_once:
            self._give(self._done(request, asked, who), answer)
            return
        with self._lock:
            why = self._closed or ("busy" if len(self._waiting) >= MAX_WAITING else "")
            if not why:
                self._waiting.append((request, asked, who, answer))
        if why:
            remedy = why if self._closed else f"{MAX_WAITING} requests wait for the engine already; ask again later"
            answer(Reply(request.id, fault=Fault(request.action, "", remedy)))
            return
        self._ring()

    def _counted(self, answer: Answer) -> Answer:
        def counting(reply: Reply) -> None:
            self._count(reply.fault is None)
            answer(reply)

        return counting

    def serve(self) -> bool:
        """Do what waits; called by the engine's thread between two passes. Returns whether there was anything."""
        with self._lock:
            waiting, self._waiting = self._waiting, deque()
        for request, asked, who, answer in waiting:
            self._give(self._done(request, asked, who), answer)
        return bool(waiting)

    def _give(self, reply: Reply, answer: Answer) -> None:
        """The reply to who asked: now, or when it is worked out."""
        if not isinstance(reply.value, Later):
            answer(reply)
            return
        with self._lock:
            why = self._closed or ("busy" if self._later >= MAX_LATER else "")
            if not why:
                self._later += 1
                self._worker = self._worker or ThreadPoolExecutor(1, thread_name_prefix="answering")
                future = self._worker.submit(reply.value.work)
        if why:
            remedy = why if self._closed else f"{MAX_LATER} answers are being worked out already; ask again later"
            answer(Reply(reply.id, fault=Fault("request", "", remedy)))
            return

        def worked(done: Future[Any]) -> None:
            with self._lock:
                self._later -= 1
            if done.cancelled():
                answer(Reply(reply.id, fault=Fault("request", "", self._closed)))
            elif (error := done.exception()) is not None:
                log.error("an answer could not be worked out", exc_info=error)
                answer(Reply(reply.id, fault=Fault("request", "", f"failed: {type(error).__name__}: {error}"[:500])))
            else:
                answer(Reply(reply.id, done.result()))

        future.add_done_callback(worked)

    def close(self, why: str = "the session has ended") -> None:
        """Refuse what waits, and what still comes."""
        with self._lock:
            self._closed = why
            waiting, self._waiting = self._waiting, deque()
            worker, self._worker = self._worker, None
        for request, _, _, answer in waiting:
            answer(Reply(request.id, fault=Fault(request.action, "", why)))
        if worker is not None:
            worker.shutdown(wait=False, cancel_futures=True)

    def _done(self, request: Request, asked: Action, who: str) -> Reply:
        """The reply; whatever goes wrong is a fault in it, and ends nothing."""
        token = ASKING.set(who)
        try:
            value = asked.checked(**request.arguments)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            reply = Reply(request.id, fault=Fault(f"{request.action}.{name}", str(first["input"])[:200], first["msg"]))
        except Refused as error:
            reply = Reply(request.id, fault=error.fault)
        except Exception as error:
            log.exception("%s: failed", request.action)
            reply = Reply(request.id, fault=Fault(request.action, "", f"failed: {type(error).__name__}: {error}"[:500]))
        else:
            reply = Reply(request.id, value)
        finally:
            ASKING.reset(token)
        if asked.kind.changes:
            told = ", ".join(f"{key:.100}={value!r:.200}" for key, value in request.arguments.items())
            outcome = "done" if reply.fault is None else f"refused: {reply.fault}"
            audit.warning("%s", one_line(f"{who or 'somebody'}: {request.action}({told:.2000}): {outcome:.2000}"))
        return reply


def one_line(text: str) -> str:
    """Without what would end the line: whoever asks must not write lines of the audit."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
