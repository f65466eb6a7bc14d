"""Patterns: their counts, spacing and extent."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.spatial import cKDTree

from ptystream.scan.positions import fermat_scan, raster_scan, round_scan, spiral_scan


def nearest(points: np.ndarray) -> np.ndarray:
    """Distance of each point to its nearest neighbour."""
    distances: np.ndarray = cKDTree(points).query(points, 2)[0][:, 1]
    return distances


def test_a_round_scan_has_five_i_points_at_radius_i_times_the_spacing() -> None:
    points = round_scan(2e-6, 4)
    radius = np.rint(np.hypot(*points.T) / 2e-6).astype(int)
    assert np.bincount(radius).tolist() == [1, 5, 10, 15, 20]


def test_a_spiral_fills_its_disc_with_about_one_point_per_spacing_squared() -> None:
    points = spiral_scan(1e-6, 20e-6)
    assert np.hypot(*points.T).max() <= 10e-6
    assert np.hypot(*points.T).max() > 9e-6
    assert len(points) == pytest.approx(math.pi * 100.0, rel=0.05)
    assert nearest(points).min() > 0.5e-6


def test_a_raster_runs_row_by_row_and_a_snake_turns_round() -> None:
    points = raster_scan((5, 6), (1e-6, 2e-6))
    assert len(points) == 30
    np.testing.assert_allclose(points[:7], [[0, 0], *([0, 2e-6 * k] for k in range(1, 6)), [1e-6, 0]], atol=1e-18)
    snake = raster_scan((5, 6), (1e-6, 2e-6), snake=True)
    assert np.hypot(*np.diff(snake, axis=0).T).max() == pytest.approx(2e-6)
    assert sorted(map(tuple, snake)) == sorted(map(tuple, points))


def test_a_fermat_spiral_has_one_point_per_spacing_squared_and_no_lines() -> None:
    points = fermat_scan(1e-6, 400)
    area = math.pi * np.hypot(*points.T).max() ** 2
    assert area / 400 == pytest.approx(1e-12, rel=0.02)
    assert nearest(points)[5:].min() > 0.8e-6
    assert len(np.unique(points[:, 0])) == 400


@pytest.mark.parametrize("call", [lambda: round_scan(0.0, 3), lambda: fermat_scan(1.0, 0), lambda: spiral_scan(1.0, math.nan)])
def test_sizes_that_mean_nothing_are_refused_by_name(call) -> None:
    with pytest.raises(ValueError, match="must be a positive number"):
        call()
