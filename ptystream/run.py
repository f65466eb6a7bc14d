"""A run: one reconstruction, from its first frame to its result. Carries out schedule entries and keeps their history.

Live, the loop decides the entries; in a verification they are read from a result. Both end in `Run.apply`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.checkpoint import Checkpoint
from ptystream.engine import Engine, Progress, headline
from ptystream.model.scan_model import SharingError
from ptystream.parallel import team
from ptystream.params.load import plugins
from ptystream.reconstruction import PodTable, Reconstruction, Stack, Volume, described
from ptystream.run_state import EngineEntry, RunState, Scan
from ptystream.scan.block import Block, Revision, as_then, select
from ptystream.scan.contents import contents, differing
from ptystream.scan.cut import CutError
from ptystream.schedule import Entry, Schedule, from_runs, to_runs
from ptystream.spread import spread
from ptystream.verbosity import INSPECT

log = logging.getLogger(__name__)

COMING_S = 60.0
"""How long a frame of a schedule that is repeated is waited for."""
ROUNDED_PX = 1e-6
"""Positions that differ by less, in pixels of the object, are the same."""
PART_OF = {
    "take": "data_load",
    "decide": "data_load",
    "end": "data_load",
    "iterate": "engine_iterate",
    "finish": "engine_finalize",
}
"""Which part of the benchmark a schedule entry is; others make an engine ready."""


class Run(RunState):
    """A run, with what a schedule entry does to it."""

    def apply(self, entry: Entry, blocks: Mapping[str, Block] | None = None) -> Progress | None:
        """Carry out one schedule entry and add it to the schedule.

        `blocks` gives the frames of a 'take' (live); without it they are fetched from the scan's buffer by index.
        Raises `KeyError` for an entry that names an unknown scan or engine.
        """
        handler = getattr(self, f"_apply_{entry['do']}", None)
        if handler is None:
            raise KeyError(f"schedule entry 'do: {entry['do']}' is unknown to this version")
        done = dict(entry)
        with self.stopwatch.measure(PART_OF.get(entry["do"], "engine_prepare")):
            progress: Progress | None = handler(done, blocks or {})
        if done:
            self.schedule.append(done)
        return progress

    # A handler completes its entry with what only carrying it out has shown, or empties it where nothing was to be done.

    def _apply_decide(self, entry: dict[str, Any], blocks: Mapping[str, Block]) -> None:
        self.decisions[entry["scan"]] = dict(entry["decisions"])

    def _apply_take(self, entry: dict[str, Any], blocks: Mapping[str, Block]) -> None:
        scan, then = self.scans[entry["scan"]], entry.pop("then", {})
        block = blocks.get(scan.label)
        if block is None:
            block = as_then(scan.buffer.take_exactly(from_runs(entry["indices"]), timeout_s=COMING_S), then)
        if self.reconstruction is None:
            self.reconstruction = Reconstruction({}, {}, PodTable(max(s.model.pods for s in self.scans.values())))
        if scan.number not in self._stores:
            earlier = self.decisions.get(scan.label)
            others = {s.label: (s.taken[0], s.buffer.frames) for s in self.scans.values() if s.taken}
            try:
                decided = scan.model.start(self.reconstruction, block, scan.buffer.frames, earlier, others)
            except SharingError as error:
                log.error("%s: %s: the scan ends here, without a frame in the picture: %s", self.name, scan.label, error)
                scan.buffer.fail(str(error))
                entry.clear()
                return
            self._stores[scan.number] = scan.buffer.frames
            self._keep_starting()
            if earlier != decided:
                decided = {"hot_pixels": [], **scan.buffer.decisions, **decided}
                if not decided["mean_photons"]:
                    log.warning(
                        "%s: %s: no photon on any of the first %d frames: is a shutter closed, or are all pixels masked?",
                        *(self.name, scan.label, len(block)),
                    )
                self.apply({"do": "decide", "scan": scan.label, "decisions": decided})
        elif not scan.frames:
            scan.model.anchor(self.reconstruction, block)
            scan.buffer.retry("off_canvas")
        came = len(block)
        rows, block = self._placed(scan, block)
        if len(block) < came:
            entry["indices"] = to_runs(block.indices)
        if len(block):
            scan.frames += len(block)
            scan.taken.append(block)
            scan.rows.append(int(rows[0]))
            newest = int(block.arrival_ns.max())
            self._newest_taken_ns = max(newest, self._newest_taken_ns or newest)
            self._taken_ns = time.time_ns()
            scan.times_ns.append(self._taken_ns)
        if self.engine is not None:
            with self.stopwatch.measure("engine_prepare"):
                self.engine.extend(rows)
        log.log(INSPECT, "%s: %s: %d frames taken, %d in all", self.name, scan.label, len(block), self.frames)

    def _apply_revise(self, entry: dict[str, Any], blocks: Mapping[str, Block]) -> None:
        scan, what, value = self.scans[entry["scan"]], entry["what"], entry["value"]
        if what == "mask":
            scan.buffer.mask(value)
            own = (np.arange(first, first + len(block)) for first, block in zip(scan.rows, scan.taken, strict=True))
            rows = np.concatenate([np.zeros(0, np.int64), *own])
        else:
            slot = scan.buffer.slot_of(int(entry["index"]))
            row = None if slot is None else scan.model.row(slot)
            if row is None or row in self._withdrawn or self.reconstruction is None:
                entry.clear()
                return
            rows = np.array([row])
            block, place = scan.at(row)
            entry["before"] = {"position": block.positions_m[place].tolist(), "dose": float(block.dose[place])}
            if what == "position" and not scan.model.move(self.reconstruction, row, tuple(value)):
                scan.buffer.refuse(np.array([slot]), "off_canvas", np.array([value], np.float64))
                entry["what"] = what = "withdrawn"
            elif what == "position":
                block.positions_m[place] = value
            elif what == "dose":
                scan.model.weigh(self.reconstruction, row, float(value[0]))
                block.dose[place] = value[0]
            if what == "withdrawn":
                self._withdrawn.add(row)
                scan.frames -= 1
        self._revise(rows, what)
        if what == "withdrawn" and self.reconstruction is not None:
            self.reconstruction.pods.withdraw(rows)

    def _keep_starting(self) -> None:
        """Keep the probes as they begin: those of a scan before an engine improves them, all where everything begins anew."""
        assert self.reconstruction is not None
        if self._starting_of is not self.reconstruction:
            self.starting, self._starting_of = {}, self.reconstruction
        for name, probe in self.reconstruction.probes.items():
            if name not in self.starting:
                self.starting[name] = replace(probe, data=probe.data[: probe.modes_per_frame or None].copy())

    def _revise(self, rows: NDArray[np.int64], what: str) -> None:
        """Tell the engine, and who follows the run, what of these rows has changed."""
        if self.engine is not None and len(rows):
            self.engine.revise(rows, what)
        if self.revisions is not None and len(rows):
            self.revisions.append((rows, what))

    def _apply_engine(self, entry: dict[str, Any], blocks: Mapping[str, Block]) -> None:
        self._start_engine(entry["label"])

    def _apply_steer(self, entry: dict[str, Any], blocks: Mapping[str, Block]) -> None:
        """A parameter is another from here on; those of engines are in force for the one at work and for those to come."""
        branch, _, path = entry["path"].partition(".")
        label, _, name = path.partition(".")
        if branch != "engines":
            return  # what the session heeds, and what the other entries tell
        number = next((k for k, chosen in enumerate(self.engines) if chosen.label == label), None)
        if number is None:  # it was taken out of the configuration before a restart
            log.warning("%s: %s was steered to %s: there is no such engine any more", self.name, entry["path"], entry["value"])
            return
        chosen = self.engines[number]
        parameters = chosen.parameters.model_copy(deep=True)
        *inner, last = name.split(".")
        setattr(reduce(getattr, inner, parameters), last, entry["value"])
        if self.engine_entry is chosen and self.engine is not None:
            self.engine.configure(parameters)
        self.engines[number] = replace(chosen, parameters=parameters)
        if self.engine_entry is chosen:
            self.engine_entry = self.engines[number]

    def _apply_append(self, entry: dict[str, Any], blocks: Mapping[str, Block]) -> None:
        """An engine more, at a place among those that the run has."""
        made = engine_entry(entry["label"], entry["name"], entry["parameters"])
        self.engines.insert(int(entry["place"]), made)

    def _apply_recut(self, entry: dict[str, Any], blocks: Mapping[str, Block]) -> None:
        """Frames are cut another way from here on, or lie elsewhere; the engine goes on from probe, object and its own state.

        Where they were turned, everything begins anew: the object was that of frames that lay otherwise.
        """
        scan, chosen = self.scans[entry["scan"]], self.engine_entry
        entry["anew"] = self.begins_anew(entry)
        if "offset" in entry["parameters"]:
            moved = np.subtract(entry["parameters"]["offset"], entry["before"]["offset"])
            if not scan.model.may_shift(self.reconstruction, moved):
                raise CutError(f"offset: {entry['parameters']['offset']}: the object would become too large, or lie too far off")
        working = self.engine
        state: Mapping[str, Any] | None = None
        if working is not None:
            state = self._set_aside(working)
            self.engine = None
        decided = scan.buffer.switch(entry["parameters"], entry.get("decisions"))
        self.cuts += 1
        self._hold(scan, entry)
        self._stand_otherwise(scan, entry, decided)
        if entry["anew"]:
            self._begin_anew()
            state = None
        if working is not None and chosen is not None and self.reconstruction is not None:
            self._start_engine(self.engines[0].label if entry["anew"] else chosen.label, state)

    def _hold(self, scan: Scan, entry: dict[str, Any]) -> None:
        """Note what the arrays of a change are, or that they are no longer what they were: their files were changed."""
        now = {name: found for name, found in contents(scan.buffer.parameters).items() if name in entry["parameters"]}
        for name in differing(now, entry.get("contents", {})):
            told = f"scans.{scan.label}.data.{name}: {str(entry['parameters'][name])[:200]}"
            log.error("%s: %s is not what it was when frames were cut by it", self.name, told)
            self.unlike.append(told)
        entry.setdefault("contents", now)

    def _stand_otherwise(self, scan: Scan, entry: dict[str, Any], decided: dict[str, Any]) -> None:
        """What follows for the run where its frames were cut another way, or moved."""
        if scan.number in self._stores:
            self._stores[scan.number] = scan.buffer.frames
        told = entry.get("decisions")
        if told is None:
            told = decided
            if scan.taken and scan.number in self._stores:
                told = decided | scan.model.measured(scan.taken[0], scan.buffer.frames)
        entry["decisions"] = dict(told)
        if self.reconstruction is not None and scan.taken and not entry["anew"]:
            self._follow_center(scan, self.decided(scan.label).get("center"), told.get("center"))
        self.recut[scan.label] = self.recut.get(scan.label, {}) | entry["decisions"]
        if "offset" in entry["parameters"]:
            moved = np.subtract(entry["parameters"]["offset"], entry["before"]["offset"])
            for block in scan.taken:
                block.positions_m[...] += moved
            if self.reconstruction is not None:
                scan.model.shift(self.reconstruction, moved)

    def _follow_center(self, scan: Scan, before: Any, after: Any) -> None:
        """The centre of the frames of a scan was moved: its probe gets the phase ramp that moves the modelled ones as far."""
        if isinstance(before, list) and isinstance(after, list) and self.reconstruction is not None:
            transpose, up_down, left_right = scan.buffer.parameters.operations()
            y, x = np.floor(np.add(before, 0.5)) - np.floor(np.add(after, 0.5))
            y, x = (x, y) if transpose else (y, x)
            rebin = scan.buffer.parameters.rebin or 1
            scan.model.tilt(self.reconstruction, ((-y if up_down else y) / rebin, (-x if left_right else x) / rebin))

    def begins_anew(self, entry: Entry) -> bool:
        """Whether a 'recut' or 'restart' leaves nothing of the picture; of a scan of which none is in it, it stays."""
        return bool(entry["anew"]) and ("scan" not in entry or bool(self.scans[entry["scan"]].taken))

    def _begin_anew(self) -> None:
        """Probe and object as they were begun, for the frames that there are; rows are numbered anew.

        A scan that has none any more begins with those that come, and where no scan has one, so does the run: as at its first
        frame.
        """
        taken = {}
        for scan in self.scans.values():
            own = [np.arange(first, first + len(block)) for first, block in zip(scan.rows, scan.taken, strict=True)]
            kept = [select(b, ~np.isin(r, sorted(self._withdrawn))) for b, r in zip(scan.taken, own, strict=True)]
            taken[scan.label] = [block for block in kept if len(block)]
            scan.model = scan.model.again()
            times_ns = [at for r, at in zip(own, scan.times_ns, strict=True) if not np.isin(r, sorted(self._withdrawn)).all()]
            scan.taken, scan.rows, scan.times_ns, scan.frames = [], [], times_ns, 0
            if not scan.ended:
                scan.buffer.retry("off_canvas")  # the canvas is as small as at the beginning
        self._withdrawn.clear()
        self.local = self.intensities = None
        self.beside = {}
        begun = {label: (blocks[0], self.scans[label].buffer.frames) for label, blocks in taken.items() if blocks}
        self.reconstruction = Reconstruction({}, {}, PodTable(max(s.model.pods for s in self.scans.values())))
        for label, (first, frames) in begun.items():
            scan = self.scans[label]
            others = {name: held for name, held in begun.items() if self.scans[name].taken}
            scan.model.start(self.reconstruction, first, frames, self.decided(label), others)
            times_ns, scan.times_ns = scan.times_ns, []
            for block, at_ns in zip(taken[label], times_ns, strict=True):
                rows, placed = self._placed(scan, block)
                if len(placed):
                    scan.taken.append(placed)
                    scan.rows.append(int(rows[0]))
                    scan.times_ns.append(at_ns)
                    scan.frames += len(placed)
        for scan in self.scans.values():
            if not scan.taken:
                self._stores.pop(scan.number, None)
        if not self._stores:
            self.reconstruction, self.engine_entry, self.state = None, None, "waiting"

    def _placed(self, scan: Scan, block: Block) -> tuple[NDArray[np.int64], Block]:
        """(rows, frames) of a block for which there is room on the canvas; the others are counted."""
        assert self.reconstruction is not None
        rows, refused = scan.model.place(self.reconstruction, block)
        if len(refused):
            out = np.isin(block.slots, refused)
            scan.buffer.refuse(block.slots[out], "off_canvas", block.positions_m[out])
            block = select(block, ~out)
        return rows, block

    def decided(self, label: str) -> dict[str, Any]:
        """What was decided for a scan, as it is in force."""
        return {**self.decisions.get(label, {}), **self.recut.get(label, {})}

    def _apply_resume(self, entry: dict[str, Any], blocks: Mapping[str, Block]) -> None:
        """The engine goes on from probe, object and its own state alone: as after a dump, so in a repetition."""
        state = self._resumed
        if self.engine is not None:
            state = self._set_aside(self.engine)
        self._start_engine(entry["label"], state)

    def _set_aside(self, engine: Engine) -> Mapping[str, Any]:
        """Stop an engine so that its state can go on: the pod table stays as it is in a dump, without what an engine that is done
        leaves there for the next one."""
        assert self.reconstruction is not None
        state, rows = engine.state(), self.reconstruction.pods.state()
        engine.finish()
        self.reconstruction.pods.restore(rows)
        return state

    def _start_engine(self, label: str, state: Mapping[str, Any] | None = None) -> None:
        assert self.reconstruction is not None, "an engine starts after the first frames"
        self._keep_starting()
        chosen = next(e for e in self.engines if e.label == label)
        decided = [self.decided(label) for label, scan in self.scans.items() if scan.number in self._stores]  # that have begun
        context = replace(
            self.context,
            mean_photons=float(np.mean([d["mean_photons"] for d in decided])),
            brightest_photons=max(float(d["brightest_photons"]) for d in decided),
        )
        with self.stopwatch.measure("engine_init"):
            engine = chosen.make(chosen.parameters)
        self.engine_entry, self.engine = chosen, None
        if log.isEnabledFor(INSPECT):
            for line in described(self.reconstruction):
                log.log(INSPECT, "%s: %s: %s", self.name, chosen.label, line)
        engine.start(self.reconstruction, self._stores, context, state)
        self.engine_context = context
        self.engine = engine  # one that could not start would be asked what there is to save
        if self.complete:
            engine.complete()
        self.averaging, self.last = False, None
        self.state = "running"

    def _apply_iterate(self, entry: dict[str, Any], blocks: Mapping[str, Block]) -> Progress:
        assert self.engine is not None and self.engine_entry is not None and self.reconstruction is not None
        rows = None if entry["rows"] is None else from_runs(entry["rows"])
        count = int(entry["iterations"])
        started = time.perf_counter()
        progress = self.engine.iterate(count, rows)
        duration = time.perf_counter() - started
        self.iterations += count
        self.rows_used = self.reconstruction.pods.length
        if self.newest_arrival_ns != self._newest_taken_ns:
            self.newest_arrival_ns = self._newest_taken_ns
            self.taken_ns, self.used_ns = self._taken_ns, time.time_ns()
        self.errors.append(progress.errors)
        self.misfit.append(progress.misfit)
        self.local = progress.local
        if progress.intensities is not None:
            self.intensities = progress.intensities
        self.iter_info.append(
            {
                "iteration": progress.iteration,
                "iterations": self.iterations,
                "numiter": int(self.engine_entry.parameters.numiter),
                "engine": self.engine_entry.name,
                "duration": duration,
                "error": progress.errors[-1],
                "frames": progress.frames,
                "count": count,
                **progress.more,
            }
        )
        log.info(
            "%s: %s: iteration %d (%d of all engines): %d frames, %.3f s, %s %.4g, misfit %.4g",
            *(self.name, self.engine_entry.name, progress.iteration, self.iterations, progress.frames, duration),
            *(*headline(progress.errors[-1]), progress.misfit[-1, 1]),
        )
        for note in progress.notes:
            log.info("%s: %s", self.name, note)
        for warning in progress.warnings:
            log.warning("%s: %s", self.name, warning)
        return progress

    def _apply_average(self, entry: dict[str, Any], blocks: Mapping[str, Block]) -> None:
        assert self.engine is not None
        self.engine.average()
        self.averaging = True

    def _apply_restart(self, entry: dict[str, Any], blocks: Mapping[str, Block]) -> None:
        assert self.engine is not None
        if not entry.get("anew"):
            self.engine.restart()
            self.restarts += 1
            return
        self.engine.finish()
        self.engine = None
        self._begin_anew()
        if self.reconstruction is not None:
            self._start_engine(self.engines[0].label)

    def _apply_finish(self, entry: dict[str, Any], blocks: Mapping[str, Block]) -> None:
        assert self.engine is not None
        self.last = self.engine.snapshot() if self.averaging else None
        self.see_coverage()
        refined: dict[str, NDArray[Any]] = getattr(self.engine, "refined", dict)()
        self.beside |= {name: held for name, held in refined.items() if name != "positions"}  # these go into the pod table
        self.engine.finish()
        self.ended = self.engine if refined else None
        self.engine = None

    def _apply_end(self, entry: dict[str, Any], blocks: Mapping[str, Block]) -> None:
        self.scans[entry["scan"]].ended = True
        if self.complete and self.engine is not None:
            self.engine.complete()

    def forget(self) -> None:
        """It is over: its frames are given back."""
        self.ended = None
        self._stores.clear()

    def resume(self, checkpoint: Checkpoint, changes: Sequence[Entry] = ()) -> None:
        """Go on from a checkpoint: its frames are taken from the buffers again, the iterations are not repeated. `changes`: how
        the buffers cut and place frames otherwise than they did then.

        For a run that has done nothing. Raises `TimeoutError` where a frame is not there, before anything is taken.
        """
        for label, scan in self.scans.items():
            scan.buffer.has(Schedule(checkpoint.schedule).frames(label), timeout_s=COMING_S)
        for entry in Schedule(checkpoint.schedule).to_repeat():
            if entry["do"] in ("decide", "take", "revise", "steer", "append", "end"):
                getattr(self, f"_apply_{entry['do']}")(entry, {})
            elif entry["do"] == "recut":  # the buffer cuts so from the beginning, and what is known then is in the checkpoint
                self.recut[entry["scan"]] = self.recut.get(entry["scan"], {}) | entry["decisions"]
                if self.begins_anew(entry):
                    self._begin_anew()
            elif entry["do"] == "restart" and entry.get("anew"):
                self._begin_anew()
        assert self.reconstruction is not None
        self.schedule = Schedule(checkpoint.schedule)
        for held, saved in (
            (self.reconstruction.probes, checkpoint.probes),
            (self.reconstruction.objects, checkpoint.objects),
        ):
            for name, storage in saved.items():
                if isinstance(storage, Stack):
                    held[name] = storage
                mine = held[name]
                mine.data, mine.offset = storage.data, storage.offset
                if isinstance(mine, Volume) and isinstance(storage, Volume):
                    mine.first = storage.first
        self.reconstruction.pods.restore(checkpoint.rows)
        known = {label: scan.known() for label, scan in self.scans.items()}
        for label, scan in self.scans.items():
            scan.know(checkpoint.known[label])
        self.iterations, self.iter_info = checkpoint.iterations, [dict(info) for info in checkpoint.iter_info]
        self.errors, self.misfit = [checkpoint.errors], [checkpoint.misfit]
        self.started, self._resumed = checkpoint.started, checkpoint.engine_state
        self.intensities = checkpoint.engine_state.get("float_intensities")
        self.apply({"do": "resume", "label": checkpoint.engine})
        for change in changes:
            self.apply(change)
        for label, scan in self.scans.items():
            self._catch_up(scan, known[label])

    def _catch_up(self, scan: Scan, known: Mapping[str, NDArray[np.float64]]) -> None:
        """Revise what became known of the frames after the checkpoint: the buffer told it to the run that was cut off."""
        slots = np.concatenate([np.zeros(0, np.int64), *(block.slots for block in scan.taken)])
        before, out = scan.known(), scan.buffer.are_out(slots)
        for k, slot in enumerate(slots.tolist()):
            if out[k] and scan.model.row(slot) not in self._withdrawn:
                self.apply(self.revise_entry(scan, Revision(slot, "withdrawn")))
            for what, values in known.items():
                if not out[k] and self._differs(scan, what, values[k], before[what][k]):
                    self.apply(self.revise_entry(scan, Revision(slot, what, tuple(np.atleast_1d(values[k]).tolist()))))

    @staticmethod
    def _differs(scan: Scan, what: str, now: NDArray[np.float64], before: NDArray[np.float64]) -> bool:
        """Whether a frame has another position or dose; an offset that is added to positions twice is rounded twice."""
        if what != "position":
            return bool((now != before).any())
        return bool((np.abs(scan.model.to_pixels((now - before)[None])) > ROUNDED_PX).any())


def engine_entry(label: str, name: str, parameters: Mapping[str, Any]) -> EngineEntry:
    """What makes an engine of that name. Raises `KeyError` for one that is not known here, `ValueError` for parameters that may
    not be, and where it cannot work on the ranks that there are."""
    engine = plugins("engines")[name]
    checked = engine.Parameters.model_validate(dict(parameters))
    return EngineEntry(label, name, checked, spread(team(), name, engine))
