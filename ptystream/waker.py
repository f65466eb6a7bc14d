"""Wakes a thread that polls sockets: a file descriptor to poll beside them."""

from __future__ import annotations

import contextlib
import os
import threading


class Waker:
    """`wake` from any thread makes `fileno` readable until `clear`. After `close` nothing happens any more."""

    def __init__(self) -> None:
        self._lock, self._closed = threading.Lock(), False
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)

    def fileno(self) -> int:
        """What to poll for reading."""
        return self._read

    def wake(self) -> None:
        """Make it readable."""
        with self._lock, contextlib.suppress(BlockingIOError):  # a full pipe has woken it already
            if not self._closed:
                os.write(self._write, b"x")

    def clear(self) -> None:
        """The polling thread has woken, and looks at everything next."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._read, 4096)

    def close(self) -> None:
        """Give the descriptors back, once nobody polls any more. May be called twice."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._read)
                os.close(self._write)
