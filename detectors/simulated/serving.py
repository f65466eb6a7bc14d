"""What the simulators of plain ZeroMQ wires have in common: the frames of a simulated scan, sent at a rate."""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np

from ..zmq.plain import PlainSender
from .simulator import Beamline


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
