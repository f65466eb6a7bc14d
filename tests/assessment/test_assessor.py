"""When figures are measured, in whose time, and that whole sessions tell, keep and are not changed by them."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from problems import end, feed, make_run
from test_ptycho import parameters, sources

from ptystream import Ptycho
from ptystream.assessment import assessor as module
from ptystream.assessment import halves
from ptystream.assessment.assessor import Assessor
from ptystream.assessment.halves import Halves
from ptystream.cli.ctl import told
from ptystream.engines.dm import DM
from ptystream.loop import Loop, LoopSettings, Step
from ptystream.plan import make_plan
from ptystream.publish.measured import faults
from ptystream.run import Run
from ptystream.session import Session
from ptystream.storage import ptyr
from ptystream.telling import status_of


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures at every look."""
    for name in ("INTERVAL_S", "RARELY", "SELDOM"):
        monkeypatch.setattr(module, name, 0.0)


def assessed(run: Run, assessor: Assessor, turns: int = 400) -> list[Step]:
    """The run to its end, with the assessor at work after every turn."""
    loop, steps = Loop(run, LoopSettings(min_frames_for_recon=16)), []
    for _ in range(turns):
        steps.append(loop.step())
        if steps[-1] is Step.DONE:
            assessor.finish()
            return steps
        assessor.work()
    pytest.fail("the run does not end")


def whole(**engine: Any) -> Run:
    run = make_run(engines=[{"numiter": 60, "subpix": None, **engine}])
    feed(run, 0, 92)
    end(run)
    return run


@pytest.mark.usefixtures("quickly")
def test_every_figure_is_there_at_the_end_with_its_age() -> None:
    run, before = whole(), time.time_ns()
    assessed(run, Assessor(run, share=0.5))
    assert set(run.quality) == {"frc", "coverage", "drift", "convergence"}
    assert faults(run.quality) == ""
    for figure in run.quality.values():
        assert before <= figure["measured_ns"] <= time.time_ns()
        assert 0 < figure["iteration"] <= 60
    assert run.quality["frc"]["frames"] == 92 and run.quality["frc"]["iterations"] >= module.FIRST
    assert 0.4 < run.quality["coverage"]["overlap"] < 0.9
    assert run.quality["convergence"]["iteration"] == 60
    assert run.snapshot({}).quality == run.quality
    assert "rms_m" not in run.quality["drift"]  # nothing refines positions
    assert run.revisions is None


