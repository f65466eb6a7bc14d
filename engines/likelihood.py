"""The likelihood of the frames under P·O: its cost, its gradient, and its course along a direction.

Thibault & Guizar-Sicairos, New J. Phys. 14, 063004 (2012). A sweep goes through the tiles with P·O to the detector and, for the
gradient, back; nothing is kept per frame but a few numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.parallel import ALONE, Ranks
from ptystream.reconstruction import Reconstruction, Storage
from ptystream.scan.block import FrameStore

from .backend import Backend
from .sight import Sight, Sums, summed
from .subpixel import add_adjoint
from .tiled import expectation_every, poisson_expectation, rows_of
from .tiles import Tile

LIKELIHOODS = ("gaussian", "poisson", "euclid")
"""In the order of the kernels' `kind`."""


@dataclass(frozen=True, slots=True)
class Descent:
    """What one sweep finds at P and O; lists in the order of the storages, arrays on the engine's device."""

    objects: Sums
    """(∂L/∂conj(O), Σ w² |P|²) on each canvas."""
    probes: Sums
    """(∂L/∂conj(P), Σ S† w² |O|²) of each probe; empty where they were not asked for."""
    cost: NDArray[np.float64]
    """Of each row of the pod table, on the host; 0 where it was not visited. Shape (row,)."""
    fits: NDArray[np.float64]
    """As `Progress.misfit`, of each row. Shape (row, 3)."""
    rows: NDArray[np.int64]
    """Those that were visited, on any rank."""


