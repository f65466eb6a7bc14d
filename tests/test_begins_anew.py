"""A run that begins anew: with frames of which none is left, with some for which there is no room, and with its dumps."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from problems import BEAM, PLACES, end, feed, make_run

from ptystream.autosave import Autosave
from ptystream.loop import Loop, LoopSettings, Step
from ptystream.run import Run
from ptystream.schedule import Schedule

ANEW = {"do": "restart", "anew": True, "who": "anna", "time_ns": 1}
TURNED = {
    "do": "recut",
    "scan": "s",
    "parameters": {"offset": [0.0, 0.0]},
    "before": {"offset": [0.0, 0.0]},
    "anew": True,
    "who": "",
    "time_ns": 1,
}


def begun(engines: int = 1) -> tuple[Run, Loop]:
    run = make_run(engines=[{"numiter": 4}] * engines)
    loop = Loop(run, LoopSettings(min_frames_for_recon=20))
    feed(run, 0, 50)
    for _ in range(2):
        assert loop.step() is Step.WORKED
    return run, loop


def withdraw(run: Run, indices: range) -> None:
    for index in indices:
        run.apply({"do": "revise", "scan": "s", "index": index, "what": "withdrawn", "value": None})


def to_the_end(loop: Loop) -> None:
    for _ in range(100):
        if loop.step() is Step.DONE:
            return
    raise AssertionError("the loop does not end")


def repeats(run: Run) -> bool:
    again = make_run(engines=[{"numiter": 4}] * len(run.engines))
    feed(again, 0, BEAM.frames)
    end(again)
    told = Schedule(json.loads(json.dumps(run.schedule.to_list())))
    for entry in told.to_repeat():
        again.apply(entry)
    assert run.reconstruction is not None and again.reconstruction is not None
    pairs = [(getattr(run.reconstruction, part), getattr(again.reconstruction, part)) for part in ("probes", "objects")]
    return all(np.array_equal(one[name].data, other[name].data) for one, other in pairs for name in one)


@pytest.mark.parametrize("entry", [ANEW, TURNED])
@pytest.mark.parametrize("engines", [1, 2])
def test_without_a_frame_it_begins_with_those_that_come(entry: Any, engines: int) -> None:
    run, loop = begun(engines)
    withdraw(run, range(50))
    loop.renew(entry)
    assert loop.step() is Step.IDLE and run.reconstruction is None and run.state == "waiting"
    assert run.snapshot({}).object == {} and run.frames == 0
    feed(run, 50, BEAM.frames)
    assert loop.step() is Step.WORKED and run.frames == 42
    end(run)
    to_the_end(loop)
    assert run.state == "finished" and run.rows_used == 42
    assert run.iter_info[-1]["iteration"] == 4 + (engines == 1)
    assert repeats(run)


def test_without_a_frame_and_none_to_come_it_fails_with_that_reason(caplog: pytest.LogCaptureFixture) -> None:
    run, loop = begun()
    end(run, 50)
    loop.step()
    withdraw(run, range(50))
    loop.renew(ANEW)
    assert loop.step() is Step.DONE and run.state == "failed"
    assert "the scan ended without a usable frame" in caplog.text


def test_frames_for_which_there_is_no_room_any_more_are_counted_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole block of them, and a part of one; they come back where there is room."""
    run, loop = begun()
    feed(run, 50, 70)
    feed(run, 70, 90)
    assert loop.step() is Step.WORKED and [len(block) for block in run.scans["s"].taken] == [50, 40]
    feed(run, 90, 92)
    assert loop.step() is Step.WORKED and run.frames == 92
    place, out = type(run.scans["s"].model).place, {*range(70, 92)}

    def refusing(self: Any, reconstruction: Any, block: Any) -> Any:
        inside = ~np.isin(block.indices, sorted(out))
        kept = block if inside.all() else select(block, inside)
        rows, _ = place(self, reconstruction, kept)
        return rows, block.slots[~inside]

    from ptystream.scan.block import select

    monkeypatch.setattr(type(run.scans["s"].model), "place", refusing)
    loop.renew(ANEW)
    scan = run.scans["s"]
    assert [len(block) for block in scan.taken] == [50, 20] and scan.rows == [0, 50] and scan.frames == run.frames == 70
    assert len(scan.times_ns) == 2 and scan.at(69)[0].indices[19] == 69
    assert run.ledger()["off_canvas"] == 22
    assert loop.step() is Step.WORKED and np.allclose(run.scans["s"].known()["position"], PLACES[:70])
    out.clear()
    loop.renew(ANEW)
    assert loop.step() is Step.WORKED and run.frames == 92 and not run.ledger().get("off_canvas")
    end(run)
    to_the_end(loop)
    assert run.state == "finished" and run.ledger()["used"] == 92


@pytest.mark.parametrize("at", [15, 34])
def test_dumps_are_made_again_at_their_intervals(at: int) -> None:
    """From its new beginning, and not only where it has come as far as before."""
    made: list[int] = []
    run = SimpleNamespace(
        name="t", engine=object(), engine_entry=SimpleNamespace(label="e"), averaging=False, iter_info=[{"iteration": 0}]
    )

    def dump(run: Any, loop: Any) -> Any:
        made.append(run.iter_info[-1]["iteration"])
        return lambda: Path("none")

    autosave = Autosave(10, None, dump)
    autosave.rest = 0.0
    for iteration in [*range(1, at + 1), *range(1, 26)]:
        run.iter_info = [{"iteration": iteration}]
        autosave.look(run, None)  # type: ignore[arg-type]
        autosave.wait()
    assert made == [*range(10, at + 1, 10), 10, 20]
