"""What a console shows is what was published: block means, the window that was covered, colours, and the curve."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from snapshots import snapshot

from ptystream.publish.display import display, with_ramps
from ptystream.publish.publisher import Publisher
from ptystream.publish.snapshot import Image
from ptystream.viewers import terminal
from ptystream.viewers.client import Client


def console(width: int = 80, height: int = 24, *, tty: bool = False) -> Console:
    return Console(file=io.StringIO(), width=width, height=height, force_terminal=tty, color_system="truecolor" if tty else None)


def shown(**changes: Any) -> Any:
    """A snapshot whose object is 0 above and 1 radian below, with a dark left half, covered in its middle."""
    wave = np.ones((1, 40, 60), "c8")
    wave[0, 20:] *= np.exp(1j)
    wave[0, :, :30] *= 0.5
    coverage = np.zeros((40, 60), "f4")
    coverage[4:36, 10:50] = 1
    held = replace(snapshot(1), object={"o": Image(wave, (1e-8, 1e-8), (0, 0))}, coverage={"o": coverage}, **changes)
    return display(held)


@pytest.mark.parametrize("shape", [(1, 1), (3, 4), (7, 5), (32, 40)])
def test_a_pixel_of_the_console_is_the_mean_of_its_block(shape: tuple[int, int]) -> None:
    array = np.random.default_rng(0).normal(size=(32, 40))
    found = terminal.averaged(array, shape)
    rows, columns = (np.arange(n + 1) * size // n for n, size in zip(shape, array.shape, strict=True))
    for y in range(shape[0]):
        for x in range(shape[1]):
            np.testing.assert_allclose(found[y, x], array[rows[y] : rows[y + 1], columns[x] : columns[x + 1]].mean())


@pytest.mark.parametrize(("columns", "lines"), [(40, 16), (20, 8), (7, 3), (200, 90)])
def test_pictures_fit_and_show_what_was_covered(columns: int, lines: int) -> None:
    made = shown()
    amplitude, phase = (
        terminal.drawn(made.object["o"], made.coverage["o"], columns, lines, phase=which) for which in (False, True)
    )
    y, x = amplitude.levels.shape
    assert x <= columns and y <= 2 * lines and amplitude.colours.shape == (y, x, 3)
    assert x == min(columns, 40) or y == min(2 * lines, 32)  # as large as fits, and never larger than it is
    assert not np.isnan(amplitude.levels).any()
    assert amplitude.levels[:, : x // 2].mean() < 0.1 and amplitude.levels[:, (x + 1) // 2 :].mean() > 0.9
    turn = (phase.levels[-1, 0] - phase.levels[0, 0]) * 2 * phase.limit_rad
    assert abs(turn - 1.0) < 0.05
    assert (amplitude.colours[:, -1] > amplitude.colours[:, 0]).all()


def test_phases_are_averaged_on_the_circle() -> None:
    made = shown()
    picture = replace(made.object["o"], phase=np.tile(np.array([[250, 6]], np.uint8), (40, 30))[None])
    found = terminal.drawn(picture, made.coverage["o"], 10, 4, phase=True)
    assert found.limit_rad == pytest.approx(np.pi, abs=0.01) and (np.abs(found.levels - 0.5) > 0.49).all()


def test_without_coverage_nothing_is_drawn_and_nothing_fails() -> None:
    made = shown()
    empty = terminal.drawn(made.object["o"], np.zeros((40, 60), np.uint8), 40, 10, phase=False)
    assert empty.levels.size == 0
    to = console(tty=True)
    to.print(terminal.screen(replace(made, coverage={"o": np.zeros((40, 60), np.uint8)}), 80, 24))
    to.print(terminal.screen(replace(made, object={}, coverage={}), 80, 24))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("width", [20, 81])
def test_any_snapshot_can_be_drawn(seed: int, width: int) -> None:
    to = console(width, tty=True)
    to.print(terminal.screen(display(with_ramps(snapshot(seed))), width, 24))
    assert "test: running" in to.file.getvalue()  # type: ignore[attr-defined]


def test_what_a_session_sends_cannot_move_the_cursor() -> None:
    wipe = "\x1b[2J\x9b2J\r\n"
    quality = {"convention": {"chosen": f"rot{wipe}", "why": wipe, "measured_ns": 0, "iteration": 0}}
    made = shown(run=f"r{wipe}", state=wipe, engine=wipe, quality=quality)
    made = replace(made, object={f"o{wipe}": made.object["o"]}, coverage={})
    to = console()
    to.print(terminal.screen(made, 80, 24, colour=False))
    said = to.file.getvalue()  # type: ignore[attr-defined]
    assert "r\ufffd[2J" in said and "amplitude of o\ufffd" in said and not set("\x1b\x9b\r") & set(said)


def test_two_pixels_a_character_with_colours_and_one_without() -> None:
    made = shown()
    picture = terminal.drawn(made.object["o"], made.coverage["o"], 40, 16, phase=False)
    to = console(tty=True)
    to.print(terminal.block(picture))
    assert to.file.getvalue().count("▀") == 16 * 40  # type: ignore[attr-defined]
    plain = console()
    plain.print(terminal.block(picture, colour=False))
    lines = plain.file.getvalue().rstrip("\n").split("\n")  # type: ignore[attr-defined]
    assert len(lines) == 16 and all(line.endswith("@" * 20) for line in lines)


def test_the_curve_is_on_a_logarithmic_scale_and_as_wide_as_there_is_room() -> None:
    assert terminal.bars(np.array([1000.0, 100, 10, 1]), 40) == "█▆▃▁"
    assert terminal.bars(np.geomspace(1, 100, 999), 8) == "▁▂▃▄▅▆▇█"
    assert terminal.bars(np.array([np.nan, 5.0, 5.0, -1.0]), 40) == "▁▁"
    assert terminal.bars(np.zeros(0), 40) == ""


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    made = Publisher()
    yield made
    made.close()


@pytest.mark.parametrize("tty", [True, False])
def test_a_run_is_watched_to_its_end(publisher: Publisher, tty: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = threading.Event()

    class Watching(Client):
        def latest(self, timeout_s: float | None = None) -> Any:
            found = super().latest(timeout_s)
            if found is not None:
                drawn.set()
            return found

    monkeypatch.setattr(terminal, "Client", Watching)
    to = console(tty=tty)
    thread = threading.Thread(target=terminal.watch, args=(publisher.endpoint, to), daemon=True)
    thread.start()
    publisher.offer(snapshot(1))
    assert drawn.wait(60)
    publisher.offer(snapshot(2, state="finished"))
    thread.join(60)
    assert not thread.is_alive()
    said = to.file.getvalue()  # type: ignore[attr-defined]
    assert "test: finished" in said and "amplitude of o" in said and ("▀" in said) == tty


def test_ages_go_on_where_nothing_comes_any_more(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    ages: list[str] = []
    twice = threading.Event()

    def headline(about: Any) -> str:
        ages.append(before(about))
        if len(set(ages)) > 1:
            twice.set()
        return ages[-1]

    before = terminal.headline
    monkeypatch.setattr(terminal, "headline", headline)
    thread = threading.Thread(target=terminal.watch, args=(publisher.endpoint, console(tty=True)), daemon=True)
    thread.start()
    publisher.offer(replace(snapshot(1), newest_frame_ns=time.time_ns()))
    assert twice.wait(60), ages
    publisher.offer(snapshot(2, state="finished"))
    thread.join(60)
    assert not thread.is_alive()


def test_the_main_figures_of_quality_have_a_line_with_their_age() -> None:
    out = console(400, 40)
    out.print(terminal.screen(shown(), 400, 40, colour=False))
    said = out.file.getvalue()  # type: ignore[attr-defined]
    assert "resolution   a pixel or better (halves, 12 iterations, 10.0 % of the time), 0 s ago" in said
    assert "overlap      70 %" in said and "convergence  falling (-4.00 % per iteration), 0 s ago" in said
    bare = console(400, 40)
    bare.print(terminal.screen(shown(quality={}), 400, 40, colour=False))
    assert "resolution" not in bare.file.getvalue()  # type: ignore[attr-defined]
    small = console(80, 24)
    small.print(terminal.screen(shown(), 80, 24, colour=False))
    assert len(small.file.getvalue().splitlines()) <= 24  # type: ignore[attr-defined]
