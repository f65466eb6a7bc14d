"""EPIE and SDR against the oracle, with modes, masks, batches and sub-pixel positions; and what each parameter does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from oracle import Problem
from oracle_stochastic import stochastic
from test_dm import FRAMES, Store, add
from test_dm import problem as dm_problem

from ptystream.engine import Context
from ptystream.engines.brightest import Brightest
from ptystream.engines.epie import EPIE
from ptystream.engines.order import random_order
from ptystream.engines.sdr import SDR
from ptystream.reconstruction import PodTable, Reconstruction, Storage

ENGINES = {"EPIE": EPIE, "SDR": SDR}
ITERATIONS = 3


def problem(probes: int = 1, objects: int = 1, seed: int = 0, frames: int = FRAMES) -> Problem:
    """As for the difference map; the brightest pixel of the object is one that no frame sees."""
    q = dm_problem(probes, objects, seed, frames)
    q.object[:, 29, 30] = 3
    return q


def start(
    name: str,
    q: Problem,
    precision: str = "double",
    threads: int = 1,
    rows: int | None = None,
    device: str = "cpu",
    seed: int = 0,
    **parameters: Any,
) -> Any:
    """The engine on the same problem; the lattice does not begin at zero."""
    pods = [(k, m) for k in range(len(q.probe)) for m in range(len(q.object))]
    made = Reconstruction(
        {"p": Storage(q.probe.copy(), None, (0, 0), 0.0)},
        {"o": Storage(q.object.copy(), None, (-7, 5), 1.0)},
        PodTable(len(pods)),
    )
    engine = ENGINES[name](ENGINES[name].Parameters(**{"subpix": None} | parameters))
    mask = np.ones(q.counts.shape[1:], np.uint8)
    mask[~(q.valid | (q.counts >= 65535)).all(axis=0)] = 0
    engine.everything = (q, pods, made)
    add(engine, np.arange(len(q.counts) if rows is None else rows))
    context = Context(device=device, threads=threads, seed=seed, precision=precision)
    engine.start(made, {0: Store(np.minimum(q.counts, 65535), mask)}, context)
    return engine


def wanted(name: str, q: Problem, engine: Any, iterations: int = ITERATIONS) -> Problem:
    """The oracle's result, for the orders in which the engine visits."""
    table = engine.reconstruction.pods
    rows = np.arange(table.length)
    orders = [random_order(table, rows, engine.context.seed, "visit", k) for k in range(iterations)]
    return stochastic(q, orders, engine.p.model_dump())


def images(engine: Any) -> tuple[np.ndarray, np.ndarray]:
    shot = engine.snapshot()
    return shot.probes["p"].data, shot.objects["o"].data


def apart(one: Any, other: Any) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(images(one), images(other), strict=True))


COMMON = {
    "plain": {},
    "linear": {"subpix": "linear"},
    "fourier": {"subpix": "fourier"},
    "late sub-pixels": {"subpix": "linear", "subpix_start": 2},
    "batch": {"batch": 4},
    "batch, linear": {"batch": 3, "subpix": "linear"},
    "batch, fourier": {"batch": FRAMES - 1, "subpix": "fourier"},
    "one batch": {"batch": FRAMES + 5},
    "support": {"probe_support": 0.3},
    "fourier support": {"probe_fourier_support": 0.3},
    "no support": {"probe_support": None},
    "late probe": {"probe_update_start": 2},
}
CASES = {
    "EPIE": COMMON
    | {
        "alpha": {"alpha": 0.3},
        "beta": {"beta": 0.2},
        "held object": {"alpha": 0.0},
        "global": {"object_norm_is_global": True},
        "global, batch": {"object_norm_is_global": True, "batch": 4, "subpix": "linear"},
    },
    "SDR": {name: {"sigma": 0.5, "tau": 0.3} | more for name, more in COMMON.items()}
    | {
        "defaults": {},
        "sigma": {"sigma": 0.1, "tau": 0.3},
        "tau": {"sigma": 0.5, "tau": 0.8},
        "beta_probe": {"sigma": 0.5, "tau": 0.3, "beta_probe": 0.7},
        "beta_object": {"sigma": 0.5, "tau": 0.3, "beta_object": 0.2},
    },
}
EACH = [(name, case) for name, cases in CASES.items() for case in cases]


