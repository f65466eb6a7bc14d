"""Devices for ophyd."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from ophyd import Component, Device, Signal
from ophyd.status import Status

from .documents import FrameDocuments
from .following import Counted, Follower, Newest, Numbers

FIELDS = ("state", "iteration", "error", "frames_received", "frames_used", "latency")


class Followed(Device):  # type: ignore[misc]
    """What the devices have in common: signals that follow a session between `stage` and `unstage`."""

    def __init__(
        self,
        endpoint: str,
        *,
        name: str,
        run: str = "",
        timeout_s: float = 30.0,
        keys: str | None = None,
        peer_keys: str | None = None,
        **more: Any,
    ) -> None:
        """`endpoint`: where the session publishes (`io.publish.address`); `run`: only runs of that name; `timeout_s`: how
        long `trigger` waits; `keys`, `peer_keys`: CURVE certificates."""
        super().__init__(endpoint, name=name, **more)
        self._asked: dict[str, Any] = {"run": run, "keys": keys, "peer_keys": peer_keys}
        self.timeout_s = timeout_s
        self._follower: Follower | None = None
        self._lock = threading.Lock()
        self._waiting: list[tuple[Callable[[Numbers], bool], Status]] = []

    def stage(self) -> list[object]:
        """Begin to follow."""
        staged: list[object] = super().stage()
        if self._follower is None:
            self._follower = Follower(self.prefix, self._told, **self._asked)
            self._follower.start()
        return staged

    def unstage(self) -> list[object]:
        """Follow no longer; whoever still waits is told so."""
        follower, self._follower = self._follower, None
        if follower is not None:
            follower.stop()
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for _, status in waiting:
            if not status.done:
                status.set_exception(RuntimeError(f"{self.name}: unstaged while something waited for it"))
        unstaged: list[object] = super().unstage()
        return unstaged

    def when(self, condition: Callable[[Numbers], bool], timeout_s: float | None = None) -> Status:
        """A status that is done with the first numbers from now on of which `condition` is true; a plan waits for it."""
        status = Status(timeout=self.timeout_s if timeout_s is None else timeout_s)
        with self._lock:
            self._waiting.append((condition, status))
        return status

    def _told(self, numbers: Numbers) -> None:
        for field in FIELDS:
            if field in self.component_names:
                getattr(self, field).put(getattr(numbers, field), force=True)
        with self._lock:
            due = [entry for entry in self._waiting if entry[1].done or entry[0](numbers)]
            self._waiting = [entry for entry in self._waiting if entry not in due]
        for _, status in due:
            if not status.done:
                status.set_finished()


class Reconstruction(Followed):
    """A live reconstruction that a plan reads, monitors, waits for or stops by.

    `trigger` is done with the first numbers that are newer than the call.
    """

    state = Component(Signal, value="waiting", kind="normal")
    iteration = Component(Signal, value=0, kind="normal")
    error = Component(Signal, value=float("nan"), kind="hinted")
    """Amplitude misfit of probe × object to the data, per valid pixel."""
    frames_used = Component(Signal, value=0, kind="normal")
    latency = Component(Signal, value=float("nan"), kind="normal")
    """Seconds."""

    def stage(self) -> list[object]:
        """Begin to follow: of several runs the newest."""
        self._newest = Newest()
        return super().stage()

    def _told(self, numbers: Numbers) -> None:
        if self._newest.hear(numbers):
            super()._told(numbers)

    def trigger(self) -> Status:
        """Fresh numbers."""
        asked = time.time_ns()
        return self.when(lambda numbers: numbers.created_ns >= asked)


class Frames(Followed):
    """The frames that a session has received, beside a detector that sends them to it; one staging is one acquisition.

    `expose()` makes the detector send `frames_per_trigger` frames; `trigger` is done when they have arrived. Where a hardware
    pulse triggers the detector, `expose` does nothing. In a fly scan `prepare(events)` says how many events come, `kickoff` calls
    `expose` once, and `complete` is done when all have arrived.
    """

    frames_received = Component(Signal, value=0, kind="hinted")

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
        """`steering`: `io.steering.address` of the session, which then writes the frames to a file (`io.frames.active`) to which
        the run's documents refer. `shape` of a frame (y, x): needed where a plan declares its streams before the first frame."""
        super().__init__(endpoint, **more)
        self.expose, self.frames_per_trigger = expose, frames_per_trigger
        self._steering, self._shape = steering, shape
        self._documents: FrameDocuments | None = None
        self._counted = Counted(frames_per_trigger)

    def stage(self) -> list[object]:
        """Begin to follow and to count. Raises where no session answers."""
        self._counted.begin()
        if self._steering is not None and self._documents is None:
            keys = {name: self._asked[name] for name in ("keys", "peer_keys")}
            self._documents = FrameDocuments(
                self._steering,
                f"{self.name}_image",
                self.frames_per_trigger,
                shape=self._shape,
                timeout_s=self.timeout_s,
                **keys,
            )
        return super().stage()

    def unstage(self) -> list[object]:
        """Follow no longer."""
        documents, self._documents = self._documents, None
        if documents is not None:
            documents.close()
        return super().unstage()

    def _told(self, numbers: Numbers) -> None:
        if self._counted.hear(numbers):
            super()._told(numbers)

    def trigger(self) -> Status:
        """Expose and wait for the frames."""
        self._counted.wanted += self.frames_per_trigger
        arrived = self.when(self._counted.look)
        self.expose()
        return arrived

    def prepare(self, events: int) -> Status:
        """Of a fly scan: so many events come."""
        self._counted.wanted += events * self.frames_per_trigger
        return _done()

    def kickoff(self) -> Status:
        """Of a fly scan: the detector begins."""
        self.expose()
        return _done()

    def complete(self) -> Status:
        """Of a fly scan: done when all frames have arrived."""
        return self.when(self._counted.look)

    def describe(self) -> dict[str, Any]:
        """With the frames, where they are written to a file."""
        own: dict[str, Any] = super().describe()
        return own if self._documents is None else own | self._documents.described()

    def describe_collect(self) -> dict[str, Any]:
        """Of a fly scan: the frames alone."""
        return {} if self._documents is None else self._documents.described()

    def get_index(self) -> int:
        """Events whose frames have all arrived."""
        return self._counted.events

    def collect_asset_docs(self, index: int | None = None) -> Iterator[tuple[str, Any]]:
        """Documents that refer to the file, as far as the frames have arrived."""
        if self._documents is not None:
            yield from self._documents.documents(self.get_index() if index is None else index)


def _done() -> Status:
    status = Status()
    status.set_finished()
    return status
