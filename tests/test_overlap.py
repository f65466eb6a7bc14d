"""Several scans in one process: one is refined while the next one's frames come; aborted, paused, endless."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from memory import Memory, messages
from problems import BEAM, GEOMETRY, PLACES
from test_dumps import _waiting as waiting_for_dumps
from test_dumps import configuration

from ptystream.assessment.looking import Looker
from ptystream.detectors.zmq.protocol import header, samples_parts
from ptystream.loop import Loop
from ptystream.metrics import Metrics
from ptystream.params.load import load
from ptystream.plan import make_plan, recorder_of
from ptystream.recording import Recording
from ptystream.run import Run
from ptystream.session import Session
from ptystream.storage import ptyr
from ptystream.transport import Message
from ptystream.turn import Numbers


class Steered(Memory):
    """Messages that are given when a test says so; silent when all are."""

    def __init__(self, channel: str, messages: list[list[bytes]]) -> None:
        super().__init__(channel, messages)
        self.may = threading.Semaphore(0)
        """A message for each."""

    def receive(self, timeout_s: float) -> Message | None:
        if not self.may.acquire(timeout=timeout_s):
            return None
        return super().receive(timeout_s)

    def give(self, count: int) -> None:
        self.may.release(count)


class Beside:
    """A session in a thread of its own, with its two sources."""

    def __init__(
        self, folder: Path, scans: list[tuple[list[list[bytes]], list[list[bytes]]]], save: str | None = None, **root: Any
    ) -> None:
        self.data, self.places = (
            Steered(f"s/{n}", [m for s in scans for m in s[k]]) for k, n in enumerate(("data", "positions"))
        )
        source = {"name": "ZmqScan"}
        given = {
            "run": "t",
            "min_frames_for_recon": 20,
            "threads": 1,
            "io": {"home": str(folder), "rfile": "%(run)s.ptyr", "autosave": {"active": False}},
            "scans": {
                "s": {
                    "name": "Full",
                    "data": {**source, "shape": BEAM.side, **GEOMETRY, "positions": source, "save": save, "dfile": "t.ptyd"},
                    "illumination": {"aperture": {"size": 4e-7}},
                }
            },
            "engines": {"e": {"name": "DM", "numiter": 5}},
            **root,
        }
        self.metrics = Metrics()
        self.session = Session(
            make_plan(load(given), transports={"s/data": self.data, "s/positions": self.places}), metrics=self.metrics
        )
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self.session.run()
        except BaseException as error:
            self.failure = error

    def __enter__(self) -> Beside:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.session.stop()
        self.ends()

    def give(self, count: int) -> None:
        """So many messages more of both sources."""
        self.data.give(count)
        self.places.give(count)

    def ends(self) -> list[ptyr.Result]:
        """The results, when it is over."""
        self._thread.join(60)
        assert not self._thread.is_alive()
        assert self.failure is None, self.failure
        return [ptyr.read(path) for path in sorted(self.session.results)]

    def until(self, what: Callable[[], Any]) -> None:
        deadline = time.monotonic() + 60
        while not what():
            assert time.monotonic() < deadline and self.failure is None, self.failure
            time.sleep(0.01)

    def runs(self) -> list[Run]:
        """Those that are reconstructed now, the oldest first."""
        return [turn.run for turn in list(self.session._turns)]


ALL = BEAM.frames + 2
"""Messages of a source in a scan."""
LONG = {"engines": {"e": {"name": "DM", "numiter": 100_000}}}


def test_the_next_scan_is_iterated_on_while_the_first_is_refined(tmp_path: Path) -> None:
    with Beside(tmp_path, [messages("a"), messages("b")], **LONG, live={"runs": 2}) as beside:
        beside.give(ALL)
        beside.until(lambda: beside.runs() and beside.runs()[0].complete)
        beside.give(40)
        beside.until(lambda: len(beside.runs()) == 2 and beside.runs()[1].iterations > 3)
        first, second = beside.runs()
        assert beside.session.current is second
        before = first.iterations
        beside.until(lambda: first.iterations > before)
        assert (first.name, second.name) == ("t", "t_0002")
        assert first.frames == BEAM.frames and second.frames == 39
        beside.give(ALL - 40)
        beside.until(lambda: second.complete)
        beside.session.stop()
        results = beside.ends()
    assert [result.ledger["used"] for result in results] == [BEAM.frames] * 2


def test_a_run_that_waits_does_not_take_the_engine_from_another_for_its_quick_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    idle: list[tuple[int, bool]] = []
    monkeypatch.setattr(Looker, "work", lambda self, *, idle=False: seen(idle))

    def seen(now: bool) -> bool:
        idle.append((len(beside.runs()), now))
        return False

    live = {"runs": 2, "quick_look": "icom"}
    with Beside(tmp_path, [messages("a"), messages("b")], **LONG, live=live, min_frames_for_recon=60) as beside:
        beside.give(50)
        beside.until(lambda: (1, True) in idle)  # the only one, and it waits
        beside.give(ALL - 50)
        beside.until(lambda: beside.runs()[0].complete and beside.runs()[0].iterations)
        beside.give(50)
        beside.until(lambda: len(beside.runs()) == 2 and len(idle) > 50 and idle[-1][0] == 2)
        before = len(idle)
        beside.until(lambda: len(idle) > before + 20)
        assert beside.runs()[1].iterations == 0  # it waits too
        beside.session.stop()
    assert not any(now for runs, now in idle if runs == 2)


def test_with_an_overlap_of_one_the_next_scan_waits(tmp_path: Path) -> None:
    with Beside(tmp_path, [messages("a"), messages("b")], **LONG, live={"runs": 2, "overlap": 1}) as beside:
        beside.give(2 * ALL)
        beside.until(lambda: beside.places._left == 0)
        beside.until(lambda: beside.runs() and beside.runs()[0].iterations > 20)
        assert len(beside.runs()) == 1
        assert [pending.run.name for pending in beside.session._router.pending] == ["t", "t_0002"]  # what came of it is told


def test_scans_that_are_saved_to_one_file_are_reconstructed_one_after_another(tmp_path: Path) -> None:
    for save, wanted in ((None, 3), ("append", 1)):
        beside = Beside(tmp_path, [], live={"overlap": 3}, save=save)
        assert beside.session.plan.overlap == wanted


@pytest.mark.slow
def test_runs_in_turn_come_to_the_same_bits_as_one_after_another(tmp_path: Path) -> None:
    scans = [messages("a"), messages("b")]
    start = {"min_frames_for_recon": BEAM.frames + 1}
    alone = Beside(tmp_path / "1", scans, live={"runs": 2, "overlap": 1}, **start)
    beside = Beside(tmp_path / "2", scans, live={"runs": 2, "overlap": 2}, **start)
    found = []
    for each in (alone, beside):
        with each:
            each.give(2 * ALL)
            found.append(each.ends())
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one.object["SsG00"].data, other.object["SsG00"].data)
        np.testing.assert_array_equal(one.probe["SsG00"].data, other.probe["SsG00"].data)


def moved(scan: str, by_m: float) -> tuple[list[list[bytes]], list[list[bytes]]]:
    """The small scan, elsewhere on the sample."""
    frames, places = messages(scan)
    for k, place in enumerate(PLACES + by_m):
        places[k + 1] = samples_parts(scan, k, {"y": place[:1], "x": place[1:]}, None)
    return frames, places


def test_positions_of_the_scan_before_are_never_used(tmp_path: Path) -> None:
    """Not even when those of the new scan come late."""
    first, second = messages("a"), moved("b", 5e-6)
    with Beside(tmp_path, [first, second], live={"runs": 2}) as beside:
        beside.give(ALL)
        beside.data.give(ALL)
        beside.until(lambda: beside.data._left == 0)
        time.sleep(0.2)
        assert all(run.name == "t" for run in beside.runs())
        beside.places.give(ALL)
        one, two = beside.ends()
    assert one.ledger["used"] == two.ledger["used"] == BEAM.frames
    assert np.abs(two.positions_m.mean(axis=0) - one.positions_m.mean(axis=0) - 5e-6).max() < 1e-7


def test_counters_count_the_iterations_of_all_runs_once(tmp_path: Path) -> None:
    with Beside(tmp_path, [messages("a"), messages("b")], live={"runs": 2}) as beside:
        beside.give(2 * ALL)
        results = beside.ends()
    counted = beside.metrics.registry.get_sample_value("ptystream_iterations_total", {"engine": "DM"})
    assert counted == sum(len(result.errors) for result in results)


# ---------------------------------------------------------------------- abort


def broken_off(scan: str, frames: int) -> tuple[list[list[bytes]], list[list[bytes]]]:
    """A scan that its sources abort."""
    return tuple([*m[: frames + 1], header_of_abort(scan, frames)] for m in messages(scan))  # type: ignore[return-value]


def header_of_abort(scan: str, frames: int) -> list[bytes]:
    return [header("end", scan=scan, count=frames, reason="aborted: by the user")]


@pytest.mark.parametrize(("policy", "iterations"), [("finish", 5), ("save", 1), ("discard", None)])
def test_what_becomes_of_an_aborted_scan(tmp_path: Path, policy: str, iterations: int | None) -> None:
    live = {"runs": None, "aborted": policy}
    with Beside(tmp_path, [broken_off("a", 40), messages("b")], live=live) as beside:
        beside.give(30)
        beside.until(lambda: beside.runs() and beside.runs()[0].iterations)
        beside.give(42 - 30)
        beside.until(lambda: beside.session.ended is not None)
        beside.give(ALL)
        beside.until(lambda: beside.session.finished == (1 if policy == "discard" else 2))
        beside.session.stop()
        results = beside.ends()
    assert results[-1].ledger["used"] == BEAM.frames
    if iterations is None:
        assert [result.run for result in results] == ["t"]
        return
    first = results[0]
    assert first.scans["s"]["ended"] == "aborted: by the user"
    assert results[1].scans["s"]["ended"] == "completed"
    ended = next(k for k, entry in enumerate(first.schedule) if entry["do"] == "end")
    after = sum(e["iterations"] * e.get("times", 1) for e in first.schedule[ended:] if e["do"] == "iterate")
    assert after == iterations


def test_a_scan_that_only_one_source_aborts_ends_when_the_others_are_silent(tmp_path: Path) -> None:
    frames, places = messages("a")
    with Beside(tmp_path, [(frames[:41], [*places[:41], header_of_abort("a", 40)])]) as beside:
        beside.give(42)
        (result,) = beside.ends()
    assert result.scans["s"]["ended"] == "aborted: by the user"
    assert result.ledger["used"] == 40


# ---------------------------------------------------------------------- pause


def test_a_paused_session_receives_and_does_not_iterate(tmp_path: Path) -> None:
    with Beside(tmp_path, [messages("a")], **LONG) as beside:
        beside.give(41)
        beside.until(lambda: beside.runs() and beside.runs()[0].iterations and beside.runs()[0].frames == 40)
        (run,) = beside.runs()
        beside.session.pause()
        beside.until(lambda: run.state == "paused")
        assert beside.session.status()["state"] == "paused"
        before = run.iterations
        beside.give(ALL - 41)
        beside.until(lambda: run.ledger()["paired"] == BEAM.frames)
        time.sleep(0.5)
        assert run.iterations == before and run.frames == 40
        beside.session.resume()
        beside.until(lambda: run.iterations > before and run.frames == BEAM.frames)
        assert run.state == "running"
        beside.session.pause()
        beside.until(lambda: run.state == "paused")
        beside.session.stop()  # what is paused can be stopped
        (result,) = beside.ends()
    assert result.ledger["used"] == BEAM.frames


# ---------------------------------------------------------------------- numbers


def test_numbers_are_the_smallest_that_are_free() -> None:
    numbers = Numbers()
    for wanted in (1, 2, 3):
        assert numbers.next() == wanted
        numbers.take(wanted)
    numbers.give_back(2)
    assert numbers.free(3) == [2, 4, 5]
    numbers.take(2)
    assert numbers.next() == 4
    for k in range(4, 1000):
        numbers.take(k)
    assert not numbers._taken


# ---------------------------------------------------------------------- cut off


@pytest.mark.slow
def test_two_runs_that_were_cut_off_go_on_under_their_names(tmp_path: Path) -> None:
    """From their own dumps; the one that had a result by then is left out."""
    engines = {"e": {"name": "DM", "numiter": 200}}
    root = {"live": {"runs": 3}, "min_frames_for_recon": 20}
    made = configuration(
        tmp_path, engines=engines, rfile="%(run)s.ptyr", autosave={"interval": 20}, recording={"file": "t.ptyrec"}
    )
    made = load({**made.given, **root})
    quick, slow, half = messages("quick"), messages("slow"), messages("half")
    recorder, interrupted = recorder_of(made)
    assert recorder is not None and interrupted is None
    feeds = [[*slow[k], *quick[k], *half[k][:41]] for k in (0, 1)]
    inputs = {name: Steered(name, feed) for name, feed in zip(("s/data", "s/positions"), feeds, strict=True)}
    plan = make_plan(made, recorder=recorder, transports=inputs)
    assert plan.autosave is not None
    waiting_for_dumps(plan.autosave)

    class Killed(BaseException):
        pass

    def killed(run: Run) -> Path | None:
        if cut_off:
            raise Killed  # a process that is dead saves nothing
        return plan.save(run)

    cut_off: list[bool] = []
    session = Session(replace(plan, save=killed), metrics=Metrics(), tap=recorder)
    look = plan.autosave.look

    def until_both(run: Run, loop: Loop) -> None:
        look(run, loop)
        runs = {turn.run.name: turn.run for turn in session._turns}
        if "t_0002" in runs and runs["t_0002"].complete:
            session._turns[-1].loop.cut()  # the quick one is over before the one that began earlier
        if "t_0003" in runs and all(len(plan.autosave.written.get(name, [])) > 1 for name in ("t", "t_0003")):
            cut_off.append(True)
            raise Killed

    plan.autosave.look = until_both  # type: ignore[method-assign]
    for source in inputs.values():
        source.give(len(feeds[0]))
    with pytest.raises(Killed):
        session.run()
    recorder.close(finished=False)
    assert [path.name for path in session.results] == ["t_0002.ptyr"]

    recorder, interrupted = recorder_of(made)
    assert recorder is not None and interrupted is not None
    rest = {name: Memory(name, half[k][41:]) for k, name in enumerate(inputs)}
    plan = make_plan(made, recorder=recorder, transports=rest, interrupted=True)
    again = Session(plan, metrics=Metrics(), tap=recorder, recorded=Recording(interrupted))
    paths = again.run()
    recorder.close(finished=True)
    assert sorted(path.name for path in paths) == ["t.ptyr", "t_0003.ptyr"]
    for path in paths:
        result = ptyr.read(path)
        assert result.ledger["used"] == BEAM.frames
        assert [entry["do"] for entry in result.schedule].count("resume") == 1
