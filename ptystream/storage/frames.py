"""Frames as they came, in HDF5 files that can be read while they grow (SWMR): one file for each acquisition of a source.

Layout: '/entry/data/data' (frame, y, x), in chunks of one frame, compressed as it came; '/entry/data/written' (frame,), 1
where the frame is there; '/entry/data/timestamps_ns' (frame,), of the source's clock, 0 where it tells none. A frame lies at its
index in the acquisition. Attributes of the file: run, scan, epoch, session, complete.
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ptystream.codecs import CodecError, decode, encode
from ptystream.events import Event, Frames, Payload, ScanEnded, ScanStarted
from ptystream.storage.opened import open_growing

log = logging.getLogger(__name__)

DATASET, WRITTEN, TIMES = "/entry/data/data", "/entry/data/written", "/entry/data/timestamps_ns"
MAX_JUMP = 1_000_000
"""So far beyond the last frame one may lie; the index of another is no index."""
QUEUE_BYTES = 256 << 20
MAX_EPOCH = 100
UNSAFE = re.compile(r"[^A-Za-z0-9_+=.-]")


class FrameFile:
    """The file of one acquisition. Everything but `told` is called by one thread."""

    def __init__(self, path: Path, first: Payload, attributes: dict[str, Any]) -> None:
        """Create it for frames like `first`. Raises `OSError`."""
        import hdf5plugin

        self.path, self.attributes = path, attributes
        self.codec = first.codec if first.codec in ("bslz4", "lz4") else "raw"
        self.shape, self.dtype = first.shape, first.dtype
        self.frames = 0
        """One more than the largest index."""
        self.written = 0
        """Frames that are in it and can be read."""
        self.refused = 0
        """Frames that did not fit."""
        self.ended = False
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = h5py.File(path, "w", libver="v110")
        try:
            self._file.attrs.update({"default": "entry", "NX_class": "NXroot", "complete": False, **attributes})
            entry = self._file.create_group("entry")
            entry.attrs.update({"default": "data", "NX_class": "NXentry"})
            data = entry.create_group("data")
            data.attrs.update({"signal": "data", "NX_class": "NXdata"})
            filters: dict[str, Any] = {"bslz4": hdf5plugin.Bitshuffle(cname="lz4"), "lz4": hdf5plugin.LZ4()}.get(self.codec, {})
            limits: dict[str, Any] = {"maxshape": (None, *self.shape), "chunks": (1, *self.shape)}
            self._data = self._file.create_dataset(DATASET, (0, *self.shape), self.dtype, **limits, **filters)
            self._written = self._file.create_dataset(WRITTEN, (0,), "u1", maxshape=(None,), chunks=(4096,))
            self._times = self._file.create_dataset(TIMES, (0,), "i8", maxshape=(None,), chunks=(4096,))
            self._file.swmr_mode = True
        except BaseException:
            self._file.close()
            raise

    def write(self, index: int, payload: Payload, timestamp_ns: int = 0) -> None:
        """One frame; one that does not fit is counted in `refused`. Raises `OSError` where the disk takes no more."""
        fits = payload.shape == self.shape and payload.dtype == self.dtype and 0 <= index <= self.frames + MAX_JUMP
        try:
            chunk = self._chunk(payload) if fits else None
        except CodecError:
            chunk = None
        if chunk is None:
            self.refused += 1
            return
        if index >= self.frames:
            for dataset in (self._data, self._written, self._times):
                dataset.resize(index + 1, 0)
            self.frames = index + 1
        self._data.id.write_direct_chunk((index, 0, 0), chunk)
        self.written += not self._written[index]
        self._written[index] = 1
        self._times[index] = timestamp_ns

    def _chunk(self, payload: Payload) -> bytes:
        if payload.codec == self.codec:
            chunk = bytes(payload.buffer)
            if self.codec == "raw" and len(chunk) != self.dtype.itemsize * math.prod(self.shape):
                raise CodecError(f"{len(chunk)} bytes of a raw frame of {self.shape}")
            return chunk
        return encode(decode(payload), self.codec)

    def flush(self) -> None:
        """Let readers see what was written."""
        for dataset in (self._data, self._times, self._written):
            dataset.flush()

    def close(self, *, complete: bool) -> None:
        """Close it; `complete`: its acquisition has ended."""
        self.ended = True
        self._file.attrs.modify("complete", complete)
        self._file.close()

    def told(self) -> dict[str, Any]:
        """For who wants to find the frames."""
        return {
            **self.attributes,
            "path": str(self.path.absolute()),
            "dataset": DATASET,
            "shape": list(self.shape),
            "dtype": self.dtype.str,
            "frames": self.frames,
            "written": self.written,
            "refused": self.refused,
            "ended": self.ended,
        }


class FrameFiles:
    """Writes the frames of a session to files, in a thread of its own. A disk that takes no more ends the writing, with an
    error in the log, and not the session."""

    KEPT = 100
    """Files that are told of, the newest."""

    def __init__(self, path_of: Callable[[str, str], Path], run: str, session: str = "", queue_bytes: int = QUEUE_BYTES) -> None:
        """`path_of(scan, epoch)`: where a file goes; `session`: an id that a restart shares, which then makes its files anew."""
        self._path_of, self._run, self._session, self._capacity = path_of, run, session, queue_bytes
        self.failure: BaseException | None = None
        self.lost = 0
        """Frames that came after a failure."""
        self._queue: deque[tuple[str, Event, int]] = deque()
        self._queued, self._closing = 0, False
        self._changed = threading.Condition()
        self._open: dict[tuple[str, str], FrameFile] = {}
        self._over: dict[tuple[str, str], FrameFile | None] = {}
        """Acquisitions that have ended, the newest last."""
        self._told: deque[FrameFile] = deque(maxlen=self.KEPT)
        self._taken: set[Path] = set()
        """Files of this session."""
        self._thread = threading.Thread(target=self._serve, name="frame files", daemon=True)
        self._thread.start()

    def offer(self, channel: str, event: Event) -> None:
        """Queue the frames, or the end, of an acquisition; waits while the queue is full."""
        if not isinstance(event, Frames | ScanStarted | ScanEnded):
            return
        size = (
            sum(memoryview(p.buffer).nbytes for p in event.payloads if isinstance(p, Payload)) if isinstance(event, Frames) else 0
        )
        with self._changed:
            self._changed.wait_for(lambda: self._queued + size <= self._capacity or not self._queued or self._is_over())
            if self._is_over():
                self.lost += len(event.indices) if isinstance(event, Frames) else 0
                return
            self._queued += size
            self._queue.append((channel, event, size))
            self._changed.notify_all()

    def files(self) -> list[FrameFile]:
        """Those of this session, the newest last."""
        with self._changed:
            return list(self._told)

    def close(self) -> None:
        """Write what is queued and close the files. May be called twice."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(60.0)

    def _is_over(self) -> bool:
        return self.failure is not None or self._closing

    def _serve(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._queue or self._closing)
                    if not self._queue:
                        return
                    group, self._queue = list(self._queue), deque()
                touched = {file for channel, event, _ in group if (file := self._take(channel, event)) is not None}
                for file in touched:
                    if not file.ended:
                        file.flush()
                with self._changed:
                    self._queued -= sum(size for _, _, size in group)
                    self._changed.notify_all()
        except BaseException as error:
            log.error("io.frames: no further frame is written to a file: %s; the session goes on", error)
            with self._changed:
                self.failure = error
                self.lost += sum(len(event.indices) for _, event, _ in self._queue if isinstance(event, Frames))
                self._changed.notify_all()
        finally:
            for file in self._open.values():
                with contextlib.suppress(OSError, RuntimeError):
                    file.close(complete=False)

    def _take(self, channel: str, event: Event) -> FrameFile | None:
        assert isinstance(event, Frames | ScanStarted | ScanEnded)
        key = channel, event.epoch
        file = self._open.get(key)
        if not isinstance(event, Frames):  # a further acquisition of the same name is another one
            if file is not None:
                del self._open[key]
                file.close(complete=isinstance(event, ScanEnded))
            self._over.pop(key, None)
            if isinstance(event, ScanEnded):
                self._over[key] = file
                while len(self._over) > self.KEPT:
                    del self._over[next(iter(self._over))]
            return file
        if key in self._over:  # frames behind the end of their acquisition are no other one
            if (ended := self._over[key]) is not None:
                ended.refused += len(event.indices)
            return None
        times = np.zeros(len(event.indices), np.int64) if event.timestamps_ns is None else event.timestamps_ns
        for index, payload, time in zip(event.indices.tolist(), event.payloads, times.tolist(), strict=True):
            if not isinstance(payload, Payload):
                continue  # it lies in a file already
            if file is None:
                try:
                    file = self._made(channel, event.epoch, payload)
                except (ValueError, TypeError) as error:  # of a shape or a type that no file can have
                    log.warning("io.frames: a frame of %s of acquisition %r cannot be written: %s", channel, event.epoch, error)
                    continue
                self._open[key] = file
                with self._changed:
                    self._told.append(file)
            file.write(index, payload, time)
        return file

    def _made(self, channel: str, epoch: str, first: Payload) -> FrameFile:
        scan = channel.partition("/")[0]
        name = epoch.encode("utf-8", "replace").decode().replace("\0", "")  # HDF5 text holds no zero character
        attributes = {"run": self._run, "scan": scan, "epoch": name, "session": self._session}
        wanted = self._path_of(scan, UNSAFE.sub("_", epoch)[:MAX_EPOCH].lstrip(".") or "_")
        path, number = wanted, 1
        while path in self._taken or (path.exists() and not self._is_ours(path)):
            number += 1
            path = wanted.with_stem(f"{wanted.stem}_{number:04d}")
        self._taken.add(path)
        path.unlink(missing_ok=True)  # whoever reads the old one goes on with it
        return FrameFile(path, first, attributes)

    def _is_ours(self, path: Path) -> bool:
        """Whether this session wrote it before it was interrupted: it is then made anew, from the recording."""
        try:
            with open_growing(path) as file:  # of a session that was killed it is still marked as being written
                return bool(self._session) and file.attrs.get("session") == self._session
        except OSError:
            return False
