"""Faults on purpose: what beamlines do to messages, done to a recording, the same at every repetition.

A pure transformation of messages with times; no socket, no clock, no knowledge of what the messages say. Every choice is keyed
by (seed, number of the message in the recording), so one fault more changes nothing about the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from fnmatch import fnmatch
from typing import Any, TypeAlias

import numpy as np

from ptystream.chance import generator
from ptystream.events import Buffer
from ptystream.transport import Message

Restamp: TypeAlias = Callable[[Sequence[Buffer], int], Sequence[Buffer]]
"""(parts, nanoseconds) → the same message with its time stamps so much later."""

REACH = 8
"""How many places further on a message that is moved or repeated comes at most."""
MAX_BYTES_CHANGED = 8


def fault(default: Any, text: str, lower: float | None = None, upper: float | None = None) -> Any:
    """Declare a fault: its default does nothing, `text` is its help; limits are inclusive."""
    return field(default=default, metadata={"help": text, "lower": lower, "upper": upper})


@dataclass(frozen=True, slots=True)
class Faults:
    """Which faults, and how many of each. Raises `ValueError` for what cannot be.

    The command's options are made from these fields.
    """

    seed: int = fault(0, "Key of every random choice.", 0)
    rate: float | None = fault(
        None, "Messages a second of the busiest channel, on average, at speed 1: the recording is stretched to that.", 1e-6
    )
    jitter: float = fault(0.0, "Every message comes up to so many seconds later; channels keep their order.", 0.0)
    drop: float = fault(0.0, "Share of messages that never come.", 0.0, 1.0)
    duplicate: float = fault(0.0, f"Share of messages that come again, 1 to {REACH} messages later.", 0.0, 1.0)
    reorder: float = fault(0.0, f"Share of messages that come 1 to {REACH} messages later than they should.", 0.0, 1.0)
    truncate: float = fault(0.0, "Share of messages of which a part is cut short or missing.", 0.0, 1.0)
    corrupt: float = fault(0.0, f"Share of messages of which 1 to {MAX_BYTES_CHANGED} bytes are changed.", 0.0, 1.0)
    skew: float = fault(0.0, "Seconds that time stamps of positions are ahead of those of frames.")
    drift: float = fault(0.0, "Microseconds by which that grows in a second.")
    late: float = fault(0.0, "Seconds by which messages of positions come later.", 0.0)
    late_share: float = fault(1.0, "Share of the messages of positions that are late.", 0.0, 1.0)
    join: float = fault(0.0, "Share of the recording that is over when the replay begins.", 0.0, 1.0)
    stop: float = fault(1.0, "Share of the recording after which nothing more comes.", 0.0, 1.0)
    on: str = fault("*", "Channels whose messages are hit (not by rate, join and stop); as scan/data or '*/positions'.")
    spare: bool = fault(True, "Leave the first and last message of every channel alone: they tell of start and end.")

    def __post_init__(self) -> None:
        for declared in declarations():
            value, lower, upper = getattr(self, declared.name), declared.metadata["lower"], declared.metadata["upper"]
            if value is None or isinstance(value, (str, bool)):
                continue
            if not math.isfinite(value) or (lower is not None and value < lower) or (upper is not None and value > upper):
                limits = f"from {lower:g}" + (f" to {upper:g}" if upper is not None else "") if lower is not None else "finite"
                raise ValueError(f"{declared.name}: {value}: must be {limits}")
        if self.join >= self.stop:
            raise ValueError(f"join: {self.join}: must be below stop ({self.stop}): nothing would be left")

    @property
    def any(self) -> bool:
        """Whether they change anything."""
        return self != Faults(seed=self.seed, on=self.on, spare=self.spare, late_share=self.late_share)


def declarations() -> tuple[Field[Any], ...]:
    """The faults in order, each with name, default and `metadata`: help, lower, upper."""
    return fields(Faults)


@dataclass(frozen=True, slots=True)
class Damaged:
    """What became of a recording."""

    messages: tuple[Message, ...]
    """In the order in which they come; `arrival_ns` is when."""
    hit: Mapping[str, tuple[int, ...]]
    """Fault → numbers in the recording of the messages that it hit. 'late' is there where a share is, 'skew' with 'drift'."""

    def __str__(self) -> str:
        """What was done, for a person."""
        done = [f"{name} {len(numbers)}" for name, numbers in self.hit.items() if numbers]
        return f"{len(self.messages)} messages come" + (f"; hit by: {', '.join(done)}" if done else "")


@dataclass(slots=True)
class _Coming:
    """A message on its way."""

    at: float
    """Nanoseconds since the first message."""
    place: float
    """Number in the recording, or behind which one of it."""
    message: Message


def damage(messages: Iterable[Message], faults: Faults, restamp: Mapping[str, Restamp] | None = None) -> Damaged:
    """Do it. `messages` may be views on a file: only those whose bytes change are copied.

    `restamp`, by channel, is needed for `skew` and `drift`. Raises `ValueError` where it lacks one, or nothing is left or hit.
    """
    every = list(messages)
    first, stop = int(faults.join * len(every)), math.ceil(faults.stop * len(every))
    hit: dict[str, list[int]] = {"left out": [*range(first), *range(stop, len(every))]}
    ends = _ends(every) if faults.spare else set()
    coming = [_Coming(0.0, k, every[k]) for k in range(first, stop)]
    if not coming:
        raise ValueError("no message is left")
    began = coming[0].message.arrival_ns
    _set_times(coming, began, faults.rate)
    lines: dict[str, list[_Coming]] = {}
    for one in coming:
        lines.setdefault(one.message.channel, []).append(one)
    if not any(fnmatch(channel, faults.on) for channel in lines):
        raise ValueError(f"on: {faults.on!r}: matches none of the channels {', '.join(sorted(lines))}")
    kept: list[_Coming] = []
    for channel, line in lines.items():
        touched = fnmatch(channel, faults.on)
        slow = touched and not channel.endswith("/data")
        if slow:
            _delay(line, faults, ends, hit)
            _skew(line, faults, (restamp or {}).get(channel), hit)
        kept += _hit(line, faults, ends, hit) if touched else line
    kept.sort(key=lambda one: (one.at, one.place))
    told = tuple(Message(began + round(one.at), one.message.channel, one.message.parts) for one in kept)
    return Damaged(told, {name: tuple(sorted(numbers)) for name, numbers in hit.items()})


def _ends(every: Sequence[Message]) -> set[int]:
    """Numbers of the first and last message of every channel."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for k, message in enumerate(every):
        first.setdefault(message.channel, k)
        last[message.channel] = k
    return {*first.values(), *last.values()}


