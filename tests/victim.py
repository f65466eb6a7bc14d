"""A session that kills itself with SIGKILL at a chosen moment: what a restart makes of it is what tests look at.

Runs in a process of its own, forked from a server that has imported everything, so that twenty of them cost little.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from problems import BEAM
from rich.console import Console

from ptystream import autosave
from ptystream.detectors.simulated.simulator import run as send
from ptystream.detectors.zmq import Sender, ZmqScan  # noqa: F401
from ptystream.engines.dm import DM  # noqa: F401
from ptystream.engines.ml import ML  # noqa: F401
from ptystream.ingest import Source
from ptystream.launch import launch
from ptystream.params.load import load
from ptystream.recording import Recorder
from ptystream.run import Run
from ptystream.scan.intake import Intake
from ptystream.session import Session
from ptystream.steering.wire import Request
from ptystream.storage import h5, ptyr
from ptystream.viewers.client import Client

MOMENTS = (
    "ready",
    "received",
    "torn",
    "recorded",
    "iterated",
    "dumping",
    "dumped",
    "saving",
    "saved",
    "noted",
    "recutting",
    "recut",
)
"""Where a session kills itself. Before the first frame; when the n-th message came, before it is recorded; in the middle of the
write of the n-th message; when the n-th message is recorded and not acknowledged; after the n-th pass; while the n-th dump is
written, and right after it; while the result is written; when it is written, but not noted; when that is noted, but the
session is not yet over. While frames are cut again, at the n-th; when they are in use as they were asked to be."""


def die() -> None:
    """What `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def after(count: int, act: Callable[[], None] = die) -> Callable[[], None]:
    """Something that acts at its `count`-th call."""
    left = [count]

    def called() -> None:
        left[0] -= 1
        if left[0] == 0:
            act()

    return called


def before(owner: Any, name: str, wrap: Callable[..., None]) -> None:
    """Call `wrap` with the arguments of a function before each of its calls."""
    original = getattr(owner, name)

    def wrapped(*arguments: Any, **named: Any) -> Any:
        wrap(*arguments, **named)
        return original(*arguments, **named)

    setattr(owner, name, wrapped)


def behind(owner: Any, name: str, wrap: Callable[..., None]) -> None:
    """Call `wrap` with the arguments of a function after each of its calls."""
    original = getattr(owner, name)

    def wrapped(*arguments: Any, **named: Any) -> Any:
        answer = original(*arguments, **named)
        wrap(*arguments, **named)
        return answer

    setattr(owner, name, wrapped)


def doom(moment: str, count: int) -> None:
    """Make this process die at the `count`-th time of a moment."""
    due = after(count)
    if moment == "received":
        before(Source, "take", lambda *_: due())
    elif moment == "recorded":
        behind(Recorder, "_write_group", lambda self, group, *_: [due() for entry in group if len(entry) == 2])
    elif moment == "torn":
        tearing: list[bool] = []

        def tear(self: Recorder, buffers: list[Any]) -> None:
            if tearing:
                raw = b"".join(bytes(buffer) for buffer in buffers)
                os.write(self._file.fileno(), raw[: len(raw) // 2])
                die()

        due_torn = after(count, lambda: tearing.append(True))
        before(Recorder, "_write_group", lambda self, group, *_: [due_torn() for entry in group if len(entry) == 2])
        before(Recorder, "_append", tear)
    elif moment == "iterated":
        behind(Run, "apply", lambda self, entry, *_: due() if entry["do"] == "iterate" else None)
    elif moment in ("dumping", "saving"):
        kind = "dump" if moment == "dumping" else "result"

        def halfway(group: Any, key: str, value: Any, **_: Any) -> None:
            if group.name == "/" and key == "ptystream" and kind in group["header/description"].asstr()[()]:
                due()

        before(h5, "write", halfway)
    elif moment in ("dumped", "saved"):
        wanted = ("dump",) if moment == "dumped" else ("minimal",)
        behind(ptyr, "write", lambda path, result, kind="minimal": due() if kind in wanted else None)
    elif moment == "recutting":
        before(Intake, "again", lambda *_: due())
    elif moment == "recut":
        behind(Run, "apply", lambda self, entry, *_: due() if entry["do"] == "recut" else None)
    elif moment == "noted":
        before(Recorder, "close", lambda self, finished=False: (self.flush(), die()) if finished else None)


def live(config: str, moment: str | None, count: int, log: str, ready: Any) -> None:
    """Body of the process: what `ptystream live CONFIG` does, cut off where a moment is given."""
    autosave.REST = 1.0  # otherwise so small a scan is over before its second dump
    logging.basicConfig(filename=log, level=logging.WARNING, format="%(message)s")
    if moment not in (None, "ready"):
        doom(str(moment), count)

    def steer(session: Session) -> None:
        asked = Path(config).with_suffix(".asked")
        if moment is None or not asked.exists():
            return
        iterations, *requests = json.loads(asked.read_text())
        serve = session.desk.serve

        def serving() -> bool:
            run = session.current
            entry = None if run is None else run.engine_entry
            engine = None if entry is None else entry.label
            if (
                requests
                and run is not None
                and (engine == iterations if isinstance(iterations, str) else run.iterations >= iterations)
            ):
                for name, arguments in requests:
                    session.desk.ask(Request(1, name, arguments), lambda reply: print(reply, file=sys.stderr))
                requests.clear()
            return serve()

        session.desk.serve = serving  # type: ignore[method-assign]

    def waits() -> None:
        if moment == "ready":
            die()
        ready.set()

    with open(log, "a") as said:
        launch(load(config), Console(file=said), talkative=True, on_session=steer, on_ready=waits)


def start(config: str, log: str, moment: str | None = None, count: int = 1) -> tuple[Any, Any]:
    """Begin a session in a process of its own; (process, event that is set when its sources are open)."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["victim"])
    ready = context.Event()
    process = context.Process(target=live, args=(config, moment, count, log, ready), daemon=True)
    process.start()
    return process, ready


def simulator(addresses: tuple[str, str], pause_s: float, dies_after: int | None) -> None:
    """Body of a process: the small beamline's scan on two senders; killed after so many frames."""
    with Sender(addresses[0]) as data, Sender(addresses[1]) as places:
        due = after(dies_after or 0)
        behind(data, "frames", lambda *_, **__: due())
        beamline = replace(BEAM, rate_hz=1 / pause_s)
        send(beamline, data, places)


def viewer(endpoint: str, seen: Any, dies: bool) -> None:
    """Body of a process: looks at a session, and is killed at its first picture, or reads no more."""
    for _ in Client(endpoint):
        seen.set()
        if dies:
            die()
        os.kill(os.getpid(), signal.SIGSTOP)


def process_of(body: Callable[..., None], *arguments: Any) -> Any:
    """Begin one of the bodies above."""
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=body, args=arguments, daemon=True)
    process.start()
    return process
