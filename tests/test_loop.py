"""The loop's decisions, as a recorded trace: each parameter changed one at a time."""

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
from problems import BEAM, PATTERNS, PLACES, end, feed, make_run

from ptystream.engines.dm import DM
from ptystream.engines.epie import EPIE
from ptystream.engines.ml import ML
from ptystream.engines.raar import RAAR
from ptystream.events import Samples, ScanEnded
from ptystream.loop import AUTOMATIC_FRAMES, Loop, LoopSettings, Step
from ptystream.run import Run
from ptystream.scan.judge import SETTLING
from ptystream.scan.parameters import PositionsParameters
from ptystream.scan.ptyscan import PtyScan
from ptystream.schedule import Schedule, from_runs, to_runs


def trace(run: Run) -> list[tuple]:
    """(iteration count so far, frames taken so far) after each pass, from the schedule."""
    frames, iterations, passes = 0, 0, []
    for entry in run.schedule:
        if entry["do"] == "take":
            frames += len(from_runs(entry["indices"]))
        if entry["do"] == "iterate":
            iterations += entry["iterations"]
            passes.append((iterations, frames))
    return passes


def steps(loop: Loop, count: int) -> list[Step]:
    return [loop.step() for _ in range(count)]


def to_the_end(loop: Loop) -> None:
    for _ in range(200):
        if loop.step() is Step.DONE:
            return
    pytest.fail("the run does not end")


def test_numiter_counts_from_the_pass_that_saw_the_end() -> None:
    run = make_run(engines=[{"numiter": 3, "numiter_contiguous": 2}])
    loop = Loop(run, LoopSettings(min_frames_for_recon=20))
    feed(run, 0, 30)
    loop.step()
    feed(run, 30, 60)
    loop.step()
    feed(run, 60, 92)
    end(run)
    to_the_end(loop)
    assert trace(run) == [(2, 30), (4, 60), (6, 92), (8, 92)]
    assert run.state == "finished"


def test_numiter_contiguous_iterations_run_between_two_looks_at_data() -> None:
    for contiguous in (1, 3):
        run = make_run(engines=[{"numiter": 6, "numiter_contiguous": contiguous}])
        loop = Loop(run, LoopSettings(min_frames_for_recon=20))
        feed(run, 0, 92)
        end(run)
        to_the_end(loop)
        assert [i for i, _ in trace(run)] == list(range(contiguous, 7, contiguous))


def test_the_first_engine_waits_for_min_frames_for_recon() -> None:
    for minimum in (0, 40):
        run = make_run()
        loop = Loop(run, LoopSettings(min_frames_for_recon=minimum))
        needed = minimum or AUTOMATIC_FRAMES
        feed(run, 0, needed - 1)
        assert loop.step() is Step.IDLE
        assert trace(run) == []
        feed(run, needed - 1, needed)
        assert loop.step() is Step.WORKED
        assert trace(run) == [(1, needed)]


def test_a_scan_that_ends_before_the_minimum_is_reconstructed_all_the_same() -> None:
    run = make_run(decide_after=40)
    loop = Loop(run, LoopSettings(min_frames_for_recon=40))
    feed(run, 0, 20)
    end(run, 20)
    to_the_end(loop)
    assert trace(run)[-1] == (3, 20)


def test_an_empty_scan_fails_and_says_so() -> None:
    run = make_run()
    end(run, 0)
    assert Loop(run, LoopSettings()).step() is Step.DONE
    assert run.state == "failed"


def test_frames_per_block_bounds_what_is_taken_at_once() -> None:
    run = make_run()
    loop = Loop(run, LoopSettings(frames_per_block=10, min_frames_for_recon=20))
    feed(run, 0, 20)
    loop.step()
    feed(run, 20, 55)
    loop.step()
    taken = [len(from_runs(e["indices"])) for e in run.schedule if e["do"] == "take"]
    assert taken == [20, 10, 10, 10, 5]


