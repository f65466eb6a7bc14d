"""The CPU form of the kernels of a likelihood; see `cpu` for how arrays come, `Kernels` for what they do."""

from __future__ import annotations

from typing import Any

import numpy as np

from .compiled import jit as _jit
from .compiled import parts as _parts

EPSILON = 1e-6
"""Added to the modelled intensity where it is divided by or its logarithm is taken (photons)."""
GAUSSIAN, POISSON, EUCLID = range(3)


@_jit
def _best_factor(kind, intensity, counts, trust, limit, level):  # type: ignore[no-untyped-def]
    """The factor on the intensities of one frame that minimises its cost."""
    top, bottom = 0.0, 0.0
    for y in range(intensity.shape[0]):
        m, n, t = intensity[y], counts[y], trust[y]
        one = m.dtype.type(1)
        s, u = 0.0, 0.0
        for x in range(m.shape[0]):
            value = m.dtype.type(n[x])
            good = value < limit
            w = t[x] if good else m.dtype.type(0)
            value = value if good else m.dtype.type(0)
            if kind == GAUSSIAN:
                w = w / (one / level + value)
                s += w * m[x] * value
                u += w * m[x] * m[x]
            elif kind == POISSON:
                s += w * value
                u += w * m[x]
            else:
                s += w * np.sqrt(m[x] * value)
                u += w * m[x]
        top += s
        bottom += u
    if not (top > 0 and bottom > 0):
        return 1.0
    c = top / bottom
    return c * c if kind == EUCLID else c


@_jit
def _slopes(kind, m, n, t, limit, level, c, epsilon):  # type: ignore[no-untyped-def]
    """One row: m becomes c l'(c m); returns the sum of l."""
    one, zero = m.dtype.type(1), m.dtype.type(0)
    total = 0.0
    if kind == GAUSSIAN:
        for x in range(m.shape[0]):
            value = m.dtype.type(n[x])
            good = value < limit
            value = value if good else zero
            w = (level * t[x] if good else zero) / (one / level + value)
            r = c * m[x] - value
            total += w * r * r
            m[x] = 2 * c * w * r
    elif kind == POISSON:
        for x in range(m.shape[0]):
            value = m.dtype.type(n[x])
            good = value < limit
            value = value if good else zero
            w = level * t[x] if good else zero
            u = c * m[x] + epsilon
            r = value / u
            total += w * (u - value - (value * np.log(u / value) if value > 0 else zero))
            m[x] = c * w * (one - r)
    else:
        for x in range(m.shape[0]):
            value = m.dtype.type(n[x])
            good = value < limit
            value = value if good else zero
            w = level * t[x] if good else zero
            a, b = np.sqrt(c * m[x] + epsilon), np.sqrt(value)
            total += w * (a - b) * (a - b)
            m[x] = c * w * (a - b) / a
    return total


@_jit
def _likelihood(f, counts, row, trust, limit, kind, level, floating, epsilon, intensity, scale, cost):  # type: ignore[no-untyped-def]
    height, width = intensity.shape
    for j in range(f.shape[1]):
        for y in range(height):
            m = intensity[y]
            m[:] = 0
            for k in range(f.shape[0]):
                u = f[k, j, y]
                for x in range(width):
                    m[x] += u[2 * x] * u[2 * x] + u[2 * x + 1] * u[2 * x + 1]
        if floating:
            scale[j] = _best_factor(kind, intensity, counts[row[j]], trust, limit, level)
        total = 0.0
        for y in range(height):
            m = intensity[y]
            total += _slopes(kind, m, counts[row[j], y], trust[y], limit, level, scale[j], epsilon)
            for k in range(f.shape[0]):
                u = f[k, j, y]
                for x in range(width):
                    u[2 * x] *= m[x]
                    u[2 * x + 1] *= m[x]
        cost[j] = total


