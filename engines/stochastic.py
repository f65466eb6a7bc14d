"""Engines that visit frames in random order and update object and probe at each: EPIE and SDR are their coefficients.

With the wave ψ' of the generalised projection (`projection`; no power bound) and ψ = P O, r = ψ' - P O, a frame updates

    O += step conj(P) r / D_O,  D_O = (1 - share) max Σ|P|² + share Σ|P|²
    P += step conj(O) r / D_P,  D_P = (1 - share) max Σ|O|² + share Σ|O|²,  with the O just updated

where Σ goes over the modes that see the same pixel, each once. Maiden & Rodenburg, Ultramicroscopy 109, 1256 (2009); Pham et
al., Opt. Express 27, 31246 (2019). With sub-pixel shifts S the probe is S P above, and what the probe gets S† of it: of |O|²
always the bilinear one, whose weights are positive and sum to one, so that D_P stays between 0 and the frame's largest norm.

A batch of several frames sums the numerators and, pixel by pixel, the D of the frames that see it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ptystream.engine import Progress
from ptystream.reconstruction import COLUMN, PROBE_LAYER, ROW

from .brightest import Brightest
from .constraints import center, disc, support
from .dispersion import linear_part, straighten
from .order import random_order
from .parameters import StochasticParameters
from .pieces import Key, Piece, Seen, grouped, layers_seen
from .scores import Scores
from .subpixel import add_adjoint
from .tiled import EPSILON, TiledEngine, means, poisson_expectation
from .tiles import Pod, Tile, part_of

EXPECT_EVERY = 64
"""The Poisson expectation of the misfit hardly differs from frame to frame: one piece of so many is asked."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Updates:
    """How object and probe follow a frame."""

    object_step: float
    object_share: float
    """Of a pixel's own norm; the frame's largest norm has the rest."""
    probe_step: float
    probe_share: float
    global_object: bool = False
    """Whether the largest norm of the probe's update is looked for in the whole object."""


