"""Where the detector stands: wavelength and pixel on the sample.

The far field is one orthonormal Fourier transform of probe × object. The quadratic phase of the Fresnel integral before that
transform, exp(iπ (X² + Y²)/(λz)), is fixed in the frame and therefore part of the probe as we hold it.
"""

from __future__ import annotations

from dataclasses import dataclass

KEV_METRES = 1.23984193e-9
"""Planck's constant times the speed of light, keV·m (CODATA)."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """Far field of one photon energy. Without energy, distance or detector pixel everything is in object pixels."""

    shape: tuple[int, int]
    """(y, x) of a prepared frame."""
    energy_kev: float | None = None
    distance_m: float | None = None
    detector_pixel_m: tuple[float, float] | None = None
    """(y, x)."""

    @property
    def wavelength_m(self) -> float | None:
        """λ = hc / E."""
        return None if self.energy_kev is None else KEV_METRES / self.energy_kev

    @property
    def pixel_size_m(self) -> tuple[float, float] | None:
        """Far-field pixel on the sample, λ z / (N psize), (y, x); None where something is not known."""
        if self.wavelength_m is None or self.distance_m is None or self.detector_pixel_m is None:
            return None
        lz = self.wavelength_m * self.distance_m
        return (
            lz / (self.shape[0] * self.detector_pixel_m[0]),
            lz / (self.shape[1] * self.detector_pixel_m[1]),
        )
