"""One file read while another program writes it: what is new at every look, and whether more may come."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.codecs import MAX_FRAME_BYTES
from ptystream.events import Buffer
from ptystream.storage.h5 import H5Error
from ptystream.storage.opened import Opened, RefusedError, is_over

from ..zmq.protocol import MAX_FRAMES, frames_parts, header, samples_parts
from .paths import Place
from .protocol import start_parts
from .reading import FrameDataset, NumberDataset, is_there, marks, number

MESSAGE_BYTES = 4 << 20
"""Frames of one message hold about so much."""
MESSAGE_SAMPLES = 1 << 16


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is read of a file."""

    frames: str | None = None
    samples: Mapping[str, Place] = field(default_factory=dict)
    times: Place | None = None
    """Time stamps of the frames, or of the samples where no frames are read."""
    known: Mapping[str, tuple[Place, ...]] = field(default_factory=dict)
    """'energy', 'distance', 'psize', 'center' → where they are, for two of them (y, x)."""
    mask: Place | None = None
    expected: Place | None = None
    """Where the number of frames (or samples) is told that will come."""
    finished: Place | None = None
    """Where it is told that the file is complete."""
    folders: tuple[str, ...] = ()
    vectors: bool = False
    """Whether a frame is a row of signals, one axis."""


def known(file: Opened, wanted: Wanted) -> dict[str, Any]:
    """Energy (keV), distance (m), psize (m), center and num_frames, where the file has them."""
    found: dict[str, Any] = {}
    for name, places in wanted.known.items():
        values = [number(file, place) for place in places]
        told = [value for value in values if value is not None]
        if len(told) == len(values):
            found[name] = told[0] if len(told) == 1 else told
    if wanted.expected is not None and (count := number(file, wanted.expected)) is not None and count >= 1:
        found["num_frames"] = int(count)
    return found


def mask_of(file: Opened, wanted: Wanted) -> NDArray[np.bool_] | None:
    """Pixels to use; in files, the others are the ones that are not 0."""
    if wanted.mask is None:
        return None
    data = file.dataset(wanted.mask.path)
    if data.ndim < 2 or math.prod(data.shape[-2:]) * data.dtype.itemsize > MAX_FRAME_BYTES or math.prod(data.shape[:-2]) != 1:
        raise RefusedError(f"{data.file.filename}: {wanted.mask.path}: shape {data.shape} is not that of a mask, (y, x)")
    if not is_there(file, data):
        raise H5Error(f"{data.file.filename}: {wanted.mask.path}: a source of this virtual dataset is not there yet")
    return np.asarray(np.asarray(data[()]).reshape(data.shape[-2:]) == 0)


