"""Changes of how frames are cut and where they lie, for the runs of a session that have frames already."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ptystream.run import Run
from ptystream.scan.cut import RECUT, Cut, CutError
from ptystream.schedule import Entry

log = logging.getLogger(__name__)

PATH = re.compile(rf"scans\.(.+)\.data\.({'|'.join((*RECUT, 'offset'))})")
"""Parameters whose change concerns frames that are in use: label of the scan, name."""


def entry_of(steered: Entry, label: str, name: str) -> dict[str, Any]:
    """The schedule's entry for a change of one of those parameters."""
    told = {key: steered[key] for key in ("who", "time_ns")}
    changed = {"parameters": {name: steered["value"]}, "before": {name: steered["before"]}}
    return {"do": "recut", "scan": label, **changed, "anew": name == "orientation", **told}


def joined(first: Entry | None, second: Entry) -> dict[str, Any]:
    """Two changes, the second asked for before the first was done, as one."""
    if first is None:
        return dict(second)
    parameters, before = (
        {**a, **b} for a, b in ((first["parameters"], second["parameters"]), (second["before"], first["before"]))
    )
    return {**second, "parameters": parameters, "before": before, "anew": first["anew"] or second["anew"]}


@dataclass(slots=True)
class Wish:
    """A change of one scan of one run that is being made ready."""

    run: Run
    entry: dict[str, Any]
    cut: Cut | None
    """None: nothing has to be cut."""
    steered: list[Entry] = field(default_factory=list)
    """What was set, for when it comes to nothing."""

    @property
    def ready(self) -> bool:
        """Whether it can be switched to."""
        return self.cut is None or (self.cut.filled and self.cut.failure is None)


class Recutting:
    """What is under way. Called from the engine's thread, but for `told`."""

    def __init__(self) -> None:
        self._wishes: list[Wish] = []
        self._why: dict[str, str] = {}
        """Run → why its last change came to nothing."""

    def ask(self, runs: list[Run], steered: Entry) -> str:
        """Begin what a change means for these runs; tells what happens. Raises `CutError` where it cannot be in one of them:
        what was begun in the others is then given up."""
        label, name = PATH.fullmatch(steered["path"]).groups()  # type: ignore[union-attr]
        begun: list[tuple[Wish, Wish | None]] = []
        for run in runs:
            former = next((w for w in self._wishes if w.run is run and w.entry["scan"] == label), None)
            entry = joined(None if former is None else former.entry, entry_of(steered, label, name))
            try:
                moved = former is not None and name == "offset"
                cut = former.cut if moved and former else run.scans[label].buffer.recut(entry["parameters"])
            except CutError as error:  # this one is as it was
                for wish, before in begun:
                    self._undo(wish, before)
                raise CutError(f"{run.name}: {error}" if len(runs) > 1 else str(error)) from error
            begun.append((Wish(run, entry, cut, [*(former.steered if former else []), steered]), former))
        wishes = [wish for wish, _ in begun]
        self._wishes = [w for w in self._wishes if w.entry["scan"] != label or w.run not in runs] + wishes
        for run in runs:
            self._why.pop(run.name, None)
        frames = sum(run.scans[label].buffer.ledger.prepared for run in runs)
        if not any(wish.cut is not None for wish in wishes):
            return "in force before the next pass" if wishes else "in force for the runs to come"
        return f"{frames} frames are cut again from the recording, the newest first; `status` tells how many are"

    @staticmethod
    def _undo(wish: Wish, former: Wish | None) -> None:
        """Another run refused what one has begun: what was under way there before, if anything, goes on."""
        buffer = wish.run.scans[wish.entry["scan"]].buffer
        if former is None and wish.cut is not None:
            buffer.give_up()
        elif former is None:
            buffer.recut(wish.entry["before"])
        elif former.cut is not wish.cut:
            try:
                former.cut = buffer.recut(former.entry["parameters"])
            except CutError as error:  # somebody else took the memory meanwhile
                if former.cut is not None:
                    former.cut.failure = str(error)

    def of(self, run: Run) -> list[Wish]:
        """What is under way for a run."""
        return [wish for wish in self._wishes if wish.run is run]

    def done(self, wish: Wish, why: str = "") -> None:
        """It was switched to, or came to nothing, and why."""
        self._wishes.remove(wish)
        if why:
            self._why[wish.run.name] = why

    def forget(self, run: Run) -> None:
        """The run is over."""
        self._wishes = [wish for wish in self._wishes if wish.run is not run]
        self._why.pop(run.name, None)

    def told(self, run: Run) -> dict[str, str]:
        """For the status: {'recut': how far it is, or why it came to nothing}; nothing where nothing is to be said."""
        wishes = self.of(run)
        parts = [f"{w.entry['scan']}: recutting {w.cut.done} of {w.cut.total}" for w in wishes if w.cut is not None]
        if not parts and run.name in self._why:
            parts = [self._why[run.name]]
        return {"recut": "; ".join(parts)} if parts else {}


def brief(value: Any) -> Any:
    """A value for an answer: of a large array its size."""
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"an array of {' × '.join(map(str, shape))}"
    return {k: brief(v) for k, v in value.items()} if isinstance(value, Mapping) else value
