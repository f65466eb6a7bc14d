"""Units as files and controllers spell them, and the factors that lead to ours: metres, keV, seconds, degrees."""

from __future__ import annotations

import math

FACTORS = {
    "": 1.0,
    "m": 1.0,
    "cm": 1e-2,
    "mm": 1e-3,
    "um": 1e-6,
    "µm": 1e-6,
    "μm": 1e-6,
    "micron": 1e-6,
    "microns": 1e-6,
    "nm": 1e-9,
    "pm": 1e-12,
    "keV": 1.0,
    "eV": 1e-3,
    "MeV": 1e3,
    "J": 1.0 / 1.602176634e-16,
    "s": 1.0,
    "ms": 1e-3,
    "us": 1e-6,
    "ns": 1e-9,
    "deg": 1.0,
    "degree": 1.0,
    "degrees": 1.0,
    "rad": 180.0 / math.pi,
    "mrad": 0.18 / math.pi,
}
"""Unit → what a value in it is multiplied by."""
_LONG = {
    "metre": "m",
    "meter": "m",
    "metres": "m",
    "meters": "m",
    "millimetre": "mm",
    "millimeter": "mm",
    "micrometre": "um",
    "micrometer": "um",
    "nanometre": "nm",
    "nanometer": "nm",
    "joule": "J",
    "second": "s",
    "seconds": "s",
    "kev": "keV",
    "ev": "eV",
}


def factor(unit: str) -> float:
    """What a value in `unit` is multiplied by. Raises `ValueError` with the known ones."""
    name = unit.strip()
    name = _LONG.get(name.lower(), name)
    if name not in FACTORS:
        raise ValueError(f"the unit {unit!r} is not known; known are {', '.join(key for key in FACTORS if key)}")
    return FACTORS[name]
