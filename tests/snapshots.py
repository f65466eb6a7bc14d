"""Random snapshots for tests of what is published."""

from __future__ import annotations

import time

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
    )
