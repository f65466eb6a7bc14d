"""Units as files, controllers and documents spell them, and the factors that lead to ours: metres, keV, seconds, degrees."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.model.geometry import KEV_METRES

_LENGTH = {
    **{"m": 1.0, "cm": 1e-2, "mm": 1e-3, "um": 1e-6, "µm": 1e-6, "μm": 1e-6, "nm": 1e-9, "pm": 1e-12},
    **{"A": 1e-10, "\u00c5": 1e-10, "\u212b": 1e-10},
}
_ENERGY = {"keV": 1.0, "eV": 1e-3, "MeV": 1e3, "J": 1.0 / 1.602176634e-16}
_TIME = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ns": 1e-9}
_ANGLE = {"deg": 1.0, "°": 1.0, "rad": math.degrees(1.0), "mrad": math.degrees(1e-3)}
_ANGLE |= {"urad": math.degrees(1e-6), "µrad": math.degrees(1e-6), "μrad": math.degrees(1e-6)}

DIMENSIONS: Mapping[str, Mapping[str, float]] = {"length": _LENGTH, "energy": _ENERGY, "time": _TIME, "angle": _ANGLE}
"""Dimension → unit → what a value in it is multiplied by."""
OURS = {"length": "m", "energy": "keV", "time": "s", "angle": "deg", "number": ""}
_NAMES = {
    **{"metre": "m", "meter": "m", "millimetre": "mm", "millimeter": "mm", "micrometre": "um", "micrometer": "um"},
    **{"micron": "um", "nanometre": "nm", "nanometer": "nm", "angstrom": "\u00c5", "kev": "keV", "ev": "eV", "joule": "J"},
    **{"second": "s", "degree": "deg"},
}
"""Names in full, of which upper case and a plural do not matter → unit."""
_AMBIGUOUS = ("A",)
"""Units that are another quantity's too, and are known only where the dimension is: ångström or ampere."""


class UnitError(ValueError):
    """A unit that is missing, unknown or of another quantity."""


def _plain(unit: str) -> str:
    name = unit.strip()
    return _NAMES.get(name.lower().removesuffix("s"), name)


def factor(unit: str) -> float:
    """What a value in `unit`, of whatever dimension, is multiplied by; '' is 1. Raises `UnitError` with the known ones."""
    name = _plain(unit)
    if not name:
        return 1.0
    known = {key: value for table in DIMENSIONS.values() for key, value in table.items() if key not in _AMBIGUOUS}
    if name not in known:
        raise UnitError(f"the unit {unit!r} is not known; known are {', '.join(known)}")
    return known[name]


def factor_of(unit: str | None, dimension: str) -> float:
    """What a reading of this dimension in `unit` is multiplied by. Raises `UnitError`; plain numbers take any unit, unchanged."""
    if dimension == "number":
        return 1.0
    if unit is None or not unit.strip():
        raise UnitError(f"no unit is told: add e.g. '; unit={OURS[dimension]}' to the locator")
    found = DIMENSIONS[dimension].get(_plain(unit))
    if found is None:
        raise UnitError(f"unit {unit!r:.40} is none of a {dimension}: possible are {', '.join(DIMENSIONS[dimension])}")
    return found


def is_length(unit: str | None) -> bool:
    """Whether it is a unit of length: of an energy, then, the wavelength is told."""
    return unit is not None and _plain(unit) in _LENGTH


def converted(values: NDArray[Any], unit: str | None, dimension: str) -> NDArray[np.float64]:
    """Readings in our unit; a wavelength, where an energy is wanted, becomes one. Raises `UnitError`."""
    numbers = np.asarray(values, np.float64)
    if dimension == "energy" and is_length(unit):
        with np.errstate(divide="ignore"):
            return np.asarray(KEV_METRES / (numbers * factor_of(unit, "length")))
    return numbers * factor_of(unit, dimension)
