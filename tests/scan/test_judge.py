"""Positions that are believed, whatever their order."""

from __future__ import annotations

import numpy as np
import pytest

from ptystream.scan.judge import Judge
from ptystream.scan.parameters import PositionsParameters
from ptystream.scan.positions import fermat_scan, raster_scan

PIXEL = (1e-8, 1e-8)


def refused(positions: np.ndarray, step: int, parameters: PositionsParameters | None = None, pixel=PIXEL) -> list[int]:
    """Records refused at the end, when positions come `step` at a time."""
    judge = Judge(pixel, 64, parameters)
    everything = np.full(positions.shape, np.nan)
    for k in range(0, len(positions), step):
        records = np.arange(k, min(k + step, len(positions)))
        everything[records] = positions[records]
        judge.positions(records, positions[records], np.zeros(len(records)), everything)
    judge.again(everything, np.ones(len(positions), bool))
    verdict = dict(judge.verdicts(np.arange(len(positions))))["position_refused"]
    return np.flatnonzero(verdict).tolist()


@pytest.mark.parametrize("step", [1, 7, 1000])
@pytest.mark.parametrize(
    "positions",
    [raster_scan((30, 41), (3e-7, 2e-7)), fermat_scan(4e-7, 500), np.zeros((20, 2)), np.repeat(np.eye(2) * 2e-6, 9, 0)],
    ids=["raster", "fermat", "dwell", "two places"],
)
def test_ordinary_scans_are_believed_as_a_whole(positions: np.ndarray, step: int) -> None:
    assert refused(positions, step) == []


def test_the_verdict_at_the_end_does_not_depend_on_the_order() -> None:
    rng = np.random.default_rng(0)
    positions = fermat_scan(2e-7, 300)
    wild = rng.choice(300, 40, replace=False)
    positions[wild] += rng.choice([-1.0, 1.0], (40, 2)) * 10.0 ** rng.uniform(-3, 3, (40, 1))
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(300)
        assert sorted(order[refused(positions[order], 13)].tolist()) == sorted(wild.tolist())


def test_a_canvas_that_would_not_fit_is_refused_though_the_scan_is_spread_that_far() -> None:
    positions = np.zeros((11, 2))
    positions[:, 0] = np.linspace(-1e-4, 1e-4, 11)
    assert refused(positions, 1) == [0, 1, 2, 8, 9, 10], "half of 11585 pixels of 10 nm are 58 µm"
    assert refused(positions, 1, pixel=None) == []


def test_a_limit_that_the_user_sets_holds() -> None:
    positions = np.zeros((9, 2))
    positions[3, 1], positions[4, 0] = 1.1e-7, 0.9e-7
    assert refused(positions, 2, PositionsParameters(position_limit=1e-7)) == [3]
