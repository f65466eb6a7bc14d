"""EPIE and SDR in plain float64 loops over frames and modes: written from the formulas, no code of the engine."""

from __future__ import annotations

from typing import Any

import numpy as np
from oracle import Problem, shift_matrix


def stochastic(problem: Problem, orders: list[np.ndarray], p: dict[str, Any]) -> Problem:
    """One iteration for each order of frames, with the parameters `p` of EPIE or SDR, by their name."""
    q = problem
    height, width = q.probe.shape[1:]
    modes = [(k, m) for k in range(len(q.probe)) for m in range(len(q.object))]
    if p["name"] == "EPIE":
        sigma, tau = 0.0, 1.0
        object_step, object_share, probe_step, probe_share = p["alpha"], 0.0, p["beta"], 0.0
    else:
        sigma, tau = p["sigma"], p["tau"]
        object_step, probe_step = p["beta_object"], p["beta_probe"]
        object_share, probe_share = object_step, probe_step
    kind: str | None = None

    def s(j: int) -> tuple[np.ndarray, np.ndarray]:
        return shift_matrix(height, q.remainder[j, 0], kind), shift_matrix(width, q.remainder[j, 1], kind)

    def positive(j: int) -> tuple[np.ndarray, np.ndarray]:
        way = None if kind is None else "linear"
        return shift_matrix(height, q.remainder[j, 0], way), shift_matrix(width, q.remainder[j, 1], way)

    def window(j: int) -> tuple[slice, slice]:
        y, x = q.corner[j]
        return slice(y, y + height), slice(x, x + width)

    def view(j: int, k: int) -> np.ndarray:
        a, b = s(j)
        return q.weight[j] * (a @ q.probe[k] @ b.T)

    def back(image: np.ndarray, ab: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        return ab[0].conj().T @ image @ ab[1].conj()

    for iteration, order in enumerate(orders):
        kind = p["subpix"] if iteration >= p["subpix_start"] else None
        if q.waves is None:
            q.waves = [[view(j, k) * q.object[m][window(j)] for k, m in modes] for j in range(len(q.counts))]
        do_probe = iteration >= p["probe_update_start"]
        if do_probe:
            q.probe = supported(q.probe, p)
        errors = np.zeros((len(order), 3))
        for first in range(0, len(order), p["batch"]):
            batch = order[first : first + p["batch"]]
            residual = {}
            for place, j in enumerate(batch):
                now = [view(j, k) * q.object[m][window(j)] for k, m in modes]
                old = now if p["name"] == "EPIE" else q.waves[j]
                f = [np.fft.fft2((1 + sigma) * po - sigma * w, norm="ortho") for w, po in zip(old, now, strict=True)]
                measured, mask = np.sqrt(np.where(q.valid[j], q.counts[j], 0)), q.valid[j]
                amplitude = np.sqrt(sum(np.abs(x) ** 2 for x in f))
                model = sum(np.abs(np.fft.fft2(po, norm="ortho")) ** 2 for po in now)
                score = errors[first + place]
                score[0] = (mask * (amplitude - measured) ** 2).sum() / mask.sum()
                score[1] = (mask * (model - measured**2) ** 2 / (measured**2 + 1)).sum() / (height * width)
                fresh = []
                for x, w, po in zip(f, old, now, strict=True):
                    projected = np.fft.ifft2(np.where(mask, measured / (amplitude + 1e-10), 1) * x, norm="ortho")
                    # Relaxed Douglas-Rachford; sigma = 0 and tau = 1 put the moduli on P O.
                    fresh.append((1 - tau) * po + tau * (projected + sigma * (w - po)))
                score[2] = sum((np.abs(n - w) ** 2).mean() for n, w in zip(fresh, old, strict=True))
                q.waves[j] = fresh
                residual[j] = [n - po for n, po in zip(fresh, now, strict=True)]
            top, bottom = np.zeros_like(q.object), np.zeros(q.object.shape)
            for j in batch:
                for m in range(len(q.object)):
                    power = sum(np.abs(view(j, k)) ** 2 for k in range(len(q.probe)))
                    bottom[m][window(j)] += (1 - object_share) * power.max() + object_share * power
                    for k in range(len(q.probe)):
                        top[m][window(j)] += view(j, k).conj() * residual[j][modes.index((k, m))]
            q.object = q.object + object_step * np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)
            if not do_probe:
                continue
            top, bottom = np.zeros_like(q.probe), np.zeros(q.probe.shape)
            for j in batch:
                windows = [q.weight[j] * o[window(j)] for o in q.object]
                power = sum(np.abs(o) ** 2 for o in windows)
                peak = power.max()
                if p.get("object_norm_is_global"):
                    peak = q.weight[j] ** 2 * (np.abs(q.object) ** 2).sum(axis=0).max()
                for k in range(len(q.probe)):
                    bottom[k] += (1 - probe_share) * peak + probe_share * back(power, positive(j)).real
                    for m, o in enumerate(windows):
                        top[k] += back(o.conj() * residual[j][modes.index((k, m))], s(j))
            q.probe = supported(q.probe + probe_step * top / bottom, p)
        q.errors.append(errors.mean(axis=0).tolist())
    return q


def supported(probe: np.ndarray, p: dict[str, Any]) -> np.ndarray:
    """Discs by their share of the frame's area: first in frequency space, then about the frame's middle."""
    height, width = probe.shape[1:]
    if p["probe_fourier_support"] is not None:
        y, x = np.meshgrid(np.fft.fftfreq(height) * height, np.fft.fftfreq(width) * width, indexing="ij")
        probe = np.fft.ifft2(np.fft.fft2(probe) * (np.pi * (y**2 + x**2) < p["probe_fourier_support"] * height * width))
    if p["probe_support"] is not None:
        y, x = np.mgrid[:height, :width]
        y, x = y - (height - 1) / 2, x - (width - 1) / 2
        probe = probe * (np.pi * (y**2 + x**2) < p["probe_support"] * height * width)
    return probe
