"""Frames from payloads into slots: what is held until the decisions can be taken, and the work that threads do.

Everything but `run` is called under the scan's lock; `run` decodes and prepares without it.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.chance import generator
from ptystream.codecs import CodecError, decode, decode_rows
from ptystream.events import Payload
from ptystream.scan.cut import Cut, CutError, same_cut
from ptystream.scan.header import Header, completed
from ptystream.scan.memory import FRAMES, Budget
from ptystream.scan.parameters import PtyScanParameters
from ptystream.scan.prepare import Preparation, PrepareError, decide, mean_dark, stated_center
from ptystream.scan.slabs import Slabs

log = logging.getLogger(__name__)

MAX_HELD = 64
"""Most frames held undecoded for the decisions."""
JOB_BYTES = 1 << 20
"""Frames of one job decode to about this."""
MAX_RAW_BYTES = 1 << 28
"""A larger raw frame is refused."""


@dataclass(slots=True)
class Job:
    """Frames to decode and prepare."""

    records: NDArray[np.int64]
    indices: NDArray[np.int64]
    """The source's own frame numbers. Shape (frame,)."""
    slots: NDArray[np.int64]
    payloads: Sequence[Payload]


@dataclass(slots=True)
class Outcome:
    """What a job came to, row by row."""

    job: Job
    reasons: list[str | None]
    """None where the frame is in its slot, otherwise why not. Shape (frame,)."""
    negatives: int
    """Pixels that were below 0."""
    details: dict[str, str] = field(default_factory=dict)
    """Reason → what was wrong with the first frame that has it."""
    cuts: tuple[Cut, ...] = ()
    """In which it was prepared."""


