"""The append-only record of everything that arrived: tap on a transport, source of a replay, memory after a crash.

A file is the magic line, then records: a fixed head (magic, length, CRC-32 of what follows, arrival, channel, number of
parts), the parts' lengths, the parts. Channel -1 holds metadata, -2 names channels. A torn tail is normal: it is what a
killed process leaves.
"""

from __future__ import annotations

import os
import queue
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from ptystream.transport import Message, TransportClosed

MAGIC = b"ptystream recording 1\n"
_HEAD = struct.Struct("<4sQIqiI")
_RECORD = b"PTYR"
_LENGTH = struct.Struct("<Q")
METADATA, CHANNEL, FINISHED = -1, -2, -3
MAX_RECORD_BYTES = 1 << 33


class RecordingError(RuntimeError):
    """The recording cannot be written or read; the text says which file and why."""


class Recorder:
    """Appends messages in a thread of its own, in groups; tells each one's writer when it is kept."""

    def __init__(
        self, path: str | Path, metadata: Mapping[str, Any] | None = None, *, fsync: bool = False, queue_bytes: int = 256 << 20
    ) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.bytes_written = 0
        self.failure: BaseException | None = None
        self._fsync, self._capacity = fsync, queue_bytes
        self._channels: dict[str, int] = {}
        fresh = not self.path.exists() or self.path.stat().st_size == 0
        if not fresh:
            existing = Recording(self.path)
            for _ in existing:
                pass
            self._channels = {name: number for number, name in existing.channels.items()}
            with open(self.path, "r+b") as file:
                file.truncate(existing.end)
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115
        if fresh:
            self._file.write(MAGIC)
            self._append(_record(time.time_ns(), METADATA, [msgpack.packb(dict(metadata or {}))]))
        self._queue: queue.SimpleQueue[tuple[Message, Callable[[Message], None] | None] | None] = queue.SimpleQueue()
        self._queued = 0
        self._room = threading.Condition()
        self._thread = threading.Thread(target=self._serve, name="recorder", daemon=True)
        self._thread.start()

    def write(self, message: Message, recorded: Callable[[Message], None] | None = None) -> None:
        """Queue a message; waits while the queue is full. Raises `RecordingError` once writing has failed."""
        size = _size(message)
        with self._room:
            self._room.wait_for(lambda: self._queued == 0 or self._queued + size <= self._capacity or self.failure is not None)
            self._check()
            self._queued += size
        self._queue.put((message, recorded))

    def flush(self, timeout_s: float = 30.0) -> None:
        """Wait until everything queued is kept."""
        with self._room:
            if not self._room.wait_for(lambda: self._queued == 0 or self.failure is not None, timeout_s):
                raise RecordingError(f"{self.path}: {self._queued} bytes are still queued after {timeout_s:g} s")
        self._check()

    def close(self, *, finished: bool = False) -> None:
        """Write what is queued and close; `finished` marks that the session came to its end and needs no recovery."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join(60.0)
        if finished and self.failure is None and not self._file.closed:
            self._append(_record(time.time_ns(), FINISHED, []))
        self._file.close()

    def _check(self) -> None:
        if self.failure is not None:
            raise RecordingError(f"{self.path}: {self.failure}") from self.failure

    def _serve(self) -> None:
        try:
            while True:
                group = [self._queue.get()]
                while group[-1] is not None and len(group) < 256:
                    try:
                        group.append(self._queue.get_nowait())
                    except queue.Empty:
                        break
                items = [item for item in group if item is not None]
                for message, _ in items:
                    self._append(_record(message.arrival_ns, self._number(message.channel), message.parts))
                if self._fsync and items:
                    os.fsync(self._file.fileno())
                for message, recorded in items:
                    if recorded is not None:
                        recorded(message)
                with self._room:
                    self._queued -= sum(_size(message) for message, _ in items)
                    self._room.notify_all()
                if group[-1] is None:
                    return
        except BaseException as error:
            with self._room:
                self.failure = error
                self._room.notify_all()

    def _number(self, channel: str) -> int:
        number = self._channels.get(channel)
        if number is None:
            number = self._channels[channel] = len(self._channels)
            self._append(_record(time.time_ns(), CHANNEL, [msgpack.packb([number, channel])]))
        return number

    def _append(self, buffers: list[Any]) -> None:
        total = sum(memoryview(b).nbytes for b in buffers)
        done = 0
        while done < total:
            written = os.writev(self._file.fileno(), buffers[:1024])
            done += written
            if done < total:
                while buffers and memoryview(buffers[0]).nbytes <= written:
                    written -= memoryview(buffers.pop(0)).nbytes
                if buffers and written:
                    buffers[0] = memoryview(buffers[0]).cast("B")[written:]
        self.bytes_written += total


class Recording:
    """Reads a recording. Iterating gives the messages; `end`, `torn` and `damaged` are known afterwards."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.metadata: dict[str, Any] = {}
        self.channels: dict[int, str] = {}
        self.finished = False
        """Whether the session that wrote it came to its end."""
        self.end = len(MAGIC)
        """Offset behind the last whole record."""
        self.torn = 0
        """Bytes behind `end` that are no whole record."""
        self.damaged = 0
        """Records skipped because their checksum did not match."""
        self.offsets: list[int] = []
        """Where each message that was given out begins."""
        try:
            with open(self.path, "rb") as file:
                if file.read(len(MAGIC)) != MAGIC:
                    raise RecordingError(f"{self.path}: not a recording of version 1")
            self._map: NDArray[np.uint8] = np.memmap(self.path, np.uint8, mode="r")
        except OSError as error:
            raise RecordingError(f"{self.path}: {error.strerror}") from error
        for _ in self._records(stop_at_message=True):
            break

    def __iter__(self) -> Iterator[Message]:
        self.offsets.clear()
        self.damaged, self.finished = 0, False
        for offset, arrival, number, parts in self._records():
            self.offsets.append(offset)
            yield Message(arrival, self.channels.get(number, f"channel {number}"), parts)

    def index(self) -> list[tuple[int, Message]]:
        """(offset, message) of every message."""
        return [(self.offsets[k], message) for k, message in enumerate(self)]

    def _records(self, stop_at_message: bool = False) -> Iterator[tuple[int, int, int, tuple[memoryview, ...]]]:
        data, at = self._map.data, len(MAGIC)
        total = len(data)
        while at + _HEAD.size <= total:
            magic, length, crc, arrival, number, count = _HEAD.unpack_from(data, at)
            stop = at + _HEAD.size + length
            if magic != _RECORD or length > MAX_RECORD_BYTES or stop > total or _LENGTH.size * count > length:
                following = self._resynchronise(at + 1)
                if following is None:
                    break
                self.damaged += 1
                at = following
                continue
            body = data[at + _HEAD.size : stop]
            if zlib.crc32(body) != crc:
                self.damaged += 1
                at = stop
                continue
            parts = _split(body, count)
            here, at = at, stop
            self.end = stop
            if number == METADATA:
                self.metadata = msgpack.unpackb(parts[0], strict_map_key=False)
            elif number == CHANNEL:
                key, name = msgpack.unpackb(parts[0])
                self.channels[int(key)] = str(name)
            elif number == FINISHED:
                self.finished = True
            else:
                yield here, arrival, number, parts
                self.finished = False
        self.torn = total - self.end

    def _resynchronise(self, start: int) -> int | None:
        """Offset of the next record with a sound checksum at or behind `start`."""
        data = self._map.data
        raw = bytes(data[start : start + (64 << 20)])
        found = raw.find(_RECORD)
        while found >= 0:
            at = start + found
            if at + _HEAD.size <= len(data):
                _, length, crc, _, _, _ = _HEAD.unpack_from(data, at)
                stop = at + _HEAD.size + length
                if length <= MAX_RECORD_BYTES and stop <= len(data) and zlib.crc32(data[at + _HEAD.size : stop]) == crc:
                    return at
            found = raw.find(_RECORD, found + 1)
        return None


