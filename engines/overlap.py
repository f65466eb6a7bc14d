"""The overlap constraint of projection engines: object and probe as least-squares quotients of sums over the waves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ptystream.reconstruction import Reconstruction, Storage

from .backend import Backend
from .constraints import clip, smoothed, support
from .sight import Sight, Sums
from .subpixel import add_adjoint
from .tiles import Tile


class Overlap:
    """Updates of object and probe; `begin` says which tiles an iteration visits.

    Those that rest count as P·O, at no cost: for the object by their illumination, which is remembered as it was when they
    were last visited; for the probe as many more frames like those visited.
    """

    def __init__(self, on: Backend, reconstruction: Reconstruction, sight: Sight) -> None:
        self.on, self.reconstruction, self.sight = on, reconstruction, sight
        self._previous: dict[str, Any] = {}
        self._lit: list[Any] = []
        self._lit_from: list[tuple[int, int]] = []
        self._lit_rows = 0
        """Σ w² |P|² of the rows below `_lit_rows` on each object's canvas, and where that begins on the lattice."""

    def constrain(self, storage: Storage, data: Any) -> Any:
        """What an engine asks of a probe (layer, y, x) that was updated, before its supports; here nothing."""
        return data

    def forget(self) -> None:
        """The probes were replaced: their next change is not to be measured against the old ones."""
        self._previous.clear()

    def begin(self, parameters: Any, visited: Sequence[Tile], resting: Sequence[Tile], mean_power: float) -> None:
        """What one iteration works with; `mean_power`: photons per pixel of a mean frame."""
        self.p, self.visited, self.resting, self.mean_power = parameters, visited, resting, mean_power
        self._rest: list[Any] | None = None

    def update_object(self, sums: Sequence[Sums | None] | None = None) -> None:
        """O = (c_o G O + Σ w conj(P) ψ) / (c_o + Σ w² |P|²), from `sums` where the sweep has made them."""
        xp, real = self.on.xp, self.sight.real.type
        parts = self._object_sums() if sums is None else sums
        totals = [_total(parts, number) for number in range(len(self.reconstruction.objects))]
        if self.resting and self._rest is None:
            self._rest = self._resting([den for _, den in totals])
        inertia = real(self.p.object_inertia * self.mean_power)
        lit = []
        for number, storage in enumerate(self.reconstruction.objects.values()):
            num, den = totals[number]
            if self._rest is not None:
                num += self._rest[number] * storage.data
                den += self._rest[number]
            lit.append(den.copy())
            num += inertia * smoothed(self.on, storage.data, self.p.obj_smooth_std)
            den += inertia
            storage.data = _quotient(xp, num, den, storage.data, inertia)
            if self.p.clip_object is not None:
                clip(xp, storage.data, *self.p.clip_object)
        self._lit, self._lit_from = lit, [o.offset for o in self.reconstruction.objects.values()]
        self._lit_rows = self.reconstruction.pods.length

    def _resting(self, visited: Sequence[Any]) -> list[Any]:
        """Illumination by the tiles that rest, from what is remembered of all and what those `visited` illuminate now."""
        if not self._lit:
            return self.coverage(self.resting)
        news = self.coverage([t for t in self.visited if t.rows[-1] >= self._lit_rows], self._lit_rows)
        for number, (lit, start) in enumerate(zip(self._lit, self._lit_from, strict=True)):
            offset = list(self.reconstruction.objects.values())[number].offset
            y, x = start[0] - offset[0], start[1] - offset[1]
            news[number][:, y : y + lit.shape[1], x : x + lit.shape[2]] += lit
        return [self.on.xp.maximum(every - now, 0) for every, now in zip(news, visited, strict=True)]

    def update_probe(self) -> float:
        """P += Σ S† conj(O) (ψ - O S P) / (c_p + Σ S† |O|²), then the supports; returns the relative change.

        Without a shift this is P = (c_p P + Σ conj(O) ψ) / (c_p + Σ |O|²). With one it is not: S† |O|² S is no diagonal, and
        dividing by S† |O|² alone would blur the probe a little at every step. As a step it leaves the least-squares solution
        where it is, and it never overshoots: S† |O|² bounds S† |O|² S from above (Jensen; S has positive weights of sum 1).
        """
        xp, real = self.on.xp, self.sight.real.type
        parts = self._probe_sums()
        changes = []
        for number, (name, storage) in enumerate(self.reconstruction.probes.items()):
            num, den = _total(parts, number)
            views, others = (
                sum(len(t) for t in tiles for pod in t.pods if pod.probe == number) for tiles in (self.visited, self.resting)
            )
            resting = 0.0 if storage.modes_per_frame else others / max(views, 1)
            held = real(self.p.probe_inertia * (views + others) / len(storage.data)) + den * real(resting)
            den += held
            num += (held if self.sight.subpix is None else den) * storage.data
            data = self.constrain(storage, _quotient(xp, num, den, storage.data, self.p.probe_inertia))
            storage.data = support(self.on, data, self.p)
            before = self._previous.get(name)
            step = storage.data if before is None else storage.data[: len(before)] - before
            changes.append(xp.vdot(step, step).real / xp.maximum(xp.vdot(storage.data, storage.data).real, 1e-30))
            self._previous[name] = storage.data.copy()
        return math.sqrt(float(sum(changes)) / len(changes))

    def seen(self, tiles: Sequence[Tile]) -> list[Any]:
        """`coverage` as the last object update saw it, if the canvases are still the same."""
        objects = self.reconstruction.objects.values()
        if [lit.shape for lit in self._lit] == [o.data.shape for o in objects]:
            return self._lit
        return self.coverage(tiles)

    def coverage(self, tiles: Sequence[Tile], first: int = 0) -> list[Any]:
        """Σ w² |P|² on each object's canvas, (layer, y, x), by the rows of these tiles from row `first` on."""

        def work(part: int, share: Sequence[Tile]) -> list[Any]:
            xp, real = self.on.xp, self.sight.real
            sums = [xp.zeros(o.data.shape, real) for o in self.reconstruction.objects.values()]
            for tile in share:
                skip = int(np.searchsorted(tile.rows, first))
                for number, pod in enumerate(tile.pods):
                    (views, which), (_, origin, corner, weight) = self.sight.probes(tile, number), self.sight.window(tile, number)
                    into = sums[pod.object][pod.object_layer]
                    self.on.kernels.illumination(views, which[skip:], origin, corner[skip:], weight[skip:], into)
            return sums

        parts = self.on.sweeper.sweep(tiles, work)
        return [sum((part[n] for part in parts[1:]), parts[0][n]) for n in range(len(parts[0]))]

    def _object_sums(self) -> Sequence[Sums]:
        def work(part: int, share: Sequence[Tile]) -> Sums:
            sums = self.sight.empty_sums()
            for tile in share:
                for pod, waves in enumerate(tile.waves):
                    where = self.sight.window(tile, pod)[1:]
                    into = self.sight.of_object(sums, tile, pod)
                    self.on.kernels.object_sums(waves, *self.sight.probes(tile, pod), *where, *into)
            return sums

        return self.on.sweeper.sweep(self.visited, work)

    def _probe_sums(self) -> Sequence[Sums]:
        """Σ S† w conj(O) ψ (of the residual, where probes are shifted) and Σ S† w² |O|²."""
        xp, storages = self.on.xp, list(self.reconstruction.probes.values())

        def zeros(storage: Storage) -> tuple[Any, Any]:
            return xp.zeros(storage.data.shape, self.sight.complex), xp.zeros(storage.data.shape, self.sight.real)

        own = {number: zeros(s) for number, s in enumerate(storages) if s.modes_per_frame}  # no two frames add to one layer

        def work(part: int, share: Sequence[Tile]) -> Sums:
            sums: Sums = [own[number] if number in own else zeros(storage) for number, storage in enumerate(storages)]
            for tile in share:
                for number, pod in enumerate(tile.pods):
                    into = sums[pod.probe]
                    if self.sight.subpix is None:
                        self.on.kernels.probe_sums(tile.waves[number], *self.sight.window(tile, number), pod.layer, *into)
                    else:
                        self._shifted_probe_sums(tile, number, *into)
            return sums

        return self.on.sweeper.sweep(self.visited, work)

    def _shifted_probe_sums(self, tile: Tile, number: int, num: Any, den: Any) -> None:
        """One pod's part of them."""
        xp, k, pod = self.on.xp, self.on.kernels, tile.pods[number]
        model = self.sight.model(tile, number, xp.empty_like(tile.waves[number]))
        terms, powers = xp.empty_like(model), xp.empty(model.shape, self.sight.real)
        k.probe_terms(tile.waves[number] - model, *self.sight.window(tile, number), terms, powers)
        k.add_shifted(powers, pod.layer, -pod.remainder, den)
        if self.sight.subpix == "linear":
            k.add_shifted(terms, pod.layer, -pod.remainder, num)
        else:
            add_adjoint(terms, pod.layer, pod.remainder, num, xp)


def _total(parts: Sequence[Any], number: int) -> tuple[Any, Any]:
    """The partial sums of one storage, added in their order."""
    num, den = parts[0][number]
    for part in parts[1:]:
        if part[number][0] is num:
            continue
        num += part[number][0]
        den += part[number][1]
    return num, den


def _quotient(xp: Any, num: Any, den: Any, old: Any, inertia: Any) -> Any:
    """num / den where anything was summed, elsewhere the old value; with `inertia`, which is in both sums, everywhere."""
    if inertia > 0:
        num /= den
        return num
    lit = den > 0
    return xp.where(lit, num / xp.where(lit, den, den.dtype.type(1)), old)
