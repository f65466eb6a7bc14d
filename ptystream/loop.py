"""When to take frames, how often to iterate, when to stop: the policy of a run, as a sequence of schedule entries.

Semantics of ptypy's run loop, with the waits made real: it looks at data, requests and saving between passes of
`numiter_contiguous` iterations; `numiter` iterations are guaranteed from the pass that saw the end of the scan; the
first engine absorbs the acquisition. After `numiter` iterations without a new frame it sleeps until one comes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.checkpoint import Checkpoint
from ptystream.run import Run
from ptystream.run_state import Scan
from ptystream.scan.block import EOS, Block, Signal, join, revised
from ptystream.schedule import Entry, to_runs

log = logging.getLogger(__name__)

AUTOMATIC_FRAMES = 16
"""Frames that an engine waits for where min_frames_for_recon is 0: a probe updated from the first frame on collapses."""


class Step(Enum):
    """What a step came to."""

    WORKED = "iterated"
    IDLE = "nothing to do until a frame, a request or the end of the scan comes"
    DONE = "the run is finished"


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """The parameters that steer the loop."""

    frames_per_block: int = 100000
    min_frames_for_recon: int = 0
    latency_s: float | None = None
    """Longest wanted duration of a pass while frames arrive; None: whole sweeps."""
    ranks: int = 1
    """Processes that share the frames: `min_frames` is for each of them."""
    restart_probe: bool = False
    """Whether the engine takes its starting probe again when the last frame has been taken."""

    @property
    def frames_to_start(self) -> int:
        """Frames that the first engine waits for."""
        return self.min_frames_for_recon or AUTOMATIC_FRAMES


class Loop:
    """Decides the entries of one run; `step` is called until it answers DONE."""

    def __init__(self, run: Run, settings: LoopSettings) -> None:
        self.run, self.settings = run, settings
        self._engine_number = -1
        self._left = 0
        """Iterations of this engine still guaranteed."""
        self._numiter = 0
        """As it was when they were counted: it may be steered."""
        self._unchanged = 0
        """Iterations since the last new frame."""
        self._budget: float | None = None
        """Frames that a pass may visit to keep the wanted latency, as the last passes went."""
        self._rotation = 0
        self._blocks: dict[str, int] = {}
        """Blocks taken of each scan, by label."""
        self._seen: dict[str, int] = {}
        """The same at the last pass."""
        self._cut = False
        self.held = False
        """Whether the last pass waits: frames are being cut another way, and the result is to have them so."""
        self._absorbing = False
        """Whether the last pass saw an unfinished scan."""
        if settings.min_frames_for_recon == 0:
            log.info("%s: min_frames_for_recon is automatic: %d frames", run.name, AUTOMATIC_FRAMES)
        elif settings.min_frames_for_recon < 8:
            log.warning(
                "%s: min_frames_for_recon is %d: a probe that is updated from so few frames may collapse; 8 or more are safe",
                run.name,
                settings.min_frames_for_recon,
            )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the loop: plain numbers."""
        return {
            "left": self._left,
            "numiter": self._numiter,
            "unchanged": self._unchanged,
            "budget": self._budget,
            "rotation": self._rotation,
            "absorbing": self._absorbing,
        }

    def resume(self, checkpoint: Checkpoint, changes: Sequence[Entry] = ()) -> None:
        """Go on from a checkpoint: the run takes its frames again, then `step` goes on. As `Run.resume`."""
        self.run.resume(checkpoint, changes)
        held = checkpoint.loop
        self._engine_number = [entry.label for entry in self.run.engines].index(checkpoint.engine)
        self._left, self._unchanged = int(held["left"]), int(held["unchanged"])
        self._budget = None if held["budget"] is None else float(held["budget"])
        parameters = self.run.engines[self._engine_number].parameters
        self._numiter = int(held.get("numiter", parameters.numiter))  # it may have been steered since `left` was counted
        self._rotation, self._absorbing = int(held["rotation"]), bool(held["absorbing"])
        if changes:
            self._count_anew(begins_anew=any(map(self.run.begins_anew, changes)))

    def switch(self, to: str, asked: Mapping[str, Any]) -> None:
        """End the engine now and go on with the one of this label at the next step. `asked`: who and when, for the schedule."""
        run = self.run
        number = [entry.label for entry in run.engines].index(to)
        run.apply({"do": "finish", **asked})
        self._engine_number = number - 1

    def renew(self, entry: Entry) -> None:
        """Have the frames of a scan cut another way, which is ready, or begin anew; iterations are guaranteed from here on."""
        begins_anew = self.run.begins_anew(entry)
        self.run.apply(entry)
        self._count_anew(begins_anew=begins_anew)

    def _count_anew(self, *, begins_anew: bool) -> None:
        """The engine at work gets all of its iterations; the first one where the run `begins_anew`, at work or next."""
        self._unchanged = 0
        if begins_anew and self._engine_number >= 0:
            self._engine_number = 0 if self.run.engine is not None else -1
        if self.run.engine is not None:
            self._left = self._numiter = int(self.run.engines[self._engine_number].parameters.numiter)

    def cut(self) -> None:
        """Finish at the next step with what is there: no further iteration, no further engine."""
        self._cut = True

    def step(self) -> Step:
        """One pass: take what is there, iterate, account."""
        run = self.run
        if self._cut:
            if run.engine is not None:
                run.apply({"do": "finish"})
            elif run.reconstruction is None:
                came = sum(len(block) for scan in run.scans.values() for block in scan.waiting)
                log.warning("%s: cut short before the engine began: %d frames wait, nothing to save", run.name, came)
            run.state = "finished"
            return Step.DONE
        with run.stopwatch.measure("data_load"):
            new = self._collect()
        if any(self._is_reading(scan) for scan in run.scans.values()):
            return Step.IDLE
        if run.reconstruction is None and not self._start():
            return self._without_frames()
        if run.frames == 0:  # all that were there have been withdrawn
            return self._without_frames()
        if run.engine is None and not self._next_engine():
            return Step.DONE
        assert run.engine_entry is not None
        numiter = int(run.engine_entry.parameters.numiter)
        self._left += numiter - self._numiter
        self._numiter = numiter
        if new:
            self._unchanged = 0
        if not run.complete:
            if self._unchanged >= numiter:
                return Step.IDLE
            self._left = numiter
        elif self._absorbing and self.settings.restart_probe and self._engine_number == 0:
            run.apply({"do": "restart"})
        elif self.held and self._left <= int(run.engine_entry.parameters.numiter_contiguous):
            return Step.IDLE
        self._absorbing = not run.complete
        self._iterate(new)
        if run.complete and self._left <= 0:
            run.apply({"do": "finish"})
            if self._engine_number + 1 == len(run.engines):
                run.state = "finished"
                return Step.DONE
        return Step.WORKED

    def _without_frames(self) -> Step:
        """There is nothing to iterate on: wait, or give up where the scan is over."""
        run = self.run
        if not run.complete or any(scan.waiting for scan in run.scans.values()):
            return Step.IDLE
        log.error("%s: %s", run.name, "; ".join(["the scan ended without a usable frame", *run.failures]))
        if run.engine is not None:
            run.apply({"do": "finish"})
        run.state = "failed"
        return Step.DONE

    # ------------------------------------------------------------------ data

    def _collect(self) -> int:
        """Take everything that is there now; returns the number of new frames in the reconstruction."""
        new = 0
        for scan in self.run.scans.values():
            for revision in scan.buffer.revisions():  # first: what was withdrawn may have been in the way of what comes
                if self.run.reconstruction is None and revision.what == "mask" and scan.label not in self.run.decisions:
                    scan.buffer.mask(revision.value or ())
                elif self.run.reconstruction is None and revision.what != "mask":
                    scan.waiting = [b for b in (revised(block, revision) for block in scan.waiting) if len(b)]
                else:
                    self.run.apply(self.run.revise_entry(scan, revision))
                    self._unchanged = 0
            while not scan.ended:
                answer = scan.buffer.take(self.settings.frames_per_block, self.settings.ranks)
                if isinstance(answer, Signal):
                    if answer is EOS:
                        self.run.apply({"do": "end", "scan": scan.label, "reason": scan.buffer.ended or "completed"})
                    break
                if self.run.reconstruction is None:
                    scan.waiting.append(answer)
                else:
                    before = self.run.frames
                    self._take(scan, answer)
                    new += self.run.frames - before
                self._blocks[scan.label] = self._blocks.get(scan.label, 0) + 1
                if scan.buffer.at_once and not scan.buffer.is_read and self._enough():
                    break  # one block between two passes, however fast they are read
        return new

    def _is_reading(self, scan: Scan) -> bool:
        """Whether the next block of a scan whose frames are all there is still being read: a pass before it would make the
        result depend on how fast that goes."""
        before, self._seen[scan.label] = self._seen.get(scan.label, 0), self._blocks.get(scan.label, 0)
        return scan.buffer.at_once and not scan.ended and self._blocks.get(scan.label, 0) == before

    def _take(self, scan: Scan, block: Block) -> None:
        self.run.apply(self.run.take_entry(scan, block), {scan.label: block})

    def _enough(self) -> bool:
        """Whether the first engine has what it waits for."""
        waiting = sum(len(block) for scan in self.run.scans.values() for block in scan.waiting)
        return self.run.reconstruction is not None or waiting >= self.settings.frames_to_start

    def _start(self) -> bool:
        """Whether enough frames are there; then they are taken, each scan's as one block."""
        if not self._enough() and not (self.run.complete and any(scan.waiting for scan in self.run.scans.values())):
            return False
        for scan in self.run.scans.values():
            if scan.waiting:
                block = join(scan.waiting)
                scan.waiting.clear()
                self._take(scan, block)
        return True

    # ------------------------------------------------------------------ iterations

    def _next_engine(self) -> bool:
        self._engine_number += 1
        if self._engine_number >= len(self.run.engines):
            return False
        entry = self.run.engines[self._engine_number]
        self._left = self._numiter = int(entry.parameters.numiter)
        self._unchanged = 0
        parameters = entry.parameters.model_dump(mode="json")
        self.run.apply({"do": "engine", "label": entry.label, "name": entry.name, "parameters": parameters})
        return True

    def _iterate(self, new: int) -> None:
        """One pass of `numiter_contiguous` iterations; the mean of the iterates begins inside it where it is due."""
        assert self.run.engine_entry is not None
        parameters = self.run.engine_entry.parameters
        chunk = int(parameters.numiter_contiguous)
        if self.run.complete:
            remaining = -(-self._left // chunk) * chunk
            begin = max(0, remaining - int(parameters.average_last))
            if parameters.average_last and not self.run.averaging and begin < chunk:
                if begin:
                    self._pass(begin, None)
                self.run.apply({"do": "average"})
                self._pass(chunk - begin, None)
            else:
                self._pass(chunk, None)
            self._left -= chunk
        else:
            self._pass(chunk, self._share(new))
        self._unchanged += chunk

    def _pass(self, iterations: int, rows: NDArray[np.int64] | None) -> None:
        entry = {"do": "iterate", "iterations": iterations, "rows": None if rows is None else to_runs(rows)}
        progress = self.run.apply(entry)
        assert progress is not None
        if self.settings.latency_s is not None and progress.frames:
            # A pass also costs what does not depend on its frames; scaling the last one settles where the sum is right.
            wanted = progress.frames * self.settings.latency_s / max(self.run.iter_info[-1]["duration"], 1e-9)
            self._budget = wanted if self._budget is None else math.sqrt(self._budget * wanted)

    def _share(self, new: int) -> NDArray[np.int64] | None:
        """Rows of a pass that is to end within the wanted latency: the new ones and a rotating share of the rest."""
        total = self.run.frames
        if self._budget is None or total <= self._budget:
            return None
        rows, old = self.run.rows(), total - new
        share = min(old, max(int(self._budget) - new, 1))
        rotating = (self._rotation + np.arange(share)) % max(old, 1)
        self._rotation = int((self._rotation + share) % max(old, 1))
        chosen: NDArray[np.int64] = rows[np.concatenate([np.sort(rotating), np.arange(old, total)])]
        return chosen