def test_min_frames_holds_frames_back_until_there_are_enough() -> None:
    run = make_run(min_frames=15)
    loop = Loop(run, LoopSettings(min_frames_for_recon=20))
    feed(run, 0, 20)
    loop.step()
    feed(run, 20, 30)
    loop.step()
    assert trace(run)[-1][1] == 20
    feed(run, 30, 35)
    loop.step()
    assert trace(run)[-1][1] == 35


def test_without_new_frames_the_loop_rests_after_numiter_iterations() -> None:
    run = make_run(engines=[{"numiter": 4}])
    loop = Loop(run, LoopSettings(min_frames_for_recon=20))
    feed(run, 0, 30)
    assert steps(loop, 6) == [Step.WORKED] * 4 + [Step.IDLE] * 2
    feed(run, 30, 31)
    assert steps(loop, 5) == [Step.WORKED] * 4 + [Step.IDLE]


def test_the_first_engine_absorbs_the_acquisition_and_the_second_sees_all() -> None:
    run = make_run(engines=[{"numiter": 2}, {"numiter": 5}])
    loop = Loop(run, LoopSettings(min_frames_for_recon=20))
    feed(run, 0, 50)
    loop.step()
    feed(run, 50, 92)
    end(run)
    to_the_end(loop)
    order = [(e["do"], e.get("label")) for e in run.schedule if e["do"] in ("engine", "finish")]
    assert order == [("engine", "e0"), ("finish", None), ("engine", "e1"), ("finish", None)]
    assert trace(run)[-1] == (1 + 2 + 5, 92)


def test_a_wanted_latency_bounds_the_rows_while_frames_arrive_and_not_afterwards() -> None:
    run = make_run(engines=[{"numiter": 3}])
    loop = Loop(run, LoopSettings(min_frames_for_recon=20, latency_s=1e-9))
    feed(run, 0, 30)
    loop.step()
    feed(run, 30, 60)
    loop.step()
    feed(run, 60, 92)
    end(run)
    to_the_end(loop)
    rows = [e["rows"] for e in run.schedule if e["do"] == "iterate"]
    assert rows[0] is None
    partial = from_runs(rows[1])
    assert set(range(30, 60)) <= set(partial.tolist())
    assert len(partial) < 60
    assert rows[2:] == [None] * 3


def test_average_last_begins_exactly_that_many_iterations_before_the_end() -> None:
    for last, contiguous in ((2, 1), (2, 3), (50, 2)):
        run = make_run(engines=[{"numiter": 7, "average_last": last, "numiter_contiguous": contiguous}])
        loop = Loop(run, LoopSettings(min_frames_for_recon=20))
        feed(run, 0, 92)
        end(run)
        to_the_end(loop)
        entries = [(e["do"], e.get("iterations")) for e in run.schedule]
        after = entries[entries.index(("average", None)) :]
        total = sum(n for do, n in entries if do == "iterate")
        assert sum(n for do, n in after if do == "iterate") == min(last, total)
        assert run.last is not None


@pytest.mark.parametrize("restart", [False, True])
def test_the_probe_is_taken_anew_once_when_the_last_frame_is_in(restart: bool) -> None:
    run = make_run(engines=[{"numiter": 3}, {"numiter": 2}])
    loop = Loop(run, LoopSettings(min_frames_for_recon=20, restart_probe=restart))
    feed(run, 0, 50)
    steps(loop, 2)
    feed(run, 50, 92)
    end(run)
    to_the_end(loop)
    done = [e["do"] for e in run.schedule if e["do"] in ("iterate", "restart", "engine")]
    again = ["restart"] if restart else []
    assert done == ["engine", "iterate", "iterate", *again, *["iterate"] * 3, "engine", *["iterate"] * 2]


