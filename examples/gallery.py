"""The pictures of docs/tutorial/gallery.md: one scan, simulated and reconstructed, in every layout; for volumes the film of
rocking_curves.

usage: gallery.py [FOLDER]
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from from_a_script import main as reconstruct
from PIL import Image as Picture
from rocking_curves import film

from ptystream.publish.snapshot import Snapshot
from ptystream.storage import ptyr
from ptystream.viewers.figure import Figure, seen_in
from ptystream.viewers.layouts import LAYOUTS

DPI, COLOURS = 60, 200


def weak(seen: Snapshot) -> Snapshot:
    """The same sample with a fiftieth of its contrast."""
    faint = {n: replace(i, data=np.abs(i.data) ** 0.02 * np.exp(0.02j * np.angle(i.data))) for n, i in seen.object.items()}
    return replace(seen, object=faint)


def main(folder: str = "docs/images/gallery") -> None:
    """Draw them all, small and with few colours."""
    with tempfile.TemporaryDirectory() as home:
        seen = seen_in(ptyr.read(reconstruct(home).results[0]))
        volume = seen_in(ptyr.read(film.main(home).results[0]))
    shown = dict.fromkeys(LAYOUTS, seen) | {"weak": weak(seen), "bragg3d": volume}
    for layout, snapshot in shown.items():
        path = Figure.save(snapshot, Path(folder) / f"{layout}.png", layout, DPI)
        with Picture.open(path) as picture:
            small = picture.convert("RGB").quantize(COLOURS)
        small.save(path, optimize=True)
        print(path, path.stat().st_size)


if __name__ == "__main__":
    main(*sys.argv[1:])
