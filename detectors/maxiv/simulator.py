"""A streaming-receiver that is not there: `python -m ptystream.detectors.maxiv.simulator`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from numpy.typing import NDArray

from ptystream.codecs import encode

from ..simulated.rehearsal import Rehearsal
from ..simulated.serving import Serving, Timed, frame_by_frame, plain_sender, serve


def messages(frames: NDArray[Any], *, filename: str = "scan.h5", first: int = 0, codec: str = "bslz4") -> Iterator[list[bytes]]:
    """One series, frames of shape (frame, y, x); messages are numbered from `first`."""
    yield [json.dumps({"htype": "header", "msg_number": first, "filename": filename}).encode()]
    for number, frame in enumerate(frames):
        header = {
            "htype": "image",
            "msg_number": first + 1 + number,
            "frame": number,
            "shape": list(frame.shape),
            "type": frame.dtype.name,
            "compression": "none" if codec == "raw" else codec,
        }
        yield [json.dumps(header).encode(), encode(frame, codec)]
    yield [json.dumps({"htype": "series_end", "msg_number": first + 1 + len(frames)}).encode()]


def simulator(parameters: Any, rehearsal: Rehearsal) -> Serving:
    """What plays a simulated scan to a source with these parameters; its file is named after the acquisition's number."""

    def made(number: int, began_ns: int) -> Timed:
        return frame_by_frame(messages(rehearsal.frames(), filename=str(number)), rehearsal.rate_hz, before=1)

    return Serving(plain_sender(parameters), made)


if __name__ == "__main__":
    serve(messages, "push")
