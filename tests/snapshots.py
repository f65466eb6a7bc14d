"""Random snapshots for tests of what is published."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from ptystream.publish.snapshot import Image, Snapshot


def snapshot(number: int = 0, *, run: str = "test", state: str = "running", side: int = 20, seed: int | None = None) -> Snapshot:
    """One with two probe modes, two objects of which one has no coverage yet, and odd sizes."""
    r = np.random.default_rng(number if seed is None else seed)

    def wave(*shape: int) -> np.ndarray:
        return (r.normal(size=shape) + 1j * r.normal(size=shape)).astype("c8")

    frames, iterations = int(r.integers(0, 9)), int(r.integers(0, 5))
    return Snapshot(
        run=run,
        number=number,
        created_ns=time.time_ns(),
        engine="DM",
        iteration=iterations,
        state=state,
        probe={"p": Image(wave(2, side, side + 1), (1e-8, 2e-8), (-3, 4))},
        object={
            "o": Image(wave(1, 2 * side, 2 * side + 3), (1e-8, 2e-8), (-7, 9)),
            "q": Image(wave(2, side, side), None, (0, 0)),
        },
        coverage={"o": r.random((2 * side, 2 * side + 3)).astype("f4")},
        positions=r.normal(size=(frames, 2)).astype("f4"),
        errors=r.normal(size=(iterations, 3)),
        misfit=r.normal(size=(iterations, 3)),
        ledger={"received": frames, "used": frames // 2},
        ledger_map=r.normal(size=(frames, 3)).astype("f4"),
        newest_frame_ns=None if number % 2 else time.time_ns(),
        rates={"frames_per_second": 12.5},
        scans=("s", "t")[: number % 3],
        quality=quality(number) if number % 3 else {},
    )


def quality(iteration: int = 7) -> dict[str, dict[str, Any]]:
    """Every figure, each as it is published."""
    when = {"measured_ns": time.time_ns(), "iteration": iteration}
    figures: dict[str, dict[str, Any]] = {
        "frc": {
            "frequency_per_m": [0.0, 1e6, 2e6],
            "correlation": [1.0, 0.9, 0.1],
            "threshold": [1.0, 0.6, 0.4],
            "resolution_m": None,
            "frames": 40,
            "iterations": 12,
            "share": 0.1,
        },
        "coverage": {"overlap": 0.7, "holes": 0.02, "frames_per_beam": 9.5},
        "drift": {"probe_m": [1e-9, -2e-9], "positions_m": [0.0, 3e-9], "rms_m": 4e-9},
        "convergence": {"state": "falling", "per_iteration": -0.04},
        "convention": {
            "ranking": [
                {"name": "as it is", "orientation": 0, "misfit": 0.19},
                {"name": "turned", "orientation": 3, "misfit": 0.2},
            ],
            "ties": [["as it is", "turned"]],
            "lead": 1.9,
            "chosen": "as it is",
            "why": "matter has negative phase",
        },
    }
    return {name: values | when for name, values in figures.items()}
