"""slsDetectorPackage's receiver that is not there: `python -m ptystream.detectors.psi.simulator`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..simulated.serving import serve


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


if __name__ == "__main__":
    serve(messages, "pub")