def test_a_scan_that_is_complete_at_the_start_has_nothing_to_restart() -> None:
    run = make_run(engines=[{"numiter": 3}])
    feed(run, 0, 92)
    end(run)
    to_the_end(Loop(run, LoopSettings(min_frames_for_recon=20, restart_probe=True)))
    assert "restart" not in [e["do"] for e in run.schedule]


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("latency", "restart"), [(None, False), (1e-9, False), (None, True)])
def test_a_schedule_applied_again_gives_the_same_bits(threads: int, latency: float | None, restart: bool) -> None:
    run = make_run(engines=[{"numiter": 4, "average_last": 2}], threads=threads)
    loop = Loop(run, LoopSettings(min_frames_for_recon=20, latency_s=latency, restart_probe=restart))
    for first, stop in ((0, 25), (25, 26), (26, 70), (70, 92)):
        feed(run, first, stop)
        loop.step()
    end(run)
    to_the_end(loop)
    again = make_run(engines=[{"numiter": 4, "average_last": 2}], threads=3 - threads)
    feed(again, 0, 92)
    end(again)
    for entry in Schedule(run.schedule.to_list()):
        again.apply(entry)
    assert again.schedule.to_list() == run.schedule.to_list()
    for part in ("probes", "objects"):
        for name, storage in getattr(run.reconstruction, part).items():
            other = getattr(again.reconstruction, part)[name]
            assert storage.offset == other.offset
            np.testing.assert_array_equal(storage.data, other.data)


def test_a_schedule_with_revisions_applied_to_what_finally_came_gives_the_same_bits() -> None:
    """Positions and doses corrected, frames withdrawn and back, one first off the canvas, hot pixels found in mid-scan."""
    settings: dict = {
        "engines": [{"numiter": 3, "average_last": 2}, {"numiter": 2}],
        "also": (PositionsParameters(channels={"y": None, "x": None, "dose": "i0"}),),
        "hot_pixels": 5.0,
    }
    hot = PATTERNS.copy()
    hot[:, 3, 4] = 20_000
    doses = np.linspace(0.9, 1.1, 92)
    run = make_run(decide_after=3, **settings)
    loop = Loop(run, LoopSettings(min_frames_for_recon=3))

    def dose(buffer: PtyScan, first: int, values: np.ndarray) -> None:
        buffer.feed("also.0", Samples("a", first, {"i0": values}), 0)

    def move(buffer: PtyScan, first: int, yx: np.ndarray) -> None:
        buffer.feed("positions", Samples("a", first, {"y": yx[:, 0], "x": yx[:, 1]}), 0)

    buffer = run.scans["s"].buffer
    feed(run, 0, 25, positions=False, patterns=hot)
    first = PLACES[:25].copy()
    first[7] += 2 * BEAM.pixel_m
    first[:3] += 2000 * BEAM.pixel_m  # nothing speaks against it yet
    dose(buffer, 0, np.linspace(1.1, 0.9, 25))
    move(buffer, 0, first[:3])
    loop.step()
    move(buffer, 3, first[3:])
    loop.step()
    move(buffer, 7, PLACES[7:8])
    loop.step()
    move(buffer, 0, PLACES[:3])
    dose(buffer, 3, doses[3:6])
    withdraw(run, 15)
    feed(run, 25, 60, patterns=hot)
    dose(buffer, 25, doses[25:60])
    loop.step()
    feed(run, 60, 92, patterns=hot)
    dose(buffer, 0, doses)
    loop.step()
    for source in ("data", "positions", "also.0"):
        buffer.feed(source, ScanEnded("a", 92), 0)
    to_the_end(loop)
    told = Schedule(json.loads(json.dumps(run.schedule.to_list())))
    seen = Counter(entry["what"] for entry in told if entry["do"] == "revise")
    assert seen["position"] == 1
    assert seen["withdrawn"] == 4
    assert seen["dose"] > 3
    assert seen["mask"] == 1

    decided = next(entry["decisions"] for entry in told if entry["do"] == "decide")
    again = make_run(decisions=decided, **settings)
    other = again.scans["s"].buffer
    feed(again, 0, 92, patterns=hot)
    dose(other, 0, doses)
    withdraw(again, 15)
    for source in ("data", "positions", "also.0"):
        other.feed(source, ScanEnded("a", 92), 0)
    for entry in told.to_repeat():
        again.apply(entry)
    assert again.schedule.to_list() == told.to_list()
    for part in ("probes", "objects"):
        for name, storage in getattr(run.reconstruction, part).items():
            np.testing.assert_array_equal(storage.data, getattr(again.reconstruction, part)[name].data)


