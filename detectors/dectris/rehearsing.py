"""A DECTRIS detector's part of a simulated scan: series in the format of the port that the configuration names."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Self
from urllib.parse import urlparse

from ptystream.events import Buffer

from ..simulated.rehearsal import Rehearsal
from ..simulated.serving import LOOK_S, Serving, Timed, frame_by_frame
from .simulator import Camera, Detector, series_of

VERSION_1_PORT = 9999


class Dealt:
    """The sockets of a detector that streams from several addresses: messages are dealt out to them in turn."""

    def __init__(self, detectors: Sequence[Detector]) -> None:
        self._detectors = detectors
        self._turn = itertools.cycle(detectors)
        self.address = ", ".join(one.address for one in detectors)

    def wait(self, timeout_s: float) -> None:
        """Wait until somebody pulls from each. Raises `TimeoutError`."""
        for one in self._detectors:
            one.wait(timeout_s)

    def again(self, parts: Sequence[Buffer]) -> None:
        """Send a message. Raises `TimeoutError` where nobody takes it."""
        if not next(self._turn).took(parts):
            raise TimeoutError(f"{self.address}: nobody took a message")

    def flush(self, timeout_s: float = 30.0) -> None:
        """Let what is queued so much time to go, on closing."""
        for one in self._detectors:
            one.linger(timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._detectors:
            one.close()


def simulator(parameters: Any, rehearsal: Rehearsal) -> Serving:
    """What plays a simulated scan to a source with these parameters. The header tells the geometry."""
    known, center = rehearsal.geometry, rehearsal.center()
    first = next(iter(dict.fromkeys(parameters.addresses)))
    form: Any = "v1" if urlparse(first).port == VERSION_1_PORT else "stream2"
    channel = parameters.channel
    detectors: list[Detector] = []
    try:
        for address in dict.fromkeys(parameters.addresses):
            detectors.append(Detector(address, linger_s=LOOK_S))
    except (OSError, ValueError):
        for one in detectors:
            one.close()
        raise

    def made(number: int, began_ns: int) -> Timed:
        names = rehearsal.names(number)
        camera = Camera(
            form,
            detail="basic",
            energy_kev=known["energy"],
            distance_m=known["distance"],
            psize_m=None if known["psize"] is None else (known["psize"],) * 2,
            center=center,
            count_time_s=1.0 / rehearsal.rate_hz,
            header_appendix=json.dumps(names) if names else None,
            channels=("threshold_1",) if channel is None else (channel,),
            date=datetime.fromtimestamp(began_ns / 1e9, UTC),
        )
        return frame_by_frame(series_of(camera, number, rehearsal.frames()), rehearsal.rate_hz, before=1)

    return Serving(Dealt(detectors), made)
