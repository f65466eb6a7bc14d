"""The seam between bytes and everything else: a transport yields messages, and a recording or a test is one too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ptystream.events import Buffer


@dataclass(frozen=True, slots=True)
class Message:
    """One message as it arrived."""

    arrival_ns: int
    """`time.time_ns()` when it was taken from the socket (of the original arrival, in a replay)."""
    channel: str
    """Which source of the configuration it belongs to: '<scan>/data', '<scan>/positions', '<scan>/also.0'."""
    parts: tuple[Buffer, ...]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a source that makes its frames itself is told about the session, beside its own parameters.

    A plug-in with `surroundings = True` gets it as the last argument of `transport`.
    """

    seed: int = 0
    frames_per_block: int = 100000
    home: Path = Path()
    """Where files go."""


class TransportClosed(Exception):
    """The transport has come to its end: a replay is over, or the peer is gone for good."""


class Transport(Protocol):
    """Yields the messages of one channel. All methods but `acknowledge` are called by one thread, its own."""

    channel: str

    def open(self) -> None:
        """Connect or bind; afterwards messages can arrive. Raises `OSError` with the endpoint in its text."""

    def receive(self, timeout_s: float) -> Message | None:
        """Return the next message, or None after `timeout_s`. Raises `TransportClosed` at the end."""

    def acknowledge(self, message: Message) -> None:
        """Called (from any thread) when `message` is recorded, or taken over where nothing records. Must not block."""

    def close(self) -> None:
        """Release the socket or file. May be called twice."""
