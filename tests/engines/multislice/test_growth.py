"""Frames that come: what the optimiser knew of the curvature is kept as that of all frames, or reset, and the log says which."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest
from problems import BEAM, end, feed, make_run
from test_pypty import SETUP, apart, run

from ptystream.checkpoint import checkpoint_of
from ptystream.engines.multislice import growth
from ptystream.engines.multislice.objective import Objective
from ptystream.engines.multislice.pypty import PyPty
from ptystream.engines.multislice.quantities import combined
from ptystream.loop import Loop, LoopSettings, Step
from ptystream.run import Run
from ptystream.schedule import Schedule
from ptystream.storage import ptyr


def begun(frames: int, steps: int, **parameters: Any) -> tuple[Run, Loop]:
    """A run that has made so many steps with so many frames."""
    made = make_run(engine=PyPty, engines=[SETUP | {"epoch_max": 30, "default_dtype": "double"} | parameters], decide_after=32)
    loop = Loop(made, LoopSettings(min_frames_for_recon=32))
    feed(made, 0, frames)
    for _ in range(steps):
        assert loop.step() is Step.WORKED
    return made, loop


def notes(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [m.group(0) for r in caplog.records if (m := re.search("history (kept|reset).*", r.getMessage()))]


@pytest.mark.parametrize("more", [{}, {"phase_only_obj": True, "update_probe_pos": 1, "update_beam_current": 1}])
def test_pairs_become_those_of_all_frames(more: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every gradient on the way had been that of all frames."""
    made, loop = begun(80, 4, **more)
    engine = made.engine
    seen: dict[str, Any] = {}
    real = growth._renew

    def watched(descent: Any, new: Any, at: Any, shares: tuple[float, float]) -> None:
        variables = growth.Variables.of(engine.on, at, new.setting.kinds)
        whole = growth.replace(new, batches=engine._batches)
        here, gradients = variables.taken({n: at[n] for n in new.setting.moving}), []
        pairs = [descent.history.fetched(pair) for pair in descent.history.pairs]
        for s in (None, *(s for s, _ in reversed(pairs))):
            here = here if s is None else combined(here, -1, s)
            point = whole(dict(at) | variables.given(here))
            gradients.append(variables.pulled(point.gradient, point.at))
        seen["wanted"] = [combined(a, -1, b) for a, b in itertools.pairwise(gradients)][::-1]
        real(descent, new, at, shares)
        seen["found"] = [pair.y for pair in descent.history.pairs]

    monkeypatch.setattr(growth, "_renew", watched)
    feed(made, 80, 92)
    loop.step()
    assert len(seen["found"]) == len(seen["wanted"]) > 2
    for y, wanted in zip(seen["found"], seen["wanted"], strict=True):
        for name in wanted:
            if name == "object":  # whole arrays are cleaned, and the canvas that they lie on has grown
                assert abs(y[name] - wanted[name]).max() < 0.05 * abs(wanted[name]).max()
            else:
                np.testing.assert_allclose(y[name], wanted[name], rtol=1e-6, atol=1e-6 * abs(wanted[name]).max(), err_msg=name)


def passes(monkeypatch: pytest.MonkeyPatch, share: float, **parameters: Any) -> tuple[list[float], list[float]]:
    """Passes over all frames until then, and misfits, of a scan that grows by three frames an epoch."""
    count, curve, done = 0, [], []
    real = Objective.evaluate

    def counting(self: Objective, at: Any, batches: Any, *given: Any, **more: Any) -> Any:
        nonlocal count
        count += sum(len(batch.rows) for batch in batches)
        return real(self, at, batches, *given, **more)

    monkeypatch.setattr(growth, "LARGEST", share)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Objective, "evaluate", counting)
        made, loop = begun(32, 0, default_dtype="single", **parameters)
        for stop in [*range(35, BEAM.frames, 3), BEAM.frames, *[0] * 500]:
            state = loop.step()
            curve.append(float(made.misfit[-1][-1, 1]))
            done.append(count / BEAM.frames)
            if state is Step.DONE:
                return done, curve
            if stop:
                feed(made, made.frames, stop)
            if stop == BEAM.frames:
                end(made)
    pytest.fail("it does not end")


def test_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    done: dict[float, float] = {}
    for share in (0.0, growth.LARGEST):
        at, curve = passes(monkeypatch, share, epoch_max=90)
        done[share] = at[next(k for k, misfit in enumerate(curve) if misfit < 1.2 and k > 20)]
        assert curve[-1] < 1.05 * 0.91
    kept, begun_anew = done[growth.LARGEST], done[0.0]
    assert kept < 0.85 * begun_anew