def test_a_position_that_comes_corrected_is_revised_in_place() -> None:
    run = make_run(engines=[{"numiter": 2}])
    loop = Loop(run, LoopSettings(min_frames_for_recon=20))
    feed(run, 0, 92)
    loop.step()
    from ptystream.events import Samples

    before = run.reconstruction.pods.address[5].copy()
    moved = np.array([3.0e-7])
    run.scans["s"].buffer.feed("positions", Samples("a", 5, {"y": moved, "x": moved}), 0)
    loop.step()
    assert any(e["do"] == "revise" and e["what"] == "position" for e in run.schedule)
    assert (run.reconstruction.pods.address[5] != before).any()


@pytest.mark.parametrize(
    ("minimum", "shift_m", "placed_wrongly"),
    [(92, 1.0, 0), (2, 2000 * BEAM.pixel_m, 3), (2, 1.0, 3)],
    ids=["withdrawn before the start", "withdrawn from the engine", "a metre off"],
)
def test_a_frame_that_was_out_for_its_position_and_has_come_back_is_there_once(
    minimum: int, shift_m: float, placed_wrongly: int
) -> None:
    run = make_run(engines=[{"numiter": 2}])
    loop = Loop(run, LoopSettings(min_frames_for_recon=minimum))
    feed(run, 0, 92, positions=False)
    buffer = run.scans["s"].buffer

    def read(first: int, stop: int, shift: float = 0.0) -> None:
        part = PLACES[first:stop] + shift
        buffer.feed("positions", Samples("a", first, {"y": part[:, 0], "x": part[:, 1]}), 1)

    read(0, 3, shift=shift_m)  # far off, but nothing speaks against it yet
    loop.step()
    read(3, 92)  # now the rest does
    read(0, 3)
    end(run)
    to_the_end(loop)
    assert run.reconstruction is not None
    pods = run.reconstruction.pods
    other = make_run(engines=[{"numiter": 2}])
    feed(other, 0, 92)
    end(other)
    to_the_end(Loop(other, LoopSettings()))
    assert run.ledger()["used"] == 92
    assert run.ledger().get("off_canvas", 0) == 0
    assert pods.length == 92 + placed_wrongly
    corners = {tuple(row) for row in run.snapshot({}).positions.round(2).tolist()}
    assert {tuple(row) for row in other.snapshot({}).positions.round(2).tolist()} <= corners
    assert run.iter_info[-1]["frames"] == 92


def test_a_second_scan_of_a_run_may_come_while_the_first_is_reconstructed() -> None:
    run = make_run(labels=("s", "t"), engines=[{"numiter": 30}])
    loop = Loop(run, LoopSettings(min_frames_for_recon=20))
    feed(run, 0, 92)
    end(run)
    assert steps(loop, 2) == [Step.WORKED] * 2
    feed(run, 0, 50, label="t")
    loop.step()
    feed(run, 50, 92, label="t")
    end(run, label="t")
    to_the_end(loop)
    alone = make_run(engines=[{"numiter": 30}])
    feed(alone, 0, 92)
    end(alone)
    to_the_end(Loop(alone, LoopSettings(min_frames_for_recon=20)))
    assert run.iter_info[-1]["frames"] == 184
    assert list(run.reconstruction.objects) == ["SsG00", "StG00"]
    assert run.misfit[-1][-1, 0] < 1.1 * alone.misfit[-1][-1, 0]


def move(run: Run, first: int, yx: np.ndarray) -> None:
    run.scans["s"].buffer.feed("positions", Samples("a", first, {"y": yx[:, 0], "x": yx[:, 1]}), 1)


