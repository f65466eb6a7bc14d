"""Snapshots in a Jupyter notebook: one that a cell ends with, and one that goes on below it."""

from __future__ import annotations

import base64
import html
import io
import sys
import threading
from typing import Any

import numpy as np

from ptystream.notebook import display_in_notebook
from ptystream.publish.snapshot import Snapshot

from .client import OVER, Client
from .figure import draw
from .layouts import LAYOUTS

DPI = 80


def picture(snapshot: Snapshot, layout: str = "jupyter") -> bytes:
    """A snapshot as PNG, in a layout of the figures."""
    held = io.BytesIO()
    draw(snapshot, layout).savefig(held, dpi=DPI, format="png")
    return held.getvalue()


def as_html(snapshot: Snapshot) -> str:
    """A snapshot as a notebook shows it: how far it is, and its picture."""
    misfit = snapshot.misfit[:, 0][np.isfinite(snapshot.misfit[:, 0])] if len(snapshot.misfit) else np.zeros(0)
    told = [
        ("run", snapshot.run),
        ("state", snapshot.state),
        ("iteration", f"{snapshot.iteration} ({snapshot.engine})" if snapshot.engine else snapshot.iteration),
        ("frames", f"{snapshot.ledger.get('used', 0)} used, {snapshot.ledger.get('received', 0)} received"),
        ("misfit", f"{misfit[-1]:.4g}" if len(misfit) else "not known yet"),
    ]
    cells = "".join(f"<th>{html.escape(str(name))}</th><td>{html.escape(str(value))}</td>" for name, value in told)
    shown = f'<img src="data:image/png;base64,{base64.b64encode(picture(snapshot)).decode()}" style="max-width: 100%">'
    return f"<table><tr>{cells}</tr></table>{shown if snapshot.object else ''}"


def register() -> bool:
    """Have IPython show snapshots as pictures; returns whether one is there. Every `Client` calls it."""
    module = sys.modules.get("IPython")
    shell = None if module is None else module.get_ipython()
    formatter = getattr(getattr(shell, "display_formatter", None), "formatters", {}).get("text/html")
    if formatter is None:
        return False
    formatter.for_type(Snapshot, as_html)
    return True


class Showing:
    """Draws below a cell until `stop`, or until the run is over."""

    def __init__(self, client: Client, cell: Any, layout: str, interval_s: float) -> None:
        self.client, self.drawn = client, 0
        self._cell, self._layout, self._interval_s = cell, layout, interval_s
        self._over = threading.Event()
        client.on_snapshot(self._draw)

    def _draw(self, snapshot: Snapshot) -> None:
        if self._over.is_set():
            return
        self._cell(picture(snapshot, self._layout))
        self.drawn += 1
        if snapshot.state in OVER:
            self.stop()
        else:
            self._over.wait(self._interval_s)  # the client gives the newest one next, whatever came meanwhile

    def stop(self) -> None:
        """The last picture stays."""
        self._over.set()
        self.client.close()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether it is over, after at most `timeout_s`."""
        return self._over.wait(timeout_s)


def show(endpoint: str, *, layout: str = "jupyter", interval_s: float = 1.0, wait: bool = False, **more: Any) -> Showing:
    """Draw what a session publishes below the running cell, in place, at most every `interval_s`; the cell ends at once, or with
    `wait` when the run is over. `more` as of `Client`. Raises `RuntimeError` outside of a notebook, `ValueError` for an unknown
    layout."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout: {layout!r}: must be one of {', '.join(LAYOUTS)}")
    cell = display_in_notebook()
    if cell is None:
        raise RuntimeError("this is no notebook: loop over a Client, or use `ptystream view`")
    showing = Showing(Client(endpoint, **more), cell, layout, interval_s)
    if wait:
        showing.wait()
    return showing
