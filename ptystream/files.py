"""Frames and readings that events only refer to: read from files that may still be growing.

A reference becomes what the source would have sent itself: encoded chunks where a chunk is one frame (decoded later, by many
threads), otherwise pixels. Rows that are not there yet are waited for, with pauses that grow and an end; a file that has
disappointed once is asked without waiting from then on. Nothing in a file is executed, and sizes are checked before memory
is taken.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import queue
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ptystream.codecs import MAX_FRAME_BYTES, CodecError
from ptystream.events import Event, FileRows, Frames, Payload, Rejected, Rows, SampleRows, Samples
from ptystream.pieces import codec_of, piece
from ptystream.storage.opened import Opened, RefusedError, permitted
from ptystream.storage.virtual import leading, rows_there

log = logging.getLogger(__name__)

PATIENCE_S = 10.0
"""How long rows that were announced are waited for, per file."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.01, 0.5
OPEN_FILES = 8
IDLE_S = 1.0
"""A source of a virtual dataset whose format does not tell whether it is closed is so when nobody has touched it for so long."""
MAX_ROWS = 1 << 24
MAX_WAITING = 4096
"""Events of one source that wait to be read; then the source waits."""


Where = TypeVar("Where", FileRows, Rows)


class FileError(OSError):
    """Rows that cannot be read, with file, dataset and reason."""


@dataclass(frozen=True, slots=True)
class _Dataset:
    """A dataset that is open."""

    data: Any
    codec: str | None
    """Of its chunks, where each is a frame."""
    there: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    """Of a virtual dataset, rows whose sources are there."""


class Copies(Protocol):
    """Copies of what was read: a `ptystream.kept.Kept`."""

    @property
    def lacking(self) -> str:
        """What an error says where there is no copy either."""

    def find(self, where: FileRows | Rows) -> Payload | None:
        """The copy; None where there is none."""

    def keep(self, where: FileRows | Rows, payload: Payload) -> None:
        """Keep one."""


