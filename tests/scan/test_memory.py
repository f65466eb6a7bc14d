"""One budget of memory for the frames of all scans: claimed, given back, refused with what to do."""

from __future__ import annotations

import gc
import logging
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_overlap
from memory import messages
from problems import BEAM
from scan.test_ptyscan import at, buffer, closes, finish, frames, taken

from ptystream.events import ScanEnded, ScanStarted
from ptystream.scan.block import EOS, WAIT
from ptystream.scan.memory import FRAMES, Budget, Claim, allowed_bytes, cgroup_limits
from ptystream.scan.slabs import SLAB_BYTES, Slabs
from ptystream.storage import ptyr

FRAME_BYTES = 72
PER_SLAB = SLAB_BYTES // FRAME_BYTES


def room(slabs: int) -> Budget:
    """A budget for so many slabs of the small frames."""
    return Budget(slabs * PER_SLAB * FRAME_BYTES + 100)


def test_limits_of_control_groups_are_found_in_the_group_and_around_it(tmp_path: Path) -> None:
    membership, root = tmp_path / "cgroup", tmp_path / "fs"
    assert list(cgroup_limits(membership, root)) == []
    for folder, limit in (("job/step/memory.max", "max"), ("job/memory.max", "3000"), ("memory.max", "9000")):
        (root / folder).parent.mkdir(parents=True, exist_ok=True)
        (root / folder).write_text(limit + "\n")
    for folder, limit in (("memory/a/b/memory.limit_in_bytes", "700"), ("memory/memory.limit_in_bytes", str((1 << 63) - 4096))):
        (root / folder).parent.mkdir(parents=True, exist_ok=True)
        (root / folder).write_text(limit + "\n")
    membership.write_text("0::/job/step\n")
    assert list(cgroup_limits(membership, root)) == [3000, 9000]
    membership.write_text("12:cpu,cpuacct:/a\n4:memory:/a/b\n")
    assert list(cgroup_limits(membership, root)) == [700, (1 << 63) - 4096]
    membership.write_text("0::/../../told/by/the/machine\n")  # a container that sees its own group as the root
    assert list(cgroup_limits(membership, root)) == [9000]


def test_half_of_the_smallest_limit_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    before = allowed_bytes()
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "0")
    assert allowed_bytes() == before
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "100")
    assert allowed_bytes() == 50 << 20
    monkeypatch.setattr("ptystream.scan.memory.resource.getrlimit", lambda which: (40 << 20, 1 << 40))
    assert allowed_bytes() == 20 << 20
    monkeypatch.setattr("ptystream.scan.memory.cgroup_limits", lambda membership, root: iter((30 << 20, 10 << 20)))
    assert allowed_bytes() == 5 << 20


def test_a_claim_gets_what_is_left_and_gives_it_back() -> None:
    budget = Budget(100)
    one, other = Claim(budget, 10), Claim(budget, 30)
    assert one.grow(4) == 4 and one.grow(2) == 4
    assert other.grow(3) == 2 and budget.left == 0
    one.shrink(1)
    assert budget.left == 30 and other.grow(9) == 3
    del other
    gc.collect()
    assert budget.left == 90


class Slow(int):
    """A limit that takes a while to be compared with what is claimed."""

    def __sub__(self, other: int) -> int:
        time.sleep(1e-3)
        return int(self) - other


def test_a_claim_is_right_however_many_threads_make_one() -> None:
    budget, got = Budget(Slow(200)), list[int]()

    def work() -> None:
        claim = Claim(budget, 1)
        claims.append(claim)
        for k in range(0, 40, 4):
            got.append(claim.grow(k))

    claims: list[Claim] = []
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(claim.count for claim in claims) == 200 and budget.left == 0
    claims.clear()
    del threads
    gc.collect()
    assert budget.left == 200


def test_slabs_claim_what_they_take_and_give_it_back_with_themselves() -> None:
    budget = Budget(10 * 4 * 128)
    store = Slabs((8, 8), np.dtype("uint16"), np.ones((8, 8), np.uint8), budget=budget, slab_frames=4)
    store.require(5, expected=8)
    assert budget.left == 8 * 4 * 128
    assert store.reserve(20) == 20 and budget.left == 5 * 4 * 128
    store.trim()
    assert budget.left == 8 * 4 * 128
    store.require(9)  # and one ahead
    assert budget.left == 6 * 4 * 128
    store.trim()
    assert budget.left == 7 * 4 * 128
    held = store  # whoever saves the frames, say
    del store
    assert budget.left == 7 * 4 * 128 and len(held.slab(2)) == 4
    del held
    assert budget.left == budget.limit


