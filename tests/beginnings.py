"""What tests of starting probes and objects share."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ptystream.model.geometry import Geometry
from ptystream.reconstruction import Storage
from ptystream.storage import ptyr

PIXELS = Geometry((64, 64), 7.2, 2.0, (1e-4, 1e-4)).pixel_size_m


def center_of(wave: np.ndarray) -> tuple[float, float]:
    power = np.abs(wave) ** 2
    y, x = np.indices(power.shape)
    return float((power * y).sum() / power.sum()) - 32, float((power * x).sum() / power.sum()) - 32


def result(path: Path, pixel: tuple[float, float] | None = PIXELS, names: tuple[str, ...] = ("SaG00",)) -> str:
    r = np.random.default_rng(5)
    probes, objects = {}, {}
    for name in names:
        probes[name] = Storage(r.normal(size=(2, 48, 48)).astype("c8"), pixel)
        objects[name] = Storage(r.normal(size=(1, 90, 80)).astype("c8"), pixel, (-50, -30))
    empty = {"ledger": {}, "schedule": [], "decisions": {}, "versions": {}, "iter_info": [], "parameters": {}}
    nothing = np.zeros((0, 3))
    given = {"positions_m": np.zeros((0, 2)), "errors": nothing, "misfit": nothing, "ledger_frames": nothing}
    ptyr.write(path, ptyr.Result(run="r", probe=probes, object=objects, **empty, **given))
    return str(path)
