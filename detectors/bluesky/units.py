"""Units as they stand in documents, in a small table: metres, keV, degrees and plain numbers are ours."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.model.geometry import KEV_METRES

_LENGTH = {"m": 1.0, "cm": 1e-2, "mm": 1e-3, "um": 1e-6, "µm": 1e-6, "μm": 1e-6, "micron": 1e-6, "microns": 1e-6}
_LENGTH |= {"micrometer": 1e-6, "millimeter": 1e-3, "meter": 1.0, "nanometer": 1e-9, "nm": 1e-9, "pm": 1e-12}
_LENGTH |= {"A": 1e-10, "\u00c5": 1e-10, "\u212b": 1e-10, "angstrom": 1e-10, "angstroms": 1e-10, "Angstrom": 1e-10}
_ENERGY = {"keV": 1.0, "kev": 1.0, "eV": 1e-3, "ev": 1e-3, "MeV": 1e3, "J": 1.0 / 1.602176634e-16}
_ANGLE = {"deg": 1.0, "degree": 1.0, "degrees": 1.0, "°": 1.0, "rad": math.degrees(1.0), "mrad": math.degrees(1e-3)}
_ANGLE |= {"urad": math.degrees(1e-6), "µrad": math.degrees(1e-6), "μrad": math.degrees(1e-6)}

DIMENSIONS = {"length": _LENGTH, "energy": _ENERGY, "angle": _ANGLE}
OURS = {"length": "m", "energy": "keV", "angle": "deg", "number": ""}


class UnitError(ValueError):
    """A unit that is missing, unknown or of another quantity."""


def factor(unit: str | None, dimension: str) -> float:
    """What a reading in `unit` is multiplied by for ours. Raises `UnitError`; plain numbers take any unit, unchanged."""
    if dimension == "number":
        return 1.0
    if unit is None or not unit.strip():
        raise UnitError(f"no unit is told: add e.g. '; unit={OURS[dimension]}' to the locator")
    found = DIMENSIONS[dimension].get(unit.strip())
    if found is None:
        raise UnitError(f"unit {unit!r:.40} is none of a {dimension}: possible are {', '.join(DIMENSIONS[dimension])}")
    return found


def converted(values: NDArray[Any], unit: str | None, dimension: str) -> NDArray[np.float64]:
    """Readings in our unit; a wavelength, where an energy is wanted, becomes one. Raises `UnitError`."""
    numbers = np.asarray(values, np.float64)
    if dimension == "energy" and unit is not None and unit.strip() in _LENGTH:
        with np.errstate(divide="ignore"):
            return np.asarray(KEV_METRES / (numbers * _LENGTH[unit.strip()]))
    return numbers * factor(unit, dimension)
