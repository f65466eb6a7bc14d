"""Slow channels that come in pieces, each at its own pace: put side by side by sample number."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ptystream.events import Rows, SampleRows, Samples

MAX_PIECES = 1 << 20
"""Pieces of one channel that wait for the others."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Readings of consecutive samples of one channel: numbers, or where they lie in a file."""

    first: int
    stop: int
    content: NDArray[np.float64] | Rows
    times_ns: NDArray[np.int64] | None = None

    def part(self, first: int, stop: int) -> Piece:
        """Of samples `first` to `stop`, which lie within."""
        a, b = first - self.first, stop - self.first
        if isinstance(self.content, Rows):
            per, begin = self.content.average, self.content.first
            content: NDArray[np.float64] | Rows = replace(self.content, first=begin + a * per, stop=begin + b * per)
        else:
            content = self.content[a:b]
        return Piece(first, stop, content, None if self.times_ns is None else self.times_ns[a:b])


class Columns:
    """Channels of one run. What all of them have comes out; a sample that one of them lacks is left out."""

    def __init__(self, names: tuple[str, ...], constants: Mapping[str, float]) -> None:
        self.names, self.constants = names, dict(constants)
        self.left_out = 0
        """Samples that some but not all channels had."""
        self._waiting: dict[str, deque[Piece]] = {name: deque() for name in names}

    def add(self, name: str, piece: Piece) -> bool:
        """Whether there was room for it."""
        waiting = self._waiting[name]
        if len(waiting) >= MAX_PIECES:
            return False
        waiting.append(piece)
        return True

    def take(self, epoch: str) -> list[Samples | SampleRows]:
        """What is complete by now; numbers that follow each other become one event."""
        made: list[Samples | SampleRows] = []
        run: list[dict[str, Piece]] = []
        while all(self._waiting.values()) and self.names:
            fronts = {name: waiting[0] for name, waiting in self._waiting.items()}
            first = max(piece.first for piece in fronts.values())
            stop = min(piece.stop for piece in fronts.values())
            if first < stop:
                chosen = {name: piece.part(first, stop) for name, piece in fronts.items()}
                inline = all(not isinstance(piece.content, Rows) for piece in chosen.values())
                if run and (not inline or next(iter(run[-1].values())).stop != first):
                    made.append(self._samples(epoch, run))
                    run = []
                if inline:
                    run.append(chosen)
                else:
                    made.append(self._rows(epoch, chosen))
            before = min(piece.first for piece in fronts.values())
            self.left_out += max(0, min(first, stop) - before)
            for name, piece in fronts.items():
                if piece.stop <= stop:
                    self._waiting[name].popleft()
                elif piece.first < stop:
                    self._waiting[name][0] = piece.part(stop, piece.stop)
        if run:
            made.append(self._samples(epoch, run))
        return made

    def _samples(self, epoch: str, run: list[dict[str, Piece]]) -> Samples:
        channels = {name: np.concatenate([np.asarray(pieces[name].content) for pieces in run]) for name in self.names}
        count = len(channels[self.names[0]])
        channels |= {name: np.full(count, value) for name, value in self.constants.items()}
        told = [pieces[self.names[0]].times_ns for pieces in run]
        times = np.concatenate([t for t in told if t is not None]) if all(t is not None for t in told) else None
        return Samples(epoch, run[0][self.names[0]].first, channels, times)

    def _rows(self, epoch: str, chosen: Mapping[str, Piece]) -> SampleRows:
        piece = chosen[self.names[0]]
        count = piece.stop - piece.first
        channels = {name: part.content for name, part in chosen.items()}
        constants = {name: np.full(count, value) for name, value in self.constants.items()}
        return SampleRows(epoch, piece.first, channels | constants)
