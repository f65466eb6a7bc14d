"""Two engines on half of the frames each: independent of each other, and of no influence on the run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from problems import PATTERNS, end, feed, make_run

from ptystream.assessment.halves import FEWEST, Halves, half_of, measured
from ptystream.engines.dm import DM
from ptystream.engines.epie import EPIE
from ptystream.engines.ml import ML
from ptystream.engines.multislice.pypty import PyPty
from ptystream.engines.opr import DMOPR
from ptystream.loop import Loop, LoopSettings, Step
from ptystream.model.opr import OPR
from ptystream.quality import align, crop_to_cover, fourier_ring_correlation
from ptystream.reconstruction import PROBE
from ptystream.run import Run
from ptystream.scan.memory import Budget

DM_FEW = {"numiter": 12, "subpix": None, "probe_update_start": 1}


def to_the_end(run: Run, loop: Loop, halves: Halves | None) -> None:
    for _ in range(300):
        if loop.step() is Step.DONE:
            return
        if halves is not None and halves.due:
            halves.step()
    pytest.fail("the run does not end")


def live(halved: bool, engines: list[dict[str, Any]], engine: Any = DM) -> tuple[Run, Halves | None]:
    """A scan that grows in three steps, with one position that is put right."""
    run = make_run(engines=engines, engine=engine)
    loop = Loop(run, LoopSettings(min_frames_for_recon=16))
    halves = Halves(run) if halved else None
    for first, stop in ((0, 40), (40, 70), (70, 92)):
        feed(run, first, stop)
        for _ in range(3):
            loop.step()
            if halves is not None and halves.due:
                halves.step()
        if first == 40:
            scan = run.scans["s"]
            entry = {"do": "revise", "scan": "s", "index": 45, "what": "position"}
            run.apply({**entry, "value": (scan.taken[0].positions_m[7] + 2e-9).tolist()})
            run.apply({**entry, "index": 50, "what": "withdrawn", "value": None})
    end(run)
    to_the_end(run, loop, halves)
    return run, halves


@pytest.mark.parametrize("engine", [DM, ML, EPIE, PyPty])
def test_the_run_is_the_same_to_the_last_bit_with_halves_and_without(engine: Any) -> None:
    few = [{"numiter": 6}, {"numiter": 4}]
    with_them, halves = live(True, few, engine)
    without, _ = live(False, few, engine)
    assert halves is not None and halves.iterations >= 6
    a, b = with_them.reconstruction, without.reconstruction
    assert a is not None and b is not None
    for held, other in ((a.objects, b.objects), (a.probes, b.probes)):
        for name, storage in held.items():
            assert storage.offset == other[name].offset
            np.testing.assert_array_equal(storage.data, other[name].data)
    np.testing.assert_array_equal(a.pods.address, b.pods.address)
    assert with_them.schedule.to_list() == without.schedule.to_list()
    np.testing.assert_array_equal(with_them.history()[1], without.history()[1])
    halves.close()


def test_halves_of_a_thick_object_see_it_as_the_run_does() -> None:
    """Wavelength, pixel, slices, and a canvas that has grown because the run's refined positions led there."""
    thick = {"num_slices": 2, "slice_distances": [2e6], "default_dtype": "single", "print_flag": 0}
    run, halves = live(True, [{**thick, "numiter": 6, "update_probe_pos": 1, "dynamically_resize_yx_object": 1e-3}], PyPty)
    assert halves is not None and run.reconstruction is not None and halves.halves
    (canvas,), (pixel,) = run.reconstruction.objects.values(), {o.pixel_size_m for o in run.reconstruction.objects.values()}
    for half, (picture, seen) in zip(halves.halves, halves.pictures("SsG00"), strict=True):
        optics = half.engine.optics  # type: ignore[union-attr]
        assert optics.pixel_m == pixel
        assert optics.wavelength_m == pytest.approx(1.239842e-9 / canvas.energy_kev, rel=1e-6)
        assert picture.data.shape == (2, *seen.data.shape[-2:]) and np.abs(seen.data).max() > 0
    halves.close()


