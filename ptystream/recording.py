"""The append-only record of everything that arrived: tap on a transport, source of a replay, memory after a crash.

A file is the magic line, then records: a fixed head, the parts' lengths, the parts; a CRC-32 covers all three. Negative
channels are ours: metadata, names of channels, the end of the session, and the index (which frames lie where). A torn tail
is normal: it is what a killed process leaves. The layout is in docs/reference/recording.md.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import mmap
import os
import struct
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from ptystream.transport import Message

log = logging.getLogger(__name__)

MAGIC = b"ptystream recording 1\n"
METADATA, CHANNEL, FINISHED, INDEX, GAP = -1, -2, -3, -4, -5
MAX_RECORD_BYTES = 1 << 33
GROUP_BYTES = 16 << 20
"""So much at most is written at once, so that acknowledgements are not held up."""
SHARED_BYTES = 4 << 20
"""The checksums of a larger group are shared by several threads."""
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What the operating system answers where nothing more fits."""
RETRY_S = 2.0
"""A full disk is tried again after so long."""

_RECORD = b"PTYR"
_HEAD = struct.Struct("<4sIQqiI")
"""Magic, CRC-32 of all that follows it, length behind the head, arrival, channel, number of parts."""
_COVERED = struct.Struct("<QqiI")
_LENGTH = struct.Struct("<Q")

Entry = tuple[Message, Callable[[Message], None] | None]
Frame = tuple[Message, str, NDArray[np.int64]]


class RecordingError(RuntimeError):
    """The recording cannot be written or read; the text says which file and why."""


