"""A session that is started as a user starts it, with a scan from memory, and that can be asked while it runs."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from memory import Memory, messages
from problems import BEAM, GEOMETRY
from rich.console import Console

from ptystream.launch import launch
from ptystream.params.load import load
from ptystream.transport import Message


class Held(Memory):
    """Gives what it has, and waits with its end until it is let go."""

    def __init__(self, channel: str, messages: list[list[bytes]], go: threading.Event) -> None:
        super().__init__(channel, messages)
        self.go = go

    def receive(self, timeout_s: float) -> Message | None:
        if not self._left and not self.go.wait(timeout_s):
            return None
        return super().receive(timeout_s)


class Launched:
    """A session in a thread, up to its steering address."""

    def __init__(self, folder: Path, io: dict[str, Any]) -> None:
        frames, places = messages()
        self.go, self.said, self.endpoint = threading.Event(), threading.Event(), ""
        data = {"name": "ZmqScan", "shape": BEAM.side, **GEOMETRY, "positions": {"name": "ZmqScan"}}
        given = {
            "run": "t",
            "io": {"home": str(folder), "rfile": "%(run)s.ptyr", "autoplot": {"active": False}, **io},
            "scans": {"s": {"name": "Full", "data": data, "illumination": {"aperture": {"size": 4e-7}}}},
            "engines": {"e": {"name": "DM", "numiter": 3}},
        }
        sources = {
            "s/data": Held("s/data", frames[:-1], self.go),
            "s/positions": Held("s/positions", places[:-1], self.go),
        }
        self.thread = threading.Thread(
            target=lambda: launch(load(given), Console(quiet=True), transports=sources, on_steering=self._told), daemon=True
        )
        self.thread.start()
        assert self.said.wait(60)

    def _told(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.said.set()

    def end(self) -> None:
        self.go.set()
        self.thread.join(60)
        assert not self.thread.is_alive()
