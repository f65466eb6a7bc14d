"""The pictures of engines in docs/tutorial/gallery.md: one simulated scan, reconstructed by each of them; rocking curves by
DM_3dBragg.

usage: engines.py [FOLDER]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image as Picture
from rocking_curves import film

import ptystream
from ptystream.storage import ptyr
from ptystream.viewers.figure import Figure, seen_in

DPI, COLOURS = 50, 160
ENGINES: dict[str, dict[str, Any]] = {
    "DM": {"numiter": 120, "average_last": 20},
    "RAAR": {"numiter": 150, "average_last": 20},
    "EPIE": {"numiter": 120},
    "SDR": {"numiter": 120, "tau": 0.5, "average_last": 20},
    "ML": {"numiter": 150, "scale_precond": True},
    "DMOPR": {"numiter": 120, "average_last": 20},
    "MLOPR": {"numiter": 150},
}


def reconstruct(name: str, home: str) -> Path:
    """One engine on a flower in the light of the moon; the result's path."""
    p = ptystream.Param(run=name, io={"home": home, "rfile": "%(run)s.ptyr"})
    p.io.update({"recording": {"active": False}, "autosave": {"active": False}})
    data = {"name": "MoonFlowerScan", "shape": 64, "num_frames": 200, "density": 0.15, "photons": 1e8}
    model = "OPRModel" if name.endswith("OPR") else "Full"
    p.scans = {"MF": {"name": model, "data": data, "illumination": {"aperture": {"size": 3e-6}}}}
    p.engines = {"engine": {"name": name, **ENGINES[name]}}
    return ptystream.Ptycho(p).run().results[0]


def main(folder: str = "docs/images/gallery") -> None:
    """Draw them all, small and with few colours."""
    with tempfile.TemporaryDirectory() as home:
        for name in (*ENGINES, "DM_3dBragg"):
            flat = name in ENGINES
            result = reconstruct(name, home) if flat else film.main(home).results[0]
            path = Path(folder) / f"engine-{name}.png"
            Figure.save(seen_in(ptyr.read(result)), path, "minimal" if flat else "bragg3d", DPI)
            with Picture.open(path) as picture:
                small = picture.convert("RGB").quantize(COLOURS)
            small.save(path, optimize=True)
            print(path, path.stat().st_size)


if __name__ == "__main__":
    main(*sys.argv[1:])
