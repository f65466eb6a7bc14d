"""An IOC's ZeroMQ plug-in that is not there: `python -m ptystream.detectors.areadetector.simulator`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from numpy.typing import NDArray

from ptystream.codecs import encode

from ..simulated.serving import serve


def messages(frames: NDArray[Any], *, first_id: int = 1, codec: str = "raw", htype: Any = None) -> Iterator[list[bytes]]:
    """One acquisition, frames of shape (frame, y, x)."""
    for number, frame in enumerate(frames):
        header = {
            "htype": htype or ["array-1.0"],
            "type": frame.dtype.name,
            "shape": [frame.shape[1], frame.shape[0]],
            "frame": first_id + number,
            "timeStamp": 1.7e9 + 0.01 * number,
            "ndattr": {"NDArrayTimeStamp": 0},
        }
        header |= {} if codec == "raw" else {"encoding": codec}
        yield [json.dumps(header).encode(), encode(frame, codec)]


if __name__ == "__main__":
    serve(messages, "pub")
