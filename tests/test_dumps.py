"""Dumps while running, and what goes on from them: the same frames, probe, object and history, whatever was cut off."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
from problems import BEAM, GEOMETRY, PLACES, end, feed, make_run
from test_session import Memory, messages

from ptystream.autosave import Autosave
from ptystream.checkpoint import checkpoint_of, dumps, newest
from ptystream.dumping import Dumping
from ptystream.events import Samples
from ptystream.loop import Loop, LoopSettings, Step
from ptystream.metrics import Metrics
from ptystream.params.errors import ConfigurationError
from ptystream.params.load import Configuration, load
from ptystream.plan import make_plan, recorder_of
from ptystream.recording import Recording
from ptystream.run import Run
from ptystream.schedule import Schedule
from ptystream.session import Session
from ptystream.storage import ptyr
from ptystream.transport import Message, TransportClosed

ENGINES = [{"numiter": 12, "probe_update_start": 2}]


def configuration(folder: Path, *, engines: dict[str, Any] | None = None, **io: Any) -> Configuration:
    source = {"name": "ZmqScan"}
    data = {**source, "shape": BEAM.side, **GEOMETRY, "positions": source}
    given = {
        "run": "t",
        "min_frames_for_recon": 40,
        "threads": 1,
        "io": {"home": str(folder), "rfile": "%(run)s_%(engine)s_%(iterations)04d.ptyr", **io},
        "scans": {"s": {"name": "Full", "data": data, "illumination": {"aperture": {"size": 4e-7}}}},
        "engines": engines or {"e": {"name": "DM", "numiter": 12}},
    }
    return load(given)


def dump(run: Run, loop: Loop, folder: Path) -> Path:
    return Dumping(configuration(folder), None).autosave._dump(run, loop)()


def begun(**settings: Any) -> tuple[Run, Loop]:
    """A run that has seen 50 frames and iterated three times."""
    run = make_run(engines=ENGINES, decide_after=40)
    loop = Loop(run, LoopSettings(min_frames_for_recon=40, **settings))
    feed(run, 0, 50)
    for _ in range(3):
        assert loop.step() is Step.WORKED
    return run, loop


def finish(run: Run, loop: Loop) -> None:
    feed(run, 50, BEAM.frames)
    end(run)
    for _ in range(100):
        if loop.step() is Step.DONE:
            return
    raise AssertionError("the loop does not end")


def resumed(path: Path, **settings: Any) -> tuple[Run, Loop]:
    """A new run, fed the same frames, that went on from a dump."""
    checkpoint = checkpoint_of(ptyr.read(path))
    run = make_run(engines=ENGINES, decide_after=40, decisions=checkpoint.buffer_decisions["s"])
    loop = Loop(run, LoopSettings(min_frames_for_recon=40, **settings))
    feed(run, 0, 50)
    loop.resume(checkpoint)
    return run, loop


def data(run: Run) -> list[np.ndarray]:
    assert run.reconstruction is not None
    held = run.reconstruction if run.engine is None else run.engine.snapshot()
    return [s.data for part in (held.probes, held.objects) for s in part.values()]


def test_a_run_goes_on_from_its_dump_where_it_was(tmp_path: Path) -> None:
    run, loop = begun()
    path = dump(run, loop, tmp_path)
    again, after = resumed(path)
    for a, b in zip(data(run), data(again), strict=True):
        np.testing.assert_array_equal(a, b)
    assert again.iterations == run.iterations == 3
    assert again.frames == run.frames == 50
    np.testing.assert_array_equal(again.history()[0], run.history()[0])
    for a, b in zip(again.iter_info, run.iter_info, strict=True):
        assert {k: v for k, v in a.items() if k != "error"} == {k: v for k, v in b.items() if k != "error"}
        np.testing.assert_array_equal(a["error"], b["error"])
    finish(again, after)
    finish(run, loop)
    assert again.iterations == run.iterations  # not one is done twice or left out
    assert again.frames == BEAM.frames
    assert again.history()[1][-1, 0] < 1.1 * run.history()[1][-1, 0]


def test_the_schedule_of_a_run_that_went_on_repeats_to_the_same_bits(tmp_path: Path) -> None:
    again, loop = resumed(dump(*begun(), tmp_path))
    finish(again, loop)
    repeated = make_run(engines=ENGINES, decide_after=40, decisions=again.decisions["s"])
    feed(repeated, 0, BEAM.frames)
    end(repeated)
    for entry in Schedule(again.schedule.to_list()).to_repeat():
        repeated.apply(entry)
    assert [e["do"] for e in again.schedule.to_list()].count("resume") == 1
    for a, b in zip(data(again), data(repeated), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_dump_keeps_the_probe_that_a_restart_takes(tmp_path: Path) -> None:
    run, loop = begun(restart_probe=True)
    again, after = resumed(dump(run, loop, tmp_path), restart_probe=True)
    for one, its in ((run, loop), (again, after)):
        feed(one, 50, BEAM.frames)
        end(one)
        its.step()
        assert one.schedule.to_list()[-2]["do"] == "restart"
    first, second = (one.engine._first_probes["SsG00"] for one in (run, again))  # type: ignore[union-attr]
    np.testing.assert_array_equal(first, second)
    assert abs(first - data(run)[0]).max() > 0


@pytest.mark.parametrize("numiter", [7, 20])
def test_numiter_that_was_steered_just_before_the_dump_counts_after_it(numiter: int, tmp_path: Path) -> None:
    run, loop = begun()
    feed(run, 50, BEAM.frames)
    end(run)
    for _ in range(2):
        loop.step()
    entry = {"do": "steer", "path": "engines.e0.numiter", "value": numiter, "before": 12, "who": "", "time_ns": 0}
    run.apply(entry)
    checkpoint = checkpoint_of(ptyr.read(dump(run, loop, tmp_path)))
    again = make_run(engines=ENGINES, decide_after=40, decisions=checkpoint.buffer_decisions["s"])
    feed(again, 0, BEAM.frames)
    end(again)
    after = Loop(again, LoopSettings(min_frames_for_recon=40))
    after.resume(checkpoint)
    for one, its in ((run, loop), (again, after)):
        while its.step() is not Step.DONE:
            assert one.iterations < 100
        assert one.iterations == 3 + numiter


def test_a_revision_before_the_dump_is_in_force_after_it(tmp_path: Path) -> None:
    run, loop = begun()
    index = 7
    run.apply({"do": "revise", "scan": "s", "index": index, "what": "withdrawn", "value": None})
    again, _ = resumed(dump(run, loop, tmp_path))
    np.testing.assert_array_equal(again.rows(), run.rows())
    assert len(again.rows()) == 49


def test_positions_that_an_engine_moved_are_where_they_were(tmp_path: Path) -> None:
    run, loop = begun()
    assert run.reconstruction is not None
    run.reconstruction.pods.remainder[5] += 0.125
    run.reconstruction.pods.address[6, :, 4] += 1
    run.reconstruction.pods.weight[7] = 0.75
    run.reconstruction.pods.moved[8] = 1e-8
    again, _ = resumed(dump(run, loop, tmp_path))
    assert again.reconstruction is not None
    for name in run.reconstruction.pods.REVISABLE:
        wanted = getattr(run.reconstruction.pods, name)
        np.testing.assert_array_equal(getattr(again.reconstruction.pods, name), wanted)


def test_a_position_that_was_corrected_after_the_dump_is_a_revision(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(ptyr.read(dump(*begun(), tmp_path)))
    run = make_run(engines=ENGINES, decide_after=40)
    feed(run, 0, 50)
    new = PLACES[7] + 2.3 * BEAM.pixel_m
    run.scans["s"].buffer.feed("positions", Samples("a", 7, {"y": new[:1], "x": new[1:]}), 1)
    Loop(run, LoopSettings()).resume(checkpoint)
    last = run.schedule.to_list()[-1]
    assert (last["do"], last["what"], last["index"]) == ("revise", "position", 7)
    np.testing.assert_array_equal(last["value"], new)
    np.testing.assert_array_equal(last["before"]["position"], PLACES[7])
    np.testing.assert_allclose(run.positions()[7] * BEAM.pixel_m, new, atol=1e-6 * BEAM.pixel_m)
    assert [e["do"] for e in run.schedule.to_list()].count("revise") == 1


def test_a_frame_that_was_excluded_after_the_dump_is_out(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(ptyr.read(dump(*begun(), tmp_path)))
    run = make_run(engines=ENGINES, decide_after=40)
    feed(run, 0, 50)
    buffer = run.scans["s"].buffer
    slot = buffer.slot_of(7)
    assert slot is not None
    buffer.refuse(np.array([slot]), "off_canvas", PLACES[7:8])
    Loop(run, LoopSettings()).resume(checkpoint)
    assert len(run.rows()) == run.frames == 49
    assert run.schedule.to_list()[-1] | {"before": None} == {
        "do": "revise",
        "scan": "s",
        "index": 7,
        "what": "withdrawn",
        "value": None,
        "before": None,
    }


def test_a_frame_that_is_not_there_again_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = checkpoint_of(ptyr.read(dump(*begun(), tmp_path)))
    run = make_run(engines=ENGINES, decide_after=40)
    feed(run, 0, 49)
    buffer = run.scans["s"].buffer
    has = buffer.has
    monkeypatch.setattr(buffer, "has", lambda indices, timeout_s: has(indices, 0.01))
    with pytest.raises(TimeoutError, match="frame 49 and 0 more did not come"):
        Loop(run, LoopSettings()).resume(checkpoint)
    assert run.reconstruction is None


# ---------------------------------------------------------------------- a session


class Cut(Memory):
    """Gives out messages and then is silent, as a sender whose receiver is about to be killed."""

    def receive(self, timeout_s: float) -> Message | None:
        try:
            return super().receive(timeout_s)
        except TransportClosed:
            time.sleep(timeout_s)
            return None


def _waiting(autosave: Autosave) -> None:
    """Let every dump be written before the next pass, however fast that is."""
    look, autosave.rest = autosave.look, 0.0

    def patient(run: Run, loop: Loop) -> None:
        look(run, loop)
        autosave.wait()

    autosave.look = patient  # type: ignore[method-assign]


@pytest.mark.slow
def test_dumps_come_at_their_interval_and_the_newest_stay(tmp_path: Path) -> None:
    for keep, wanted in ((None, [4, 8, 12, 16]), (2, [12, 16])):
        folder = tmp_path / str(keep)
        engines = {"e": {"name": "DM", "numiter": 19, "numiter_contiguous": 2}}
        made = configuration(folder, engines=engines, autosave={"interval": 4, "keep": keep})
        frames, places = messages()
        plan = make_plan(made, transports={"s/data": Memory("s/data", frames), "s/positions": Memory("s/positions", places)})
        assert plan.autosave is not None
        _waiting(plan.autosave)
        plan = replace(plan, loop=LoopSettings(min_frames_for_recon=BEAM.frames + 1))
        Session(plan, metrics=Metrics()).run()
        found = sorted(file.name for file in (folder / "dumps" / "t").iterdir())
        assert found == [f"t_DM_{k:04d}.ptyr" for k in wanted]
        assert ptyr.kind_of(folder / "dumps" / "t" / "t_DM_0016.ptyr") == "dump"


def test_dumps_take_a_tenth_of_the_time_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, loop = begun()
    clock, written = [0.0], list[int]()
    monkeypatch.setattr("ptystream.autosave.time", SimpleNamespace(monotonic=lambda: clock[0]))

    def dump(run: Run, loop: Loop) -> Callable[[], Path]:
        def write() -> Path:
            clock[0] += 2.0
            written.append(run.iter_info[-1]["iteration"])
            return tmp_path / "a.ptyr"

        return write

    autosave = Autosave(1, None, dump)
    for iteration, now in ((4, 0.0), (5, 2.1), (6, 21.9), (7, 22.1), (8, 24.2), (9, 44.2)):
        clock[0] = now
        run.iter_info[-1] = {**run.iter_info[-1], "iteration": iteration}
        autosave.look(run, loop)
        autosave.wait()
    assert written == [4, 7, 9]  # each took two seconds, so twenty pass


@pytest.mark.slow
@pytest.mark.parametrize("autosave", [{"active": False, "interval": 1}, {"interval": 0}, {"interval": -1}])
def test_no_dumps_where_none_are_wanted(tmp_path: Path, autosave: dict[str, Any]) -> None:
    frames, places = messages()
    made = configuration(tmp_path, autosave=autosave)
    plan = make_plan(made, transports={"s/data": Memory("s/data", frames), "s/positions": Memory("s/positions", places)})
    Session(plan, metrics=Metrics()).run()
    assert not (tmp_path / "dumps").exists()


def test_a_dump_that_cannot_be_written_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "dumps").write_text("a file where a folder would be")
    frames, places = messages()
    made = configuration(tmp_path, autosave={"interval": 1})
    plan = make_plan(made, transports={"s/data": Memory("s/data", frames), "s/positions": Memory("s/positions", places)})
    (path,) = Session(plan, metrics=Metrics()).run()
    assert ptyr.read(path).ledger["used"] == BEAM.frames
    assert [r for r in caplog.records if "no dump could be written" in r.getMessage()]


def test_a_pattern_that_cannot_be_filled_in_is_told_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="known are"):
        make_plan(configuration(tmp_path, autosave={"rfile": "%(nonsense)s.ptyr"}))


@pytest.mark.slow
def test_each_engine_leaves_its_result_under_its_own_name(tmp_path: Path) -> None:
    engines = {"a": {"name": "DM", "numiter": 3}, "b": {"name": "DM", "numiter": 2, "alpha": 0.5}}
    frames, places = messages()
    name = "%(run)s_%(engine)s_%(iteration)d_%(iterations)04d_%(numiter)d.ptyr"
    made = configuration(tmp_path, engines=engines, rfile=name, autosave={"active": False}, rformat="used_params")
    plan = make_plan(made, transports={"s/data": Memory("s/data", frames), "s/positions": Memory("s/positions", places)})
    plan = replace(plan, loop=LoopSettings(min_frames_for_recon=BEAM.frames + 1))
    paths = Session(plan, metrics=Metrics()).run()
    assert [path.name for path in paths] == ["t_DM_3_0003_3.ptyr", "t_DM_2_0005_2.ptyr"]
    first, second = (ptyr.read(path) for path in paths)
    assert len(first.errors) == 3 and len(second.errors) == 5
    assert not np.array_equal(first.object["SsG00"].data, second.object["SsG00"].data)
    with h5py.File(paths[0]) as file:
        used = file["content/pars/engines/b"]
        assert (used["alpha"][()], used["probe_inertia"][()]) == (0.5, 1e-9)
        assert file["content/pars/scans/s/data/rebin_mode"][()] == b"sum"
    assert second.used["engines"]["a"]["alpha"] == 1.0


def test_the_dump_of_the_session_is_found_and_no_other(tmp_path: Path) -> None:
    run, loop = begun()
    path = dump(run, loop, tmp_path)
    pattern = "dumps/%(run)s/%(run)s_%(engine)s_%(iterations)04d.ptyr"
    assert dumps(tmp_path, pattern, "test") == [path]
    assert dumps(tmp_path, pattern, "tes") == []
    assert newest(tmp_path, pattern, "test", "another") is None
    held = newest(tmp_path, pattern, "test", "")
    assert held is not None and held[0] == path
    (path.parent / "test_DM_9999.ptyr").write_bytes(path.read_bytes()[:3000])
    held = newest(tmp_path, pattern, "test", "")
    assert held is not None and held[0] == path


def _interrupted(made: Configuration, count: int) -> Path:
    """A session that took `count` frames, wrote dumps, and was cut off without a word."""
    frames, places = messages()
    recorder, interrupted = recorder_of(made)
    assert recorder is not None and interrupted is None
    inputs = {"s/data": Cut("s/data", frames[: count + 1]), "s/positions": Cut("s/positions", places[: count + 1])}
    plan = make_plan(made, recorder=recorder, transports=inputs)
    assert plan.autosave is not None
    _waiting(plan.autosave)
    look = plan.autosave.look

    class Killed(BaseException):
        pass

    def killed(run: Run) -> None:
        raise Killed  # a process that is dead saves nothing

    def until(run: Run, loop: Loop) -> None:
        look(run, loop)
        if run.iterations >= 9:
            raise Killed

    plan.autosave.look = until  # type: ignore[method-assign, union-attr]
    with pytest.raises(Killed):
        Session(replace(plan, save=killed), metrics=Metrics(), tap=recorder).run()
    recorder.flush()
    recorder.close(finished=False)
    return recorder.path


@pytest.mark.slow
@pytest.mark.parametrize("changed", [False, True])
def test_an_interrupted_session_goes_on_from_dump_and_recording(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, changed: bool
) -> None:
    made = configuration(tmp_path, autosave={"interval": 3}, recording={"file": "t.ptyrec"})
    _interrupted(made, 60)
    if changed:
        made = load({**made.given, "scans": {"s": {**made.given["scans"]["s"], "coherence": {"num_probe_modes": 2}}}})
    recorder, interrupted = recorder_of(made)
    assert recorder is not None and interrupted is not None
    frames, places = messages()
    inputs = {"s/data": Memory("s/data", frames[61:]), "s/positions": Memory("s/positions", places[61:])}
    plan = make_plan(made, recorder=recorder, transports=inputs, interrupted=True)
    session = Session(plan, metrics=Metrics(), tap=recorder, recorded=Recording(interrupted))
    (path,) = session.run()
    recorder.close(finished=True)
    result = ptyr.read(path)
    assert result.ledger["used"] == result.ledger["received"] == BEAM.frames
    does = [entry["do"] for entry in result.schedule]
    if changed:
        assert "resume" not in does
        assert "is not what it was" in caplog.text
        return
    assert does.count("resume") == 1
    assert len(result.errors) == result.iter_info[-1]["iterations"] >= 9 + 12
    resumed_at = sum(e["iterations"] * e.get("times", 1) for e in result.schedule[: does.index("resume")] if e["do"] == "iterate")
    assert resumed_at == 9
    assert result.misfit[-1, 0] < 0.6 * result.misfit[0, 0]


def test_the_next_run_of_a_name_removes_what_a_killed_one_was_writing(tmp_path: Path) -> None:
    given = configuration(
        tmp_path, rfile="r/%(run)s_%(iterations)04d.ptyr", autosave={"rfile": "d/%(run)s/%(run)s_%(engine)s.ptyr"}
    )
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    gone = [f"d/t/.t_DM.ptyr.{dead.pid}.part", f"r/.t_0010.ptyr.{dead.pid}.part", f"r/.t_0002_0010.ptyr.{dead.pid}.part"]
    gone += [f".benchmark.json.{dead.pid}.part"]
    kept = [
        f"d/t/.t_DM.ptyr.{os.getpid()}.part",
        f"r/.other_0010.ptyr.{dead.pid}.part",
        "r/.t_0010.ptyr.mine.part",
        "r/t_0010.ptyr",
    ]
    kept += [f"r/t_0010.ptyr.{dead.pid}.part"]
    for name in gone + kept:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"half")
    make_plan(given)
    assert {str(f.relative_to(tmp_path)) for f in tmp_path.rglob("*") if f.is_file()} == set(kept)


def test_frames_that_are_turned_behind_a_dump_get_all_iterations_of_all_engines(tmp_path: Path) -> None:
    """The dump was made shortly before the end of the second engine; what begins anew begins with the first."""
    engines = [{"numiter": 6}, {"numiter": 4}]
    run = make_run(engines=engines, decide_after=40)
    loop = Loop(run, LoopSettings(min_frames_for_recon=40))
    feed(run, 0, BEAM.frames)
    end(run)
    while run.iterations < 9:
        loop.step()
    checkpoint = checkpoint_of(ptyr.read(dump(run, loop, tmp_path)))
    assert checkpoint.engine == "e1"
    again = make_run(engines=engines, decide_after=40, decisions=checkpoint.buffer_decisions["s"], orientation=4)
    after = Loop(again, LoopSettings(min_frames_for_recon=40))
    feed(again, 0, BEAM.frames)
    end(again)
    turned = {"do": "recut", "scan": "s", "parameters": {"orientation": 4}, "before": {"orientation": None}, "anew": True}
    after.resume(checkpoint, [turned | {"who": "anna", "time_ns": 1}])
    while after.step() is not Step.DONE:
        assert again.iterations < 30
    assert [info["iterations"] for info in again.iter_info[9:]] == list(range(10, 20))
    assert [entry["label"] for entry in again.schedule if entry["do"] == "engine"] == ["e0", "e1", "e1"]