@pytest.mark.parametrize(("name", "case"), EACH)
@pytest.mark.parametrize("modes", [(1, 1), (2, 2), (3, 1)])
def test_iterations_agree_with_the_oracle(name: str, case: str, modes: tuple[int, int]) -> None:
    engine = start(name, problem(*modes), **CASES[name][case])
    progress = engine.iterate(ITERATIONS)
    q = wanted(name, problem(*modes), engine)
    probe, obj = images(engine)
    np.testing.assert_allclose(probe, q.probe, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(obj, q.object, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(progress.errors, q.errors, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(("name", "case"), [(n, c) for n, c in EACH if c != "plain"])
def test_every_case_differs_from_the_plain_one(name: str, case: str) -> None:
    plain, changed = (start(name, problem(2, 1), **CASES[name][c]) for c in ("plain", case))
    plain.iterate(ITERATIONS)
    changed.iterate(ITERATIONS)
    assert apart(plain, changed) > 1e-3


both = pytest.mark.parametrize("name", ["EPIE", "SDR"])
GENTLE = {"EPIE": {}, "SDR": {"sigma": 0.5, "tau": 0.3}}


@both
@pytest.mark.parametrize("subpix", [None, "linear", "fourier"])
def test_single_precision_follows_double(name: str, subpix: str | None) -> None:
    single, double = (start(name, problem(2, 1), kind, subpix=subpix, **GENTLE[name]) for kind in ("single", "double"))
    a, b = single.iterate(ITERATIONS), double.iterate(ITERATIONS)
    np.testing.assert_allclose(a.errors, b.errors, rtol=1e-3)
    for x, y in zip(images(single), images(double), strict=True):
        assert x.dtype == np.complex64
        assert np.abs(x - y).max() < 2e-2 * np.abs(y).max()


@both
@pytest.mark.parametrize("batch", [1, 7, 100])
@pytest.mark.parametrize("subpix", [None, "linear", "fourier"])
def test_the_number_of_threads_does_not_change_a_bit(name: str, batch: int, subpix: str | None) -> None:
    held = []
    for threads in (1, 2, 3):
        engine = start(name, problem(2, 2, frames=40), "single", threads, batch=batch, subpix=subpix, **GENTLE[name])
        progress = engine.iterate(2)
        held.append((progress.errors, *images(engine)))
        engine.finish()
    for other in held[1:]:
        for a, b in zip(held[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def table(scan: np.ndarray, index: np.ndarray) -> PodTable:
    """Frames that arrived in this order."""
    made, count = PodTable(1), len(index)
    slots = np.stack([scan, np.arange(count)], axis=1)
    made.append(np.zeros((count, 1, 6), np.int32), np.zeros((count, 1, 2), "f4"), np.ones((count, 1), "f4"), slots, index)
    return made


def test_the_order_is_random_and_the_same_however_frames_arrived() -> None:
    r = np.random.default_rng(0)
    scan, index, rows = np.repeat([0, 1], 250), np.tile(np.arange(250), 2), np.arange(500)
    first = random_order(table(scan, index), rows, 3, "visit", 7)
    np.testing.assert_array_equal(np.sort(first), rows)
    shuffled = r.permutation(500)
    again = random_order(table(scan[shuffled], index[shuffled]), rows, 3, "visit", 7)
    np.testing.assert_array_equal(shuffled[again], first)
    some = np.flatnonzero(r.random(500) > 0.6)
    np.testing.assert_array_equal(random_order(table(scan, index), some, 3, "visit", 7), first[np.isin(first, some)])
    for other in ((4, "visit", 7), (3, "visit", 8), (3, "move", 7)):
        assert (random_order(table(scan, index), rows, *other) == first).sum() < 10
    assert abs(np.corrcoef(first, rows)[0, 1]) < 0.2
    assert len(random_order(table(scan, index), rows[:0], 3, "visit", 7)) == 0


def test_a_frame_keeps_its_turn_when_it_moves_and_neighbours_do_not_come_in_a_row() -> None:
    made, rows = table(np.zeros(500, int), np.arange(500)), np.arange(500)
    order = random_order(made, rows, 0, "visit", 0)
    assert (np.diff(order // 5) == 0).sum() < 20
    made.address[:, :, 4:] += np.arange(500)[:, None, None] % 7
    made.remainder[:] = 0.25
    np.testing.assert_array_equal(random_order(made, rows, 0, "visit", 0), order)


@both
def test_another_seed_visits_in_another_order(name: str) -> None:
    one, other, same = (start(name, problem(), seed=seed, **GENTLE[name]) for seed in (1, 2, 1))
    for engine in (one, other, same):
        engine.iterate(1)
    assert apart(one, other) > 1e-3
    assert apart(one, same) == 0


@both
@pytest.mark.parametrize("block", [1, 4, FRAMES - 1])
def test_frames_that_come_in_blocks_end_in_the_same_state_as_at_once(name: str, block: int) -> None:
    q = problem(2, 1)
    whole, parts = start(name, q, **GENTLE[name]), start(name, q, rows=1, **GENTLE[name])
    for first in range(1, FRAMES, block):
        parts.extend(add(parts, np.arange(first, min(first + block, FRAMES))))
    whole.iterate(ITERATIONS)
    parts.iterate(ITERATIONS)
    assert apart(whole, parts) < 1e-9


@both
@pytest.mark.parametrize("batch", [1, 4])
def test_growing_the_canvas_while_running_changes_nothing_but_its_size(name: str, batch: int) -> None:
    grown, plain = (start(name, problem(), batch=batch, subpix="linear", **GENTLE[name]) for _ in range(2))
    for engine in (grown, plain):
        engine.iterate(2)
    storage = grown.reconstruction.objects["o"]
    assert storage.grow((-60, -40), (90, 80))
    a, b = grown.iterate(2), plain.iterate(2)
    np.testing.assert_allclose(a.errors, b.errors, rtol=1e-12)
    y, x = -7 - storage.offset[0], 5 - storage.offset[1]
    np.testing.assert_allclose(storage.data[:, y : y + 30, x : x + 31], images(plain)[1], rtol=1e-10)


@both
def test_exactly_the_rows_that_are_asked_for_are_visited(name: str) -> None:
    some = np.array([2, 3, 8])
    q, engine = problem(), start(name, problem(), record_local_error=True, **GENTLE[name])
    progress = engine.iterate(1, some)
    assert progress.frames == 3
    np.testing.assert_array_equal(np.flatnonzero(progress.local[:, 0]), some)
    q = stochastic(q, [random_order(engine.reconstruction.pods, some, 0, "visit", 0)], engine.p.model_dump())
    np.testing.assert_allclose(images(engine)[1], q.object, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(progress.errors, q.errors, rtol=1e-8)
    np.testing.assert_allclose(progress.local[some].mean(axis=0), progress.errors[0])


@both
def test_a_withdrawn_frame_is_not_visited_any_more(name: str) -> None:
    q, without = problem(), problem()
    for part in ("counts", "valid", "corner", "remainder", "weight"):
        setattr(without, part, getattr(without, part)[:-1])
    short, long = start(name, without, **GENTLE[name]), start(name, q, **GENTLE[name])
    long.revise(np.array([FRAMES - 1]), "withdrawn")
    np.testing.assert_allclose(short.iterate(3).errors, long.iterate(3, np.arange(FRAMES)).errors, rtol=1e-9)
    assert apart(short, long) < 1e-9


@both
def test_a_frame_that_was_moved_or_weighed_anew_is_visited_as_it_is_now(name: str) -> None:
    for what in ("position", "dose"):
        straight, moved = problem(), start(name, problem(), **GENTLE[name])
        if what == "position":
            straight.corner[4] = (3, 9)
            moved.reconstruction.pods.address[4, :, 4:] = np.array([3 - 7, 9 + 5])
        else:
            straight.weight[4] = 0.5
            moved.reconstruction.pods.weight[4] = 0.5
        moved.revise(np.array([4]), what)
        moved.iterate(2)
        fresh = start(name, straight, **GENTLE[name])
        fresh.iterate(2)
        assert apart(moved, fresh) < 1e-9


@both
def test_a_mask_and_a_frame_that_change_while_it_runs_are_seen(name: str) -> None:
    engine = start(name, problem(), **GENTLE[name])
    engine.iterate(1)
    before = engine.iterate(1, np.array([5])).misfit[0, 0]
    engine.frames[0].slab(1)[1] = 3
    engine.revise(np.array([5]), "frame")
    changed = engine.iterate(1, np.array([5])).misfit[0, 0]
    assert abs(changed - before) > 0.1
    engine.frames[0].mask[:] = 0
    engine.revise(np.arange(FRAMES), "mask")
    assert engine.iterate(1, np.array([5])).misfit[0, 0] == 0


@both
def test_a_restart_takes_the_first_probe_and_keeps_the_object(name: str) -> None:
    q = problem()
    engine = start(name, q, **GENTLE[name])
    engine.iterate(3)
    kept = images(engine)[1]
    assert np.abs(images(engine)[0] - q.probe).max() > 0.01
    engine.restart()
    np.testing.assert_array_equal(images(engine)[0], q.probe)
    np.testing.assert_array_equal(images(engine)[1], kept)
    engine.curiter = 0
    again = problem()
    again.object = kept
    fresh = start(name, again, **GENTLE[name])
    np.testing.assert_allclose(engine.iterate(1).errors, fresh.iterate(1).errors, rtol=1e-9)


@both
def test_the_mean_of_the_last_iterates_is_what_finish_leaves(name: str) -> None:
    engine, single = (start(name, problem(), **GENTLE[name]) for _ in range(2))
    engine.iterate(2)
    engine.average()
    engine.iterate(3)
    engine.finish()
    single.iterate(2)
    seen = []
    for _ in range(3):
        single.iterate(1)
        seen.append(images(single)[1])
    np.testing.assert_allclose(engine.reconstruction.objects["o"].data, np.mean(seen, axis=0), rtol=1e-9)


@both
def test_switches_of_what_is_computed(name: str) -> None:
    off = start(name, problem(), compute_log_likelihood=False, record_local_error=True, **GENTLE[name]).iterate(2)
    on = start(name, problem(), **GENTLE[name]).iterate(2)
    assert np.isnan(off.misfit).all()
    assert (off.errors[:, 1] == 0).all()
    np.testing.assert_allclose(off.errors[:, [0, 2]], on.errors[:, [0, 2]], rtol=1e-9)
    assert np.isfinite(on.misfit).all()
    assert on.local is None
    assert off.local is not None
    np.testing.assert_allclose(off.local[:, 0].mean(), off.errors[-1, 0])


@both
def test_a_probe_off_centre_is_moved_back_with_its_object(name: str) -> None:
    side = 15
    q = problem(frames=30)
    y, x = np.mgrid[:side, :side]
    q.probe = 10 * np.exp(-((y - 9.0) ** 2 + (x - 5.0) ** 2) / 6)[None].astype(complex)
    kept = {"probe_support": None, "probe_update_start": 50, **GENTLE[name]}
    moved, left = (start(name, q, probe_center_tol=t, **kept) for t in (1.0, 50.0))
    for engine in (moved, left):
        engine.iterate(1)
    power = np.abs(images(moved)[0][0]) ** 2
    assert abs((power * y).sum() / power.sum() - side // 2) < 0.3
    assert abs((power * x).sum() / power.sum() - side // 2) < 0.3
    np.testing.assert_array_equal(images(left)[0], q.probe)


def test_exit_waves_are_kept_by_one_engine_alone() -> None:
    assert all(tile.waves is None for tile in start("EPIE", problem()).tiles)
    engine = start("SDR", problem(), **GENTLE["SDR"])
    before = [tile.waves.copy() for tile in engine.tiles]
    engine.iterate(1)
    assert all(np.abs(tile.waves - old).max() > 1e-3 for tile, old in zip(engine.tiles, before, strict=True))


@both
def test_coverage_is_the_illumination_of_the_frames(name: str) -> None:
    q = problem(2, 1)
    engine = start(name, q, **GENTLE[name])
    wanted = np.zeros((30, 31))
    for (y, x), weight in zip(q.corner, q.weight, strict=True):
        wanted[y : y + 15, x : x + 15] += weight**2 * (np.abs(q.probe) ** 2).sum(axis=0)
    np.testing.assert_allclose(engine.snapshot(("coverage",)).objects["o"].data[0].real, wanted, rtol=1e-6)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_the_brightest_pixel_is_found_wherever_it_goes(batch: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held against a search of the whole object for every batch; it lies now inside, now outside of the windows."""
    q = dm_problem(2, 2, seed, frames=30)
    engine = start("EPIE", q, batch=batch, object_norm_is_global=True)
    ask, seen = Brightest.peaks, []

    def compare(self: Brightest, pieces: Any) -> Any:
        found = ask(self, pieces)
        power = (np.abs(engine.reconstruction.objects["o"].data) ** 2).sum(axis=0)
        assert found == {(0, (0, 1)): pytest.approx(power.max(), rel=1e-12)}
        seen.append(int(power.argmax()))
        return found

    monkeypatch.setattr(Brightest, "peaks", compare)
    engine.iterate(10)
    assert len(set(seen)) > 1
