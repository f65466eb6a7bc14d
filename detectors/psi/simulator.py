"""slsDetectorPackage's receiver that is not there: `python -m ptystream.detectors.psi.simulator`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ptystream.events import Buffer
from ptystream.simulating import Unsimulated

from ..simulated.rehearsal import Rehearsal
from ..simulated.serving import LOOK_S, Serving, Timed, frame_by_frame, in_the_clear, serve
from ..zmq.plain import PlainSender


def messages(
    frames: NDArray[Any], *, rows: int = 2, columns: int = 1, first: int = 1, file_index: int = 0
) -> Iterator[list[bytes]]:
    """One acquisition, frames of shape (frame, y, x) cut into `rows` × `columns` ports; numbers go on from `first`."""
    height, width = frames.shape[1] // rows, frames.shape[2] // columns
    for number, frame in enumerate(frames):
        for row in range(rows):
            for column in range(columns):
                part = np.ascontiguousarray(frame[row * height : (row + 1) * height, column * width : (column + 1) * width])
                header = {
                    "jsonversion": 4,
                    "bitmode": 8 * frame.dtype.itemsize,
                    "shape": [width, height],
                    "detshape": [columns, rows],
                    "fname": "run",
                    "fileIndex": file_index,
                    "frameIndex": number,
                    "frameNumber": first + number,
                    "row": row,
                    "column": column,
                    "size": part.nbytes,
                    "completeImage": 1,
                    "data": 1,
                }
                yield [json.dumps(header).encode(), part.tobytes()]
    for row in range(rows):
        for column in range(columns):
            yield [json.dumps({"data": 0, "row": row, "column": column}).encode()]


class Ports:
    """One sender for each port of the detector: part k of every frame goes over the k-th."""

    def __init__(self, senders: list[PlainSender]) -> None:
        self._senders, self._next = senders, 0
        self.address = senders[0].address

    def wait(self, timeout_s: float) -> None:
        """Wait until somebody listens to each. Raises `TimeoutError`."""
        for sender in self._senders:
            sender.wait(timeout_s)

    def again(self, parts: Sequence[Buffer]) -> None:
        """Send a part of a frame over the port whose turn it is. Raises `TimeoutError` where nobody takes it."""
        self._senders[self._next].again(parts)
        self._next = (self._next + 1) % len(self._senders)

    def flush(self, timeout_s: float = 30.0) -> None:
        """Let what is queued so much time to go, on closing."""
        for sender in self._senders:
            sender.flush(timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for sender in self._senders:
            sender.__exit__()


def simulator(parameters: Any, rehearsal: Rehearsal) -> Serving:
    """What plays a simulated scan to a source with these parameters: as many ports as it has, below each other."""
    in_the_clear(parameters)
    rows = parameters.ports
    if rehearsal.raw_shape()[0] % rows:
        raise Unsimulated("ports", rows, f"must divide the {rehearsal.raw_shape()[0]} rows of the simulated frame")
    senders: list[PlainSender] = []
    try:
        for address in parameters.addresses:
            senders.append(PlainSender(parameters.link, address, timeout_s=LOOK_S, bind=not parameters.bind))
    except (OSError, ValueError):
        for sender in senders:
            sender.__exit__()
        raise

    def made(number: int, began_ns: int) -> Timed:
        parts = messages(rehearsal.frames(), rows=rows, first=1 + (number - 1) * rehearsal.beamline.frames, file_index=number)
        return frame_by_frame(parts, rehearsal.rate_hz, each=rows)

    return Serving(Ports(senders), made)


if __name__ == "__main__":
    serve(messages, "pub")
