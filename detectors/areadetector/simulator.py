"""An IOC's ZeroMQ plug-in that is not there: `python -m ptystream.detectors.areadetector.simulator`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from numpy.typing import NDArray

from ptystream.codecs import encode

from ..simulated.rehearsal import Rehearsal
from ..simulated.serving import Serving, Timed, frame_by_frame, plain_sender, serve


def messages(
    frames: NDArray[Any],
    *,
    first_id: int = 1,
    codec: str = "raw",
    htype: Any = None,
    began_s: float = 1.7e9,
    rate_hz: float = 100.0,
) -> Iterator[list[bytes]]:
    """One acquisition, frames of shape (frame, y, x)."""
    for number, frame in enumerate(frames):
        header = {
            "htype": htype or ["array-1.0"],
            "type": frame.dtype.name,
            "shape": [frame.shape[1], frame.shape[0]],
            "frame": first_id + number,
            "timeStamp": began_s + number / rate_hz,
            "ndattr": {"NDArrayTimeStamp": 0},
        }
        header |= {} if codec == "raw" else {"encoding": codec}
        yield [json.dumps(header).encode(), encode(frame, codec)]


def simulator(parameters: Any, rehearsal: Rehearsal) -> Serving:
    """What plays a simulated scan to a source with these parameters; ids begin at its `first_id`, or at 1."""
    first = 1 if parameters.first_id is None else parameters.first_id

    def made(number: int, began_ns: int) -> Timed:
        shown = messages(rehearsal.frames(), first_id=first, began_s=began_ns / 1e9, rate_hz=rehearsal.rate_hz)
        return frame_by_frame(shown, rehearsal.rate_hz)

    return Serving(plain_sender(parameters), made)


if __name__ == "__main__":
    serve(messages, "pub")
