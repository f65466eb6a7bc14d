"""Devices for ophyd-async."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from bluesky.protocols import Triggerable
from event_model import DataKey
from ophyd_async.core import AsyncStatus, StandardReadable, StandardReadableFormat, soft_signal_r_and_setter

from .documents import FrameDocuments
from .following import Counted, Follower, Newest, Numbers


class Followed(StandardReadable, Triggerable):
    """What the devices have in common: signals that follow a session between `stage` and `unstage`."""

    _setters: dict[str, Callable[[Any], None]]
    """Field of `Numbers` → what sets its signal."""

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
        """As `ptystream.detectors.ophyd.classic.Followed`."""
        self.endpoint, self.timeout_s = endpoint, timeout_s
        self._asked: dict[str, Any] = {"run": run, "keys": keys, "peer_keys": peer_keys}
        self._follower: Follower | None = None
        self._waiting: list[tuple[Callable[[Numbers], bool], asyncio.Future[None]]] = []
        super().__init__(name)

    @AsyncStatus.wrap
    async def stage(self) -> None:
        """Begin to follow."""
        await self._begin()

    async def _begin(self) -> None:
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
        await self._finish()

    async def _finish(self) -> None:
        follower, self._follower = self._follower, None
        if follower is not None:
            await asyncio.to_thread(follower.stop)
        for _, future in self._waiting:
            if not future.done():
                future.set_exception(RuntimeError(f"{self.name}: unstaged while something waited for it"))
        self._waiting.clear()
        await super().unstage()

    async def when(self, condition: Callable[[Numbers], bool], timeout_s: float | None = None) -> None:
        """Wait for the first numbers from now on of which `condition` is true. Raises `TimeoutError`."""
        await asyncio.wait_for(self._future(condition), self.timeout_s if timeout_s is None else timeout_s)

    def _future(self, condition: Callable[[Numbers], bool]) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((condition, future))
        return future

    def _told(self, numbers: Numbers) -> None:
        for field, put in self._setters.items():
            put(getattr(numbers, field))
        due = [entry for entry in self._waiting if entry[1].done() or entry[0](numbers)]
        self._waiting = [entry for entry in self._waiting if entry not in due]
        for _, future in due:
            if not future.done():
                future.set_result(None)


class Reconstruction(Followed):
    """As `ptystream.detectors.ophyd.classic.Reconstruction`: `state`, `iteration`, `error`, `frames_used`, `latency`."""

    def __init__(self, endpoint: str, **more: Any) -> None:
        with self.add_children_as_readables(StandardReadableFormat.HINTED_SIGNAL):
            self.error, set_error = soft_signal_r_and_setter(float, float("nan"))
        with self.add_children_as_readables():
            self.state, set_state = soft_signal_r_and_setter(str, "waiting")
            self.iteration, set_iteration = soft_signal_r_and_setter(int, 0)
            self.frames_used, set_used = soft_signal_r_and_setter(int, 0)
            self.latency, set_latency = soft_signal_r_and_setter(float, float("nan"), units="s")
        self._setters = {
            "error": set_error,
            "state": set_state,
            "iteration": set_iteration,
            "frames_used": set_used,
            "latency": set_latency,
        }
        super().__init__(endpoint, **more)

    async def _begin(self) -> None:
        self._newest = Newest()
        await super()._begin()

    def _told(self, numbers: Numbers) -> None:
        if self._newest.hear(numbers):  # of several runs the newest
            super()._told(numbers)

    @AsyncStatus.wrap
    async def trigger(self) -> None:
        """Numbers that are newer than the call."""
        asked = time.time_ns()
        await self.when(lambda numbers: numbers.created_ns >= asked)


class Frames(Followed):
    """As `ptystream.detectors.ophyd.classic.Frames`: `frames_received`, and the frames in a file of the session."""

    def __init__(
        self,
        endpoint: str,
        *,
        steering: str | None = None,
        shape: tuple[int, int] | None = None,
        expose: Callable[[], None] = lambda: None,
        frames_per_trigger: int = 1,
        **more: Any,
    ) -> None:
        with self.add_children_as_readables(StandardReadableFormat.HINTED_SIGNAL):
            self.frames_received, set_received = soft_signal_r_and_setter(int, 0)
        self._setters = {"frames_received": set_received}
        self.expose, self.frames_per_trigger = expose, frames_per_trigger
        self._steering, self._shape = steering, shape
        self._documents: FrameDocuments | None = None
        self._counted = Counted(frames_per_trigger)
        super().__init__(endpoint, **more)

    async def _begin(self) -> None:
        self._counted.begin()
        if self._steering is not None and self._documents is None:
            keys = {name: self._asked[name] for name in ("keys", "peer_keys")}
            more = {"shape": self._shape, "timeout_s": self.timeout_s, **keys}
            named = f"{self.name}-image", self.frames_per_trigger
            self._documents = await asyncio.to_thread(FrameDocuments, self._steering, *named, **more)
        await super()._begin()

    async def _finish(self) -> None:
        documents, self._documents = self._documents, None
        if documents is not None:
            documents.close()
        await super()._finish()

    def _told(self, numbers: Numbers) -> None:
        if self._counted.hear(numbers):
            super()._told(numbers)

    @AsyncStatus.wrap
    async def trigger(self) -> None:
        """Expose and wait for the frames."""
        self._counted.wanted += self.frames_per_trigger
        arrived = self._future(self._counted.look)
        await asyncio.to_thread(self.expose)
        await asyncio.wait_for(arrived, self.timeout_s)

    @AsyncStatus.wrap
    async def prepare(self, value: int) -> None:
        """Of a fly scan: so many events come."""
        self._counted.wanted += value * self.frames_per_trigger

    @AsyncStatus.wrap
    async def kickoff(self) -> None:
        """Of a fly scan: the detector begins."""
        await asyncio.to_thread(self.expose)

    @AsyncStatus.wrap
    async def complete(self) -> None:
        """Of a fly scan: done when all frames have arrived."""
        await self.when(self._counted.look)

    async def describe(self) -> dict[str, DataKey]:
        """With the frames, where they are written to a file."""
        return {**await super().describe(), **await self.describe_collect()}

    async def describe_collect(self) -> dict[str, Any]:
        """Of a fly scan: the frames alone."""
        return {} if self._documents is None else await asyncio.to_thread(self._documents.described)

    async def get_index(self) -> int:
        """Events whose frames have all arrived."""
        return self._counted.events

    async def collect_asset_docs(self, index: int | None = None) -> AsyncIterator[Any]:
        """Documents that refer to the file, as far as the frames have arrived."""
        if self._documents is not None:
            events = self._counted.events if index is None else index
            for document in await asyncio.to_thread(list, self._documents.documents(events)):
                yield document
