"""A streaming-receiver that is not there: `python -m ptystream.detectors.maxiv.simulator`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from numpy.typing import NDArray

from ptystream.codecs import encode

from ..simulated.serving import serve


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


if __name__ == "__main__":
    serve(messages, "push")
