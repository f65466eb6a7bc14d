"""A PandABox's part of a simulated scan: the readings that a configuration asks it for, on the data port or published again."""

from __future__ import annotations

import json
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..simulated.rehearsal import LAG_S, Rehearsal, Samples, pieces
from ..simulated.serving import LOOK_S, Serving, Timed, plain_sender
from ..units import factor
from .giving import DataPort
from .simulator import Captured, stream


class Box(Serving):
    """A data port that is there until its client hangs up."""

    def finish(self) -> None:
        """Wait until the client has gone."""
        port = self._sender
        assert isinstance(port, Port)
        while not port.gone.wait(LOOK_S):
            port.listen()


class Port(DataPort):
    """A data port that notices when its client has gone."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.gone = threading.Event()

    def listen(self) -> None:
        """Look whether the client is there still."""
        if self._client is None:
            self.gone.set()
            return
        self._client.settimeout(LOOK_S)
        try:
            if not self._client.recv(100):
                self.gone.set()
        except TimeoutError:
            return
        except OSError:
            self.gone.set()


def columns(p: Any, samples: Samples) -> dict[str, tuple[NDArray[np.float64], str]]:
    """Channel → (readings, unit): what the configuration asks for, in the units that it has for them, or micrometres."""
    found = {}
    for name, values in samples.channels.items():
        place = name in (p.channels.y, p.channels.x, p.channels.z)
        unit = p.units.get(name, ("um" if p.unit == "m" else "") if place else "")
        found[name] = values / factor(unit), unit
    if p.frame_channel is not None:
        found[p.frame_channel] = (samples.frames - p.first_frame).astype(float), ""
    if p.time_channel is not None:
        unit = p.units.get(p.time_channel, "s")
        found[p.time_channel] = samples.times_s / factor(unit), unit
    return found


def data_port(parameters: Any, rehearsal: Rehearsal) -> Serving:
    """What plays a simulated scan on the data port at `host` and `port`."""
    p = parameters
    answered = False

    def made(number: int, began_ns: int) -> Timed:
        nonlocal answered
        samples = rehearsal.samples(p)
        found = columns(p, samples)
        fields, table = [], []
        for name, (values, unit) in found.items():
            box, _, capture = name.rpartition(".")
            # The smallest step in which the largest value fits into 32 bits.
            step = 1.0 if not unit else max(float(np.abs(values).max(initial=0.0)), 1e-12) / 2**30
            fields.append(Captured(box or name, unit, step, capture=capture if box else "Value"))
            table.append(values)
        if not p.scaled and any(field.capture == "Mean" for field in fields):  # a sum, and what it is to be divided by
            fields.append(Captured("PCAP.SAMPLES"))
            table.append(np.ones(len(samples.frames)))
        rows = np.stack(table, axis=1)
        due = list(pieces(samples, rehearsal.rate_hz))
        together = max((piece.stop - piece.start for _, piece in due), default=1)
        parts = stream(rows, scaled=p.scaled, arm_time=str(number), together=together, fields=fields)
        if not answered:
            answered = True
            yield 0.0, [b"OK\n"]
        for k, part in enumerate(parts):
            yield due[min(k, len(due)) - 1][0] if k else LAG_S, [part]

    return Box(Port(f"tcp://{p.host}:{p.port}"), made)


def republisher(parameters: Any, rehearsal: Rehearsal) -> Serving:
    """What plays a simulated scan as JSON documents; positions are in the units of `units`, or metres."""
    p = parameters

    def made(number: int, began_ns: int) -> Timed:
        samples = rehearsal.samples(p)
        found = {
            name: values * (factor(unit) if name not in p.units else 1.0) for name, (values, unit) in columns(p, samples).items()
        }
        yield LAG_S, [json.dumps({"msg_type": "start", "arm_time": str(number)}).encode()]
        sent = 0
        for due, rows in pieces(samples, rehearsal.rate_hz):
            block = {"dtype": "float64", "size": rows.stop - rows.start, "starting_sample_number": rows.start}
            datasets = {name: {**block, "data": values[rows].tolist()} for name, values in found.items()}
            yield due, [json.dumps({"msg_type": "data", "frame_number": sent, "datasets": datasets}).encode()]
            sent += 1
        over = rehearsal.beamline.frames / rehearsal.rate_hz
        yield over, [json.dumps({"msg_type": "stop", "emitted_frames": sent}).encode()]

    return Serving(plain_sender(p), made)
