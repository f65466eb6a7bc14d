"""What the live buffer promises, one sentence at a time."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from ptystream.events import FileRows, Frames, Payload, Rejected, Samples, ScanEnded, ScanStarted
from ptystream.files import Reader
from ptystream.publish.snapshot import LEDGER_CODES
from ptystream.scan.block import EOS, WAIT, Block, Revision
from ptystream.scan.parameters import ChannelsParameters, PositionsParameters, PtyScanParameters
from ptystream.scan.ptyscan import PtyScan

SIDE = 6


def payload(value: int = 1, shape: tuple[int, ...] = (SIDE, SIDE), dtype: str = "uint16", cut: int = 0) -> Payload:
    pixels = np.full(shape, value, dtype)
    return Payload(pixels.tobytes()[: pixels.nbytes - cut], "raw", pixels.dtype, shape)


def frames(*indices: int, **kinds: Any) -> Frames:
    return Frames("e", np.asarray(indices), tuple(payload(i % 1000, **kinds) for i in indices))


def at(*indices: int, first: int | None = None, y: Any = None) -> Samples:
    values = np.asarray(indices, float) * 1e-8 if y is None else np.asarray(y, float)
    return Samples("e", indices[0] if first is None else first, {"y": values, "x": -values})


def buffer(positions: dict[str, Any] | None = None, decide_after: int = 1, **settings: Any) -> PtyScan:
    given = {"shape": SIDE, "psize": 1e-4, "distance": 1.0, "energy": 1.0} | settings
    options = {k: given.pop(k) for k in ("also", "max_frames", "max_bytes", "decisions", "clock", "pool") if k in given}
    return PtyScan(
        "s", PtyScanParameters(**given), PositionsParameters(**(positions or {})), decide_after=decide_after, **options
    )


def finish(scan: PtyScan) -> None:
    scan.feed("data", ScanEnded("e", None), 1)
    scan.feed("positions", ScanEnded("e", None), 1)


def taken(scan: PtyScan, limit: int = 1000) -> list[int]:
    """Numbers of everything that can be taken now."""
    numbers: list[int] = []
    while isinstance(block := scan.take(limit), Block):
        numbers += block.indices.tolist()
    return numbers


def closes(scan: PtyScan) -> bool:
    counts = scan.ledger.counts()
    return counts["received"] == counts["used"] + counts["waiting"] + sum(scan.ledger.reason_counts().values())


# ---------------------------------------------------------------------- take


def test_min_frames_counts_per_rank_and_only_the_last_block_may_be_smaller() -> None:
    scan = buffer(min_frames=3)
    scan.feed("positions", at(*range(9)), 1)
    scan.feed("data", frames(0, 1, 2, 3, 4), 1)
    assert scan.take(100, ranks=2) is WAIT
    scan.feed("data", frames(5), 1)
    block = scan.take(100, ranks=2)
    assert isinstance(block, Block)
    assert block.indices.tolist() == [0, 1, 2, 3, 4, 5]
    scan.feed("data", frames(6), 1)
    assert scan.take(100, ranks=2) is WAIT
    finish(scan)
    assert taken(scan) == [6]
    assert scan.take(100) is EOS
    assert scan.ended == "completed"


def test_a_block_smaller_than_min_frames_is_handed_out_where_the_limit_is_smaller() -> None:
    scan = buffer(min_frames=4)
    scan.feed("positions", at(*range(4)), 1)
    scan.feed("data", frames(*range(4)), 1)
    block = scan.take(2)
    assert isinstance(block, Block)
    assert block.indices.tolist() == [0, 1]


def test_a_waiting_loop_is_woken_by_a_frame_and_uses_no_processor() -> None:
    scan = buffer()
    scan.feed("positions", at(0), 1)
    seen = scan.changed(-1, 0.0)
    began, used = time.monotonic(), time.thread_time()
    assert scan.changed(seen, 0.3) == seen
    assert time.monotonic() - began >= 0.29
    assert time.thread_time() - used < 0.05
    feeder = threading.Timer(0.05, lambda: scan.feed("data", frames(0), 1))
    feeder.start()
    assert scan.changed(seen, 30.0) > seen
    feeder.join()
    assert taken(scan) == [0]


def test_frames_of_a_schedule_are_fetched_by_number_in_its_order() -> None:
    scan = buffer()
    scan.feed("positions", at(*range(5)), 1)
    feeder = threading.Timer(0.05, lambda: scan.feed("data", frames(*range(5)), 1))
    feeder.start()
    block = scan.take_exactly(np.array([3, 0, 4]), 30.0)
    feeder.join()
    assert block.indices.tolist() == [3, 0, 4]
    assert taken(scan) == [1, 2]
    with pytest.raises(TimeoutError, match="frame 7 and 0 more did not come within"):
        scan.take_exactly(np.array([7]), 0.01)


def test_the_block_says_when_its_frames_arrived() -> None:
    scan = buffer()
    scan.feed("positions", at(0, 1), 5)
    scan.feed("data", frames(0), 11)
    scan.feed("data", frames(1), 22)
    block = scan.take(10)
    assert isinstance(block, Block)
    assert block.arrival_ns.tolist() == [11, 22]


# ---------------------------------------------------------------------- identity


def test_numbers_near_2_to_the_48_take_no_memory_by_number_and_beyond_are_refused() -> None:
    scan = buffer()
    big = (1 << 48) - 2
    scan.feed("positions", at(big, big + 1, y=[1e-8, 2e-8]), 1)
    scan.feed("data", frames(big, -1, 1 << 48), 1)
    scan.feed("data", Frames("e", np.array([2**63], np.uint64), (payload(),)), 1)
    assert taken(scan) == [big]
    assert scan.ledger.reason_counts() == {"bad_index": 3}
    assert len(scan.ledger.index) < 5000


def test_a_frame_that_was_damaged_is_counted_and_may_come_again() -> None:
    scan = buffer(decide_after=2)
    scan.feed("positions", at(0, 1, 2), 1)
    scan.feed("data", frames(0, 1), 1)
    scan.feed("data", frames(2, cut=3), 1)
    assert taken(scan) == [0, 1]
    assert scan.ledger.reason_counts() == {"undecodable": 1}
    scan.feed("data", frames(2), 1)
    block = scan.take(10)
    assert isinstance(block, Block)
    assert block.slots.tolist() == [2], "the slot of the damaged copy is used again"
    assert scan.slot_of(2) == 2
    assert scan.index_of(2) == 2
    assert closes(scan)


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (frames(5, shape=(SIDE, SIDE + 1)), "wrong_shape"),
        (frames(5, dtype="uint8"), "wrong_dtype"),
        (Frames("e", np.array([5]), (FileRows("f.h5", "d", 0),)), "unreadable_file"),
        (Frames("e", np.array([5, 6]), (payload(),)), "malformed"),
        (Frames("e", np.array([0.5]), (payload(),)), "malformed"),
        (frames(99), "beyond_num_frames"),
        (frames(0), "duplicate"),
        (frames(5, cut=1), "undecodable"),
    ],
)
def test_bad_frames_are_counted_by_reason_and_the_rest_go_on(event: Frames, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptystream.files.PATIENCE_S", 0.05)
    scan = buffer(num_frames=50)
    scan.feed("positions", at(*range(8)), 1)
    scan.feed("data", frames(0, 1), 1)
    scan.feed("data", event, 1)
    scan.feed("data", frames(7), 1)
    assert taken(scan) == [0, 1, 7]
    assert scan.ledger.reason_counts() == {reason: 1}
    assert closes(scan)


def test_a_file_that_is_not_there_is_waited_for_once_where_the_feeding_thread_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    tries, look = [0] * 8, Reader._file

    def looking(self: Reader, name: str) -> Any:
        tries[index] += 1
        return look(self, name)

    monkeypatch.setattr("ptystream.files.PATIENCE_S", 0.6)
    monkeypatch.setattr(Reader, "_file", looking)
    scan = buffer()
    for index in range(8):
        scan.feed("data", Frames("e", np.array([index]), (FileRows("f.h5", "d", index),)), 1)
    assert tries[0] > 1 and tries[1:] == [1] * 7
    assert scan.ledger.reason_counts() == {"unreadable_file": 8}


def test_a_hostile_first_frame_does_not_decide_the_shape_of_the_scan() -> None:
    scan = buffer(decide_after=4)
    scan.feed("positions", at(*range(6)), 1)
    scan.feed("data", frames(0, shape=(2, 2)), 1)
    scan.feed("data", frames(1, 2, 3, 4), 1)
    assert taken(scan) == [1, 2, 3, 4]
    assert scan.ledger.reason_counts() == {"wrong_shape": 1}
    assert scan.decisions["raw_shape"] == [SIDE, SIDE]


def test_bounds_on_frames_and_memory_are_kept_and_counted() -> None:
    scan = buffer(max_frames=3)
    scan.feed("positions", at(*range(5)), 1)
    scan.feed("data", frames(*range(5)), 1)
    assert taken(scan) == [0, 1, 2]
    assert scan.ledger.reason_counts() == {"memory_limit": 2}
    scan = buffer(max_bytes=20 << 20)
    scan.feed("data", ScanStarted("e", {"num_frames": 10**9}), 1)
    scan.feed("data", frames(0), 1)
    assert scan.ended is not None
    assert "1000000000 frames of 72 bytes do not fit" in scan.ended
    assert scan.take(5) is EOS
    assert closes(scan)


# ---------------------------------------------------------------------- positions


def test_positions_that_never_come_are_counted_when_their_source_ends() -> None:
    scan = buffer()
    scan.feed("data", frames(0, 1, 2), 1)
    scan.feed("positions", at(1), 1)
    scan.feed("data", ScanEnded("e", 4), 1)
    assert scan.ended is None
    scan.feed("positions", ScanEnded("e", None), 1)
    assert taken(scan) == [1]
    counts = scan.ledger.counts()
    assert counts["position_missing"] == 2
    assert counts["expected"] == 4
    assert counts["frame_missing"] == 1


def test_a_position_that_comes_late_and_differs_is_a_revision_of_the_frame_handed_out() -> None:
    scan = buffer()
    scan.feed("data", frames(0, 1), 1)
    scan.feed("positions", at(0, 1), 1)
    assert taken(scan) == [0, 1]
    scan.feed("positions", at(0, 1), 1)
    assert scan.revisions() == []
    scan.feed("positions", at(1, y=[3e-8]), 1)
    assert scan.revisions() == [Revision(1, "position", (3e-8, -3e-8))]
    assert scan.revisions() == []
    assert scan.ledger.notes() == {"samples_repeated": 2, "samples_changed": 1}


@pytest.mark.parametrize("positions_first", [True, False])
def test_of_two_messages_of_one_frame_the_sound_one_is_used(positions_first: bool) -> None:
    scan = buffer(decide_after=4)
    if positions_first:
        scan.feed("positions", at(*range(4)), 1)
    scan.feed("data", frames(1, cut=1), 1)
    scan.feed("data", frames(1), 1)
    scan.feed("data", frames(0, 2, 3), 1)
    if not positions_first:
        scan.feed("positions", at(*range(4)), 1)
    finish(scan)
    assert sorted(taken(scan)) == [0, 1, 2, 3]
    assert scan.take(10) is EOS
    assert scan.ledger.reason_counts() == {"undecodable": 1}
    assert closes(scan)


def test_a_frame_that_came_broken_twice_does_not_keep_the_scan_open() -> None:
    scan = buffer(decide_after=16)
    scan.feed("positions", at(0), 1)
    scan.feed("data", frames(0, cut=3), 1)
    scan.feed("data", frames(0, cut=3), 1)
    finish(scan)
    assert scan.take(10) is EOS
    assert scan.ledger.counts()["waiting"] == 0


def test_frames_are_taken_from_the_source_of_frames_alone() -> None:
    scan = buffer()
    scan.feed("positions", frames(0, 1), 1)
    assert scan.ledger.counts()["received"] == 0
    assert scan.ledger.notes() == {"frames_not_configured": 2}


def test_a_frame_withdrawn_for_its_position_comes_back_with_a_believable_one() -> None:
    scan = buffer()
    scan.feed("data", frames(*range(40)), 1)
    wild = np.arange(3) * 1e-8
    wild[2] = 1e3
    scan.feed("positions", at(*range(3), y=wild), 1)
    first = taken(scan)
    scan.feed("positions", at(*range(3, 40)), 1)
    first += taken(scan)
    withdrawn = [scan.index_of(r.slot) for r in scan.revisions() if r.what == "withdrawn"]
    assert (2 in first) == (withdrawn == [2])
    scan.feed("positions", at(2), 1)
    (block,) = [scan.take(100)]
    assert isinstance(block, Block)
    assert block.indices.tolist() == [2]
    np.testing.assert_array_equal(block.positions_m, [[2e-8, -2e-8]])
    assert scan.ledger.counts()["used"] == 40
    assert scan.ledger.reason_counts() == {}
    assert closes(scan)


@pytest.mark.parametrize("ended", [False, True])
def test_a_frame_comes_back_only_after_its_withdrawal_was_told(ended: bool) -> None:
    scan = buffer()
    scan.feed("data", frames(*range(40)), 1)
    scan.feed("positions", at(*range(3), y=np.full(3, 1e3)), 1)  # nothing speaks against it yet
    assert taken(scan) == [0, 1, 2]
    scan.feed("positions", at(*range(3, 40)), 1)
    scan.feed("positions", at(*range(2)), 1)
    if ended:
        finish(scan)
    assert taken(scan) == list(range(3, 40))
    assert scan.take(1000) is WAIT
    seen = scan.changed(-1, 0.0)
    told = [scan.index_of(r.slot) for r in scan.revisions() if r.what == "withdrawn"]
    assert told == [0, 1, 2]
    assert scan.changed(seen, 0.0) != seen
    block = scan.take(1)
    assert isinstance(block, Block)
    np.testing.assert_array_equal(block.positions_m, [[0, 0]])
    assert taken(scan) == [1]
    assert scan.take(1000) is (EOS if ended else WAIT)
    assert scan.ledger.reason_counts() == {"position_refused": 1}
    assert closes(scan)


@pytest.mark.parametrize(("known", "nonsense"), [(2, np.nan), (2, -np.inf), (40, np.nan), (40, 1e3)])
def test_a_correction_to_nonsense_is_refused_and_the_position_stays(known: int, nonsense: float) -> None:
    scan = buffer()
    scan.feed("data", frames(*range(known)), 1)
    scan.feed("positions", at(*range(known)), 1)
    assert taken(scan) == list(range(known))
    before = scan.ledger.position[: scan.ledger.length].copy()
    scan.feed("positions", at(1, y=[nonsense]), 1)
    assert scan.revisions() == []
    np.testing.assert_array_equal(scan.ledger.position[: scan.ledger.length], before)
    assert scan.ledger.notes() == {"samples_changed": 1, "corrections_refused": 1}
    assert scan.ledger.counts()["used"] == known
    assert closes(scan)


@pytest.mark.parametrize("wild", [np.nan, np.inf, 1e3, -1e300])
@pytest.mark.parametrize("place", [0, 7, 29])
def test_a_wild_position_is_refused_wherever_it_comes_in_the_order(wild: float, place: int) -> None:
    scan = buffer()
    y = np.arange(30) * 1e-8
    y[place] = wild
    used: set[int] = set()
    for i in range(30):
        scan.feed("positions", at(i, y=[y[i]]), 1)
        scan.feed("data", frames(i), 1)
        used |= set(taken(scan))
    finish(scan)
    used |= set(taken(scan))
    withdrawn = {scan.index_of(r.slot) for r in scan.revisions() if r.what == "withdrawn"}
    assert used - withdrawn == set(range(30)) - {place}
    assert scan.ledger.reason_counts() == {"position_refused": 1}
    assert closes(scan)
    assert np.isfinite(scan.map()[0]).all()
    assert np.abs(scan.map()[0]).max() < 1e-6


def test_theoretical_positions_pair_a_frame_on_arrival_and_set_the_number_of_frames() -> None:
    theory = np.random.default_rng(0).uniform(-1e-6, 1e-6, (4, 2))
    scan = PtyScan("s", PtyScanParameters(shape=SIDE, positions_theory=theory))
    scan.feed("data", frames(2, 0, 4), 1)
    block = scan.take(9)
    assert isinstance(block, Block)
    np.testing.assert_array_equal(block.positions_m, theory[[2, 0]])
    scan.feed("data", frames(1, 3), 1)
    assert taken(scan) == [1, 3]
    assert scan.take(9) is EOS
    assert scan.ended == "num_frames reached"
    assert scan.ledger.reason_counts() == {"beyond_num_frames": 1}


def test_samples_that_come_with_the_frames_are_their_positions() -> None:
    scan = PtyScan("s", PtyScanParameters(shape=SIDE))
    scan.feed("data", frames(3), 1)
    scan.feed("data", at(3), 1)
    block = scan.take(9)
    assert isinstance(block, Block)
    assert block.positions_m[0] == pytest.approx([3e-8, -3e-8])
    scan.feed("data", ScanEnded("e", 1), 1)
    assert scan.take(9) is EOS


def test_waiting_for_samples_ends_after_wait_s() -> None:
    now = [0.0]
    scan = buffer({"wait_s": 2.0}, clock=lambda: now[0])
    scan.feed("data", frames(0, 1), 1)
    scan.feed("positions", at(0), 1)
    scan.feed("data", ScanEnded("e", 2), 1)
    assert taken(scan) == [0]
    now[0] = 1.9
    assert scan.take(5) is WAIT
    now[0] = 2.1
    assert scan.take(5) is EOS
    assert scan.ledger.reason_counts() == {"position_missing": 1}


def test_a_scan_does_not_wait_for_samples_of_frames_that_did_not_come() -> None:
    scan = buffer()
    scan.feed("data", frames(0), 1)
    scan.feed("positions", at(0), 1)
    scan.feed("data", ScanEnded("e", 1), 1)
    assert scan.ended == "completed"


def test_unsettled_frames_are_excluded() -> None:
    scan = buffer({"samples_per_frame": 2, "spread_limit": 1e-9})
    scan.feed("data", frames(0, 1), 1)
    scan.feed("positions", at(0, 0, 0, 0, first=0, y=[1e-8, 1.1e-8, 1e-8, 2e-8]), 1)
    assert taken(scan) == [0]
    assert scan.ledger.reason_counts() == {"settling": 1}


# ---------------------------------------------------------------------- dose


def test_dose_of_another_source_is_relative_to_the_median_of_the_first_frames() -> None:
    monitor = PositionsParameters(channels=ChannelsParameters(y=None, x=None, dose="i0"), dose_limit=10.0)
    scan = buffer(also=(monitor,), decide_after=3)
    scan.feed("positions", at(0, 1, 2, 3, 4), 1)
    scan.feed("data", frames(0, 1, 2, 3, 4), 1)
    assert scan.take(9) is WAIT
    scan.feed("also.0", Samples("e", 0, {"i0": np.array([90.0, 100.0])}), 1)
    assert scan.take(9) is WAIT, "the median waits for three frames"
    scan.feed("also.0", Samples("e", 2, {"i0": np.array([120.0, 3.0])}), 1)
    block = scan.take(9)
    assert isinstance(block, Block)
    np.testing.assert_allclose(block.dose, [0.9, 1.0, 1.2])
    finish(scan)
    scan.feed("also.0", ScanEnded("e", None), 1)
    assert scan.take(9) is EOS
    assert scan.ledger.reason_counts() == {"beam_off": 1, "dose_missing": 1}
    assert scan.decisions["dose_median"] == 100.0
    assert closes(scan)


# ---------------------------------------------------------------------- decisions, end, ledger


def test_decisions_are_plain_and_decide_the_same_again() -> None:
    rng = np.random.default_rng(2)
    raw = rng.poisson(5.0, (40, 8, 8)).astype(np.uint16)
    raw[:, 1, 6] += 60
    event = Frames("e", np.arange(40), tuple(Payload(f.tobytes(), "raw", f.dtype, f.shape) for f in raw))
    settings = {"shape": 8, "center": None, "hot_pixels": 5.0}
    first = buffer(decide_after=8, **settings)
    again = buffer(decide_after=8, **settings)
    for scan in (first, again):
        scan.feed("positions", at(*range(40)), 1)
        scan.feed("data", event, 1)
    assert first.decisions == again.decisions
    assert len(first.decisions["hot_pixels"]) == 1
    fixed = dict(first.decisions, center=[2.0, 2.0])
    moved = buffer(decisions=fixed, **settings)
    moved.feed("positions", at(0), 1)
    moved.feed("data", Frames("e", event.indices[:1], event.payloads[:1]), 1)
    assert taken(moved) == [0]
    assert moved.frames.slab(0)[0, 0, 0] == raw[0, 2, 2]
    assert moved.decisions == fixed
    y, x = fixed["hot_pixels"][0]
    assert moved.frames.mask[y, x] == 0


def test_hot_pixels_found_after_frames_were_handed_out_are_a_revision() -> None:
    scan = buffer(shape=8, hot_pixels=5.0)
    scan.feed("positions", at(*range(40)), 1)
    pixels = np.ones((8, 8), np.uint16)
    pixels[2, 2] = 300
    for i in range(40):
        scan.feed("data", Frames("e", np.array([i]), (Payload(pixels.tobytes(), "raw", pixels.dtype, (8, 8)),)), 1)
        if i == 9:
            assert len(taken(scan)) == 10
            mask = scan.frames.mask
    assert mask.all()  # whoever holds the frames is told, and says when
    (revision,) = scan.revisions()
    assert revision == Revision(None, "mask", ([6, 6],))
    scan.mask(revision.value or ())
    assert np.argwhere(mask == 0).tolist() == scan.decisions["hot_pixels"] == [[6, 6]]


def test_an_end_by_request_hands_out_what_is_paired_and_names_its_reason() -> None:
    scan = buffer(decide_after=10, min_frames=10)
    scan.feed("positions", at(0, 1), 1)
    scan.feed("data", frames(0, 1, 2), 1)
    assert scan.take(5) is WAIT
    scan.end("time-out after 60 s")
    assert taken(scan) == [0, 1]
    assert scan.take(5) is EOS
    assert scan.ended == "time-out after 60 s"
    scan.feed("data", frames(3), 1)
    assert scan.ledger.reason_counts() == {"position_missing": 1, "late": 1}
    assert closes(scan)


def test_an_impossible_setting_ends_the_scan_with_its_sentence() -> None:
    scan = buffer(center=(100.0, 2.0))
    scan.feed("data", frames(0, 1), 1)
    assert scan.ended is not None
    assert "data.center: (100.0, 2.0): lies outside" in scan.ended
    assert scan.take(5) is EOS
    with pytest.raises(RuntimeError, match="lies outside"):
        _ = scan.frames
    assert closes(scan)


def test_frames_that_the_model_refuses_are_taken_off_the_used_ones() -> None:
    scan = buffer()
    scan.feed("positions", at(0, 1), 1)
    scan.feed("data", frames(0, 1), 1)
    assert taken(scan) == [0, 1]
    scan.refuse(np.array([1]), "off_canvas", np.array([[1e-8, -1e-8]]))
    assert scan.ledger.counts()["used"] == 1
    assert scan.ledger.counts()["off_canvas"] == 1
    assert closes(scan)
    scan.retry("off_canvas")
    assert taken(scan) == [1]
    scan.refuse(np.array([1]), "off_canvas", np.array([[7.0, 0.0]]))  # it has another position by now
    assert taken(scan) == [1]
    assert closes(scan)


def test_the_map_shows_every_frame_with_a_position_by_what_became_of_it() -> None:
    scan = buffer({"samples_per_frame": 2, "spread_limit": 1e-9}, decide_after=1)
    scan.feed("positions", at(*[0] * 10, first=0, y=np.repeat(np.arange(5), 2) * 1e-8), 1)
    scan.feed("positions", at(0, 0, first=10, y=[5e-8, 9e-8]), 1)
    scan.feed("data", frames(0, 1, 5), 1)
    assert taken(scan) == [0, 1]
    scan.feed("data", frames(2), 1)
    scan.end("enough")
    positions, codes = scan.map()
    shown = {round(y * 1e8): LEDGER_CODES[int(c)] for (y, _), c in zip(positions, codes, strict=True)}
    assert shown == {0: "used", 1: "used", 2: "paired", 3: "missing", 4: "missing", 7: "excluded"}


def test_rejected_input_and_foreign_samples_are_noted_and_harm_nothing() -> None:
    scan = buffer()
    scan.feed("data", Rejected("truncated", "512 bytes announced, 480 received"), 1)
    scan.feed("also.3", at(0), 1)
    scan.feed("positions", Samples("e", 0, {"z": np.zeros(3)}), 1)
    scan.feed("positions", Samples("e", 0, {"y": np.zeros(3), "x": np.zeros(2)}), 1)
    scan.feed("positions", at(0, first=1 << 62), 1)
    notes = scan.ledger.notes()
    assert notes == {
        "rejected_truncated": 1,
        "samples_not_configured": 1,
        "samples_channel_missing": 1,
        "samples_wrong_shape": 1,
        "samples_bad_index": 1,
    }


def test_after_release_nothing_is_held_and_nothing_is_taken() -> None:
    scan = buffer()
    scan.feed("positions", at(0), 1)
    scan.feed("data", frames(0), 1)
    scan.release()
    scan.feed("data", frames(1), 1)
    assert scan.ledger.counts()["received"] == 1
    with pytest.raises(RuntimeError, match="released"):
        _ = scan.frames


def test_an_error_of_ours_in_a_decoding_thread_reaches_whoever_takes_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadPoolExecutor(1) as pool:
        scan = buffer(pool=pool, rebin=2)
        monkeypatch.setattr(scan, "_find_hot_pixels", lambda: 1 / 0)
        scan.feed("data", frames(0), 1)
    with pytest.raises(RuntimeError, match="could not be entered"):
        scan.take(10)


def test_a_center_outside_the_frames_is_told_with_the_first_of_them(caplog: pytest.LogCaptureFixture) -> None:
    scan = buffer(decide_after=3, center=(2.0, 6.0))
    scan.feed("data", frames(0), 1)
    assert "scans.s.data.center: (2.0, 6.0): lies outside the frames of (6, 6)" in caplog.text
    assert scan.failure is None
    scan.feed("data", frames(1, 2), 1)
    assert scan.failure is not None
    assert scan.failure.startswith("scans.s.data.center: (2.0, 6.0): lies outside")
    assert scan.ended == f"failed: {scan.failure}"
    inside = buffer(decide_after=3, center=(2.0, 6.0), auto_center=True)
    caplog.clear()
    inside.feed("data", frames(1, 2, 3), 1)
    assert (inside.failure, caplog.text) == (None, "")