class Reader:
    """Reads what events refer to, from `copies` where those have it. One thread uses it."""

    def __init__(
        self, patience_s: float | None = None, stopped: threading.Event | None = None, copies: Copies | None = None
    ) -> None:
        self._copies = copies
        self._patience_s = PATIENCE_S if patience_s is None else patience_s
        self._stopped = stopped or threading.Event()
        self._open: OrderedDict[str, Opened] = OrderedDict()
        self._datasets: dict[tuple[str, str], _Dataset] = {}
        """(file, path) → dataset, of the open files."""
        self._hopeless: dict[str, None] = {}
        self._said = ""

    def resolve(self, event: Event) -> list[Event]:
        """The same without references. Frames that cannot be read keep theirs; samples are left out; both are told."""
        if isinstance(event, Frames) and any(isinstance(p, FileRows) for p in event.payloads):
            payloads, reason = [], None
            for payload in event.payloads:
                if isinstance(payload, FileRows):
                    try:
                        payload = self._copied(payload, self._frame)
                    except FileError as error:
                        reason = str(error)
                        payload = replace(payload, why=reason)  # type: ignore[arg-type]  # still a FileRows
                payloads.append(payload)
            if reason is not None and reason != self._said:  # what is refused is so for every frame
                self._said = reason
                log.warning("%s", reason)
            return [Frames(event.epoch, event.indices, tuple(payloads), event.timestamps_ns)]
        if isinstance(event, SampleRows):
            try:
                read = {
                    name: _means(self._copied(c, self._readings), c) if isinstance(c, Rows) else c
                    for name, c in event.channels.items()
                }
            except FileError as error:
                return [Rejected("unreadable_file", str(error))]
            return [Samples(event.epoch, event.first, read)]
        return [event]

    def read(self, where: FileRows | Rows) -> Payload:
        """One frame, or readings as they are in the file. Raises `FileError`, caused by a `RefusedError` where to wait for it is
        of no use."""
        return self._copied(where, self._frame) if isinstance(where, FileRows) else self._copied(where, self._readings)

    def close(self) -> None:
        """Close the files."""
        for name in list(self._open):
            self._forget(name)

    def _copied(self, where: Where, read: Callable[[Where], Payload]) -> Payload:
        """The copy of these rows, or the rows, of which a copy is kept then."""
        if self._copies is None:
            return self._patiently(where.file, lambda: read(where))
        found = self._copies.find(where)
        if found is None:
            try:
                found = self._patiently(where.file, lambda: read(where))
            except FileError as error:
                raise FileError(f"{error}{self._copies.lacking}") from error
            self._copies.keep(where, found)
        return found

    def _patiently(self, name: str, read: Callable[[], Payload]) -> Payload:
        deadline = time.monotonic() + (0.0 if name in self._hopeless else self._patience_s)
        pause = FIRST_PAUSE_S
        while True:
            try:
                found = read()
                self._hopeless.pop(name, None)
                return found
            except FileError:
                raise
            except RefusedError as error:
                self._forget(name)
                raise FileError(str(error)) from error
            except Exception as error:  # whatever is in a file, and however far it is written, must not end the scan
                self._forget(name)
                if time.monotonic() + pause > deadline or self._stopped.wait(pause):
                    self._hopeless[name] = None
                    while len(self._hopeless) > 1000:
                        del self._hopeless[next(iter(self._hopeless))]
                    raise FileError(f"{name}: {error}") from error
                pause = min(2 * pause, LONGEST_PAUSE_S)

    def _forget(self, name: str) -> None:
        file = self._open.pop(name, None)
        if file is not None:
            for key in [key for key in self._datasets if key[0] == name]:
                del self._datasets[key]
            file.close()

    def _file(self, where: FileRows | Rows) -> Opened:
        name = where.file
        file = self._open.get(name)
        if file is None:
            _check(where)
            file = self._open[name] = Opened(Path(name), where.folders or (), IDLE_S, opener=_opened)
            file.open()
            while len(self._open) > OPEN_FILES:
                self._forget(next(iter(self._open)))
        self._open.move_to_end(name)
        return file

    def _dataset(self, where: FileRows | Rows, axes: int, row: int) -> _Dataset:
        """The dataset, grown beyond `row`. `axes` are those of one row."""
        name, path = where.file, where.dataset
        file = self._file(where)
        held = self._datasets.get((name, path))
        if held is None:
            if len(file) > OPEN_FILES:  # its links lead to many others
                self._forget(name)
                file = self._file(where)
            dataset = file.dataset(path)
            if dataset.ndim < axes:
                raise FileError(f"{name}: {path!r} has {dataset.ndim} axes of {dataset.dtype}")
            held = self._datasets[name, path] = _Dataset(dataset, codec_of(dataset) if axes > 1 else None)
        if row >= _rows(held.data.shape, axes):
            held.data.refresh()
            if row >= _rows(held.data.shape, axes):
                raise IndexError(f"{path!r} has {_rows(held.data.shape, axes)} rows, row {row} was announced")
        if held.data.is_virtual:
            per = math.prod(held.data.shape[1:-2]) if axes > 1 else 1
            held = self._virtual(where, held, row // max(1, per))
        return held

    def _virtual(self, where: FileRows | Rows, held: _Dataset, row: int) -> _Dataset:
        """The virtual dataset with the sources of `row`, each of which may be opened. Where they are not there the library
        would give zeros."""
        if row < len(held.there) and held.there[row]:
            return held
        with Opened(Path(where.file), where.folders or (), IDLE_S, opener=_opened) as fresh:
            there = rows_there(fresh, fresh.dataset(where.dataset), 0, leading(held.there) if len(held.there) else 0)
        if row >= len(there) or not there[row]:
            raise IndexError(f"{where.dataset!r}: the source of row {row} is not there yet")
        self._forget(where.file)  # the library looks for sources when it opens a file
        held = _Dataset(self._file(where).dataset(where.dataset), None, there)
        self._datasets[where.file, where.dataset] = held
        return held

    def _frame(self, where: FileRows) -> Payload:
        if not where.dataset:
            return _tiff_frame(where) if where.file.lower().endswith((".tif", ".tiff")) else _numpy_frame(where)
        held = self._dataset(where, 2, where.row)
        dataset, codec = held.data, held.codec
        y, x = dataset.shape[-2:]
        wanted = y * x * dataset.dtype.itemsize
        if not 0 < wanted <= MAX_FRAME_BYTES:
            raise FileError(f"{where.file}: {where.dataset!r}: frames of {y} × {x} {dataset.dtype}")
        at = tuple(int(k) for k in np.unravel_index(where.row, dataset.shape[:-2])) if dataset.ndim > 2 else ()
        if codec is not None:
            try:
                stored = piece(dataset, (*at, 0, 0), wanted)
            except CodecError as error:
                raise FileError(str(error)) from error
            if stored is None:
                raise IndexError(f"{where.dataset!r}: row {where.row} is not written yet")
            if stored[1]:
                return Payload(stored[0], codec, dataset.dtype, (y, x))
        pixels = np.empty((y, x), dataset.dtype.newbyteorder("="))
        dataset.read_direct(pixels, np.s_[(*at, slice(None), slice(None))])
        if pixels.dtype.kind == "b":
            pixels = pixels.astype(np.uint8)
        return Payload(pixels.data.cast("B"), "raw", pixels.dtype, (y, x))

    def _readings(self, where: Rows) -> Payload:
        """The rows as they are in the file."""
        count = where.stop - where.first
        if not 0 <= count <= MAX_ROWS:
            raise FileError(f"{where.file}: {where.dataset!r}: rows {where.first} to {where.stop}; {MAX_ROWS} at most")
        dataset = self._dataset(where, 1, where.stop - 1).data
        if dataset.ndim != 1:
            raise FileError(f"{where.file}: {where.dataset!r} has {dataset.ndim} axes; readings have one")
        rows = np.asarray(dataset[where.first : where.stop])
        rows = rows.astype(np.uint8) if rows.dtype.kind == "b" else rows
        return Payload(rows.tobytes(), "raw", rows.dtype, rows.shape)


def _means(rows: Payload, where: Rows) -> NDArray[np.float64]:
    values = np.frombuffer(rows.buffer, rows.dtype).astype(np.float64)
    return np.asarray(values.reshape(-1, where.average).mean(axis=1) * where.scale + where.offset)


def _rows(shape: tuple[int, ...], axes: int) -> int:
    if axes <= 1:
        return shape[0] if shape else 0
    return math.prod(shape[:-2])


def _check(where: FileRows | Rows) -> None:
    """Raises `RefusedError` for a file outside the folders allowed, `FileError` for what is no file."""
    if where.folders is not None:
        permitted(Path(where.file), where.folders)
    if not stat.S_ISREG(os.stat(where.file).st_mode):
        raise FileError(f"{where.file}: is no regular file")


def _opened(path: Path) -> Any:
    import h5py
    import hdf5plugin  # noqa: F401  (registers the filters)

    # Without locks, because network file systems have none; with, where this very process is writing the file. Last those that
    # were not written for readers while they grow.
    for way in ({"swmr": True, "locking": False}, {"swmr": True}, {"locking": False}):
        with contextlib.suppress(OSError):
            return h5py.File(path, "r", libver="latest", **way)
    return h5py.File(path, "r", libver="latest")


def _numpy_frame(where: FileRows) -> Payload:
    _check(where)
    stack = np.lib.format.open_memmap(where.file, mode="r")  # objects and archives are refused
    if (
        stack.ndim < 2
        or stack.dtype.kind not in "buif"
        or not 0 < stack.itemsize * math.prod(stack.shape[-2:]) <= MAX_FRAME_BYTES
    ):
        raise FileError(f"{where.file}: holds {stack.shape} of {stack.dtype} and no frames")
    return _plain(stack.reshape(-1, *stack.shape[-2:])[where.row])


def _tiff_frame(where: FileRows) -> Payload:
    try:
        import tifffile
    except ImportError as error:
        raise FileError(f"{where.file}: TIFF files need the library tifffile: pip install 'ptystream[tiff]'") from error
    _check(where)
    with tifffile.TiffFile(where.file) as file:
        page = file.pages[where.row]
        kind = None if page.dtype is None else np.dtype(page.dtype)
        sound = kind is not None and kind.kind in "buif" and len(page.shape) == 2
        if not sound or kind is None or not 0 < kind.itemsize * math.prod(page.shape) <= MAX_FRAME_BYTES:
            raise FileError(f"{where.file}: holds {page.shape} of {page.dtype} and no frame")
        return _plain(page.asarray())


def _plain(frame: NDArray[Any]) -> Payload:
    if frame.dtype.kind == "b":
        frame = frame.astype(np.uint8)
    if frame.dtype.itemsize == 8 and frame.dtype.kind in "iu" and frame.min() >= 0 and frame.max() < 1 << 32:
        frame = frame.astype(np.uint32)
    pixels = np.ascontiguousarray(frame, frame.dtype.newbyteorder("<"))
    return Payload(pixels.data.cast("B"), "raw", pixels.dtype, (pixels.shape[0], pixels.shape[1]))


def refers(event: Event) -> bool:
    """Whether an event has to be read first."""
    return isinstance(event, SampleRows) or (isinstance(event, Frames) and any(isinstance(p, FileRows) for p in event.payloads))


class ReadingThread(threading.Thread):
    """Reads for one source of a scan, in the order in which its events came, so that its end stays behind its frames."""

    def __init__(
        self,
        name: str,
        deliver: Callable[[Event, int], None],
        failed: Callable[[BaseException], None],
        copies: Copies | None = None,
    ) -> None:
        super().__init__(name=f"files {name}", daemon=True)
        self._copies = copies
        self._deliver, self._failed = deliver, failed
        self._events: queue.Queue[tuple[Event, int]] = queue.Queue(MAX_WAITING)
        self._stopped = threading.Event()
        self.waiting = 0
        """Events that are not delivered yet."""
        self._lock = threading.Lock()
        self.start()

    def add(self, event: Event, arrival_ns: int) -> None:
        """Read and deliver later; waits while `MAX_WAITING` are before it."""
        with self._lock:
            self.waiting += 1
        while not self._stopped.is_set():
            try:
                self._events.put((event, arrival_ns), timeout=0.2)
                return
            except queue.Full:
                continue

    def run(self) -> None:
        """Thread body."""
        reader = Reader(stopped=self._stopped, copies=self._copies)
        try:
            while not self._stopped.is_set():
                try:
                    event, arrival_ns = self._events.get(timeout=0.5)
                except queue.Empty:
                    continue
                for resolved in reader.resolve(event):
                    self._deliver(resolved, arrival_ns)
                with self._lock:
                    self.waiting -= 1
        except BaseException as error:
            self._failed(error)
        finally:
            reader.close()
            self._stopped.set()
            self.waiting = 0

    def stop(self) -> None:
        """Let go of everything; does not wait."""
        self._stopped.set()
