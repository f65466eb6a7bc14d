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
def _object_terms(residual, probes, which, origin, corner, weight, num):  # type: ignore[no-untyped-def]
    for j in range(residual.shape[0]):
        view = probes[which[j]]
        top, left, s = corner[j, 0] - origin[0], 2 * (corner[j, 1] - origin[1]), weight[j]
        for y in range(residual.shape[1]):
            p, r = view[y], residual[j, y]
            n = num[top + y, left : left + p.shape[0]]
            for x in range(p.shape[0] // 2):
                pr, pi = s * p[2 * x], s * p[2 * x + 1]
                n[2 * x] += pr * r[2 * x] + pi * r[2 * x + 1]
                n[2 * x + 1] += pr * r[2 * x + 1] - pi * r[2 * x]


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
def _take_step(num, den, step, origin, corner, height, width, out):  # type: ignore[no-untyped-def]
    for j in range(corner.shape[0]):
        top, left = corner[j, 0] - origin[0], corner[j, 1] - origin[1]
        for y in range(top, top + height):
            n, d, o = num[y, 2 * left : 2 * (left + width)], den[y, left : left + width], out[y, 2 * left : 2 * (left + width)]
            for x in range(width):
                lit = d[x] > 0
                s = step / (d[x] if lit else step)
                s = s if lit else step * 0
                o[2 * x] += s * n[2 * x]
                o[2 * x + 1] += s * n[2 * x + 1]
                n[2 * x] = 0
                n[2 * x + 1] = 0
                d[x] = 0


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


def object_terms(residual: Any, probes: Any, which: Any, origin: Any, corner: Any, weight: Any, num: Any) -> None:
    _object_terms(_parts(residual), _parts(probes), which, origin, corner, weight, _parts(num))


def norm_sums(powers: Any, peak: Any, share: float, origin: Any, corner: Any, den: Any) -> None:
    _norm_sums(powers, peak, den.dtype.type(share), origin, corner, den)


def take_step(num: Any, den: Any, step: float, origin: Any, corner: Any, shape: tuple[int, int], out: Any) -> None:
    _take_step(_parts(num), den, den.dtype.type(step), origin, corner, *shape, _parts(out))
