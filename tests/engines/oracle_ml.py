"""Maximum likelihood in plain float64 loops over frames: written from the formulas, no code of the engine."""

from __future__ import annotations

from typing import Any

import numpy as np
from oracle import Problem, shift_matrix
from scipy.ndimage import gaussian_filter
from scipy.special import gammaln

EPSILON = 1e-6


class Model:
    """P·O of a problem at the detector, frame by frame."""

    def __init__(self, q: Problem, p: dict[str, Any], trust: np.ndarray | None = None) -> None:
        self.q, self.p = q, p
        self.pods = [(k, m) for k in range(len(q.probe)) for m in range(len(q.object))]
        self.shape = q.probe.shape[1:]
        trust = np.ones(self.shape) if trust is None else trust
        self.weight = np.where(q.valid, trust * p["intensity_renormalization"], 0)
        self.counts = np.where(q.valid, q.counts, 0)
        self.trust = trust
        self.window = [(slice(y, y + self.shape[0]), slice(x, x + self.shape[1])) for y, x in q.corner]

    def shifts(self, j: int) -> tuple[np.ndarray, np.ndarray]:
        kind = self.p["subpix"]
        return tuple(shift_matrix(n, d, kind) for n, d in zip(self.shape, self.q.remainder[j], strict=True))

    def view(self, j: int, probe: np.ndarray) -> np.ndarray:
        y, x = self.shifts(j)
        return self.q.weight[j] * (y @ probe @ x.T)

    def waves(self, j: int, probe: np.ndarray, obj: np.ndarray) -> np.ndarray:
        """(pod, y, x) at the detector."""
        made = [self.view(j, probe[k]) * obj[m][self.window[j]] for k, m in self.pods]
        return np.array([np.fft.fft2(w, norm="ortho") for w in made])

    def factor(self, j: int, intensity: np.ndarray) -> float:
        """What floating intensities are multiplied by."""
        if not self.p["floating_intensities"]:
            return 1.0
        w, n = self.weight[j], self.counts[j]
        if self.p["ML_type"] == "gaussian":
            w = w / (1 / self.p["intensity_renormalization"] + n)
            return float((w * intensity * n).sum() / (w * intensity**2).sum())
        if self.p["ML_type"] == "poisson":
            return float((w * n).sum() / (w * intensity).sum())
        return float(((w * np.sqrt(intensity * n)).sum() / (w * intensity).sum()) ** 2)

    def cost(self, j: int, intensity: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """(cost, its first derivative, half its second) of a frame by its scaled intensity."""
        w, n = self.weight[j], self.counts[j]
        if self.p["ML_type"] == "gaussian":
            w = w / (1 / self.p["intensity_renormalization"] + n)
            return float((w * (intensity - n) ** 2).sum()), 2 * w * (intensity - n), w
        m = intensity + EPSILON
        if self.p["ML_type"] == "poisson":
            level = self.p["intensity_renormalization"]
            whole = level * m - level * n * np.log(level * m) + gammaln(level * n + 1)
            return float((w / level * whole).sum()), w * (1 - n / m), w * n / m**2 / 2
        return float((w * (np.sqrt(m) - np.sqrt(n)) ** 2).sum()), w * (1 - np.sqrt(n / m)), w * np.sqrt(n) * m**-1.5 / 4

    def costs(self, probe: np.ndarray, obj: np.ndarray) -> np.ndarray:
        """Of each frame."""
        found = []
        for j in range(len(self.counts)):
            m = (np.abs(self.waves(j, probe, obj)) ** 2).sum(axis=0)
            found.append(self.cost(j, self.factor(j, m) * m)[0])
        return np.array(found)

    def seen(self) -> np.ndarray:
        found = np.zeros(self.q.object.shape, bool)
        for window in self.window:
            found[(slice(None), *window)] = True
        return found

    def prior(self, obj: np.ndarray) -> float:
        """R(O)."""
        if not self.p["reg_del2"]:
            return 0.0
        here = self.seen()
        total = (np.abs(np.diff(obj, axis=1)) ** 2 * (here[:, 1:] & here[:, :-1])).sum()
        total += (np.abs(np.diff(obj, axis=2)) ** 2 * (here[:, :, 1:] & here[:, :, :-1])).sum()
        return 2 * self.amplitude() * float(total)

    def amplitude(self) -> float:
        photons = self.p["intensity_renormalization"] * self.counts.sum()
        return self.p["reg_del2_amplitude"] * self.counts.size * photons / (8 * self.seen().sum() ** 2)

    def prior_gradient(self, obj: np.ndarray) -> np.ndarray:
        if not self.p["reg_del2"]:
            return np.zeros_like(obj)
        here, found = self.seen(), np.zeros_like(obj)
        for axis in (1, 2):
            near, far = ([slice(None)] * 3 for _ in range(2))
            near[axis], far[axis] = slice(None, -1), slice(1, None)
            near, far = tuple(near), tuple(far)
            step = (obj[far] - obj[near]) * (here[far] & here[near])
            found[far] += step
            found[near] -= step
        return 2 * self.amplitude() * found

    def gradient(self, probe: np.ndarray, obj: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[float]]:
        """(by conj(O), by conj(P), Σ|P|², Σ|O|², factors) of the data's cost."""
        by_object, by_probe = np.zeros_like(obj), np.zeros_like(probe)
        lit, thick, factors = np.zeros(obj.shape), np.zeros(probe.shape), []
        for j in range(len(self.counts)):
            f = self.waves(j, probe, obj)
            m = (np.abs(f) ** 2).sum(axis=0)
            c = self.factor(j, m)
            factors.append(c)
            xi = [np.fft.ifft2(c * self.cost(j, c * m)[1] * u, norm="ortho") for u in f]
            y, x = self.shifts(j)
            flat = [
                shift_matrix(n, d, "linear" if self.p["subpix"] else None)
                for n, d in zip(self.shape, self.q.remainder[j], strict=True)
            ]
            for wave, (k, l) in zip(xi, self.pods, strict=True):
                view, part = self.view(j, probe[k]), self.q.weight[j] * obj[l][self.window[j]]
                by_object[l][self.window[j]] += view.conj() * wave
                lit[l][self.window[j]] += np.abs(view) ** 2
                by_probe[k] += y.conj().T @ (part.conj() * wave) @ x.conj()
                thick[k] += (flat[0].T @ np.abs(part) ** 2 @ flat[1]).real
        return by_object, by_probe, lit, thick, factors

    def line(self, probe: Any, obj: Any, dp: Any, do: Any, factors: list[float]) -> np.ndarray:
        """Coefficients of t, t², … in the cost to second order in the intensities."""
        total = np.zeros(9)
        self.bare_curvature = 0.0
        for j, c in enumerate(factors):
            waves = [self.waves(j, probe + t * dp, obj + t * do) for t in (-1.0, 0.0, 1.0)]
            b, a, f = (waves[0] + waves[2]) / 2 - waves[1], (waves[2] - waves[0]) / 2, waves[1]
            terms = [np.abs(f) ** 2, 2 * (f * a.conj()).real, 2 * (f * b.conj()).real + np.abs(a) ** 2]
            terms += [2 * (a * b.conj()).real, np.abs(b) ** 2]
            A = [c * term.sum(axis=0) for term in terms]
            _, slope, half = self.cost(j, A[0])
            self.bare_curvature += (half * A[1] ** 2).sum()
            for k in range(1, 5):
                total[k] += (slope * A[k]).sum()
                for l in range(1, 5):
                    total[k + l] += (half * A[k] * A[l]).sum()
        if self.p["reg_del2"]:
            low, mid, high = (self.prior(obj + t * do) for t in (-1, 0, 1))
            total[1] += (high - low) / 2
            total[2] += (high + low) / 2 - mid
        return total


def support(probe: np.ndarray, p: dict[str, Any]) -> np.ndarray:
    height, width = probe.shape[1:]
    if p["probe_fourier_support"] is not None:
        y, x = np.meshgrid(np.fft.fftfreq(height) * height, np.fft.fftfreq(width) * width, indexing="ij")
        probe = np.fft.ifft2(np.fft.fft2(probe) * (np.pi * (y**2 + x**2) < p["probe_fourier_support"] * height * width))
    if p["probe_support"] is not None:
        y, x = np.mgrid[:height, :width]
        y, x = y - (height - 1) / 2, x - (width - 1) / 2
        probe = probe * (np.pi * (y**2 + x**2) < p["probe_support"] * height * width)
    return probe


def real_product(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.vdot(a, b).real)


def ml(q: Problem, iterations: int, p: dict[str, Any], trust: np.ndarray | None = None) -> Problem:
    """`iterations` of ML with the parameters `p`."""
    ho, hp = np.zeros_like(q.object), np.zeros_like(q.probe)
    old_o, old_p, s, before = None, None, None, None
    for iteration in range(iterations):
        model = Model(q, p | {"subpix": p["subpix"] if iteration >= p["subpix_start"] else None}, trust)
        do_probe = iteration >= p["probe_update_start"]
        if iteration == p["subpix_start"]:
            old_o, old_p, before = None, None, None
        if iteration == p["probe_update_start"]:
            inside = support(q.probe, p)
            if (inside != q.probe).any():
                q.probe, old_o, old_p, before = inside, None, None, None
        costs = model.costs(q.probe, q.object)
        whole = costs.sum() + model.prior(q.object)
        q.errors.append([0.0, costs.mean() / q.probe[0].size, 0.0])
        if before is not None and whole > before[0] * (1 + 1e-5):
            start, slope, t = before
            shorter = t * np.clip(-slope * t / (2 * (whole - start - slope * t)), 0.1, 0.5)
            q.object, q.probe = q.object + (shorter - t) * ho, q.probe + (shorter - t) * hp
            before = start, slope, shorter
            continue
        if p["floating_intensities"] and do_probe:
            root = np.sqrt(np.mean(model.gradient(q.probe, q.object)[4]))
            q.probe, hp, old_p = q.probe * root, hp * root, None if old_p is None else old_p / root
        go, gp, lit, thick, factors = model.gradient(q.probe, q.object)
        go = go + model.prior_gradient(q.object)
        gp = support(gp, p) * do_probe
        sigma = p["smooth_gradient"] * (1 - p["smooth_gradient_decay"]) ** iteration

        def blurred(g: np.ndarray, sigma: float = sigma) -> np.ndarray:
            return np.stack([gaussian_filter(o.real, sigma) + 1j * gaussian_filter(o.imag, sigma) for o in g]) if sigma else g

        do = np.sqrt(lit + p["wavefield_delta_object"]) if p["wavefield_precond"] else 1.0
        dp = np.sqrt(thick + p["wavefield_delta_probe"]) if p["wavefield_precond"] else 1.0
        co, cp = blurred(go / do), gp / dp
        if not p["scale_precond"]:
            s = p["scale_probe_object"]
        elif do_probe:
            wanted = p["scale_probe_object"] * real_product(co, co) / real_product(cp, cp)
            s = wanted if s is None else s**0.9 * wanted**0.1
        scale = p["scale_probe_object"] if s is None else s
        beta = 0.0
        if old_o is not None:
            above = real_product(co, co - old_o) + scale * real_product(cp, cp - old_p)
            beta = max(0.0, above / (real_product(old_o, old_o) + scale * real_product(old_p, old_p)))
        steep_o, steep_p = -blurred(co) / do, -scale * cp / dp
        ho, hp = beta * ho + steep_o, beta * hp + steep_p
        if real_product(go, ho) + real_product(gp, hp) >= 0:
            ho, hp = steep_o, steep_p
        old_o, old_p = co, cp
        c = model.line(q.probe, q.object, hp, ho, factors)
        bare = model.bare_curvature
        t = -c[1] / (2 * c[2])
        if c[2] < 0.1 * bare:
            raise ValueError("this problem begins too far from its solution for a comparison")
        if p["poly_line_coeffs"] == "all":
            scaled = c * t ** np.arange(9)
            roots = np.roots((scaled * np.arange(9))[:0:-1])
            roots = roots[np.abs(roots.imag) < 1e-6 * np.abs(roots)].real
            t *= roots[np.argmin(np.polyval(scaled[::-1], roots))]
        q.object, q.probe = q.object + t * ho, q.probe + t * hp
        before = whole, c[1], t
    return q