class Likelihood:
    """The frames of some tiles as data; `configure` says of which kind their noise is."""

    def __init__(
        self, on: Backend, reconstruction: Reconstruction, frames: Mapping[int, FrameStore], sight: Sight, ranks: Ranks = ALONE
    ) -> None:
        self.on, self.reconstruction, self.frames, self.sight, self.ranks = on, reconstruction, frames, sight, ranks
        self.scale: Any = on.xp.ones(0, sight.real)
        """Factor on the modelled intensities of each row of the pod table."""
        self._trust: dict[int, Any] = {}
        self._masks: dict[int, Any] = {}
        self._facts: NDArray[np.float64] = np.zeros((0, 2))

    def configure(self, parameters: Any) -> None:
        """Parameters in force from here on."""
        self.kind = LIKELIHOODS.index(parameters.ML_type)
        self.level = float(parameters.intensity_renormalization)
        self.floating = bool(parameters.floating_intensities)
        missing = self.reconstruction.pods.length - len(self.scale)
        if missing:
            self.scale = self.on.xp.concatenate([self.scale, self.on.xp.ones(missing, self.sight.real)])
        if not self.floating:
            self.scale[:] = 1

    def forget(self, rows: NDArray[np.int64]) -> None:
        """The counts of these rows, or masks or weights, changed."""
        self._trust.clear()
        self._masks.clear()
        self._facts[rows[rows < len(self._facts)]] = np.nan

    def descend(self, tiles: Sequence[Tile], *, probes: bool) -> Descent:
        """Cost and gradient by object and, with `probes`, by probe: the sums over frames of an iteration."""
        xp, held = self.on.xp, self.reconstruction
        cost, fits = xp.zeros(held.pods.length), xp.full((held.pods.length, 3), np.nan)
        own, every = self._own_probes() if probes else {}, expectation_every(len(tiles))

        def work(part: int, share: Sequence[Tile]) -> tuple[Sums, Sums]:
            objects, beams = self.sight.empty_sums(), self._empty_probes(own) if probes else []
            for number, tile in enumerate(share):
                place = part + number * self.on.sweeper.partial_sums
                self._descend(tile, objects, beams, cost, fits, expect=place % every == 0)
            return objects, beams

        parts = self.on.sweeper.sweep(tiles, work)
        objects, beams = (summed(self.on, [part[k] for part in parts]) for k in (0, 1))
        costs, known = self.on.get(cost) + self._constant(tiles), self.on.get(fits)
        rows = self.ranks.exchange(rows_of(tiles), costs, known)
        if self.floating and self.ranks.size > 1:
            scale = self.on.get(self.scale)
            self.ranks.exchange(rows_of(tiles), scale)
            self.scale = self.on.put(scale)
        return Descent(objects, beams, costs, known, rows)

    def along(self, tiles: Sequence[Tile], objects: Sequence[Any], probes: Sequence[Any] | None, *, every: bool) -> Any:
        """The cost at O + t `objects`, P + t `probes` as a polynomial in t, as the kernel `line` has it. Shape (9,), host.

        `probes` None: they stay. The second sum over frames of an iteration.
        """
        lines = self.on.xp.zeros((self.reconstruction.pods.length, 9))

        def work(part: int, share: Sequence[Tile]) -> None:
            for tile in share:
                self._line(tile, objects, probes, every, lines)

        self.on.sweeper.sweep(tiles, work)
        return self.on.get(self.on.total(lines.sum(axis=0)))

    def power(self, tiles: Sequence[Tile]) -> float:
        """Photons of all frames over their valid pixels, times R: what they are as counts."""
        return self.level * float(self.ranks.total(self._known(tiles)[:, 0].sum(keepdims=True))[0])

    # ------------------------------------------------------------------ one tile

    def _descend(self, tile: Tile, objects: Sums, probes: Sums, cost: Any, fits: Any, *, expect: bool) -> None:
        xp, k, count = self.on.xp, self.on.kernels, len(tile)
        limit, mask = self.frames[tile.scan].limit, self._mask(tile.scan)
        views = [self.sight.probes(tile, pod) for pod in range(len(tile.pods))]
        waves = self._waves(tile)
        for pod, view in enumerate(views):
            k.model(*view, *self.sight.window(tile, pod), waves[pod])
        f = self.sight.forward(tile, waves)
        intensity = xp.empty(mask.shape, self.sight.real)
        amplitude, photon, valid = xp.zeros(count), xp.zeros(count), xp.zeros(count)
        k.misfit(f, tile.counts, tile.row, mask, limit, intensity, amplitude, photon, valid)
        valid = xp.maximum(valid, 1)
        fits[tile.index, 0], fits[tile.index, 1] = amplitude / valid, photon / valid
        if expect:
            fits[int(tile.rows[-1]), 2] = poisson_expectation(xp, intensity, mask)
        scale, found = self.scale[tile.index], xp.zeros(count)
        data = tile.counts, tile.row, self._trusted(tile.scan), limit, self.kind, self.level
        k.likelihood(f, *data, self.floating, scale, found)
        self.scale[tile.index], cost[tile.index] = scale, found
        f = self.sight.backward(tile, f)
        for pod, view in enumerate(views):
            k.object_sums(f[pod], *view, *self.sight.window(tile, pod)[1:], *self.sight.of_object(objects, tile, pod))
            if probes:
                self._add_probe(tile, pod, f[pod], *probes[tile.pods[pod].probe])

    def _add_probe(self, tile: Tile, number: int, wave: Any, num: Any, den: Any) -> None:
        """num += S† w conj(O) ψ, den += S† w² |O|² of one pod."""
        xp, k, pod, window = self.on.xp, self.on.kernels, tile.pods[number], self.sight.window(tile, number)
        if self.sight.subpix is None:
            k.probe_sums(wave, *window, pod.layer, num, den)
            return
        terms, powers = xp.empty_like(wave), xp.empty(wave.shape, self.sight.real)
        k.probe_terms(wave, *window, terms, powers)
        k.add_shifted(powers, pod.layer, -pod.remainder, den)
        if self.sight.subpix == "linear":
            k.add_shifted(terms, pod.layer, -pod.remainder, num)
        else:
            add_adjoint(terms, pod.layer, pod.remainder, num, xp)

    def _line(self, tile: Tile, objects: Sequence[Any], probes: Sequence[Any] | None, every: bool, lines: Any) -> None:
        """f + t a + t² b with a = F w (S P dO + S dP O) and b = F w S dP dO."""
        k, sight = self.on.kernels, self.sight
        f, a, b = self._waves(tile), self._waves(tile), None if probes is None else self._waves(tile)
        for number, pod in enumerate(tile.pods):
            view, window = sight.probes(tile, number), sight.window(tile, number)
            ahead = objects[pod.object][pod.object_layer], *window[1:]
            k.model(*view, *window, f[number])
            k.model(*view, *ahead, a[number])
            if probes is not None and b is not None:
                moved = sight.probes(tile, number, probes[pod.probe])
                k.model(*moved, *window, b[number])
                a[number] += b[number]
                k.model(*moved, *ahead, b[number])
        f, a = sight.forward(tile, f), sight.forward(tile, a)
        b = None if b is None else sight.forward(tile, b)
        found = self.on.xp.zeros((len(tile), 9))
        data = tile.counts, tile.row, self._trusted(tile.scan), self.frames[tile.scan].limit, self.kind, self.level
        k.line(f, a, b, *data, self.scale[tile.index], every, found)
        lines[tile.index] = found

    # ------------------------------------------------------------------ what they need

    def _waves(self, tile: Tile) -> Any:
        return self.on.xp.empty((len(tile.pods), len(tile), *self.sight.probe(tile, 0).shape), self.sight.complex)

    def _own_probes(self) -> dict[int, tuple[Any, Any]]:
        """Sums of the probes that have layers of each frame: no two frames add to one, so all partial sums are in the same."""
        probes = enumerate(self.reconstruction.probes.values())
        return {number: self._zeros(storage) for number, storage in probes if storage.modes_per_frame}

    def _empty_probes(self, own: Mapping[int, tuple[Any, Any]]) -> Sums:
        probes = enumerate(self.reconstruction.probes.values())
        return [own[number] if number in own else self._zeros(storage) for number, storage in probes]

    def _zeros(self, storage: Storage) -> tuple[Any, Any]:
        xp, sight = self.on.xp, self.sight
        return xp.zeros(storage.data.shape, sight.complex), xp.zeros(storage.data.shape, sight.real)

    def _mask(self, scan: int) -> Any:
        if scan not in self._masks:
            self._masks[scan] = self.on.put(self.frames[scan].mask)
        return self._masks[scan]

    def _trusted(self, scan: int) -> Any:
        """The kernels' `trust`: the scan's weights where its mask is 1."""
        if scan not in self._trust:
            self._trust[scan] = self.on.put(trust(self.frames[scan]).astype(self.sight.real))
        return self._trust[scan]

    def _constant(self, tiles: Sequence[Tile]) -> NDArray[np.float64]:
        """What the cost of each row lacks to be the negative logarithm of a Poisson probability."""
        constant = np.zeros(self.reconstruction.pods.length)
        if LIKELIHOODS[self.kind] == "poisson":
            constant[rows_of(tiles)] = self._known(tiles)[:, 1]
        return constant

    def _known(self, tiles: Sequence[Tile]) -> NDArray[np.float64]:
        """[photons over valid pixels, the Poisson constant] of the frames of these tiles. Shape (frame, 2)."""
        missing = self.reconstruction.pods.length - len(self._facts)
        self._facts = np.concatenate([self._facts, np.full((missing, 2), np.nan)])
        for tile in tiles:
            if np.isnan(self._facts[tile.rows]).any():
                store = self.frames[tile.scan]
                counts = self.on.get(tile.counts[tile.row]).astype(np.float64)
                counts = np.where((counts < store.limit) & (store.mask != 0), counts, 0)
                self._facts[tile.rows, 0] = counts.sum(axis=(1, 2))
                self._facts[tile.rows, 1] = poisson_constant(counts, trust(store), self.level)
        return self._facts[rows_of(tiles)]


def trust(store: FrameStore) -> NDArray[np.float64]:
    """The statistical weight of each pixel, 0 where it is masked. Shape (y, x)."""
    valid: NDArray[np.float64] = (store.mask != 0).astype(np.float64)
    if store.weights is not None:
        valid *= store.weights
    return valid


def poisson_constant(counts: NDArray[np.float64], weight: NDArray[np.float64], level: float) -> NDArray[np.float64]:
    """Σ weight [ln Γ(R I + 1) - R I ln(R I) + R I] of each frame; counts (frame, y, x), weight (y, x)."""
    from scipy.special import gammaln, xlogy

    n = level * counts
    constant: NDArray[np.float64] = (weight * (gammaln(n + 1) - xlogy(n, n) + n)).sum(axis=(1, 2))
    return constant
