"""Documents from a file of JSON lines, finished or growing."""

from __future__ import annotations

import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from ptystream.transport import Message, TransportClosed

LOOK_S = 0.05
"""How often a file is looked at while nothing new is in it."""


class LinesTransport:
    """Gives the lines of a file. See `ptystream.transport.Transport`.

    At the end of the file it goes on as long as `unfinished` says that a run has no stop yet, at most `idle_s` (None: for ever).
    """

    def __init__(
        self,
        path: Path,
        channel: str,
        *,
        unfinished: Callable[[], bool],
        idle_s: float | None,
        max_bytes: int,
        taken: Callable[[], int] = lambda: 0,
    ) -> None:
        """`taken`: lines that a recording holds already, asked when the file is opened."""
        self.path, self.channel = path, channel
        self._unfinished, self._idle_s, self._max_bytes, self._taken = unfinished, idle_s, max_bytes, taken
        self._file: BinaryIO | None = None
        self._begun = b""
        self._grew = 0.0

    def open(self) -> None:
        """The file must be there."""
        try:
            if not stat.S_ISREG(self.path.stat().st_mode):
                raise OSError("is no regular file")
            self._file = open(self.path, "rb")  # noqa: SIM115  (closed by `close`)
        except OSError as error:
            raise OSError(f"{self.channel}: {self.path}: {error.strerror or error}") from error
        self._grew = time.monotonic()
        for _ in range(self._taken()):
            self._line()

    def receive(self, timeout_s: float) -> Message | None:
        """The next line, or None after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while True:
            raw = self._line()
            if raw is not None:
                return Message(time.time_ns(), self.channel, (raw,))
            now = time.monotonic()
            if not self._begun and not self._unfinished():
                raise TransportClosed(f"{self.channel}: {self.path} is read to its end")
            if self._idle_s is not None and now - self._grew > self._idle_s:
                raise TransportClosed(f"{self.channel}: nothing was added to {self.path} for {self._idle_s:g} s")
            if now >= deadline:
                return None
            time.sleep(min(LOOK_S, deadline - now))

    def _line(self) -> bytes | None:
        """The next whole line that is not empty; None where there is none yet."""
        assert self._file is not None, "open() comes first"
        while True:
            more = self._file.readline(self._max_bytes + 1 - len(self._begun))
            if not more:
                return None
            self._grew = time.monotonic()
            self._begun += more
            if len(self._begun) > self._max_bytes:
                raise OSError(f"{self.channel}: {self.path}: a line of more than {self._max_bytes} bytes: max_message_bytes")
            if not self._begun.endswith(b"\n"):
                return self._last()
            whole, self._begun = self._begun.strip(), b""
            if whole:
                return whole

    def _last(self) -> bytes | None:
        """The last line of a file that ends without a line feed, where it is whole."""
        assert self._file is not None
        if self._file.read(1):
            self._file.seek(-1, 1)
            return None
        if self._begun.rstrip().endswith((b"}", b"]")):
            import json

            try:
                json.loads(self._begun)
            except ValueError:
                return None
            whole, self._begun = self._begun.strip(), b""
            return whole
        return None

    def acknowledge(self, message: Message) -> None:
        """Nothing to do: it lies in a file."""

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
