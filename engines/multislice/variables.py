"""What the optimiser moves: the quantities themselves, or the phase or modulus that they are made of.

An object that changes in its phase alone is o = |o₀| exp(iφ), with φ the variable; a probe of which the phase (modulus) of the
spectrum alone changes is P = F⁻¹[|P̂₀| exp(iφ)] (F⁻¹[a exp(iφ₀)]). Gradients follow by the chain rule; the product of vectors
is then that of real arrays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..backend import Backend

WHOLE, PHASE, SPECTRAL_PHASE, SPECTRAL_MODULUS = "whole", "phase", "phase of the spectrum", "modulus of the spectrum"


@dataclass(slots=True)
class Variables:
    """How the variables of one stretch of epochs are made of the quantities at its beginning."""

    on: Backend
    kinds: Mapping[str, str]
    """Name → kind, of those that are not whole."""
    fixed: dict[str, Any]
    """What of them does not change: a modulus, or a phase factor."""

    @classmethod
    def of(cls, on: Backend, quantities: Mapping[str, Any], kinds: Mapping[str, str]) -> Variables:
        """With what stays taken from `quantities`."""
        fixed, xp = {}, on.xp
        for name, kind in kinds.items():
            held = quantities[name] if kind == PHASE else on.fft2(quantities[name].copy())
            fixed[name] = xp.exp(1j * xp.angle(held)).astype(held.dtype) if kind == SPECTRAL_MODULUS else xp.abs(held)
        return cls(on, dict(kinds), fixed)

    def taken(self, quantities: Mapping[str, Any]) -> dict[str, Any]:
        """The variables of quantities."""
        found = dict(quantities)
        for name, kind in self.kinds.items():
            held = found[name] if kind == PHASE else self.on.fft2(found[name].copy())
            found[name] = (held * self.fixed[name].conj()).real if kind == SPECTRAL_MODULUS else self.on.xp.angle(held)
        return found

    def given(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """The quantities of variables."""
        found, xp = dict(variables), self.on.xp
        for name, kind in self.kinds.items():
            value, fixed = variables[name], self.fixed[name]
            wave = value * fixed if kind == SPECTRAL_MODULUS else fixed * xp.exp(1j * value)
            found[name] = wave if kind == PHASE else self.on.ifft2(wave)
        return found

    def pulled(self, gradient: Mapping[str, Any], quantities: Mapping[str, Any]) -> dict[str, Any]:
        """The gradient by variables, of that by quantities."""
        found = dict(gradient)
        for name, kind in self.kinds.items():
            if name not in gradient:
                continue
            if kind == PHASE:
                found[name] = -2 * (gradient[name].conj() * quantities[name]).imag
                continue
            slope, held = (self.on.fft2(array.copy()) for array in (gradient[name], quantities[name]))
            spectral_modulus = kind == SPECTRAL_MODULUS
            found[name] = 2 * (slope.conj() * self.fixed[name]).real if spectral_modulus else -2 * (slope.conj() * held).imag
        return found
