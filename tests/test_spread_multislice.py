"""Everything refined together on several ranks: what one rank gives, whatever comes, moves, goes and is asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from problems import BEAM, PATTERNS, PLACES, end, eventful, feed, make_run, same_storages
from teams import team

from ptystream.engines.multislice.pypty import PyPty
from ptystream.events import Frames, Payload, Samples
from ptystream.loop import Loop, LoopSettings, Step
from ptystream.run import Run
from ptystream.spread import spread

PIXEL_A = BEAM.pixel_m * 1e10
RNG = np.random.default_rng(3)
COMMON: dict[str, Any] = {
    "pixel_size_x_A": PIXEL_A,
    "pixel_size_y_A": PIXEL_A,
    "damping_cutoff_multislice": 2.0,
    "numiter": 4,
    "print_flag": 2,
}
SLICES = {"num_slices": 2, "slice_distances": [2e6]}
TILTED = {**SLICES, "tilts": RNG.normal(size=(92, 6)) * 1e-6, "tilt_mode": 4, "update_tilts": 1}
EVERYTHING = {
    **TILTED,
    "update_probe_pos": 1,
    "update_beam_current": 1,
    "static_background": 30.0,
    "update_static_background": 1,
    "aberrations_array": [[1e7], [-1e7]],
    "aberration_marker": np.arange(92) % 2,
    "update_aberrations_array": 1,
    "window": [0.2, 0.5],
    "window_weight": 1e3,
}
CASES: dict[str, dict[str, Any]] = {
    "everything": EVERYTHING,
    "object and probe": {"hist_length": 10},
    "squares, by the mean, begun from the data": {
        "algorithm": "lsq",
        "loss_weight": "mean",
        "estimate_aperture_based_on_binary": 1.5,
        "tilts": TILTED["tilts"],
        "tilt_mode": 1,
    },
    "some of them": {"sequence": list(range(0, 92, 3)), "update_probe_pos": 1},
    "two probes": {"probe_marker": np.arange(92) % 2, "algorithm": "ml", "phase_only_obj": True},
    "one tilt for all": {**SLICES, "tilts": [[0, 0, 1e-8, 0, 0, 0]], "update_tilts": 1},
    "an object that follows": {"update_probe_pos": 1, "dynamically_resize_yx_object": 1e-3},
    "small batches": {"compute_batch": 3, "backend": "cpu", "load_one_by_one": False},
    "a scan's points": {"scan_size": [4, 23], "fast_axis_reg_weight_positions": 100.0, "update_probe_pos": 1},
}


def prepared(settings: dict[str, Any], ranks: Any, threads: int = 1, engine: Any = PyPty) -> Run:
    run = make_run(engines=[COMMON | settings], engine=engine, threads=threads)
    run.engines = [replace(entry, make=spread(ranks, entry.name, entry.make)) for entry in run.engines]
    return run


def through(run: Run) -> Run:
    """All that may happen, with a pass over those frames that were there first."""
    return eventful(run, range(41))


def same(one: Run, other: Run, tolerance: float = 1e-8) -> None:
    same_storages(one, other, tolerance)
    for mine, theirs in zip(one.history(), other.history(), strict=True):
        np.testing.assert_allclose(theirs, mine, rtol=tolerance, atol=tolerance)
    table, their_table = (run.reconstruction.pods for run in (one, other))  # type: ignore[union-attr]
    np.testing.assert_array_equal(their_table.address, table.address)
    np.testing.assert_allclose(their_table.moved, table.moved, rtol=0, atol=1e-6 * BEAM.pixel_m)
    assert [info["frames"] for info in one.iter_info] == [info["frames"] for info in other.iter_info]
    told, their_told = ([each for info in run.iter_info for each in info["pypty"]] for run in (one, other))
    assert [each["trials"] for each in told] == [each["trials"] for each in their_told]
    np.testing.assert_allclose([e["sse"] for e in their_told], [e["sse"] for e in told], rtol=tolerance)


@pytest.mark.parametrize("size", [2, pytest.param(5, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", [pytest.param(c, marks=[] if c == "everything" else [pytest.mark.slow]) for c in CASES])
def test_several_ranks_give_what_one_gives(case: str, size: int) -> None:
    alone = through(prepared(CASES[case], None))
    with team(size, {"PyPty": PyPty}) as ranks:
        shared = through(prepared(CASES[case], ranks, threads=2))
    same(alone, shared)


def test_the_history_is_kept_on_all_ranks_where_a_few_frames_have_come(caplog: pytest.LogCaptureFixture) -> None:
    """Of those that came not every rank has one."""
    runs = []
    with team(3, {"PyPty": PyPty}) as ranks, caplog.at_level("INFO"):
        for given in (None, ranks):
            run = prepared({"update_probe_pos": 1, "update_beam_current": 1, "numiter": 6}, given)
            loop = Loop(run, LoopSettings(min_frames_for_recon=20, ranks=1))
            feed(run, 0, 90)
            for _ in range(4):
                loop.step()
            feed(run, 90, BEAM.frames)
            end(run)
            while loop.step() is not Step.DONE:
                pass
            runs.append(run)
    assert caplog.text.count("history kept: 4 of 4 pairs, 2 frames have come to 90") == 2
    same(*runs)


@pytest.mark.parametrize("away_m", [0.0, 4e-6])
def test_a_canvas_that_is_begun_anew_is_followed_on_all_ranks(away_m: float) -> None:
    """All frames are withdrawn, and come again where they were, or elsewhere."""

    def run_of(ranks: Any) -> Run:
        run = prepared({"num_slices": 2, "slice_distances": [2e6], "numiter": 8}, ranks)
        loop, buffer = Loop(run, LoopSettings(min_frames_for_recon=20)), run.scans["s"].buffer
        feed(run, 0, 40)
        loop.step()
        loop.step()
        for index in range(40):
            run.apply({"do": "revise", "scan": "s", "what": "withdrawn", "index": index, "value": None})
        payloads = tuple(Payload(p.tobytes(), "raw", np.dtype("<u2"), p.shape) for p in PATTERNS)
        places = PLACES + np.array((away_m, -away_m))
        buffer.feed("data", Frames("a", np.arange(40, 132), payloads), 2000)
        buffer.feed("positions", Samples("a", 40, {"y": places[:, 0], "x": places[:, 1]}), 2000)
        end(run, 132)
        while loop.step() is not Step.DONE:
            pass
        return run

    alone = run_of(None)
    (stack,) = alone.reconstruction.objects.values()
    assert stack.begun == 1 and np.abs(stack.data - 1).max() > 0.1
    with team(2, {"PyPty": PyPty}) as ranks:
        same(alone, run_of(ranks))


def whole(settings: dict[str, Any], ranks: Any, engine: Any = PyPty, steps: int = 60) -> Run:
    """All frames are there from the beginning."""
    run = prepared(settings, ranks, engine=engine)
    loop = Loop(run, LoopSettings(min_frames_for_recon=20))
    feed(run, 0, BEAM.frames)
    end(run)
    for _ in range(steps):
        if loop.step() is Step.DONE:
            break
    return run


def test_what_is_refined_and_modelled_is_that_of_all_frames() -> None:
    settings = {"update_probe_pos": 1, "update_beam_current": 1, "numiter": 6}
    alone = whole(settings, None, steps=2)
    assert alone.engine is not None
    refined = alone.engine.refined()
    patterns = {number: each for numbers, some in alone.engine.simulated() for number, each in zip(numbers, some, strict=True)}
    with team(3, {"PyPty": PyPty}) as ranks:
        shared = whole(settings, ranks, steps=2)
        theirs = shared.engine.refined()
        rest = shared.engine.simulated()
        next(rest)
        rest.close()  # the others go through it to its end all the same
        seen = list(shared.engine.simulated())
    assert list(theirs) == list(refined) and np.abs(theirs["positions"]).max() > 1e-3
    for name, held in refined.items():
        np.testing.assert_allclose(theirs[name], held, atol=1e-10)
    assert sorted(number for numbers, _ in seen for number in numbers) == list(range(BEAM.frames)) == sorted(patterns)
    for numbers, some in seen:
        np.testing.assert_allclose(some, [patterns[number] for number in numbers], rtol=1e-8, atol=1e-8)


def test_a_checkpoint_goes_on_on_any_number_of_ranks() -> None:
    def resumed(ranks: Any) -> Run:
        run = whole({"update_probe_pos": 1, "update_beam_current": 1, "numiter": 8}, ranks, steps=4)
        pairs = run.engine.state()["pairs"].values()
        assert len(pairs) > 1
        assert all(list(pair["s"]) == sorted(pair["s"]) for pair in pairs)
        run.apply({"do": "resume", "label": "e0"})
        run.apply({"do": "iterate", "iterations": 3, "rows": None})
        run.apply({"do": "finish"})
        return run

    with team(2, {"PyPty": PyPty}) as ranks:
        same(resumed(None), resumed(ranks))


def test_ranks_that_round_differently_go_on_together() -> None:
    """Of processors of two kinds each finds its own slopes and terms: as many steps are tried on all, and the same ones kept."""
    pairs: dict[int, list[int]] = {0: [], 1: []}
    scales: dict[int, list[dict[str, float]]] = {0: [], 1: []}
    random = np.random.default_rng(1)  # of rank 1 alone: drawn in one order

    class Rounding(PyPty):
        def _clean(self, name: str, held: Any) -> Any:
            cleaned = super()._clean(name, held)
            return cleaned * (1 - random.uniform(0, 0.9)) if self.ranks.rank else cleaned

        def _epoch(self, visited: Any) -> Any:
            found = super()._epoch(visited)
            pairs[self.ranks.rank].append(len(self.descent.history.pairs))
            scales[self.ranks.rank].append(dict(self.descent.history.scale))
            return found

    with team(2, {"Rounding": Rounding}) as ranks:
        run = whole({"wolfe_c2_constant": 0.11, "update_probe_pos": 1, "numiter": 8}, ranks, Rounding)
    assert run.state == "finished" and max(each["trials"] for info in run.iter_info for each in info["pypty"]) > 1
    assert pairs[0] == pairs[1] and len(pairs[0]) == 8
    assert scales[0] == scales[1] and any(scales[0])


def test_a_function_of_the_epoch_is_refused_before_anybody_is_told() -> None:
    with team(2, {"PyPty": PyPty}) as ranks, pytest.raises(ValueError, match=r"PyPty.hist_length: a function .* expression"):
        whole({"hist_length": lambda epoch: 3}, ranks)
