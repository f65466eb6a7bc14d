"""An IOC that is not there: a PV with an NTNDArray. `python -m ptystream.detectors.pva.simulator` serves one simulated scan."""

from __future__ import annotations

import argparse
import threading
import time
import zlib
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ptystream.codecs import encode

from ..simulated.simulator import Beamline
from .protocol import SCALARS

_PREFIX = {
    "bool": "boolean",
    "int8": "byte",
    "int16": "short",
    "int32": "int",
    "int64": "long",
    "uint8": "ubyte",
    "uint16": "ushort",
    "uint32": "uint",
    "uint64": "ulong",
    "float32": "float",
    "float64": "double",
}
"""How the members of the union of pixels are called."""


class Ioc:
    """Serves one PV on loopback. A context manager."""

    def __init__(self, pv: str, *, isolate: bool = True) -> None:
        """`isolate`: on ports of its own, which `conf` tells."""
        from p4p.nt import NTNDArray
        from p4p.server import Server
        from p4p.server.thread import SharedPV

        self._type = NTNDArray.buildType()
        self._pv = SharedPV(initial=self._value(np.zeros((1, 1), "u1"), 0, ""))
        self._server = Server(providers=[{pv: self._pv}], isolate=isolate)
        self.conf: dict[str, str] = dict(self._server.conf())

    def post(self, frame: NDArray[Any], number: int, codec: str = "") -> None:
        """One frame (y, x) with its unique id; `codec` is '', 'bslz4', 'lz4' or 'zlib'."""
        self._pv.post(self._value(frame, number, codec))

    def _value(self, frame: NDArray[Any], number: int, codec: str) -> Any:
        from p4p import Value

        # The heads of the HDF5 filters are not part of what an IOC sends.
        skip = {"bslz4": 12, "lz4": 16}.get(codec, 0)
        packed = frame.ravel()
        if codec == "zlib":
            packed = np.frombuffer(zlib.compress(frame.tobytes()), np.uint8)
        elif codec:
            packed = np.frombuffer(encode(frame, codec)[skip:], np.uint8)
        now = time.time_ns()
        value = {
            "value": (f"{_PREFIX.get(packed.dtype.name, packed.dtype.name)}Value", packed),
            "codec": {"name": codec, "parameters": SCALARS.index(frame.dtype.name) if codec else None},
            "compressedSize": packed.nbytes,
            "uncompressedSize": frame.nbytes,
            "uniqueId": number,
            "dataTimeStamp": {"secondsPastEpoch": now // 10**9, "nanoseconds": now % 10**9, "userTag": 0},
            "dimension": [{"size": n, "offset": 0, "fullSize": n, "binning": 1, "reverse": False} for n in frame.shape[::-1]],
        }
        return Value(self._type, value)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, where: TracebackType | None) -> None:
        self._server.stop()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Serve the frames of one simulated scan as a PV.")
    parser.add_argument("--pv", default="SIM:Pva1:Image")
    parser.add_argument("--frames", type=int, default=400)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--rate", type=float, default=50.0, help="frames per second")
    parser.add_argument("--codec", choices=["", "bslz4", "lz4", "zlib"], default="")
    given = parser.parse_args()
    beamline = Beamline(frames=given.frames, side=given.side)
    truth = (beamline.probe(), beamline.object())
    frames = [beamline.pattern(k, truth) for k in range(given.frames)]
    with Ioc(given.pv, isolate=False) as ioc:
        input(f"{given.pv} is served; press Enter to begin the scan ")
        for number, frame in enumerate(frames):
            ioc.post(frame, number + 1, given.codec)
            threading.Event().wait(1 / given.rate)


if __name__ == "__main__":
    main()
