"""Constraints that change object and probe between two epochs, outside the loss.

Objects have the shape (mode, slice, y, x), probes (scenario, mode, y, x). Phase φ = arg o, absorption a = -ln |o|.
"""

from __future__ import annotations

from typing import Any

import numpy as np

DARK = 1e-10
"""Added to a modulus before its logarithm is taken."""
TOLERANCE, MOST = 1e-3, 200
"""Relative change at which an iterated deconvolution ends, and its passes at most."""

Sigmas = tuple[tuple[float | str, float] | None, tuple[float | str, float] | None]
"""((s1, s2) for the phase, (s1, s2) for the absorption), pixels; None: left as it is. A text s1: iterated."""


def parts(xp: Any, o: Any) -> tuple[Any, Any]:
    """(phase, absorption)."""
    return xp.angle(o), -xp.log(xp.abs(o) + DARK)


def joined(xp: Any, phase: Any, absorption: Any, like: Any) -> Any:
    """The object with these."""
    return (xp.exp(-absorption) * xp.exp(1j * phase)).astype(like.dtype)


def smoothed(xp: Any, ndimage: Any, o: Any, phase: float = 0.0, absorption: float = 0.0) -> Any:
    """Gaussian filters of so many pixels on phase and absorption of each slice; the edge goes on as it is."""
    held = list(parts(xp, o))
    for k, sigma in enumerate((phase, absorption)):
        if sigma > 0:
            held[k] = ndimage.gaussian_filter(held[k], (0, 0, sigma, sigma), mode="nearest")
    return joined(xp, held[0], held[1], o)


def without_wedge(xp: Any, fft: Any, o: Any, beta: float, pixels_m: tuple[float, float, float]) -> Any:
    """Take high frequencies along the beam from low ones across it: 1 - (2/π) atan(β² q_z² / (q_x² + q_y²)) on the transform
    over (slice, y, x). `pixels_m`: (z, y, x)."""
    z, y, x = (xp.fft.fftfreq(n, p) for n, p in zip(o.shape[1:], pixels_m, strict=True))
    across = y[:, None] ** 2 + x**2
    across = xp.where(across > 0, across, 1.0)
    kept = 1 - 2 / np.pi * xp.arctan(beta**2 * z[:, None, None] ** 2 / across)
    return fft.ifftn(fft.fftn(o, axes=(1, 2, 3)) * kept, axes=(1, 2, 3)).astype(o.dtype)


def orthogonal(xp: Any, probe: Any) -> Any:
    """The modes of each scenario as orthogonal ones, the strongest first; Σ of their intensities stays what it is."""
    found = xp.empty_like(probe)
    for number, modes in enumerate(probe):
        flat = modes.reshape(len(modes), -1)
        _, turn = xp.linalg.eigh(flat.conj() @ flat.T)
        found[number] = (turn[:, ::-1].T @ flat).reshape(modes.shape)
    return found


def flipped(
    xp: Any,
    fft: Any,
    o: Any,
    delta: tuple[float, float],
    beta: tuple[float, float],
    sigmas: Sigmas | None = None,
) -> Any:
    """Charge flipping: of each slice's phase and absorption, what lies under delta × its maximum is multiplied by beta.

    `delta`, `beta`: of phase, of absorption. With `sigmas` atoms are sharpened before and blurred after: deconvolved by
    exp(-r²/s1²), convolved with exp(-r²/s2²).
    """
    changed = []
    for k, part in enumerate(parts(xp, o)):
        sigma = None if sigmas is None else sigmas[k]
        seen = part if sigma is None else sharpened(xp, fft, part, sigma[0])
        top = seen.max(axis=(-2, -1), keepdims=True)
        seen = xp.where(seen < delta[k] * top, beta[k] * seen, seen)
        changed.append(seen if sigma is None else convolved(xp, fft, seen, sigma[1]))
    return joined(xp, changed[0], changed[1], o)


def bell(xp: Any, shape: tuple[int, int], sigma: float) -> Any:
    """Transform of the normalised exp(-r²/σ²): exp(-π² σ² f²), periodic. Shape (y, x)."""
    y, x = (xp.fft.fftfreq(n) for n in shape)
    return xp.exp(-((np.pi * sigma) ** 2) * (y[:, None] ** 2 + x**2))


def convolved(xp: Any, fft: Any, part: Any, sigma: float) -> Any:
    """With the bell of this width, on a periodic frame."""
    return fft.ifft2(fft.fft2(part) * bell(xp, part.shape[-2:], sigma)).real


def sharpened(xp: Any, fft: Any, part: Any, sigma: float | str) -> Any:
    """Deconvolved by that bell: by division, as far as it is above a thousandth; a text is a width for Richardson and Lucy's
    iteration, which keeps what is positive positive."""
    shape = part.shape[-2:]
    if not isinstance(sigma, str):
        return fft.ifft2(fft.fft2(part) / xp.maximum(bell(xp, shape, sigma), TOLERANCE)).real
    low = part.min(axis=(-2, -1), keepdims=True)
    seen = part - low + DARK
    guess, width = seen, float(sigma)
    for _ in range(MOST):
        blurred = xp.maximum(convolved(xp, fft, guess, width), DARK)
        better = guess * xp.maximum(convolved(xp, fft, seen / blurred, width), 0)
        change = float(xp.abs(better - guess).sum() / xp.abs(guess).sum())
        guess = better
        if change < TOLERANCE:
            break
    return guess + low - DARK
