"""Refined positions and local errors through a run: counted from the last frame, shown, saved, repeated to the bit."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from problems import BEAM, PLACES, end, feed, make_run, make_scan
from test_dumps import configuration

from ptystream.engine import Context
from ptystream.engines.dm import DM
from ptystream.engines.epie import EPIE
from ptystream.engines.sdr import SDR
from ptystream.events import Samples
from ptystream.loop import Loop, LoopSettings, Step
from ptystream.model.parameters import CoherenceParameters, FullParameters
from ptystream.model.scan_model import Full
from ptystream.results import result_of
from ptystream.run import Run
from ptystream.run_state import EngineEntry
from ptystream.schedule import Schedule
from ptystream.storage import ptyr

PIXEL = BEAM.pixel_m
REFINE = {"start": {"after_last_frame": 1}, "amplitude": 2 * PIXEL, "max_shift": 4 * PIXEL, "record": True}


def finished(*engines: dict, watch: list | None = None, engine: type = DM) -> Run:
    """Frames in three parts, to the end."""
    run = make_run(engines=[{"numiter": 4, **given} for given in engines], engine=engine)
    loop = Loop(run, LoopSettings(min_frames_for_recon=20))
    for first, stop in ((0, 40), (40, 80), (80, 92)):
        feed(run, first, stop)
        if stop == 92:
            end(run)
        else:
            loop.step()
            loop.step()
    for _ in range(50):
        answer = loop.step()
        if watch is not None and run.engine is not None:
            watch.append(np.abs(run.reconstruction.pods.moved).max())
        if answer is Step.DONE:
            return run
    raise AssertionError("the run does not end")


@pytest.mark.slow
@pytest.mark.parametrize("engine", [DM, EPIE, SDR])
def test_what_is_counted_from_the_last_frame_begins_there_and_snapshots_show_it(engine: type) -> None:
    watched: list = []
    run = finished({"position_refinement": REFINE}, watch=watched, engine=engine)
    assert watched[0] == 0 < watched[1]
    moved = run.reconstruction.pods.moved
    assert np.hypot(*moved.T).max() <= 4 * PIXEL * (1 + 1e-6)
    shown = run.snapshot({}).positions
    np.testing.assert_allclose(shown * PIXEL, PLACES[run.reconstruction.pods.index] + moved, atol=1e-4 * PIXEL)
    still = finished({"position_refinement": {"start": {"after_last_frame": 4}, "max_shift": 4 * PIXEL}}, engine=engine)
    assert not still.reconstruction.pods.moved.any()


class TwoParameters(FullParameters):
    coherence: CoherenceParameters = CoherenceParameters(num_probe_modes=2)


class Two(Full):
    """Two modes of the probe."""

    Parameters = TwoParameters


class ThreeParameters(FullParameters):
    coherence: CoherenceParameters = CoherenceParameters(num_probe_modes=3)


class Three(Full):
    """Three of them."""

    Parameters = ThreeParameters


@pytest.mark.slow
@pytest.mark.parametrize("engine", [DM, EPIE])
def test_positions_of_scans_with_different_numbers_of_modes_are_refined(engine: type) -> None:
    entry = EngineEntry("e", engine.__name__, engine.Parameters(numiter=3, position_refinement={**REFINE, "start": 1}), engine)
    run = Run("test", [make_scan("s", 0, model=Two), make_scan("t", 1, model=Three)], [entry], Context())
    loop = Loop(run, LoopSettings(min_frames_for_recon=20))
    for label in ("s", "t"):
        feed(run, 0, BEAM.frames, label=label)
        end(run, label=label)
    while loop.step() is not Step.DONE:
        pass
    pods = run.reconstruction.pods
    fewer = pods.frame[:, 0] == 0
    assert pods.moved[fewer].any() and pods.moved[~fewer].any()
    assert (pods.address[fewer, 2] == -1).all()
    assert (pods.address[~fewer][:, 1:, 4:] == pods.address[~fewer][:, :1, 4:]).all()


def test_an_engine_that_starts_when_all_frames_are_there_counts_from_its_start() -> None:
    run = finished({}, {"position_refinement": REFINE | {"start": {"after_last_frame": 0}}})
    assert run.reconstruction.pods.moved.any()
    late = finished({}, {"position_refinement": REFINE | {"start": {"after_last_frame": 4}}})
    assert not late.reconstruction.pods.moved.any()


def test_max_shift_bounds_all_engines_together() -> None:
    refine = REFINE | {"start": 0, "max_shift": 1.5 * PIXEL, "amplitude_decay": False}
    run = finished(*[{"position_refinement": refine}] * 3)
    far = np.hypot(*(run.positions() * PIXEL - PLACES[run.reconstruction.pods.index]).T)
    assert PIXEL < far.max() <= 1.5 * PIXEL * (1 + 1e-4)


def test_a_corrected_position_is_where_refinement_begins_anew() -> None:
    run = make_run(engines=[{"numiter": 6, "position_refinement": REFINE | {"start": 0, "amplitude_decay": False}}])
    loop = Loop(run, LoopSettings(min_frames_for_recon=20))
    feed(run, 0, 92)
    for _ in range(3):
        loop.step()
    assert np.hypot(*run.reconstruction.pods.moved[5]) > 0
    there = np.array([3.0e-7])
    run.scans["s"].buffer.feed("positions", Samples("a", 5, {"y": there, "x": there}), 0)
    for _ in range(3):
        loop.step()
        apart = run.positions()[5] * PIXEL - there
        np.testing.assert_allclose(apart, run.reconstruction.pods.moved[5], atol=1e-4 * PIXEL)
    assert np.hypot(*apart) <= 4 * PIXEL


def test_a_schedule_with_refinement_repeats_to_the_same_bits() -> None:
    run = finished({"position_refinement": REFINE | {"start": 0}}, {"numiter": 2})
    told = json.loads(json.dumps(run.schedule.to_list()))
    decided = next(entry["decisions"] for entry in told if entry["do"] == "decide")
    again = make_run(engines=[{"numiter": 4, "position_refinement": REFINE | {"start": 0}}, {"numiter": 2}], decisions=decided)
    feed(again, 0, 92)
    end(again)
    for entry in Schedule(told).to_repeat():
        again.apply(entry)
    np.testing.assert_array_equal(run.positions(), again.positions())
    for name, storage in run.reconstruction.objects.items():
        np.testing.assert_array_equal(storage.data, again.reconstruction.objects[name].data)


def test_refined_positions_and_local_errors_are_in_the_file(tmp_path: Path) -> None:
    run = finished({"position_refinement": REFINE, "record_local_error": True})
    path = ptyr.write(tmp_path / "a.ptyr", result_of(run, configuration(tmp_path)))
    index = run.reconstruction.pods.index
    with h5py.File(path) as file:
        coordinates = file["content/positions/SsG00"][()]
        local = file["content/runtime/error_local/s"]
        np.testing.assert_array_equal(local["index"][()], index)
        errors = local["error"][()]
    np.testing.assert_allclose(coordinates, PLACES[index] + run.reconstruction.pods.moved, atol=1e-4 * PIXEL)
    assert np.abs(coordinates - PLACES[index]).max() > 0.1 * PIXEL
    assert errors.shape == (92, 3)
    np.testing.assert_allclose(errors.mean(axis=0), run.errors[-1][-1])
    assert errors[:, 0].std() > 0
    back = ptyr.read(path)
    np.testing.assert_array_equal(back.refined_m["SsG00"], coordinates)
    np.testing.assert_array_equal(back.error_local["s"]["error"], errors)


def test_neither_is_there_where_it_was_not_asked_for(tmp_path: Path) -> None:
    run = finished({"position_refinement": REFINE | {"record": False}})
    path = ptyr.write(tmp_path / "a.ptyr", result_of(run, configuration(tmp_path)))
    with h5py.File(path) as file:
        assert "positions" not in file["content"]
        assert "error_local" not in file["content/runtime"]
