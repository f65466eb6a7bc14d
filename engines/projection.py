"""The generalised projection: DM, RAAR and their relatives are its coefficients (a, b, c) and an overlap step.

ψ' = [(1 - a - b) + a Π_O + b Π_F(c Π_O + (1 - c))] ψ with Π_O ψ = P O and Π_F the measured moduli. Difference map: Thibault et
al., Ultramicroscopy 109, 338 (2009), with the update form of Marchesini et al., Inverse Problems 32 (2016) for the others.
A sweep visits each tile once and, while the tile is in cache, also sums the object update of the first overlap iteration.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.engine import Progress

from .constraints import center
from .parameters import ProjectionParameters
from .sight import Sums
from .tiled import EPSILON, TiledEngine, expectation_every, means, poisson_expectation, rows_of
from .tiles import Tile


class ProjectionEngine(TiledEngine):
    """Everything but the coefficients."""

    Parameters: type[ProjectionParameters]

    def coefficients(self) -> tuple[float, float, float]:
        """(a, b, c) of the generalised projection."""
        raise NotImplementedError("a projection engine is its coefficients")

    def iterate(self, iterations: int, rows: NDArray[np.int64] | None = None) -> Progress:
        """See `ptystream.engine.Engine.iterate`. A tile is visited when any of its rows is."""
        wanted = np.full(self.reconstruction.pods.length, rows is None)
        if rows is not None:
            wanted[rows] = True
        visited = [tile for tile in self.tiles if wanted[tile.rows].any()]
        resting = [tile for tile in self.tiles if not wanted[tile.rows].any()]
        errors, misfits, local = [], [], None
        self.more: dict[str, Any] = {}
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
            self._visited,
            local if self.p.record_local_error else None,
            more=dict(self.more),
        )

    # ------------------------------------------------------------------ one iteration

    def begin(self) -> None:
        """What an engine does before each iteration; what it puts in `more` comes with the progress."""

    def _iteration(
        self, visited: Sequence[Tile], resting: Sequence[Tile]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        p, xp = self.p, self.on.xp
        self.begin()
        self.sight.subpix = self._subpix()
        do_probe = p.probe_update_start <= self.curiter
        object_first = p.update_object_first or not do_probe
        self.overlap.begin(p, visited, resting, self._photons()[0])
        sums = [self.sight.empty_sums() for _ in range(self.on.sweeper.partial_sums)] if object_first else None
        local = xp.zeros((self.reconstruction.pods.length, 3))
        fits = xp.full((self.reconstruction.pods.length, 3), np.nan)
        bound, every = self._bound(), expectation_every(len(visited))

        def work(part: int, share: Sequence[Tile]) -> None:
            for number, tile in enumerate(share):
                place = part + number * self.on.sweeper.partial_sums
                self._project(tile, bound, sums[part] if sums else None, local, fits, expect=place % every == 0)

        self.on.sweeper.sweep(visited, work)
        for inner in range(p.overlap_max_iterations):
            if p.update_object_first or inner > 0 or not do_probe:
                self.overlap.update_object(sums if inner == 0 else None)
            if not do_probe or self.overlap.update_probe() < p.overlap_converge_factor:
                break
        if p.probe_center_tol is not None:
            center(self.on, self.reconstruction, self.tiles, p.probe_center_tol)
        if self._refined(visited):
            self.overlap.forget_light()
        errors, known = self.on.get(local), self.on.get(fits)
        rows = self.context.ranks.exchange(rows_of(visited), errors, known)
        self._visited = len(rows)
        if p.record_local_error:
            errors[np.setdiff1d(np.arange(len(errors)), rows)] = np.nan
        return *means(rows, errors, known if p.compute_log_likelihood else None), errors

    def _project(self, tile: Tile, bound: float, sums: Sums | None, local: Any, fits: Any, *, expect: bool) -> None:
        """Fourier update of one tile, its errors, and the sums of the object update.

        `expect`: also the misfit that Poisson noise alone would give, for the tile's last frame.
        """
        k, xp, a, b, c = self.on.kernels, self.on.xp, *self.coefficients()
        count, limit, mask = len(tile), self.frames[tile.scan].limit, self._mask(tile.scan)
        seen = [self.sight.probes(tile, pod) for pod in range(len(tile.pods))]
        error, change = xp.zeros(count), xp.zeros(len(tile.counting))
        aux = xp.empty_like(tile.waves)
        if self.p.compute_log_likelihood:
            for pod, view in enumerate(seen):
                k.model(*view, *self.sight.window(tile, pod), aux[pod])
            intensity = xp.empty(tile.counts.shape[-2:], self.real)
            amplitude, photon, valid = xp.zeros(count), xp.zeros(count), xp.zeros(count)
            k.misfit(self.sight.forward(tile, aux), tile.counts, tile.row, mask, limit, intensity, amplitude, photon, valid)
            local[tile.index, 1] = photon / intensity.size
            valid = xp.maximum(valid, 1)
            fits[tile.index, 0], fits[tile.index, 1] = amplitude / valid, photon / valid
            if expect:
                fits[int(tile.rows[-1]), 2] = poisson_expectation(xp, intensity, mask)
        for pod, view in enumerate(seen):
            k.form(tile.waves[pod], *view, *self.sight.window(tile, pod), c, aux[pod])
        f = self.sight.through(tile, aux, lambda f: k.modulus(f, tile.counts, tile.row, mask, limit, bound, EPSILON, error))
        for pod, view in enumerate(seen):
            into = None if sums is None else self.sight.of_object(sums, tile, pod)
            k.update(tile.waves[pod], f[pod], *view, *self.sight.window(tile, pod), a, b, change, into)
        local[tile.index, 0], local[tile.index, 2] = error, change.reshape(count, -1).mean(axis=1)

    def _bound(self) -> float:
        """Power bound in photons per pixel."""
        if self.p.fourier_power_bound is not None:
            return float(self.p.fourier_power_bound)
        return float(0.25 * self.p.fourier_relax_factor**2 * self._photons()[1])
