"""Who may ask what, when it is done, and what happens to what goes wrong."""

from __future__ import annotations

import logging
import threading

import pytest

from ptystream.steering.desk import MAX_WAITING, Desk, Refused, action
from ptystream.steering.wire import Reply, Request


class Actor:
    """Counts."""

    def __init__(self) -> None:
        self.sum = 0
        self.thread: threading.Thread | None = None

    @action("viewer", at_once=True, changes=False)
    def look(self) -> int:
        """The sum."""
        return self.sum

    @action()
    def add(self, number: int, twice: bool = False) -> int:
        """Add to it."""
        if number < 0:
            raise Refused("add.number", number, "give one that is not negative")
        if number == 13:
            raise ZeroDivisionError("bad luck")
        self.thread = threading.current_thread()
        self.sum += 2 * number if twice else number
        return self.sum

    def secret(self) -> None:
        """Not an action."""


@pytest.fixture
def actor() -> Actor:
    return Actor()


@pytest.fixture
def desk(actor: Actor) -> Desk:
    return Desk(actor)


def asked(desk: Desk, name: str, role: str = "operator", **arguments: object) -> list[Reply]:
    """The replies so far of a request."""
    replies: list[Reply] = []
    desk.ask(Request(1, name, arguments), replies.append, who="me", role=role)  # type: ignore[arg-type]
    return replies


def test_what_looks_is_answered_at_once_and_what_changes_waits_for_its_turn(desk: Desk, actor: Actor) -> None:
    replies = asked(desk, "add", number=2)
    assert replies == [] and asked(desk, "look")[0].value == 0
    assert desk.serve() and not desk.serve()
    assert replies == [Reply(1, 2)] and asked(desk, "look")[0].value == 2


def test_the_engine_is_woken(actor: Actor) -> None:
    rung: list[int] = []
    desk = Desk(actor, lambda: rung.append(1))
    asked(desk, "look")
    assert not rung
    asked(desk, "add", number=1)
    assert rung == [1]


def test_every_request_is_counted_once_as_done_or_refused(actor: Actor) -> None:
    counted: list[bool] = []
    desk = Desk(actor, count=counted.append)
    asked(desk, "look")
    asked(desk, "nothing")
    asked(desk, "add", number=1)
    asked(desk, "add", number=-1)
    desk.serve()
    asked(desk, "add", number=1)
    desk.close()
    assert counted == [True, False, True, False, False]


@pytest.mark.parametrize("name", ["secret", "__init__", "nothing", "add.__globals__", ""])
def test_only_actions_can_be_asked_for(desk: Desk, name: str) -> None:
    (reply,) = asked(desk, name)
    assert reply.fault is not None and "there are add, look" in reply.fault.remedy


@pytest.mark.parametrize(
    "arguments", [{}, {"number": "2"}, {"number": 1, "other": 2}, {"number": 1.5}, {"number": True, "self": 1}]
)
def test_arguments_are_checked_and_named(desk: Desk, actor: Actor, arguments: dict[str, object]) -> None:
    replies = asked(desk, "add", **arguments)
    desk.serve()
    assert replies[0].fault is not None and replies[0].fault.path.startswith("add.") and actor.sum == 0


def test_what_goes_wrong_is_told_and_the_next_is_done(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    refused, broken, fine = (asked(desk, "add", number=n) for n in (-1, 13, 5))
    desk.serve()
    assert str(refused[0].fault) == "add.number: -1: give one that is not negative"
    assert "bad luck" in str(broken[0].fault)
    assert fine[0].value == 5


def test_a_viewer_may_look_only(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    assert asked(desk, "look", "viewer")[0].value == 0
    (reply,) = asked(desk, "add", "viewer", number=1)
    assert reply.fault is not None and "operators" in reply.fault.remedy
    assert "me: add refused" in caplog.text


def test_changes_leave_a_line_in_the_audit_and_looking_does_not(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ptystream.audit")
    asked(desk, "look")
    asked(desk, "add", number=3, twice=True)
    asked(desk, "add", number=-3)
    desk.serve()
    assert [r.getMessage() for r in caplog.records if r.name == "ptystream.audit"] == [
        "me: add(number=3, twice=True): done",
        "me: add(number=-3): refused: add.number: -3: give one that is not negative",
    ]


def test_what_waits_is_bounded(desk: Desk) -> None:
    waiting = [asked(desk, "add", number=1) for _ in range(MAX_WAITING)]
    (late,) = asked(desk, "add", number=1)
    assert late.fault is not None and "ask again later" in late.fault.remedy
    desk.serve()
    assert all(replies[0].value for replies in waiting)


def test_closing_answers_what_waits_and_what_comes(desk: Desk) -> None:
    replies = asked(desk, "add", number=1)
    desk.close("over")
    assert replies[0].fault is not None and replies[0].fault.remedy == "over"
    assert asked(desk, "add", number=1)[0].fault is not None
    assert asked(desk, "look")[0].value == 0


def test_who_asks_cannot_write_lines_of_the_audit(actor: Actor, caplog: pytest.LogCaptureFixture) -> None:
    desk, forged = Desk(actor), "x\n2026-01-01 WARNING boss: add(number=1): done"
    for role, arguments in (("viewer", {"number": 1}), ("operator", {forged: 1}), ("operator", {"number": -1})):
        desk.ask(Request(1, "add", arguments), lambda reply: None, who=forged, role=role)  # type: ignore[arg-type]
    desk.serve()
    lines = [record.getMessage() for record in caplog.records if record.name == "ptystream.audit"]
    assert len(lines) == 3 and not any("\n" in line for line in lines)
    assert all(line.startswith("x\\n2026") for line in lines)


def test_a_line_of_the_audit_is_of_bounded_length(actor: Actor, caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk(actor)
    desk.ask(Request(1, "add", {f"{k}{'a' * 10_000}": "b" * 10_000 for k in range(100)}), lambda reply: None, who="me")
    desk.serve()
    (line,) = (record.getMessage() for record in caplog.records if record.name == "ptystream.audit")
    assert len(line) < 5000
