"""A detector server, or an encoder's, that is not there: its part of a simulated scan on the native wire."""

from __future__ import annotations

from itertools import count
from typing import Any

import numpy as np

from ptystream.giving import GIVE_S

from ..simulated.rehearsal import LAG_S, Rehearsal, pieces
from ..simulated.serving import Serving, Timed, in_the_clear, plain_sender
from .protocol import frames_parts, header, samples_parts
from .sender import Sender


class Greeted(Sender):
    """One that begins when its receiver has come, so that the scan has its own pace."""

    def wait(self, timeout_s: float) -> None:
        """Wait for the receiver. Raises `TimeoutError`."""
        if not self.greeted(timeout_s):
            raise TimeoutError(f"{self.address}: nobody came within {timeout_s:g} s")


def simulator(parameters: Any, channel: str, rehearsal: Rehearsal) -> Serving:
    """What plays the channel; frames tell their positions themselves where nobody else does. Raises `ValueError`, `OSError`."""
    in_the_clear(parameters)
    p, numbers = parameters, count()
    if p.link == "acknowledged":
        sender: Any = Greeted(p.address, bind=not p.bind, timeout_s=GIVE_S)
    else:
        sender = plain_sender(p)

    def frames(number: int, began_ns: int) -> Timed:
        stack, rate = rehearsal.frames(), rehearsal.rate_hz
        places = None if rehearsal.has_positions else rehearsal.beamline.positions_m()
        scan, told = str(number), {**rehearsal.names(number), "num_frames": len(stack)}
        yield 0.0, [header("start", scan=scan, meta=told, q=next(numbers))]
        for k, frame in enumerate(stack):
            stamp = np.array([began_ns + round(k / rate * 1e9)])
            place = None if places is None else places[k : k + 1]
            raw = [memoryview(frame.data).cast("B")]
            parts = frames_parts(scan, k, raw, 1, frame.shape, frame.dtype, "raw", stamp, place, q=next(numbers))
            yield (k + 1) / rate, parts
        yield len(stack) / rate, [header("end", scan=scan, count=len(stack), reason="completed", q=next(numbers))]

    def readings(number: int, began_ns: int) -> Timed:
        made, scan = rehearsal.samples(p), str(number)
        stamps = began_ns + np.round(made.times_s * 1e9).astype(np.int64)
        yield LAG_S, [header("start", scan=scan, meta=rehearsal.names(number), q=next(numbers))]
        for due, rows in pieces(made, rehearsal.rate_hz):
            columns = {name: column[rows] for name, column in made.channels.items()}
            yield due, samples_parts(scan, rows.start, columns, stamps[rows], q=next(numbers))
        over = rehearsal.beamline.frames / rehearsal.rate_hz
        yield over, [header("end", scan=scan, count=len(stamps), reason="completed", q=next(numbers))]

    return Serving(sender, frames if channel.endswith("/data") else readings)