def _set_times(coming: Sequence[_Coming], began: int, rate: float | None) -> None:
    for one in coming:
        one.at = float(one.message.arrival_ns - began)
    if rate is None:
        return
    counts: dict[str, int] = {}
    for one in coming:
        counts[one.message.channel] = counts.get(one.message.channel, 0) + 1
    wanted, span = max(counts.values()) / rate * 1e9, coming[-1].at
    for k, one in enumerate(coming):  # a recording that came all at once is spread evenly
        one.at = one.at / span * wanted if span > 0 else k / len(coming) * wanted


def _chances(seed: int, one: _Coming) -> np.random.Generator:
    return generator(seed, "faults", int(one.place))


def _delay(line: Sequence[_Coming], faults: Faults, ends: set[int], hit: dict[str, list[int]]) -> None:
    if not faults.late:
        return
    for one in line:
        chosen = generator(faults.seed, "late", int(one.place)).random() < faults.late_share
        if chosen and (faults.late_share >= 1 or one.place not in ends):
            one.at += faults.late * 1e9
            hit.setdefault("late", []).append(int(one.place))


def _skew(line: Sequence[_Coming], faults: Faults, restamp: Restamp | None, hit: dict[str, list[int]]) -> None:
    if not faults.skew and not faults.drift:
        return
    if restamp is None:
        raise ValueError(f"skew: the time stamps in the messages of {line[0].message.channel} cannot be changed")
    for one in line:
        shift = faults.skew * 1e9 + faults.drift * 1e-6 * one.at
        parts = tuple(restamp(one.message.parts, round(shift)))
        if any(new is not old for new, old in zip(parts, one.message.parts, strict=True)):
            hit.setdefault("skew", []).append(int(one.place))
        one.message = Message(one.message.arrival_ns, one.message.channel, parts)


def _hit(line: Sequence[_Coming], faults: Faults, ends: set[int], hit: dict[str, list[int]]) -> list[_Coming]:
    """One channel's messages with all that happens to single ones; in order, where they are not moved."""
    free = [one.place not in ends for one in line]
    last = max((i for i, may in enumerate(free) if may), default=-1)
    kept: list[_Coming] = []
    for i, one in enumerate(line):
        number, random = int(one.place), _chances(faults.seed, one)
        dropped, cut, changed, again, moved = random.random(5)
        further, later, delay = random.integers(1, REACH + 1, 2).tolist(), random.random(), random.random()
        one.at += delay * faults.jitter * 1e9
        kept.append(one)
        if not free[i]:
            continue
        if dropped < faults.drop:
            hit.setdefault("drop", []).append(number)
            kept.pop()
            continue
        if cut < faults.truncate:
            hit.setdefault("truncate", []).append(number)
            one.message = _truncated(one.message, random)
        if changed < faults.corrupt:
            hit.setdefault("corrupt", []).append(number)
            one.message = _corrupted(one.message, random)
        if again < faults.duplicate:
            hit.setdefault("duplicate", []).append(number)
            behind = line[min(i + further[0], last)]
            kept.append(_Coming(max(one.at, behind.at), max(behind.place, one.place) + 0.25 + later / 8, one.message))
        if moved < faults.reorder and i < last:
            hit.setdefault("reorder", []).append(number)
            behind = line[min(i + further[1], last)]
            one.at, one.place = max(one.at, behind.at), behind.place + 0.5 + later / 8
    if faults.jitter:
        so_far = 0.0
        for one in sorted(kept, key=lambda one: one.place):
            so_far = one.at = max(one.at, so_far)
    return kept


def _truncated(message: Message, random: np.random.Generator) -> Message:
    parts = list(message.parts)
    if len(parts) > 1 and random.random() < 0.5:
        parts.pop()
    else:
        k = int(random.integers(len(parts))) if parts else 0
        raw = memoryview(parts[k]).cast("B") if parts else memoryview(b"")
        parts[k : k + 1] = [raw[: int(random.integers(len(raw)))]] if len(raw) else []
    return Message(message.arrival_ns, message.channel, tuple(parts))


def _corrupted(message: Message, random: np.random.Generator) -> Message:
    full = [k for k, part in enumerate(message.parts) if memoryview(part).nbytes]
    if not full:
        return message
    chosen = full[int(random.integers(len(full)))]
    raw = bytearray(memoryview(message.parts[chosen]).cast("B"))
    for _ in range(int(random.integers(1, MAX_BYTES_CHANGED + 1))):
        raw[int(random.integers(len(raw)))] ^= int(random.integers(1, 256))
    parts = [bytes(raw) if k == chosen else part for k, part in enumerate(message.parts)]
    return Message(message.arrival_ns, message.channel, tuple(parts))
