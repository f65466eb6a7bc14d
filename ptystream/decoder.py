"""The seam between messages and events. A decoder owns no socket, no thread and no clock."""

from __future__ import annotations

from typing import Protocol

from ptystream.events import Event
from ptystream.transport import Message


class Decoder(Protocol):
    """Turns the messages of one channel into events."""

    def feed(self, message: Message) -> list[Event]:
        """Return what `message` says.

        Takes any bytes, in any order: what cannot be understood comes back as `Rejected`, never as an exception.
        Payloads are views on the message's parts; nothing large is copied or decompressed here.
        """
