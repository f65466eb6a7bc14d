"""The acknowledged link without its sockets: nothing is forgotten before it was recorded at the other end.

Every message of a sender's stream has a number. The sender keeps what is not acknowledged; a receiver says HELLO with the
number that it needs next, whenever it (re)connects, and ACK with the number below which everything is recorded. A receiver
that was killed knows from its recording what it needs. A sender that starts anew is a new stream.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Sequence
from typing import Any

from ptystream.events import Buffer

_ENVELOPE = struct.Struct("<4sB3x8sQ")
_MAGIC, _VERSION = b"PTYL", 1
_CONTROL = struct.Struct("<4sB3x8sQ")
NO_STREAM = bytes(8)


def envelope(stream: bytes, number: int) -> bytes:
    """The part that precedes a message on the link."""
    return _ENVELOPE.pack(_MAGIC, _VERSION, stream, number)


def is_envelope(part: Buffer) -> bool:
    """Whether a first part is one."""
    raw = memoryview(part).cast("B")
    return len(raw) == _ENVELOPE.size and bytes(raw[:4]) == _MAGIC and raw[4] == _VERSION


def opened(part: Buffer) -> tuple[bytes, int]:
    """(stream, number) of an envelope."""
    _, _, stream, number = _ENVELOPE.unpack(memoryview(part).cast("B"))
    return stream, number


def control(kind: bytes, stream: bytes, number: int) -> bytes:
    """A receiver's word: kind is b'HELO' or b'ACKN'."""
    return _CONTROL.pack(kind, _VERSION, stream, number)


def read_control(raw: bytes) -> tuple[bytes, bytes, int] | None:
    """(kind, stream, number), or None for anything else."""
    if len(raw) != _CONTROL.size:
        return None
    kind, version, stream, number = _CONTROL.unpack(raw)
    return (kind, stream, number) if version == _VERSION and kind in (b"HELO", b"ACKN") else None


class LinkReceiver:
    """What has been taken; fed with the envelopes of live and of recorded messages alike."""

    def __init__(self) -> None:
        self.stream, self.next = NO_STREAM, 0

    def accept(self, part: Buffer) -> int:
        """Take the next message: 0 as expected, n > 0 where n messages before it are missing, -1 for a repetition."""
        stream, number = opened(part)
        if stream != self.stream:
            self.stream, self.next = stream, number + 1
            return 0
        if number < self.next:
            return -1
        missing, self.next = number - self.next, number + 1
        return missing


class LinkSender:
    """What is not yet acknowledged, in order, bounded by bytes."""

    def __init__(self, stream: bytes, capacity_bytes: int) -> None:
        self.stream, self.capacity_bytes = stream, capacity_bytes
        self.held_bytes = 0
        self.first = 0
        """Number of the oldest message held."""
        self.next = 0
        """Number of the next message."""
        self.to_send = 0
        """Number of the next message that the present peer gets."""
        self._held: deque[tuple[tuple[Buffer, ...], int]] = deque()

    def fits(self, size: int) -> bool:
        """Whether a message of `size` bytes may be added; one at least always fits."""
        return not self._held or self.held_bytes + size <= self.capacity_bytes

    def add(self, parts: Sequence[Buffer], size: int) -> None:
        """Hold a message."""
        self._held.append(((envelope(self.stream, self.next), *parts), size))
        self.held_bytes += size
        self.next += 1

    def take(self) -> tuple[Buffer, ...] | None:
        """The next message for the present peer, or None."""
        if self.to_send >= self.next:
            return None
        self.to_send += 1
        return self._held[self.to_send - 1 - self.first][0]

    def hello(self, stream: bytes, number: int) -> None:
        """A peer (re)connected and needs `number` of `stream`; another stream means that it knows nothing of ours."""
        if stream == self.stream:
            self.acknowledged(stream, number)
        self.to_send = self.first

    def acknowledged(self, stream: bytes, number: int) -> None:
        """Everything below `number` is recorded."""
        if stream != self.stream:
            return
        while self._held and self.first < min(number, self.next):
            self.held_bytes -= self._held.popleft()[1]
            self.first += 1
        self.to_send = max(self.to_send, self.first)


def size_of(parts: Sequence[Any]) -> int:
    """Bytes of a message."""
    return sum(memoryview(part).nbytes for part in parts)
