"""The few fused operations that a profile shows to matter, for one tile on one CPU core.

Complex arrays come as real ones with interleaved parts (`interleaved`): rows are slices and the arithmetic is real, which
is what LLVM vectorises. Nothing here allocates per pixel or holds the interpreter lock. Axes: waves (frame, y, 2x), probes
(view, y, 2x), object (y, 2x), counts (frame of the slab, y, x). `which[j]` is the probe view of frame j, `corner[j]` the
array index of its first object pixel, `weight[j]` the factor on its model amplitude.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

# Reordering is allowed, ignoring infinities is not: an infinite count marks an invalid pixel.
_jit = numba.njit(nogil=True, fastmath={"reassoc", "contract", "arcp", "nsz", "afn"}, error_model="numpy", cache=True)


def interleaved(array: NDArray[Any]) -> NDArray[Any]:
    """A contiguous complex array as its real parts: the last axis doubles."""
    return array.view(array.real.dtype)


@_jit
def form(waves, probes, which, obj, corner, weight, c, out):  # type: ignore[no-untyped-def]
    """out = (1 - c) ψ + c w P O for each frame."""
    d = 1 - c
    for j in range(waves.shape[0]):
        view = probes[which[j]]
        top, left, s = corner[j, 0], 2 * corner[j, 1], c * weight[j]
        for y in range(waves.shape[1]):
            p, w, u = view[y], waves[j, y], out[j, y]
            o = obj[top + y, left : left + p.shape[0]]
            for x in range(p.shape[0] // 2):
                r = p[2 * x] * o[2 * x] - p[2 * x + 1] * o[2 * x + 1]
                i = p[2 * x] * o[2 * x + 1] + p[2 * x + 1] * o[2 * x]
                u[2 * x] = d * w[2 * x] + s * r
                u[2 * x + 1] = d * w[2 * x + 1] + s * i


@_jit
def model(probes, which, obj, corner, weight, out):  # type: ignore[no-untyped-def]
    """out = w P O for each frame."""
    for j in range(out.shape[0]):
        view = probes[which[j]]
        top, left, s = corner[j, 0], 2 * corner[j, 1], weight[j]
        for y in range(out.shape[1]):
            p, u = view[y], out[j, y]
            o = obj[top + y, left : left + p.shape[0]]
            for x in range(p.shape[0] // 2):
                u[2 * x] = s * (p[2 * x] * o[2 * x] - p[2 * x + 1] * o[2 * x + 1])
                u[2 * x + 1] = s * (p[2 * x] * o[2 * x + 1] + p[2 * x + 1] * o[2 * x])


@_jit
def modulus(f, counts, row, mask, limit, bound, eps, amplitude, error):  # type: ignore[no-untyped-def]
    """Put measured amplitudes on the transformed waves, in place; error[j] = mean over valid pixels of (A - √I)².

    f: (pod, frame, y, 2x). A = √(Σ_pods |f|²). Invalid pixels keep the model's amplitude. With a power `bound` >= 0 a frame
    whose error is below it stays as it is, one above is pulled as far as √(bound / error) of the way back to the model.
    """
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
def misfit(f, counts, row, mask, limit, intensity, amplitude_out, photon_out, valid_out):  # type: ignore[no-untyped-def]
    """Sums over valid pixels of (√Imod - √I)² and (Imod - I)²/(I + 1), and their number, for each frame.

    f: transforms of w P O, (pod, frame, y, 2x); `intensity` (y, x) holds Imod of the last frame afterwards.
    """
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
def update(waves, projected, probes, which, obj, corner, weight, a, b, change, num, den):  # type: ignore[no-untyped-def]
    """ψ += b f + a w P O - (a + b) ψ, and the sums of the object update while the wave is at hand.

    change[j] += mean |Δψ|². Where `num` has rows: num += w conj(P) ψ, den += w² |P|².
    """
    accumulate = num.shape[0] > 0
    for j in range(waves.shape[0]):
        view = probes[which[j]]
        top, left, s = corner[j, 0], 2 * corner[j, 1], weight[j]
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
def object_sums(waves, probes, which, corner, weight, num, den):  # type: ignore[no-untyped-def]
    """num += w conj(P) ψ; den += w² |P|² on the canvas."""
    for j in range(waves.shape[0]):
        view = probes[which[j]]
        top, left, s = corner[j, 0], 2 * corner[j, 1], weight[j]
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
def illumination(probes, which, corner, weight, den):  # type: ignore[no-untyped-def]
    """den += w² |P|² on the canvas."""
    for j in range(which.shape[0]):
        view = probes[which[j]]
        top, left, s = corner[j, 0], corner[j, 1], weight[j] * weight[j]
        for y in range(view.shape[0]):
            p = view[y]
            d = den[top + y, left : left + p.shape[0] // 2]
            for x in range(d.shape[0]):
                d[x] += s * (p[2 * x] * p[2 * x] + p[2 * x + 1] * p[2 * x + 1])


@_jit
def probe_sums(waves, obj, corner, weight, num, den):  # type: ignore[no-untyped-def]
    """num += w conj(O) ψ (y, 2x); den += w² |O|² (y, x), summed over the frames."""
    for j in range(waves.shape[0]):
        top, left, s = corner[j, 0], 2 * corner[j, 1], weight[j]
        for y in range(waves.shape[1]):
            w, n, d = waves[j, y], num[y], den[y]
            o = obj[top + y, left : left + n.shape[0]]
            for x in range(d.shape[0]):
                r, i = s * o[2 * x], s * o[2 * x + 1]
                n[2 * x] += r * w[2 * x] + i * w[2 * x + 1]
                n[2 * x + 1] += r * w[2 * x + 1] - i * w[2 * x]
                d[x] += r * r + i * i


@_jit
def add_shifted(source, parts, dy, dx, out):  # type: ignore[no-untyped-def]
    """out += S_d source, bilinear on a periodic frame; rows hold `parts` interleaved numbers per pixel (1 or 2)."""
    height, width = source.shape
    sy = 1 if dy > 0 else -1
    s = parts if dx > 0 else -parts
    one = source.dtype.type(1)
    ay, ax = source.dtype.type(abs(dy)), source.dtype.type(abs(dx))
    a, b, c, d = (one - ay) * (one - ax), ay * (one - ax), (one - ay) * ax, ay * ax
    for y in range(height):
        near, far, o = source[y], source[(y - sy) % height], out[y]
        for i in range(width):
            o[i] += a * near[i] + b * far[i]
        if ax == 0:
            continue
        low, high = max(s, 0), width + min(s, 0)
        for i in range(low, high):
            o[i] += c * near[i - s] + d * far[i - s]
        for i in range(low):
            o[i] += c * near[i - s + width] + d * far[i - s + width]
        for i in range(high, width):
            o[i] += c * near[i - s - width] + d * far[i - s - width]


@_jit
def shifted_views(probes, layer, remainder, out):  # type: ignore[no-untyped-def]
    """out[j] = S_d of the probe layer that frame j sees, bilinear; (frame, y, 2x)."""
    for j in range(out.shape[0]):
        out[j] = 0
        add_shifted(probes[layer[j]], 2, remainder[j, 0], remainder[j, 1], out[j])


@_jit
def probe_terms(waves, obj, corner, weight, num, den):  # type: ignore[no-untyped-def]
    """num[j] = w conj(O) ψ (frame, y, 2x); den[j] = w² |O|² (frame, y, x)."""
    for j in range(waves.shape[0]):
        num[j] = 0
        den[j] = 0
        probe_sums(waves[j : j + 1], obj, corner[j : j + 1], weight[j : j + 1], num[j], den[j])
