"""Refractive indices of matter, offline, from xraydb's tables (Elam and Chantler)."""

from __future__ import annotations

from typing import Any


def index(formula: str, density: float | None, energy_kev: float) -> complex:
    """-δ + iβ of a compound, so that a wave passes thickness t as exp(i k t (-δ + iβ)).

    `density` in g/cm³; None or not above 0: the tabulated one. Raises `ValueError` for a formula that cannot be read, and
    where there is no tabulated density.
    """
    xraydb = _tables()
    if density is None or not density > 0:
        density = _density(xraydb, formula)
    try:
        delta, beta, _ = xraydb.xray_delta_beta(formula, float(density), energy_kev * 1000.0)
    except Exception as error:  # of many kinds
        raise ValueError(f"formula: {formula!r} at {energy_kev:g} keV: {error}") from error
    if not (abs(delta) < 1 and abs(beta) < 1):
        raise ValueError(f"formula: {formula!r} at {energy_kev:g} keV: the tables give no value for this energy")
    return complex(-float(delta), float(beta))


def check(formula: str, density: float | None) -> None:
    """Whether the tables know the formula. Raises `ValueError` that says what would work."""
    xraydb = _tables()
    try:
        if not xraydb.chemparse(formula):
            raise ValueError("no element is named")
    except Exception as error:  # of many kinds
        raise ValueError(f"formula: {formula!r} cannot be read ({error}): write elements and numbers, like SiO2") from error
    if density is None or not density > 0:
        _density(xraydb, formula)


def _density(xraydb: Any, formula: str) -> float:
    """Tabulated density of an element or a material of that formula."""
    elements = xraydb.chemparse(formula)
    if len(elements) == 1:
        return float(xraydb.atomic_density(next(iter(elements))))
    for material in xraydb.get_materials().values():
        if xraydb.chemparse(material.formula) == elements:
            return float(material.density)
    raise ValueError(f"density: no tabulated density of {formula!r}: give one in g/cm³")


def _tables() -> Any:
    import xraydb

    return xraydb
