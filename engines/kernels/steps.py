"""The CPU form of the kernels of stochastic engines; see `cpu` for how arrays are handed over."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

_jit = numba.njit(nogil=True, fastmath={"reassoc", "contract", "arcp", "nsz", "afn"}, error_model="numpy", cache=True)


@_jit
def _residual(waves, projected, probes, which, obj, origin, corner, weight, a, b, change):  # type: ignore[no-untyped-def]
    kept = waves.shape[0] > 0
    for j in range(projected.shape[0]):
        view = probes[which[j]]
        top, left, s = corner[j, 0] - origin[0], 2 * (corner[j, 1] - origin[1]), weight[j]
        total = 0.0
        for y in range(projected.shape[1]):
            p, f = view[y], projected[j, y]
            o = obj[top + y, left : left + p.shape[0]]
            part = p[0] * 0
            if kept:
                w = waves[j, y]
                for x in range(p.shape[0] // 2):
                    pr, pi = s * p[2 * x], s * p[2 * x + 1]
                    mr = pr * o[2 * x] - pi * o[2 * x + 1]
                    mi = pr * o[2 * x + 1] + pi * o[2 * x]
                    r = b * f[2 * x] + a * mr - (a + b) * w[2 * x]
                    i = b * f[2 * x + 1] + a * mi - (a + b) * w[2 * x + 1]
                    w[2 * x] += r
                    w[2 * x + 1] += i
                    f[2 * x] = w[2 * x] - mr
                    f[2 * x + 1] = w[2 * x + 1] - mi
                    part += r * r + i * i
            else:
                for x in range(p.shape[0] // 2):
                    pr, pi = s * p[2 * x], s * p[2 * x + 1]
                    r = b * (f[2 * x] - (pr * o[2 * x] - pi * o[2 * x + 1]))
                    i = b * (f[2 * x + 1] - (pr * o[2 * x + 1] + pi * o[2 * x]))
                    f[2 * x] = r
                    f[2 * x + 1] = i
                    part += r * r + i * i
            total += part
        change[j] += total / (projected.shape[1] * (projected.shape[2] // 2))


@_jit
def _object_step(residual, probes, which, origin, corner, weight, den, within, step, gain, obj):  # type: ignore[no-untyped-def]
    for j in range(residual.shape[0]):
        view = probes[which[j]]
        top, left = corner[j, 0] - origin[0], 2 * (corner[j, 1] - origin[1])
        above, beside, s = corner[j, 0] - within[0], corner[j, 1] - within[1], step * weight[j]
        for y in range(residual.shape[1]):
            p, r = view[y], residual[j, y]
            d = den[above + y, beside : beside + gain.shape[0]]
            o = obj[top + y, left : left + p.shape[0]]
            for x in range(gain.shape[0]):
                gain[x] = s / d[x] if d[x] > 0 else 0
            for x in range(gain.shape[0]):
                o[2 * x] += gain[x] * (p[2 * x] * r[2 * x] + p[2 * x + 1] * r[2 * x + 1])
                o[2 * x + 1] += gain[x] * (p[2 * x] * r[2 * x + 1] - p[2 * x + 1] * r[2 * x])


@_jit
def _norm_sums(powers, peak, share, origin, corner, den):  # type: ignore[no-untyped-def]
    rest = 1 - share
    for j in range(powers.shape[0]):
        top, left, flat = corner[j, 0] - origin[0], corner[j, 1] - origin[1], rest * peak[j]
        for y in range(powers.shape[1]):
            p = powers[j, y]
            d = den[top + y, left : left + p.shape[0]]
            for x in range(p.shape[0]):
                d[x] += share * p[x] + flat


@_jit
def _take_step(num, den, step, gain, out):  # type: ignore[no-untyped-def]
    for y in range(den.shape[0]):
        n, d, o = num[y], den[y], out[y]
        for x in range(gain.shape[0]):
            gain[x] = step / d[x] if d[x] > 0 else 0
        for x in range(gain.shape[0]):
            o[2 * x] += gain[x] * n[2 * x]
            o[2 * x + 1] += gain[x] * n[2 * x + 1]


def _parts(array: Any) -> Any:
    return array.view(array.real.dtype)


def residual(
    waves: Any,
    projected: Any,
    probes: Any,
    which: Any,
    obj: Any,
    origin: Any,
    corner: Any,
    weight: Any,
    a: float,
    b: float,
    change: Any,
) -> None:
    real = weight.dtype.type
    kept = np.zeros((0, 0, 0), projected.dtype) if waves is None else waves
    where = which, _parts(obj), origin, corner, weight
    _residual(_parts(kept), _parts(projected), _parts(probes), *where, real(a), real(b), change)


def object_step(
    residual: Any,
    probes: Any,
    which: Any,
    origin: Any,
    corner: Any,
    weight: Any,
    den: Any,
    within: Any,
    step: float,
    obj: Any,
) -> None:
    gain, real = np.empty(residual.shape[-1], den.dtype), den.dtype.type
    where = which, origin, corner, weight
    _object_step(_parts(residual), _parts(probes), *where, den, within, real(step), gain, _parts(obj))


def norm_sums(powers: Any, peak: Any, share: float, origin: Any, corner: Any, den: Any) -> None:
    _norm_sums(powers, peak, den.dtype.type(share), origin, corner, den)


def take_step(num: Any, den: Any, step: float, out: Any) -> None:
    _take_step(_parts(num), den, den.dtype.type(step), np.empty(den.shape[-1], den.dtype), _parts(out))
