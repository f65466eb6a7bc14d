"""The window of `io.autoplot`: where there is one, what it shows, and that nothing waits for it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread
from snapshots import snapshot
from test_ptycho import parameters, sources

from ptystream import Param, Ptycho
from ptystream.params.autoplot import AutoplotParameters
from ptystream.publish.plotting import Plotter
from ptystream.publish.snapshot import Snapshot
from ptystream.publish.window import Window, desktop
from ptystream.viewers.drawing import Drawing


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A display and a backend that leaves what it shows in this folder."""
    folder = tmp_path / "window"
    folder.mkdir()
    monkeypatch.setenv("DISPLAY", ":77")
    monkeypatch.setenv("MPLBACKEND", "module://stub_window_backend")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv("STUB_WINDOW", str(folder))
    for limit in ("START_S", "END_S"):  # a slow machine opens and closes it all the same
        monkeypatch.setattr(f"ptystream.publish.window.{limit}", 100.0)
    return folder


def at(iteration: int) -> Snapshot:
    return replace(snapshot(1, run="r"), iteration=iteration, ledger={"used": iteration})


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def shown(folder: Path) -> list[Path]:
    return sorted(folder.glob("shown-*.png"))


@pytest.mark.slow
@pytest.mark.parametrize("threaded", [False, True])
def test_the_newest_plot_is_shown_in_a_window(stub: Path, threaded: bool) -> None:
    window = Window.open(Drawing.window)
    assert window is not None
    plots = Plotter(AutoplotParameters(threaded=threaded, layout="minimal"), Drawing, lambda run, info: stub / "none", window)
    assert plots.due("r", 1)
    plots.offer(at(1), {"iterations": 1})
    until(lambda: shown(stub))
    plots.offer(at(40), {"iterations": 40}, last=True)
    plots.close()
    assert len(shown(stub)) == 2  # the last one is seen before the window closes
    assert window._process.returncode == 0
    first, last = (np.asarray(imread(path)) for path in shown(stub))
    assert first.std() > 0.05
    assert (first != last).any()


@pytest.mark.slow
def test_a_window_that_the_user_closes_ends_its_plots_and_nothing_else(stub: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    window = Window.open(Drawing.window)
    assert window is not None
    plots = Plotter(AutoplotParameters(threaded=False, layout="minimal"), Drawing, lambda run, info: stub / "none", window)
    plots.offer(at(1), {"iterations": 1})
    until(lambda: shown(stub))
    (stub / "close").touch()
    until(lambda: window._process.poll() is not None)
    for iteration in range(2, 20):
        if plots.due("r", iteration):
            plots.offer(at(iteration), {"iterations": iteration})
    assert not plots.due("r", 30)
    assert caplog.text.count("the window was closed") == 1
    plots.close()


def test_nobody_waits_for_a_window_that_answers_no_more(stub: Path) -> None:
    import os
    import signal

    window = Window.open(Drawing.window)
    assert window is not None
    os.kill(window._process.pid, signal.SIGSTOP)
    for _ in range(50):  # it would wait for ever
        assert window(bytes(1 << 20))
    os.kill(window._process.pid, signal.SIGKILL)
    window.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "why"),
    [
        ({"DISPLAY": "", "WAYLAND_DISPLAY": ""}, "there is no display"),
        ({"DISPLAY": ":77", "MPLBACKEND": "agg"}, "makes files and no windows"),
        ({"DISPLAY": ":77", "MPLBACKEND": "module://no_such_backend"}, "no_such_backend"),
        ({"DISPLAY": ":77", "MPLBACKEND": "agg", "PYTHONHOME": "/nowhere"}, "has ended"),
    ],
)
def test_where_there_can_be_none_the_log_says_why_in_one_line(
    environment: dict[str, str], why: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Window.open(Drawing.window) is None
    assert caplog.text.count("io.autoplot: no window") == 1
    assert why in caplog.text
    assert len([r for r in caplog.records if "window" in r.message]) == 1
    assert all("\n" not in r.message for r in caplog.records)


def test_a_display_is_looked_for_by_the_means_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert not desktop()
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    assert desktop()
    monkeypatch.delenv("WAYLAND_DISPLAY")
    monkeypatch.setattr("ptystream.publish.window.sys.platform", "darwin")
    assert desktop()


@pytest.mark.slow
def test_a_session_opens_it_without_being_asked_for_files_and_not_where_plots_are_off(stub: Path, tmp_path: Path) -> None:
    p = parameters(tmp_path)
    p.io.autoplot = Param(interval=4, layout="minimal")
    assert Ptycho(p, transports=sources()).run().results
    assert shown(stub)
    assert not list(tmp_path.glob("plots/**/*.png"))
    for path in shown(stub):
        path.unlink()
    p = parameters(tmp_path)
    p.io.autoplot = Param(active=False)
    Ptycho(p, transports=sources()).run()
    assert not shown(stub)
