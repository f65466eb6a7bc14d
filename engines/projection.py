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
from ptystream.reconstruction import Reconstruction, Storage
from ptystream.scan.block import FrameStore

from .backend import BACKENDS, Backend
from .constraints import center
from .overlap import Overlap
from .parameters import ProjectionParameters
from .sight import Sight, Sums
from .tiles import Key, Tile, key_of, pods_of, runs

EPSILON = 1e-10
"""Added to the modelled amplitude before dividing by it (photons^1/2)."""
EXPECT_EVERY = 16
"""The Poisson expectation of the misfit hardly differs from frame to frame: one tile of so many is asked."""


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
        """See `ptystream.engine.Engine.start`. Until `finish`, `data` of the storages lies on the engine's device."""
        self.on: Backend = BACKENDS[context.device](context)
        self.reconstruction, self.frames, self.context = reconstruction, frames, context
        self.complex = np.dtype(np.complex64 if context.precision == "single" else np.complex128)
        self.real = np.dtype(np.float32 if context.precision == "single" else np.float64)
        self._first_probes: dict[str, Any] = {}
        self._adopted: set[str] = set()
        self._adopt()
        self.shape = next(iter(reconstruction.probes.values())).shape
        self.curiter = int((state or {}).get("iteration", 0))
        self.sight = Sight(self.on, reconstruction, self.shape, self.complex)
        self.overlap = Overlap(self.on, reconstruction, self.sight)
        self.tiles: list[Tile] = []
        self._masks: dict[int, Any] = {}
        self._mean: dict[str, tuple[int, Any]] | None = None
        self._decided: tuple[float, float] | None = None
        self.extend(np.arange(reconstruction.pods.length))

    def extend(self, rows: NDArray[np.int64]) -> None:
        """See `ptystream.engine.Engine.extend`. New frames first fill the last tile up."""
        self._adopt()
        if not len(rows):
            return
        table, last = self.reconstruction.pods, None
        size = max(1, self.on.tile_bytes // (table.pods * self.shape[0] * self.shape[1] * self.complex.itemsize))
        if self.tiles and len(self.tiles[-1]) < size and self._key(self.tiles[-1].rows) == self._key(rows):
            last = self.tiles.pop()
            rows = np.concatenate([last.rows, rows])
        added = [self._tile(key[0], key[1], chosen) for key, chosen in runs(table, rows, self.frames, size)]
        self._form(added)
        if last is not None:
            added[0].waves[:, : len(last)] = last.waves
        self.tiles.extend(added)

    def revise(self, rows: NDArray[np.int64], what: str) -> None:
        """See `ptystream.engine.Engine.revise`."""
        if not len(rows):
            return
        if what in ("frame", "mask"):
            self._masks.clear()
        if what == "mask" and not self.on.resident:
            return
        low, high = int(rows.min()), int(rows.max())
        kept = []
        for tile in self.tiles:  # their rows grow, so most are passed over by a glance
            near = tile.rows[0] <= high and tile.rows[-1] >= low
            revised = self._revised(tile, np.isin(tile.rows, rows), what) if near else tile
            if revised is not None:
                kept.append(revised)
        self.tiles = kept

    def _revised(self, tile: Tile, here: NDArray[np.bool_], what: str) -> Tile | None:
        """The tile after a revision of the rows that are `here`; None where nothing is left of it."""
        if not here.any():
            return tile
        others = self.on.put(np.flatnonzero(~here))
        if what == "withdrawn":
            if here.all():
                return None
            fresh = self._tile(tile.scan, tile.number, tile.rows[~here])
            fresh.waves[:] = tile.waves[:, others]
            return fresh
        fresh = self._tile(tile.scan, tile.number, tile.rows)
        if what == "mask":
            fresh.waves = tile.waves
        else:
            self._form([fresh])
            fresh.waves[:, others] = tile.waves[:, others]
        return fresh

    def configure(self, parameters: Any) -> None:
        """See `ptystream.engine.Engine.configure`."""
        self.p = parameters

    def iterate(self, iterations: int, rows: NDArray[np.int64] | None = None) -> Progress:
        """See `ptystream.engine.Engine.iterate`. A tile is visited when any of its rows is."""
        wanted = np.full(self.reconstruction.pods.length, rows is None)
        if rows is not None:
            wanted[rows] = True
        visited = [tile for tile in self.tiles if wanted[tile.rows].any()]
        resting = [tile for tile in self.tiles if not wanted[tile.rows].any()]
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
            sum(len(tile) for tile in visited),
            local if self.p.record_local_error else None,
        )

    def average(self) -> None:
        """See `ptystream.engine.Engine.average`."""
        self._mean = {}

    def restart(self) -> None:
        """See `ptystream.engine.Engine.restart`."""
        for name, first in self._first_probes.items():
            self.reconstruction.probes[name].data = first.copy()
        self.overlap.forget()
        self._form(self.tiles)

    def snapshot(self, parts: Iterable[str] = ("probe", "object")) -> Reconstruction:
        """See `ptystream.engine.Engine.snapshot`."""
        wanted = set(parts)
        copied = self.reconstruction.copy(wanted)
        for storage in (*copied.probes.values(), *copied.objects.values()):
            storage.data = self.on.get(storage.data)
        if "coverage" in wanted:
            self.sight.subpix = self._subpix()
            for (name, storage), lit in zip(self.reconstruction.objects.items(), self.overlap.seen(self.tiles), strict=True):
                total = self.on.get(lit.sum(axis=0, keepdims=True)).astype(self.complex)
                copied.objects[name] = Storage(total, storage.pixel_size_m, storage.offset, 0.0, storage.energy_kev)
        return copied

    def state(self) -> Mapping[str, Any]:
        """See `ptystream.engine.Engine.state`: waves are rebuilt as P·O."""
        return {"iteration": self.curiter}

    def finish(self) -> None:
        """See `ptystream.engine.Engine.finish`."""
        for name, storage in self._storages():
            _, mean = (self._mean or {}).get(name, (0, None))
            fits = mean is not None and mean.shape == storage.data.shape
            storage.data = self.on.get(mean.astype(self.complex) if fits else storage.data)
        self.on.sweeper.close()
        self.tiles = []

    # ------------------------------------------------------------------ one iteration

    def _iteration(
        self, visited: Sequence[Tile], resting: Sequence[Tile]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        p, xp = self.p, self.on.xp
        self.sight.subpix = self._subpix()
        do_probe = p.probe_update_start <= self.curiter
        object_first = p.update_object_first or not do_probe
        self.overlap.begin(p, visited, resting, self._photons()[0])
        sums = [self.sight.empty_sums() if object_first else None for _ in range(self.on.sweeper.partial_sums)]
        local = xp.zeros((self.reconstruction.pods.length, 3))
        fits = xp.full((self.reconstruction.pods.length, 3), np.nan)
        bound = self._bound()

        def work(part: int, share: Sequence[Tile]) -> None:
            for number, tile in enumerate(share):
                self._project(tile, bound, sums[part], local, fits, expect=number % EXPECT_EVERY == 0)

        self.on.sweeper.sweep(visited, work)
        for inner in range(p.overlap_max_iterations):
            if p.update_object_first or inner > 0 or not do_probe:
                self.overlap.update_object(sums if inner == 0 and object_first else None)
            if not do_probe or self.overlap.update_probe() < p.overlap_converge_factor:
                break
        if p.probe_center_tol is not None:
            center(self.on, self.reconstruction, self.tiles, p.probe_center_tol)
        errors, known = self.on.get(local), self.on.get(fits)
        rows = np.concatenate([tile.rows for tile in visited]) if visited else np.zeros(0, np.int64)
        mean = errors[rows].mean(axis=0) if len(rows) else np.zeros(3)
        misfit = np.full(3, np.nan)
        if len(rows) and p.compute_log_likelihood:
            expected = known[rows, 2]
            expected = expected[~np.isnan(expected)]
            misfit[:2] = known[rows, :2].mean(axis=0)
            misfit[2] = expected.mean() if len(expected) else np.nan
        return mean, misfit, errors

    def _project(self, tile: Tile, bound: float, sums: Sums | None, local: Any, fits: Any, *, expect: bool) -> None:
        """Fourier update of one tile, its errors, and the sums of the object update.

        `expect`: also the misfit that Poisson noise alone would give, for the tile's last frame.
        """
        k, xp, a, b, c = self.on.kernels, self.on.xp, *self.coefficients()
        count, limit, mask = len(tile), self.frames[tile.scan].limit, self._mask(tile.scan)
        seen = [self.sight.probes(tile, pod) for pod in range(len(tile.pods))]
        error, change = xp.zeros(count), xp.zeros(count)
        aux = xp.empty_like(tile.waves)
        if self.p.compute_log_likelihood:
            for pod, view in enumerate(seen):
                k.model(*view, *self.sight.window(tile, pod), aux[pod])
            intensity = xp.empty(self.shape, self.real)
            amplitude, photon, valid = xp.zeros(count), xp.zeros(count), xp.zeros(count)
            k.misfit(self.sight.forward(tile, aux), tile.counts, tile.row, mask, limit, intensity, amplitude, photon, valid)
            local[tile.index, 1] = photon / intensity.size
            valid = xp.maximum(valid, 1)
            fits[tile.index, 0], fits[tile.index, 1] = amplitude / valid, photon / valid
            if expect:
                fits[int(tile.rows[-1]), 2] = _poisson_expectation(xp, intensity, mask)
        for pod, view in enumerate(seen):
            k.form(tile.waves[pod], *view, *self.sight.window(tile, pod), c, aux[pod])
        f = self.sight.forward(tile, aux)
        k.modulus(f, tile.counts, tile.row, mask, limit, bound, EPSILON, error)
        f = self.sight.backward(tile, f)
        for pod, view in enumerate(seen):
            into = None if sums is None else self.sight.of_object(sums, tile, pod)
            k.update(tile.waves[pod], f[pod], *view, *self.sight.window(tile, pod), a, b, change, into)
        local[tile.index, 0], local[tile.index, 2] = error, change

    # ------------------------------------------------------------------ what a sweep needs

    def _subpix(self) -> str | None:
        return self.p.subpix if self.curiter >= self.p.subpix_start else None

    def _tile(self, scan: int, number: int, rows: NDArray[np.int64]) -> Tile:
        """A tile with empty waves."""
        table, store = self.reconstruction.pods, self.frames[scan]
        counts, row = store.slab(number), table.frame[rows, 1] % store.slab_frames
        if self.on.resident:
            counts, row = self.on.put(counts[row]), np.arange(len(rows))
        waves = self.on.xp.empty((table.pods, len(rows), *self.shape), self.complex)
        pods = pods_of(table, rows, self.real, self.on.put)
        row, index, counting = (self.on.put(v) for v in (row, rows, np.arange(len(rows))))
        return Tile(rows, scan, number, waves, counts, row, index, counting, pods)

    def _key(self, rows: NDArray[np.int64]) -> Key:
        return key_of(self.reconstruction.pods, int(rows[0]), self.frames)

    def _form(self, tiles: Sequence[Tile]) -> None:
        """Waves as P·O."""
        self.sight.subpix = self._subpix()

        def fill(part: int, share: Sequence[Tile]) -> None:
            for tile in share:
                for pod in range(len(tile.pods)):
                    self.sight.model(tile, pod, tile.waves[pod])

        self.on.sweeper.sweep(tiles, fill)

    def _mask(self, scan: int) -> Any:
        if scan not in self._masks:
            self._masks[scan] = self.on.put(self.frames[scan].mask)
        return self._masks[scan]

    def _bound(self) -> float:
        """Power bound in photons per pixel."""
        if self.p.fourier_power_bound is not None:
            return float(self.p.fourier_power_bound)
        return float(0.25 * self.p.fourier_relax_factor**2 * self._photons()[1])

    def _photons(self) -> tuple[float, float]:
        """Photons per pixel of a mean frame and of the brightest: the run's decision, or taken once from the frames here."""
        if self._decided is None:
            pixels = self.shape[0] * self.shape[1]
            mean, brightest = self.context.mean_photons, self.context.brightest_photons
            if mean is None or brightest is None:
                totals = self._totals()
                mean = float(totals.mean()) / pixels if mean is None else mean
                brightest = float(totals.max()) if brightest is None else brightest
            self._decided = mean, brightest / pixels
        return self._decided

    def _totals(self) -> NDArray[np.float64]:
        """Photons of each frame over its valid pixels. Shape (frame,)."""
        totals = []
        for tile in self.tiles:
            store = self.frames[tile.scan]
            counts = self.on.get(tile.counts[tile.row]).astype(np.float64)
            totals.append(np.where((counts < store.limit) & (store.mask != 0), counts, 0).sum(axis=(1, 2)))
        return np.concatenate(totals) if totals else np.zeros(1)

    def _adopt(self) -> None:
        """Take storages over that are new: all at the start, those of a further scan when it comes."""
        for name, storage in self._storages():
            if name not in self._adopted:
                self._adopted.add(name)
                storage.data = self.on.put(np.ascontiguousarray(storage.data, self.complex))
        for name, storage in self.reconstruction.probes.items():
            if name not in self._first_probes:
                self._first_probes[name] = storage.data.copy()

    def _storages(self) -> list[tuple[str, Storage]]:
        r = self.reconstruction
        return [(f"probe {k}", s) for k, s in r.probes.items()] + [(f"object {k}", s) for k, s in r.objects.items()]

    def _keep_mean(self) -> None:
        if self._mean is None:
            return
        for name, storage in self._storages():
            count, held = self._mean.get(name, (0, None))
            data = storage.data.astype(np.complex128)
            if held is None or held.shape != data.shape:  # the canvas has grown: the mean begins anew
                count, held = 0, data
            self._mean[name] = count + 1, held + (data - held) / (count + 1)


def _poisson_expectation(xp: Any, intensity: Any, mask: Any) -> Any:
    """Mean over valid pixels of E[(n - μ)²/(n + 1)] for n ~ Poisson(μ): (1 + μ) [(1 + μ) (1 - e^-μ)/μ - 1]."""
    valid = mask != 0
    mu = xp.maximum(intensity.astype(np.float64), 1e-12)
    exact = xp.where(mu < 1e-4, mu / 2, (1 + mu) * ((1 + mu) * -xp.expm1(-mu) / mu - 1))
    return xp.where(valid, exact, 0).sum() / valid.sum()