def test_a_probe_that_lost_all_its_frames_stays_until_others_come() -> None:
    run = make_run(engines=[{"numiter": 5}], decide_after=3)
    loop = Loop(run, LoopSettings(min_frames_for_recon=3))
    feed(run, 0, 3, positions=False)
    move(run, 0, PLACES[:3] + 2000 * BEAM.pixel_m)
    loop.step()
    move(run, 3, PLACES[3:])
    assert loop.step() is Step.IDLE
    assert run.frames == 0
    feed(run, 3, 92, positions=False)
    move(run, 0, PLACES[:3])
    end(run)
    to_the_end(loop)
    assert run.ledger()["used"] == 92
    assert np.isfinite(run.misfit[-1][-1, :2]).all()


@pytest.mark.parametrize("shift_m", [0.1, -3.0])
def test_a_stage_may_read_anything_at_the_sample(shift_m: float) -> None:
    run = make_run(engines=[{"numiter": 2}])
    feed(run, 0, 92, positions=False)
    move(run, 0, PLACES + shift_m)
    end(run)
    to_the_end(Loop(run, LoopSettings()))
    assert run.ledger()["used"] == 92
    assert run.reconstruction.objects["SsG00"].data.size < 100_000


def test_a_position_corrected_twice_between_two_looks_counts_as_it_was_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptystream.scan.judge.SPREADS", 1e9)
    monkeypatch.setattr("ptystream.model.scan_model.MAX_CANVAS_PIXELS", 100_000)
    run = make_run(engines=[{"numiter": 3}])
    monkeypatch.setattr(run.scans["s"].buffer._pairing._judge, "_far", lambda values: np.zeros(len(values), bool))
    loop = Loop(run, LoopSettings(min_frames_for_recon=20))
    feed(run, 0, 60)
    loop.step()
    move(run, 5, PLACES[5:6] + 1e-3)
    move(run, 5, PLACES[5:6])
    loop.step()
    feed(run, 60, 92)
    end(run)
    to_the_end(loop)
    assert run.ledger()["used"] == 92
    assert run.iter_info[-1]["frames"] == 92
    assert len(run.rows()) == run.frames == 92
    assert [e["what"] for e in run.schedule if e["do"] == "revise"] == ["withdrawn"]
    run.schedule.to_repeat()


def test_hot_pixels_found_when_every_frame_was_withdrawn_are_in_the_schedule_all_the_same() -> None:
    hot = PATTERNS.copy()
    hot[:, 3, 4] = 20_000
    run = make_run(engines=[{"numiter": 3}], decide_after=3, hot_pixels=5.0)
    loop = Loop(run, LoopSettings(min_frames_for_recon=3))
    feed(run, 0, 3, positions=False, patterns=hot)
    move(run, 0, PLACES[:3] + 2000 * BEAM.pixel_m)
    loop.step()
    move(run, 3, PLACES[3:])
    feed(run, 3, 92, positions=False, patterns=hot)
    move(run, 0, PLACES[:3])
    end(run)
    to_the_end(loop)
    decided = next(entry["decisions"] for entry in run.schedule if entry["do"] == "decide")
    assert decided["hot_pixels"] == []
    assert [e["value"] for e in run.schedule if e["do"] == "revise" and e["what"] == "mask"] == [[[19, 20]]]


def test_what_frames_that_rest_illuminate_follows_those_that_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptystream.engines.backend.TILE_BYTES", 1 << 14)
    run = make_run(engines=[{"numiter": 400}])
    loop = Loop(run, LoopSettings(min_frames_for_recon=16, latency_s=1e-9))
    feed(run, 0, 60)

    def wrong() -> float:
        overlap = run.engine.overlap
        exact = overlap.coverage(run.engine.tiles)[0].sum(axis=0)
        return float(np.abs(overlap._lit[0].sum(axis=0) - exact).max() / exact.max())

    steps(loop, 60)
    assert run.iter_info[-1]["frames"] < 20
    assert wrong() < 0.15
    withdraw(run, *range(30, 50))
    steps(loop, 2)
    assert wrong() < 0.15