@_jit
def _powers(f, a, b, j, y, c, every, A):  # type: ignore[no-untyped-def]
    """A[k] = coefficient of t^k in c Σ_pods |f + t a + t² b|² for one row, up to t² unless `every`; without `b`: 0."""
    A[:] = 0
    n0, n1, n2, n3, n4 = A[0], A[1], A[2], A[3], A[4]
    for k in range(f.shape[0]):
        u, v = f[k, j, y], a[k, j, y]
        for x in range(n0.shape[0]):
            n0[x] += c * (u[2 * x] * u[2 * x] + u[2 * x + 1] * u[2 * x + 1])
            n1[x] += 2 * c * (u[2 * x] * v[2 * x] + u[2 * x + 1] * v[2 * x + 1])
            n2[x] += c * (v[2 * x] * v[2 * x] + v[2 * x + 1] * v[2 * x + 1])
        if b.shape[0] == 0:
            continue
        w = b[k, j, y]
        for x in range(n0.shape[0]):
            n2[x] += 2 * c * (u[2 * x] * w[2 * x] + u[2 * x + 1] * w[2 * x + 1])
        if every:
            for x in range(n0.shape[0]):
                n3[x] += 2 * c * (v[2 * x] * w[2 * x] + v[2 * x + 1] * w[2 * x + 1])
                n4[x] += c * (w[2 * x] * w[2 * x] + w[2 * x + 1] * w[2 * x + 1])


@_jit
def _curve(kind, m, n, t, limit, level, epsilon, slope, half):  # type: ignore[no-untyped-def]
    """One row: l' and l''/2 at the intensities m."""
    one, zero = m.dtype.type(1), m.dtype.type(0)
    for x in range(m.shape[0]):
        value = m.dtype.type(n[x])
        good = value < limit
        value = value if good else zero
        w = level * t[x] if good else zero
        if kind == GAUSSIAN:
            w = w / (one / level + value)
            slope[x] = 2 * w * (m[x] - value)
            half[x] = w
        elif kind == POISSON:
            u = one / (m[x] + epsilon)
            slope[x] = w * (one - value * u)
            half[x] = w * value * u * u / 2
        else:
            u = one / np.sqrt(m[x] + epsilon)
            r = np.sqrt(value) * u
            slope[x] = w * (one - r)
            half[x] = w * r * u * u / 4


@_jit
def _line(f, a, b, counts, row, trust, limit, kind, level, scale, epsilon, every, A, slope, half, coefficients):  # type: ignore[no-untyped-def]
    width = A.shape[1]
    for j in range(f.shape[1]):
        out = coefficients[j]
        out[:] = 0
        for y in range(f.shape[2]):
            _powers(f, a, b, j, y, scale[j], every, A)
            _curve(kind, A[0], counts[row[j], y], trust[y], limit, level, epsilon, slope, half)
            s0, s1, s2 = 0.0, 0.0, 0.0
            for x in range(width):
                s0 += half[x] * A[1, x] * A[1, x]
                s1 += slope[x] * A[1, x]
                s2 += slope[x] * A[2, x]
            out[0] += s0
            out[1] += s1
            out[2] += s0 + s2
            if not every:
                continue
            s3, s4, s5, s6, s7, s8 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
            for x in range(width):
                u, v = slope[x], half[x]
                p, q, r, s = A[1, x], A[2, x], A[3, x], A[4, x]
                s3 += u * r + 2 * v * p * q
                s4 += u * s + v * (q * q + 2 * p * r)
                s5 += 2 * v * (p * s + q * r)
                s6 += v * (r * r + 2 * q * s)
                s7 += 2 * v * r * s
                s8 += v * s * s
            out[3] += s3
            out[4] += s4
            out[5] += s5
            out[6] += s6
            out[7] += s7
            out[8] += s8


def likelihood(
    f: Any, counts: Any, row: Any, trust: Any, limit: float, kind: int, level: float, floating: bool, scale: Any, cost: Any
) -> None:
    real = trust.dtype.type
    intensity = np.empty(f.shape[-2:], real)
    _likelihood(_parts(f), counts, row, trust, real(limit), kind, real(level), floating, real(EPSILON), intensity, scale, cost)


def line(
    f: Any,
    a: Any,
    b: Any,
    counts: Any,
    row: Any,
    trust: Any,
    limit: float,
    kind: int,
    level: float,
    scale: Any,
    every: bool,
    coefficients: Any,
) -> None:
    real = trust.dtype.type
    width = f.shape[-1]
    A, slope, half = np.empty((5, width), real), np.empty(width, real), np.empty(width, real)
    b = np.empty((0, 1, 1, width), f.dtype) if b is None else b
    data = counts, row, trust, real(limit), kind, real(level), scale, real(EPSILON)
    _line(_parts(f), _parts(a), _parts(b), *data, every, A, slope, half, coefficients)