class Intake:
    """Slots, slabs and decisions of one scan."""

    def __init__(
        self,
        label: str,
        parameters: PtyScanParameters,
        *,
        hold: int,
        budget: Budget | None,
        pool: Executor | None,
        decisions: Mapping[str, Any] | None,
        seed: int = 0,
        settle: Callable[[PtyScanParameters], None] | None = None,
        is_out: Callable[[int], bool] = lambda record: False,
    ) -> None:
        """`settle` is told the parameters, with what the source's header fills, before the first frame is prepared; it raises
        `ValueError` where nothing can be done with them. `is_out`: whether a record is excluded by now; nothing is decided by
        such a frame while there are others."""
        self._is_out = is_out
        self.label, self.parameters, self.seed = label, parameters, seed
        self.decisions: dict[str, Any] = dict(decisions or {})
        self.failure: str | None = None
        """Why no frame can be prepared."""
        self.header: Header | None = None
        """What the source said when it began; None until it does."""
        self._settle = settle
        self._scratch = threading.local()
        self.cuts: tuple[Cut, ...] = ()
        """The one in use, and perhaps one that is to follow it; none before the decisions."""
        self._dark_found: NDArray[np.float64] | None = None
        self._hold = max(1, min(hold, MAX_HELD))
        self._held: list[tuple[int, int, int, Payload]] = []
        self._free: list[int] = []
        self._slots = 0
        self._pool = pool
        self.budget = FRAMES if budget is None else budget
        """Memory that frames may take, with those of other scans."""
        self.is_full = False
        """Whether there was no memory for a frame."""

    @property
    def memory_taken(self) -> str:
        """For the log, of a scan for whose frames there is no memory: where that is and what to do."""
        gibibytes = self.budget.limit / 2**30
        share = f"the {gibibytes:.3f} GiB of memory that the frames of all scans of this process share"
        return (
            f"scans.{self.label}.data.shape: {share} are taken: crop or rebin more, or let fewer scans overlap (live.overlap: 1)"
        )

    @property
    def slabs(self) -> Slabs | None:
        """Those in use; None before the decisions."""
        return self.cuts[0].slabs if self.cuts else None

    @property
    def _preparation(self) -> Preparation | None:
        return self.cuts[0].preparation if self.cuts else None

    @property
    def decided(self) -> bool:
        """Whether raw shape, dtype and centre are fixed."""
        return self._preparation is not None

    def refuse(self, payload: Payload) -> str | None:
        """Why this payload cannot be taken, seen from its description alone."""
        preparation = self._preparation
        if preparation and payload.shape == preparation.raw_shape and payload.dtype == preparation.raw_dtype:
            return None
        if self.failure is not None:
            return "undecided"
        expected = self.decisions
        if "raw_shape" in expected:
            if list(payload.shape) != expected["raw_shape"]:
                return "wrong_shape"
            if payload.dtype.name != expected["raw_dtype"]:
                return "wrong_dtype"
        elif payload.dtype.kind not in "uif":
            return "wrong_dtype"
        elif len(payload.shape) != 2 or not 0 < int(np.prod(payload.shape)) * payload.dtype.itemsize <= MAX_RAW_BYTES:
            return "wrong_shape"
        return None

    def describe(self, payload: Payload) -> str:
        """What came and what the scan's frames are, for the log."""
        wanted = {key: self.decisions[key] for key in ("raw_shape", "raw_dtype") if key in self.decisions}
        return f"{payload.shape} {payload.dtype} came, the scan's are {wanted or 'of two axes, numbers'}"

    def slots(self, count: int, max_frames: int) -> NDArray[np.int64]:
        """Reserve up to `count` slots; fewer where memory or `max_frames` end."""
        again = [self._free.pop() for _ in range(min(count, len(self._free)))]
        new = max(0, min(count - len(again), max_frames - self._slots))
        if self.slabs is not None and (room := self._reserve(self._slots + new) - self._slots) < new:
            new, self.is_full = max(0, room), True
        first, self._slots = self._slots, self._slots + new
        return np.concatenate([np.asarray(again, np.int64), np.arange(first, first + new)])

    def _reserve(self, frames: int) -> int:
        """For how many frames there is memory. Before one that comes is refused, the cut that is to follow is given up."""
        assert self.slabs is not None
        room = self.slabs.reserve(frames)
        for following in self.cuts[1:]:
            if room < frames or following.slabs.reserve(frames) < frames:
                gibibytes = self.budget.limit / 2**30
                following.fail(f"more frames came than fit twice into the {gibibytes:.3f} GiB of memory that frames may take")
                self.give_up()
                room = self.slabs.reserve(frames)
        return room

    def free(self, slot: int) -> None:
        """The slot's frame failed; another may have it, because it was never handed out."""
        self._free.append(slot)

    def add(
        self,
        records: NDArray[np.int64],
        indices: NDArray[np.int64],
        slots: NDArray[np.int64],
        payloads: Sequence[Payload],
        expected: int | None,
    ) -> list[Job]:
        """Take frames over; returns the jobs that can be done now."""
        if self._preparation is None:
            if not self._held and payloads and (wrong := self.parameters.off_frame(payloads[0].shape)) is not None:
                center = self.parameters.center
                log.error("%s: the first frame: scans.%s.data.center: %s: %s", self.label, self.label, center, wrong)
            self._held.extend(zip(records.tolist(), indices.tolist(), slots.tolist(), payloads, strict=True))
            return self.decide(expected) if self._has_enough() else []
        assert self.slabs is not None
        for cut in self.cuts:
            cut.slabs.require(self._slots, expected)
        frame_bytes = self._preparation.raw_dtype.itemsize * int(np.prod(self._preparation.raw_shape))
        step = max(1, JOB_BYTES // frame_bytes)
        parts = [slice(k, k + step) for k in range(0, len(records), step)]
        return [Job(records[part], indices[part], slots[part], payloads[part]) for part in parts]

    def _has_enough(self) -> bool:
        """Whether the frames that are held suffice for the decisions, and the dark ones are there."""
        wanted = self.parameters.dark_frames
        dark = sum(index < wanted for _, index, *_ in self._held) if wanted else 0
        lit = len(self._held) - dark
        if lit >= MAX_HELD:
            return True
        if dark < wanted:
            return False
        if "raw_shape" in self.decisions:
            # An earlier run's decisions suffice, but for the arrays in a header that it had.
            return (lit > 0 or not wanted) and ("header" not in self.decisions or self.header is not None)
        return lit >= self._hold and sum(not self._is_dark(r, i) for r, i, *_ in self._held) >= self._hold

    def _is_dark(self, record: int, index: int) -> bool:
        return index < self.parameters.dark_frames or self._is_out(record)

    def _dark(self) -> NDArray[np.float64] | None:
        """The mean of the dark frames that came in time."""
        wanted = self.parameters.dark_frames
        shape = tuple(self.decisions["raw_shape"])
        frames = [_decoded(p) for _, index, _, p in sorted(self._held, key=lambda held: held[1]) if index < wanted]
        sound = [f for f in frames if f is not None and f.shape == shape]
        if not sound:
            if wanted:
                raise PrepareError("undecided", f"data.dark_frames: none of {wanted} dark frames came: give `dark`, or 0")
            return None
        self.decisions["dark_frames"] = len(sound)
        log.info("%s: the dark is the mean of %d frames, of %d asked for", self.label, len(sound), wanted)
        return mean_dark(self.parameters, sound)

    def decide(self, expected: int | None) -> list[Job]:
        """Take the decisions with the frames there are; returns the jobs of the frames that were held.

        Where nothing can be decided, `failure` says why and the jobs' frames will be refused.
        """
        held = self._held
        if self._preparation is not None or not held:
            return []
        try:
            lit = [entry for entry in held if not self._is_dark(*entry[:2])]
            lit = lit or [entry for entry in held if entry[1] >= self.parameters.dark_frames]
            frames = [] if "raw_shape" in self.decisions else [f for *_, p in lit if (f := _decoded(p)) is not None]
            self._complete(frames)
            pixels = None if self.header is None else self.header.mask
            if "raw_shape" not in self.decisions:
                self.decisions.update(decide(self.parameters, frames, pixels))
            stated = stated_center(self.parameters, self.decisions["raw_shape"])
            if stated is not None:
                self.decisions["center"] = stated
            self._dark_found = self._dark()
            preparation = Preparation(self.parameters, self.decisions, pixels, self._dark_found)
            slabs = Slabs(
                preparation.shape,
                preparation.dtype,
                preparation.mask,
                budget=self.budget,
                weights=preparation.weights,
                pool=self._pool,
            )
            wanted, left = max(expected or 0, self._slots), self.budget.left
            if slabs.reserve(wanted) < wanted:
                slabs.trim()
                free = f"{left / 2**30:.3f} GiB of memory that are free of the {self.budget.limit / 2**30:.3f} GiB"
                raise PrepareError(
                    "undecided",
                    f"data.shape: {wanted} frames of {slabs.frame_bytes} bytes do not fit into the {free} that the frames of all "
                    "scans of this process share: crop or rebin more, or let fewer scans overlap (live.overlap: 1)",
                )
        except ValueError as error:
            self.failure = f"scans.{self.label}.{error}" if str(error).startswith("data.") else str(error)
            log.error("%s: no frame can be prepared: %s", self.label, self.failure)
        else:
            self.cuts = (Cut(self.parameters, {}, preparation, slabs),)
            self.mask_pixels(self.decisions.get("hot_pixels", ()))
        self._held = []
        records, indices, slots, payloads = zip(*held, strict=True)
        if self._preparation is None:
            return [Job(np.asarray(records), np.asarray(indices), np.asarray(slots), payloads)]
        return self.add(np.asarray(records), np.asarray(indices), np.asarray(slots), payloads, expected)

    def _complete(self, frames: Sequence[NDArray[Any]]) -> None:
        """Fill what the configuration leaves out from the header, and tell who waits for it."""
        shapes = Counter(frame.shape for frame in frames if frame.ndim == 2)
        if not shapes and "raw_shape" not in self.decisions:
            return  # there is no frame to decide by
        y, x = self.decisions.get("raw_shape") or shapes.most_common(1)[0][0]
        before = self.decisions.get("header", {})
        header = self.header or Header()
        header = replace(header, values={**header.values, **before})
        self.parameters, filled, said = completed(self.parameters, header, (y, x))
        for line in said:
            log.warning("%s: header: scans.%s.data.%s", self.label, self.label, line)
        if filled:
            log.info("%s: from the header of the source: %s", self.label, filled)
        if self.header is not None:
            self.decisions["header"] = filled
        if self._settle is not None:
            self._settle(self.parameters)

    def mask_pixels(self, pixels: Sequence[Sequence[int]]) -> None:
        """Mask pixels [y, x] of the prepared frame, in place."""
        assert self.slabs is not None
        for y, x in pixels:
            self.slabs.mask[y, x] = 0

    def run(self, job: Job) -> Outcome:
        """Decode and prepare; never raises."""
        cuts = self.cuts  # at once: they may be others when the job is done
        preparation = cuts[0].preparation if cuts else None
        outcome = Outcome(job, [], 0, cuts=cuts)
        rows = preparation.rows if preparation is not None else slice(0)
        if len(cuts) > 1:
            every = [cut.preparation.rows for cut in cuts]
            rows = slice(min(part.start for part in every), max(part.stop for part in every))
        noisy = self.parameters.noise_on_arrival()
        for index, slot, payload in zip(job.indices.tolist(), job.slots.tolist(), job.payloads, strict=True):
            reason: str | None = None
            if index < self.parameters.dark_frames and preparation is not None:
                outcome.reasons.append(None)  # nobody looks at its slot
                continue
            try:
                if preparation is None:
                    raise PrepareError("undecided", self.failure or "the scan was released")
                if (why := self.refuse(payload)) is not None:
                    raise PrepareError(why, self.describe(payload))
                raw = decode_rows(payload, self._frame(payload), rows)
                random = generator(self.seed, f"noise of {self.label}", index) if noisy else None
                outcome.negatives += preparation.into(raw, cuts[0].slabs.row(slot), random)
                for following in cuts[1:]:
                    random = generator(self.seed, f"noise of {self.label}", index) if noisy else None
                    self._follow(following, index, slot, raw, random)
            except PrepareError as error:
                reason = error.reason
                outcome.details.setdefault(reason, str(error))
            except CodecError as error:
                reason = "undecodable"
                outcome.details.setdefault(reason, str(error))
            except Exception as error:  # a frame must not end the scan
                reason = "failed"
                outcome.details.setdefault(reason, repr(error))
                log.debug("%s: a frame could not be prepared", self.label, exc_info=True)
            outcome.reasons.append(reason)
        return outcome

    @staticmethod
    def _follow(cut: Cut, index: int, slot: int, raw: NDArray[Any], random: np.random.Generator | None) -> None:
        """Prepare a frame in the cut that is to follow; what is wrong there is wrong with it, and not with the frame."""
        if cut.failure is not None:
            return
        try:
            cut.preparation.into(raw, cut.slabs.row(slot), random)
        except Exception as error:
            cut.fail(f"frame {index}: {error}")

    def again(self, cut: Cut, index: int, slot: int, payload: Payload) -> None:
        """Prepare a frame that is in use in the cut that is to follow. Raises `PrepareError`, `CodecError`."""
        if index < self.parameters.dark_frames:
            return
        noisy = self.parameters.noise_on_arrival()
        random = generator(self.seed, f"noise of {self.label}", index) if noisy else None
        raw = decode_rows(payload, self._frame(payload), cut.preparation.rows)
        cut.preparation.into(raw, cut.slabs.row(slot), random)

    # ------------------------------------------------------------------ another cut

    def changed(self, changes: Mapping[str, Any]) -> PtyScanParameters:
        """The parameters with these changes, checked. Raises `CutError`."""
        made = self.parameters.model_copy()
        for name, value in changes.items():
            try:
                setattr(made, name, value)
            except ValueError as error:
                raise CutError(f"{name}: {error}") from error
        if "raw_shape" in self.decisions and (wrong := made.off_frame(tuple(self.decisions["raw_shape"]))) is not None:
            raise CutError(f"center: {wrong}")
        return made

    def way(self, parameters: PtyScanParameters) -> tuple[Preparation, dict[str, Any]]:
        """(how frames would be prepared, what is decided for it). Raises `CutError`."""
        assert self.slabs is not None
        present, center = self.slabs, stated_center(parameters, self.decisions["raw_shape"])
        if center is None:
            raise CutError("center: it is found from the first frames (auto_center): give (y, x), and auto_center: false")
        pixels = None if self.header is None else self.header.mask
        try:
            preparation = Preparation(parameters, {**self.decisions, "center": center}, pixels, self._dark_found)
        except ValueError as error:
            raise CutError(str(error)) from error
        if preparation.shape != present.shape or preparation.dtype != present.dtype:
            was, now = (f"{of.shape} {of.dtype}" for of in (present, preparation))
            raise CutError(f"frames would become {now}, they are {was}: that cannot be changed while they are used")
        return preparation, {"center": center}

    def another(
        self,
        parameters: PtyScanParameters,
        preparation: Preparation,
        decisions: dict[str, Any],
        expected: int | None,
        former: Cut | None,
    ) -> Cut:
        """A cut that is to follow instead of the `former` one, with the memory that it takes claimed: what that one has, and more
        where frames have come since. Raises `CutError`: the former one may go on then."""
        slabs = Slabs(
            preparation.shape,
            preparation.dtype,
            preparation.mask,
            budget=self.budget,
            weights=preparation.weights,
            pool=self._pool,
        )
        if former is not None:
            slabs.succeed(former.slabs)
        had, left = slabs.reserve(0), self.budget.left
        wanted = max(expected or 0, self._slots)
        if slabs.reserve(wanted) < wanted:
            slabs.keep(had)
            if former is not None:
                slabs.succeed(former.slabs)
            needed = wanted * slabs.frame_bytes / 2**30
            raise CutError(
                f"{wanted} frames once more take {needed:.3f} GiB of memory: {left / 2**30:.3f} GiB are free, of the "
                f"{self.budget.limit / 2**30:.3f} GiB that frames may take"
            )
        return Cut(parameters, decisions, preparation, slabs)

    def is_cut_by(self, parameters: PtyScanParameters) -> bool:
        """Whether frames are cut by these parameters already."""
        return same_cut(parameters, self.parameters, self.decisions.get("raw_shape", (1, 1)))

    def make_room(self, cut: Cut) -> bool:
        """Take memory for a cut that is to follow, a slab at a time; whether there is enough for the frames that have come."""
        cut.slabs.require(min(self._slots, (len(cut.slabs) + 1) * cut.slabs.slab_frames))
        return len(cut.slabs) * cut.slabs.slab_frames >= self._slots

    def follow(self, cut: Cut) -> None:
        """From here on frames are prepared in this cut too."""
        self.cuts = (self.cuts[0], cut)

    def give_up(self) -> None:
        """None follows."""
        for cut in self.cuts[1:]:
            cut.stopped.set()
            cut.slabs.trim()
        self.cuts = self.cuts[:1]

    def switch(self, cut: Cut) -> None:
        """This cut is in use from here on."""
        before = self.slabs
        self.cuts, self.parameters = (cut,), cut.parameters
        self.decisions.update(cut.decisions)
        self.mask_pixels(self.decisions.get("hot_pixels", ()))
        if before is not None:
            before.trim()

    def _frame(self, payload: Payload) -> NDArray[Any]:
        """Memory of this thread to decode a frame into: taken once, so that its pages are not touched anew for each."""
        frame: NDArray[Any] | None = getattr(self._scratch, "frame", None)
        if frame is None or frame.shape != payload.shape or frame.dtype != payload.dtype:
            frame = self._scratch.frame = np.empty(payload.shape, payload.dtype)
        return frame

    def is_light(self, job: Job) -> bool:
        """Whether handing the job to another thread would cost more than doing it: its frames are only copied."""
        preparation = self._preparation  # `release` may come between two looks
        copied = preparation is None or preparation.is_copy
        return copied and job.payloads[0].codec == "raw"

    def trim(self) -> None:
        """No further frame comes: memory that was claimed for those expected is given back."""
        if self.slabs is not None:
            self.slabs.trim()

    def release(self) -> None:
        """Forget frames and slabs."""
        self._held.clear()
        self.give_up()
        self.trim()
        self.cuts = ()
        self.failure = "the scan was released"


def _decoded(payload: Payload) -> NDArray[Any] | None:
    try:
        return decode(payload)
    except CodecError:
        return None
