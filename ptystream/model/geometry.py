"""Where the detector stands: wavelength, pixel on the sample, and the frame in which a probe lives.

Far field: the pixel on the sample is λ z / (N psize), unless `resolution` forces another one; the detector then spans
λ z / (resolution psize) pixels of the exit wave's transform, and the frame of probe and exit wave is that number of pixels to
the nearest even difference. Near field: the pixel on the sample is the detector's. `resample` makes the exit wave's picture on
the detector finer by a whole factor: in the far field the frame covers more of the sample at the same pixel, in the near field
the same at a smaller pixel. `pad` makes that picture wider than the detector by so many of its pixels on each side: in the far
field the pixel on the sample is smaller, λ z / ((N + 2 pad) psize), and the frame covers as much; in the near field the frame
covers more.

Light is told by the energy of its photons, electrons by the voltage that accelerated them.

The quadratic phase of the Fresnel integral before the far-field transform, exp(iπ (X² + Y²)/(λz)), is fixed in the frame and
therefore part of the probe as we hold it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.model.electrons import electron_wavelength

KEV_METRES = 1.23984193e-9
"""Planck's constant times the speed of light, keV·m (CODATA)."""
MAX_SIDE = 1 << 15
"""Longest side of a frame, pixels."""
LENGTHS = "needs data.energy (or data.acc_voltage), data.distance and data.psize, and positions in metres"


class GeometryError(ValueError):
    """A set-up that cannot be: the parameter of the scan, its value, and what would work."""

    def __init__(self, name: str, value: Any, remedy: str) -> None:
        super().__init__(f"{name}: {value!r}: {remedy}")
        self.name, self.value, self.remedy = name, value, remedy


@dataclass(frozen=True, slots=True)
class Geometry:
    """One photon energy, or electrons of one voltage. Without energy or voltage, distance and detector pixel everything is in
    object pixels."""

    shape: tuple[int, int]
    """(y, x) of a prepared frame."""
    energy_kev: float | None = None
    distance_m: float | None = None
    detector_pixel_m: tuple[float, float] | None = None
    """(y, x)."""
    near: bool = False
    """Whether the detector stands in the near field."""
    resample: int = 1
    """Pixels of the model along a side of a detector pixel."""
    resolution_m: float | None = None
    """Pixel forced on the sample; None: the one that follows."""
    voltage_kv: float | None = None
    """Of electrons, in the place of a photon energy."""
    pad: int = 0
    """Pixels of the detector, on each side, that the model has and the detector has not."""
    signals: int | None = None
    """A frame is a row of so many numbers that virtual detectors made of a pattern of `shape`; None: it is the pattern."""

    def __post_init__(self) -> None:
        lacking = self.wavelength_m is None or self.distance_m is None or self.detector_pixel_m is None
        if self.near and lacking:
            raise GeometryError("propagation", "nearfield", LENGTHS)
        if self.near and self.resolution_m is not None:
            remedy = "in the near field the pixel is the detector's; make it finer with `resample`"
            raise GeometryError("resolution", self.resolution_m, remedy)
        if self.resolution_m is not None and lacking:
            raise GeometryError("resolution", self.resolution_m, LENGTHS)
        if min(self.view) < 2 or max(self.view) > MAX_SIDE:
            remedy = f"makes a frame of {self.view} pixels: must be 2 to {MAX_SIDE}"
            raise GeometryError("resample" if self.resolution_m is None else "resolution", self.resolution_m, remedy)

    def at(self, factor: float) -> Geometry:
        """The same set-up with the energy times `factor`."""
        return replace(self, energy_kev=None if self.energy_kev is None else self.energy_kev * factor)

    @property
    def wavelength_m(self) -> float | None:
        """λ = hc / E, or that of the electrons."""
        if self.voltage_kv is not None:
            return electron_wavelength(self.voltage_kv)
        return None if self.energy_kev is None else KEV_METRES / self.energy_kev

    @property
    def fine(self) -> tuple[int, int]:
        """(y, x) of the model on the detector: the frame's shape with its `pad`, times `resample`."""
        return self.padded[0] * self.resample, self.padded[1] * self.resample

    @property
    def padded(self) -> tuple[int, int]:
        """(y, x) of the frame and what the model has around it, detector pixels."""
        return self.shape[0] + 2 * self.pad, self.shape[1] + 2 * self.pad

    @property
    def pixel_size_m(self) -> tuple[float, float] | None:
        """Pixel on the sample, (y, x); None where something is not known."""
        if self.wavelength_m is None or self.distance_m is None or self.detector_pixel_m is None:
            return None
        if self.near:
            return self.detector_pixel_m[0] / self.resample, self.detector_pixel_m[1] / self.resample
        if self.resolution_m is not None:
            return self.resolution_m, self.resolution_m
        lz = self.wavelength_m * self.distance_m
        return lz / (self.padded[0] * self.detector_pixel_m[0]), lz / (self.padded[1] * self.detector_pixel_m[1])

    @property
    def cycle(self) -> tuple[float, float]:
        """Pixels of the fine model on the detector after which the far field of one pixel on the sample repeats, (y, x):
        resample · λ z / (pixel · psize)."""
        pixel = self.pixel_size_m
        if pixel is None or self.resolution_m is None:
            return float(self.fine[0]), float(self.fine[1])
        assert self.wavelength_m is not None and self.distance_m is not None and self.detector_pixel_m is not None
        lz = self.wavelength_m * self.distance_m * self.resample
        y, x = (round(lz / (p * d), 9) for p, d in zip(pixel, self.detector_pixel_m, strict=True))
        return y, x

    @property
    def view(self) -> tuple[int, int]:
        """(y, x) of the frame in which probe and exit wave live: `fine`, changed by an even number of pixels to `cycle`."""
        y, x = (n + 2 * int(np.floor((c - n) / 2 + 0.5)) for n, c in zip(self.fine, self.cycle, strict=True))
        return y, x

    def curvature(self, factor: float | None = None) -> NDArray[np.complex128]:
        """exp(iπ (Y² + X²)/(λz)) on the frame of the far field, (y, x); with `factor` that of so many times the energy without
        that of this one. 1 where lengths are not known, and in the near field."""
        pixel = self.pixel_size_m
        if self.near or pixel is None or self.wavelength_m is None or self.distance_m is None:
            return np.ones(self.view, complex)
        inverse = (1.0 if factor is None else factor - 1.0) / (self.wavelength_m * self.distance_m)
        y, x = ((np.arange(n) - n // 2) * p for n, p in zip(self.view, pixel, strict=True))
        return np.asarray(np.exp(1j * np.pi * inverse * (y[:, None] ** 2 + x**2)))