def test_every_frame_is_in_one_half_and_neighbours_are_in_different_ones() -> None:
    index = np.arange(1000)
    half = half_of(3, 0, index)
    assert set(half.tolist()) == {0, 1}
    assert (half[::2] != half[1::2]).all()
    assert 0.35 < half[::2].mean() < 0.65  # no stripes
    shuffled = np.random.default_rng(0).permutation(index)
    np.testing.assert_array_equal(half_of(3, 0, shuffled), half[shuffled])  # whenever they come
    assert (half_of(4, 0, index) != half).any()


def test_the_halves_share_no_frame_and_follow_what_is_withdrawn_and_moved() -> None:
    run, halves = live(True, [DM_FEW])
    assert halves is not None and run.reconstruction is not None
    halves.step(), halves.step()
    one, other = ({*half.rows().tolist()} for half in halves.halves)
    assert not one & other
    assert one | other == {*run.rows().tolist()}
    assert halves.frames == 91
    source = run.reconstruction
    assert 50 not in one | other
    for half in halves.halves:
        rows = half.rows()
        address, remainder = measured(source, rows)
        np.testing.assert_array_equal(half.made.pods.address[rows], address)
        np.testing.assert_array_equal(half.made.pods.remainder[rows], remainder)
        assert half.engine is not None
        known = np.concatenate([tile.rows for tile in half.engine.tiles])  # type: ignore[attr-defined]
        assert {*known.tolist()} == {*rows.tolist()}
    halves.close()


def test_they_begin_with_the_starting_probe_and_an_empty_object_whenever_they_begin() -> None:
    run = make_run(engines=[DM_FEW])
    loop = Loop(run, LoopSettings(min_frames_for_recon=16))
    feed(run, 0, 92)
    for _ in range(6):
        loop.step()
    halves = Halves(run)
    started: list[Any] = []

    class Seen(DM):
        def start(self, reconstruction: Any, *given: Any, **more: Any) -> None:
            started.append(reconstruction.copy())
            super().start(reconstruction, *given, **more)

    run.engine_entry = run.engines[0] = type(run.engines[0])("e0", "DM", run.engines[0].parameters, Seen)
    halves.step(), halves.step()
    assert run.engine is not None and len(started) == 2
    for held in started:
        for name, storage in held.objects.items():
            np.testing.assert_array_equal(storage.data, np.full_like(storage.data, storage.fill))
            assert (run.engine.snapshot().objects[name].data != storage.fill).any()
        for name, storage in held.probes.items():
            np.testing.assert_array_equal(storage.data, run.starting[name].data)
            assert not np.array_equal(run.engine.snapshot().probes[name].data, storage.data)
    halves.close()


def test_measured_positions_are_found_again_under_refined_ones() -> None:
    run = make_run()
    loop = Loop(run, LoopSettings(min_frames_for_recon=16))
    feed(run, 0, 92)
    loop.step()
    source = run.reconstruction
    assert source is not None
    rows = run.rows()
    before = measured(source, rows)
    pixel = np.array(next(iter(source.objects.values())).pixel_size_m)
    moves = np.random.default_rng(1).integers(-3, 4, (len(rows), 2))
    source.pods.address[rows, :, 4:] += moves[:, None].astype(np.int32)
    source.pods.moved[rows] = moves * pixel
    after = measured(source, rows)
    at = [address[..., 4:] + remainder for address, remainder in (before, after)]
    np.testing.assert_allclose(at[0], at[1], atol=1e-3)
    assert np.abs(source.pods.address[rows, :, 4:] - before[0][..., 4:]).max() == 3


def test_a_restart_a_steered_parameter_and_the_end_reach_them() -> None:
    run = make_run(engines=[DM_FEW])
    loop = Loop(run, LoopSettings(min_frames_for_recon=16))
    halves = Halves(run)
    feed(run, 0, 92)
    loop.step()
    halves.step(), halves.step()
    engines = [half.engine for half in halves.halves]
    told: list[str] = []
    for engine in engines:
        for name in ("restart", "configure", "complete"):
            original = getattr(engine, name)
            setattr(engine, name, lambda *given, name=name, original=original: (told.append(name), original(*given)))
    run.apply({"do": "restart"})
    run.apply({"do": "steer", "path": "engines.e0.probe_update_start", "value": 7, "before": 1, "who": "", "time_ns": 0})
    end(run)
    loop.step()
    for _ in range(4):
        halves.step()
    assert sorted(told) == ["complete"] * 2 + ["configure"] * 2 + ["restart"] * 2
    assert all(engine.p.probe_update_start == 7 for engine in engines)  # type: ignore[union-attr]
    halves.close()
    assert run.revisions is None