@pytest.mark.slow
@pytest.mark.parametrize("passes", [1, 10])
def test_a_phase_ramp_converges_however_many_overlap_passes_there_are(passes: int) -> None:
    """Pixels at the rim of the object, which hardly any light fell on, must not carry the probe away."""
    found = {}
    for subpix in ("linear", "fourier"):
        run = make_run(engines=[{"numiter": 40, "subpix": subpix, "overlap_max_iterations": passes}])
        feed(run, 0, 92)
        end(run)
        to_the_end(Loop(run, LoopSettings()))
        found[subpix] = run.misfit[-1][-1, 0]
    assert found["fourier"] < 0.8 * found["linear"]


def test_frames_that_come_do_not_meet_what_stray_photons_made_of_the_rim() -> None:
    run = make_run(engines=[{"numiter": 5}])
    loop = Loop(run, LoopSettings(min_frames_for_recon=20))
    for first, stop in ((0, 20), (20, 32), (32, 44), (44, 56), (56, 68), (68, 80), (80, 92)):
        feed(run, first, stop)
        steps(loop, 2)
    assert run.history()[1][:, 1].max() < 1000


def withdraw(run: Run, *indices: int) -> None:
    """The stage had not settled at these frames, as turns out."""
    scan = run.scans["s"].buffer
    records = np.array([scan.ledger.find(i) for i in indices])
    with scan._condition:
        scan._pairing._judge._mark(records, SETTLING, np.ones(len(records), bool))
        scan._pairing._judge_records(records)


def test_a_second_engine_does_not_visit_what_was_withdrawn_from_the_first() -> None:
    run = make_run(engines=[{"numiter": 1}, {"numiter": 1}])
    loop = Loop(run, LoopSettings(min_frames_for_recon=20))
    feed(run, 0, 92)
    loop.step()
    withdraw(run, 7, 8)
    loop.step()
    end(run)
    to_the_end(loop)
    assert [e["do"] for e in run.schedule].count("engine") == 2
    assert run.iter_info[-1]["frames"] == 90


def test_a_run_whose_only_frames_were_withdrawn_before_the_start_ends() -> None:
    run = make_run(engines=[{"numiter": 1}], decide_after=2)
    loop = Loop(run, LoopSettings(min_frames_for_recon=20))
    feed(run, 0, 2)
    assert loop.step() is Step.IDLE
    withdraw(run, 0, 1)
    assert loop.step() is Step.IDLE
    end(run, 2)
    assert [loop.step() for _ in range(3)][-1] is Step.DONE
    assert run.state == "failed"


def test_a_run_that_is_cut_short_finishes_at_the_next_step() -> None:
    run = make_run(engines=[{"numiter": 50}, {"numiter": 50}])
    loop = Loop(run, LoopSettings(min_frames_for_recon=20))
    feed(run, 0, 92)
    end(run)
    steps(loop, 3)
    loop.cut()
    assert loop.step() is Step.DONE
    assert run.iterations == 3
    assert run.engine is None
    assert run.state == "finished"


def test_runs_of_indices_survive_the_way_to_a_file_and_back() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        numbers = random.choice(40, random.integers(0, 30), replace=False).astype(np.int64)
        np.testing.assert_array_equal(from_runs(to_runs(numbers)), numbers)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("engine", [DM, RAAR, EPIE, ML])
def test_frames_without_a_photon_are_told_and_make_nothing_infinite(engine: Any, caplog: pytest.LogCaptureFixture) -> None:
    run = make_run(engine=engine, engines=[{"numiter": 6, "probe_update_start": 1}])
    feed(run, 0, 92, patterns=np.zeros_like(PATTERNS))
    end(run)
    to_the_end(Loop(run, LoopSettings(min_frames_for_recon=20)))
    assert run.reconstruction is not None
    for storage in (*run.reconstruction.probes.values(), *run.reconstruction.objects.values()):
        assert np.isfinite(storage.data).all()
    assert "no photon on any of the first 92 frames" in caplog.text
