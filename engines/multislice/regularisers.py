"""Terms that are added to the loss: value and gradient of each.

Gradients of complex arrays are ∂L/∂conj(X), of real ones plain derivatives. `xp` is numpy or cupy. Objects have the shape
(mode, slice, y, x), probes (scenario, mode, y, x).
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

Term: TypeAlias = tuple[float, Any]
"""(value, gradient)."""

SMALL = 1e-20
"""Under the square root of a total variation, so that flat regions have a gradient."""


def phase_norm(xp: Any, o: Any) -> Term:
    """Σ |arg o|."""
    phase = xp.angle(o)
    return float(xp.abs(phase).sum()), 0.5j * xp.sign(phase) / o.conj()


def absorption_norm(xp: Any, o: Any) -> Term:
    """Σ |ln |o||."""
    logarithm = xp.log(xp.abs(o))
    return float(xp.abs(logarithm).sum()), 0.5 * xp.sign(logarithm) / o.conj()


def total_variation(xp: Any, o: Any, p: float, q: float) -> Term:
    """Σ (|Dx o|^p + |Dy o|^p)^(q/p), with differences to the pixel before, periodic."""
    steps = [xp.roll(o, 1, axis=axis) - o for axis in (-2, -1)]
    sizes = [xp.abs(step) for step in steps]
    power = sizes[0] ** p + sizes[1] ** p + SMALL
    factor = 0.5 * q * power ** (q / p - 1)
    gradient = xp.zeros_like(o)
    for step, size, axis in zip(steps, sizes, (-2, -1), strict=True):
        with np.errstate(invalid="ignore", divide="ignore"):
            pull = factor * xp.where(size > 0, size ** (p - 2) * step, 0)
        gradient += xp.roll(pull, -1, axis=axis) - pull
    return float((power ** (q / p)).sum()), gradient


def mixed_variance(xp: Any, fft: Any, o: Any, sigma: float) -> Term:
    """(1/M) Σ_k |B_k - mean B|², B_k the low frequencies of object mode k: exp(-f²/σ²) on its transform, cycles per pixel."""
    y, x = (xp.fft.fftfreq(n) for n in o.shape[-2:])
    low = xp.exp(-(y[:, None] ** 2 + x**2) / sigma**2).astype(o.real.dtype)
    apart = low * fft.fft2(o - o.mean(axis=0, keepdims=True))
    value = float((xp.abs(fft.ifft2(apart)) ** 2).sum()) / len(o)
    return value, fft.ifft2(low * apart) / len(o)


def probe_outside(xp: Any, fft: Any, probe: Any, outside: Any) -> Term:
    """Σ |P(k)|² over the pixels `outside` (y, x) of the unnormalised transform, zero frequency at [0, 0]."""
    spectrum = fft.fft2(probe) * outside
    pixels = probe.shape[-2] * probe.shape[-1]
    return float((xp.abs(spectrum) ** 2).sum()), fft.ifft2(spectrum) * pixels


def window(xp: Any, probe: Any, penalty: Any) -> Term:
    """Σ V |p|², V (y, x) the `penalty`."""
    return float((penalty * xp.abs(probe) ** 2).sum()), penalty * probe


def window_between(shape: tuple[int, int], inner: float, outer: float) -> Any:
    """Penalty 0 within `inner` of the middle and 1 beyond `outer`, fractions of half the width, along each axis. Shape (y, x)."""
    away = (np.abs(np.arange(n) - n // 2) / (n / 2) for n in shape)
    y, x = (0.5 * (1 + np.cos(np.pi * np.clip((a - inner) / max(outer - inner, 1e-12), 0, 1))) for a in away)
    return 1 - y[:, None] * x


def fast_axis(xp: Any, x: Any, scan: tuple[int, int]) -> Term:
    """Σ second differences² along each line of a scan of (slow, fast) points; x (frame, column)."""
    grid = x.reshape(*scan, -1)
    bend = grid[:, 2:] - 2 * grid[:, 1:-1] + grid[:, :-2]
    gradient = xp.zeros_like(grid)
    gradient[:, 2:] += 2 * bend
    gradient[:, 1:-1] -= 4 * bend
    gradient[:, :-2] += 2 * bend
    return float((bend**2).sum()), gradient.reshape(x.shape)


def slow_axis(xp: Any, x: Any, scan: tuple[int, int]) -> Term:
    """Σ second differences² of the sums of the lines."""
    sums = x.reshape(*scan, -1).sum(axis=1)
    bend = sums[2:] - 2 * sums[1:-1] + sums[:-2]
    slope = xp.zeros_like(sums)
    slope[2:] += 2 * bend
    slope[1:-1] -= 4 * bend
    slope[:-2] += 2 * bend
    return float((bend**2).sum()), xp.repeat(slope[:, None], scan[1], axis=1).reshape(x.shape)


def deformation(xp: Any, x: Any, scan: tuple[int, int]) -> Term:
    """Σ (x - fit)², the fit affine in the indices of the scan's points; x (frame, column)."""
    i, j = xp.meshgrid(xp.arange(scan[0]), xp.arange(scan[1]), indexing="ij")
    base = xp.stack([i.ravel(), j.ravel(), xp.ones(scan[0] * scan[1])], axis=1).astype(x.dtype)
    apart = x - base @ xp.linalg.lstsq(base, x, rcond=None)[0]
    return float((apart**2).sum()), 2 * apart
