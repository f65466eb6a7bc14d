"""Sessions that are asked for something in the midst of their work, for tests of steering."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from memory import Memory, messages
from problems import BEAM, GEOMETRY

from ptystream.metrics import Metrics
from ptystream.params.load import load
from ptystream.plan import make_plan
from ptystream.recording import Recorder
from ptystream.session import Session
from ptystream.steering.wire import Reply, Request


def configuration(folder: Path, **root: Any) -> Any:
    data = {"name": "ZmqScan", "shape": BEAM.side, **GEOMETRY, "positions": {"name": "ZmqScan"}}
    given = {
        "run": "t",
        "min_frames_for_recon": BEAM.frames,
        "threads": 1,
        "io": {"home": str(folder), "rfile": "%(run)s.ptyr"},
        "scans": {"s": {"name": "Full", "data": data, "illumination": {"aperture": {"size": 4e-7}}}},
        "engines": {"e": {"name": "DM", "numiter": 12}},
        **root,
    }
    return load(given)


class Steered:
    """A session that is asked for something at the beginning of one of its rounds, in its own thread."""

    def __init__(self, folder: Path, when: Callable[[Session], bool], *asked: tuple[str, dict[str, Any]], **root: Any) -> None:
        records = root.pop("records", True)
        made = configuration(folder, **root)
        self.recorder = Recorder(folder / "t.ptyrec", {}, go_on=True)
        tap = self.recorder if records else None
        runs = int(root.get("live", {}).get("runs", 1))
        pairs = [messages("abc"[k]) for k in range(runs)]
        frames, places = ([m for pair in pairs for m in pair[k]] for k in (0, 1))
        sources = {"s/data": Memory("s/data", frames), "s/positions": Memory("s/positions", places)}
        self.session = Session(make_plan(made, transports=sources, recorder=tap), metrics=Metrics(), tap=tap)
        self.prepare(self.session)
        self.replies = ask_when(self.session, when, *asked)
        self.results = self.session.run()
        self.recorder.close(finished=True)

    def prepare(self, session: Session) -> None:
        """Before it runs."""

    def refused(self) -> str:
        (reply,) = self.replies
        return str(reply.fault)


def after(iterations: int) -> Callable[[Session], bool]:
    return lambda session: session.current is not None and session.current.iterations >= iterations


def ask_when(session: Session, when: Callable[[Session], bool], *asked: tuple[str, dict[str, Any]]) -> list[Reply]:
    """Have a session asked between two passes, as soon as `when` says so; its replies come into what is returned."""
    serve, left, replies = session.desk.serve, list(asked), list[Reply]()

    def serving() -> bool:
        if left and when(session):
            for number, (name, arguments) in enumerate(left):
                session.desk.ask(Request(number, name, arguments), replies.append, who="anna")
            left.clear()
        return serve()

    session.desk.serve = serving  # type: ignore[method-assign]
    return replies
