"""A PandABox that is not there: its data port on TCP, and the documents of a re-publisher.

`python -m ptystream.detectors.panda.simulator --port 8889` serves one simulated scan after another.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from ..simulated.simulator import Beamline

Y, X, TRIGGER, TIME = "INENC1.VAL", "INENC2.VAL", "COUNTER1.OUT", "PCAP.TS_TRIG"
RESOLUTION_UM = 0.001
"""Micrometres of one encoder count, for raw data."""


def readings(beamline: Beamline) -> NDArray[np.float64]:
    """(sample, 4): y and x in micrometres, the frame's number, the time in seconds."""
    per = beamline.samples_per_frame
    places = np.repeat(beamline.positions_m() * 1e6, per, axis=0)
    frames = np.repeat(np.arange(beamline.frames), per)
    times = (np.arange(len(frames)) + 0.5) / (beamline.rate_hz * per)
    return np.column_stack([places, frames, times])


def stream(
    table: NDArray[np.float64],
    *,
    scaled: bool = True,
    missed: int = 0,
    arm_time: str = "",
    reason: str = "Ok",
    together: int = 100,
) -> Iterator[bytes]:
    """One acquisition as the data port sends it, in its natural pieces; `missed` samples are left out at the beginning."""
    names = (Y, X, TRIGGER, TIME)
    units, scales = ("um", "um", "", "s"), (RESOLUTION_UM, RESOLUTION_UM, 1.0, 8e-9)
    kinds = ["double"] * 4 if scaled else ["int32", "int32", "int32", "int64"]
    attributes = {
        "missed": missed,
        "process": "Scaled" if scaled else "Raw",
        "format": "Framed",
        "sample_bytes": sum(4 if kind == "int32" else 8 for kind in kinds),
    }
    attributes |= {"arm_time": arm_time} if arm_time else {}
    lines = ["<header>", f"<data {' '.join(f'{k}={quoteattr(str(v))}' for k, v in attributes.items())} />", "<fields>"]
    for name, kind, unit, scale in zip(names, kinds, units, scales, strict=True):
        more = f' scale="{scale!r}" offset="0" units="{unit}"' if unit else ""
        lines.append(f'<field name="{name}" type="{kind}" capture="Value"{more} />')
    yield ("\n".join([*lines, "</fields>", "</header>"]) + "\n\n").encode()
    dtype = np.dtype(
        [(name, {"double": "<f8", "int32": "<i4", "int64": "<i8"}[kind]) for name, kind in zip(names, kinds, strict=True)]
    )
    packed = np.zeros(len(table), dtype)
    for column, (name, scale) in enumerate(zip(names, scales, strict=True)):
        packed[name] = table[:, column] if scaled else np.round(table[:, column] / scale)
    for first in range(missed, len(table), together):
        body = packed[first : first + together].tobytes()
        yield b"BIN " + struct.pack("<I", len(body) + 8) + body
    yield f"END {len(table)} {reason}\n".encode()


def documents(table: NDArray[np.float64], *, arm_time: str = "", together: int = 100) -> Iterator[bytes]:
    """The same as a re-publisher sends it."""
    yield json.dumps({"msg_type": "start", "arm_time": arm_time}).encode()
    number = 0
    for number, first in enumerate(range(0, len(table), together)):
        part = table[first : first + together]
        names = (f"/{Y}.Value", f"/{X}.Value", f"/{TRIGGER}.Value", f"/{TIME}.Value")
        block = {"dtype": "float64", "size": len(part), "starting_sample_number": first}
        datasets = {name: {**block, "data": part[:, k].tolist()} for k, name in enumerate(names)}
        yield json.dumps({"msg_type": "data", "frame_number": number, "datasets": datasets}).encode()
    yield json.dumps({"msg_type": "stop", "emitted_frames": number + 1}).encode()


class PandaServer(threading.Thread):
    """Serves acquisitions on a data port: to each connection those of `acquisitions` that were not served yet.

    An acquisition is a list of pieces for the scaled and one for the raw form. `drop_after`: that many pieces into the first
    one the connection is closed once.
    """

    def __init__(self, acquisitions: Sequence[tuple[list[bytes], list[bytes]]], port: int = 0, *, drop_after: int = 0) -> None:
        super().__init__(daemon=True, name="panda")
        self._acquisitions, self._drop_after = list(acquisitions), drop_after
        self._listening = socket.create_server(("127.0.0.1", port))
        self._listening.settimeout(0.1)
        self.port = int(self._listening.getsockname()[1])
        self._stop_asked = threading.Event()
        self.heard: list[bytes] = []
        """What clients asked for."""

    def run(self) -> None:
        """Thread body."""
        with self._listening:
            while not self._stop_asked.is_set():
                try:
                    connection, _ = self._listening.accept()
                except TimeoutError:
                    continue
                with connection, contextlib.suppress(OSError):  # a client that goes away costs the next one nothing
                    self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(60.0)
        asked = connection.recv(100)
        self.heard.append(asked)
        connection.sendall(b"OK\n" if asked.startswith(b"XML FRAMED") else b"ERR what\n")
        while self._acquisitions and not self._stop_asked.is_set():
            pieces = self._acquisitions[0][1 if b"RAW" in asked else 0]
            for number, piece in enumerate(pieces):
                if self._drop_after and number == self._drop_after:
                    self._drop_after = 0
                    self._acquisitions.pop(0)
                    return
                connection.sendall(piece)
            self._acquisitions.pop(0)
        self._stop_asked.wait()

    def stop(self) -> None:
        """End the server and wait for it."""
        self._stop_asked.set()
        self.join(10)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Serve simulated acquisitions of a PandABox on its data port.")
    parser.add_argument("--port", type=int, default=8889)
    parser.add_argument("--frames", type=int, default=400)
    parser.add_argument("--scans", type=int, default=1)
    given = parser.parse_args()
    table = readings(Beamline(frames=given.frames))
    made = [[list(stream(table, scaled=s, arm_time=f"scan {k}")) for s in (True, False)] for k in range(given.scans)]
    server = PandaServer([(scaled, raw) for scaled, raw in made], given.port)
    print(f"listening on 127.0.0.1:{server.port}", flush=True)
    server.run()


if __name__ == "__main__":
    main()
