"""Copies of what was read from files, in the recording of the messages that referred to it.

Each is a message of the channel `FILES` with three parts: which rows (msgpack: [file, dataset, row] of a frame, [file, dataset,
first, stop] of readings), what the bytes are (msgpack: codec, dtype, shape), and the bytes, a compressed chunk as it was.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from typing import TypeAlias

import msgpack
import numpy as np

from ptystream.codecs import MAX_FRAME_BYTES
from ptystream.events import FileRows, Payload, Rows
from ptystream.ingest import Tap
from ptystream.recording import Recording
from ptystream.transport import Message

log = logging.getLogger(__name__)

FILES = "files"
"""Channel of the copies."""
Place: TypeAlias = tuple[str, str, int] | tuple[str, str, int, int]


class Kept:
    """Gives rows from a recording, and keeps those that were read in another; either may be missing. Thread-safe."""

    def __init__(self, recording: Recording | None = None, tap: Tap | None = None) -> None:
        self._recording, self._tap = recording, tap
        self._held: dict[Place, Message] | None = None
        """The recording's copies, as views on it; None before the first is asked for."""
        self._lock = threading.Lock()

    @property
    def lacking(self) -> str:
        """For the error where rows can be had neither from a file nor from here; '' where no recording is given back."""
        if self._recording is None:
            return ""
        return f"; {self._recording.path} has no copy of it: those are kept with io.recording.files"

    def find(self, where: FileRows | Rows) -> Payload | None:
        """What was read there when the recording was made; None where it holds no sound copy."""
        if self._recording is None:
            return None
        with self._lock:
            if self._held is None:
                self._held = _copies(self._recording)
        message = self._held.get(_place(where))
        if message is None:
            return None
        try:
            return _payload(message)
        except (ValueError, TypeError) as error:
            log.warning("%s: a copy of %s that cannot be used: %s", self._recording.path, where.file, error)
            return None

    def keep(self, where: FileRows | Rows, payload: Payload) -> None:
        """Record what was read. Waits while the recorder's queue is full; raises `RecordingError` where it has failed."""
        if self._tap is not None:
            told = msgpack.packb([payload.codec, payload.dtype.str, list(payload.shape)])
            self._tap.write(Message(time.time_ns(), FILES, (msgpack.packb(_place(where)), told, payload.buffer)))


def _place(where: FileRows | Rows) -> Place:
    if isinstance(where, FileRows):
        return where.file, where.dataset, where.row
    return where.file, where.dataset, where.first, where.stop


def _copies(recording: Recording) -> dict[Place, Message]:
    found: dict[Place, Message] = {}
    for message in recording:
        if message.channel == FILES and len(message.parts) == 3:
            try:
                found[tuple(msgpack.unpackb(message.parts[0]))] = message
            except (ValueError, TypeError, msgpack.UnpackException) as error:
                log.warning("%s: a copy of rows of a file that cannot be understood: %s", recording.path, error)
    return found


def _payload(message: Message) -> Payload:
    codec, kind, sides = msgpack.unpackb(message.parts[1])
    dtype, shape = np.dtype(str(kind)), tuple(int(side) for side in sides)
    size = memoryview(message.parts[2]).nbytes
    wanted = math.prod(shape) * dtype.itemsize
    if dtype.kind not in "uif" or min(shape, default=0) < 1 or wanted > MAX_FRAME_BYTES:
        raise ValueError(f"{shape} of {dtype}")
    if codec == "raw" and size != wanted:
        raise ValueError(f"{size} bytes for {shape} of {dtype}")
    return Payload(message.parts[2], str(codec), dtype, shape)
