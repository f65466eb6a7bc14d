"""Engines on several ranks give what one rank gives, whatever comes, moves, goes and is asked for."""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import test_bragg_run as rocking
from problems import BEAM, PATTERNS, PLACES, end, eventful, feed, make_run, same_storages
from teams import Board, Thread, team

from ptystream.engine import Progress
from ptystream.engines.bragg import DMBragg3d
from ptystream.engines.dm import DM
from ptystream.engines.epie import EPIE
from ptystream.engines.ml import ML
from ptystream.engines.opr import DMOPR, MLOPR
from ptystream.engines.overlap import Overlap
from ptystream.engines.raar import RAAR
from ptystream.engines.sdr import SDR
from ptystream.events import Frames, Payload, Samples, ScanStarted
from ptystream.loop import Loop, LoopSettings, Step
from ptystream.model.opr import OPR
from ptystream.model.parameters import CoherenceParameters, FullParameters
from ptystream.model.scan_model import Full
from ptystream.reconstruction import OBJECT, PROBE
from ptystream.run import Run
from ptystream.spread import GO_HOME, dismiss, serve, spread

REFINING = {"start": 1, "interval": 2, "amplitude": 2e-8, "max_shift": 4e-8}
COMMON = {"numiter": 4, "record_local_error": True, "probe_update_start": 1}


class ColouredParameters(FullParameters):
    coherence: CoherenceParameters = CoherenceParameters(
        energies=(1.0, 1.05, 1.1), object_dispersion="linear", probe_dispersion="linear"
    )


class Coloured(Full):
    """Three energies in which object and probe are linear."""

    Parameters = ColouredParameters


def prepared(
    engine: Any, settings: dict[str, Any], ranks: Any, *, threads: int = 1, model: Any = Full, labels: tuple[str, ...] = ("s",)
) -> Run:
    run = make_run(engines=[{**COMMON, **settings}], engine=engine, model=model, labels=labels)
    run.context = replace(run.context, precision="double", threads=threads)
    run.engines = [replace(entry, make=spread(ranks, entry.name, entry.make)) for entry in run.engines]
    return run


def through(run: Run) -> Run:
    """All that may happen; with more pods than one, tiles are small, and those that hold the rows of a pass hang on the ranks."""
    return eventful(run, (1, 2, 5, 8, 13, 21, 34) if run.scans["s"].model.pods == 1 else ())


def same(one: Run, other: Run, tolerance: float) -> None:
    same_storages(one, other, tolerance)
    for mine, theirs in zip(one.history(), other.history(), strict=True):
        np.testing.assert_allclose(theirs[:, :2], mine[:, :2], rtol=1e3 * tolerance, atol=tolerance)
    np.testing.assert_allclose(theirs[:, 2], mine[:, 2], rtol=0.3)  # what noise would give is asked of some frames only
    assert one.local is not None and other.local is not None
    np.testing.assert_allclose(other.local, one.local, rtol=1e3 * tolerance, atol=tolerance)
    table, their_table = (run.reconstruction.pods for run in (one, other))  # type: ignore[union-attr]
    np.testing.assert_array_equal(their_table.address, table.address)
    np.testing.assert_allclose(their_table.moved, table.moved, rtol=0, atol=1e-18)
    np.testing.assert_allclose(their_table.remainder, table.remainder, rtol=0, atol=1e-6)
    assert [info["frames"] for info in one.iter_info] == [info["frames"] for info in other.iter_info]