def test_the_log_says_which(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        made, loop = begun(60, 4)
        for stop in (64, 92):
            feed(made, made.frames, stop)
            loop.step()
    assert notes(caplog) == [
        "history kept: 4 of 4 pairs, 4 frames have come to 60",
        "history reset: 28 frames have come to 64",
    ]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"sequence": list(range(0, 92, 2))}, "sequence"),
        ({"loss_weight": "mean", "phase_norm_weight": 1e-4}, "terms"),
    ],
)
def test_pairs_that_say_nothing_of_the_new_loss_go(given: dict[str, Any], why: str, caplog: pytest.LogCaptureFixture) -> None:
    made, loop = begun(80, 3, **given)
    with caplog.at_level("INFO"):
        feed(made, 80, 84)
        loop.step()
    (note,) = notes(caplog)
    assert note.startswith("history reset") and why in note


@pytest.mark.parametrize("weight", ["mean", "mean_full", 2.0])
def test_weights_by_the_number_of_frames_are_followed(weight: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "LARGEST", 1.0)
    test_pairs_become_those_of_all_frames({"loss_weight": weight}, monkeypatch)


def test_the_history_is_in_a_dump_and_goes_on(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Frames that come right after it find the pairs, and the schedule repeats to the same bits."""
    import test_dumps

    first, loop = begun(80, 4)
    pairs = len(first.engine.descent.history.pairs)
    checkpoint = checkpoint_of(ptyr.read(test_dumps.dump(first, loop, tmp_path)))
    again, after = made_for(checkpoint.buffer_decisions["s"])
    feed(again, 0, 80)
    after.resume(checkpoint)
    assert len(again.engine.descent.history.pairs) == pairs > 2
    with caplog.at_level("INFO"):
        feed(again, 80, 86)
        after.step()
    assert notes(caplog) == [f"history kept: {pairs} of {pairs} pairs, 6 frames have come to 80"]
    feed(again, 86, BEAM.frames)
    end(again)
    for _ in range(500):
        if after.step() is Step.DONE:
            break
    repeated, _ = made_for(again.decisions["s"])
    feed(repeated, 0, BEAM.frames)
    end(repeated)
    for entry in Schedule(again.schedule.to_list()).to_repeat():
        repeated.apply(entry)
    for one, other in zip(test_dumps.data(again), test_dumps.data(repeated), strict=True):
        np.testing.assert_array_equal(one, other)


def made_for(decisions: Any) -> tuple[Run, Loop]:
    """A run like those of `begun` that has done nothing yet."""
    parameters = SETUP | {"epoch_max": 30, "default_dtype": "double"}
    made = make_run(engine=PyPty, engines=[parameters], decide_after=32, decisions=decisions)
    return made, Loop(made, LoopSettings(min_frames_for_recon=32))


def test_a_state_of_another_loss_brings_no_pairs(caplog: pytest.LogCaptureFixture) -> None:
    made, _ = begun(92, 4)
    engine = made.engine
    assert len(engine.descent.history.pairs) > 2
    state = dict(engine.state())
    engine.finish()
    for factor, kept in ((1, True), (2, False)):
        caplog.clear()
        other = PyPty(engine.p.model_copy(update={"loss_weight": factor}))
        other.start(made.reconstruction.copy(("probe", "object")), made.stores, made.context, state)
        told = other.iterate(1).notes
        assert any("the loss is" in note for note in told) is not kept
        assert (len(other.descent.history.pairs) > 2) is kept


def test_a_canvas_that_grows_leaves_pairs_their_place() -> None:
    made, _ = begun(92, 4)
    engine = made.engine
    history = engine.descent.history
    before = [{name: array.copy() for name, array in pair.s.items()} for pair in history.pairs]
    stack = next(iter(made.reconstruction.objects.values()))
    (top, left), (height, width) = stack.offset, stack.shape
    engine._write()
    stack.grow((top - 3, left - 5), (top + height, left + width + 2))
    engine._follow_canvas()
    for pair, held in zip(history.pairs, before, strict=True):
        wide = pair.s["object"]
        y, x = top - stack.offset[0], left - stack.offset[1]
        np.testing.assert_array_equal(wide[:, :, y : y + height, x : x + width], held["object"])
        assert np.count_nonzero(wide) == np.count_nonzero(held["object"])
    assert engine.iterate(1).notes == () or not any("reset" in note for note in engine.iterate(1).notes)


def test_it_ends_at_what_complete_data_give() -> None:
    whole = run(epoch_max=60)
    growing = run((40, 44, 48, 52, 56, 60, 64, 68, 72, 76, 80, 84, 88, 92), epoch_max=60)
    assert apart(whole, growing) < 0.04
