"""The CPU form: one tile on one core, without the interpreter lock.

Complex arrays come to the compiled functions as real ones with interleaved parts, (…, y, 2x): rows are slices and the
arithmetic is real, which is what LLVM vectorises. Nothing here allocates per pixel.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from .steps import norm_sums, object_step, residual, take_step

__all__ = [
    "add_shifted",
    "form",
    "illumination",
    "misfit",
    "model",
    "modulus",
    "norm_sums",
    "object_step",
    "object_sums",
    "probe_sums",
    "probe_terms",
    "residual",
    "shifted_views",
    "take_step",
    "update",
]

# Reordering is allowed, ignoring infinities is not: an infinite count marks an invalid pixel.
_jit = numba.njit(nogil=True, fastmath={"reassoc", "contract", "arcp", "nsz", "afn"}, error_model="numpy", cache=True)


@_jit
def _form(waves, probes, which, obj, origin, corner, weight, c, out):  # type: ignore[no-untyped-def]
    d = 1 - c
    for j in range(waves.shape[0]):
        view = probes[which[j]]
        top, left, s = corner[j, 0] - origin[0], 2 * (corner[j, 1] - origin[1]), c * weight[j]
        for y in range(waves.shape[1]):
            p, w, u = view[y], waves[j, y], out[j, y]
            o = obj[top + y, left : left + p.shape[0]]
            for x in range(p.shape[0] // 2):
                r = p[2 * x] * o[2 * x] - p[2 * x + 1] * o[2 * x + 1]
                i = p[2 * x] * o[2 * x + 1] + p[2 * x + 1] * o[2 * x]
                u[2 * x] = d * w[2 * x] + s * r
                u[2 * x + 1] = d * w[2 * x + 1] + s * i


@_jit
def _model(probes, which, obj, origin, corner, weight, out):  # type: ignore[no-untyped-def]
    for j in range(out.shape[0]):
        view = probes[which[j]]
        top, left, s = corner[j, 0] - origin[0], 2 * (corner[j, 1] - origin[1]), weight[j]
        for y in range(out.shape[1]):
            p, u = view[y], out[j, y]
            o = obj[top + y, left : left + p.shape[0]]
            for x in range(p.shape[0] // 2):
                u[2 * x] = s * (p[2 * x] * o[2 * x] - p[2 * x + 1] * o[2 * x + 1])
                u[2 * x + 1] = s * (p[2 * x] * o[2 * x + 1] + p[2 * x + 1] * o[2 * x])


@_jit
def _modulus(f, counts, row, mask, limit, bound, eps, amplitude, error):  # type: ignore[no-untyped-def]
    height, width = amplitude.shape
    for j in range(f.shape[1]):
        total = 0.0
        pixels = 0.0
        for y in range(height):
            a, n, m = amplitude[y], counts[row[j], y], mask[y]
            a[:] = 0
            for k in range(f.shape[0]):
                u = f[k, j, y]
                for x in range(width):
                    a[x] += u[2 * x] * u[2 * x] + u[2 * x + 1] * u[2 * x + 1]
            part = a[0] * 0
            seen = a[0] * 0
            for x in range(width):
                a[x] = np.sqrt(a[x])
                value = a.dtype.type(n[x])
                good = (m[x] != 0) and (value < limit)
                difference = (a[x] - np.sqrt(value)) if good else a.dtype.type(0)
                part += difference * difference
                seen += a.dtype.type(1) if good else a.dtype.type(0)
            total += part
            pixels += seen
        error[j] = total / pixels if pixels > 0 else 0.0
        if bound >= 0 and error[j] <= bound:
            continue
        r = a.dtype.type(np.sqrt(bound / error[j])) if bound > 0 else a.dtype.type(0)
        for y in range(height):
            a, n, m = amplitude[y], counts[row[j], y], mask[y]
            for x in range(width):
                value = a.dtype.type(n[x])
                good = (m[x] != 0) and (value < limit)
                wanted = np.sqrt(value) if good else a[x]
                a[x] = (wanted + r * (a[x] - wanted)) / (a[x] + eps) if good else a.dtype.type(1)
            for k in range(f.shape[0]):
                u = f[k, j, y]
                for x in range(width):
                    u[2 * x] *= a[x]
                    u[2 * x + 1] *= a[x]


@_jit
def _misfit(f, counts, row, mask, limit, intensity, amplitude_out, photon_out, valid_out):  # type: ignore[no-untyped-def]
    height, width = intensity.shape
    for j in range(f.shape[1]):
        amplitude, photon, pixels = 0.0, 0.0, 0.0
        for y in range(height):
            a, n, m = intensity[y], counts[row[j], y], mask[y]
            a[:] = 0
            for k in range(f.shape[0]):
                u = f[k, j, y]
                for x in range(width):
                    a[x] += u[2 * x] * u[2 * x] + u[2 * x + 1] * u[2 * x + 1]
            s, t, v = a[0] * 0, a[0] * 0, a[0] * 0
            for x in range(width):
                value = a.dtype.type(n[x])
                good = (m[x] != 0) and (value < limit)
                one = a.dtype.type(1) if good else a.dtype.type(0)
                value = value if good else a.dtype.type(0)
                root = np.sqrt(a[x]) - np.sqrt(value)
                s += one * root * root
                t += one * (a[x] - value) * (a[x] - value) / (value + 1)
                v += one
            amplitude += s
            photon += t
            pixels += v
        amplitude_out[j], photon_out[j], valid_out[j] = amplitude, photon, pixels


@_jit
def _update(waves, projected, probes, which, obj, origin, corner, weight, a, b, change, num, den):  # type: ignore[no-untyped-def]
    accumulate = num.shape[0] > 0
    for j in range(waves.shape[0]):
        view = probes[which[j]]
        top, left, s = corner[j, 0] - origin[0], 2 * (corner[j, 1] - origin[1]), weight[j]
        total = 0.0
        for y in range(waves.shape[1]):
            p, w, f = view[y], waves[j, y], projected[j, y]
            o = obj[top + y, left : left + p.shape[0]]
            part = p[0] * 0
            for x in range(p.shape[0] // 2):
                pr, pi = p[2 * x], p[2 * x + 1]
                r = b * f[2 * x] + a * s * (pr * o[2 * x] - pi * o[2 * x + 1]) - (a + b) * w[2 * x]
                i = b * f[2 * x + 1] + a * s * (pr * o[2 * x + 1] + pi * o[2 * x]) - (a + b) * w[2 * x + 1]
                w[2 * x] += r
                w[2 * x + 1] += i
                part += r * r + i * i
            total += part
            if accumulate:
                n = num[top + y, left : left + p.shape[0]]
                d = den[top + y, left // 2 : (left + p.shape[0]) // 2]
                for x in range(p.shape[0] // 2):
                    pr, pi = s * p[2 * x], s * p[2 * x + 1]
                    n[2 * x] += pr * w[2 * x] + pi * w[2 * x + 1]
                    n[2 * x + 1] += pr * w[2 * x + 1] - pi * w[2 * x]
                    d[x] += pr * pr + pi * pi
        change[j] += total / (waves.shape[1] * (waves.shape[2] // 2))


@_jit
def _object_sums(waves, probes, which, origin, corner, weight, num, den):  # type: ignore[no-untyped-def]
    for j in range(waves.shape[0]):
        view = probes[which[j]]
        top, left, s = corner[j, 0] - origin[0], 2 * (corner[j, 1] - origin[1]), weight[j]
        for y in range(waves.shape[1]):
            p, w = view[y], waves[j, y]
            n = num[top + y, left : left + p.shape[0]]
            d = den[top + y, left // 2 : (left + p.shape[0]) // 2]
            for x in range(p.shape[0] // 2):
                pr, pi = s * p[2 * x], s * p[2 * x + 1]
                n[2 * x] += pr * w[2 * x] + pi * w[2 * x + 1]
                n[2 * x + 1] += pr * w[2 * x + 1] - pi * w[2 * x]
                d[x] += pr * pr + pi * pi


@_jit
def _illumination(probes, which, origin, corner, weight, den):  # type: ignore[no-untyped-def]
    for j in range(which.shape[0]):
        view = probes[which[j]]
        top, left, s = corner[j, 0] - origin[0], corner[j, 1] - origin[1], weight[j] * weight[j]
        for y in range(view.shape[0]):
            p = view[y]
            d = den[top + y, left : left + p.shape[0] // 2]
            for x in range(d.shape[0]):
                d[x] += s * (p[2 * x] * p[2 * x] + p[2 * x + 1] * p[2 * x + 1])


@_jit
def _probe_terms(wave, obj, top, left, s, num, den):  # type: ignore[no-untyped-def]
    """num += s conj(O) ψ (y, 2x), den += s² |O|² (y, x) for one frame."""
    for y in range(wave.shape[0]):
        w, n, d = wave[y], num[y], den[y]
        o = obj[top + y, left : left + n.shape[0]]
        for x in range(d.shape[0]):
            r, i = s * o[2 * x], s * o[2 * x + 1]
            n[2 * x] += r * w[2 * x] + i * w[2 * x + 1]
            n[2 * x + 1] += r * w[2 * x + 1] - i * w[2 * x]
            d[x] += r * r + i * i


@_jit
def _probe_sums(waves, obj, origin, corner, weight, layer, num, den):  # type: ignore[no-untyped-def]
    for j in range(waves.shape[0]):
        top, left = corner[j, 0] - origin[0], 2 * (corner[j, 1] - origin[1])
        _probe_terms(waves[j], obj, top, left, weight[j], num[layer[j]], den[layer[j]])


@_jit
def _each_probe_terms(waves, obj, origin, corner, weight, num, den):  # type: ignore[no-untyped-def]
    for j in range(waves.shape[0]):
        num[j] = 0
        den[j] = 0
        top, left = corner[j, 0] - origin[0], 2 * (corner[j, 1] - origin[1])
        _probe_terms(waves[j], obj, top, left, weight[j], num[j], den[j])


@_jit
def _add_shifted(source, parts, dy, dx, out):  # type: ignore[no-untyped-def]
    """out += S_d source; rows hold `parts` interleaved numbers per pixel."""
    height, width = source.shape
    sy = 1 if dy > 0 else -1
    s = parts if dx > 0 else -parts
    one = source.dtype.type(1)
    ay, ax = source.dtype.type(abs(dy)), source.dtype.type(abs(dx))
    a, b, c, d = (one - ay) * (one - ax), ay * (one - ax), (one - ay) * ax, ay * ax
    for y in range(height):
        near, far, o = source[y], source[(y - sy) % height], out[y]
        low, high = max(s, 0), width + min(s, 0)
        beside, beyond, inner = near[low - s : high - s], far[low - s : high - s], o[low:high]
        at, over = near[low:high], far[low:high]
        for i in range(inner.shape[0]):
            inner[i] += a * at[i] + b * over[i] + c * beside[i] + d * beyond[i]
        for i in range(low):
            o[i] += a * near[i] + b * far[i] + c * near[i - s + width] + d * far[i - s + width]
        for i in range(high, width):
            o[i] += a * near[i] + b * far[i] + c * near[i - s - width] + d * far[i - s - width]


@_jit
def _add_shifted_stack(stack, parts, layer, remainder, out):  # type: ignore[no-untyped-def]
    for j in range(stack.shape[0]):
        _add_shifted(stack[j], parts, remainder[j, 0], remainder[j, 1], out[layer[j]])


@_jit
def _shifted_views(probes, layer, remainder, out):  # type: ignore[no-untyped-def]
    for j in range(out.shape[0]):
        out[j] = 0
        _add_shifted(probes[layer[j]], 2, remainder[j, 0], remainder[j, 1], out[j])


def _parts(array: NDArray[Any]) -> NDArray[Any]:
    """A contiguous complex array as its real parts: the last axis doubles."""
    return array.view(array.real.dtype)


# The contract of what follows is written once, in `Kernels`.


def form(waves: Any, probes: Any, which: Any, obj: Any, origin: Any, corner: Any, weight: Any, c: float, out: Any) -> None:
    _form(_parts(waves), _parts(probes), which, _parts(obj), origin, corner, weight, weight.dtype.type(c), _parts(out))


def model(probes: Any, which: Any, obj: Any, origin: Any, corner: Any, weight: Any, out: Any) -> None:
    _model(_parts(probes), which, _parts(obj), origin, corner, weight, _parts(out))


def modulus(f: Any, counts: Any, row: Any, mask: Any, limit: float, bound: float, epsilon: float, error: Any) -> None:
    real = f.real.dtype.type
    scratch = np.empty(f.shape[-2:], real)
    _modulus(_parts(f), counts, row, mask, real(limit), bound, real(epsilon), scratch, error)


def misfit(
    f: Any, counts: Any, row: Any, mask: Any, limit: float, intensity: Any, amplitude: Any, photon: Any, valid: Any
) -> None:
    _misfit(_parts(f), counts, row, mask, intensity.dtype.type(limit), intensity, amplitude, photon, valid)


def update(
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
    sums: tuple[Any, Any] | None,
) -> None:
    real = weight.dtype.type
    num, den = sums if sums is not None else (np.zeros((0, 0), waves.dtype), np.zeros((0, 0), real))
    where = which, _parts(obj), origin, corner, weight
    _update(_parts(waves), _parts(projected), _parts(probes), *where, real(a), real(b), change, _parts(num), den)


def object_sums(waves: Any, probes: Any, which: Any, origin: Any, corner: Any, weight: Any, num: Any, den: Any) -> None:
    _object_sums(_parts(waves), _parts(probes), which, origin, corner, weight, _parts(num), den)


def illumination(probes: Any, which: Any, origin: Any, corner: Any, weight: Any, den: Any) -> None:
    _illumination(_parts(probes), which, origin, corner, weight, den)


def probe_sums(waves: Any, obj: Any, origin: Any, corner: Any, weight: Any, layer: Any, num: Any, den: Any) -> None:
    _probe_sums(_parts(waves), _parts(obj), origin, corner, weight, layer, _parts(num), den)


def probe_terms(waves: Any, obj: Any, origin: Any, corner: Any, weight: Any, num: Any, den: Any) -> None:
    _each_probe_terms(_parts(waves), _parts(obj), origin, corner, weight, _parts(num), den)


def shifted_views(probes: Any, layer: Any, remainder: Any, out: Any) -> None:
    _shifted_views(_parts(probes), layer, remainder, _parts(out))


def add_shifted(stack: Any, layer: Any, remainder: Any, out: Any) -> None:
    parts = 2 if np.iscomplexobj(stack) else 1
    _add_shifted_stack(_parts(stack), parts, layer, remainder, _parts(out))
