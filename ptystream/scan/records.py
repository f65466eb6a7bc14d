"""What is known of the frames of a scan, for who looks at them: one alone, or all at a glance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.publish.snapshot import LEDGER_CODES
from ptystream.scan.ledger import POSITION, PREPARED, USED, Ledger

AWAITED = "awaited"
"""State of a record that has a position and no frame yet."""


@dataclass(frozen=True, slots=True)
class Records:
    """All records of a ledger, as they were at one moment."""

    index: NDArray[np.int64]
    """The source's number of each frame. Shape (record,)."""
    state: NDArray[np.uint8]
    """Place in `names`. Shape (record,)."""
    position: NDArray[np.float64]
    """(y, x) as in `Block.positions_m`, NaN where it is not known or was refused. Shape (record, 2)."""
    names: tuple[str, ...]
    """What a frame may be: `LEDGER_CODES`, `AWAITED`, and each reason of not being used."""


@dataclass(frozen=True, slots=True)
class Record:
    """One frame."""

    index: int
    slot: int
    """Where it lies in the slabs; -1: there is no frame."""
    state: str
    """As of `Records.names`."""
    position: tuple[float, float] | None
    """(y, x) as in `Block.positions_m`."""
    dose: float | None
    """Reading of the beam monitor during the exposure."""
    exposed_ns: int | None
    """When it was exposed, by the source's clock."""
    arrival_ns: int | None
    prepared: bool
    paired: bool
    used: bool
    """Whether it was handed out; it may have been taken back since."""


def records_of(ledger: Ledger) -> Records:
    """All records of a ledger that nothing changes meanwhile."""
    n = ledger.length
    chosen = slice(0, n)
    refused = ledger.is_out(np.arange(n), ("position_refused",))
    position = ledger.position[:n].copy()
    position[refused] = np.nan
    return Records(ledger.index[:n].copy(), _states(ledger, chosen), position, _names(ledger))


def record_of(ledger: Ledger, index: int) -> Record | None:
    """The record of a frame number in a ledger that nothing changes meanwhile."""
    k = ledger.find(index)
    if k is None:
        return None
    y, x = ledger.position[k].tolist()
    slot, flags = int(ledger.slot[k]), int(ledger.flags[k])
    return Record(
        index=index,
        slot=slot,
        state=_names(ledger)[int(_states(ledger, slice(k, k + 1))[0])],
        position=(y, x) if np.isfinite([y, x]).all() else None,
        dose=_known(float(ledger.dose[k])),
        exposed_ns=int(ledger.time_ns[k]) or None,
        arrival_ns=int(ledger.arrival_ns[k]) or None if slot >= 0 else None,
        prepared=bool(flags & PREPARED),
        paired=slot >= 0 and bool(flags & POSITION),
        used=bool(flags & USED),
    )


def _states(ledger: Ledger, chosen: slice) -> NDArray[Any]:
    state, reason = ledger.states(chosen), ledger.reason[chosen]
    if not ledger.ended:
        state[state == LEDGER_CODES.index("missing")] = len(LEDGER_CODES)
    return np.where(reason != 0, len(LEDGER_CODES) + reason, state).astype(np.uint8)


def _names(ledger: Ledger) -> tuple[str, ...]:
    return (*LEDGER_CODES, AWAITED, *ledger.reasons[1:])


def _known(value: float) -> float | None:
    return value if np.isfinite(value) else None
