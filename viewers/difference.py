"""Where two reconstructions differ: their phases side by side, and the map of the difference."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ptystream.quality import COVERED
from ptystream.reconstruction import Storage
from ptystream.storage.ptyr import Result
from ptystream.verify import aligned

DPI = 110


class Difference:
    """Entry point 'difference'."""

    @staticmethod
    def save_png(result: Result, others: Mapping[str, Storage], path: str | Path) -> Path:
        """One row for each of `others`, objects to compare with the result's first one: phases, and |difference|."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as Canvas

        figure = Canvas(figsize=(10, 3.4 * max(1, len(others))), layout="constrained")
        FigureCanvasAgg(figure)
        axes = np.atleast_2d(figure.subplots(max(1, len(others)), 3))
        for row, (name, other) in zip(axes, others.items(), strict=True):
            (first, second), weight = aligned(result, other)
            hidden = weight < COVERED * weight.max()
            scale = np.sqrt(np.mean(np.abs(first[~hidden]) ** 2))
            shown = [np.angle(first), np.angle(second), np.abs(first - second) / scale]
            for axis, image, title in zip(row, shown, ("result", name, "difference"), strict=True):
                lit = np.ma.masked_array(image, hidden)
                drawn = axis.imshow(lit, cmap="magma" if title == "difference" else "gray", interpolation="nearest")
                axis.set_title("|difference| / rms" if title == "difference" else f"{title}: phase, rad")
                axis.set_xticks([])
                axis.set_yticks([])
                figure.colorbar(drawn, ax=axis)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=DPI, format="png")
        return path