class Recorder:
    """Appends messages in groups, in a thread of its own; tells each one's writer when it is kept.

    An existing file is continued behind its last whole record. Kept means handed to the operating system (it survives the
    death of the process), or with `fsync` written to the disk. While one group is written, the checksums of the next are made.
    Where the disk is full, with `go_on` the messages are given up, and counted, until there is room again: writers are told as
    if they were kept, because nobody else will keep them. Without it that is a failure. Raises `RecordingError` for a file that
    is something else.
    """

    def __init__(
        self,
        path: str | Path,
        metadata: Mapping[str, Any] | None = None,
        *,
        fsync: bool = False,
        queue_bytes: int = 256 << 20,
        go_on: bool = False,
    ) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.bytes_written = 0
        self.failure: BaseException | None = None
        self.lost = 0
        """Messages that were given up because the disk was full."""
        self.full = False
        """Whether it is full now, as far as was tried."""
        self._fsync, self._capacity, self._go_on = fsync, queue_bytes, go_on
        self._channels: dict[str, int] = {}
        self._offsets: dict[str, tuple[Message, int]] = {}
        self._named: set[int] = set()
        """Numbers of channels whose names are in the file."""
        self._end, has_metadata = self._reopen()
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115
        self._gap: list[int] = [0, 0]
        """[messages, bytes] that are not in the file, since the last that is."""
        self._tried = 0.0
        if self._end == 0:
            self._append([MAGIC])
        if not has_metadata:
            self._append(_record(time.time_ns(), METADATA, [msgpack.packb(dict(metadata or {}))]))
        self._queue: deque[Entry | Frame] = deque()
        self._queued = self._accepted = 0
        self._closing = False
        self._changed = threading.Condition()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._helpers = max(0, min(3, cores // 2 - 1))
        self._thread = threading.Thread(target=self._serve, name="recorder", daemon=True)
        self._thread.start()

    def write(self, message: Message, recorded: Callable[[Message], None] | None = None) -> None:
        """Queue a message; waits while the queue is full. Raises `RecordingError` once writing has failed."""
        size = _size(message)
        with self._changed:
            self._changed.wait_for(self._has_room(size))
            self._check()
            self._queued += size
            self._accepted += size
            self._queue.append((message, recorded))
            self._changed.notify_all()

    def index(self, message: Message, epoch: str, indices: NDArray[np.int64]) -> None:
        """Note which frames `message` holds: the last that its channel wrote. Raises `RecordingError` as `write` does."""
        with self._changed:
            self._check()
            self._queue.append((message, epoch, indices))
            self._changed.notify_all()

    def flush(self, timeout_s: float = 30.0) -> None:
        """Wait until everything that is queued now is kept, however much comes meanwhile."""
        with self._changed:
            until = self._accepted
            done = self._changed.wait_for(lambda: self._accepted - self._queued >= until or self.failure is not None, timeout_s)
            if not done:
                raise RecordingError(f"{self.path}: {self._queued} bytes are still queued after {timeout_s:g} s")
            self._check()

    def close(self, *, finished: bool = False) -> None:
        """Write what is queued and close; `finished` marks that the session came to its end and needs no recovery."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(60.0)
        if self._thread.is_alive():
            raise RecordingError(f"{self.path}: {self._queued} bytes are still queued after 60 s")
        if self.failure is None and not self._file.closed:
            with contextlib.suppress(OSError):  # a disk that is still full: then the session is continued by the next
                self._append(self._gap_record() + (_record(time.time_ns(), FINISHED, []) if finished else []))
        self._file.close()

    def _reopen(self) -> tuple[int, bool]:
        """Cut a torn tail off; returns where to go on, and whether metadata are there."""
        if not self.path.exists():
            return 0, False
        with open(self.path, "r+b") as file:
            if MAGIC.startswith(file.read(len(MAGIC))) and self.path.stat().st_size < len(MAGIC):
                file.truncate(0)  # killed within its first line
                return 0, False
            existing = Recording(self.path)
            for _ in existing:
                pass
            self._channels = {name: number for number, name in existing.channels.items()}
            self._named = set(existing.channels)
            file.truncate(existing.end)
        return existing.end, bool(existing.has_metadata)

    def _has_room(self, size: int) -> Callable[[], bool]:
        return lambda: self._queued == 0 or self._queued + size <= self._capacity or self.failure is not None or self._closing

    def _check(self) -> None:
        if self.failure is not None:
            raise RecordingError(f"{self.path}: {self.failure}") from self.failure
        if self._closing:
            raise RecordingError(f"{self.path}: closed")

    def _serve(self) -> None:
        """Thread body: checksums here (and with helpers), writing in a thread beside."""
        keeping: Future[None] | None = None
        try:
            with ThreadPoolExecutor(1, "recorder disk") as disk, ThreadPoolExecutor(max(1, self._helpers), "checksum") as pool:
                while group := self._next_group():
                    records = self._checked(group, pool)
                    if keeping is not None:
                        keeping.result()
                    keeping = disk.submit(self._keep, group, records)
                if keeping is not None:
                    keeping.result()
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self.failure = self.failure or error
            self._changed.notify_all()

    def _checked(self, group: Sequence[Entry | Frame], pool: ThreadPoolExecutor) -> list[list[Any]]:
        """The records of the messages in a group, in order; nothing of what is only indexed."""
        for entry in group:
            self._channels.setdefault(entry[0].channel, len(self._channels))
        messages = [entry[0] for entry in group if len(entry) == 2]

        def checked(part: Sequence[Message]) -> list[list[Any]]:
            return [_record(message.arrival_ns, self._channels[message.channel], message.parts) for message in part]

        if not self._helpers or sum(map(_size, messages)) < SHARED_BYTES or len(messages) <= self._helpers:
            return checked(messages)
        step = -(-len(messages) // (self._helpers + 1))
        others = [pool.submit(checked, messages[k : k + step]) for k in range(step, len(messages), step)]
        return checked(messages[:step]) + [record for other in others for record in other.result()]

    def _keep(self, group: Sequence[Entry | Frame], records: Sequence[list[Any]]) -> None:
        """Write a group, or give it up, and tell its writers."""
        kept = [entry for entry in group if len(entry) == 2]
        try:
            self._write_or_give_up(group, records, kept)
            for message, recorded in kept:
                if recorded is not None:
                    recorded(message)
            with self._changed:
                self._queued -= sum([_size(message) for message, _ in kept])
                self._changed.notify_all()
        except BaseException as error:
            self._fail(error)
            raise

    def _write_or_give_up(self, group: Sequence[Entry | Frame], records: Sequence[list[Any]], kept: Sequence[Entry]) -> None:
        if not self.full or time.monotonic() - self._tried >= RETRY_S or self._closing:
            try:
                self._write_group(group, records)
            except OSError as error:
                if error.errno not in FULL or not self._go_on:
                    raise
                self._tried = time.monotonic()
                if not self.full:
                    log.error("%s: %s: what comes is NOT RECORDED until there is room", self.path, error.strerror)
                self.full = True
            else:
                if self.full:
                    log.warning("%s: recording again; %d messages are not in it", self.path, self.lost)
                self.full = False
                return
        self.lost += len(kept)
        self._gap = [self._gap[0] + len(kept), self._gap[1] + sum([_size(message) for message, _ in kept])]

    def _next_group(self) -> list[Entry | Frame]:
        """What is queued, up to `GROUP_BYTES`; empty when closing."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._queue) or self._closing)
            group, size = [], 0
            while self._queue and size < GROUP_BYTES * (4 if self._fsync else 1):  # a disk is waited for seldom, then for more
                group.append(self._queue.popleft())
                size += _size(group[-1][0])
            return group

    def _write_group(self, group: Sequence[Entry | Frame], records: Sequence[list[Any]]) -> None:
        buffers: list[Any] = self._gap_record()
        index, named, offsets = [], set(), dict(self._offsets)
        end = self._end + _total(buffers)
        following = iter(records)
        for entry in group:
            message = entry[0]
            number = self._channels[message.channel]
            if number not in self._named and number not in named:
                named.add(number)
                name = _record(time.time_ns(), CHANNEL, [msgpack.packb([number, message.channel])])
                buffers += name
                end += _total(name)
            if len(entry) == 2:
                record = next(following)
                offsets[message.channel] = (message, end)
                buffers += record
                end += _total(record)
            else:
                last, offset = offsets.get(message.channel, (None, 0))
                if last is message:
                    index.append([number, offset, entry[1], np.asarray(entry[2], "<i8").tobytes()])
                elif not self.lost:  # otherwise it may have been given up
                    raise ValueError(f"{message.channel}: only the last message written can be indexed")
        if index:
            buffers += _record(time.time_ns(), INDEX, [msgpack.packb(index)])
        self._append(buffers)
        self._named |= named
        self._offsets, self._gap = offsets, [0, 0]
        if self._fsync:
            os.fsync(self._file.fileno())

    def _gap_record(self) -> list[Any]:
        """Says in the file that something is not in it."""
        return _record(time.time_ns(), GAP, [msgpack.packb(self._gap)]) if self._gap[0] else []

    def _append(self, buffers: list[Any]) -> None:
        """Write all of it, or nothing: what a full disk has left of it is cut off."""
        left = deque(memoryview(buffer).cast("B") for buffer in buffers if memoryview(buffer).nbytes)
        total = sum(view.nbytes for view in left)
        try:
            while left:
                written = os.writev(self._file.fileno(), [left[k] for k in range(min(len(left), 1024))])
                while left and left[0].nbytes <= written:
                    written -= left.popleft().nbytes
                if written:
                    left[0] = left[0][written:]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file.fileno(), self._end)
            raise
        self._end += total
        self.bytes_written += total


class Recording:
    """Reads a recording. Iterating gives the messages, as views on the file; the other fields are known afterwards."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.metadata: dict[str, Any] = {}
        self.has_metadata = False
        self.channels: dict[int, str] = {}
        self.finished = False
        """Whether the session that wrote it came to its end."""
        self.end = len(MAGIC)
        """Offset behind the last whole record."""
        self.torn = 0
        """Bytes behind `end` that are no whole record."""
        self.damaged = 0
        """Stretches skipped because their checksum did not match."""
        self._gaps: dict[int, int] = {}  # offset -> messages: read twice, or by two threads, it is counted once
        try:
            with open(self.path, "rb") as file:
                if file.read(len(MAGIC)) != MAGIC:
                    raise RecordingError(f"{self.path}: not a recording of version 1; `ptystream record` makes one")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise RecordingError(f"{self.path}: {error.strerror}") from error
        for _, record in self._records():  # as far as the first message: metadata are known from the start
            if record is not None:
                break

    def __iter__(self) -> Iterator[Message]:
        self.damaged, self.finished = 0, False
        for _, message in self._records():
            if message is not None:
                self.finished = False
                yield message

    @property
    def missing(self) -> int:
        """Messages that came and were not recorded, because the disk was full; as far as it has been read."""
        return sum(self._gaps.copy().values())

    def missing_in_all(self) -> int:
        """The same for the whole file, which is read for it."""
        for _ in self._records():
            pass
        return self.missing

    def frames(self) -> dict[tuple[str, str], dict[int, int]]:
        """The index: for each (channel, epoch) the offset of the message that holds each frame."""
        found: dict[tuple[str, str], dict[int, int]] = {}
        for offset, message in self._records():
            if message is None and self._channel_at(offset) == INDEX:
                _, parts, _ = self._whole(offset) or (0, (b"\x90",), 0)
                for number, where, epoch, raw in msgpack.unpackb(parts[0]):
                    table = found.setdefault((self.channels.get(number, f"channel {number}"), epoch), {})
                    table.update(dict.fromkeys(np.frombuffer(raw, "<i8").tolist(), where))
        return found

    def contents(self, channel: str) -> tuple[list[int], dict[str, list[tuple[int, NDArray[np.int64]]]]]:
        """(offsets of all messages of a channel; by epoch, which of them hold which frames, as far as the index tells), both in
        the order in which they came."""
        offsets: list[int] = []
        found: dict[str, list[tuple[int, NDArray[np.int64]]]] = {}
        for offset, message in self._records():
            if message is not None:
                if message.channel == channel:
                    offsets.append(offset)
            elif self._channel_at(offset) == INDEX:
                _, parts, _ = self._whole(offset) or (0, (b"\x90",), 0)
                for number, where, epoch, raw in msgpack.unpackb(parts[0]):
                    if self.channels.get(number) == channel:
                        found.setdefault(epoch, []).append((where, np.frombuffer(raw, "<i8")))
        return offsets, found

    def at(self, offset: int) -> Message:
        """The message that begins at `offset` (of `frames`). Raises `RecordingError` where there is none."""
        whole = self._whole(offset)
        if whole is None or self._channel_at(offset) < 0:
            raise RecordingError(f"{self.path}: no whole message begins at byte {offset}")
        return self._message(offset, whole[1], whole[2])

    def _records(self) -> Iterator[tuple[int, Message | None]]:
        """(offset, message, or None for a record of ours), skipping what is damaged."""
        at, total = len(MAGIC), len(self._map)
        while at < total:
            whole = self._whole(at)
            if whole is None:
                following = self._resynchronise(at + 1)
                if following is None:
                    break
                self.damaged += 1
                at = following
                continue
            stop, parts, arrival = whole
            number = self._channel_at(at)
            self.end = max(self.end, stop)
            if number >= 0:
                yield at, self._message(at, parts, arrival)
            else:
                self._note(at, number, parts)
                yield at, None
            at = stop
        self.torn = total - self.end

    def _whole(self, at: int) -> tuple[int, tuple[memoryview, ...], int] | None:
        """(end, parts, arrival) of the record at `at`; None where none with a sound checksum begins."""
        data = memoryview(self._map)
        if at < 0 or at + _HEAD.size > len(data):
            return None
        magic, crc, length, arrival, _, count = _HEAD.unpack_from(data, at)
        stop = at + _HEAD.size + length
        if magic != _RECORD or length > MAX_RECORD_BYTES or stop > len(data) or _LENGTH.size * count > length:
            return None
        if zlib.crc32(data[at + 8 : stop]) != crc:
            return None
        first = at + _HEAD.size
        parts, begin = [], first + _LENGTH.size * count
        for k in range(count):
            (size,) = _LENGTH.unpack_from(data, first + _LENGTH.size * k)
            parts.append(data[begin : begin + size])
            begin += size
        return (stop, tuple(parts), arrival) if begin == stop else None

    def _channel_at(self, at: int) -> int:
        return int(_HEAD.unpack_from(self._map, at)[4])

    def _message(self, at: int, parts: tuple[memoryview, ...], arrival: int) -> Message:
        number = self._channel_at(at)
        return Message(arrival, self.channels.get(number, f"channel {number}"), parts)

    def _note(self, at: int, number: int, parts: tuple[memoryview, ...]) -> None:
        if number == METADATA:
            self.metadata, self.has_metadata = msgpack.unpackb(parts[0], strict_map_key=False), True
        elif number == CHANNEL:
            key, name = msgpack.unpackb(parts[0])
            self.channels[int(key)] = str(name)
        elif number == FINISHED:
            self.finished = True
        elif number == GAP:
            self._gaps[at] = int(msgpack.unpackb(parts[0])[0])

    def _resynchronise(self, start: int) -> int | None:
        """Offset of the next whole record at or behind `start`."""
        found = self._map.find(_RECORD, start)
        while found >= 0:
            if self._whole(found) is not None:
                return found
            found = self._map.find(_RECORD, found + 1)
        return None


def _size(message: Message) -> int:
    return 64 + sum([memoryview(part).nbytes for part in message.parts])


def _total(buffers: Sequence[Any]) -> int:
    return sum([memoryview(buffer).nbytes for buffer in buffers])


def _record(arrival_ns: int, channel: int, parts: Sequence[Any]) -> list[Any]:
    views = [memoryview(part).cast("B") for part in parts]
    lengths = b"".join([_LENGTH.pack(view.nbytes) for view in views])
    total = len(lengths) + sum([view.nbytes for view in views])
    crc = zlib.crc32(lengths, zlib.crc32(_COVERED.pack(total, arrival_ns, channel, len(views))))
    for view in views:
        crc = zlib.crc32(view, crc)
    return [_HEAD.pack(_RECORD, crc, total, arrival_ns, channel, len(views)), lengths, *views]