class Replay:
    """Paces the channels of one recording: messages come in their order, at `speed` times their own pace (inf: at once)."""

    def __init__(self, recording: Recording, channels: list[str], speed: float = float("inf")) -> None:
        self.recording, self.speed = recording, speed
        self._queues: dict[str, queue.Queue[Message | None]] = {name: queue.Queue(64) for name in channels}
        self._over = threading.Event()
        self._waiting = threading.Semaphore(0)
        self._opened = 0
        self._thread = threading.Thread(target=self._serve, name="replay", daemon=True)

    def transport(self, channel: str) -> ReplayTransport:
        """The transport of one channel; the replay begins when all are open."""
        return ReplayTransport(self, channel)

    def _open(self) -> None:
        self._opened += 1
        if self._opened == len(self._queues):
            self._thread.start()

    def _serve(self) -> None:
        began, first = time.monotonic(), None
        for message in self.recording:
            first = message.arrival_ns if first is None else first
            due = began + (message.arrival_ns - first) / 1e9 / self.speed
            if due > time.monotonic() and self._over.wait(due - time.monotonic()):
                return
            self._put(message.channel, message)
        for name in self._queues:
            self._put(name, None)

    def _put(self, channel: str, message: Message | None) -> None:
        into = self._queues.get(channel)
        while into is not None and not self._over.is_set():
            try:
                into.put(message, timeout=0.2)
                return
            except queue.Full:
                continue


class ReplayTransport:
    """One channel of a replay. See `ptystream.transport.Transport`."""

    def __init__(self, replay: Replay, channel: str) -> None:
        self.channel, self._replay = channel, replay

    def open(self) -> None:
        """The last one to open starts the replay."""
        self._replay._open()

    def receive(self, timeout_s: float) -> Message | None:
        """The next message of the channel."""
        try:
            message = self._replay._queues[self.channel].get(timeout=timeout_s)
        except queue.Empty:
            return None
        if message is None:
            raise TransportClosed(f"{self.channel}: the replay is over")
        return message

    def acknowledge(self, message: Message) -> None:
        """Nothing to do: it lies in a file."""

    def close(self) -> None:
        """Ends the replay for all."""
        self._replay._over.set()


def _size(message: Message) -> int:
    return 64 + sum(memoryview(part).nbytes for part in message.parts)


def _record(arrival_ns: int, channel: int, parts: Any) -> list[Any]:
    views = [memoryview(part).cast("B") for part in parts]
    lengths = b"".join(_LENGTH.pack(view.nbytes) for view in views)
    crc = zlib.crc32(lengths)
    for view in views:
        crc = zlib.crc32(view, crc)
    total = len(lengths) + sum(view.nbytes for view in views)
    return [_HEAD.pack(_RECORD, total, crc, arrival_ns, channel, len(views)), lengths, *(v for v in views if v.nbytes)]


def _split(body: memoryview, count: int) -> tuple[memoryview, ...]:
    sizes = [_LENGTH.unpack_from(body, _LENGTH.size * k)[0] for k in range(count)]
    parts, at = [], _LENGTH.size * count
    for size in sizes:
        parts.append(body[at : at + size])
        at += size
    return tuple(parts)
