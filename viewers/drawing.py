"""The process that draws plots for a session: orders on standard input, an answer for each on standard output.

Runs at a low priority, with one order at a time. What it reads comes from the session that started it.
"""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import BinaryIO

import msgpack

from ptystream.publish.schema import decode
from ptystream.publish.snapshot import Snapshot

NICE = 10
"""Added to the process' niceness: the engine goes first."""


class Drawing:
    """Entry point 'autoplot'."""

    module = __name__
    window = "ptystream.viewers.window"

    @staticmethod
    def plot(snapshot: Snapshot, path: Path | None, layout: str, *, show: bool) -> bytes:
        """Draw into `path`, where one is given; with `show` the picture as PNG, otherwise nothing."""
        from .figure import DPI, Figure, draw

        if path is not None:
            Figure.save(snapshot, path, layout)
        if not show:
            return b""
        if path is not None and path.suffix == ".png":
            return path.read_bytes()
        held = io.BytesIO()
        draw(snapshot, layout).savefig(held, format="png", dpi=DPI)
        return held.getvalue()

    @staticmethod
    def make_movie(frames: list[str], stem: str | Path) -> Path:
        """See `movie.make_movie`."""
        from .movie import make_movie

        return make_movie(frames, stem)


def serve(orders: BinaryIO, answers: BinaryIO) -> None:
    """Draw until the orders end. The answer: a line of hexadecimal msgpack {failure, bytes}, then so many bytes of picture."""
    while line := orders.readline():
        head = msgpack.unpackb(bytes.fromhex(line.decode().strip()))
        parts = [orders.read(size) for size in head["sizes"]]
        failure, picture = None, b""
        try:
            path = None if head["path"] is None else Path(head["path"])
            picture = Drawing.plot(decode(parts), path, head["layout"], show=head["show"])
        except Exception as error:  # whatever a drawing library may raise is told, and not the end
            failure = f"{type(error).__name__}: {error}"
        answers.write(msgpack.packb({"failure": failure, "bytes": len(picture)}).hex().encode() + b"\n" + picture)
        answers.flush()


if __name__ == "__main__":
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-c is for the session, which says when it is over
    os.nice(NICE)
    serve(sys.stdin.buffer, sys.stdout.buffer)