@pytest.mark.usefixtures("quickly")
def test_without_a_share_there_are_no_halves_and_all_else_is_told() -> None:
    run = whole()
    assessor = Assessor(run, share=0.0)
    assessed(run, assessor)
    assert set(run.quality) == {"coverage", "drift", "convergence"}


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_the_share_is_spent_and_no_more(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of its own: passes of 20 ms, and 10 ms for an iteration of a half, five times as much for each tenth of them."""
    run, now, taken = whole(), [0.0], []
    Loop(run, LoopSettings(min_frames_for_recon=16)).step()

    def step(self: Halves, latency_s: float | None = None) -> float:
        took = 0.05 if len(taken) % 10 == 9 else 0.01
        taken.append(took)
        now[0] += took
        return took

    clock = SimpleNamespace(monotonic=lambda: now[0], perf_counter=lambda: now[0], time_ns=time.time_ns)
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(Halves, "step", step)
    assessor, owed = Assessor(run, share=share), 0.0
    for _ in range(3000):
        now[0] += 0.02
        assessor.work()
        owed = max(owed, sum(taken) - share * now[0])
    assert assessor.purse.part == pytest.approx(share, rel=0.05)
    assert sum(taken) == pytest.approx(share * now[0], rel=0.05)
    assert owed <= 0.05  # what one iteration may take longer than the one before
    assessor.close()


@pytest.mark.parametrize("convention", [0, 40])
def test_a_frame_waits_for_one_iteration_of_half_of_the_frames_at_most(convention: int, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(engines=[{"numiter": 400}])
    feed(run, 0, 92)
    loop, assessor = Loop(run, LoopSettings(min_frames_for_recon=16)), Assessor(run, 0.5, convention_frames=convention)
    loop.step()
    visits: list[int] = []
    original = DM.iterate

    def iterate(self: DM, iterations: int, rows: Any = None) -> Any:
        done = original(self, iterations, rows)
        visits.extend([done.frames] * iterations)
        return done

    monkeypatch.setattr(DM, "iterate", iterate)
    seen = []
    for _ in range(60):
        assessor.purse.earn(100.0)  # a long rest
        before = len(visits)
        assessor.work()
        seen.append(visits[before:])
    assert max(len(some) for some in seen) == 1 and sum(map(len, seen)) > 50
    assert max(max(some) for some in seen if some) <= 46
    assessor.close()


def test_a_share_that_is_steered_to_nothing_ends_the_halves_and_one_that_comes_back_begins_them_anew() -> None:
    run = whole()
    loop, assessor = Loop(run, LoopSettings(min_frames_for_recon=16)), Assessor(run, share=0.5)
    loop.step()
    for _ in range(4):
        assessor.purse.earn(100.0)
        assessor.work()
    first = assessor.halves
    assert first is not None and first.iterations == 2 and run.revisions == []
    assessor.purse.share = 0.0
    assessor.work()
    assert assessor.halves is None and run.revisions is None and not first.halves
    assessor.purse.share = 0.5
    assessor.work()
    assert assessor.halves is not None and assessor.halves is not first
    assessor.close()


def test_two_runs_share_the_time() -> None:
    run = whole()
    earned = []
    for among in (1, 2):
        assessor = Assessor(run, share=0.1)
        assessor._looked -= 10.0
        assessor.work(among=among)
        earned.append(assessor.purse.passed)
    assert earned[0] == pytest.approx(2 * earned[1], rel=0.01)


@pytest.mark.usefixtures("quickly")
def test_what_goes_wrong_beside_a_run_is_said_once_and_does_not_end_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(self: Halves, latency_s: float | None = None) -> float:
        raise MemoryError("no room on the device")

    monkeypatch.setattr(Halves, "step", full)
    run = whole()
    assert assessed(run, Assessor(run, share=0.5))[-1] is Step.DONE
    assert run.state == "finished" and "frc" not in run.quality and "convergence" in run.quality
    assert caplog.text.count("is given up: MemoryError: no room on the device") == 1
    assert run.revisions is None  # nobody follows it any more


@pytest.mark.usefixtures("quickly")
def test_a_comparison_that_fails_costs_one_figure(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def broken(*pictures: Any) -> Any:
        raise ValueError("no picture")

    monkeypatch.setattr(module, "correlate", broken)
    run = whole()
    assessed(run, Assessor(run, share=0.5))
    assert run.state == "finished" and "frc" not in run.quality
    assert "comparing the halves: ValueError: no picture" in caplog.text


@pytest.mark.usefixtures("quickly")
def test_halves_with_gaps_give_no_resolution_and_the_log_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ptystream")
    monkeypatch.setattr(module, "correlate", lambda first, second: {})
    run = whole()
    assessed(run, Assessor(run, share=0.5))
    assert "frc" not in run.quality
    assert caplog.text.count("no resolution yet: the halves have no square in common") == 1


def test_over_several_ranks_and_for_volumes_there_are_none_and_the_log_says_why(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ptystream")
    run = whole()
    assessor = Assessor(run, share=0.5, alone=False)
    assessed(run, assessor)
    assert assessor.halves is None and "frc" not in run.quality
    assert caplog.text.count("no split halves and no convention check: the run is spread over several ranks") == 1


@pytest.mark.usefixtures("quickly")
def test_the_convention_is_checked_first_and_then_the_halves_begin(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ptystream")
    run = make_run(engines=[{"numiter": 4000, "subpix": None}])
    feed(run, 0, 92)
    loop, assessor = Loop(run, LoopSettings(min_frames_for_recon=16)), Assessor(run, share=0.5, convention_frames=60)
    deadline = time.monotonic() + 150
    while "frc" not in run.quality and time.monotonic() < deadline:
        loop.step()
        assessor.work()
        run.iter_info = run.iter_info[-1:]
        if "convention" not in run.quality:
            assert assessor.halves is None or assessor.halves.iterations == 0
    assert run.quality["convention"]["ranking"][0]["orientation"] in (0, 3)
    assert faults(run.quality) == ""
    assert "convention: best is" in caplog.text
    before = run.quality["convention"]["iteration"]
    run.cuts += 1  # frames lie otherwise from here on: what was found is asked again
    while run.quality["convention"]["iteration"] == before and time.monotonic() < deadline + 100:
        loop.step()
        assessor.work()
        run.iter_info = run.iter_info[-1:]
    assert run.quality["convention"]["iteration"] > before
    assessor.close()


@pytest.mark.usefixtures("quickly")
def test_refined_positions_have_a_drift() -> None:
    run = whole(position_refinement={"start": 2, "amplitude": 6e-8, "max_shift": 2e-7, "nshifts": 4})
    assessed(run, Assessor(run, share=0.0))
    figure = run.quality["drift"]
    assert figure["rms_m"] > 0 and len(figure["trend_m"]) == len(figure["positions_m"]) == 2


# ------------------------------------------------------------------ whole sessions


def script(home: Path, **quality: Any) -> Any:
    p = parameters(home, e={"numiter": 40})
    p.live.quality.update(quality)
    return p


@pytest.mark.usefixtures("quickly")
def test_a_result_keeps_the_figures_and_its_bits_are_the_same_with_any_share(tmp_path: Path) -> None:
    saved = {}
    for share in (0.0, 0.5):
        (tmp_path / str(share)).mkdir()
        made = Ptycho(script(tmp_path / str(share), share=share), transports=sources()).run()
        saved[share] = ptyr.read(made.results[0])
    for name, storage in saved[0.0].object.items():
        np.testing.assert_array_equal(storage.data, saved[0.5].object[name].data)
    np.testing.assert_array_equal(saved[0.0].misfit, saved[0.5].misfit)
    assert saved[0.0].schedule == saved[0.5].schedule
    assert "frc" in saved[0.5].quality and "frc" not in saved[0.0].quality
    assert set(saved[0.0].quality) == {"coverage", "drift", "convergence"}
    assert faults(dict(saved[0.5].quality)) == ""


def test_a_plan_passes_on_what_the_configuration_says(tmp_path: Path) -> None:
    made = make_plan(Ptycho(script(tmp_path, share=0.25, convention_check=70)).configuration)
    run = make_run()
    assessor = made.assess(run)
    assert (assessor.purse.share, assessor._convention_frames, assessor._alone) == (0.25, 70, True)
    default = make_plan(Ptycho(parameters(tmp_path)).configuration).assess(run)
    assert (default.purse.share, default._convention_frames) == (0.1, 0)


def test_the_share_can_be_steered(tmp_path: Path) -> None:
    made = Ptycho(script(tmp_path), transports=sources())
    shares: list[float] = []
    original, first, kept = Assessor.work, Session.__init__, []

    def begin(self: Session, *given: Any, **more: Any) -> None:
        first(self, *given, **more)
        kept.append(self)

    def work(self: Assessor, *given: Any, **more: Any) -> None:
        original(self, *given, **more)
        shares.append(self.purse.share)
        if len(shares) == 3:
            kept[0].steer("live.quality.share", 0.4, 0.1, "test")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Assessor, "work", work)
        patch.setattr(Session, "__init__", begin)
        made.run()
    assert shares[:3] == [0.1] * 3 and set(shares[3:]) == {0.4}


def test_what_halves_held_is_given_back_when_a_run_ends() -> None:
    before = halves.HALVES.left
    run = whole()
    assessor = Assessor(run, share=0.5)
    loop = Loop(run, LoopSettings(min_frames_for_recon=16))
    while assessor.halves is None or not assessor.halves.frames:
        loop.step()
        assessor.work()
    assert halves.HALVES.left < before
    assessor.close()
    assert halves.HALVES.left == before
    assert DM.keeps_waves


def test_a_status_tells_the_main_figures_and_ctl_prints_them() -> None:
    run = whole()
    assessed(run, Assessor(run, share=0.0))
    status = status_of(run)
    assert set(status["quality"]) == {"overlap", "drift", "convergence"}
    assert "frames per beam, 0 s ago" in status["quality"]["overlap"]
    printed = told("status", status)
    assert "quality: \n  " in printed and f"\n  convergence: {status['quality']['convergence']}" in printed


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize("share", [0.5, 0.0])
def test_a_run_that_begins_anew_is_told_no_resolution_of_before(share: float) -> None:
    """And the halves' first comparison is told again, however long those before had worked."""
    run = whole(numiter=60)
    loop, assessor = Loop(run, LoopSettings(min_frames_for_recon=16)), Assessor(run, share=0.5)
    for _ in range(40):
        loop.step()
        assessor.purse.earn(100.0)
        assessor.work()
    assert run.quality["frc"]["iterations"] > 10
    loop.renew({"do": "restart", "anew": True, "who": "anna", "time_ns": 1})
    assessor.purse.share = share
    loop.step()
    assessor.work()
    assert share == 0.0 or "frc" not in run.quality
    assessor.purse.share = 0.5
    for _ in range(12):
        loop.step()
        assessor.purse.earn(100.0)
        assessor.work()
        time.sleep(0.01)
    assert 2 < run.quality["frc"]["iterations"] < 10
    loop.renew({"do": "restart", "anew": True, "who": "anna", "time_ns": 2})
    assessor.finish()
    assert "frc" not in run.quality and "coverage" in run.quality


@pytest.mark.usefixtures("quickly")
def test_a_run_that_begins_anew_without_a_frame_ends_without_a_word_of_halves(caplog: pytest.LogCaptureFixture) -> None:
    """The scan is over too: nothing is left to compare."""
    run = whole(numiter=60)
    loop, assessor = Loop(run, LoopSettings(min_frames_for_recon=16)), Assessor(run, share=0.5)
    for _ in range(20):
        loop.step()
        assessor.purse.earn(100.0)
        assessor.work()
    for index in range(92):
        run.apply({"do": "revise", "scan": "s", "index": index, "what": "withdrawn", "value": None})
    loop.renew({"do": "restart", "anew": True, "who": "anna", "time_ns": 1})
    assert loop.step() is Step.DONE and run.state == "failed"
    assessor._of = (0, 0)
    assessor.finish()
    assert "frc" not in run.quality and "given up" not in caplog.text
