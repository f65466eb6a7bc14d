"""Where a crystal may be: a layer or a rod in the coordinates of the sample, of known size or shrunk to what was found.

Profiles are taken on the natural lattice (r3, r1, r2) of the Bragg geometry with the coordinates of its voxels, so nothing is
interpolated: x = r3 cos θ, z = r1 + r3 sin θ, y = r2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptystream.model.blur import widths

Floats = NDArray[np.float64]

LEAST = 0.2
"""Part of the brightest sample's light below which a sample of a profile is damped."""


@dataclass(frozen=True, slots=True)
class Lattice:
    """Voxels of an object in the sample."""

    corner: tuple[int, int, int]
    """Lattice coordinates (r3, r1, r2) of the first voxel."""
    shape: tuple[int, int, int]
    pixel_m: tuple[float, float, float]
    """(r3, r1, r2)."""
    theta_deg: float

    def _axis(self, axis: int) -> Floats:
        shape = [1, 1, 1]
        shape[axis] = -1
        return np.asarray((self.corner[axis] + np.arange(self.shape[axis])) * self.pixel_m[axis]).reshape(shape)

    @property
    def x(self) -> Floats:
        """(r3, 1, 1), metres."""
        return self._axis(0) * math.cos(math.radians(self.theta_deg))

    @property
    def y(self) -> Floats:
        """(1, 1, r2), metres."""
        return self._axis(2)

    @property
    def z(self) -> Floats:
        """(r3, r1, 1), metres."""
        return self._axis(1) + self._axis(0) * math.sin(math.radians(self.theta_deg))


@dataclass(frozen=True, slots=True)
class Profile:
    """How strong the object is along the coordinate that the support bounds."""

    s: Floats
    """Coordinate, metres."""
    value: Floats
    middle: tuple[float, float] = (0.0, 0.0)
    """(x, y) of the rod's axis, metres."""


def layer_profile(size: Floats, lit: Floats, at: Lattice) -> Profile:
    """Mean modulus `size` (r3, r1, r2) by z, in steps of a pixel r1, weighted with the illumination `lit`."""
    step = at.pixel_m[1]
    place = np.broadcast_to(at.z / step, (*size.shape[:2], 1))[..., 0].ravel()
    first = math.floor(float(place.min()))
    low = np.floor(place).astype(int)
    part = place - low
    count = int(low.max()) - first + 2

    def by_z(values: Floats) -> Floats:
        rows = values.sum(axis=2).ravel()
        near = np.bincount(low - first, rows * (1 - part), count)
        return np.asarray(near + np.bincount(low - first + 1, rows * part, count))

    return Profile(np.asarray((first + np.arange(count)) * step, np.float64), _mean(by_z(size * lit), by_z(lit)))


def rod_profile(size: Floats, lit: Floats, at: Lattice) -> Profile:
    """Mean modulus by the distance from the strongest column along z, in steps of the finer of the pixels along x and y."""
    seen = _mean((size * lit).sum(axis=1), lit.sum(axis=1))
    row, column = np.unravel_index(int(np.argmax(seen)), seen.shape)
    x, y = at.x[:, 0], at.y[:, 0]
    middle = float(x[row, 0]), float(y[0, column])
    far = np.hypot(x - middle[0], y - middle[1])
    step = min(at.pixel_m[0] * math.cos(math.radians(at.theta_deg)), at.pixel_m[2])
    ring = np.rint(far / step).astype(int).ravel()
    weight = lit.sum(axis=1).ravel()
    value = _mean(np.bincount(ring, seen.ravel() * weight).astype(float), np.bincount(ring, weight).astype(float))
    return Profile(np.asarray(np.arange(len(value)) * step, np.float64), value, middle)


def _mean(total: Floats, weight: Floats) -> Floats:
    """total / weight; less where hardly any light fell, because anything may stand there."""
    return np.asarray(total / np.maximum(weight, LEAST * max(float(weight.max()), 1e-300)))


def smoothed_profile(value: Floats, sigma: float | None) -> Floats:
    """The profile after a Gaussian filter of standard deviation `sigma` (samples), out to three of them."""
    if sigma is None:
        return value
    (sigma,) = widths(sigma, value.shape)
    n = np.arange(-math.ceil(3 * sigma), math.ceil(3 * sigma) + 1)
    kernel = np.exp(-(n**2) / (2 * sigma**2))
    return np.convolve(np.pad(value, len(n) // 2, mode="edge"), kernel / kernel.sum(), "valid")


def bounds(s: Floats, value: Floats, cutoff: float, *, monotonic: bool) -> tuple[float, float]:
    """(low, high) of the support: outwards from the maximum to where the profile falls below `cutoff` times it (between two
    samples by a straight line) or, if `monotonic`, to the first sample after which it rises."""
    top = int(np.argmax(value))
    limit = cutoff * float(value[top])

    def end(direction: int) -> float:
        k = top
        while 0 <= k + direction < len(value):
            here, beyond = float(value[k]), float(value[k + direction])
            if beyond < limit:
                return float(s[k] + (s[k + direction] - s[k]) * (here - limit) / (here - beyond))
            if monotonic and beyond > here:
                return float(s[k])
            k += direction
        return float(s[k])

    return end(-1), end(1)


def inside(kind: str, at: Lattice, low: float, high: float, middle: tuple[float, float] = (0.0, 0.0)) -> NDArray[np.bool_]:
    """Voxels of the layer low <= z <= high (r3, r1, 1), or of the rod of radius `high` about `middle` (r3, 1, r2)."""
    if kind == "thinlayer":
        return np.asarray((at.z >= low) & (at.z <= high))
    return np.asarray(np.hypot(at.x - middle[0], at.y - middle[1]) <= high)
