"""One table of units for files, controllers and documents."""

from __future__ import annotations

import importlib.util
import math

import pytest

from ptystream.detectors.units import DIMENSIONS, UnitError, factor, factor_of


def test_a_unit_means_the_same_wherever_it_is_told() -> None:
    for dimension, table in DIMENSIONS.items():
        for unit, value in table.items():
            assert factor_of(unit, dimension) == value
            assert unit == "A" or factor(unit) == value
    assert importlib.util.find_spec("ptystream.detectors.bluesky.units") is None


@pytest.mark.parametrize(
    ("unit", "value"),
    [("Micrometers", 1e-6), (" mm ", 1e-3), ("microns", 1e-6), ("Angstrom", 1e-10), ("KEV", 1.0), ("urad", math.degrees(1e-6))],
)
def test_names_in_full_are_known_however_they_are_written(unit: str, value: float) -> None:
    assert factor(unit) == pytest.approx(value)


def test_what_is_not_known_is_refused_with_what_is() -> None:
    with pytest.raises(UnitError, match=r"furlong.*known are m, cm"):
        factor("furlong")
    with pytest.raises(UnitError, match="none of a length: possible are m, cm"):
        factor_of("keV", "length")
    with pytest.raises(UnitError, match="'A' is not known"):
        factor("A")  # an ammeter's
    assert factor_of("A", "length") == 1e-10
    assert factor("") == factor_of("counts", "number") == 1.0