class Follow:
    """Gives out the messages of one file, once each. `look` is called again and again until `ended`."""

    def __init__(
        self,
        path: Path,
        wanted: Wanted,
        *,
        frames: int = 0,
        samples: int = 0,
        told: bool = False,
        idle_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Goes on behind `frames` and `samples` rows; `told`: its start has been told."""
        self.path, self.scan, self.ended = path, path.name[-256:], False
        self._wanted, self._idle_s, self._clock = wanted, idle_s, clock
        self._frames, self._samples, self._told = frames, samples, told
        self._total = 0
        self._seen: tuple[Any, ...] | None = None
        self._elsewhere = self._marked = self._closed = self._growing = False
        self._number: int | None = None
        self._grew = clock()

    def look(self) -> Iterator[list[Buffer]]:
        """Messages of what is new. Raises `OSError` or `H5Error` where the file cannot be read (yet)."""
        stat = self.path.stat()
        closed = is_over(self.path, self._idle_s)
        silent = self._idle_s is not None and self._clock() - self._grew > self._idle_s
        state = (stat.st_ino, stat.st_size, stat.st_mtime_ns, closed)
        if state != self._seen or self._elsewhere or silent:
            with Opened(self.path, self._wanted.folders, self._idle_s, self._growing) as file:
                yield from self._news(file, silent)
            self._seen = state
        complete = self._number is not None and min(self._counts()) >= self._number
        reason = "completed" if self._closed or self._marked or complete else None
        if reason is None and silent:
            reason = f"nothing was added to the file for {self._idle_s:g} s"
        if reason is not None:
            count = self._total if self._wanted.frames is not None else self._samples
            yield [header("end", scan=self.scan, count=count, reason=reason)]
            self.ended = True

    def _counts(self) -> list[int]:
        read = [self._frames] if self._wanted.frames is not None else []
        return read + ([self._samples] if self._wanted.samples else [])

    def _news(self, file: Opened, silent: bool) -> Iterator[list[Buffer]]:
        wanted = self._wanted
        self._marked = wanted.finished is not None and marks(file, wanted.finished)
        frames = FrameDataset(file, wanted.frames, wanted.vectors) if wanted.frames is not None else None
        channels = {name: NumberDataset(file, place) for name, place in wanted.samples.items()}
        times = NumberDataset(file, wanted.times) if wanted.times is not None else None
        told = None if self._told else (known(file, wanted), mask_of(file, wanted))
        for data in (frames, times, *channels.values()):
            if data is not None and data.dataset.is_virtual:  # so that its sources are among the files that were opened
                data.written(self._samples if frames is None or data in channels.values() else self._frames, False)
                self._elsewhere = True
        self._elsewhere = self._elsewhere or not file.alone
        # A master file is soon closed; what it leads to may grow long after that, or not be there yet.
        self._closed = file.closed(every=True) and not file.missing
        self._growing = not file.closed(every=True)  # where it was not so before, what cannot be read yet is tried again
        final = self._closed or silent or self._marked
        there = frames.written(self._frames, final) if frames is not None else 0
        if wanted.expected is not None and (count := number(file, wanted.expected)) is not None:
            self._number = int(count)
        if told is not None:
            if final and frames is not None:
                told[0].setdefault("num_frames", there)
            yield start_parts(self.scan, *told, final)
            self._told = True
        if channels:
            yield from self._of_channels(
                channels, times if frames is None else None, there if frames is not None else None, final
            )
        if frames is not None:
            yield from self._of_frames(frames, there, times, final)

    def _of_frames(self, frames: FrameDataset, there: int, times: NumberDataset | None, final: bool) -> Iterator[list[Buffer]]:
        if times is not None:
            there = min(there, times.written(self._frames, final))
        step = max(1, min(MAX_FRAMES, MESSAGE_BYTES // frames.frame_bytes))
        self._total = max(self._total, there)
        while self._frames < there:
            stop = min(self._frames + step, there)
            rows, encoded = frames.read(self._frames, stop)
            if rows:
                stamps = None if times is None else np.round(times.read(self._frames, stop) * 1e9).astype(np.int64)
                if stamps is not None:
                    stamps = stamps[np.asarray(rows) - self._frames]
                yield frames_parts(self.scan, rows, encoded, len(rows), frames.shape, frames.dtype, frames.codec, stamps, at=stop)
            self._frames, self._grew = stop, self._clock()

    def _of_channels(
        self, channels: Mapping[str, NumberDataset], times: NumberDataset | None, limit: int | None, final: bool
    ) -> Iterator[list[Buffer]]:
        """Samples of all channels, as far as every one of them is written; up to `limit`: no reading before its frame."""
        every = [*channels.values(), *([] if times is None else [times])]
        there = min(c.total if limit is not None and not c.dataset.is_virtual else c.written(self._samples, final) for c in every)
        there = there if limit is None else min(there, limit)
        while self._samples < there:
            stop = min(self._samples + MESSAGE_SAMPLES, there)
            table = {name: channel.read(self._samples, stop) for name, channel in channels.items()}
            stamps = None if times is None else np.round(times.read(self._samples, stop) * 1e9).astype(np.int64)
            yield samples_parts(self.scan, self._samples, table, stamps)
            self._samples, self._grew = stop, self._clock()
