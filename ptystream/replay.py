"""A recording given back as transports: the channels' messages in their original order, at a chosen pace."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence

from ptystream.recording import Recording
from ptystream.transport import Message, TransportClosed


class Replay:
    """Hands the messages of one recording to the transports of its channels, each in its turn.

    `speed` times the original pace; inf: as fast as they are taken. A message is given out when all before it are taken,
    whichever channel they belong to. The replay begins when every channel is open, and does without those that close early.
    `messages` come instead of the recording's own: damaged ones, say.
    """

    def __init__(
        self,
        recording: Recording,
        channels: Sequence[str],
        speed: float = float("inf"),
        messages: Iterable[Message] | None = None,
    ) -> None:
        if not speed > 0:
            raise ValueError(f"speed: {speed}: must be above 0 (1 is the original pace)")
        self.recording, self.speed, self.channels = recording, speed, tuple(channels)
        self.given = 0
        """Messages given out so far."""
        self._messages = iter(recording if messages is None else messages)
        self._awaited, self._open = set(channels), set(channels)
        self._ahead: Message | None = None
        self._over = False
        self._began: tuple[float, int] | None = None
        self._turn = threading.Condition()

    def transport(self, channel: str) -> ReplayTransport:
        """The transport of one channel."""
        if channel not in self._open:
            raise ValueError(f"channel {channel!r}: not in this replay; it has {', '.join(sorted(self._open))}")
        return ReplayTransport(self, channel)

    def open(self, channel: str) -> None:
        """`channel` is ready."""
        with self._turn:
            self._awaited.discard(channel)
            self._turn.notify_all()

    def close(self, channel: str) -> None:
        """`channel` takes no more; its messages are left out from now on."""
        with self._turn:
            self._awaited.discard(channel)
            self._open.discard(channel)
            if self._ahead is not None and self._ahead.channel == channel:
                self._ahead = None
            self._turn.notify_all()

    def take(self, channel: str, timeout_s: float) -> Message | None:
        """The next message of `channel` when its turn has come, or None after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        with self._turn:
            while True:
                if channel not in self._open:
                    raise TransportClosed(f"{channel}: closed")
                wait_s = deadline - time.monotonic()
                if not self._awaited:
                    self._look_ahead()
                    if self._over:
                        raise TransportClosed(f"{channel}: the replay of {self.recording.path} is over")
                    due_s = self._due_in()
                    if self._ahead is not None and self._ahead.channel == channel:
                        if due_s <= 0:
                            message, self._ahead = self._ahead, None
                            self.given += 1
                            self._turn.notify_all()
                            return message
                        wait_s = min(wait_s, due_s)
                if deadline <= time.monotonic():
                    return None
                self._turn.wait(wait_s)

    def _look_ahead(self) -> None:
        while self._ahead is None and not self._over:
            self._ahead = next(self._messages, None)
            if self._ahead is None:
                self._over = True
                self._turn.notify_all()
            elif self._ahead.channel not in self._open:
                self._ahead = None

    def _due_in(self) -> float:
        assert self._ahead is not None
        if self._began is None:
            self._began = (time.monotonic(), self._ahead.arrival_ns)
        began, first = self._began
        return began + (self._ahead.arrival_ns - first) / 1e9 / self.speed - time.monotonic()


class ReplayTransport:
    """One channel of a replay. See `ptystream.transport.Transport`."""

    def __init__(self, replay: Replay, channel: str) -> None:
        self.channel, self._replay = channel, replay

    def open(self) -> None:
        """The last one to open starts the replay."""
        self._replay.open(self.channel)

    def receive(self, timeout_s: float) -> Message | None:
        """The next message of the channel."""
        return self._replay.take(self.channel, timeout_s)

    def acknowledge(self, message: Message) -> None:
        """Nothing to do: it lies in a file."""

    def close(self) -> None:
        """The other channels go on without this one."""
        self._replay.close(self.channel)
