"""Scan patterns of simulations against the formulas and the tabulated raster."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ptystream.detectors.simulated.xy import XyParameters


def places(seed: int = 0, **given: Any) -> np.ndarray:
    found = XyParameters(**given).positions(seed)
    assert found is not None
    return found


def test_a_raster_has_the_tabulated_points_row_after_row() -> None:
    table = np.array([[i * 2e-6, j * 1e-6] for i in range(6) for j in range(5)])
    found = places(model="raster", steps=(6, 5), spacing=(2e-6, 1e-6))
    assert found.shape == (30, 2)
    np.testing.assert_allclose(found, table, atol=1e-18)


def test_a_round_pattern_has_shells_and_is_cut_to_the_square() -> None:
    found = places(model="round", steps=11, spacing=1e-6)
    shells = [np.zeros((1, 2))]
    for i in range(1, 7):
        angle = 2 * np.pi * np.arange(5 * i) / (5 * i)
        shells.append(i * 1e-6 * np.stack([np.sin(angle), np.cos(angle)], 1))
    whole = np.concatenate(shells)
    np.testing.assert_allclose(found, whole[(np.abs(whole) <= 5.5e-6).all(axis=1)], atol=1e-18)
    assert len(found) == 92


def test_a_spiral_runs_out_to_its_extent() -> None:
    found = places(model="spiral", spacing=1e-6, extent=8e-6)
    theta = np.sqrt(4 * np.pi * np.arange(len(found)))
    np.testing.assert_allclose(found, (1e-6 * theta / (2 * np.pi) * [np.sin(theta), np.cos(theta)]).T, atol=1e-18)
    last = 1e-6 * np.sqrt(4 * np.pi * len(found)) / (2 * np.pi)
    assert np.hypot(*found[-1]) <= 4e-6 < last


def test_any_two_of_steps_spacing_and_extent_are_enough() -> None:
    wanted = places(model="round", steps=9, spacing=2e-6)
    for given in ({"steps": 9, "extent": 18e-6}, {"spacing": 2e-6, "extent": 18e-6}):
        np.testing.assert_allclose(places(model="round", **given), wanted, atol=1e-18)
        missing = ({"steps", "spacing", "extent"} - set(given)).pop()
        np.testing.assert_allclose(places(model="round", **given, **{missing: None}), wanted, atol=1e-18)
    with pytest.raises(ValueError, match="give two of steps, spacing and extent; steps is given"):
        XyParameters(model="round", steps=4, spacing=None, extent=None)


def test_of_the_defaults_those_that_were_not_given_follow() -> None:
    assert len(places(model="raster")) == 100
    assert np.abs(places(model="round", steps=20)).max() == pytest.approx(15e-6)  # of 1.5 µm each
    assert np.abs(places(model="round", extent=30e-6)).max() == pytest.approx(15e-6)
    assert np.abs(places(model="round", spacing=0.5e-6)).max() == pytest.approx(2.5e-6)


def test_where_all_three_are_given_the_extent_cuts() -> None:
    whole = places(model="round", steps=10, spacing=1e-6)
    cut = places(model="round", steps=10, spacing=1e-6, extent=4e-6)
    np.testing.assert_allclose(cut, whole[(np.abs(whole) <= 2.0000001e-6).all(axis=1)], atol=1e-18)
    assert 5 < len(cut) < len(whole)


def test_spacing_may_differ_between_rows_and_columns() -> None:
    plain, wide = places(model="round", steps=6, spacing=1e-6), places(model="round", steps=6, spacing=(1e-6, 3e-6))
    np.testing.assert_allclose(wide, plain * [1, 3], atol=1e-18)


def test_offset_count_and_jitter() -> None:
    plain = places(model="raster", steps=4, spacing=1e-6)
    np.testing.assert_allclose(
        places(model="raster", steps=4, spacing=1e-6, offset=(1e-6, -2e-6)), plain + np.array([1e-6, -2e-6])
    )
    np.testing.assert_array_equal(places(model="raster", steps=4, spacing=1e-6, count=7), plain[:7])
    moved = places(model="raster", steps=30, spacing=1e-6, jitter=2e-7) - places(model="raster", steps=30, spacing=1e-6)
    assert np.abs(moved).max() <= 2e-7
    assert moved.std(axis=0) == pytest.approx(2e-7 / np.sqrt(3), rel=0.1)
    assert np.corrcoef(moved.T)[0, 1] == pytest.approx(0, abs=0.12)
    given: dict[str, Any] = {"model": "raster", "steps": 4, "spacing": 1e-6, "jitter": 2e-7}
    np.testing.assert_array_equal(places(**given), places(**given))
    assert (places(**given) != places(seed=1, **given)).any()


def test_positions_that_are_given_are_used() -> None:
    own = [[0.0, 1e-6], [2e-6, 3e-6], [4e-6, 5e-6]]
    np.testing.assert_array_equal(places(model=own, count=2), np.array(own)[:2])
    np.testing.assert_array_equal(places(model="round", override=own, offset=1e-6), own)
    assert XyParameters().positions(0) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"model": "star"},
        {"model": [1.0, 2.0]},
        {"override": [[1.0], [2.0]]},
        {"spacing": 0.0},
        {"extent": -1.0},
        {"steps": 0},
        {"count": 0},
        {"jitter": -1.0},
        {"model": "raster", "steps": 100000},
        {"model": "spiral", "extent": 1e-3, "spacing": 1e-9},
    ],
)
def test_what_is_no_pattern_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(reversed(wrong)) if len(wrong) == 1 else "steps"):
        XyParameters(**wrong)
