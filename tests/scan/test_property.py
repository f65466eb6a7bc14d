"""Whatever the order, the repetitions and the gaps: every frame is handed out once with its own position, or accounted for."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptystream.events import Event, Frames, Payload, Samples, ScanEnded
from ptystream.scan.block import EOS, Signal
from ptystream.scan.parameters import PositionsParameters, PtyScanParameters
from ptystream.scan.ptyscan import PtyScan

SIDE = 4
PARAMETERS = PtyScanParameters(shape=SIDE, psize=1e-4, distance=1.0, energy=1.0)


def payload(index: int, copy: int) -> Payload:
    """A frame that carries its number and which copy it is."""
    pixels = np.full((SIDE, SIDE), index, np.uint16)
    pixels[0, 0] = copy
    return Payload(pixels.tobytes(), "raw", pixels.dtype, pixels.shape)


def split(draw: st.DrawFn, items: list[int]) -> list[list[int]]:
    """Cut a list into messages of any length."""
    cuts = sorted(draw(st.lists(st.integers(0, len(items)), max_size=6)))
    return [items[a:b] for a, b in zip([0, *cuts], [*cuts, len(items)], strict=True) if b > a]


@st.composite
def acquisitions(draw: st.DrawFn) -> tuple[int, list[tuple[str, Event]], int, set[int]]:
    """(samples per frame, messages in the order of arrival, when the ends come…, frames whose position is NaN)."""
    n = draw(st.integers(1, 24))
    per = draw(st.sampled_from([1, 1, 3]))
    offset = draw(st.sampled_from([0, 1 << 40]))
    frames = draw(st.permutations(range(n)))[: draw(st.integers(0, n))]
    frames = frames + draw(st.lists(st.integers(0, n - 1), max_size=6))
    broken = draw(st.sets(st.integers(0, n - 1), max_size=3))
    messages: list[tuple[str, Event]] = []
    copies = dict.fromkeys(range(n), 0)
    for part in split(draw, list(frames)):
        payloads = []
        for i in part:
            payloads.append(payload(i, copies[i]))
            copies[i] += 1
        messages.append(("data", Frames("e", offset + np.asarray(part), tuple(payloads))))
    samples: list[tuple[str, Event]] = []
    for _ in range(draw(st.integers(0, 8))):
        first = draw(st.integers(0, n * per - 1))
        count = draw(st.integers(1, n * per - first))
        k = np.arange(first, first + count)
        shift = draw(st.sampled_from([0.0, 0.0, 1e-7]))
        y = np.where(np.isin(k // per, list(broken)), np.nan, k * 1e-9 + shift)
        samples.append(("positions", Samples("e", offset * per + first, {"y": y, "x": -y})))
    order = draw(st.permutations(["d"] * len(messages) + ["p"] * len(samples)))
    left, right = iter(messages), iter(samples)
    return per, [next(left) if o == "d" else next(right) for o in order], offset, {offset + b for b in broken}


def oracle(per: int, events: list[tuple[str, Event]]) -> tuple[int, dict[int, int], dict[int, np.ndarray]]:
    """Plain dictionaries: arrivals, first copy of each frame, position of each frame."""
    arrivals, first, value = 0, {}, {}
    for _, event in events:
        if isinstance(event, Frames):
            for i, p in zip(event.indices.tolist(), event.payloads, strict=True):
                arrivals += 1
                first.setdefault(i, int(np.frombuffer(p.buffer, p.dtype)[0]))
        elif isinstance(event, Samples):
            for j in range(len(event.channels["y"])):
                k = event.first + j
                value.setdefault(k // per, {})[k] = (event.channels["y"][j], event.channels["x"][j])
    return arrivals, first, {i: np.mean(list(v.values()), axis=0) for i, v in value.items()}


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(acquisitions(), st.data())
def test_every_frame_is_handed_out_once_with_its_own_position_or_is_accounted_for(acquisition, data) -> None:
    per, events, _, broken = acquisition
    arrivals, first, position = oracle(per, events)
    scan = PtyScan("s", PARAMETERS, PositionsParameters(samples_per_frame=per))
    handed: dict[int, tuple[int, np.ndarray]] = {}
    withdrawn: set[int] = set()

    def collect(limit: int) -> Signal | None:
        block = scan.take(limit)
        if isinstance(block, Signal):
            return block
        assert len(block) <= limit
        for slot, index, where in zip(block.slots.tolist(), block.indices.tolist(), block.positions_m, strict=True):
            assert index not in handed
            handed[index] = (slot, where)
            frame = scan.frames.slab(slot // scan.frames.slab_frames)[slot % scan.frames.slab_frames]
            assert frame[SIDE // 2, SIDE // 2] == first[index], "the first copy wins"
            assert frame[0, 0] == index & 0xFFFF
        return None

    for source, event in events:
        scan.feed(source, event, 1)
        if data.draw(st.booleans()):
            collect(data.draw(st.integers(1, 5)))
    for source in data.draw(st.permutations(["data", "positions"])):
        scan.feed(source, ScanEnded("e", None), 1)
    while collect(data.draw(st.integers(1, 30))) is not EOS:
        pass
    by_slot = {slot: index for index, (slot, _) in handed.items()}
    for revision in scan.revisions():
        index = by_slot[revision.slot]
        if revision.what == "position":
            handed[index] = (revision.slot, np.asarray(revision.value))
        else:
            withdrawn.add(index)
    expected = {i for i in first if i in position and i not in broken}
    assert set(handed) - withdrawn == expected
    for index in expected:
        np.testing.assert_allclose(handed[index][1], position[index], rtol=0, atol=1e-18)
    counts = scan.ledger.counts()
    reasons = scan.ledger.reason_counts()
    assert counts["received"] == arrivals == counts["used"] + sum(reasons.values())
    assert counts["waiting"] == 0
    assert reasons.get("duplicate", 0) == arrivals - len(first)
    assert reasons.get("position_missing", 0) == len(set(first) - set(position))
    assert reasons.get("position_refused", 0) == len(set(first) & set(position) & broken)


@pytest.mark.parametrize("pooled", [False, True])
def test_sources_in_threads_of_their_own_lose_and_swap_nothing(pooled: bool) -> None:
    n, rng = 3000, np.random.default_rng(5)
    order = rng.permutation(n)
    pool = ThreadPoolExecutor(2) if pooled else None
    scan = PtyScan("s", PtyScanParameters(shape=SIDE, counts_per_photon=2.0), PositionsParameters(), pool=pool)

    def frames() -> None:
        for part in np.array_split(order, 300):
            scan.feed("data", Frames("e", part, tuple(payload(int(i), 0) for i in part)), 1)
        scan.feed("data", ScanEnded("e", n), 1)

    def samples() -> None:
        for part in np.array_split(np.arange(n), 170)[::-1]:
            scan.feed("positions", Samples("e", int(part[0]), {"y": part * 1e-8, "x": -part * 1e-8}), 1)
        scan.feed("positions", ScanEnded("e", n), 1)

    threads = [threading.Thread(target=body) for body in (frames, samples)]
    for thread in threads:
        thread.start()
    got, seen = [], 0
    while (block := scan.take(100)) is not EOS:
        if isinstance(block, Signal):
            seen = scan.changed(seen, 5.0)
            continue
        got.extend(block.indices.tolist())
        np.testing.assert_array_equal(block.positions_m[:, 0], block.indices * 1e-8)
        for slot, index in zip(block.slots.tolist(), block.indices.tolist(), strict=True):
            frame = scan.frames.slab(slot // scan.frames.slab_frames)[slot % scan.frames.slab_frames]
            assert frame[0, 0] == index / 2.0
    for thread in threads:
        thread.join(60)
    if pool is not None:
        pool.shutdown()
    assert sorted(got) == list(range(n))
    assert scan.ledger.reason_counts() == {}
