"""A picture of a reconstruction, running or finished: object, probe, errors and positions, as a person wants to see them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ptystream.publish.snapshot import Image, Snapshot
from ptystream.storage.ptyr import Result

from .layouts import LAYOUTS
from .panels import LEDGER_COLOURS, MAX_OBJECTS, OF_ALL, PANELS, Seen, hue_image, scan_map

__all__ = ["LEDGER_COLOURS", "Figure", "draw", "hue_image", "scan_map"]

DPI = 110


class Figure:
    """Entry point 'figure': `save_png(result, path)` of a result, `save(snapshot, path, layout)` of a running reconstruction."""

    @staticmethod
    def save_png(result: Result, path: str | Path, layout: str = "default") -> Path:
        """Draw a result and write it as PNG."""
        return Figure.save(seen_in(result), path, layout)

    @staticmethod
    def draw_result(result: Result, layout: str = "default") -> Any:
        """A matplotlib figure of a result."""
        return draw(seen_in(result), layout)

    @staticmethod
    def save(snapshot: Snapshot, path: str | Path, layout: str = "default", dpi: int = DPI) -> Path:
        """Draw a snapshot and write it in the format that the path's ending names; the file is whole or not there."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".part-{path.name}")
        try:
            draw(snapshot, layout).savefig(partial, dpi=dpi)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        return path


def draw(snapshot: Snapshot, layout: str = "default") -> Any:
    """A matplotlib figure of a snapshot in one of the `LAYOUTS`; needs no display.

    Of several objects, such as those of scans that share none, each has rows of its own.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    chosen = LAYOUTS[layout]
    seen = [Seen(snapshot, chosen, number) for number in range(max(1, min(len(snapshot.object), MAX_OBJECTS)))]
    rows = [(each, names) for names in chosen.panels for each in (seen if not set(names) <= set(OF_ALL) else seen[:1])]
    width, height = chosen.size
    figure = Canvas(figsize=(width, height * len(rows) / len(chosen.panels)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), len(chosen.panels[0]), squeeze=False)
    for row, (each, names) in zip(axes, rows, strict=True):
        for axis, name in zip(row, names, strict=True):
            if each.number and name in OF_ALL:
                axis.set_axis_off()
            else:
                PANELS[name](axis, each)
    used = snapshot.ledger.get("used", 0)
    series = "" if snapshot.series is None else f", series {snapshot.series}"
    series += "" if snapshot.angle is None else f", {snapshot.angle:g}°"
    figure.suptitle(f"{snapshot.run}{series}: {len(snapshot.errors)} iterations, {used} frames")
    return figure


def seen_in(result: Result) -> Snapshot:
    """A result as the snapshot that viewers would have got last."""

    def images(held: Any) -> dict[str, Image]:
        return {name: Image(s.data, s.pixel_size_m, s.offset) for name, s in held.items()}

    return Snapshot(
        run=result.run,
        number=0,
        created_ns=0,
        engine=str(result.iter_info[-1]["engine"]) if result.iter_info else "",
        iteration=len(result.errors),
        state="finished",
        probe=images(result.probe),
        object=images(result.object),
        coverage=result.coverage,
        positions=np.zeros((0, 2), np.float32),
        errors=result.errors,
        misfit=result.misfit,
        ledger=result.ledger,
        ledger_map=result.ledger_frames,
        newest_frame_ns=None,
        series=next((told["series"] for told in result.scans.values() if told.get("series") is not None), None),
        scans=tuple(result.scans),
        angle=next((told["angle"] for told in result.scans.values() if told.get("angle") is not None), None),
    )
