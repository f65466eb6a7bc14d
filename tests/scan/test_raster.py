"""A raster in the place of positions: against a walk along its points, and what becomes of frames that are not on it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptystream.events import Frames, Payload, Samples, ScanEnded
from ptystream.scan.block import Block
from ptystream.scan.parameters import PositionsParameters, PtyScanParameters
from ptystream.scan.ptyscan import PtyScan
from ptystream.scan.raster import RasterParameters

STEP, SIDE = 1e-8, 6


def frames(*indices: int) -> Frames:
    pixels = np.full((SIDE, SIDE), 5, "u2")
    return Frames("e", np.asarray(indices), tuple(Payload(pixels.tobytes(), "raw", pixels.dtype, (SIDE, SIDE)) for _ in indices))


def taken(scan: PtyScan) -> list[int]:
    numbers: list[int] = []
    while isinstance(block := scan.take(1000), Block):
        numbers += block.indices.tolist()
    return numbers


def walked(points: tuple[int, int], step: tuple[float, float], degrees: float, snake: bool, flyback: int) -> dict[int, complex]:
    """Frame → x + iy, as somebody counts who follows the beam; the middle of the raster is 0."""
    found, number = {}, 0
    for row in range(points[0]):
        columns = list(range(points[1]))
        if snake and row % 2:
            columns.reverse()
        for column in columns:
            across = step[1] * (column - (points[1] - 1) / 2)
            down = step[0] * (row - (points[0] - 1) / 2)
            found[number] = complex(across, down) * complex(math.cos(math.radians(degrees)), math.sin(math.radians(degrees)))
            number += 1
        number += flyback
    return found


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
    st.tuples(st.floats(1e-11, 1e-8), st.floats(-1e-8, -1e-11)),
    st.floats(-180, 180),
    st.booleans(),
    st.integers(0, 4),
)
def test_every_raster_is_where_a_walk_along_it_comes(
    points: tuple[int, int], step: tuple[float, float], degrees: float, snake: bool, flyback: int
) -> None:
    raster = RasterParameters(points=points, step=step, rotation=degrees, snake=snake, flyback=flyback)
    index, positions = raster.positions()
    wanted = walked(points, step, degrees, snake, flyback)
    assert sorted(index.tolist()) == sorted(wanted) and raster.frames == max(wanted) + 1
    for number, (y, x) in zip(index.tolist(), positions, strict=True):
        assert abs(complex(x, y) - wanted[number]) < 1e-20 + 1e-12 * abs(wanted[number])


def test_a_quarter_turn_takes_a_step_to_the_right_into_one_downwards() -> None:
    _, positions = RasterParameters(points=(1, 2), step=1.0, rotation=90.0).positions()
    np.testing.assert_allclose(np.diff(positions, axis=0), [[1.0, 0.0]], atol=1e-12)


def scanned(**settings: object) -> PtyScan:
    data = {"shape": SIDE, "psize": 1e-4, "distance": 1.0, "energy": 1.0} | settings
    return PtyScan("s", PtyScanParameters(**data), PositionsParameters())


def test_frames_are_paired_when_they_come_and_none_waits() -> None:
    scan = scanned(raster={"points": (2, 3), "step": STEP, "snake": True})
    scan.feed("data", frames(0, 1, 2, 3), 1)
    block = scan.take(10)
    np.testing.assert_allclose(block.positions_m[:, 1] / STEP, [-1, 0, 1, 1], atol=1e-12)
    np.testing.assert_allclose(block.positions_m[:, 0] / STEP, [-0.5, -0.5, -0.5, 0.5], atol=1e-12)
    scan.feed("positions", Samples("e", 0, {"y": np.full(4, 9.0), "x": np.full(4, 9.0)}), 1)
    assert scan.revisions() == []  # what is measured moves nobody
    scan.feed("data", frames(4, 5), 1)
    assert taken(scan) == [4, 5] and scan.ended == "num_frames reached"


def test_frames_of_the_flyback_and_beyond_the_end_are_told() -> None:
    scan = scanned(raster={"points": (2, 3), "step": STEP, "flyback": 2})
    scan.feed("data", frames(0, 1, 2, 3, 4, 8, 9), 1)
    counts = scan.ledger.reason_counts()
    assert counts["flyback"] == 2 and counts["beyond_raster"] == 2
    assert taken(scan) == [0, 1, 2]
    scan.feed("data", frames(5, 6, 7), 1)
    assert taken(scan) == [5, 6, 7] and scan.ended
    assert "position_missing" not in scan.ledger.reason_counts()


def test_the_raster_begins_behind_dark_frames() -> None:
    scan = scanned(raster={"points": (1, 2), "step": STEP}, dark_frames=2)
    scan.feed("data", frames(0, 1, 2, 3), 1)
    scan.feed("data", ScanEnded("e", 4), 1)
    assert taken(scan) == [2, 3]


def test_frames_that_are_not_selected_are_left_out() -> None:
    scan = scanned(positions_theory=np.zeros((5, 2)), selection=[1, 3])
    scan.feed("data", frames(0, 1, 2, 3, 4), 1)
    assert taken(scan) == [1, 3] and scan.ledger.reason_counts()["not_selected"] == 3


def test_a_raster_that_cannot_be_is_refused() -> None:
    for wrong in (
        {"points": (0, 3)},
        {"points": (1 << 20, 1 << 20)},
        {"step": 0.0},
        {"points": (1 << 12, 1), "flyback": 1 << 20},
    ):
        with pytest.raises(ValueError, match=r"must be|allowed"):
            RasterParameters(**wrong)
    with pytest.raises(ValueError, match="`positions_theory` is given too"):
        PtyScanParameters(raster={"points": (2, 2)}, positions_theory=np.zeros((4, 2)))
