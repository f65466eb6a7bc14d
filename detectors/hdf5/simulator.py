"""A detector's file writer that is not there: one scan into a growing HDF5 file, in SWMR mode, at a rate.

`python -m ptystream.detectors.hdf5.simulator scan.h5 --frames 400 --rate 100` writes it; another process may read meanwhile.
"""

from __future__ import annotations

import argparse
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..simulated.simulator import Beamline

FRAMES, TRANSLATION, PLACES = "/entry/data/data", "/entry/sample/translation", ("/entry/stage/y", "/entry/stage/x")


def write(
    path: Path,
    beamline: Beamline,
    *,
    codec: Literal["bslz4", "lz4", "gzip", "none"] = "bslz4",
    frames_per_chunk: int = 1,
    swmr: bool = True,
    together: int = 1,
    wait: Callable[[float], object] | None = None,
) -> None:
    """Write one scan; `together` frames between two flushes. Positions in micrometres, energy in eV."""
    import h5py
    import hdf5plugin

    wait = wait or threading.Event().wait
    truth = (beamline.probe(), beamline.object())
    patterns = np.stack([beamline.pattern(k, truth) for k in range(beamline.frames)])
    places = beamline.positions_m() * 1e6
    geometry, side = beamline.geometry(), beamline.side
    filters: dict[str, Any] = {"gzip": {"compression": "gzip"}, "none": {}}.get(codec, {})
    if codec in ("bslz4", "lz4"):
        filters = dict(hdf5plugin.Bitshuffle(cname="lz4") if codec == "bslz4" else hdf5plugin.LZ4())
    with h5py.File(path, "w", libver="v110") as file:
        data = file.create_dataset(
            FRAMES, (0, side, side), "u2", chunks=(frames_per_chunk, side, side), maxshape=(None, side, side), **filters
        )
        stage = [file.create_dataset(name, (0,), "f8", chunks=(64,), maxshape=(None,)) for name in PLACES]
        table = file.create_dataset(TRANSLATION, (0, 3), "f8", chunks=(64, 3), maxshape=(None, 3))
        for dataset in (*stage, table):
            dataset.attrs["units"] = "um"
        file["/entry/beam/energy"] = geometry["energy"] * 1e3
        file["/entry/beam/energy"].attrs["units"] = "eV"
        file["/entry/detector/distance"] = geometry["distance"] * 1e3
        file["/entry/detector/distance"].attrs["units"] = "mm"
        file["/entry/detector/pixel_size"] = geometry["psize"]
        file["/entry/detector/number"] = beamline.frames
        file["/entry/detector/beam_center"] = np.array([side // 2, side // 2], float)
        file["/entry/detector/mask"] = np.zeros((side, side), "u4")
        file["/entry"].attrs["finished"] = 0
        if swmr:
            file.swmr_mode = True
        began = time.monotonic()
        for first in range(0, beamline.frames, together):
            stop = min(first + together, beamline.frames)
            ahead = began + stop / beamline.rate_hz - time.monotonic()
            if ahead > 0 and math.isfinite(ahead) and wait(ahead):
                break
            for dataset in (data, *stage, table):
                dataset.resize(stop, axis=0)
            data[first:stop] = patterns[first:stop]
            stage[0][first:stop], stage[1][first:stop] = places[first:stop].T
            table[first:stop] = np.insert(places[first:stop][:, ::-1], 2, 0.0, axis=1)
            file.flush()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write one simulated scan into a growing HDF5 file.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--frames", type=int, default=400)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--photons", type=float, default=1e6)
    parser.add_argument("--step-px", type=float, default=9.0)
    parser.add_argument("--rate", type=float, default=100.0, help="frames per second")
    parser.add_argument("--codec", choices=["bslz4", "lz4", "gzip", "none"], default="bslz4")
    parser.add_argument("--frames-per-chunk", type=int, default=1)
    given = parser.parse_args()
    beamline = Beamline(
        frames=given.frames,
        side=given.side,
        rate_hz=given.rate,
        photons=given.photons,
        step_px=given.step_px,
        samples_per_frame=1,
    )
    write(given.file, beamline, codec=given.codec, frames_per_chunk=given.frames_per_chunk)


if __name__ == "__main__":
    main()
