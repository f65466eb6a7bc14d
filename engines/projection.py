"""The generalised projection: DM, RAAR and their relatives are its coefficients (a, b, c) and an overlap step.

ψ' = [(1 - a - b) + a Π_O + b Π_F(c Π_O + (1 - c))] ψ with Π_O ψ = P O and Π_F the measured moduli. Difference map: Thibault et
al., Ultramicroscopy 109, 338 (2009), with the update form of Marchesini et al., Inverse Problems 32 (2016) for the others.
A sweep visits each tile once and, while the tile is in cache, also sums the object update of the first overlap iteration.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.engine import Context, Progress
from ptystream.model.fft import transforms
from ptystream.reconstruction import COLUMN, OBJECT_LAYER, PROBE_LAYER, ROW, Reconstruction, Storage
from ptystream.scan.block import FrameStore

from .parameters import ProjectionParameters
from .subpixel import adjoint, shift
from .tiles import PARTIAL_SUMS, Sweeper, Tile, cut

EPSILON = 1e-10
"""Added to the modelled amplitude before dividing by it (photons^1/2)."""


class ProjectionEngine:
    """Everything but the coefficients."""

    Parameters: type[ProjectionParameters]

    def __init__(self, parameters: Any) -> None:
        self.p = parameters

    def coefficients(self) -> tuple[float, float, float]:
        """(a, b, c) of the generalised projection."""
        raise NotImplementedError("a projection engine is its coefficients")

    # ------------------------------------------------------------------ contract

    def start(
        self,
        reconstruction: Reconstruction,
        frames: Mapping[int, FrameStore],
        context: Context,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """See `ptystream.engine.Engine.start`."""
        from .kernels import cpu

        if context.device != "cpu":
            raise ValueError(f"device: {context.device!r}: this engine runs on 'cpu'")
        self.kernels = cpu
        self.reconstruction, self.frames, self.context = reconstruction, dict(frames), context
        self.complex = np.dtype(np.complex64 if context.precision == "single" else np.complex128)
        self.real = np.dtype(np.float32 if context.precision == "single" else np.float64)
        for storage in (*reconstruction.probes.values(), *reconstruction.objects.values()):
            storage.data = np.ascontiguousarray(storage.data, self.complex)
        self.fft2, self.ifft2 = transforms(context.fft)
        self.shape = next(iter(reconstruction.probes.values())).shape
        self.curiter = int((state or {}).get("iteration", 0))
        self._previous: dict[str, NDArray[Any]] = {}
        self._mean: tuple[int, dict[str, NDArray[Any]]] | None = None
        self._withdrawn: set[int] = set()
        self._sweeper = Sweeper(context.threads)
        self.tiles: list[Tile] = []
        self.extend(np.arange(reconstruction.pods.length))

    def extend(self, rows: NDArray[np.int64]) -> None:
        """See `ptystream.engine.Engine.extend`."""
        added = cut(self.reconstruction.pods, rows, self.frames, self.shape, self.complex)

        def fill(part: int, share: Sequence[tuple[int, Tile]]) -> None:
            for _, tile in share:
                self._form_model(tile, tile.waves)

        self._sweeper.sweep(added, fill)
        self.tiles.extend(added)

    def revise(self, rows: NDArray[np.int64], what: str) -> None:
        """See `ptystream.engine.Engine.revise`."""
        if what == "withdrawn":
            self._withdrawn.update(rows.tolist())
        if what in ("position", "frame", "withdrawn"):
            for number, tile in enumerate(self.tiles):
                here = np.isin(tile.rows, rows)
                if not here.any():
                    continue
                if what == "withdrawn":
                    kept = ~here
                    tile.rows, tile.in_slab = tile.rows[kept], tile.in_slab[kept]
                    tile.waves = np.ascontiguousarray(tile.waves[:, kept])
                else:
                    fresh = np.empty_like(tile.waves)
                    self._form_model(tile, fresh)
                    tile.waves[:, here] = fresh[:, here]
                self.tiles[number] = tile
            self.tiles = [tile for tile in self.tiles if len(tile)]

    def configure(self, parameters: Any) -> None:
        """See `ptystream.engine.Engine.configure`."""
        self.p = parameters

    def iterate(self, iterations: int, rows: NDArray[np.int64] | None = None) -> Progress:
        """See `ptystream.engine.Engine.iterate`. A tile is visited when any of its rows is."""
        visited = self.tiles if rows is None else [t for t in self.tiles if np.isin(t.rows, rows).any()]
        resting = [] if rows is None else [t for t in self.tiles if not np.isin(t.rows, rows).any()]
        errors, misfits, local = [], [], None
        for _ in range(iterations):
            error, misfit, local = self._iteration(visited, resting)
            errors.append(error)
            misfits.append(misfit)
            self.curiter += 1
            self._keep_mean()
        return Progress(
            self.curiter,
            np.array(errors),
            np.array(misfits),
            sum(len(t) for t in visited),
            local if self.p.record_local_error else None,
        )

    def average(self) -> None:
        """See `ptystream.engine.Engine.average`."""
        self._mean = (0, {})

    def snapshot(self, parts: Iterable[str] = ("probe", "object")) -> Reconstruction:
        """See `ptystream.engine.Engine.snapshot`."""
        wanted = set(parts)
        copied = self.reconstruction.copy(wanted)
        if "coverage" in wanted:
            sums = self._illumination(self.tiles)
            for (name, storage), lit in zip(self.reconstruction.objects.items(), sums, strict=True):
                total = lit.sum(axis=0, keepdims=True).astype(self.complex)
                copied.objects[name] = Storage(total, storage.pixel_size_m, storage.offset, 0.0, storage.energy_kev)
        return copied

    def state(self) -> Mapping[str, Any]:
        """See `ptystream.engine.Engine.state`: waves are rebuilt as P·O."""
        return {"iteration": self.curiter}

    def finish(self) -> None:
        """See `ptystream.engine.Engine.finish`."""
        if self._mean is not None and self._mean[0]:
            for name, storage in self._storages():
                storage.data = self._mean[1][name].astype(self.complex)
        self._sweeper.close()
        self.tiles = []

    # ------------------------------------------------------------------ one iteration

    def _iteration(
        self, visited: Sequence[Tile], resting: Sequence[Tile]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        p = self.p
        do_probe = p.probe_update_start <= self.curiter
        object_first = p.update_object_first or not do_probe
        sums = [self._empty_sums() if object_first else None for _ in range(PARTIAL_SUMS)]
        local = np.zeros((self.reconstruction.pods.length, 3))
        seen = np.full((self.reconstruction.pods.length, 3), np.nan)
        bound = self._bound()

        def work(part: int, share: Sequence[tuple[int, Tile]]) -> None:
            for _, tile in share:
                self._project(tile, bound, sums[part], local, seen)

        self._sweeper.sweep(visited, work)
        for inner in range(p.overlap_max_iterations):
            if p.update_object_first or inner > 0 or not do_probe:
                self._update_object(visited, resting, sums if inner == 0 else None)
            if not do_probe or self._update_probe(visited, resting) < p.overlap_converge_factor:
                break
        self._center_probe()
        rows = np.concatenate([t.rows for t in visited]) if visited else np.zeros(0, np.int64)
        mean = local[rows].mean(axis=0) if len(rows) else np.zeros(3)
        known = seen[rows]
        fits = np.array([np.nan] * 3)
        if len(rows) and p.compute_log_likelihood:
            fits = np.array(
                [known[:, 0].mean(), known[:, 1].mean(), np.nanmean(known[:, 2]) if (~np.isnan(known[:, 2])).any() else np.nan]
            )
        return mean, fits, local

    def _project(
        self,
        tile: Tile,
        bound: float,
        sums: list[tuple[NDArray[Any], NDArray[Any]]] | None,
        local: NDArray[np.float64],
        seen: NDArray[np.float64],
    ) -> None:
        """Fourier update of one tile, its errors, and the sums of the object update."""
        k, a, b, c = self.kernels, *self.coefficients()
        count, store = len(tile), self.frames[tile.scan]
        views, which = self._views(tile)
        limit, mask = self.real.type(store.limit), store.mask
        scratch = np.empty(self.shape, self.real)
        error, change = np.zeros(count), np.zeros(count)
        aux = np.empty_like(tile.waves)
        if self.p.compute_log_likelihood:
            self._form_model(tile, aux, views, which)
            f = k.interleaved(np.ascontiguousarray(self.fft2(aux)))
            amplitude, photon, valid = np.zeros(count), np.zeros(count), np.zeros(count)
            k.misfit(f, tile.slab, tile.in_slab, mask, limit, scratch, amplitude, photon, valid)
            valid = np.maximum(valid, 1)
            local[tile.rows, 1] = photon / scratch.size
            seen[tile.rows, 0], seen[tile.rows, 1] = amplitude / valid, photon / valid
            seen[tile.rows[-1], 2] = _poisson_expectation(scratch, mask)
        for pod in range(len(aux)):
            obj, corner, weight = self._window(tile, pod)
            k.form(
                k.interleaved(tile.waves[pod]),
                views[pod],
                which[pod],
                obj,
                corner,
                weight,
                self.real.type(c),
                k.interleaved(aux[pod]),
            )
        f = np.ascontiguousarray(self.fft2(aux))
        k.modulus(k.interleaved(f), tile.slab, tile.in_slab, mask, limit, bound, self.real.type(EPSILON), scratch, error)
        f = np.ascontiguousarray(self.ifft2(f))
        nothing = (np.zeros((0, 0), self.real), np.zeros((0, 0), self.real))
        for pod in range(len(aux)):
            obj, corner, weight = self._window(tile, pod)
            num, den = self._object_sums(tile, pod, sums) if sums is not None else nothing
            k.update(
                k.interleaved(tile.waves[pod]),
                k.interleaved(f[pod]),
                views[pod],
                which[pod],
                obj,
                corner,
                weight,
                self.real.type(a),
                self.real.type(b),
                change,
                num,
                den,
            )
        local[tile.rows, 0], local[tile.rows, 2] = error, change

    def _update_object(self, visited: Sequence[Tile], resting: Sequence[Tile], sums: Sequence[Any] | None) -> None:
        """O = (c_o G O + Σ conj(P) ψ) / (c_o + Σ |P|²); resting waves count as P·O."""
        k = self.kernels
        if sums is None:
            sums = [self._empty_sums() for _ in range(PARTIAL_SUMS)]

            def work(part: int, share: Sequence[tuple[int, Tile]]) -> None:
                for _, tile in share:
                    views, which = self._views(tile)
                    for pod in range(len(tile.waves)):
                        _, corner, weight = self._window(tile, pod)
                        num, den = self._object_sums(tile, pod, sums[part])
                        k.object_sums(k.interleaved(tile.waves[pod]), views[pod], which[pod], corner, weight, num, den)

            self._sweeper.sweep(visited, work)
        rest = self._illumination(resting) if resting else None
        inertia = self.p.object_inertia * self._mean_power()
        for number, storage in enumerate(self.reconstruction.objects.values()):
            num, den = sums[0][number]
            for part in range(1, PARTIAL_SUMS):
                num += sums[part][number][0]
                den += sums[part][number][1]
            top = num.view(self.complex)
            if rest is not None:
                top += rest[number] * storage.data
                den += rest[number]
            top += self.real.type(inertia) * self._smoothed(storage.data)
            den += self.real.type(inertia)
            lit = den > 0
            storage.data[lit] = top[lit] / den[lit]
            if self.p.clip_object is not None:
                _clip(storage.data, *self.p.clip_object)

    def _update_probe(self, visited: Sequence[Tile], resting: Sequence[Tile]) -> float:
        """P += Σ S† conj(O) (ψ - O S P) / (c_p + Σ S† |O|²), then the supports; returns the relative change.

        Without a shift this is P = (c_p P + Σ conj(O) ψ) / (c_p + Σ |O|²). With one it is not: S† |O|² S is no diagonal, and
        dividing by S† |O|² alone would blur the probe a little at every step. As a step it leaves the least-squares solution
        where it is, and it never overshoots: S† |O|² bounds S† |O|² S from above (Jensen; S has positive weights of sum 1).
        """
        k, probes = self.kernels, list(self.reconstruction.probes.items())
        kind = self._subpix()

        def work(part: int, share: Sequence[tuple[int, Tile]]) -> list[tuple[NDArray[Any], NDArray[Any]]]:
            sums = [(np.zeros(s.data.shape, self.complex), np.zeros(s.data.shape, self.real)) for _, s in probes]
            for active, tile in share:
                for pod in range(len(tile.waves)):
                    obj, corner, weight = self._window(tile, pod)
                    num, den = sums[tile.probe[pod]]
                    layers = self.reconstruction.pods.address[tile.rows, pod, PROBE_LAYER]
                    remainder = self.reconstruction.pods.remainder[tile.rows, pod]
                    waves = tile.waves[pod] if active else self._model_of(tile, pod)
                    if kind is None:
                        for layer in np.unique(layers):
                            here = np.flatnonzero(layers == layer)
                            part_waves = waves if len(here) == len(waves) else np.ascontiguousarray(waves[here])
                            into = k.interleaved(num[layer]), den[layer]
                            k.probe_sums(k.interleaved(part_waves), obj, corner[here], weight[here], *into)
                        continue
                    terms = np.empty((len(tile), *self.shape), self.complex)
                    powers = np.empty((len(tile), *self.shape), self.real)
                    residual = waves - self._model_of(tile, pod)
                    k.probe_terms(k.interleaved(residual), obj, corner, weight, k.interleaved(terms), powers)
                    if kind == "fourier":
                        terms = adjoint(terms, remainder, kind)
                    for j, layer in enumerate(layers):
                        dy, dx = -remainder[j]
                        k.add_shifted(powers[j], 1, dy, dx, den[layer])
                        if kind == "fourier":
                            num[layer] += terms[j]
                        else:
                            k.add_shifted(k.interleaved(terms[j]), 2, dy, dx, k.interleaved(num[layer]))
            return sums

        tagged = [(True, t) for t in visited] + [(False, t) for t in resting]
        shares = [tagged[part::PARTIAL_SUMS] for part in range(PARTIAL_SUMS)]
        parts = self._sweeper.run(work, shares)
        changes = []
        for number, (name, storage) in enumerate(probes):
            num, den = parts[0][number]
            for part in range(1, PARTIAL_SUMS):
                num += parts[part][number][0]
                den += parts[part][number][1]
            views = sum(int((np.array(t.probe) == number).sum()) * len(t) for t in self.tiles)
            inertia = self.real.type(self.p.probe_inertia * views / len(storage.data))
            total = den + inertia
            num += (inertia if kind is None else total) * storage.data
            lit = total > 0
            storage.data[lit] = num[lit] / total[lit]
            self._support(storage.data)
            before = self._previous.get(name)
            power = float(np.vdot(storage.data, storage.data).real)
            step = storage.data if before is None else storage.data - before
            changes.append(float(np.vdot(step, step).real) / max(power, 1e-30))
            self._previous[name] = storage.data.copy()
        return float(np.sqrt(np.mean(changes)))

    # ------------------------------------------------------------------ constraints

    def _support(self, probe: NDArray[Any]) -> None:
        """Supports in frequency and in real space, in place; probe (layer, y, x)."""
        height, width = self.shape
        if self.p.probe_fourier_support is not None:
            y, x = np.fft.fftfreq(height, 1 / height)[:, None], np.fft.fftfreq(width, 1 / width)[None]
            inside = np.pi * (y**2 + x**2) < self.p.probe_fourier_support * height * width
            probe[:] = self.ifft2(self.fft2(probe.copy()) * inside.astype(self.real))
        if self.p.probe_support is not None:
            y, x = np.arange(height)[:, None] - height / 2 + 0.5, np.arange(width)[None] - width / 2 + 0.5
            probe *= (np.pi * (y**2 + x**2) < self.p.probe_support * height * width).astype(self.real)

    def _smoothed(self, data: NDArray[Any]) -> NDArray[Any]:
        if not self.p.obj_smooth_std:
            return data
        from scipy.ndimage import gaussian_filter

        sigma = (0, self.p.obj_smooth_std, self.p.obj_smooth_std)
        return np.asarray(gaussian_filter(data.real, sigma) + 1j * gaussian_filter(data.imag, sigma), self.complex)

    def _center_probe(self) -> None:
        """Shift probe, object and waves together where the probe's centre of mass left the tolerance."""
        tolerance = self.p.probe_center_tol
        if tolerance is None:
            return
        from scipy.ndimage import shift as spline

        def moved(data: NDArray[Any], by: NDArray[np.float64], edge: str) -> NDArray[Any]:
            full = (*[0.0] * (data.ndim - 2), *by)
            return np.asarray(spline(data.real, full, mode=edge) + 1j * spline(data.imag, full, mode=edge), self.complex)

        for number, storage in enumerate(self.reconstruction.probes.values()):
            power = (np.abs(storage.data) ** 2).sum(axis=0)
            total = float(power.sum())
            if total <= 0:
                continue
            axes = [np.arange(n) for n in power.shape]
            mass = np.array([(power.sum(axis=1) * axes[0]).sum(), (power.sum(axis=0) * axes[1]).sum()]) / total
            by = np.array([n // 2 for n in power.shape]) - mass
            if np.hypot(*by) < tolerance:
                continue
            storage.data = moved(storage.data, by, "constant")
            seen = {t.object[pod] for t in self.tiles for pod in range(len(t.waves)) if t.probe[pod] == number}
            for name_number, obj in enumerate(self.reconstruction.objects.values()):
                if name_number in seen:
                    obj.data = moved(obj.data, by, "nearest")
            for tile in self.tiles:
                for pod in range(len(tile.waves)):
                    if tile.probe[pod] == number:
                        tile.waves[pod] = moved(tile.waves[pod], by, "constant")

    def _bound(self) -> float:
        """Power bound in photons per pixel; negative: none."""
        if self.p.fourier_power_bound is not None:
            return float(self.p.fourier_power_bound)
        brightest = self.context.brightest_photons
        if brightest is None:
            brightest = self._photons().max()
        return float(0.25 * self.p.fourier_relax_factor**2 * brightest / (self.shape[0] * self.shape[1]))

    def _mean_power(self) -> float:
        given = self.context.mean_photons
        return float(given if given is not None else self._photons().mean() / (self.shape[0] * self.shape[1]))

    def _photons(self) -> NDArray[np.float64]:
        totals = []
        for tile in self.tiles:
            store = self.frames[tile.scan]
            counts = tile.slab[tile.in_slab].astype(np.float64)
            totals.append(np.where((counts < store.limit) & (store.mask != 0), counts, 0).sum(axis=(1, 2)))
        return np.concatenate(totals) if totals else np.zeros(1)

    # ------------------------------------------------------------------ addresses

    def _subpix(self) -> str | None:
        return self.p.subpix if self.curiter >= self.p.subpix_start else None

    def _views(self, tile: Tile) -> tuple[list[NDArray[Any]], list[NDArray[np.int64]]]:
        """For each pod the probe views of the tile (view, y, 2x) and which one each frame sees."""
        pods, kind = self.reconstruction.pods, self._subpix()
        storages = list(self.reconstruction.probes.values())
        views, which = [], []
        for pod in range(pods.pods):
            data = storages[tile.probe[pod]].data
            layers = pods.address[tile.rows, pod, PROBE_LAYER].astype(np.int64)
            if kind is None:
                views.append(self.kernels.interleaved(data))
                which.append(layers)
            else:
                remainder = pods.remainder[tile.rows, pod].astype(self.real)
                shifted = np.empty((len(tile), *self.shape), self.complex)
                if kind == "linear":
                    self.kernels.shifted_views(
                        self.kernels.interleaved(data), layers, remainder, self.kernels.interleaved(shifted)
                    )
                else:
                    shifted[:] = shift(data[layers], remainder, kind)
                views.append(self.kernels.interleaved(shifted))
                which.append(np.arange(len(tile)))
        return views, which

    def _window(self, tile: Tile, pod: int) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[Any]]:
        """(object layer (y, 2x), first pixels (frame, 2), weights) of a pod; frames of a tile share the object layer."""
        pods = self.reconstruction.pods
        storage = list(self.reconstruction.objects.values())[tile.object[pod]]
        layer = int(pods.address[tile.rows[0], pod, OBJECT_LAYER])
        corner = pods.address[tile.rows, pod][:, [ROW, COLUMN]].astype(np.int64) - np.array(storage.offset)
        return self.kernels.interleaved(storage.data[layer]), corner, pods.weight[tile.rows, pod].astype(self.real)

    def _form_model(self, tile: Tile, out: NDArray[Any], views: Any = None, which: Any = None) -> None:
        if views is None:
            views, which = self._views(tile)
        for pod in range(len(out)):
            obj, corner, weight = self._window(tile, pod)
            self.kernels.model(views[pod], which[pod], obj, corner, weight, self.kernels.interleaved(out[pod]))

    def _model_of(self, tile: Tile, pod: int) -> NDArray[Any]:
        out = np.empty_like(tile.waves)
        self._form_model(tile, out)
        chosen: NDArray[Any] = out[pod]
        return chosen

    def _empty_sums(self) -> list[tuple[NDArray[Any], NDArray[Any]]]:
        return [
            (np.zeros((*o.data.shape[:2], 2 * o.data.shape[2]), self.real), np.zeros(o.data.shape, self.real))
            for o in self.reconstruction.objects.values()
        ]

    def _object_sums(self, tile: Tile, pod: int, sums: Any) -> tuple[NDArray[Any], NDArray[Any]]:
        layer = int(self.reconstruction.pods.address[tile.rows[0], pod, OBJECT_LAYER])
        num, den = sums[tile.object[pod]]
        return num[layer], den[layer]

    def _illumination(self, tiles: Sequence[Tile]) -> list[NDArray[Any]]:
        """Σ |P|² on each object's canvas, (layer, y, x)."""
        k = self.kernels

        def work(part: int, share: Sequence[tuple[int, Tile]]) -> list[NDArray[Any]]:
            sums = [np.zeros(o.data.shape, self.real) for o in self.reconstruction.objects.values()]
            for _, tile in share:
                views, which = self._views(tile)
                for pod in range(len(tile.waves)):
                    _, corner, weight = self._window(tile, pod)
                    layer = int(self.reconstruction.pods.address[tile.rows[0], pod, OBJECT_LAYER])
                    k.illumination(views[pod], which[pod], corner, weight, sums[tile.object[pod]][layer])
            return sums

        parts = self._sweeper.sweep(tiles, work)
        return [np.asarray(sum(part[n] for part in parts[1:]) + parts[0][n]) for n in range(len(parts[0]))]

    def _storages(self) -> list[tuple[str, Storage]]:
        r = self.reconstruction
        return [(f"probe {k}", s) for k, s in r.probes.items()] + [(f"object {k}", s) for k, s in r.objects.items()]

    def _keep_mean(self) -> None:
        if self._mean is None:
            return
        count, means = self._mean
        for name, storage in self._storages():
            held = means.get(name)
            data = storage.data.astype(np.complex128)
            means[name] = data if held is None or held.shape != data.shape else held + (data - held) / (count + 1)
        self._mean = (count + 1, means)


def _clip(data: NDArray[Any], low: float, high: float) -> None:
    size = np.abs(data)
    factor = np.where(size > high, high / np.maximum(size, 1e-30), np.where(size < low, low / np.maximum(size, 1e-30), 1))
    data *= factor.astype(data.real.dtype)


def _poisson_expectation(intensity: NDArray[Any], mask: NDArray[np.uint8]) -> float:
    """Mean over valid pixels of E[(n - μ)²/(n + 1)] for n ~ Poisson(μ): (1 + μ) [(1 + μ) (1 - e^-μ)/μ - 1]."""
    mu = np.maximum(intensity[mask != 0].astype(np.float64), 1e-12)
    if mu.size == 0:
        return float("nan")
    exact = (1 + mu) * ((1 + mu) * -np.expm1(-mu) / mu - 1)
    return float(np.where(mu < 1e-4, mu / 2, exact).mean())
