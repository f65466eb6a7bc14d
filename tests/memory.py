"""A scan that comes from memory: a transport without a socket, for tests of whole sessions."""

from __future__ import annotations

import threading

from problems import BEAM, PATTERNS, PLACES

from ptystream.detectors.zmq.protocol import frames_parts, header, samples_parts
from ptystream.transport import Message, TransportClosed


class Memory:
    """A transport that gives out a list of messages."""

    def __init__(
        self,
        channel: str,
        messages: list[list[bytes]],
        failure: Exception | None = None,
        *,
        last_after: Memory | None = None,
    ) -> None:
        """With `last_after` the last message is given when that one's are all delivered."""
        self.channel, self._messages, self._failure = channel, iter(messages), failure
        self.acknowledged = 0
        self._left, self._last_after = len(messages), last_after
        self.given = threading.Event()

    def open(self) -> None:
        pass

    def receive(self, timeout_s: float) -> Message | None:
        if self._left == 1 and self._last_after is not None:
            assert self._last_after.given.wait(60)
        self._left -= 1
        parts = next(self._messages, None)
        if parts is None:
            self.given.set()
            if self._failure is not None:
                raise self._failure
            raise TransportClosed("no more")
        return Message(1, self.channel, tuple(parts))

    def acknowledge(self, message: Message) -> None:
        self.acknowledged += 1

    def close(self) -> None:
        pass


def messages(scan: str = "a") -> tuple[list[list[bytes]], list[list[bytes]]]:
    """The frames and the positions of a small scan."""
    frames = [[header("start", scan=scan, meta={"num_frames": BEAM.frames})]]
    places = [[header("start", scan=scan, meta={})]]
    for k, pattern in enumerate(PATTERNS):
        frames.append(frames_parts(scan, k, [pattern.tobytes()], 1, pattern.shape, pattern.dtype, "raw"))
        places.append(samples_parts(scan, k, {"y": PLACES[k, :1], "x": PLACES[k, 1:]}, None))
    frames.append([header("end", scan=scan, count=BEAM.frames, reason="completed")])
    places.append([header("end", scan=scan, count=BEAM.frames, reason="completed")])
    return frames, places
