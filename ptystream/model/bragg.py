"""Bragg geometry in three dimensions: a rocking curve samples reciprocal space on a lattice that is not orthogonal.

Berenguer et al., Phys. Rev. B 88, 144101 (2013). Axes of arrays: (q3, q1, q2) in reciprocal space, (r3, r1, r2) in the sample:
q3 is stepped by the rocking angle, q1 runs along the detector's rows upwards, q2 along its columns. Sample coordinates are
orthogonal: z normal to the planes that reflect, y along r2, x along the planes in the plane of incidence. With the Bragg angle θ

    x = r3 cos θ            qx = q3 - q1 sin θ
    z = r1 + r3 sin θ       qz = q1 cos θ
    y = r2                  qy = q2

so that q · r = (q3 r3 + q1 r1) cos θ + q2 r2, and a three-dimensional Fourier transform leads from one lattice to the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from ptystream.model.fft import Transform
from ptystream.model.geometry import KEV_METRES, Geometry
from ptystream.model.propagate import Propagator

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class BraggGeometry:
    """One reflection, one detector, one rocking curve."""

    shape: tuple[int, int, int]
    """(q3, q1, q2): rocking angles, rows, columns."""
    energy_kev: float
    distance_m: float
    detector_pixel_m: tuple[float, float]
    """(rows, columns)."""
    rocking_step_deg: float
    theta_deg: float
    """Bragg angle θ."""

    @property
    def wavelength_m(self) -> float:
        """λ = hc / E."""
        return KEV_METRES / self.energy_kev

    @property
    def sin(self) -> float:
        """sin θ."""
        return math.sin(math.radians(self.theta_deg))

    @property
    def cos(self) -> float:
        """cos θ."""
        return math.cos(math.radians(self.theta_deg))

    @property
    def steps_per_m(self) -> tuple[float, float, float]:
        """(dq3, dq1, dq2), 1/m: 4π sin θ dθ / λ, and 2π psize / (λ z) for rows and columns."""
        rows, columns = (2 * math.pi * p / (self.distance_m * self.wavelength_m) for p in self.detector_pixel_m)
        return math.radians(self.rocking_step_deg) * 4 * math.pi * self.sin / self.wavelength_m, rows, columns

    @property
    def resolution_m(self) -> tuple[float, float, float]:
        """Pixels in the sample along (r3, r1, r2)."""
        (n3, n1, n2), (dq3, dq1, dq2) = self.shape, self.steps_per_m
        return 2 * math.pi / (n3 * dq3 * self.cos), 2 * math.pi / (n1 * dq1 * self.cos), 2 * math.pi / (n2 * dq2)

    def to_cartesian(self, natural: Floats) -> Floats:
        """(…, [r3, r1, r2]) → (…, [x, z, y]), metres."""
        r3, r1, r2 = np.moveaxis(np.asarray(natural, float), -1, 0)
        return np.stack([r3 * self.cos, r1 + r3 * self.sin, r2], axis=-1)

    def to_natural(self, cartesian: Floats) -> Floats:
        """(…, [x, z, y]) → (…, [r3, r1, r2]), metres: the inverse of `to_cartesian`."""
        x, z, y = np.moveaxis(np.asarray(cartesian, float), -1, 0)
        return np.stack([x / self.cos, z - x / self.cos * self.sin, y], axis=-1)

    def q_to_cartesian(self, natural: Floats) -> Floats:
        """(…, [q3, q1, q2]) → (…, [qx, qz, qy]), 1/m."""
        q3, q1, q2 = np.moveaxis(np.asarray(natural, float), -1, 0)
        return np.stack([q3 - q1 * self.sin, q1 * self.cos, q2], axis=-1)

    def q_to_natural(self, cartesian: Floats) -> Floats:
        """(…, [qx, qz, qy]) → (…, [q3, q1, q2]), 1/m: the inverse of `q_to_cartesian`."""
        qx, qz, qy = np.moveaxis(np.asarray(cartesian, float), -1, 0)
        return np.stack([qx + qz / self.cos * self.sin, qz / self.cos, qy], axis=-1)

    @property
    def slant(self) -> float:
        """Pixels along r1 by which the beam's middle moves down from one slice to the next: its distance from the axis is
        x sin θ + z cos θ = cos θ (r1 + 2 r3 sin θ)."""
        r3, r1, _ = self.resolution_m
        return 2 * self.sin * r3 / r1

    def lattice(self, cartesian: Floats) -> Floats:
        """Beam positions (frame, [x, z, y]) as lattice coordinates (frame, [r3, r1, r2]), r3 whole.

        What is left of r3 goes into r1: a step along the beam changes nothing that the beam does.
        """
        pixels = self.to_natural(cartesian) / np.asarray(self.resolution_m)
        whole = np.floor(pixels[:, 0] + 0.5 + 1e-5)
        pixels[:, 1] += self.slant * (pixels[:, 0] - whole)
        pixels[:, 0] = whole
        return np.asarray(pixels)

    def plane(self) -> BeamPlane:
        """The plane across the beam that the starting probe is made in."""
        n3, n1, n2 = self.shape
        _, r1, r2 = self.resolution_m
        rows = n1 + 2 * math.ceil(self.slant * (n3 // 2 + 1))
        view = (rows, n2)
        return BeamPlane(view, self.energy_kev, self.distance_m, self.detector_pixel_m, pixel_m=(r1 * self.cos, r2))

    def extruded(self, wave: NDArray[Any]) -> NDArray[Any]:
        """A wave across the beam (row, column) as the volume (r3, r1, r2) that it fills."""
        return np.asarray((extrusion(self) @ wave).reshape(self.shape))


@lru_cache(maxsize=8)
def extrusion(geometry: BraggGeometry) -> csr_array:
    """The sparse matrix (r3 · r1, row of the plane across the beam) that spreads a wave along the beam, linearly between rows."""
    n3, n1, _ = geometry.shape
    rows = geometry.plane().view[0]
    k, i = np.divmod(np.arange(n3 * n1), n1)
    at = i - n1 // 2 + geometry.slant * (k - n3 // 2) + rows // 2
    low = np.clip(np.floor(at).astype(int), 0, rows - 2)
    values, columns = np.stack([1 - (at - low), at - low], axis=1), np.stack([low, low + 1], axis=1)
    return csr_array((values.ravel(), columns.ravel(), np.arange(0, 2 * n3 * n1 + 1, 2)), shape=(n3 * n1, rows))


@dataclass(frozen=True, slots=True)
class BeamPlane(Geometry):
    """A plane across the beam: its pixel is given, and nothing is curved."""

    pixel_m: tuple[float, float] = (1.0, 1.0)

    @property
    def pixel_size_m(self) -> tuple[float, float]:
        """As given, (y, x)."""
        return self.pixel_m

    def curvature(self, factor: float | None = None) -> NDArray[np.complex128]:
        """1 everywhere: the transform of a rocking curve has no quadratic phase."""
        return np.ones(self.view, complex)


@dataclass(frozen=True, slots=True, eq=False)
class RockingCurve(Propagator):
    """Slices (pod, frame · q3, r1, r2) → rocking curves (pod, frame, q3 · q1, q2): the orthonormal transform in 3-D."""

    along: Any = None
    """The transform along r3, a unitary matrix (q3, r3)."""

    @property
    def plain(self) -> bool:
        """Never the transform over two axes."""
        return False

    def put(self, put: Callable[[Any], Any]) -> RockingCurve:
        """See `Propagator.put`."""
        return replace(self, along=put(self.along))

    def forward(self, waves: Any, fft2: Transform, ifft2: Transform) -> Any:
        """See `Propagator.forward`."""
        n, (height, width) = len(self.along), waves.shape[-2:]
        waves = fft2(waves).reshape(waves.shape[0], -1, n, height * width)
        return (self.along @ waves).reshape(waves.shape[0], -1, n * height, width)

    def backward(self, waves: Any, fft2: Transform, ifft2: Transform) -> Any:
        """See `Propagator.backward`."""
        n, width = len(self.along), waves.shape[-1]
        height = waves.shape[-2] // n
        waves = self.along.conj().T @ waves.reshape(waves.shape[0], -1, n, height * width)
        return ifft2(waves.reshape(waves.shape[0], -1, height, width))


def rocking_curve(angles: int) -> RockingCurve:
    """The propagator of a rocking curve of so many angles; angle 0 is that of q3 = 0, as zero frequency is pixel [0, 0]."""
    k = np.arange(angles)
    return RockingCurve(along=np.exp(-2j * np.pi * np.outer(k, k) / angles) / math.sqrt(angles))
