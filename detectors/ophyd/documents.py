"""Documents of frames that a session writes to a file: what a plan's run refers to, while the pixels go past the RunEngine."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

from event_model import ComposeStreamResource

from ptystream.steering.client import Steering
from ptystream.steering.desk import Refused

LOOK_S = 0.02
"""Pause between two looks for a file, which no snapshot tells of."""


class FrameDocuments:
    """Asks a session for the file that it writes (`io.frames`), and makes StreamResource and StreamDatum documents of it.

    One event has `per_event` frames, consecutive rows of the file. All methods wait for the session: not for an event loop.
    """

    def __init__(
        self,
        endpoint: str,
        data_key: str,
        per_event: int,
        *,
        shape: tuple[int, int] | None = None,
        keys: str | None = None,
        peer_keys: str | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        """Connect. Raises `RuntimeError` where no session answers, or where it writes no frames to files."""
        self.data_key, self.per_event, self.shape, self.timeout_s = data_key, per_event, shape, timeout_s
        self._steering = Steering(endpoint, keys=keys, peer_keys=peer_keys, timeout_s=timeout_s)
        self._over = threading.Event()
        self._bundle: Any = None
        self._emitted = 0
        try:
            self._before = {file["path"] for file in self._files()}
        except BaseException:
            self._steering.close()
            raise

    def close(self) -> None:
        """Ask no more; who waits is let go."""
        self._over.set()
        self._steering.close()

    def file(self, frames: int = 1) -> dict[str, Any]:
        """What is told of the file, once so many frames are in it. Raises `TimeoutError`."""
        deadline = time.monotonic() + self.timeout_s
        found: dict[str, Any] | None = None
        while time.monotonic() < deadline:
            fresh = [file for file in self._files() if file["path"] not in self._before]
            found = fresh[-1] if fresh else None
            if found is not None and found["frames"] >= frames:
                return found
            if self._over.wait(LOOK_S):
                break
        there = "no file was begun" if found is None else f"{found['path']} has {found['frames']}"
        raise TimeoutError(f"{self.data_key}: {frames} frames were waited for {self.timeout_s:g} s: {there}")

    def described(self) -> dict[str, Any]:
        """The data key of the frames. Waits for the first frame where the shape was not given."""
        shape, more = self.shape, {}
        if shape is None:
            file = self.file()
            shape, more = tuple(file["shape"]), {"dtype_numpy": file["dtype"]}
        told: dict[str, Any] = {"source": f"ptystream:{self.data_key}", "dtype": "array", "external": "STREAM:"}
        return {self.data_key: told | {"shape": [self.per_event, *shape]} | more}

    def documents(self, events: int) -> Iterator[tuple[str, Any]]:
        """Those of so many events of the run, as far as they were not given before."""
        if events <= self._emitted:
            return
        file = self.file(events * self.per_event)
        if self._bundle is None:
            self._bundle = ComposeStreamResource()(
                mimetype="application/x-hdf5",
                uri=f"file://localhost{file['path']}",
                data_key=self.data_key,
                parameters={"dataset": file["dataset"], "chunk_shape": [1, *file["shape"]], "swmr": True},
            )
            yield "stream_resource", self._bundle.stream_resource_doc
        indices = {"start": self._emitted, "stop": events}
        self._emitted = events
        yield "stream_datum", self._bundle.compose_stream_datum(indices)

    def _files(self) -> list[dict[str, Any]]:
        try:
            files: list[dict[str, Any]] = self._steering.ask("frames")
        except Refused as error:
            raise RuntimeError(f"{self._steering.endpoint}: {error.fault}") from error
        return files
