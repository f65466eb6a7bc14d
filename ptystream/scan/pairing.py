"""Which frames are paired, which are out, and which can be handed out: positions and doses as they become known.

Called under the scan's lock, like `Intake`, of which it knows nothing: it works on the ledger's records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.events import Samples
from ptystream.scan.block import Revision
from ptystream.scan.gaps import Gaps
from ptystream.scan.join import Join, Readings, SamplesError
from ptystream.scan.joins import join
from ptystream.scan.judge import Judge
from ptystream.scan.ledger import DOSE, GUESSED, POSITION, PREPARED, QUEUED, SHUTTER, USED, Ledger
from ptystream.scan.parameters import PositionsParameters, PtyScanParameters

OFF_CANVAS = "off_canvas"
NONE = np.zeros(0, np.int64)


class Pairing:
    """Joins the sources of positions and doses to the frames of one scan.

    `also`: further sources, channels 'also.0', …. `room`: records that may exist. `changed` is called where something was
    queued or revised. `decisions` is read for dose_median. Raises `ValueError` for positions in `parameters` that do not fit.
    """

    def __init__(
        self,
        ledger: Ledger,
        parameters: PtyScanParameters,
        positions: PositionsParameters | None,
        also: Sequence[PositionsParameters],
        *,
        room: int,
        decisions: Mapping[str, Any],
        changed: Callable[[], None],
        pixel_m: tuple[float, float] | None = None,
    ) -> None:
        self.ledger = ledger
        self.revisions: list[Revision] = []
        """What changed about frames that were handed out and is not told yet."""
        self.num_theory: int | None = None
        """Frames that have a theoretical position, where those are used."""
        self._offset = np.asarray(parameters.offset, float)
        self._room, self._decisions, self._changed = room, decisions, changed
        self._ready: list[NDArray[np.int64]] = []
        self.queued = 0
        """Records that wait to be handed out, and perhaps some that were excluded meanwhile."""
        sources = {"positions": positions} if positions is not None else {}
        self._joins: dict[str, Join] = {
            name: join(p, room) for name, p in [*sources.items(), *((f"also.{k}", p) for k, p in enumerate(also))]
        }
        if parameters.positions_theory is None and not any(j.positions for j in self._joins.values()):
            self._joins["data"] = join(PositionsParameters(), room)
        self._needed = np.uint8(PREPARED | POSITION)
        for role, flag in (("dose", DOSE), ("shutter", SHUTTER)):
            if any(role in j.roles for j in self._joins.values()):
                self._needed = np.uint8(self._needed | flag)
        self.beam = True
        """Whether there was beam at the newest frame, by number, of which that is known."""
        self._beam_at = {"dose": (-1, True), "shutter": (-1, True)}
        unit_m = positions is None or positions.unit == "m"
        self._unit_m = unit_m
        self._scale = (pixel_m or parameters.pixel_m()) if unit_m else (1.0, 1.0), parameters.shape
        self._judge = Judge(*self._scale, positions)
        self._gaps = {name: Gaps(ledger, j, self._judge) for name, j in self._joins.items()}
        self.raster = parameters.raster
        theory = parameters.planned()
        self._theory = theory is not None
        if theory is not None:
            self._take_theory(theory, parameters.dark_frames)

    @property
    def needs_dose(self) -> bool:
        """Whether a frame waits for its dose."""
        return bool(self._needed & DOSE)

    # ------------------------------------------------------------------ what the sources say

    def samples(self, source: str, event: Samples, *, repairs_only: bool = False) -> None:
        """Enter samples; bad ones are counted by reason. `repairs_only`: of frames with a reading that is not their own."""
        if source not in self._joins:
            self.ledger.note("samples_not_configured", detail=f"{source} sends samples of {sorted(event.channels)}")
            return
        try:
            readings = self._joins[source].add(event)
        except (SamplesError, ValueError, TypeError, OverflowError) as error:
            reason = str(error).partition(":")[0] if isinstance(error, SamplesError) else "malformed"
            self.ledger.note(f"samples_{reason}", detail=f"{source}: {error}")
            return
        self.ledger.note("samples_repeated", readings.repeated, source)
        self.ledger.note("samples_changed", readings.changed, source)
        if repairs_only:
            own = _within(self.ledger.records(readings.indices, 0), self._gaps[source].guessed)
            readings = replace(readings, indices=readings.indices[own], values=readings.values[own], spread=readings.spread[own])
        self._read(source, readings)

    def awaits_repair(self, source: str) -> bool:
        """Whether frames have readings in the place of samples of `source`."""
        return source in self._gaps and bool(self._gaps[source].guessed)

    def overdue(self, now_s: float) -> None:
        """Frames that have waited for samples for as long as was stated get a reading between their neighbours'."""
        for name, gaps in self._gaps.items():
            self._guess(name, gaps.due(now_s))

    def _guess(self, name: str, records: NDArray[np.int64]) -> None:
        """Put something in the place of samples, where that is possible."""
        gaps = self._gaps[name]
        found, values = gaps.guess(records)
        if len(found):
            new = int(np.count_nonzero(~_within(found, gaps.guessed)))
            self.ledger.note("samples_interpolated", new, f"{name}: frame {self.ledger.index[found[0]]}")
            gaps.guessed.update(found.tolist())
            self.ledger.flags[found] |= GUESSED
            self._enter(self._joins[name], found, values, np.zeros(len(found)))

    def flush(self, source: str) -> None:
        """No more samples of `source` will come: frames of which some but not all came get what there is."""
        rest = self._joins[source].flush() if source in self._joins else None
        if rest is not None and len(rest.indices):
            self.ledger.note("samples_incomplete", len(rest.indices))
            self._read(source, rest)

    def placed(self, records: NDArray[np.int64]) -> None:
        """These frames have slots now."""
        self.ledger.paired += int(np.count_nonzero(self.is_paired(records)))
        self._judge_records(records)

    def came(self, records: NDArray[np.int64], now_s: float) -> None:
        """These frames came for the first time: what the sources know of them."""
        ledger = self.ledger
        for name, source in self._joins.items():
            readings = source.frames(ledger.index[records], ledger.time_ns[records])
            if readings is not None:
                self._read(name, readings)
            self._gaps[name].came(records, now_s)

    def missed(self, ended: Mapping[str, str], waited_s: float) -> Iterator[str]:
        """Sources that have not `ended` and are still waited for, `waited_s` after the last frame."""
        for name, source in self._joins.items():
            known = name in ended or (self._theory and source.roles == ("y", "x"))
            if not known and (source.parameters.wait_s is None or waited_s < source.parameters.wait_s):
                yield name

    def refuse(self, records: NDArray[np.int64], reason: str, positions: NDArray[np.float64]) -> None:
        """Frames handed out cannot be used at `positions`; those that have another position by now come again."""
        self.ledger.exclude(records, reason)
        self._again(records[(self.ledger.position[records] != positions).any(axis=1) & self.ledger.is_out(records, (reason,))])

    def retry(self, reason: str) -> None:
        """Frames that are out for `reason` come again."""
        self._again(self.ledger.excluded(reason))

    def _again(self, records: NDArray[np.int64]) -> None:
        if len(records):
            self._give_back(records)
            self._judge_records(records)
            self.queue(records)

    def scale(self, pixel_m: tuple[float, float] | None, shape: int | tuple[int, int] | None) -> None:
        """The pixel on the sample, metres, and the frame's, as they have turned out: positions are judged anew."""
        before, self._scale = self._scale, (pixel_m if self._unit_m else (1.0, 1.0), shape)
        if self._scale != before:
            self._judge.scale(*self._scale)
            self._judge_all()

    def shift(self, offset: tuple[float, float]) -> None:
        """The positions' zero lies here from now on: those that are known move with it."""
        moved = np.asarray(offset, float) - self._offset
        if not moved.any():
            return
        self._offset = self._offset + moved
        self.ledger.position[: self.ledger.length] += moved
        self.revisions = [
            replace(r, value=tuple((np.asarray(r.value) + moved).tolist())) if r.what == "position" else r for r in self.revisions
        ]
        self._judge_all()

    def _judge_all(self) -> None:
        ledger, everything = self.ledger, slice(0, self.ledger.length)
        self._judge_records(self._judge.again(ledger.position[everything], ledger.flags[everything] & POSITION != 0))

    def end(self, ended: Mapping[str, str]) -> None:
        """The scan is over: a last verdict over all, and frames without a position or dose are out."""
        for name in self._joins:
            if name not in ended:
                self.flush(name)
            self._guess(name, self._gaps[name].lacking())  # again, now that every neighbour that came is known
        ledger = self.ledger
        everything = slice(0, ledger.length)
        self._judge_all()
        came = np.flatnonzero(ledger.slot[everything] >= 0)
        ledger.exclude(came[ledger.flags[came] & POSITION == 0], "position_missing")
        if self.needs_dose:
            ledger.exclude(came[ledger.flags[came] & DOSE == 0], "dose_missing")
        if self._needed & SHUTTER:
            ledger.exclude(came[ledger.flags[came] & SHUTTER == 0], "shutter_missing")

    # ------------------------------------------------------------------ who is paired, who can be handed out

    def is_paired(self, records: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether they have a frame, a position and, where one is needed, a dose."""
        needed = np.uint8(self._needed & ~PREPARED)
        paired: NDArray[np.bool_] = (self.ledger.slot[records] >= 0) & (self.ledger.flags[records] & needed == needed)
        return paired

    def has_position(self, records: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether they have a position, with or without a frame."""
        return np.asarray(self.ledger.flags[records] & POSITION != 0)

    def knows(self, record: int) -> bool:
        """Whether position and dose are there, with or without a frame."""
        return not self._needed & ~PREPARED & ~self.ledger.flags[record]

    def is_there(self, records: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether they are paired and prepared, out or not."""
        there: NDArray[np.bool_] = (self.ledger.flags[records] & self._needed == self._needed) & (self.ledger.slot[records] >= 0)
        return there

    def is_usable(self, records: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether they can be handed out now, for the first time or again."""
        new = self.ledger.flags[records] & USED == 0
        usable: NDArray[np.bool_] = self.is_there(records) & new & (self.ledger.reason[records] == 0)
        return usable

    def is_held(self, records: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether they were handed out and are still wanted."""
        held: NDArray[np.bool_] = (self.ledger.flags[records] & USED != 0) & (self.ledger.reason[records] == 0)
        return held

    def queue(self, records: NDArray[np.int64]) -> None:
        """Those of them that can be handed out wait for that from now on."""
        new = records[self.is_usable(records) & (self.ledger.flags[records] & QUEUED == 0)]
        if len(new):
            self.ledger.flags[new] |= QUEUED
            self._ready.append(new)
            self.queued += len(new)
            self._changed()

    def usable(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Records that can be handed out, by slot, and those that have to wait until `revisions` has told that they were
        withdrawn: whoever holds them would take the revision for one of the new block. Those excluded since they were
        queued lose their place."""
        ready = np.concatenate(self._ready) if self._ready else NONE
        usable = self.is_usable(ready)
        if not usable.all():
            self.ledger.flags[ready[~usable]] &= ~QUEUED
            ready = ready[usable]
        ready = ready[np.argsort(self.ledger.slot[ready], kind="stable")]
        self._ready, self.queued = [ready], len(ready)
        untold = [revision.slot for revision in self.revisions if revision.what == "withdrawn"]
        if not untold:
            return ready, NONE
        held = np.isin(self.ledger.slot[ready], np.array(untold, np.int64))
        return ready[~held], ready[held]

    def keep(self, *records: NDArray[np.int64]) -> None:
        """Of what was `usable`, these go on waiting."""
        self._ready = list(records)
        self.queued = sum(map(len, records))

    def tell(self) -> list[Revision]:
        """What changed about frames already handed out, since the last call."""
        told, self.revisions = self.revisions, []
        if self._ready and any(revision.what == "withdrawn" for revision in told):
            self._changed()
        return told

    # ------------------------------------------------------------------ entering

    def _take_theory(self, theory: NDArray[np.float64], dark: int) -> None:
        """Positions of all frames. A raster begins behind the `dark` frames."""
        if theory.ndim != 2 or theory.shape[1] != 2 or not len(theory):
            raise ValueError(f"data.positions_theory: shape {theory.shape}: must be (frame, 2), (y, x)")
        if len(theory) > self._room // 2:
            raise ValueError(f"data.positions_theory: {len(theory)} positions: at most {self._room // 2} frames are allowed")
        index, self.num_theory = np.arange(len(theory)), len(theory)
        if self.raster is not None:
            index, self.num_theory = self.raster.positions()[0] + dark, self.raster.frames + dark
        if self.num_theory > self._room // 2:
            raise ValueError(f"data.raster: {self.num_theory} frames: at most {self._room // 2} are allowed")
        records = self.ledger.records(index, self._room)
        self._set_positions(records, theory + self._offset, np.zeros(len(theory)))

    def _read(self, name: str, readings: Readings) -> None:
        """Enter readings of frames, whether or not the frames have come."""
        records = self.ledger.records(readings.indices, self._room)
        known = records >= 0
        if not known.all():
            self.ledger.note("samples_too_many", int(np.count_nonzero(~known)), f"{self._room} records are kept")
        records = records[known]
        guessed, trusted = self._gaps[name].guessed, np.zeros(len(records), np.bool_)
        if guessed:
            trusted = _within(records, guessed)
            own = records[trusted]
            guessed.difference_update(own.tolist())
            still = np.array([any(r in g.guessed for g in self._gaps.values()) for r in own.tolist()], np.bool_)
            self.ledger.flags[own[~still]] &= ~GUESSED
            self.ledger.note("samples_repaired", len(own), name)
        self._gaps[name].told(records)
        values = readings.values[known]
        if self._joins[name].positions and self._offset.any():
            values[:, :2] += self._offset
        self._enter(self._joins[name], records, values, readings.spread[known], trusted)

    def _enter(
        self,
        source: Join,
        records: NDArray[np.int64],
        values: NDArray[np.float64],
        spread: NDArray[np.float64],
        trusted: NDArray[np.bool_] | None = None,
    ) -> None:
        """Readings (frame, role) of records; the `trusted` ones replace what was only interpolated."""
        for column, role in enumerate(("z", "angle")):
            if role in source.roles:
                told, ledger = values[:, source.roles.index(role)], self.ledger
                late = (ledger.flags[records] & USED != 0) & (ledger.further[records, column] != told)
                ledger.note("corrections_late", int(np.count_nonzero(late)), f"{role} of frames in use stays what it was")
                ledger.further[records[~late], column] = told[~late]
        if source.positions and not self._theory:
            self._set_positions(records, values[:, :2], spread, trusted)
        if "dose" in source.roles:
            self._set_dose(records, values[:, source.roles.index("dose")], source.parameters.dose_limit or 0.0)
        if "shutter" in source.roles:
            self._set_shutter(records, values[:, source.roles.index("shutter")], source.parameters.shutter_limit)
        self.queue(records)

    def _set_positions(
        self,
        records: NDArray[np.int64],
        values: NDArray[np.float64],
        spread: NDArray[np.float64],
        trusted: NDArray[np.bool_] | None = None,
    ) -> None:
        ledger = self.ledger
        known = (ledger.flags[records] & POSITION) != 0
        if known.any():
            worse = known & self._judge.refuses_correction(ledger.position[records], values)
            worse &= True if trusted is None else ~trusted
            if worse.any():
                old, new = (v[worse][0].tolist() for v in (ledger.position[records], values))
                ledger.note("corrections_refused", int(np.count_nonzero(worse)), f"from {old} to {new}")
                records, values, spread = records[~worse], values[~worse], spread[~worse]
        before = self.is_paired(records)
        used = (ledger.flags[records] & USED) != 0
        moved = used & (ledger.position[records] != values).any(axis=1) if used.any() else used
        off = moved & ledger.is_out(records, (OFF_CANVAS,)) if moved.any() else moved
        if off.any():
            self._give_back(records[off])
            moved &= ~off
        ledger.position[records] = values
        ledger.flags[records] |= POSITION
        self._count_paired(records, before)
        judged = self._judge.positions(records, values, spread, ledger.position[: ledger.length])
        self._judge_records(judged)
        if off.any():
            self.queue(records[off])
        if not moved.any():
            return
        moved &= self.is_held(records)
        for record in records[moved].tolist():
            y, x = ledger.position[record].tolist()
            self.revisions.append(Revision(int(ledger.slot[record]), "position", (y, x)))
        self._changed()

    def _set_dose(self, records: NDArray[np.int64], dose: NDArray[np.float64], limit: float) -> None:
        ledger, before = self.ledger, self.is_paired(records)
        changed = records[(ledger.flags[records] & USED != 0) & (ledger.dose[records] != dose)]
        ledger.dose[records] = dose
        ledger.flags[records] |= DOSE
        self._count_paired(records, before)
        off = ~(np.isfinite(dose) & (dose > 0) & (dose >= limit))
        self._judge.beam_off(records, off)
        self._see_beam("dose", records, off)
        self._judge_records(records)
        for record in changed[self.is_held(changed)].tolist():
            relative = float(ledger.dose[record]) / self._decisions["dose_median"]
            self.revisions.append(Revision(int(ledger.slot[record]), "dose", (relative,)))
            self._changed()

    def _set_shutter(self, records: NDArray[np.int64], opened: NDArray[np.float64], limit: float) -> None:
        before = self.is_paired(records)
        self.ledger.shutter[records] = opened
        self.ledger.flags[records] |= SHUTTER
        self._count_paired(records, before)
        closed = ~(opened >= limit)
        self._judge.closed(records, closed)
        self._see_beam("shutter", records, closed)
        self._judge_records(records)

    def _see_beam(self, by: str, records: NDArray[np.int64], off: NDArray[np.bool_]) -> None:
        if len(records):
            newest = int(np.argmax(self.ledger.index[records]))
            index = int(self.ledger.index[records[newest]])
            if index >= self._beam_at[by][0]:
                self._beam_at[by] = index, not off[newest]
            self.beam = all(there for _, there in self._beam_at.values())

    def _judge_records(self, records: NDArray[np.int64]) -> None:
        """Exclude, or take back, frames by what is now known about their position and dose."""
        ledger = self.ledger
        present = records[ledger.slot[records] >= 0]
        if self._judge.believes(present) and not ledger.reason[present].any():
            return
        for reason, bad in self._judge.verdicts(present):
            free = present[~bad & ledger.is_out(present, (reason,))]
            if len(free):
                self._give_back(free)
                self.queue(free)
        for reason, bad in self._judge.verdicts(present):
            out = ledger.exclude(present[bad], reason)
            for record in out[ledger.flags[out] & USED != 0].tolist():
                self.revisions.append(Revision(int(ledger.slot[record]), "withdrawn"))
                self._changed()

    def _give_back(self, records: NDArray[np.int64]) -> None:
        """Records that are out are in again; those that were handed out will be handed out once more."""
        self.ledger.include(records)
        withdrawn = records[self.ledger.flags[records] & USED != 0]
        self.ledger.flags[withdrawn] &= ~np.uint8(USED | QUEUED)

    def _count_paired(self, records: NDArray[np.int64], before: NDArray[np.bool_]) -> None:
        self.ledger.paired += int(np.count_nonzero(self.is_paired(records) & ~before))


def _within(records: NDArray[np.int64], chosen: set[int]) -> NDArray[np.bool_]:
    """Which of `records` are among the `chosen`, however many those are."""
    return np.fromiter((record in chosen for record in records.tolist()), np.bool_, len(records))
