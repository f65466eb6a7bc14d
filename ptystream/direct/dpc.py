"""From centres of mass to phase: a thin sample deflects the beam by the gradient of its phase.

With waves whose transform is exp(-2πi q·x) the centre of mass is Q = ∇φ / 2π, φ blurred by the beam's intensity.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from .raster import Raster, turned

Field = NDArray[np.float64]
SECOND, SIXTH = (1 / 2,), (3 / 4, -3 / 20, 1 / 60)
"""Central differences: weights of the points 1, 2, … steps away."""
WHOLE = 0.5
"""Share of a blurring Gaussian that must lie on points that are known."""
SMOOTH = 1.0
"""Steps by which a field is blurred before its curl is taken: derivatives are mostly noise at the finest scale."""


def integrated(field: Field, raster: Raster, highpass: float = 0.0, lowpass: float = 0.0) -> NDArray[np.float64]:
    """The phase whose gradient is 2π × `field` (y, x, 2; 1/metres) by least squares, periodic, mean 0. Shape (y, x), radians.

    φ = IFFT[k·Q / (i (k² + highpass + lowpass k⁴))]; `highpass` 1/metres² damps slow changes, `lowpass` metres² fast ones.
    """
    ky, kx = raster.frequencies(field.shape[:2])
    square = ky**2 + kx**2
    below = square + highpass + lowpass * square**2
    below[0, 0] = 1.0  # where the numerator is 0
    slopes = np.fft.fft2(field, axes=(0, 1))
    return np.asarray(np.fft.ifft2((ky * slopes[..., 0] + kx * slopes[..., 1]) / (1j * below)).real)


def refined(
    field: Field, raster: Raster, rounds: int = 60, padding: float = 0.5, known: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """As `integrated`, for a picture that is not periodic, or where some points are not `known` (y, x).

    The raster is padded by this part of itself on each side. Where nothing is known the field is taken from what the phase so
    far says, and integrated again: it settles where the gradient agrees with all that is known.
    """
    inside = np.ones(field.shape[:2], bool) if known is None else known & np.isfinite(field).all(axis=2)
    pad = [round(n * padding) for n in field.shape[:2]]
    wide = [(p, p) for p in pad]
    there = np.pad(inside, wide)
    given = np.pad(np.where(inside[..., None], field, 0.0), [*wide, (0, 0)])
    ky, kx = raster.frequencies(there.shape)
    now = given.copy()
    now[there] -= given[there].mean(axis=0) if there.any() else 0.0
    mean = given[there].mean(axis=0) if there.any() else np.zeros(2)
    previous, momentum = now, 1.0
    for _ in range(rounds):
        spectrum = np.fft.fft2(integrated(now, raster))
        slopes = np.stack([np.fft.ifft2(1j * k * spectrum).real for k in (ky, kx)], axis=-1)
        filled = np.where(there[..., None], given - mean, slopes)
        step = (1 + np.sqrt(1 + 4 * momentum**2)) / 2  # Nesterov's, which needs the square root of the rounds
        now = np.where(there[..., None], filled, filled + (momentum - 1) / step * (filled - previous))
        previous, momentum = filled, step
    y, x = (np.arange(n) * s for n, s in zip(field.shape[:2], raster.step_m, strict=True))
    phase = integrated(now, raster)[pad[0] : pad[0] + len(y), pad[1] : pad[1] + len(x)]
    ramp = 2 * np.pi * (mean[0] * y[:, None] + mean[1] * x)  # a mean slope, which no periodic phase has
    return np.asarray(phase + ramp - (phase + ramp).mean())


def smoothed(field: Field, width: float) -> Field:
    """A field (y, x, 2) with gaps, blurred by a Gaussian of so many steps, which leaves it as free of curl as it is."""
    if width <= 0:
        return field
    there = np.isfinite(field).all(axis=2)
    share = gaussian_filter(there.astype(float), width, mode="constant")
    parts = [gaussian_filter(np.where(there, field[..., k], 0.0), width, mode="constant") for k in (0, 1)]
    known = (share > WHOLE) & there
    return np.stack([np.where(known, part / np.maximum(share, 1e-9), np.nan) for part in parts], axis=-1)


def _curl_and_divergence(field: Field, raster: Raster) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """∂Q_x/∂y - ∂Q_y/∂x, and ∂Q_y/∂y + ∂Q_x/∂x, of inner points."""
    # Differences of sixth order where there is room: those of second order see a fine lattice more gently along the raster's
    # axes than across, and the angle follows the lattice.
    stencil = SIXTH if min(field.shape[:2]) >= 4 * len(SIXTH) else SECOND
    reach, (sy, sx) = len(stencil), raster.step_m
    inner = [slice(reach, n - reach) for n in field.shape[:2]]
    along_y, along_x = np.zeros((2, *field[inner[0], inner[1]].shape))
    for k, share in enumerate(stencil, 1):
        ahead, behind = ([slice(s.start + d, s.stop + d) for s in inner] for d in (k, -k))
        along_y += share * (field[ahead[0], inner[1]] - field[behind[0], inner[1]]) / sy
        along_x += share * (field[inner[0], ahead[1]] - field[inner[0], behind[1]]) / sx
    return along_y[..., 1] - along_x[..., 0], along_y[..., 0] + along_x[..., 1]


def rotation(field: Field, raster: Raster, smooth: float = SMOOTH) -> tuple[float, float]:
    """(angle, rest): the angle in (-π/2, π/2] by which `raster.turned` makes a field (y, x, 2) free of curl, and what is left.

    The rest is Σcurl² / Σ(curl² + divergence²): 0 for a gradient, 1/2 for noise. Raises `ValueError` for an even field.
    Turned by π more it is as free of curl, with the opposite phase: `upright` decides. Mirrored patterns leave a large rest.
    """
    curl, divergence = _curl_and_divergence(smoothed(field, smooth), raster)
    good = np.isfinite(curl) & np.isfinite(divergence)
    c, d = curl[good], divergence[good]
    if not c.size or not (c @ c + d @ d) > 0:
        raise ValueError("rotation: the field is the same everywhere, or too small")
    # Turned by a, curl is c cos a - d sin a: its square's sum is (C + D)/2 + (C - D)/2 cos 2a - (c·d) sin 2a.
    along, across = float(c @ c - d @ d) / 2, float(c @ d)
    angle = 0.5 * (np.arctan2(across, -along))
    rest = 0.5 - np.hypot(along, across) / float(c @ c + d @ d)
    return float(angle), float(max(rest, 0.0))


def upright(field: Field, raster: Raster, angle: float) -> float:
    """`angle`, or π more: of the two the one whose picture has bright points on a dark ground, as atoms are."""
    picture = integrated(np.nan_to_num(turned(field, angle)), raster)
    picture = picture - picture.mean()
    return angle if float((picture**3).mean()) >= 0 else angle + np.pi


def mirrored(field: Field, raster: Raster) -> bool:
    """Whether patterns are mirrored: the field is freer of curl when its y is reversed."""
    return rotation(field * np.array([-1.0, 1.0]), raster)[1] < rotation(field, raster)[1]
