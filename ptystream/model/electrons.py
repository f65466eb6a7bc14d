"""Fast electrons: how long their waves are, and how strongly a potential turns their phase."""

from __future__ import annotations

import math

PLANCK_JS, ELECTRON_KG, CHARGE_C, LIGHT_M_S = 6.62607015e-34, 9.1093837015e-31, 1.602176634e-19, 299792458.0
"""CODATA 2018."""


def electron_wavelength(kilovolts: float) -> float:
    """De Broglie wavelength of electrons accelerated by a voltage, metres: h / √(2 m e U (1 + e U / (2 m c²)))."""
    energy = CHARGE_C * kilovolts * 1e3
    return PLANCK_JS / math.sqrt(2 * ELECTRON_KG * energy * (1 + energy / (2 * ELECTRON_KG * LIGHT_M_S**2)))


def interaction_constant(kilovolts: float) -> float:
    """Phase that electrons of this energy gain in a projected potential, radians per volt and metre: σ = 2π m γ e λ / h²."""
    gamma = 1 + CHARGE_C * kilovolts * 1e3 / (ELECTRON_KG * LIGHT_M_S**2)
    return 2 * math.pi * ELECTRON_KG * gamma * CHARGE_C * electron_wavelength(kilovolts) / PLANCK_JS**2
