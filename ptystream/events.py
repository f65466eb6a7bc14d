"""What decoders say: the only language between a detector's wire and the rest of the house.

An event is a value. Nothing downstream of it knows which detector spoke, over which socket, or from which recording.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Buffer: TypeAlias = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Payload:
    """One frame as it came: bytes that still have to be decoded."""

    buffer: Buffer
    """The encoded bytes; for codec 'raw' C-ordered pixels, little endian."""
    codec: str
    """Name in the registry of `ptystream.codecs`: 'raw', 'bslz4', 'lz4'."""
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    """(y, x) of the frame."""


@dataclass(frozen=True, slots=True)
class FileRows:
    """One frame that lies in a file."""

    file: str
    dataset: str
    """Path within an HDF5 file; '' for a .npy or TIFF file."""
    row: int
    """Number of the frame, all axes before (y, x) counted as one."""
    folders: tuple[str, ...] | None = field(default=None, compare=False)
    """Where the file must lie, and where it may lead to beside its own folder; None: anywhere, and nowhere else."""
    why: str = field(default="", compare=False)
    """Why it could not be read, with what to do, where that has been tried."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Readings that lie in a file: consecutive rows of a dataset of one axis."""

    file: str
    dataset: str
    first: int
    stop: int
    average: int = 1
    """So many rows become one reading, their mean."""
    scale: float = 1.0
    offset: float = 0.0
    """Reading = row × scale + offset."""
    folders: tuple[str, ...] | None = field(default=None, compare=False)
    """As of `FileRows`."""


@dataclass(frozen=True, slots=True)
class ScanStarted:
    """A source began an acquisition."""

    epoch: str
    """The source's own name of the acquisition: series number, run uid, arm time."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What the source knows of it; `ptystream.scan.header` names the keys that are understood, with their units."""


@dataclass(frozen=True, slots=True)
class Frames:
    """Detector frames, by index within the epoch."""

    epoch: str
    indices: NDArray[np.int64]
    """Shape (frame,)."""
    payloads: tuple[Payload | FileRows, ...]
    """One per index."""
    timestamps_ns: NDArray[np.int64] | None = None
    """Of the exposure, by the source's clock. Shape (frame,)."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Consecutive readings of slow channels (y, x, z, angle, dose…), by sample number within the epoch."""

    epoch: str
    first: int
    """Number of the first sample."""
    channels: Mapping[str, NDArray[np.float64]]
    """SI units; every array of shape (sample,)."""
    timestamps_ns: NDArray[np.int64] | None = None
    """By the source's clock. Shape (sample,)."""


@dataclass(frozen=True, slots=True)
class SampleRows:
    """Consecutive readings as `Samples` are, of which some lie in files: whoever receives them reads."""

    epoch: str
    first: int
    channels: Mapping[str, NDArray[np.float64] | Rows]
    """All of the same number of samples."""


@dataclass(frozen=True, slots=True)
class ScanEnded:
    """A source ended an acquisition."""

    epoch: str
    count: int | None
    """How many frames (or samples) the source says it sent; None where it does not say."""
    reason: str = "completed"


@dataclass(frozen=True, slots=True)
class Rejected:
    """Input that is malformed, unknown or a repetition: dropped, to be counted under `reason` and logged once per reason."""

    reason: str
    """Low-cardinality name: 'truncated', 'unknown_version', 'wrong_dtype', 'duplicate_message', 'gap' …"""
    detail: str
    """For the log: what was announced and what came."""
    count: int = 1


Event: TypeAlias = ScanStarted | Frames | Samples | SampleRows | ScanEnded | Rejected

ABORTS = ("abort", "aborted", "fail", "failed", "cancelled", "canceled")


def is_abort(reason: str) -> bool:
    """Whether the reason of a `ScanEnded` says that the acquisition was broken off: one of `ABORTS`, alone or before a ':'."""
    return reason.partition(":")[0].strip().lower() in ABORTS
