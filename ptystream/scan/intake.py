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
from ptystream.scan.header import Header, completed
from ptystream.scan.memory import FRAMES, Budget
from ptystream.scan.parameters import PtyScanParameters
from ptystream.scan.prepare import Preparation, PrepareError, decide, mean_dark
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
        self.slabs: Slabs | None = None
        self.decisions: dict[str, Any] = dict(decisions or {})
        self.failure: str | None = None
        """Why no frame can be prepared."""
        self.header: Header | None = None
        """What the source said when it began; None until it does."""
        self._settle = settle
        self._scratch = threading.local()
        self._preparation: Preparation | None = None
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
        if self.slabs is not None and (room := self.slabs.reserve(self._slots + new) - self._slots) < new:
            new, self.is_full = max(0, room), True
        first, self._slots = self._slots, self._slots + new
        return np.concatenate([np.asarray(again, np.int64), np.arange(first, first + new)])

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
        self.slabs.require(self._slots, expected)
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
            preparation = Preparation(self.parameters, self.decisions, pixels, self._dark())
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
            self.slabs, self._preparation = slabs, preparation
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
        preparation, slabs = self._preparation, self.slabs
        outcome = Outcome(job, [], 0)
        noisy = self.parameters.noise_on_arrival()
        for index, slot, payload in zip(job.indices.tolist(), job.slots.tolist(), job.payloads, strict=True):
            reason: str | None = None
            if index < self.parameters.dark_frames and preparation is not None:
                outcome.reasons.append(None)  # nobody looks at its slot
                continue
            try:
                if preparation is None or slabs is None:
                    raise PrepareError("undecided", self.failure or "the scan was released")
                if (why := self.refuse(payload)) is not None:
                    raise PrepareError(why, self.describe(payload))
                random = generator(self.seed, f"noise of {self.label}", index) if noisy else None
                raw = decode_rows(payload, self._frame(payload), preparation.rows)
                outcome.negatives += preparation.into(raw, slabs.row(slot), random)
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
        self.trim()
        self.slabs = self._preparation = None
        self.failure = "the scan was released"


def _decoded(payload: Payload) -> NDArray[Any] | None:
    try:
        return decode(payload)
    except CodecError:
        return None