def test_they_begin_anew_where_the_engine_does_in_the_midst_of_its_work() -> None:
    """As when frames are cut another way."""
    run = make_run(engines=[DM_FEW, DM_FEW])
    loop = Loop(run, LoopSettings(min_frames_for_recon=16))
    halves = Halves(run)
    feed(run, 0, 92)
    loop.step()
    for _ in range(6):
        halves.step()
    first = halves.halves
    assert halves.iterations == 3
    run.apply({"do": "resume", "label": "e0"})
    halves.step(), halves.step()
    assert halves.halves is not first and halves.iterations == 1 and halves.frames == 92
    end(run)
    while run.engine_entry is run.engines[0]:  # another engine goes on where the first has ended
        loop.step()
    second = halves.halves
    halves.step(), halves.step()
    assert halves.halves is second and halves.iterations == 2
    assert run.reconstruction is not None
    again = run.reconstruction = run.reconstruction.copy()
    run._keep_starting()
    assert {*run.starting} == {*again.probes}
    halves.step()
    assert halves.halves is not second and halves.iterations == 0
    halves.close()


def test_a_canvas_that_begins_elsewhere_begins_them_anew() -> None:
    run = make_run(engines=[DM_FEW])
    loop = Loop(run, LoopSettings(min_frames_for_recon=16))
    halves = Halves(run)
    feed(run, 0, 92)
    loop.step()
    halves.step(), halves.step()
    first = halves.halves
    assert run.reconstruction is not None
    next(iter(run.reconstruction.objects.values())).begun += 1
    halves.step()
    assert halves.halves is not first
    halves.close()


def test_a_second_scan_of_the_run_joins_them_with_its_own_storages() -> None:
    run = make_run(engines=[{**DM_FEW, "numiter": 40}], labels=("s", "t"))
    loop = Loop(run, LoopSettings(min_frames_for_recon=16))
    halves = Halves(run)
    feed(run, 0, 60)
    loop.step()
    for _ in range(4):
        halves.step()
    feed(run, 0, 50, label="t")
    loop.step()
    for _ in range(6):
        halves.step()
    source = run.reconstruction
    assert source is not None and len(source.objects) == 2
    for half in halves.halves:
        assert list(half.made.objects) == list(source.objects) and list(half.made.probes) == list(source.probes)
        rows = half.rows()
        assert {*half.made.pods.frame[rows, 0].tolist()} == {0, 1}
        assert half.engine is not None
        for held in half.engine.snapshot().objects.values():
            assert (held.data != held.fill).any()
    assert halves.frames == 110
    for name in source.objects:
        assert len(halves.pictures(name)) == 2
    halves.close()


def test_probes_of_each_frame_keep_their_layers() -> None:
    run = make_run(engine=DMOPR, engines=[{"numiter": 40, "subspace_dim": 2, "subpix": None}], model=OPR)
    loop = Loop(run, LoopSettings(min_frames_for_recon=16))
    halves = Halves(run)
    feed(run, 0, 60)
    loop.step()
    for _ in range(4):
        halves.step()
    feed(run, 60, 92)
    loop.step()
    for _ in range(6):
        halves.step()
    source = run.reconstruction
    assert source is not None and halves.frames == 92
    name = next(iter(source.probes))
    for half in halves.halves:
        assert half.made.probes[name].data.shape == source.probes[name].data.shape
        rows = half.rows()
        np.testing.assert_array_equal(half.made.pods.address[rows, 0, :2], source.pods.address[rows, 0, :2])
    assert len(halves.pictures(next(iter(source.objects)))) == 2
    halves.close()


def test_they_wait_for_enough_frames() -> None:
    run = make_run(engines=[DM_FEW])
    loop = Loop(run, LoopSettings(min_frames_for_recon=16))
    halves = Halves(run)
    feed(run, 0, FEWEST - 1)
    loop.step()
    assert not halves.due
    feed(run, FEWEST - 1, FEWEST)
    loop.step()
    assert halves.due


