"""The projection engines in plain float64 loops over frames and pods: written from the formulas, no code of the engines."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


def shift_matrix(n: int, d: float, kind: str | None) -> np.ndarray:
    """Dense n × n matrix that moves a periodic signal by d towards larger indices."""
    if kind is None:
        return np.eye(n, dtype=complex)
    if kind == "linear":
        matrix = np.zeros((n, n), complex)
        step = 1 if d > 0 else -1
        for i in range(n):
            matrix[i, i] += 1 - abs(d)
            matrix[i, (i - step) % n] += abs(d)
        return matrix
    dft = np.exp(-2j * np.pi * np.outer(np.arange(n), np.arange(n)) / n)
    return dft.conj().T @ np.diag(np.exp(-2j * np.pi * np.fft.fftfreq(n) * d)) @ dft / n


@dataclass
class Problem:
    """A scan with everything in float64."""

    probe: np.ndarray
    object: np.ndarray
    counts: np.ndarray
    valid: np.ndarray
    """(frame, y, x)."""
    corner: np.ndarray
    remainder: np.ndarray
    weight: np.ndarray
    mean: float
    brightest: float
    waves: Any = None
    errors: list[list[float]] = field(default_factory=list)
    lit: Any = None
    """Illumination at the last update of the object."""


def dm(problem: Problem, iterations: int, p: dict[str, Any]) -> Problem:
    """`iterations` of DM with the parameters `p`."""
    return project(problem, iterations, p, (-p["alpha"], 1.0, 1.0 + p["alpha"]))


def raar(problem: Problem, iterations: int, p: dict[str, Any]) -> Problem:
    """`iterations` of RAAR with the parameters `p`."""
    return project(problem, iterations, p, (1.0 - 2.0 * p["beta"], p["beta"], 2.0))


def project(problem: Problem, iterations: int, p: dict[str, Any], coefficients: tuple[float, float, float]) -> Problem:
    """`iterations` of the generalised projection with the coefficients (a, b, c) and the parameters `p`."""
    q = problem
    n_probe, n_object = len(q.probe), len(q.object)
    pods = [(k, m) for k in range(n_probe) for m in range(n_object)]
    frames, (height, width) = len(q.counts), q.probe.shape[1:]
    a, b, c = coefficients
    previous = np.zeros_like(q.probe)

    def operators(j: int, iteration: int) -> tuple[np.ndarray, np.ndarray]:
        kind = p["subpix"] if iteration >= p["subpix_start"] else None
        return shift_matrix(height, q.remainder[j, 0], kind), shift_matrix(width, q.remainder[j, 1], kind)

    def moved(view: np.ndarray, s: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        return s[0] @ view @ s[1].T

    def back(view: np.ndarray, s: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        return s[0].conj().T @ view @ s[1].conj()

    def window(j: int) -> tuple[slice, slice]:
        y, x = q.corner[j]
        return slice(y, y + height), slice(x, x + width)

    def model(j: int, k: int, m: int, iteration: int) -> np.ndarray:
        return q.weight[j] * moved(q.probe[k], operators(j, iteration)) * q.object[m][window(j)]

    if q.waves is None:
        q.waves = [[model(j, k, m, 0) for k, m in pods] for j in range(frames)]
    pb = p["fourier_power_bound"]
    if pb is None:
        pb = 0.25 * p["fourier_relax_factor"] ** 2 * q.brightest / (height * width)
    for iteration in range(iterations):
        fourier, photon, exits = [], [], []
        for j in range(frames):
            now = [model(j, k, m, iteration) for k, m in pods]
            f = [np.fft.fft2((1 - c) * w + c * po, norm="ortho") for w, po in zip(q.waves[j], now, strict=True)]
            amplitude = np.sqrt(sum(np.abs(x) ** 2 for x in f))
            measured, mask = np.sqrt(np.where(q.valid[j], q.counts[j], 0)), q.valid[j]
            error = (mask * (amplitude - measured) ** 2).sum() / mask.sum()
            intensity = sum(np.abs(np.fft.fft2(po, norm="ortho")) ** 2 for po in now)
            photon.append((mask * (intensity - measured**2) ** 2 / (measured**2 + 1)).sum() / (height * width))
            fourier.append(error)
            total = 0.0
            for i, (f_p, po) in enumerate(zip(f, now, strict=True)):
                if error <= pb:
                    change = (a + b * c) * (po - q.waves[j][i])
                else:
                    r = np.sqrt(pb / error)
                    factor = np.where(mask, (measured + r * (amplitude - measured)) / (amplitude + 1e-10), 1.0)
                    change = b * np.fft.ifft2(factor * f_p, norm="ortho") + a * po - (a + b) * q.waves[j][i]
                q.waves[j][i] = q.waves[j][i] + change
                total += (np.abs(change) ** 2).mean()
            exits.append(total)
        q.errors.append([np.mean(fourier), np.mean(photon), np.mean(exits)])
        do_probe = p["probe_update_start"] <= iteration
        for inner in range(p["overlap_max_iterations"]):
            if p["update_object_first"] or inner > 0 or not do_probe:
                _object(q, pods, p, iteration, operators, moved, window)
            if not do_probe:
                break
            if _probe(q, pods, p, iteration, operators, moved, back, window, previous) < p["overlap_converge_factor"]:
                break
    return q


def _object(q, pods, p, iteration, operators, moved, window) -> None:
    from scipy.ndimage import gaussian_filter

    inertia = p["object_inertia"] * q.mean
    old = q.object
    if p["obj_smooth_std"]:
        s = p["obj_smooth_std"]
        old = np.stack([gaussian_filter(o.real, s) + 1j * gaussian_filter(o.imag, s) for o in q.object])
    q.lit = _coverage(q, pods, iteration, operators, moved, window)
    top, bottom = inertia * old, np.full(q.object.shape, inertia)
    for j in range(len(q.counts)):
        for i, (k, m) in enumerate(pods):
            view = q.weight[j] * moved(q.probe[k], operators(j, iteration))
            top[m][window(j)] += view.conj() * q.waves[j][i]
            bottom[m][window(j)] += np.abs(view) ** 2
    q.object = top / bottom
    if p["clip_object"]:
        low, high = p["clip_object"]
        size = np.abs(q.object)
        q.object = np.clip(size, low, high) * q.object / size


def _coverage(q, pods, iteration, operators, moved, window) -> np.ndarray:
    lit = np.zeros(q.object.shape)
    for j in range(len(q.counts)):
        for k, m in pods:
            lit[m][window(j)] += np.abs(q.weight[j] * moved(q.probe[k], operators(j, iteration))) ** 2
    return lit


def _probe(q, pods, p, iteration, operators, moved, back, window, previous) -> float:
    frames, layers = len(q.counts), len(q.probe)
    inertia = p["probe_inertia"] * frames * len(pods) / layers
    plain = p["subpix"] is None or iteration < p["subpix_start"]
    ramp = not plain and p["subpix"] == "fourier"
    trust = np.ones(q.object.shape)
    if ramp:
        lit = _coverage(q, pods, iteration, operators, moved, window) if q.lit is None else q.lit
        power = np.abs(q.object) ** 2
        trust = np.minimum(1, 4 * (lit * power).sum() / lit.sum() / power)
    top, bottom = np.zeros_like(q.probe), np.zeros(q.probe.shape)
    for j in range(frames):
        s = operators(j, iteration)
        for i, (k, m) in enumerate(pods):
            o, w = q.weight[j] * q.object[m][window(j)], trust[m][window(j)]
            wave = q.waves[j][i] if plain else q.waves[j][i] - o * moved(q.probe[k], s)
            top[k] += back(w * o.conj() * wave, s)
            linear = tuple(shift_matrix(n, d, None if plain else "linear") for n, d in zip(o.shape, q.remainder[j], strict=True))
            bottom[k] += back(w * np.abs(o) ** 2, linear).real
    if plain:
        q.probe = (inertia * q.probe + top) / (inertia + bottom)
    else:
        change = top / (inertia + bottom)
        part = 1.0
        if ramp:
            curvature = inertia * (np.abs(change) ** 2).sum()
            for j in range(frames):
                for k, m in pods:
                    o, w = q.weight[j] * q.object[m][window(j)], trust[m][window(j)]
                    curvature += (w * np.abs(o * moved(change[k], operators(j, iteration))) ** 2).sum()
            part = min(1.0, np.vdot(change, top).real / curvature)
        q.probe = q.probe + part * change
    height, width = q.probe.shape[1:]
    if p["probe_fourier_support"] is not None:
        y, x = np.meshgrid(np.fft.fftfreq(height) * height, np.fft.fftfreq(width) * width, indexing="ij")
        keep = np.pi * (y**2 + x**2) < p["probe_fourier_support"] * height * width
        q.probe = np.fft.ifft2(np.fft.fft2(q.probe) * keep)
    if p["probe_support"] is not None:
        y, x = np.mgrid[:height, :width]
        y, x = y - (height - 1) / 2, x - (width - 1) / 2
        q.probe = q.probe * (np.pi * (y**2 + x**2) < p["probe_support"] * height * width)
    change = np.sqrt((np.abs(q.probe - previous) ** 2).sum() / (np.abs(q.probe) ** 2).sum())
    previous[:] = q.probe
    return float(change)
