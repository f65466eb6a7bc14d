"""What a scan hands out: blocks of frames that are decoded, paired and prepared, and the slabs they lie in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray


class Signal(Enum):
    """What `take` answers when there is no block."""

    WAIT = "nothing usable now, the scan goes on"
    EOS = "the scan has ended and nothing is left"


WAIT: Final = Signal.WAIT
EOS: Final = Signal.EOS


class FrameStore(Protocol):
    """Prepared frames of one scan, in slabs of equal length; a slot number never changes its meaning."""

    slab_frames: int
    """Frames in a slab: slot s lies in slab s // slab_frames at row s % slab_frames."""
    shape: tuple[int, int]
    """(y, x) of a prepared frame."""
    dtype: np.dtype[Any]
    """uint8, uint16, uint32, int32 or float32."""
    limit: float
    """Counts c with float32(c) >= limit (and NaN) are invalid in that frame alone: saturated, no data.
    One comparison serves every dtype: the largest value of an integer type, infinity for float32."""
    mask: NDArray[np.uint8]
    """1 where a pixel is valid in every frame. Shape (y, x), zero frequency at [0, 0]."""
    weights: NDArray[np.float32] | None
    """Statistical weight of each pixel beside the mask, zero frequency at [0, 0], shape (y, x); None: all count alike."""

    def slab(self, number: int) -> NDArray[Any]:
        """Counts, zero frequency at [0, 0]. Shape (slab_frames, y, x); the same array at every call."""


@dataclass(frozen=True, slots=True)
class Block:
    """Frames that became usable since the last `take`."""

    scan: str
    """Label of the scan."""
    slots: NDArray[np.int64]
    """Where they lie in the scan's slabs. Shape (frame,)."""
    indices: NDArray[np.int64]
    """The source's own frame numbers. Shape (frame,)."""
    positions_m: NDArray[np.float64]
    """Beam position on the sample (y, x), metres (object pixels where there is no pixel size). Shape (frame, 2)."""
    dose: NDArray[np.float64]
    """I0 relative to the median of the run's first frames; 1 where no dose was measured. Shape (frame,)."""
    arrival_ns: NDArray[np.int64]
    """When each frame reached us. Shape (frame,)."""
    further: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 2)))
    """[z, angle]: beam position along z, metres, and rocking angle, degrees, of scans that measure them. Shape (frame, 2)."""

    def __len__(self) -> int:
        return len(self.slots)


@dataclass(frozen=True, slots=True)
class Revision:
    """Something already handed out changed."""

    slot: int | None
    """The frame; None for 'mask', which is the scan's."""
    what: str
    """'position', 'dose', 'mask' or 'withdrawn'."""
    value: tuple[Any, ...] | None = None
    """'position': the new (y, x) as in `Block.positions_m`; 'dose': the new (dose,) as in `Block.dose`; 'mask': the pixels
    [y, x] that `PtyScan.mask` is to mask."""


def select(block: Block, chosen: NDArray[np.bool_]) -> Block:
    """The chosen frames of a block."""
    return Block(
        block.scan,
        block.slots[chosen],
        block.indices[chosen],
        block.positions_m[chosen],
        block.dose[chosen],
        block.arrival_ns[chosen],
        block.further[chosen] if len(block.further) else block.further,
    )


def join(blocks: Sequence[Block]) -> Block:
    """Several blocks of one scan as one."""
    return Block(
        blocks[0].scan,
        *(
            np.concatenate([getattr(b, name) for b in blocks])
            for name in ("slots", "indices", "positions_m", "dose", "arrival_ns", "further")
        ),
    )


def as_then(block: Block, then: Mapping[str, Sequence[Sequence[Any]]]) -> Block:
    """The block with the positions and doses that `Schedule.to_repeat` gives."""
    held = {"position": block.positions_m, "dose": block.dose}
    for what, changed in then.items():
        for index, value in changed:
            held[what][block.indices == index] = value
    return block


def revised(block: Block, revision: Revision) -> Block:
    """The block, which no engine has seen, after a revision of one of its frames (itself, where that is not in it)."""
    here = block.slots == revision.slot
    if not here.any() or revision.value is None:
        return select(block, ~here)
    values = {"position": block.positions_m, "dose": block.dose}[revision.what]
    values[here] = revision.value
    return block
