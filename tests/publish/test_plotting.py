"""When plots are drawn, by whom, and what becomes of a drawing process that does not do as it should."""

from __future__ import annotations

import io
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from snapshots import snapshot

from ptystream.params.autoplot import AutoplotParameters
from ptystream.publish.plotting import Plotter, write_order
from ptystream.publish.snapshot import Snapshot
from ptystream.viewers.drawing import Drawing, serve


class Recorded:
    """Draws nothing and remembers everything."""

    module = "none"

    def __init__(self) -> None:
        self.drawn: list[tuple[int, Path | None, str, bool]] = []
        self.movies: list[tuple[list[str], Path]] = []

    def plot(self, shown: Snapshot, path: Path | None, layout: str, *, show: bool) -> bytes:
        self.drawn.append((shown.iteration, path, layout, show))
        return b"png" if show else b""

    def make_movie(self, frames: list[str], stem: Path) -> Path:
        self.movies.append((frames, stem))
        return stem.with_suffix(".mp4")


def plotter(drawing: Any, show: Any = None, **settings: Any) -> Plotter:
    def path_of(run: str, info: Any) -> Path:
        return Path("plots") / f"{run}_{info['iterations']}.png"

    return Plotter(AutoplotParameters(**{"dump": True, "threaded": False, **settings}), drawing, path_of, show)


def at(iteration: int, run: str = "r") -> Snapshot:
    from dataclasses import replace

    return replace(snapshot(1, run=run), iteration=iteration)


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_plots_are_due_at_their_interval_for_each_run_by_itself() -> None:
    drawing = Recorded()
    plots = plotter(drawing, interval=4, layout="weak")
    for iteration in range(1, 11):
        for run in ("a", "b"):
            if plots.due(run, iteration):
                plots.offer(at(iteration, run), {"iterations": iteration})
    assert [(n, str(path)) for n, path, _, _ in drawing.drawn] == [
        (n, f"plots/{run}_{n}.png") for n in (4, 8) for run in ("a", "b")
    ]
    assert {(layout, show) for _, _, layout, show in drawing.drawn} == {("weak", False)}
    assert not plots.due("a", 10)
    assert plots.due("a", 10, last=True)  # the last state is drawn whatever the interval
    assert not plots.due("a", 8, last=True)  # once
    assert plots.close() == plots.close() == []


def test_a_movie_has_each_file_once_and_one_is_made_for_each_run() -> None:
    drawing = Recorded()
    plots = plotter(drawing, make_movie=True, dump=False)
    for run, iteration in (("a", 1), ("a", 2), ("b", 1), ("a", 2)):
        plots.offer(at(iteration, run), {"iterations": iteration})
    assert plots.close() == [Path("plots/a.mp4"), Path("plots/b.mp4")]
    assert [frames for frames, _ in drawing.movies] == [["plots/a_1.png", "plots/a_2.png"], ["plots/b_1.png"]]


def test_a_picture_is_shown_without_a_file_and_with_one() -> None:
    for dump in (False, True):
        shown: list[bytes] = []
        drawing = Recorded()
        plots = plotter(drawing, shown.append, dump=dump)
        assert plots.due("r", 1)
        plots.offer(at(1), {"iterations": 1})
        assert shown == [b"png"]
        assert (drawing.drawn[0][1] is not None) == dump
    nothing = plotter(Recorded(), dump=False)
    assert not nothing.due("r", 1)


@pytest.mark.slow
def test_orders_go_through_pipes_one_after_another(tmp_path: Path) -> None:
    orders, answers = io.BytesIO(), io.BytesIO()
    write_order(orders, (snapshot(3), tmp_path / "a.png", "minimal", True))
    write_order(orders, (snapshot(2), tmp_path / "b.nothing", "minimal", False))
    write_order(orders, (snapshot(5), None, "jupyter", True))
    orders.seek(0)
    serve(orders, answers)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "b.nothing").exists()
    answered = answers.getvalue()
    assert answered.count(b"\x89PNG") == 2
    assert (tmp_path / "a.png").read_bytes() in answered


@pytest.mark.slow
def test_the_newest_is_drawn_and_those_between_are_not(tmp_path: Path) -> None:
    settings = AutoplotParameters(dump=True, layout="minimal")
    plots = Plotter(settings, Drawing, lambda run, info: tmp_path / f"{info['iterations']}.png")
    courier = plots._courier
    assert courier is not None
    assert plots.due("r", 1)
    os.kill(courier._process.pid, signal.SIGSTOP)  # it takes as long as it likes
    plots.offer(at(1), {"iterations": 1})
    until(lambda: courier._order is None)  # it was taken there
    assert not plots.due("r", 2)  # it draws: no snapshot is copied that it could not take
    for iteration in (2, 3, 4):
        plots.offer(at(iteration), {"iterations": iteration}, last=False)
    os.kill(courier._process.pid, signal.SIGCONT)
    plots.offer(at(5), {"iterations": 5}, last=True)
    plots.close()
    drawn = {f.name for f in tmp_path.iterdir()}
    assert {"4.png", "5.png"} <= drawn
    assert not {"2.png", "3.png"} & drawn


def test_a_drawing_process_that_dies_is_told_once_and_waited_for_no_longer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    plots = Plotter(AutoplotParameters(dump=True), Drawing, lambda run, info: tmp_path / "a.png")
    courier = plots._courier
    assert courier is not None
    os.kill(courier._process.pid, signal.SIGKILL)
    plots.offer(at(1), {"iterations": 1})
    until(lambda: "no more plots" in caplog.text)
    assert not plots.due("r", 2)
    assert not plots.due("r", 2, last=True)
    monkeypatch.setattr("ptystream.publish.plotting.LAST_S", 1000.0)  # longer than a test may take
    plots.close()
    assert caplog.text.count("no more plots") == 1
