"""How the frames of a scan are cut: the parameters, what was decided for them, and the slabs that hold the result."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ptystream.events import Payload
from ptystream.scan.parameters import PtyScanParameters, load_array
from ptystream.scan.prepare import Preparation, stated_center
from ptystream.scan.slabs import Slabs

RECUT = ("center", "mask", "orientation")
"""Parameters of a scan after a change of which its frames are cut again."""


class Raw(Protocol):
    """Frames as they came: a `ptystream.raw.RawFrames`."""

    @property
    def there(self) -> bool:
        """Whether they are kept at all."""

    @property
    def lost(self) -> int:
        """Messages that are not kept because the disk was full."""

    def frames(
        self, epoch: str, wanted: Mapping[int, int], stopped: threading.Event | None = None
    ) -> Iterator[tuple[int, Payload]]:
        """(number, frame) of those that are wanted: number → arrival."""


@dataclass(slots=True, eq=False)
class Cut:
    """One way to cut frames, and those that are cut so. Another one is filled while the first is in use."""

    parameters: PtyScanParameters
    decisions: dict[str, Any]
    """What changes with it of the scan's: center, hot_pixels."""
    preparation: Preparation
    slabs: Slabs
    total: int = 0
    """Frames that had come when it began."""
    done: int = 0
    """How many of them are cut."""
    filled: bool = False
    """Whether all of them are: what comes later is from the beginning."""
    failure: str | None = None
    """Why it cannot be used."""
    stopped: threading.Event = field(default_factory=threading.Event)

    def fail(self, why: str) -> None:
        """It cannot be used."""
        self.failure = self.failure or why
        self.stopped.set()


class CutError(ValueError):
    """Frames cannot be cut so; the text says why, and what to do."""


def same_cut(one: PtyScanParameters, other: PtyScanParameters, raw_shape: Sequence[int]) -> bool:
    """Whether two sets of parameters cut frames of `raw_shape` alike."""
    if one.operations() != other.operations() or stated_center(one, raw_shape) != stated_center(other, raw_shape):
        return False
    first, second = (load_array(p.mask) for p in (one, other))
    if first is None or second is None:
        return first is second
    return first.shape == second.shape and bool(np.array_equal(first > 0, second > 0))
