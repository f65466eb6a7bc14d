"""Memory of frames: bounded, taken ahead, never moved."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ptystream.scan.slabs import SLAB_BYTES, Slabs

MASK = np.ones((8, 8), np.uint8)


def slabs(dtype: str = "uint16", max_bytes: int = 1 << 20, slab_frames: int | None = 4, pool=None) -> Slabs:
    return Slabs((8, 8), np.dtype(dtype), MASK, max_bytes=max_bytes, slab_frames=slab_frames, pool=pool)


def test_a_slab_stays_where_it_is_while_others_come() -> None:
    store = slabs()
    store.require(1)
    first = store.slab(0)
    first[...] = 7
    store.require(33)
    assert store.slab(0) is first
    assert (store.row(3) == 7).all()
    assert store.row(9).base is store.slab(2) or np.shares_memory(store.row(9), store.slab(2)[1])
    assert len(store) == 9


def test_the_next_slab_is_taken_ahead_and_used() -> None:
    store = slabs()
    store.require(1)
    assert store.nbytes == 2 * 4 * 128
    ahead = store._ahead
    assert ahead is not None
    assert ahead._done.wait(60)
    store.require(5)
    assert store.slab(1) is ahead._slab


def test_a_pool_that_is_busy_does_not_hold_up_a_slab() -> None:
    gate = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(gate.wait, 30.0)
        store = slabs(pool=pool)
        store.require(9)
        assert len(store) == 3
        gate.set()


def test_nothing_is_taken_ahead_beyond_the_frames_expected() -> None:
    store = slabs()
    store.require(3, expected=4)
    assert store.nbytes == 4 * 128
    store.require(5, expected=9)
    assert store.nbytes == 3 * 4 * 128


def test_memory_is_bounded() -> None:
    store = slabs(max_bytes=4 * 128 * 2 + 100)
    assert store.max_frames == 8
    store.require(8)
    with pytest.raises(ValueError, match="9 frames: only 8 fit"):
        store.require(9)
    assert store.nbytes == 2 * 4 * 128


@pytest.mark.parametrize(("dtype", "limit"), [("uint8", 255.0), ("int32", 2.0**31 - 1), ("float32", np.inf)])
def test_the_limit_follows_from_the_dtype(dtype: str, limit: float) -> None:
    assert slabs(dtype).limit == limit


def test_other_dtypes_are_refused_and_slabs_have_about_the_size_aimed_at() -> None:
    with pytest.raises(ValueError, match="float64"):
        slabs("float64")
    assert slabs(slab_frames=None).slab_frames == SLAB_BYTES // 128


def test_weights_belong_to_the_store_and_have_the_shape_of_a_frame() -> None:
    assert slabs().weights is None
    weights = np.full((8, 8), 0.5, np.float32)
    store = Slabs((8, 8), np.dtype("uint16"), MASK, max_bytes=1 << 20, weights=weights)
    assert store.weights is weights
    with pytest.raises(ValueError, match="must have that of a frame"):
        Slabs((8, 8), np.dtype("uint16"), MASK, max_bytes=1 << 20, weights=weights[:4])
