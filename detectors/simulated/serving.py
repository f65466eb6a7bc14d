"""What simulators have in common: the messages of a simulated scan, each sent when it is due."""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np

from ptystream.events import Buffer
from ptystream.giving import GIVE_S, Giver
from ptystream.simulating import Unsimulated

from ..zmq.plain import PlainSender
from .simulator import Beamline

LOOK_S = 0.2
"""How often it is looked, while nobody takes a message, whether to stop."""
Timed = Iterator[tuple[float, Sequence[Buffer]]]
"""Messages, each with the time at which it is due, seconds since the scan began."""


class Serving:
    """One source's part of a simulated scan, on a sender whose waits end after `LOOK_S`. A context manager.

    See `ptystream.simulating.Simulator`. `messages(number, began_ns)` makes those of acquisition `number`.
    """

    def __init__(self, sender: Giver, messages: Callable[[int, int], Timed]) -> None:
        self._sender, self._messages = sender, messages
        self.address = sender.address

    def wait(self, stopped: threading.Event) -> None:
        """Wait until somebody listens, where that can be known. Raises `TimeoutError`."""
        self._patiently(lambda: self._sender.wait(LOOK_S), stopped)

    def run(self, number: int, began_ns: int, stopped: threading.Event) -> None:
        """Send one acquisition. Raises `TimeoutError` where nobody takes a message for `GIVE_S` seconds."""
        began = time.monotonic() + (began_ns - time.time_ns()) / 1e9
        for due_s, parts in self._messages(number, began_ns):
            if stopped.wait(max(0.0, began + due_s - time.monotonic())):
                return
            if not self._patiently(lambda parts=parts: self._sender.again(parts), stopped):  # type: ignore[misc]
                return

    def finish(self) -> None:
        """Wait until everything was taken, where that can be known."""
        self._sender.flush()

    def _patiently(self, act: Callable[[], object], stopped: threading.Event) -> bool:
        patience = time.monotonic() + GIVE_S
        while not stopped.is_set():
            try:
                act()
            except TimeoutError:
                if time.monotonic() > patience:
                    raise
            else:
                return True
        return False

    def __enter__(self) -> Self:
        self._sender.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._sender.__exit__(kind or KeyboardInterrupt, error, trace)  # it has been flushed, or is not wanted any more


def plain_sender(parameters: Any, link: Literal["push", "pub"] | None = None) -> PlainSender:
    """The socket of whoever sends to a source with these parameters. Raises `ValueError` where there can be none here."""
    in_the_clear(parameters)
    connects = getattr(parameters, "bind", False)
    return PlainSender(link or parameters.link, parameters.address, timeout_s=LOOK_S, bind=not connects)


def in_the_clear(parameters: Any) -> None:
    """Raises `Unsimulated` for CURVE: the other end's secret key is not in a configuration."""
    for name in ("keys", "peer_keys"):
        if getattr(parameters, name, None) is not None:
            raise Unsimulated(name, getattr(parameters, name), "encryption is not simulated: leave it out of a copy")


def frame_by_frame(messages: Iterable[Sequence[Buffer]], rate_hz: float, *, before: int = 0, each: int = 1) -> Timed:
    """Messages of which `each` belong to a frame, and `before` come in front of the first."""
    for number, parts in enumerate(messages):
        yield max(0, (number - before) // each + 1) / rate_hz, parts


def serve(messages: Callable[[Any], Iterable[list[bytes]]], link: Literal["push", "pub"]) -> None:
    """The command line: send the messages that `messages` makes of the frames (frame, y, x) of one scan."""
    parser = argparse.ArgumentParser(description="Send the frames of one simulated scan.")
    parser.add_argument("--address", default="tcp://127.0.0.1:5570", help="where it listens")
    parser.add_argument("--frames", type=int, default=400)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--rate", type=float, default=100.0, help="messages per second")
    given = parser.parse_args()
    beamline = Beamline(frames=given.frames, side=given.side)
    truth = (beamline.probe(), beamline.object())
    frames = np.stack([beamline.pattern(k, truth) for k in range(given.frames)])
    wait, began = threading.Event().wait, time.monotonic()
    with PlainSender(link, given.address) as sender:
        print(f"listening on {sender.address}", flush=True)
        for number, parts in enumerate(messages(frames)):
            sender.send(parts)
            wait(max(0.0, began + number / given.rate - time.monotonic()))
