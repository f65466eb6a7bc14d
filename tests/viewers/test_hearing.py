"""Whether a session answers, as viewers tell it: over real sockets, one that is slow, one that ends, one that is killed."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from snapshots import snapshot

from ptystream.publish.heartbeat import RunBeat
from ptystream.publish.publisher import Publisher
from ptystream.viewers import hearing, terminal
from ptystream.viewers.client import Client
from ptystream.viewers.hearing import Hearing
from ptystream.viewers.web.feed import Feed

CHILD = """
import sys, time
from ptystream.publish.heartbeat import RunBeat
from ptystream.publish.publisher import Publisher
publisher = Publisher()
publisher.runs = lambda: [RunBeat("a", "running", 3)]
print(publisher.endpoint, flush=True)
sys.stdin.read()
publisher.close()
"""


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    made = Publisher()
    yield made
    made.close()


def until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def test_nothing_is_known_of_what_was_never_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hearing, "SILENT_S", 0.1)
    here = Hearing("tcp://127.0.0.1:9")
    assert here.standing.state == "unknown" and here.standing.text == ""
    until(lambda: here.standing.text != "", "nothing is said")
    assert here.standing.state == "unknown" and here.standing.text.startswith("nothing heard of the session for ")
    here.close()
    here.close()


def test_listening_that_died_is_told(caplog: pytest.LogCaptureFixture, publisher: Publisher) -> None:
    died: list[BaseException] = []

    def fails() -> None:
        raise OSError("no more")

    here = Hearing(publisher.endpoint, on_change=fails, on_failure=died.append)
    until(lambda: bool(died), "it lives")
    assert here.standing.state == "unknown" and here.standing.text.endswith("OSError: no more")
    assert "OSError: no more" in caplog.text and died == [here.failure]
    here.close()


def test_a_page_ends_where_nobody_listens_for_its_session_any_more(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Feed, "_tell", lambda self: 1 / 0)
    feed, ended = Feed(publisher.endpoint), threading.Event()
    feed.on_failure = ended.set
    until(lambda: isinstance(feed.failure, ZeroDivisionError), "nobody noticed")
    feed.close()


def test_one_that_is_killed_is_silent_and_one_that_ends_says_so() -> None:
    for kill in (True, False):
        child = subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert child.stdin is not None and child.stdout is not None
        changed: list[str] = []
        here = Hearing(child.stdout.readline().strip(), on_change=lambda: changed.append(here.standing.state))  # noqa: B023
        until(lambda: here.standing.state == "alive", "no heartbeat")  # noqa: B023
        assert here.standing.runs == (RunBeat("a", "running", 3),) and here.standing.text == ""
        began = time.monotonic()
        if kill:
            child.send_signal(signal.SIGKILL)
        else:
            child.stdin.close()
        child.wait(60)
        wanted = "silent" if kill else "ended"
        until(lambda: wanted in changed, wanted)  # noqa: B023
        took = time.monotonic() - began
        text = here.standing.text
        here.close()
        child.stdout.close()
        child.stdin.close()
        assert text.startswith("session not answering for ") if kill else text == "session ended"
        assert not kill or took > 3.5  # not before its time


def test_a_session_that_is_only_slow_is_waited_for(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptystream.publish.publisher.INTERVAL_S", 0.05)
    publisher.runs = lambda: [RunBeat("a", "running", 3)]
    publisher.offer(replace(snapshot(1), run="a"))
    threading.Timer(1.5, publisher.offer, [replace(snapshot(2), run="a", state="finished")]).start()
    with Client(publisher.endpoint, timeout_s=0.5) as client:
        until(lambda: client.session.state == "alive", "no heartbeat")
        assert [shown.number for shown in client] == [1, 2]  # one that lies longer than the time-out behind the other
        assert client.session.state == "alive"


def test_one_that_has_nothing_under_way_is_not(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptystream.publish.publisher.INTERVAL_S", 0.05)
    publisher.runs = lambda: [RunBeat("a", "finished", 3), RunBeat("b", "running", 3)]
    with Client(publisher.endpoint, run="a", timeout_s=0.5) as client:
        until(lambda: client.session.state == "alive", "no heartbeat")
        assert list(client) == []
        assert client.session.runs[1].run == "b"
    with pytest.raises(RuntimeError, match="closed"):
        Client(publisher.endpoint).close() or client.session


def test_a_loop_ends_soon_where_the_session_does() -> None:
    publisher = Publisher()
    publisher.offer(snapshot(1))
    with Client(publisher.endpoint, timeout_s=1000) as client:
        shown = iter(client)
        assert next(shown).number == 1
        until(lambda: client.session.state == "alive", "no heartbeat")
        publisher.offer(snapshot(2))
        publisher.close()
        began = time.monotonic()
        assert [one.number for one in shown] == [2]
        assert time.monotonic() - began < 30


@pytest.mark.parametrize("tty", [True, False])
def test_the_console_says_it_and_ends_with_the_session(tty: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hearing, "SILENT_S", 0.3)
    publisher, out = Publisher(), io.StringIO()
    to = Console(file=out, force_terminal=tty, width=100, height=30)
    thread = threading.Thread(target=terminal.watch, args=(publisher.endpoint, to), daemon=True)
    thread.start()
    publisher.offer(snapshot(1))
    until(lambda: "session not answering for" in out.getvalue(), "no word on it")  # between two heartbeats
    publisher.close()
    thread.join(60)
    assert not thread.is_alive()
    assert "session ended" in out.getvalue() and "test: running" in out.getvalue()


SLOW = """
import sys, threading, time
from dataclasses import replace
sys.path.insert(0, sys.argv[1])
from snapshots import snapshot
from ptystream.publish.publisher import Publisher
from ptystream.viewers.client import Client
publisher, over, one = Publisher(), threading.Event(), snapshot(1, side=300)
def flood():
    number = 0
    while not over.wait(0.02):
        publisher.offer(replace(one, number=number))
        number += 1
thread = threading.Thread(target=flood)
thread.start()
with Client(publisher.endpoint) as client:
    for _ in range(2):
        assert client.latest(30) is not None
        time.sleep(5.5)
    assert client.latest(30) is not None
over.set()
thread.join()
publisher.close()
"""


def test_a_reader_that_takes_its_time_is_not_aborted() -> None:
    tests = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", SLOW, str(tests)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
