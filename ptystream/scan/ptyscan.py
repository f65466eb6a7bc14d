"""The live block buffer: sources feed it, the engine's loop takes blocks of frames that are prepared and paired.

Frames and samples are joined by identity, never by order of arrival; whatever becomes of a frame is in the ledger.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.events import Event, FileRows, Frames, Payload, Rejected, Samples, ScanEnded, ScanStarted, is_abort
from ptystream.files import Copies, Reader, ReadingThread, refers
from ptystream.scan.block import EOS, WAIT, Block, FrameStore, Revision, Signal
from ptystream.scan.cut import Cut, CutError, Raw, same_cut
from ptystream.scan.header import header_of
from ptystream.scan.intake import Intake, Job, Outcome
from ptystream.scan.join import MAX_INDEX
from ptystream.scan.ledger import PREPARED, USED, Ledger
from ptystream.scan.memory import Budget
from ptystream.scan.pairing import Pairing
from ptystream.scan.parameters import PositionsParameters, PtyScanParameters
from ptystream.scan.prepare import HOT_FRAMES, find_hot_pixels
from ptystream.scan.records import Record, Records, record_of, records_of
from ptystream.scan.saver import Saver
from ptystream.scan.series import Series, series_of

log = logging.getLogger(__name__)

JOBS_IN_FLIGHT = 8
"""Jobs given to the pool and not yet done; then sources wait."""
SPARES = 64
"""Second messages of frames not yet prepared that are kept, in case the first cannot be used."""
LOOK_S = 0.25
"""While frames are awaited, the clock is asked so often whether their samples are overdue."""
NONE = np.zeros(0, np.int64)


class PtyScan:
    """Frames of one scan. Thread-safe: source threads `feed`, the engine's thread takes.

    `decide_after`: frames that automatic decisions (raw shape, whole counts, centre, dose median) wait for; the run's
    min_frames_for_recon. `decisions`, as an earlier run's `decisions` gave them, are used instead of deciding again. Without
    `positions` they are taken from the samples that come with the frames, one per frame, in metres. `also`: further sources of
    samples (channel 'also.0' is the first), such as a beam monitor. `budget`: memory for frames (None: what all scans of the
    process share); `max_frames` bounds the records. `pixel_m`: pixel on the sample (y, x), where it is not that of the far
    field. `pool` decodes; None: the feeding thread does. `seed`: key of the noise of `add_poisson_noise`. `saver` saves what is
    handed out. `raw` gives frames as they came, to cut them anew.
    `settle` is told the parameters with what the source's header fills, before the first frame is prepared, and
    answers the pixel on the sample; it raises `ValueError` where nothing can be done with them. Raises `ValueError` for arrays
    in `parameters` that cannot be read or do not fit.
    """

    def __init__(
        self,
        label: str,
        parameters: PtyScanParameters,
        positions: PositionsParameters | None = None,
        *,
        also: Sequence[PositionsParameters] = (),
        pool: Executor | None = None,
        max_frames: int = 1_000_000,
        budget: Budget | None = None,
        decide_after: int = 1,
        decisions: Mapping[str, Any] | None = None,
        pixel_m: tuple[float, float] | None = None,
        seed: int = 0,
        saver: Saver | None = None,
        settle: Callable[[PtyScanParameters], tuple[float, float] | None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        copies: Copies | None = None,
        raw: Raw | None = None,
    ) -> None:
        self.label = label
        self._raw, self._epoch = raw, ""
        self._cutting: tuple[Cut, threading.Thread] | None = None
        self._copies = copies
        self.ledger = Ledger(label)
        """Its `counts`, `reason_counts` and `notes` may be read at any time; `PtyScan.map` copies its map."""
        self.ended: str | None = None
        """Why the scan is over; None while it goes on. What was fed before may still be on its way to `take`."""
        self.at_once = False
        """Whether everything is there and only has to be read: blocks are whole then, and the same at every repetition."""
        self.failure: str | None = None
        """Why none of its frames can be prepared; None where they can, or nothing is decided yet."""
        self.on_change: Callable[[], None] = lambda: None
        """Called with the lock held when something has happened; must wait for nobody."""
        self._condition = threading.Condition(threading.RLock())
        self._version = 0
        self._pool, self._clock, self._saver = pool, clock, saver
        self._fed_at = clock()
        self._decide_after, self._max_frames = max(1, decide_after), max_frames
        self._room = 2 * max_frames
        """Records that may exist: frames that came, and as many again that only samples speak of."""
        self._intake = Intake(
            label,
            parameters,
            hold=decide_after,
            budget=budget,
            pool=pool,
            decisions=decisions,
            seed=seed,
            settle=self._settled,
            is_out=lambda record: bool(self.ledger.reason[record]),
        )
        self._settle = settle
        self._jobs = threading.BoundedSemaphore(JOBS_IN_FLIGHT)
        self._source_ended: dict[str, str] = {}
        self._metadata: dict[str, Mapping[str, Any]] = {}
        """Of each source's start."""
        self._data_done_at: float | None = None
        self._record_of_slot: dict[int, int] = {}
        self._slot_by_number: dict[int, int] = {}
        """Of the frames that are cut again."""
        self._spares: dict[int, Payload] = {}
        self._readers: dict[str, ReadingThread] = {}
        """Source → who reads the files that its events refer to."""
        self._files: dict[str, Reader] = {}
        """The same where the feeding thread itself does."""
        self._released = False
        self._broken: BaseException | None = None
        self._handed_out = False
        self._hot_pixels_found = "hot_pixels" in (decisions or {})
        self._pairing = Pairing(
            self.ledger,
            parameters,
            positions,
            also,
            room=self._room,
            decisions=self._intake.decisions,
            changed=self._changed,
            pixel_m=pixel_m,
        )
        self._group = 1
        """Records that become one frame of a block."""
        self._num_frames = self._pairing.num_theory or parameters.num_frames
        self._beyond = "beyond_num_frames" if parameters.raster is None else "beyond_raster"
        self._selection = None if parameters.selection is None else np.array(parameters.selection, np.int64)
        self.ledger.expected = self._num_frames or 0

    # ------------------------------------------------------------------ sources

    def feed(self, source: str, event: Event, arrival_ns: int) -> None:
        """Take one event of 'data', 'positions' or 'also.0'. Bad data are counted by reason and never raise.

        What lies in files is read first, by a thread of its own where there is a pool; later events of the source wait for it.
        """
        self._fed_at = self._clock()
        reader = self._readers.get(source)
        if reader is None and refers(event):
            if self._pool is None:
                files = self._files.get(source)  # it remembers what has disappointed
                if files is None:
                    files = self._files[source] = Reader(copies=self._copies)
                for read in files.resolve(event):
                    self._enter(source, read, arrival_ns)
                return
            if not self._released:
                told = f"{self.label}/{source}"
                reader = ReadingThread(told, lambda read, arrived: self._enter(source, read, arrived), self._break, self._copies)
                self._readers[source] = reader
                if self._released:  # meanwhile
                    reader.stop()
        if reader is not None:
            reader.add(event, arrival_ns)
        else:
            self._enter(source, event, arrival_ns)

    @property
    def is_reading(self) -> bool:
        """Whether files are being read for it."""
        return any(reader.waiting for reader in list(self._readers.values()))

    def _break(self, error: BaseException) -> None:
        """A thread of the scan died of an error of ours: whoever takes frames is told."""
        with self._condition:
            self._broken = error
            self._changed()

    def _enter(self, source: str, event: Event, arrival_ns: int) -> None:
        """Enter one event that refers to no file, or to one that could not be read."""
        self._fed_at = self._clock()
        if isinstance(event, Frames) and source != "data":
            with self._condition:
                self.ledger.note("frames_not_configured", len(event.payloads), f"{source} sends frames")
            return
        if isinstance(event, Frames):
            for job in self._frames(event, arrival_ns):
                self._start(job)
            return
        with self._condition:
            if self._released:
                return
            if isinstance(event, Samples):
                if self.ended is None or self._pairing.awaits_repair(source):
                    self._pairing.samples(source, event, repairs_only=self.ended is not None)
                else:
                    self.ledger.note("samples_late", detail=f"sample {event.first} of {source} came when the scan was over")
            elif isinstance(event, Rejected):
                self.ledger.note(f"rejected_{event.reason}", event.count, event.detail)
            elif isinstance(event, ScanStarted):
                self._metadata[source] = event.metadata
                if source == "data":
                    self._heard(event.metadata)
                self.at_once |= source == "data" and event.metadata.get("at_once") is True
                number = event.metadata.get("num_frames")
                if source == "data" and isinstance(number, int) and 0 < number < MAX_INDEX and not self._num_frames:
                    self.ledger.expected = number
            elif isinstance(event, ScanEnded):
                self._source_ended.setdefault(source, event.reason)
                if source == "data" and event.count is not None and 0 <= event.count < MAX_INDEX:
                    self.ledger.expected = min(event.count, self._num_frames or event.count)
                self._pairing.flush(source)
            jobs = self._check_end()
        for job in jobs:
            self._start(job)

    @property
    def aborted(self) -> str | None:
        """Why a source aborted the scan; None where none did."""
        return next((why for why in list(self._source_ended.values()) if is_abort(why)), None)

    def _heard(self, metadata: Mapping[str, Any]) -> None:
        """The header of the frames; one that comes when frames are being prepared is too late."""
        header = header_of(metadata)
        known = bool(header.values) or header.mask is not None or header.flat is not None or header.count_table is not None
        if self._intake.decided and self._intake.header is None and known:
            self.ledger.note("header_late", detail="the first frames were prepared without it")
        elif self._intake.header is None:
            self._intake.header = header

    def _settled(self, parameters: PtyScanParameters) -> None:
        if self._settle is not None:
            self._pairing.scale(self._settle(parameters), parameters.shape)
        if self._saver is not None:
            self._saver.parameters = parameters

    def is_over(self, source: str) -> bool:
        """Whether nothing more is expected of a source."""
        return self.ended is not None or source in self._source_ended

    @property
    def has_beam(self) -> bool:
        """Whether there was beam at the newest frame of which dose or shutter are known; True where neither is measured."""
        return self._pairing.beam

    @property
    def series(self) -> Series:
        """Which series it belongs to, as far as is known by now."""
        with self._condition:
            starts = [self._metadata[source] for source in sorted(self._metadata, key=lambda s: (s != "data", s))]
            return series_of(self.parameters.series, starts, self._intake.decisions.get("angle"))

    def silent_s(self) -> float:
        """Seconds since a source said anything."""
        return 0.0 if self.is_reading else self._clock() - self._fed_at

    def look(self) -> None:
        """End the scan where nothing is left to wait for by now: the last word may be the clock's."""
        with self._condition:
            jobs = self._check_end()
        for job in jobs:
            self._start(job)

    def end(self, reason: str) -> None:
        """The scan is over now, by request or time-out; what has come and is paired will still be handed out."""
        with self._condition:
            jobs = self._end(reason)
        for job in jobs:
            self._start(job)

    def release(self) -> None:
        """Forget the frames. What comes afterwards is ignored."""
        with self._condition:
            self._released = True
            self._intake.release()
            self._pairing.keep()
            self._changed()
        for reader in list(self._readers.values()):  # another source's thread may add its own
            reader.stop()
        self._files = {}  # closed by whoever is still reading
        if self._saver is not None:
            self._saver.close()

    # ------------------------------------------------------------------ the loop's side

    def take(self, limit: int, ranks: int = 1) -> Block | Signal:
        """Up to `limit` frames that became usable, in order of their slots; WAIT, or EOS when nothing is left.

        Fewer than min_frames × `ranks` are handed out only at the end of the scan. Where frames are there `at_once`, every block
        but the last has `limit` of them, or so many where that is more. Raises `RuntimeError` where a thread that prepares frames
        died of an error of ours.
        """
        with self._condition:
            if self._broken is not None:
                raise RuntimeError(f"{self.label}: frames could not be entered: {self._broken!r}") from self._broken
            jobs = self._check_end()
        for job in jobs:
            self._start(job)
        limit = (max(limit, self.parameters.min_frames * ranks) if self.at_once else limit) * self._group
        with self._condition:
            if self.at_once and self.ended is None and self._pairing.queued <= limit:
                return WAIT  # the block after this one, or the end, is to be known first
            ready, held = self._pairing.usable()
            final = self.ended is not None and self.ledger.waiting == len(ready)
            ready, rest = self._together(ready, final)
            if len(ready) == 0:
                return EOS if final else WAIT
            if len(ready) < self.parameters.min_frames * ranks and not final:
                return WAIT
            if self.at_once and len(ready) <= limit and not final:
                return WAIT
            if not self._decide_dose(ready, final):
                return WAIT
            self._pairing.keep(ready[limit:], rest, held)
            return self._hand_out(ready[:limit])

    def _together(self, ready: NDArray[np.int64], final: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(records that can be handed out, those that wait for others), of those that are `ready`; `final`: nothing comes."""
        return ready, NONE

    @property
    def is_read(self) -> bool:
        """Whether the scan is over and everything of it was handed out."""
        with self._condition:
            return self.ended is not None and not self.ledger.waiting

    def take_exactly(self, indices: NDArray[np.int64], timeout_s: float) -> Block:
        """The frames with these numbers, in this order, as soon as all are there: for repeating a schedule. Frames that are
        excluded by now are given too, because the schedule says when they were withdrawn.

        Raises `TimeoutError` that names the first frame that is not there.
        """
        with self._condition:
            return self._hand_out(self._await(indices, timeout_s))

    def has(self, indices: NDArray[np.int64], timeout_s: float) -> None:
        """Wait until `take_exactly` can give these frames. Raises as it does, and takes nothing."""
        with self._condition:
            self._await(indices, timeout_s)

    def _await(self, indices: NDArray[np.int64], timeout_s: float) -> NDArray[np.int64]:
        deadline = time.monotonic() + timeout_s
        while True:
            found = [self.ledger.find(i) for i in indices.tolist()]
            records = np.asarray([-1 if r is None else r for r in found], np.int64)
            usable = records >= 0
            usable[usable] = self._pairing.is_there(records[usable])
            if usable.all() and self._decide_dose(records, self.ended is not None):
                return records
            left = deadline - time.monotonic()
            if left > 0:
                self._condition.wait(min(left, LOOK_S))
                if self.ended is None:
                    self._pairing.overdue(self._clock())
            else:
                lacking = indices[~usable]
                what = f"frame {lacking[0]} and {len(lacking) - 1} more" if len(lacking) else "the dose median"
                raise TimeoutError(f"{self.label}: {what} did not come within {timeout_s:g} s")

    def revisions(self) -> list[Revision]:
        """What changed about frames already handed out, since the last call."""
        with self._condition:
            told = self._pairing.tell()
        if self._saver is not None:
            self._saver.revise(told)
        return told

    def changed(self, seen: int, timeout_s: float) -> int:
        """Wait until something has happened since `seen` (0 at first), at most `timeout_s`; returns the number to
        wait with next."""
        with self._condition:
            self._condition.wait_for(lambda: self._version != seen, timeout_s)
            return self._version

    def refuse(self, slots: NDArray[np.int64], reason: str, positions: NDArray[np.float64]) -> None:
        """Frames handed out that the model cannot place at `positions` (frame, 2): they are counted under `reason`. After
        'off_canvas' they come again where their position is corrected, or has been by now."""
        with self._condition:
            self._pairing.refuse(self._records(slots), reason, positions)
        if self._saver is not None:
            self._saver.revise([Revision(int(slot), "withdrawn") for slot in slots])

    def retry(self, reason: str) -> None:
        """Frames refused for `reason` may fit now: they come again."""
        with self._condition:
            self._pairing.retry(reason)

    def mask(self, pixels: Sequence[Sequence[int]]) -> None:
        """Mask pixels [y, x] of the prepared frame: what a revision 'mask' asks for, carried out between two iterations."""
        with self._condition:
            self._intake.decisions["hot_pixels"] = [list(pixel) for pixel in pixels]
            self._intake.mask_pixels(pixels)

    # ------------------------------------------------------------------ cutting again

    def recut(self, changes: Mapping[str, Any]) -> Cut | None:
        """Have frames cut another way besides: those that have come in a thread of its own, the newest first, those that come as
        they do. What was begun before is given up. None where nothing has to be cut: no frame is yet (they all will be cut so),
        or all are so already.

        Raises `CutError` where that cannot be: nothing is changed then.
        """
        with self._condition:
            if self._saver is not None:
                raise CutError("prepared frames are saved to a file as they are (data.save): the file would hold both kinds")
            parameters = self._intake.changed(changes)
            if not self._intake.decided or self._intake.is_cut_by(parameters):
                self._intake.parameters = parameters
                self._give_up()
                return None
            if self._raw is None or not self._raw.there:
                raise CutError("frames are not kept as they came: io.recording.active is off, and nothing can be cut again")
            preparation, decided = self._intake.way(parameters)
            before = self._cutting
            former = None if before is None else before[0]
            cut = self._intake.another(parameters, preparation, decided, self.ledger.expected or None, former)
            self._cutting = None
            if former is not None:
                former.stopped.set()
            self._intake.give_up()
        if before is not None:
            before[1].join()
        thread = threading.Thread(target=self._cut_again, args=(cut,), name=f"cutting {self.label}", daemon=True)
        self._cutting = cut, thread
        thread.start()
        return cut

    def switch(self, changes: Mapping[str, Any], decisions: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """From here on frames are cut as `changes` say, which `recut` has made ready; otherwise it is waited for. Returns what is
        decided for it; `decisions`, as an earlier call returned them, are taken instead. Raises `CutError`."""
        cut = None
        with self._condition:
            parameters = self._intake.changed(changes)
            if self._cutting is not None and self._intake.cuts[1:] == (self._cutting[0],):
                following = self._cutting[0].parameters
                cut = self._cutting[0] if same_cut(following, parameters, self._intake.decisions["raw_shape"]) else None
        if cut is None:
            cut = self.recut(changes)
        if cut is not None and self._cutting is not None:
            self._cutting[1].join()
            if cut.failure is not None or not cut.filled:
                raise CutError(cut.failure or "given up")
        with self._condition:
            if cut is not None:
                cut.decisions |= {k: v for k, v in (decisions or {}).items() if k in ("center", "hot_pixels")}
                self._intake.switch(cut)
                if self.ended is not None:
                    self._intake.trim()
                self._pairing.revisions = [r for r in self._pairing.revisions if r.what != "mask"]
                self._hot_pixels_found |= "hot_pixels" in cut.decisions
                self._cutting = None
            self._intake.parameters = parameters
            self._pairing.shift(parameters.offset)
            return {k: self._intake.decisions[k] for k in ("center", "hot_pixels") if k in self._intake.decisions}

    def give_up(self) -> None:
        """Frames are not to be cut another way after all."""
        with self._condition:
            self._give_up()

    def _give_up(self) -> None:
        """Also what is still making room, and not followed yet."""
        if self._cutting is not None:
            self._cutting[0].stopped.set()
        self._intake.give_up()

    def _cut_again(self, cut: Cut) -> None:
        """Thread body."""
        try:
            wanted = self._begin_cut(cut)
            if wanted is None:
                return
            assert self._raw is not None
            why = ""
            for number, payload in self._raw.frames(self._epoch, wanted, cut.stopped):
                try:
                    self._intake.again(cut, number, self._slot_by_number[number], payload)
                except (ValueError, RuntimeError) as error:
                    why = why or f": frame {number}: {error}"
                    continue
                del wanted[number]
                cut.done += 1
            if cut.stopped.is_set():
                cut.fail("given up")
            elif wanted:
                lost = f"; the recording lacks {self._raw.lost} messages, because the disk was full" if self._raw.lost else ""
                first = f"frame {min(wanted)}" if not why else why.removeprefix(": ")
                cut.fail(f"{len(wanted)} of {cut.total} frames cannot be cut again, the first is {first}{lost}")
            else:
                self._see_hot_pixels(cut)
                cut.filled = True
        except BaseException as error:
            cut.fail(f"{type(error).__name__}: {error}")
        finally:
            with self._condition:
                if cut.failure is not None and cut in self._intake.cuts[1:]:
                    self._intake.give_up()
                self._changed()

    def _begin_cut(self, cut: Cut) -> dict[int, int] | None:
        """Have it followed from here on; number → arrival of the frames that were prepared before. None where it is given up."""
        while not self._released and not cut.stopped.is_set():
            with self._condition:  # for no longer than a slab's memory takes
                if not cut.stopped.is_set() and self._intake.make_room(cut) and self._intake.decided:
                    self._intake.follow(cut)
                    ledger = self.ledger
                    records = np.flatnonzero(ledger.flags[: ledger.length] & PREPARED)
                    numbers = ledger.index[records].tolist()
                    self._slot_by_number = dict(zip(numbers, ledger.slot[records].tolist(), strict=True))
                    cut.total = len(records)
                    return dict(zip(numbers, ledger.arrival_ns[records].tolist(), strict=True))
        cut.fail("given up")
        return None

    def _see_hot_pixels(self, cut: Cut) -> None:
        """Those of the new cut, found on the frames that the search is made on."""
        with self._condition:
            records = self._for_hot_pixels()
            slots = [] if records is None else self.ledger.slot[records].tolist()
        if slots and cut.parameters.hot_pixels is not None:
            stack = np.stack([cut.slabs.row(slot) for slot in slots])
            cut.decisions["hot_pixels"] = find_hot_pixels(stack, cut.slabs.mask, cut.parameters.hot_pixels)

    def are_out(self, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether frames are excluded by now, whatever was handed out."""
        with self._condition:
            return np.asarray(self.ledger.reason[self._records(slots)] != 0)

    def slot_of(self, index: int) -> int | None:
        """Slot of a frame number."""
        with self._condition:
            record = self.ledger.find(index)
            slot = -1 if record is None else int(self.ledger.slot[record])
            return None if slot < 0 else slot

    def plane_of(self, index: int) -> int | None:
        """Of a frame that is part of a larger one in `frames`: which; None: it is all of it."""
        return None

    def index_of(self, slot: int) -> int:
        """Frame number of a slot. Raises `KeyError`."""
        with self._condition:
            return int(self.ledger.index[self._record_of_slot[slot]])

    def map(self) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """`Ledger.map`, taken while nothing changes."""
        with self._condition:
            return self.ledger.map()

    def records(self) -> Records:
        """Every frame of which anything is known, taken while nothing changes."""
        with self._condition:
            return records_of(self.ledger)

    def record(self, index: int) -> Record | None:
        """What is known of a frame, by its number; None: nothing."""
        with self._condition:
            return record_of(self.ledger, index)

    def counts(self, slot: int) -> tuple[NDArray[Any], NDArray[np.bool_]] | None:
        """A copy of a prepared frame (y, x) and which of its pixels are valid, zero frequency at [0, 0]; None where it has been
        given back. For looking at it: an engine reads `frames`."""
        with self._condition:
            slabs = None if self._released else self._intake.slabs
            if slabs is None:
                return None
            frame = slabs.row(slot).copy()
        valid = (slabs.mask != 0) & (frame.astype(np.float32) < np.float32(slabs.limit))
        return frame, valid

    @property
    def parameters(self) -> PtyScanParameters:
        """As configured; from the first prepared frame on with what the source's header fills."""
        return self._intake.parameters

    @property
    def frames(self) -> FrameStore:
        """The slabs. Raises `RuntimeError` before the first block: shape and dtype are decided from the first
        frames."""
        slabs = self._intake.slabs
        if slabs is None:
            raise RuntimeError(f"{self.label}: {self._intake.failure or 'no frame has been prepared yet'}")
        return slabs

    @property
    def decisions(self) -> dict[str, Any]:
        """What was decided from the data, in plain values: raw_shape, raw_dtype, whole, center, hot_pixels,
        dose_median."""
        with self._condition:
            return dict(self._intake.decisions)

    # ------------------------------------------------------------------ frames

    def _frames(self, event: Frames, arrival_ns: int) -> list[Job]:
        """Identify frames and reserve their slots; returns the jobs."""
        ledger = self.ledger
        with self._condition:
            if self._released:
                return []
            indices = np.asarray(event.indices)
            self._epoch = event.epoch
            ledger.received += len(event.payloads)
            times = event.timestamps_ns
            wrong = indices.dtype.kind not in "iu" or indices.shape != (len(event.payloads),)
            if wrong or (times is not None and np.shape(times) != indices.shape):
                ledger.drop("malformed", len(event.payloads), "one whole index and one time stamp per frame are needed")
                return []
            if self.ended is not None:
                ledger.drop("late", len(indices), f"frame {indices[0]} came when the scan was over" if len(indices) else "")
                return []
            kept, payloads, found = self._identify(indices, event.payloads)
            slots = self._intake.slots(len(found), self._max_frames)
            if len(slots) < len(found):
                full = self._intake.is_full
                why = self._intake.memory_taken if full else f"{self._max_frames} frames of a scan are kept"
                ledger.drop("memory_limit", len(found) - len(slots), why)
                if full:
                    self._fill()
                kept, payloads, found = kept[: len(slots)], payloads[: len(slots)], found[: len(slots)]
            if not found:
                return self._check_end()
            records = np.array(found, np.int64)
            ledger.arrival_ns[records] = arrival_ns
            if times is not None:
                ledger.time_ns[records] = np.asarray(times, np.int64)[kept]
            self._place(records, slots)
            self._pairing.came(records, self._clock())
            jobs = self._intake.add(records, ledger.index[records], slots, payloads, ledger.expected or None)
            return jobs + self._check_end()

    def _fill(self) -> None:
        """There is no memory for a further frame: with a part of what comes the scan would go on for nothing."""
        if "data" not in self._source_ended:
            log.error("%s: no further frame is taken: %s", self.label, self._intake.memory_taken)
            self._source_ended["data"] = f"memory_limit: {self._intake.memory_taken}"

    def _place(self, records: NDArray[np.int64], slots: NDArray[np.int64]) -> None:
        """These frames have slots now."""
        ledger = self.ledger
        ledger.slot[records] = slots
        ledger.distinct += len(records)
        self._record_of_slot.update(zip(slots.tolist(), records.tolist(), strict=True))
        self._pairing.placed(records)
        if self.parameters.dark_frames:
            ledger.exclude(records[ledger.index[records] < self.parameters.dark_frames], "dark_frame")
        if self._pairing.raster is not None and self._pairing.raster.flyback:
            ledger.exclude(records[~self._pairing.has_position(records)], "flyback")
        if self._selection is not None:
            ledger.exclude(records[~np.isin(ledger.index[records], self._selection)], "not_selected")

    def _identify(
        self, indices: NDArray[np.int64], payloads: Sequence[Payload | FileRows]
    ) -> tuple[list[int], list[Payload], list[int]]:
        """Places in the message, payloads and records of the frames that are new and can be taken; the others are counted."""
        ledger, room, limit = self.ledger, self._room, self._num_frames or MAX_INDEX
        kept: list[int] = []
        chosen: list[Payload] = []
        records: dict[int, None] = {}
        for k, (index, payload) in enumerate(zip(indices.tolist(), payloads, strict=True)):
            if not 0 <= index < limit:
                ledger.drop(self._beyond if limit <= index < MAX_INDEX else "bad_index", detail=f"frame {index}")
            elif not isinstance(payload, Payload):
                named = payload.why or f"{payload.file}:{payload.dataset}, row {payload.row}"
                ledger.drop("unreadable_file", detail=f"frame {index}: {named}")
            elif (reason := self._intake.refuse(payload)) is not None:
                ledger.drop(reason, detail=self._intake.describe(payload))
            elif (record := ledger.record(index, room)) is None:
                ledger.drop("too_many", detail=f"frame {index}; {room} records are kept")
            elif record in records or ledger.slot[record] >= 0:
                ledger.drop("duplicate", detail=f"frame {index} came again")
                if record not in records and not ledger.flags[record] & PREPARED and len(self._spares) < SPARES:
                    self._spares[record] = payload
            else:
                records[record] = None
                kept.append(k)
                chosen.append(payload)
        return kept, chosen, list(records)

    def _start(self, job: Job) -> None:
        """Do a job here or in the pool; waits while the pool has enough."""
        if self._pool is None or self._intake.is_light(job):
            self._finish(self._intake.run(job))
            return
        while not self._jobs.acquire(timeout=0.5):
            if self._released:
                return
        try:
            future = self._pool.submit(self._intake.run, job)
        except RuntimeError:
            self._jobs.release()
            self._finish(self._intake.run(job))
            return

        def done(_: object) -> None:
            self._jobs.release()
            cancelled = future.cancelled() or future.exception() is not None
            try:
                self._finish(
                    Outcome(job, ["failed"] * len(job.slots), 0, cuts=self._intake.cuts) if cancelled else future.result()
                )
            except BaseException as error:  # a future swallows it
                self._break(error)

        future.add_done_callback(done)

    def _finish(self, outcome: Outcome) -> None:
        while any(cut not in outcome.cuts for cut in self._intake.cuts):  # frames are cut another way since
            outcome = self._intake.run(outcome.job)
        with self._condition:
            if any(cut not in outcome.cuts for cut in self._intake.cuts):
                outcome = self._intake.run(outcome.job)
            if self._released:
                return
            ledger, job = self.ledger, outcome.job
            ledger.note("negative_pixels", outcome.negatives, "set to 0")
            records = job.records
            for record, slot, reason in zip(records.tolist(), job.slots.tolist(), outcome.reasons, strict=True):
                if reason is not None:
                    self._withdraw_slot(record, slot, reason, outcome.details.get(reason, ""))
            failed = any(outcome.reasons)
            if failed:
                records = records[[reason is None for reason in outcome.reasons]]
            ledger.decoded += len(records) + outcome.reasons.count("not_whole")
            ledger.prepared += len(records)
            ledger.flags[records] |= PREPARED
            self._find_hot_pixels()
            self._pairing.queue(records)
            again = self._spare_jobs(job.records[[reason is not None for reason in outcome.reasons]]) if self._spares else []
            for record in records.tolist() if self._spares else ():
                self._spares.pop(record, None)
            if failed and self._intake.failure is not None:
                self.failure = self._intake.failure
                self._end(f"failed: {self._intake.failure}")
        for retry in again:
            self._finish(self._intake.run(retry))

    def _spare_jobs(self, failed: NDArray[np.int64]) -> list[Job]:
        """Jobs for frames that could not be used but came twice: the other message may be the sound one."""
        jobs: list[Job] = []
        for record in failed.tolist():
            payload = self._spares.pop(record, None)
            paired = self._pairing.knows(record)
            decided = self._intake.slabs is not None  # otherwise a job would wait for a decision that nobody makes any more
            slots = self._intake.slots(1, self._max_frames) if payload is not None and decided else NONE
            if payload is None or not len(slots) or (self.ended is not None and not paired):
                continue
            self.ledger.drop("duplicate", -1)
            rows = np.array([record])
            self._place(rows, slots)
            jobs += self._intake.add(rows, self.ledger.index[rows], slots, [payload], self.ledger.expected or None)
        return jobs

    def _withdraw_slot(self, record: int, slot: int, reason: str, detail: str) -> None:
        """A frame could not be decoded or prepared; the same frame may come again."""
        ledger, row = self.ledger, np.asarray([record])
        ledger.paired -= int(self._pairing.is_paired(row)[0])
        ledger.include(row)
        ledger.slot[record] = -1
        ledger.distinct -= 1
        ledger.drop(reason, detail=f"frame {ledger.index[record]}: {detail}")
        del self._record_of_slot[slot]
        self._intake.free(slot)

    def _for_hot_pixels(self) -> NDArray[np.int64] | None:
        """Records of the frames that a search for hot pixels is made on; None while there are too few."""
        ledger = self.ledger
        lit = (ledger.flags[: ledger.length] & PREPARED != 0) & (ledger.reason[: ledger.length] == 0)
        records = np.flatnonzero(lit)[:HOT_FRAMES]
        return records if len(records) == HOT_FRAMES else None

    def _find_hot_pixels(self) -> None:
        factor = self.parameters.hot_pixels
        slabs = self._intake.slabs
        ledger = self.ledger
        if factor is None or slabs is None or ledger.prepared < HOT_FRAMES or self._hot_pixels_found:
            return
        records = self._for_hot_pixels()
        if records is None:
            return
        stack = np.stack([slabs.row(slot) for slot in self.ledger.slot[records].tolist()])
        pixels = find_hot_pixels(stack, slabs.mask, factor)
        self._hot_pixels_found = True
        if pixels:
            log.info("%s: %d hot pixels masked (zero frequency at [0, 0]): %s", self.label, len(pixels), pixels[:20])
        if pixels and self._handed_out:
            self._pairing.revisions.append(Revision(None, "mask", tuple(pixels)))
            self._changed()
        else:
            self.mask(pixels)

    # ------------------------------------------------------------------ handing out

    def _decide_dose(self, ready: NDArray[np.int64], final: bool) -> bool:
        """Whether the dose's median is known (or not needed); taken once, from the first frames that can be used."""
        if not self._pairing.needs_dose or "dose_median" in self._intake.decisions:
            return True
        if len(ready) < self._decide_after and not final:
            return False
        first = self.ledger.dose[ready[: self._decide_after]]
        self._intake.decisions["dose_median"] = float(np.median(first)) if len(first) else 1.0
        return True

    def _hand_out(self, records: NDArray[np.int64]) -> Block:
        ledger = self.ledger
        ledger.used += int(np.count_nonzero(ledger.flags[records] & USED == 0))
        ledger.flags[records] |= USED
        if not self._handed_out and self._group == 1 and "angle" not in self._intake.decisions:
            angles = ledger.further[records, 1]
            if np.isfinite(angles).any():
                self._intake.decisions["angle"] = float(np.nanmedian(angles))
        self._handed_out = True
        dose = np.ones(len(records))
        if self._pairing.needs_dose:
            dose = ledger.dose[records] / self._intake.decisions["dose_median"]
        block = Block(
            self.label,
            ledger.slot[records],
            ledger.index[records],
            ledger.position[records],
            dose,
            ledger.arrival_ns[records],
            ledger.further[records],
        )
        if self._saver is not None:
            self._saver.take(block, self.frames, ledger.expected)
        return block

    # ------------------------------------------------------------------ the end

    def _check_end(self) -> list[Job]:
        """End the scan where every source that is needed has ended, or nothing is left to wait for."""
        if self.ended is not None or self._released:
            return []
        self._pairing.overdue(self._clock())
        complete = self._num_frames is not None and self.ledger.distinct >= self._num_frames
        if not complete and "data" not in self._source_ended:
            return []
        if self._data_done_at is None:
            self._data_done_at = self._clock()
        waited = self._clock() - self._data_done_at
        if self.ledger.paired < self._to_pair() and any(self._pairing.missed(self._source_ended, waited)):
            return []
        if complete and "data" not in self._source_ended:
            return self._end("num_frames reached")
        return self._end(self.aborted or self._source_ended.get("data", "completed"))

    def _to_pair(self) -> int:
        """Frames for which a position is worth waiting: dark ones need none."""
        if not self.parameters.dark_frames:
            return self.ledger.distinct
        dark = self.ledger.excluded("dark_frame")
        return self.ledger.distinct - int(np.count_nonzero(~self._pairing.is_paired(dark)))

    def _end(self, reason: str) -> list[Job]:
        if self.ended is not None or self._released:
            return []
        self.ended, self.ledger.ended = reason, True
        self._pairing.end(self._source_ended)
        self._changed()
        jobs = self._intake.decide(self.ledger.distinct)
        self._intake.trim()
        return jobs

    def fail(self, reason: str) -> None:
        """None of its frames can be used after all: they are counted as 'scan_failed', and the scan is over."""
        with self._condition:
            self.failure = self.failure or reason
            jobs = self._end(f"failed: {reason}")
            self.ended = f"failed: {reason}"
            self.ledger.exclude(np.flatnonzero(self.ledger.slot[: self.ledger.length] >= 0), "scan_failed")
            self._changed()
        for job in jobs:
            self._start(job)

    def _records(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.asarray([self._record_of_slot[s] for s in np.asarray(slots).tolist()], np.int64)

    def _changed(self) -> None:
        self._version += 1
        self._condition.notify_all()
        self.on_change()