def test_frames_without_room_are_left_out_and_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    run = make_run(engines=[DM_FEW])
    loop = Loop(run, LoopSettings(min_frames_for_recon=16))
    each = 32 * 32 * 8 + 256
    budget = Budget(50 * each)
    halves = Halves(run, budget)
    feed(run, 0, 92)
    loop.step()
    halves.step(), halves.step()
    assert 40 <= halves.frames <= 50
    assert budget.left < 50 * each - 40 * each
    assert caplog.text.count("find room") == 1
    halves.close()
    assert budget.left == budget.limit


def test_a_wanted_latency_bounds_what_a_step_visits() -> None:
    run = make_run(engines=[{**DM_FEW, "numiter": 50}])
    loop = Loop(run, LoopSettings(min_frames_for_recon=16))
    halves = Halves(run)
    feed(run, 0, 92)
    loop.step()
    visited: list[set[int]] = []
    halves.step(), halves.step()
    for half in halves.halves:
        original = half.engine.iterate  # type: ignore[union-attr]

        def iterate(count: int, rows: Any, original: Any = original) -> Any:
            visited.append({*rows.tolist()})
            return original(count, rows)

        half.engine.iterate = iterate  # type: ignore[union-attr, method-assign]
    for _ in range(12):
        halves.step(latency_s=21 * run.iter_info[-1]["duration"] / 92)  # room for 10 frames, and a half, in half of it
    assert {len(rows) for rows in visited} == {10}
    assert len(set.union(*visited)) > 80  # all in turn
    halves.close()


def correlation(halves: Halves, run: Run) -> np.ndarray:
    (a, seen), (b, also) = halves.pictures(next(iter(run.reconstruction.objects)))  # type: ignore[union-attr]
    weight = np.minimum(np.abs(seen.data[0]), np.abs(also.data[0]))
    crop = crop_to_cover(weight)
    made = align(a.data[0][crop], b.data[0][crop], weight[crop])
    return fourier_ring_correlation(made.first, made.second).correlation


def test_halves_of_a_picture_agree_and_halves_of_noise_do_not() -> None:
    r = np.random.default_rng(2)
    noise = r.permuted(PATTERNS.reshape(len(PATTERNS), -1), axis=1).reshape(PATTERNS.shape)
    found = []
    for patterns in (PATTERNS, noise):
        run = make_run(engines=[{"numiter": 60, "subpix": None}])
        loop = Loop(run, LoopSettings(min_frames_for_recon=16))
        halves = Halves(run)
        feed(run, 0, 92, patterns=patterns)
        end(run)
        loop.step()
        for _ in range(60):
            halves.step()
        found.append(correlation(halves, run))
        halves.close()
    good, bad = found
    assert good[1:7].mean() > 0.8
    assert np.abs(bad[2:]).mean() < 0.3  # a dozen rings of few pixels each; of all frames see below
    assert good[1:7].mean() > 3 * np.abs(bad[2:]).mean()


def test_rows_of_the_other_half_see_nothing() -> None:
    _, halves = live(True, [DM_FEW])
    assert halves is not None
    for half in halves.halves:
        table = half.made.pods
        others = np.setdiff1d(np.arange(table.length), half.rows())
        assert (table.address[others, :, PROBE] == -1).all()
    halves.close()


def test_they_begin_anew_where_frames_were_cut_another_way_between_two_engines() -> None:
    run = make_run(engines=[DM_FEW, DM_FEW])
    loop = Loop(run, LoopSettings(min_frames_for_recon=16))
    halves = Halves(run)
    feed(run, 0, 92)
    loop.step()
    halves.step(), halves.step()
    first, moved = (
        halves.halves,
        {"do": "recut", "scan": "s", "parameters": {"offset": [0.0, 0.0]}, "before": {"offset": [0.0, 0.0]}},
    )
    assert first and not halves.is_outdated
    loop.switch("e1", {"who": "anna", "time_ns": 1})
    loop.renew({**moved, "anew": False, "who": "anna", "time_ns": 2})
    loop.step()
    assert run.engine_entry is run.engines[1] and halves.is_outdated
    halves.step(), halves.step()
    assert halves.halves is not first and halves.iterations == 1 and halves.begun == 2 and not halves.is_outdated
    halves.close()
