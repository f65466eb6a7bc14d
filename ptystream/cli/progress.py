"""The progress line of a live session: one line that a person can read from across the hutch."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text


def describe(status: dict[str, Any]) -> str:
    """One line: frames received/used, iteration, error and misfit, age of the newest frame in the picture, frames/s."""
    expected = f"/{status['expected']}" if status.get("expected") else ""
    parts = [
        f"{status['run']}: {status['state']}",
        f"frames {status['received']}{expected} received, {status['used']} used",
        f"iteration {status['iteration']}",
    ]
    if status.get("error") is not None:
        name, value = status["error"]
        parts.append(f"{name} {value:.4g}")
    if status.get("misfit") is not None:
        parts.append(f"misfit {status['misfit']:.3g}")
    if status.get("age_s") is not None:
        parts.append(f"newest frame {status['age_s']:.1f} s old")
    parts.append(f"{status['frames_per_second']:.0f} frames/s")
    if status.get("unrecorded"):
        parts.append(f"DISK FULL: {status['unrecorded']} messages not recorded")
    parts += [f"FAILED: {why}" for why in status.get("failures", ())]
    return "  ".join(parts)


@contextmanager
def progress_line(status: Callable[[], dict[str, Any]], console: Console, interval_s: float = 0.25) -> Iterator[None]:
    """Keep the line current in a terminal; elsewhere print it every 5 s."""
    over = threading.Event()
    terminal = console.is_terminal and sys.stdout.isatty()
    period = interval_s if terminal else 5.0

    def follow() -> None:
        if not terminal:
            while not over.wait(period):
                console.print(describe(status()), markup=False, highlight=False)
            return
        with Live(Text(""), console=console, refresh_per_second=8, transient=False) as live:
            while not over.wait(period):
                live.update(Text(describe(status())))
            live.update(Text(describe(status())))

    thread = threading.Thread(target=follow, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(5.0)
