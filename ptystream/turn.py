"""A run that is being reconstructed beside others: what a session keeps of it between two of its turns."""

from __future__ import annotations

from dataclasses import dataclass, field

from ptystream.assessment.assessor import Assessor
from ptystream.assessment.looking import Looker
from ptystream.loop import Loop
from ptystream.routing import Pending
from ptystream.run import Run
from ptystream.standing import Asked
from ptystream.telling import Told


@dataclass(slots=True, eq=False)
class Turn:
    """One of the runs that are stepped in turn."""

    pending: Pending
    number: int
    """Of the run in its session, from 1; free again where it leaves no result."""
    loop: Loop
    told: Told
    assessor: Assessor
    looker: Looker | None = None
    """None: no quick look is wanted."""
    again: list[Asked] = field(default_factory=list)
    """What the session before was asked for and is still to be done."""

    @property
    def run(self) -> Run:
        """The run itself."""
        return self.pending.run

    @property
    def aborted(self) -> str | None:
        """Why a source aborted one of its scans."""
        return aborted(self.run)

    @property
    def is_aborted(self) -> bool:
        """Whether it is over, and because a source aborted a scan."""
        return self.aborted is not None and all(scan.buffer.ended is not None for scan in self.run.scans.values())


def aborted(run: Run) -> str | None:
    """Why a source aborted a scan of the run; None where none did."""
    return next((why for scan in run.scans.values() if (why := scan.buffer.aborted) is not None), None)


class Numbers:
    """Numbers of the runs of a session, from 1: those of results, and of runs under way. Takes no memory for old ones."""

    def __init__(self) -> None:
        self._all_to = 0
        """Every number up to this one is taken."""
        self._taken: set[int] = set()
        """Further ones."""

    def free(self, count: int) -> list[int]:
        """The smallest numbers that are free."""
        found: list[int] = []
        number = self._all_to
        while len(found) < count:
            number += 1
            if number not in self._taken:
                found.append(number)
        return found

    def next(self) -> int:
        """The smallest number that is free."""
        return self.free(1)[0]

    def take(self, number: int) -> None:
        """It is no longer free."""
        if number > self._all_to:
            self._taken.add(number)
        while self._all_to + 1 in self._taken:
            self._all_to += 1
            self._taken.discard(self._all_to)

    def give_back(self, number: int) -> None:
        """Its run left no result."""
        self._taken.update(range(number + 1, self._all_to + 1))
        self._taken.discard(number)
        self._all_to = min(self._all_to, number - 1)
