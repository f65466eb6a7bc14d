"""What a publisher says once a second, whatever the engine does: that it lives, and how far its runs are. Without I/O."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeGuard

import msgpack

from ptystream.events import Buffer
from ptystream.publish.schema import SchemaError, unpack

FORMAT = "ptystream.heartbeat"
VERSION = 1
TOPIC = b"heartbeat/"
INTERVAL_S = 1.0
MAX_BYTES = 1 << 16
MAX_RUNS = 64
"""Of so many it tells, the newest; a session has a handful."""
ALIVE, ENDED = "alive", "ended"


@dataclass(frozen=True, slots=True)
class RunBeat:
    """How far one run is."""

    run: str
    state: str
    """As of a snapshot."""
    iteration: int
    """Iterations of all engines so far."""


RunBeats: TypeAlias = Callable[[], Sequence[RunBeat]]


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """One sign of life."""

    number: int
    """Counts them from 0 since the publisher began."""
    sent_ns: int
    """`time.time_ns()` of the session's machine."""
    started_ns: int
    """When the publisher began: another one at the same address has another."""
    state: str
    """'alive', or 'ended' in the last one: the session says goodbye."""
    runs: tuple[RunBeat, ...] = ()
    """Those under way, or the last that was; the newest last."""


def encode(beat: Heartbeat) -> list[bytes]:
    """Topic and msgpack map, as they are sent."""
    runs = [{"run": one.run, "state": one.state, "iteration": int(one.iteration)} for one in beat.runs[-MAX_RUNS:]]
    header = {"format": FORMAT, "version": VERSION, "number": beat.number, "sent_ns": beat.sent_ns}
    return [TOPIC, msgpack.packb(header | {"started_ns": beat.started_ns, "state": beat.state, "runs": runs})]


def decode(part: Buffer) -> Heartbeat:
    """Read the map of one. Keys that are not known are left. Raises `SchemaError` for what is none."""
    if len(part) > MAX_BYTES:
        raise SchemaError(f"a heartbeat of {len(part)} bytes came; at most {MAX_BYTES} are read")
    header = unpack(part)
    if header.get("format") != FORMAT or header.get("version") != VERSION:
        told = f"{str(header.get('format'))[:80]!r}, version {str(header.get('version'))[:80]}"
        raise SchemaError(f"{told} came where {FORMAT!r}, version {VERSION} is read")
    number, sent_ns, started_ns = (header.get(name) for name in ("number", "sent_ns", "started_ns"))
    if not _is_whole(number) or not _is_whole(sent_ns) or not _is_whole(started_ns):
        raise SchemaError("number, sent_ns and started_ns of a heartbeat must be whole numbers")
    state = header.get("state")
    if state not in (ALIVE, ENDED):
        raise SchemaError(f"state {str(state)[:80]!r} of a heartbeat: {ALIVE!r} or {ENDED!r} is read")
    return Heartbeat(number, sent_ns, started_ns, state, _runs(header.get("runs")))


def _is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _runs(listed: Any) -> tuple[RunBeat, ...]:
    if not isinstance(listed, list) or len(listed) > MAX_RUNS:
        raise SchemaError(f"runs of a heartbeat must be a list of at most {MAX_RUNS}")
    found = []
    for entry in listed:
        told = entry if isinstance(entry, dict) else {}
        run, state, iteration = told.get("run"), told.get("state"), told.get("iteration")
        if not isinstance(run, str) or not isinstance(state, str) or not _is_whole(iteration):
            raise SchemaError("a run of a heartbeat needs run, state (texts) and iteration (a whole number)")
        found.append(RunBeat(run, state, iteration))
    return tuple(found)
