"""Counters close and records are found by number."""

from __future__ import annotations

import numpy as np

from ptystream.scan.ledger import MAX_REASONS, POSITION, USED, Ledger


def with_frames(n: int) -> tuple[Ledger, np.ndarray]:
    ledger = Ledger()
    records = ledger.records(np.arange(n) + 100, room=1000)
    ledger.slot[records] = np.arange(n)
    ledger.received = n
    return ledger, records


def test_records_are_made_once_and_keep_their_columns_while_the_arrays_grow() -> None:
    ledger = Ledger()
    first = ledger.records(np.array([7, 1 << 47, 7]), room=10_000)
    assert first.tolist() == [0, 1, 0]
    ledger.dose[1] = 5.0
    ledger.records(np.arange(5000), room=10_000)
    assert ledger.find(1 << 47) == 1
    assert ledger.find(7) == 0
    assert ledger.dose[1] == 5.0
    assert ledger.index[:2].tolist() == [7, 1 << 47]
    assert ledger.slot[4000] == -1


def test_there_are_no_more_records_than_there_is_room() -> None:
    ledger = Ledger()
    assert ledger.records(np.arange(5), room=3).tolist() == [0, 1, 2, -1, -1]
    assert ledger.records(np.array([4, 1]), room=3).tolist() == [-1, 1]
    assert ledger.length == 3


def test_an_exclusion_counts_once_and_can_be_taken_back() -> None:
    ledger, records = with_frames(4)
    assert ledger.exclude(records[:3], "settling").tolist() == [0, 1, 2]
    assert ledger.exclude(records, "beam_off").tolist() == [3]
    assert ledger.reason_counts() == {"settling": 3, "beam_off": 1}
    ledger.include(records[1:])
    assert ledger.reason_counts() == {"settling": 1}
    assert ledger.waiting == 3
    assert ledger.excluded("settling").tolist() == [0]


def test_excluding_a_used_frame_takes_it_off_the_used_ones() -> None:
    ledger, records = with_frames(2)
    ledger.flags[records] |= USED
    ledger.used = 2
    ledger.exclude(records[:1], "refused")
    assert ledger.counts()["used"] == 1
    assert ledger.waiting == 0


def test_reasons_and_notes_of_hostile_variety_are_bounded() -> None:
    ledger, _ = with_frames(0)
    for k in range(3 * MAX_REASONS):
        ledger.drop(f"reason {k}")
        ledger.note(f"note {k}")
    assert len(ledger.reasons) <= MAX_REASONS + 1
    assert sum(ledger.reason_counts().values()) == 3 * MAX_REASONS
    assert len(ledger.notes()) <= MAX_REASONS + 1
    assert sum(ledger.notes().values()) == 3 * MAX_REASONS


def test_the_map_is_a_copy() -> None:
    ledger, records = with_frames(2)
    ledger.position[records] = 1.0
    ledger.flags[records] |= POSITION
    positions, _ = ledger.map()
    positions[:] = 9.0
    assert (ledger.position[records] == 1.0).all()
