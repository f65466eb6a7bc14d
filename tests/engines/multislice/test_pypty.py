"""The engine whole: what it comes to, live and offline, on any number of threads; and what each parameter does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from problems import BEAM, PLACES, end, feed, make_run

from ptystream.checkpoint import checkpoint_of
from ptystream.engines.multislice.pypty import PyPty
from ptystream.loop import Loop, LoopSettings, Step
from ptystream.model.geometry import Geometry
from ptystream.model.scan_model import Full
from ptystream.quality import align
from ptystream.reconstruction import Stack
from ptystream.run import Run
from ptystream.schedule import Schedule
from ptystream.storage import ptyr
from ptystream.verify import overlap

PIXEL_A = BEAM.pixel_m * 1e10
SETUP: dict[str, Any] = {
    "pixel_size_x_A": PIXEL_A,
    "pixel_size_y_A": PIXEL_A,
    "damping_cutoff_multislice": 2.0,
    "default_dtype": "single",
}


def run(
    blocks: tuple[int, ...] = (92,),
    threads: int = 1,
    minimum: int = 32,
    modes: tuple[int, int] = (1, 1),
    scan_knows: bool = True,
    pad: int = 0,
    **parameters: Any,
) -> Run:
    """A run of the small beamline whose frames come in blocks up to these numbers;
    `modes`: of probe and object; `scan_knows`: lengths; `pad`: pixels that
    the detector does not see."""
    made = make_run(engine=PyPty, engines=[SETUP | {"epoch_max": 12} | parameters], threads=threads)
    if pad:
        model = made.scans["s"].model
        made.scans["s"].model = Full("s", 0, model.p, replace(model.geometry, pad=pad))
    if not scan_knows:
        hill = np.exp(-(np.hypot(*np.mgrid[-16:16, -16:16]) ** 2) / 50) + 0j
        made.scans["s"].model = Full("s", 0, Full.Parameters(illumination={"model": hill}), Geometry((BEAM.side,) * 2))
    if modes != (1, 1):
        scan = made.scans["s"]
        coherence = {"num_probe_modes": modes[0], "num_object_modes": modes[1]}
        p = Full.Parameters(illumination=scan.model.p.illumination.model_dump(), coherence=coherence)
        scan.model = Full("s", 0, p, scan.model.geometry)
    loop, first = Loop(made, LoopSettings(min_frames_for_recon=minimum)), 0
    for stop in blocks:
        feed(made, first, stop)
        first = stop
        loop.step()
    end(made)
    for _ in range(1000):
        if loop.step() is Step.DONE:
            return made
    pytest.fail("it does not end")


def apart(one: Run, other: Run) -> float:
    a, b, where = overlap(*(next(iter(r.reconstruction.objects.values())) for r in (one, other)))
    weight = one._coverage["SsG00"][where]
    return align(a[0], b[0], weight).complex_rms


def test_it_comes_down_to_the_noise_and_growing_to_the_same() -> None:
    whole, growing = run(epoch_max=60), run((40, 60, 92), epoch_max=60)
    for found in (whole, growing):
        expected = 0.91  # of the photon misfit, where nothing but noise is left
        assert found.misfit[-1][-1, 1] < 1.05 * expected
    assert apart(whole, growing) < 0.04
    assert growing.frames == 92


def test_threads_and_batches_change_the_time_alone() -> None:
    one = run(epoch_max=5)
    two = run(epoch_max=5, threads=3)
    first, second = (next(iter(r.reconstruction.objects.values())).data for r in (one, two))
    np.testing.assert_array_equal(first, second)
    for size in (1, 7, 91, 92):
        other = run(epoch_max=5, default_dtype="double", compute_batch=size)
        wanted = run(epoch_max=5, default_dtype="double")
        a, b = (next(iter(r.reconstruction.objects.values())).data for r in (other, wanted))
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8)


def test_single_precision_is_near_to_double() -> None:
    assert apart(run(epoch_max=8), run(epoch_max=8, default_dtype="double")) < 2e-3


@pytest.mark.parametrize("kind", ["ml", "lsq", "lsq_sqrt_2"])
def test_every_loss_makes_the_misfit_smaller(kind: str) -> None:
    found = run(algorithm=kind, epoch_max=30)
    misfit = np.concatenate(found.misfit)[:, 0]
    assert misfit[-1] < 0.15 * misfit[0]


def test_several_slices_are_together_what_one_is() -> None:
    three = run(epoch_max=60, num_slices=3, slice_distances=[10.0])
    stack = next(iter(three.reconstruction.objects.values()))
    assert stack.data.shape[0] == 3 and stack.layers == 1
    one = next(iter(run(epoch_max=60).reconstruction.objects.values()))
    a, b, where = overlap(one, type(one)(np.prod(stack.data, axis=0)[None], stack.pixel_size_m, stack.offset))
    assert align(a[0], b[0], three._coverage["SsG00"][where]).complex_rms < 0.1


def test_a_run_that_went_on_from_a_dump_repeats_to_the_same_bits(tmp_path: Any) -> None:
    import test_dumps

    engines = [SETUP | {"numiter": 6, "num_slices": 2, "slice_distances": [20.0], "update_probe_pos": 1}]

    def begin(decisions: Any = None) -> tuple[Run, Loop]:
        made = make_run(engine=PyPty, engines=engines, decide_after=40, decisions=decisions)
        loop = Loop(made, LoopSettings(min_frames_for_recon=40))
        feed(made, 0, 50)
        return made, loop

    first, loop = begin()
    for _ in range(4):
        assert loop.step() is Step.WORKED
    checkpoint = checkpoint_of(ptyr.read(test_dumps.dump(first, loop, tmp_path)))
    again, after = begin(checkpoint.buffer_decisions["s"])
    after.resume(checkpoint)
    test_dumps.finish(again, after)
    assert again.iterations == 4 + 6
    stack = next(iter(again.reconstruction.objects.values()))
    assert isinstance(stack, Stack) and stack.depth == 2
    repeated, _ = begin(again.decisions["s"])
    feed(repeated, 50, BEAM.frames)
    end(repeated)
    for entry in Schedule(again.schedule.to_list()).to_repeat():
        repeated.apply(entry)
    for one, other in zip(test_dumps.data(again), test_dumps.data(repeated), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(again.positions(), repeated.positions())


def refined_from(name: str, wrong: np.ndarray, **parameters: Any) -> tuple[Run, np.ndarray]:
    """A run in which a quantity begins wrong, and what has become of it."""
    made = make_run(engine=PyPty, engines=[SETUP | parameters])
    loop = Loop(made, LoopSettings(min_frames_for_recon=32))
    feed(made, 0, 92)
    loop.step()
    engine = made.engine
    engine.at[name] = wrong.astype(engine.at[name].dtype)
    engine._forget("it was made wrong")
    found = wrong
    end(made)
    for _ in range(1000):
        if loop.step() is Step.DONE:
            return made, found
        found = np.asarray(engine.at[name], float)
    pytest.fail("it does not end")


@pytest.mark.slow
def test_positions_are_found_from_far_away() -> None:
    wrong = np.random.default_rng(0).normal(size=(92, 2)) * 0.7
    made, found = refined_from("positions", wrong, epoch_max=90, update_probe_pos=1)
    base = np.concatenate([PLACES / BEAM.pixel_m, np.ones((92, 1))], axis=1)  # a whole scan may be moved or stretched
    rest = found - base @ np.linalg.lstsq(base, found, rcond=None)[0]
    assert np.sqrt((rest**2).sum(axis=1).mean()) < 0.03
    assert made.misfit[-1][-1, 1] < 1.0
    moved = made.reconstruction.pods.moved / BEAM.pixel_m  # what the engine found is in the table that all others read
    np.testing.assert_allclose(moved, found, atol=0.02)


@pytest.mark.slow
def test_beam_currents_are_found() -> None:
    wrong = np.random.default_rng(0).uniform(0.7, 1.3, 92)
    _, found = refined_from("current", wrong, epoch_max=80, update_beam_current=1)
    assert found.std() / found.mean() < 0.04


def test_one_tilt_for_all_is_refined_by_all() -> None:
    found = run(epoch_max=4, tilts=[[0, 0, 1e-8, 0, 0, 0]], update_tilts=1, num_slices=2, slice_distances=[2e6])
    assert found.state == "finished"
    losses = [info["pypty"][-1]["loss"] for info in found.iter_info]
    assert losses[-1] < losses[0]


def test_positions_are_those_of_the_beginning_again_also_where_the_object_has_grown() -> None:
    """Corrections that were made part of what frames see are taken back too."""
    more = {"update_probe_pos": "lambda x: x < 5", "dynamically_resize_yx_object": 1e-3, "epoch_max": 8}
    kept, reset = (run(**more, **given) for given in ({}, {"reset_positions": "lambda x: x == 6"}))
    assert np.abs(kept.reconstruction.pods.moved).max() > 1e-3 * BEAM.pixel_m
    np.testing.assert_allclose(reset.reconstruction.pods.moved, 0, atol=1e-5 * BEAM.pixel_m)


@pytest.mark.parametrize("fractions", [True, False])
def test_frames_stay_where_they_are_when_corrections_become_part_of_them(fractions: bool) -> None:
    given = SETUP | {"epoch_max": 9, "allow_subPixel_shift": fractions, "update_probe_pos": 1}
    made = make_run(engine=PyPty, engines=[given])
    feed(made, 0, 92)
    Loop(made, LoopSettings(min_frames_for_recon=32)).step()
    engine = made.engine
    assert isinstance(engine, PyPty)

    def places() -> np.ndarray:
        views = [batch.view(engine.at) for batch in engine.patterns.batches(np.arange(92), engine._stack)]
        return np.concatenate([view.corner + np.asarray(engine._stack.offset) + view.shift for view in views])

    engine.at["positions"] = np.random.default_rng(0).normal(size=(92, 2)).astype("f4")
    before = places()
    engine._fold(engine.at["positions"].astype(float))
    np.testing.assert_allclose(places(), before, atol=1e-4)


@pytest.mark.parametrize("name", ["window_weight", "probe_reg_constraint_weight"])
def test_terms_of_the_probe_are_those_of_the_pages_probe(name: str) -> None:
    """Weights mean what they do in PyPty: its probe is brighter by the unnormalised transform, and modes are averaged."""
    hill, outside = np.hypot(*np.mgrid[-16:16, -16:16]) / 20, np.ones((32, 32))
    outside[8:24, 8:24] = 0
    given = {"window": hill, "probe_constraint_mask": 1 - outside, name: 3.0}
    made = run(epoch_max=2, update_probe=0, modes=(2, 1), **given)
    (probe,) = made.reconstruction.probes.values()
    page = probe.data.astype("c16") * np.sqrt(2 / 32**2)
    spectra = np.fft.fftshift(np.fft.fft2(page), axes=(1, 2))
    wanted = {"window_weight": 3 * hill * abs(page) ** 2, "probe_reg_constraint_weight": 3 * outside * abs(spectra) ** 2}[name]
    assert made.iter_info[-1]["pypty"][-1]["terms"][name] == pytest.approx(wanted.sum(), rel=1e-4)


@pytest.mark.parametrize(
    "given", [{"phase_norm_weight": "lambda x: 1e-3 * (x >= 6)"}, {"update_probe": "lambda x: x < 6"}, {"sequence": "late"}]
)
def test_what_was_known_of_another_loss_is_forgotten_once(given: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    if "sequence" in given:
        given = {"sequence": lambda epoch: None if epoch < 6 else list(range(60))}
    with caplog.at_level("INFO"):
        run(epoch_max=10, **given)
    forgotten = [r for r in caplog.records if "history" in r.message and "another from here on" in r.message]
    assert len(forgotten) == 1
