"""Messages that are made once for all browsers that hold the same picture and want the same next one."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TypeAlias

from .picture import Picture
from .tiles import Coding, encode

SHARED_BYTES = 64 << 20
"""Messages that are kept, bytes."""
BASES = 4
"""Pictures from which a difference to the same picture is made; a browser that holds yet another one gets it whole, which is
made once for all of these. So browsers however many, at rates however different, cost that many messages for one picture."""

Key: TypeAlias = tuple[int, int | None, Coding]
"""Serial of the picture, serial of the base, and coding."""


class Shared:
    """Makes messages in threads of its own. Its methods belong to one event loop."""

    def __init__(self) -> None:
        self._workers: Executor = ThreadPoolExecutor(2, thread_name_prefix="tiles")
        self._kept: OrderedDict[Key, bytes] = OrderedDict()
        self._bytes = 0
        self._making: dict[Key, asyncio.Task[bytes]] = {}
        self.made = 0
        """Messages that were made, not taken from those kept."""

    async def message(self, picture: Picture, base: Picture | None, coding: Coding) -> bytes:
        """See `tiles.encode`; the base is left out where differences from enough others are there."""
        key: Key = (picture.serial, None if base is None else base.serial, coding)
        if key not in self._kept and key not in self._making and base is not None and self._bases(key) >= BASES:
            base, key = None, (picture.serial, None, coding)
        if (ready := self._kept.get(key)) is not None:
            self._kept.move_to_end(key)
            return ready
        task = self._making.get(key)
        if task is None:
            task = self._making[key] = asyncio.create_task(self._make(key, picture, base))
        return await asyncio.shield(task)

    def _bases(self, key: Key) -> int:
        """Differences to this picture that there are or will be."""
        there = (*self._kept, *self._making)
        return sum(serial == key[0] and base is not None and coding == key[2] for serial, base, coding in there)

    async def _make(self, key: Key, picture: Picture, base: Picture | None) -> bytes:
        loop = asyncio.get_running_loop()
        try:
            message = await loop.run_in_executor(self._workers, encode, picture, base, key[2])
        finally:
            del self._making[key]
        self.made += 1
        self._kept[key] = message
        self._bytes += len(message)
        while self._bytes > SHARED_BYTES and len(self._kept) > 1:
            self._bytes -= len(self._kept.popitem(last=False)[1])
        return message

    def close(self) -> None:
        """Let the threads end."""
        self._workers.shutdown(wait=False, cancel_futures=True)