CASES = {
    "DM": (DM, {"subpix": "linear", "overlap_max_iterations": 3}, Full),
    "DM, fourier, refined": (DM, {"subpix": "fourier", "position_refinement": {**REFINING, "method": "GridSearch"}}, Full),
    "DM, centred": (DM, {"probe_center_tol": 0.5, "obj_smooth_std": 2.0}, Full),
    "RAAR, refined": (RAAR, {"subpix": None, "position_refinement": REFINING}, Full),
    "ML": (ML, {"ML_type": "gaussian", "reg_del2": True, "scale_precond": True}, Full),
    "ML, poisson, refined": (ML, {"ML_type": "poisson", "position_refinement": REFINING}, Full),
    "ML, floating": (ML, {"ML_type": "euclid", "floating_intensities": True, "smooth_gradient": 2.0}, Full),
    "DMOPR": (DMOPR, {"subspace_dim": 2}, OPR),
    "MLOPR": (MLOPR, {"subspace_dim": 2}, OPR),
    "DM, energies": (DM, {"subpix": None}, Coloured),
    "ML, energies": (ML, {"subpix": None}, Coloured),
}


@pytest.mark.parametrize("size", [2, pytest.param(5, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", [pytest.param(c, marks=[] if c in ("DM", "ML") else [pytest.mark.slow]) for c in CASES])
def test_several_ranks_give_what_one_gives(case: str, size: int) -> None:
    engine, settings, model = CASES[case]
    alone = through(prepared(engine, settings, None, model=model))
    with team(size, {engine.__name__: engine}) as ranks:
        shared = through(prepared(engine, settings, ranks, threads=2, model=model))
    same(alone, shared, 1e-6 if "ML" in case else 1e-9)


def test_a_scan_that_begins_later_is_spread_too() -> None:
    def run_of(ranks: Any) -> Run:
        run = prepared(DM, {"numiter": 3}, ranks, labels=("s", "t"))
        loop = Loop(run, LoopSettings(min_frames_for_recon=20))
        feed(run, 0, 50, label="s")
        assert loop.step() is Step.WORKED
        feed(run, 0, BEAM.frames, label="t")
        assert loop.step() is Step.WORKED
        feed(run, 50, BEAM.frames, label="s")
        end(run, label="s")
        end(run, label="t")
        while loop.step() is not Step.DONE:
            pass
        return run

    with team(3, {"DM": DM}) as ranks:
        same(run_of(None), run_of(ranks), 1e-9)


def test_rocking_curves_are_spread_by_the_curve() -> None:
    def run_of(ranks: Any) -> Run:
        run = rocking.make_run(numiter=4, probe_update_start=1, record_local_error=True)
        run.context = replace(run.context, precision="double")
        run.engines = [replace(entry, make=spread(ranks, entry.name, entry.make)) for entry in run.engines]
        run.scans["s"].buffer.feed("data", ScanStarted("a"), 0)
        loop = Loop(run, LoopSettings(min_frames_for_recon=8))
        rocking.feed(run, np.arange(300))
        assert loop.step() is Step.WORKED
        rocking.feed(run, np.arange(300, len(rocking.FRAMES)))
        rocking.end(run)
        rocking.to_the_end(loop)
        return run

    with team(2, {"DM_3dBragg": DMBragg3d}) as ranks:
        same(run_of(None), run_of(ranks), 1e-9)


SEQUENTIAL = {
    "EPIE": (EPIE, {}),
    "EPIE, batches, refined": (EPIE, {"batch": 4, "subpix": "linear", "position_refinement": REFINING}),
    "SDR": (SDR, {"sigma": 0.7, "tau": 0.7}),
    "EPIE, energies": (EPIE, {"subpix": None}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", SEQUENTIAL)
def test_a_sequential_engine_on_several_ranks_is_the_mean_of_theirs(case: str) -> None:
    engine, settings = SEQUENTIAL[case]

    def made(ranks: Any) -> Run:
        run = prepared(engine, {**settings, "numiter": 20}, ranks, model=Coloured if "energies" in case else Full)
        loop = Loop(run, LoopSettings(min_frames_for_recon=20))
        feed(run, 0, 60)
        loop.step()
        feed(run, 60, BEAM.frames)
        end(run)
        while loop.step() is not Step.DONE:
            pass
        return run

    shared = []
    for _ in range(2):
        with team(3, {engine.__name__: engine}) as ranks:
            shared.append(made(ranks))
    same(*shared, tolerance=1e-15)
    start, found = shared[0].history()[1][[0, -1], 0]
    assert found < 0.45 * start


def test_an_engine_that_knows_no_ranks_is_refused() -> None:
    class Own:
        Parameters = DM.Parameters

    with team(2, {}) as ranks, pytest.raises(ValueError, match="Own works on one rank"):
        spread(ranks, "Own", Own)


def test_each_rank_holds_its_own_frames_and_no_others() -> None:
    held = []

    class Counting(DM):
        def iterate(self, iterations: int, rows: Any = None) -> Progress:
            held.append((self.context.ranks.rank, sorted(row for tile in self.tiles for row in tile.rows.tolist())))
            held.append(
                (self.context.ranks.rank, [len(store.slabs) for store in self.frames.values() if hasattr(store, "slabs")])
            )
            return super().iterate(iterations, rows)

    with team(3, {"Counting": Counting}) as ranks:
        run = prepared(Counting, {"numiter": 1}, ranks)
        feed(run, 0, BEAM.frames)
        end(run)
        Loop(run, LoopSettings(min_frames_for_recon=20)).step()
    rows = {rank: value for rank, value in held if len(value) > 5}
    assert [rows[k] for k in range(3)] == [list(range(k, BEAM.frames, 3)) for k in range(3)]


def test_a_canvas_that_is_begun_anew_in_the_same_place_is_told() -> None:
    """All frames are withdrawn, and come again where they were."""

    def run_of(ranks: Any) -> Run:
        run = prepared(DM, {"numiter": 3}, ranks)
        loop, buffer = Loop(run, LoopSettings(min_frames_for_recon=20)), run.scans["s"].buffer
        feed(run, 0, 40)
        loop.step()
        loop.step()
        for index in range(40):
            run.apply({"do": "revise", "scan": "s", "what": "withdrawn", "index": index, "value": None})
        payloads = tuple(Payload(p.tobytes(), "raw", np.dtype("<u2"), p.shape) for p in PATTERNS[:40])
        buffer.feed("data", Frames("a", np.arange(40, 80), payloads), 2000)
        buffer.feed("positions", Samples("a", 40, {"y": PLACES[:40, 0], "x": PLACES[:40, 1]}), 2000)
        end(run, 80)
        while loop.step() is not Step.DONE:
            pass
        return run

    with team(2, {"DM": DM}) as ranks:
        same(run_of(None), run_of(ranks), 1e-9)


def test_ranks_that_round_differently_go_on_together() -> None:
    """Whether the probe has settled is a number that each finds: of processors of two kinds not the same one."""
    steps = []

    class Rounding(Overlap):
        rank = 0

        def _settled(self, *arguments: Any) -> tuple[float, float]:
            super()._settled(*arguments)
            return (0.04, 0.07)[self.rank] ** 2, 1.0

        def update_probe(self) -> float:
            steps.append(self.rank)
            return super().update_probe()

    class Mixed(DM):
        def make_overlap(self) -> Overlap:
            made = Rounding(self.on, self.reconstruction, self.sight)
            made.rank = self.context.ranks.rank
            return made

    with team(2, {"Mixed": Mixed}) as ranks:
        run = prepared(
            Mixed, {"numiter": 1, "probe_update_start": 0, "overlap_max_iterations": 3, "overlap_converge_factor": 0.05}, ranks
        )
        feed(run, 0, BEAM.frames)
        end(run)
        loop = Loop(run, LoopSettings(min_frames_for_recon=20))
        while loop.step() is not Step.DONE:
            pass
    assert sorted(steps) == [0, 0, 0, 1, 1, 1]


def test_a_frame_that_is_withdrawn_sees_nothing_on_any_rank() -> None:
    tables = {}

    class Looking(DM):
        def iterate(self, iterations: int, rows: Any = None) -> Progress:
            tables[self.context.ranks.rank] = self.reconstruction.pods.address.copy()
            return super().iterate(iterations, rows)

    with team(3, {"Looking": Looking}) as ranks:
        run = prepared(Looking, {"numiter": 1}, ranks)
        loop = Loop(run, LoopSettings(min_frames_for_recon=20))
        feed(run, 0, 40)
        loop.step()
        run.apply({"do": "revise", "scan": "s", "what": "withdrawn", "index": 12, "value": None})
        feed(run, 40, BEAM.frames)
        end(run)
        loop.step()
    assert (tables[0][12, :, [PROBE, OBJECT]] == -1).all()
    for rank in (1, 2):
        np.testing.assert_array_equal(tables[rank], tables[0])


class Failing(DM):
    """Dies on one rank, when it starts or in its first iteration."""

    victim = 0
    at_start = False

    def start(self, *arguments: Any) -> None:
        super().start(*arguments)
        if type(self).at_start and self.context.ranks.rank == type(self).victim:
            raise MemoryError("no more")

    def iterate(self, iterations: int, rows: Any = None) -> Progress:
        if self.context.ranks.rank == type(self).victim:
            raise MemoryError("no more")
        return super().iterate(iterations, rows)


@pytest.mark.parametrize("at_start", [False, True])
@pytest.mark.parametrize("victim", [0, 1])
def test_where_one_rank_fails_alone_the_job_is_ended(victim: int, at_start: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Here(Failing):
        pass

    Here.victim, Here.at_start = victim, at_start
    monkeypatch.setattr("ptystream.spread.GRACE_S", 0.1)
    monkeypatch.setattr("ptystream.spread.plugins", lambda kind: {"Here": Here})
    board, aborted = Board(2), []

    class Mortal(Thread):
        def abort(self) -> None:
            aborted.append(self.rank)
            super().abort()

    leader, other = Mortal(board, 0), threading.Thread(target=lambda: ended(Mortal(board, 1)))

    def ended(team: Mortal) -> None:
        with suppress(RuntimeError):
            serve(team)

    other.start()
    run = prepared(Here, {"numiter": 1}, leader)
    feed(run, 0, BEAM.frames)
    end(run)
    with pytest.raises((MemoryError, threading.BrokenBarrierError)):
        Loop(run, LoopSettings(min_frames_for_recon=20)).step()
    with pytest.raises(RuntimeError, match="aborted"):
        dismiss(leader)
    leader.tell(GO_HOME)  # a thread is not killed with the job
    other.join(60)
    assert victim in aborted


def test_what_is_saved_of_an_engine_that_failed_on_rank_0_needs_nobody_else() -> None:
    """The others wait for it in the midst of an iteration: another sum would meet theirs."""

    class Busy(Thread):
        """Rank 0 of a team whose other rank answers nothing."""

        def total(self, array: Any) -> Any:
            assert not failed
            return array

    class Breaking(EPIE):
        def _average(self, *arguments: Any) -> None:
            failed.append(True)
            raise MemoryError("no more")

    failed: list[bool] = []
    leader = Busy(Board(2), 0)
    run = prepared(Breaking, {"numiter": 1}, leader)
    feed(run, 0, BEAM.frames)
    end(run)
    with pytest.raises(MemoryError):
        Loop(run, LoopSettings(min_frames_for_recon=20)).step()
    told = leader.board.told[1].qsize()
    saved = run.snapshot({})
    assert leader.board.told[1].qsize() == told
    assert list(saved.object)
    assert saved.coverage == {}


def test_where_all_ranks_fail_alike_nobody_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unfit(DM):
        def start(self, *arguments: Any) -> None:
            raise ValueError("unfit")

    monkeypatch.setattr("ptystream.spread.plugins", lambda kind: {"Unfit": Unfit})
    board = Board(2)
    leader, other = Thread(board, 0), threading.Thread(target=lambda: serve(Thread(board, 1)))
    other.start()
    run = prepared(Unfit, {"numiter": 1}, leader)
    feed(run, 0, BEAM.frames)
    end(run)
    with pytest.raises(ValueError, match="unfit"):
        Loop(run, LoopSettings(min_frames_for_recon=20)).step()
    dismiss(leader)
    other.join(60)
    assert not other.is_alive()
