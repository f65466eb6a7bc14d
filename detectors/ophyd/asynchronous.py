"""Devices for ophyd-async."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from bluesky.protocols import Triggerable
from ophyd_async.core import AsyncStatus, StandardReadable, StandardReadableFormat, soft_signal_r_and_setter

from .following import Follower, Numbers


class Reconstruction(StandardReadable, Triggerable):
    """As `ptystream.detectors.ophyd.classic.Reconstruction`: `state`, `iteration`, `error`, `frames_used`, `latency`."""

    def __init__(
        self,
        endpoint: str,
        *,
        name: str = "",
        run: str = "",
        timeout_s: float = 30.0,
        keys: str | None = None,
        peer_keys: str | None = None,
    ) -> None:
        self.endpoint, self.timeout_s = endpoint, timeout_s
        self._asked: dict[str, Any] = {"run": run, "keys": keys, "peer_keys": peer_keys}
        self._follower: Follower | None = None
        self._waiting: list[tuple[Callable[[Numbers], bool], asyncio.Future[None]]] = []
        with self.add_children_as_readables(StandardReadableFormat.HINTED_SIGNAL):
            self.error, set_error = soft_signal_r_and_setter(float, float("nan"))
        with self.add_children_as_readables():
            self.state, set_state = soft_signal_r_and_setter(str, "waiting")
            self.iteration, set_iteration = soft_signal_r_and_setter(int, 0)
            self.frames_used, set_used = soft_signal_r_and_setter(int, 0)
            self.latency, set_latency = soft_signal_r_and_setter(float, float("nan"), units="s")
        self._setters: dict[str, Callable[[Any], None]] = {
            "error": set_error,
            "state": set_state,
            "iteration": set_iteration,
            "frames_used": set_used,
            "latency": set_latency,
        }
        super().__init__(name)

    @AsyncStatus.wrap
    async def stage(self) -> None:
        """Begin to follow."""
        await super().stage()
        if self._follower is None:
            loop = asyncio.get_running_loop()

            def told(numbers: Numbers) -> None:
                loop.call_soon_threadsafe(self._told, numbers)

            self._follower = Follower(self.endpoint, told, **self._asked)
            self._follower.start()

    @AsyncStatus.wrap
    async def unstage(self) -> None:
        """Follow no longer; whoever still waits is told so."""
        follower, self._follower = self._follower, None
        if follower is not None:
            await asyncio.to_thread(follower.stop)
        for _, future in self._waiting:
            if not future.done():
                future.set_exception(RuntimeError(f"{self.name}: unstaged while something waited for it"))
        self._waiting.clear()
        await super().unstage()

    @AsyncStatus.wrap
    async def trigger(self) -> None:
        """Numbers that are newer than the call."""
        asked = time.time_ns()
        await self.when(lambda numbers: numbers.created_ns >= asked)

    async def when(self, condition: Callable[[Numbers], bool], timeout_s: float | None = None) -> None:
        """Wait for the first numbers from now on of which `condition` is true. Raises `TimeoutError`."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((condition, future))
        await asyncio.wait_for(future, self.timeout_s if timeout_s is None else timeout_s)

    def _told(self, numbers: Numbers) -> None:
        for field, put in self._setters.items():
            put(getattr(numbers, field))
        due = [entry for entry in self._waiting if entry[1].done() or entry[0](numbers)]
        self._waiting = [entry for entry in self._waiting if entry not in due]
        for _, future in due:
            if not future.done():
                future.set_result(None)
