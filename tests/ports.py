"""Ports that are free beside each other, for detectors that have one for each of their parts."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import TypeVar

from ptystream.detectors.zmq.plain import PlainSender

Beside = TypeVar("Beside", bound=AbstractContextManager[object])


def beside(stack: ExitStack, sender: Callable[[], PlainSender], other: Callable[[int], Beside]) -> tuple[PlainSender, Beside]:
    """A sender on any port, and what `other` makes of the next one; in `stack`. Another process may have that one: then again."""
    for _ in range(100):
        with ExitStack() as tried:
            first = tried.enter_context(sender())
            try:
                second = tried.enter_context(other(int(first.address.rpartition(":")[2]) + 1))
            except OSError as error:
                if error.errno not in (errno.EADDRINUSE, None):
                    raise
                continue
            stack.push(tried.pop_all())
            return first, second
    raise OSError("no two ports beside each other are free")