def test_scans_share_the_memory_and_give_it_back_when_they_are_dropped() -> None:
    budget = room(2)
    first, second = buffer(budget=budget), buffer(budget=budget)
    for scan in (first, second):
        scan.feed("data", ScanStarted("e", {"num_frames": PER_SLAB + 1}), 1)
        scan.feed("positions", at(0), 1)
        scan.feed("data", frames(0), 1)
    assert first.ended is None and taken(first) == [0]
    assert second.failure is not None and second.ended == f"failed: {second.failure}"
    assert second.failure.startswith(f"scans.s.data.shape: {PER_SLAB + 1} frames of 72 bytes do not fit")
    assert "crop or rebin more" in second.failure and "live.overlap" in second.failure
    assert second.take(5) is EOS and closes(second)
    first.release()
    assert budget.left == budget.limit
    third = buffer(budget=budget)
    third.feed("positions", at(0), 1)
    third.feed("data", frames(0), 1)
    assert taken(third) == [0]


def test_memory_of_frames_that_do_not_come_is_free_when_the_scan_is_over() -> None:
    budget = room(3)
    first, second = buffer(budget=budget), buffer(budget=budget)
    first.feed("data", ScanStarted("e", {"num_frames": 3 * PER_SLAB}), 1)
    first.feed("positions", at(0), 1)
    first.feed("data", frames(0), 1)
    assert budget.left < PER_SLAB * FRAME_BYTES
    finish(first)
    assert budget.left > PER_SLAB * FRAME_BYTES
    second.feed("positions", at(0), 1)
    second.feed("data", frames(0), 1)
    assert taken(first) == taken(second) == [0]


def test_a_scan_ends_where_the_memory_does_and_what_had_come_is_used(caplog: pytest.LogCaptureFixture) -> None:
    budget = room(2)
    other = buffer(budget=budget)
    other.feed("data", ScanStarted("e", {"num_frames": 9}), 1)
    other.feed("data", frames(0), 1)
    scan = buffer(budget=budget)
    with caplog.at_level(logging.ERROR):
        for first in range(0, PER_SLAB + 2000, 1000):
            scan.feed("data", frames(*range(first, first + 1000)), 1)
    assert sum("no further frame is taken: scans.s.data.shape" in r.getMessage() for r in caplog.records) == 1
    assert scan.take(10) is WAIT and scan.ended is None  # positions may still come
    scan.feed("positions", at(*range(PER_SLAB)), 1)
    assert len(taken(scan, PER_SLAB)) == PER_SLAB
    assert scan.take(10) is EOS
    assert scan.ended is not None and scan.ended.startswith("memory_limit: scans.s.data.shape: the ")
    assert "crop or rebin more, or let fewer scans overlap (live.overlap: 1)" in scan.ended
    assert scan.ledger.reason_counts()["memory_limit"] >= 1000 and closes(scan)
    other.feed("positions", at(0), 1)
    other.feed("data", ScanEnded("e", 1), 1)
    assert taken(other) == [0]


def test_all_scans_of_the_process_share_half_of_the_machines_memory() -> None:
    assert FRAMES.limit == allowed_bytes()
    before, scan = FRAMES.left, buffer()
    scan.feed("positions", at(0), 1)
    scan.feed("data", frames(0), 1)
    assert FRAMES.left < before
    scan.release()
    assert FRAMES.left == before


def test_a_run_without_memory_ends_and_the_session_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr("ptystream.plan.FRAMES", Budget(SLAB_BYTES + 100))
    monkeypatch.setattr("ptystream.session.SUPERSEDED_S", 3.0)
    scans = [messages("a"), messages("b"), messages("c")]
    for part in scans[0]:
        del part[-1]  # its end is lost: it holds its memory until the next ones have come
    with test_overlap.Beside(tmp_path, scans, live={"runs": 2, "overlap": 2}) as beside:
        beside.give(BEAM.frames + 1)
        beside.until(lambda: beside.runs() and beside.runs()[0].iterations > 3)
        beside.give(test_overlap.ALL)
        beside.until(lambda: beside.session.fruitless is not None)
        (why,) = beside.session.fruitless.failures
        assert why.startswith("scans.s.data.shape") and "do not fit" in why
        assert why in caplog.text
        beside.until(lambda: beside.session.results)
        beside.give(test_overlap.ALL)
        results = beside.ends()
    assert [result.ledger["used"] for result in results] == [BEAM.frames] * 2
    assert isinstance(results[0], ptyr.Result)
