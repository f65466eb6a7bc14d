"""A small result for tests of what is drawn."""

from __future__ import annotations

from typing import Any

import numpy as np

from ptystream.reconstruction import Storage
from ptystream.storage.ptyr import Result


def result(pixel: tuple[float, float] | None = (3e-8, 3e-8), iterations: int = 12, **changed: Any) -> Result:
    """A disc with a phase ramp, seen by 30 frames; `changed` replaces fields."""
    y, x = np.mgrid[-40:40, -45:45]
    image = np.exp(-1j * (np.hypot(y, x) < 25) + 0.05j * x).astype("c8")[None]
    probe = (np.exp(-(y[30:50, 30:50] ** 2) / 30.0 - x[30:50, 35:55] ** 2 / 30.0) * (1 + 0.5j)).astype("c8")[None]
    given: dict[str, Any] = {
        "run": "drawn",
        "probe": {"S": Storage(probe, pixel, (0, 0), 0.0, None)},
        "object": {"S": Storage(image, pixel, (-40, -45), 1.0, None)},
        "parameters": {},
        "iter_info": [],
        "positions_m": np.random.default_rng(0).uniform(-20, 20, (30, 2)) * (pixel[0] if pixel else 1),
        "errors": np.geomspace(10, 1, max(iterations, 1))[:iterations, None] * np.ones(3),
        "misfit": np.geomspace(5, 1, max(iterations, 1))[:iterations, None] * np.ones(3),
        "ledger": {"used": 30},
        "ledger_frames": np.column_stack([np.random.default_rng(0).uniform(-20, 20, (30, 2)), np.full(30, 2)]).astype("f4"),
        "schedule": [],
        "decisions": {},
        "versions": {},
        "coverage": {"S": (np.hypot(y, x) < 36).astype("f4")},
    }
    return Result(**(given | changed))