class StochasticEngine(TiledEngine):
    """Everything but the coefficients."""

    Parameters: type[StochasticParameters]

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters)
        self._canvases: dict[int, Any] = {}
        self._stacks: dict[tuple[int, int], Any] = {}
        self._discs: dict[tuple[tuple[int, int], float], Any] = {}
        self._told: tuple[tuple[str, ...], tuple[str, ...]] = (), ()

    def coefficients(self) -> tuple[float, float, float]:
        """(a, b, c) of the generalised projection."""
        raise NotImplementedError("a stochastic engine is its coefficients")

    def updates(self) -> Updates:
        """Steps and norms."""
        raise NotImplementedError("a stochastic engine is its coefficients")

    def iterate(self, iterations: int, rows: NDArray[np.int64] | None = None) -> Progress:
        """See `ptystream.engine.Engine.iterate`. Exactly these rows are visited."""
        table = self.reconstruction.pods
        self._find()
        visited = np.flatnonzero(self._tile_of >= 0) if rows is None else rows[self._tile_of[rows] >= 0]
        notes, warnings = self._news()
        errors, misfits, count = [], [], 0
        local = np.zeros((table.length, 3))
        for _ in range(iterations):
            local = np.zeros((table.length, 3))
            order = random_order(table, visited, self.context.seed, "visit", self.curiter)
            error, misfit, count = self._iteration(order, local)
            errors.append(error)
            misfits.append(misfit)
            self.curiter += 1
            self._keep_mean()
        return Progress(
            self.curiter,
            np.array(errors),
            np.array(misfits),
            count,
            local if self.p.record_local_error else None,
            notes=notes,
            warnings=warnings,
        )

    def _news(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(notes, warnings) about the parameters, once for each set of them."""
        told = self._parallel(), self.doubts()
        if told == self._told:
            return (), ()
        self._told = told
        return told

    def _parallel(self) -> tuple[str, ...]:
        name, ranks, told = type(self).__name__, self.context.ranks.size, []
        if self.p.batch > 1:
            told.append(f"{name} with batch {self.p.batch}: a parallel variant; the result depends on the frames in a batch")
        if ranks > 1:
            told.append(f"{name} on {ranks} ranks: a parallel variant, their mean after each iteration; the result depends on it")
        return tuple(told)

    def doubts(self) -> tuple[str, ...]:
        """What a user should hear about the parameters."""
        return ()

    # ------------------------------------------------------------------ one iteration

    def _iteration(
        self, order: NDArray[np.int64], local: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
        """(errors, misfit, number of frames) of an iteration; `local` gets the errors of each row."""
        p, updates, ranks = self.p, self.updates(), self.context.ranks
        self.sight.subpix = self._subpix()
        do_probe = p.probe_update_start <= self.curiter
        if do_probe:
            for storage in self.reconstruction.probes.values():
                storage.data = support(self.on, storage.data, p)
        before = [storage.data.copy() for _, storage in self._storages()] if ranks.size > 1 else []
        self._brightest = Brightest(self.on, self.reconstruction)
        scores = Scores(self.on.xp, len(order))
        refines = self.refinement.distance(self.curiter) > 0
        for first in range(0, len(order), p.batch):
            pieces = self._pieces(order[first : first + p.batch], first)
            if refines:
                self._refine(pieces)
            self._each(pieces, lambda piece: self._project(piece, scores))
            self._update_object(pieces, updates)
            if do_probe:
                self._update_probe(pieces, updates)
        visited = [self.tiles[number] for number in np.unique(self._tile_of[order])]
        if refines:
            self._agree(visited, moved=True)
        if before:
            self._average(before, visited)
        if p.probe_center_tol is not None:
            center(self.on, self.reconstruction, self.tiles, p.probe_center_tol)
        known = np.full((len(local), 3), np.nan)
        scores.fill(self.on.get, local, known)
        rows = ranks.exchange(scores.rows, local, known)
        return *means(rows, local, known if p.compute_log_likelihood else None), len(rows)

    def _average(self, before: Sequence[Any], visited: Sequence[Tile]) -> None:
        """The mean over the ranks of what each has made of `before`: of a probe by the frames visited, of each pixel of an
        object by the light that they brought there. Nashed et al., Opt. Express 22, 32082 (2014)."""
        xp, tiny = self.on.xp, self.real.type(1e-30)
        probes = list(self.reconstruction.probes.values())
        weights: list[Any] = [xp.zeros((len(storage.data), 1, 1), self.real) for storage in probes]
        for tile in visited:
            for pod in tile.pods:
                layers = self.on.put(np.bincount(self.on.get(pod.layer), minlength=len(weights[pod.probe])).astype(self.real))
                weights[pod.probe] += layers[:, None, None]
        weights += self.overlap.coverage(visited, own=True)
        for (_, storage), old, weight in zip(self._storages(), before, weights, strict=True):
            change = self.on.total((storage.data - old) * weight)
            storage.data = old + change / xp.maximum(self.on.total(weight), tiny)
        held = self.reconstruction
        for storages, groups in ((held.probes, held.probe_dispersion), (held.objects, held.object_dispersion)):
            for group in groups:  # light differs from energy to energy, and so did the weights
                members = linear_part(xp, group.t, [storages[name].data for name in group.names])
                for name, data in zip(group.names, members, strict=True):
                    storages[name].data = data

    def _refine(self, pieces: Sequence[Piece]) -> None:
        """Refine the places of the frames of a batch, with the probe and the object as they are now."""
        if not self.refinement.step([piece.tile for piece in pieces], self.curiter):
            return
        for piece in pieces:
            if len(piece.places) > 1:  # of several frames the arrays are copies
                places = self.on.put(np.asarray(piece.places))
                for pod, new in zip(piece.whole.pods, piece.tile.pods, strict=True):
                    pod.corner[places], pod.remainder[places] = new.corner, new.remainder
            y, x = self.reconstruction.pods.address[piece.tile.rows[0], 0, ROW : COLUMN + 1].tolist()
            piece.corner = y, x

    def _project(self, piece: Piece, scores: Scores) -> None:
        """The waves of a piece, their errors, and r."""
        k, xp, a, b, c = self.on.kernels, self.on.xp, *self.coefficients()
        tile, at, p = piece.tile, piece.score, self.p
        mask, limit = self._mask(tile.scan), self.frames[tile.scan].limit
        scores.rows[at], scores.pixels[at] = tile.rows, np.prod(tile.counts.shape[-2:])
        piece.seen = [self.sight.probes(tile, pod) for pod in range(len(tile.pods))]
        piece.windows = windows = [self.sight.window(tile, pod) for pod in range(len(tile.pods))]
        waves = xp.empty((len(tile.pods), len(tile), *self.sight.view(tile)), self.complex)

        def misfit(f: Any) -> None:
            intensity = xp.empty(tile.counts.shape[-2:], self.real)
            k.misfit(f, tile.counts, tile.row, mask, limit, intensity, scores.amplitude[at], scores.photon[at], scores.valid[at])
            if at.start % EXPECT_EVERY == 0:
                scores.expected[at.stop - 1] = poisson_expectation(xp, intensity, mask)

        if p.compute_log_likelihood and tile.waves is not None:
            for pod, window in enumerate(windows):
                k.model(*piece.seen[pod], *window, waves[pod])
            misfit(self.sight.forward(tile, waves))
        for pod, window in enumerate(windows):
            if tile.waves is None:
                k.model(*piece.seen[pod], *window, waves[pod])
            else:
                k.form(tile.waves[pod], *piece.seen[pod], *window, c, waves[pod])

        def measured(f: Any) -> None:
            if p.compute_log_likelihood and tile.waves is None:
                misfit(f)
            k.modulus(f, tile.counts, tile.row, mask, limit, -1.0, EPSILON, scores.fourier[at])

        f = self.sight.through(tile, waves, measured)
        for pod, window in enumerate(windows):
            state = None if tile.waves is None else tile.waves[pod]
            k.residual(state, f[pod], *piece.seen[pod], *window, a, b, scores.change[at])
        if tile.waves is not None and len(tile) > 1:
            piece.whole.waves[:, self.on.put(np.asarray(piece.places))] = tile.waves
        piece.residual = f

    def _update_object(self, pieces: Sequence[Piece], updates: Updates) -> None:
        """O += step Σ conj(P) r / Σ D_O. One frame's norm needs no canvas."""
        k, xp, alone = self.on.kernels, self.on.xp, len(pieces) == 1 and len(pieces[0].tile) == 1
        norms = []
        for piece in pieces:
            shape = piece.residual.shape[1:]
            stacked = self._stacked(len(piece.tile), shape[1])
            for (number, layer), pods in piece.object_groups:
                powers = xp.zeros(shape, self.real)
                for pod in pods:
                    k.illumination(*piece.seen[pod], (0, 0), stacked, piece.tile.pods[pod].weight, powers.reshape(-1, shape[-1]))
                peak, share = powers.max(axis=(1, 2)), updates.object_share
                if alone:
                    powers *= share
                    powers += (1 - share) * peak
                    den = powers[0]
                else:
                    _, origin, corner, _ = piece.windows[pods[0]]
                    den = self._canvas(number)[layer]
                    k.norm_sums(powers, peak, share, origin, corner, den)
                norms.append((piece, (number, layer), pods, den))
        for piece, _, pods, den in norms:
            for pod in pods:
                obj, origin, corner, weight = piece.windows[pod]
                within = piece.corner if alone else origin
                where = *piece.seen[pod], origin, corner, weight
                k.object_step(piece.residual[pod], *where, den, within, updates.object_step, obj)
        if self.reconstruction.object_dispersion:
            self._straighten_objects(pieces, {key: den for _, key, _, den in norms}, alone=alone)
        if not alone:
            self._clear(pieces)

    def _straighten_objects(self, pieces: Sequence[Piece], norms: Mapping[Key, Any], *, alone: bool) -> None:
        """Make objects that are to be linear in the energy so again, where these frames have moved them.

        A step is where Σ D |change - step conj(P) r / D|² is smallest; with a + t b in the place of free values that is the fit
        of the moved ones, each with its D (`norms`: of the single frame's window if `alone`, otherwise on the canvas).
        """
        held, table = self.reconstruction.objects, self.reconstruction.pods
        names = list(held)
        for group in self.reconstruction.object_dispersion:
            numbers = [names.index(name) for name in group.names]
            for piece in pieces:
                height, width = self.sight.view(piece.tile)
                layers = [layer for (number, layer), _ in piece.object_groups if number == numbers[0]]
                for y, x in (table.address[piece.tile.rows, 0, ROW : COLUMN + 1] - held[group.names[0]].offset).tolist():
                    window = slice(y, y + height), slice(x, x + width)
                    for layer in layers:
                        found = [held[name].data[layer][window] for name in group.names]
                        weights = [norms[number, layer][... if alone else window] for number in numbers]
                        straighten(self.on.xp, group.t, list(zip(found, weights, strict=True)))

    def _update_probe(self, pieces: Sequence[Piece], updates: Updates) -> None:
        p, probes = self.p, list(self.reconstruction.probes.values())
        sums: dict[Key, tuple[Any, Any]] = {}
        peaks = self._brightest.peaks(pieces) if updates.global_object else {}
        for found in self._each(pieces, lambda piece: self._probe_sums(piece, updates, peaks)):
            for key, (num, den) in found.items():
                if key in sums:
                    num, den = sums[key][0] + num, sums[key][1] + den
                sums[key] = num, den
        for (number, layer), (num, den) in sums.items():
            storage = probes[number]
            if p.probe_support is not None and p.probe_fourier_support is None:  # the probe is inside it already
                den *= self._disc(storage.shape, p.probe_support)
            self.on.kernels.take_step(num, den, updates.probe_step, storage.data[layer])
        self._straighten_probes({key: den for key, (_, den) in sums.items()})
        if p.probe_fourier_support is not None:
            for number, layer in sums:
                part = slice(layer, layer + 1)
                probes[number].data[part] = support(self.on, probes[number].data[part], p)

    def _straighten_probes(self, norms: Mapping[Key, Any]) -> None:
        """The same for the layers of probes that were updated; `norms`: D of each, (y, x)."""
        probes = self.reconstruction.probes
        names = list(probes)
        for group in self.reconstruction.probe_dispersion:
            numbers = [names.index(name) for name in group.names]
            for layer in [layer for number, layer in norms if number == numbers[0]]:
                found = [(probes[name].data[layer], norms[n, layer]) for name, n in zip(group.names, numbers, strict=True)]
                straighten(self.on.xp, group.t, found)

    def _probe_sums(self, piece: Piece, updates: Updates, peaks: dict[Seen, float]) -> dict[Key, tuple[Any, Any]]:
        """Σ S† w conj(O) r and Σ D_P of the frames of a piece, (y, x) each."""
        k, xp, tile, share = self.on.kernels, self.on.xp, piece.tile, updates.probe_share
        shape, zero = piece.residual.shape[1:], xp.zeros_like(tile.counting)
        found = {}
        num: Any
        own: Any
        total: Any
        for key, pods in piece.probe_groups:
            num = own = total = None
            for number in pods:
                terms, powers = xp.empty(shape, self.complex), xp.empty(shape, self.real)
                k.probe_terms(piece.residual[number], *piece.windows[number], terms, powers)
                total = powers if total is None else total + powers
                num = self._unshifted(terms, tile.pods[number], zero, num)
                if share > 0:
                    own = self._unshifted(powers, tile.pods[number], zero, own)
            if updates.global_object:
                seen = layers_seen(tile, pods)
                peak = tile.pods[pods[0]].weight ** 2 * sum(peaks[view] for view in seen)
            else:
                peak = total.max(axis=(1, 2))
            den = xp.zeros(shape[1:], self.real) if own is None else share * own[0]
            den += (1 - share) * peak.sum(keepdims=True).astype(self.real)
            found[key] = num[0], den
        return found

    def _unshifted(self, stack: Any, pod: Pod, zero: Any, total: Any) -> Any:
        """`total` (1, y, x) and S† of each frame of a stack (frame, y, x); real ones by the bilinear shift."""
        xp, subpix = self.on.xp, self.sight.subpix
        if subpix is None:
            here = stack if len(stack) == 1 else stack.sum(axis=0, keepdims=True)
            return here if total is None else total + here
        if total is None:
            total = xp.zeros((1, *stack.shape[1:]), stack.dtype)
        if subpix == "fourier" and stack.dtype.kind == "c":
            add_adjoint(stack, zero, pod.remainder, total, xp)
        else:
            self.on.kernels.add_shifted(stack, zero, -pod.remainder, total)
        return total

    # ------------------------------------------------------------------ what a batch needs

    def _find(self) -> None:
        """Where each row of the pod table lies: its tile and its place there; -1 where it was withdrawn."""
        self._tile_of = np.full(self.reconstruction.pods.length, -1)
        self._place_of = np.zeros(self.reconstruction.pods.length, np.int64)
        for number, tile in enumerate(self.tiles):
            self._tile_of[tile.rows] = number
            self._place_of[tile.rows] = np.arange(len(tile))

    def _pieces(self, batch: NDArray[np.int64], first: int) -> list[Piece]:
        """A batch, that begins at place `first` of the order, by tile and by probe layers."""
        table = self.reconstruction.pods
        found: dict[tuple[int, tuple[int, ...]], list[int]] = {}
        for row in batch.tolist():
            number = int(self._tile_of[row])
            own = table.address[row, : len(self.tiles[number].pods), PROBE_LAYER]  # another scan may have more pods
            found.setdefault((number, tuple(own.tolist())), []).append(int(self._place_of[row]))
        pieces = []
        for (number, layers), places in found.items():
            whole = self.tiles[number]
            part = part_of(whole, places, self.on.put)
            probe_groups, object_groups = grouped(whole, layers)
            y, x = table.address[part.rows[0], 0, ROW : COLUMN + 1].tolist()
            score = slice(first, first + len(places))
            pieces.append(Piece(part, whole, places, (y, x), score, probe_groups, object_groups))
            first += len(places)
        return pieces

    def _each(self, pieces: Sequence[Piece], work: Callable[[Piece], T]) -> list[T]:
        """work(piece) for every piece on the threads; results in the order of the partial sums."""
        if len(pieces) == 1:
            return [work(pieces[0])]
        parts = self.on.sweeper.sweep(pieces, lambda _, share: [work(piece) for piece in share])
        return [result for part in parts for result in part]

    def _canvas(self, number: int) -> Any:
        """Norms on an object's canvas (layer, y, x), real; zeros when a batch begins."""
        shape = list(self.reconstruction.objects.values())[number].data.shape
        held = self._canvases.get(number)
        if held is None or held.shape != shape:
            held = self._canvases[number] = self.on.xp.zeros(shape, self.real)
        return held

    def _clear(self, pieces: Sequence[Piece]) -> None:
        """Zeros where a batch has left its norms: on a CPU in its windows alone."""
        if self.on.resident:
            for den in self._canvases.values():
                den.fill(0)
            return
        for piece in pieces:
            height, width = self.sight.view(piece.tile)
            for (number, layer), pods in piece.object_groups:
                _, origin, corner, _ = piece.windows[pods[0]]
                den = self._canvas(number)[layer]
                for y, x in (corner - np.asarray(origin)).tolist():
                    den[y : y + height, x : x + width] = 0

    def _stacked(self, count: int, height: int) -> Any:
        """Corners of frames that lie under one another. Shape (count, 2)."""
        key = count, height
        if key not in self._stacks:
            corner = np.stack([np.arange(count) * height, np.zeros(count, np.int64)], axis=1)
            self._stacks[key] = self.on.put(corner)
        return self._stacks[key]

    def _disc(self, shape: tuple[int, int], fraction: float) -> Any:
        """The support of probes on the device. Shape (y, x), real."""
        key = shape, fraction
        if key not in self._discs:
            self._discs[key] = self.on.put(disc(shape, fraction, self.real))
        return self._discs[key]
