"""The overlap constraint of projection engines: object and probe as least-squares quotients of sums over the waves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from ptystream.reconstruction import Reconstruction, Storage

from .backend import Backend
from .constraints import clip, smoothed, support
from .dispersion import disperse
from .fields import by_layers
from .sight import Sight, Sums, summed
from .smoothness import seen
from .subpixel import add_adjoint
from .tiles import Tile

DARK = 0.01
"""Object pixels with less than this part of the typical illumination (the mean by illumination) are not believed when frames
come."""

LEAST = 1e-30
"""Σ|P|² or Σ|O|² below it, from numbers at the end of single precision, says nothing: a quotient by it may be infinite."""


T = TypeVar("T")


class Overlap:
    """Updates of object and probe; `begin` says which tiles an iteration visits.

    Those that rest count as P·O, at hardly any cost: for the object by their illumination, which is remembered and summed anew
    once as many frames have been visited; for the probe as many more frames like those visited.
    """

    def __init__(self, on: Backend, reconstruction: Reconstruction, sight: Sight) -> None:
        self.on, self.reconstruction, self.sight = on, reconstruction, sight
        self._previous: dict[str, Any] = {}
        self._lit: list[Any] = []
        self._lit_from: list[tuple[int, int, int]] = []
        self._lit_rows = 0
        """Σ w² |P|² of the rows below `_lit_rows` on each object's canvas, and where that begins on the lattice."""
        self._lit_age = 0
        """Frames visited since it was summed over all."""

    def constrain(self, storage: Storage, data: Any) -> Any:
        """What an engine asks of a probe (layer, y, x) that was updated, in place, before its supports; here nothing."""

    def confine(self, storage: Storage, lit: Any) -> None:
        """What an engine does to an object that was updated, in place; `lit`: its illumination. Here nothing."""

    def supported(self, storage: Storage, data: Any, den: Any) -> Any:
        """Layers (layer, y, x) of a probe that was updated as a quotient by `den`, inside its supports."""
        return support(self.on, data, self.p)

    def forget(self) -> None:
        """The probes were replaced: their next change is not to be measured against the old ones."""
        self._previous.clear()

    def settle(self, tiles: Sequence[Tile], *, unlit: bool = False) -> None:
        """Frames come beside those of `tiles`, or another engine takes them over: object pixels that hardly any light fell on
        go back to `fill`.

        They hold what a few photons in the probe's tails made of them, up to thousands of times the typical amplitude. No frame
        so far minds, but a new one may have the beam's middle there, and an engine that takes a step by the brightest pixel of
        what a frame sees would take none. `unlit`: only pixels out of all proportion, but also those that frames see without any
        light, which may have fallen there before.
        """
        xp, objects = self.on.xp, list(self.reconstruction.objects.values())
        known_light = list(zip(self._lit, self._lit_from, strict=True))
        if not known_light:  # no update yet: the engine has just taken a reconstruction over
            known_light = list(zip(self.coverage(tiles), [o.corner for o in objects], strict=True))
        rows = np.arange(self.reconstruction.pods.length)
        views = seen(self.reconstruction, rows) if unlit else []
        for number, (storage, (lit, start)) in enumerate(zip(objects, known_light, strict=False)):
            typical = (lit * lit).sum() / xp.maximum(lit.sum(), 1e-30)
            known = storage.data[_place(storage, lit, start)]
            possible = lit > 0
            if unlit:
                power = xp.abs(known) ** 2
                wild = power > 4 * (lit * power).sum() / xp.maximum(lit.sum(), 1e-30)
                possible = self.on.put(views[number])[_place(storage, lit, start)] & wild
            known[:] = xp.where(possible & (lit < DARK * typical), known.dtype.type(storage.fill), known)

    def forget_light(self) -> None:
        """Frames moved, got another dose or left: what they illuminate is to be summed anew."""
        self._lit.clear()
        self._lit_from.clear()

    def begin(self, parameters: Any, visited: Sequence[Tile], resting: Sequence[Tile], mean_power: float) -> None:
        """What one iteration works with; `mean_power`: photons per pixel of a mean frame."""
        self.p, self.visited, self.resting, self.mean_power = parameters, visited, resting, mean_power
        self._rest: list[Any] | None = None
        counts = np.zeros((2, 1 + len(self.reconstruction.probes)))
        for line, tiles in zip(counts, (visited, resting), strict=True):
            line[0] = sum(map(len, tiles))
            for tile in tiles:
                for pod in tile.pods:
                    line[1 + pod.probe] += len(tile)
        (self._frames, *self._views), (self._others, *self._other_views) = self.on.get(self.on.total(self.on.put(counts)))

    def update_object(self, sums: Sequence[Sums] | None = None) -> None:
        """O = (c_o G O + Σ w conj(P) ψ) / (c_o + Σ w² |P|²), from `sums` where the sweep has made them."""
        xp, real = self.on.xp, self.sight.real.type
        totals = summed(self.on, self._object_sums() if sums is None else sums)
        if self._others and self._rest is None:
            self._rest = self._resting([den for _, den in totals])
        inertia = real(self.p.object_inertia * self.mean_power)
        lit = []
        for number, storage in enumerate(self.reconstruction.objects.values()):
            num, den = totals[number]
            if self._rest is not None:
                num += self._rest[number] * storage.data
                den += self._rest[number]
            lit.append(den.copy())
            num += inertia * smoothed(self.on, storage.data, self.p.obj_smooth_std, along=storage.slices > 1)
            den += inertia
            storage.data = _quotient(xp, num, den, storage.data, inertia)
        found = [(storage.data, den) for storage, (_, den) in zip(self.reconstruction.objects.values(), totals, strict=True)]
        disperse(xp, self.reconstruction.object_dispersion, list(self.reconstruction.objects), found)
        for storage, light in zip(self.reconstruction.objects.values(), lit, strict=True):
            if self.p.clip_object is not None:
                clip(xp, storage.data, *self.p.clip_object)
            self.confine(storage, light)
        self.remember(lit, self._lit_age + int(self._frames) if self._others else 0)

    def remember(self, lit: list[Any], age: int = 0) -> None:
        """An update of the objects saw this illumination Σ w² |P|², (layer, y, x) of each, by all rows there are; `age`: frames
        visited since it was summed over all."""
        self._lit, self._lit_from = lit, [o.corner for o in self.reconstruction.objects.values()]
        self._lit_rows = self.reconstruction.pods.length
        self._lit_age = age

    def _resting(self, visited: Sequence[Any]) -> list[Any]:
        """Illumination by the tiles that rest, from what is remembered of all and what those `visited` illuminate now."""
        if not self._lit or self._lit_age >= self._others:
            self._lit_age = 0
            return self.coverage(self.resting)
        news = self.coverage([t for t in self.visited if t.rows[-1] >= self._lit_rows], self._lit_rows)
        for number, (lit, start) in enumerate(zip(self._lit, self._lit_from, strict=True)):
            news[number][_place(list(self.reconstruction.objects.values())[number], lit, start)] += lit
        return [self.on.xp.maximum(every - now, 0) for every, now in zip(news, visited, strict=True)]

    def update_probe(self) -> float:
        """P += Σ S† conj(O) (ψ - O S P) / (c_p + Σ S† |O|²), then the supports; returns the relative change.

        Without a shift this is P = (c_p P + Σ conj(O) ψ) / (c_p + Σ |O|²). With one it is not: S† |O|² S is no diagonal, and
        dividing by S† |O|² alone would blur the probe a little at every step. As a step it leaves the least-squares solution
        where it is. Linear weights are positive with sum 1, so S† |O|² bounds S† |O|² S from above (Jensen) and it never
        overshoots. Those of a phase ramp are not, and reach far: the residual is weighted with what is `trusted` of the
        object, and the step cut to the minimum on its line.
        """
        xp, real = self.on.xp, self.sight.real.type
        if self.sight.subpix == "fourier":
            objects = self.reconstruction.objects.values()
            self._trusted = [trusted(xp, o.data, lit) for o, lit in zip(objects, self.seen(self.visited), strict=True)]
        found = []
        sums = summed(self.on, self._probe_sums())
        for number, (storage, (num, den)) in enumerate(zip(self.reconstruction.probes.values(), sums, strict=True)):
            views, others = self._views[number], self._other_views[number]
            resting = 0.0 if storage.modes_per_frame else others / max(views, 1)
            held = real(self.p.probe_inertia * (views + others) / storage.layers)
            if resting:
                held = held + den * real(resting)
            pull = self.p.probe_inertia if views + others else 0.0
            found.append((self._followed(number, storage, num, den, xp.broadcast_to(held, den.shape), pull), den))
        disperse(xp, self.reconstruction.probe_dispersion, list(self.reconstruction.probes), found)
        changes = []
        for (data, den), (name, storage) in zip(found, self.reconstruction.probes.items(), strict=True):
            self.constrain(storage, data)
            before = self._previous.get(name)
            step, power = self._settled(storage, data, den, before)
            changes.append(step / max(power, 1e-30))
            self._previous[name] = storage.data = data
        change = np.array([math.sqrt(float(sum(changes)) / len(changes)), 1.0])
        total, ranks = self.on.get(self.on.total(self.on.put(change)))  # machines that round otherwise must not go on otherwise
        return float(total / ranks)

    def _followed(self, number: int, storage: Storage, num: Any, den: Any, held: Any, pull: float) -> Any:
        """A probe after its step, before its supports; `held` is added to `den`."""
        xp = self.on.xp
        if self.sight.subpix == "fourier":
            den += held
            change = _quotient(xp, num.copy(), den, xp.zeros_like(num), pull)
            return storage.data + self._on_line(number, num, change, held) * change

        def follow(layers: slice) -> None:
            n, d, old = num[layers], den[layers], storage.data[layers]
            d += held[layers]
            n += (held[layers] if self.sight.subpix is None else d) * old
            num[layers] = _quotient(xp, n, d, old, pull)

        self._by_layers(storage, follow)
        return num

    def _settled(self, storage: Storage, data: Any, den: Any, before: Any) -> tuple[float, float]:
        """Bring a probe inside its supports, in place; returns (Σ |its change|², Σ |it|²)."""
        xp = self.on.xp

        def settle(layers: slice) -> tuple[Any, Any]:
            data[layers] = new = self.supported(storage, data[layers], den[layers])
            old = None if before is None else before[layers]
            step = new if old is None else new[: len(old)] - old
            return xp.vdot(step, step).real, xp.vdot(new, new).real

        parts = self._by_layers(storage, settle)
        return float(sum(step for step, _ in parts)), float(sum(power for _, power in parts))

    def _by_layers(self, storage: Storage, work: Callable[[slice], T]) -> list[T]:
        """work(layers) over a probe at once, or where frames have layers of their own over as many as a cache holds, on the
        threads; results in a fixed order."""
        return by_layers(self.on, storage.data, work) if storage.modes_per_frame else [work(slice(None))]

    def _on_line(self, number: int, slope: Any, change: Any, held: Any) -> Any:
        """Part of a probe's `change`, at most all of it, at which Σ W |ψ - O S P|² + held |ΔP|² is smallest on that line;
        `slope` is Σ S† W conj(O) (ψ - O S P)."""
        xp = self.on.xp

        def work(part: int, share: Sequence[Tile]) -> Any:
            total = xp.zeros((), np.float64)
            for tile in share:
                for k, pod in enumerate(tile.pods):
                    if pod.probe == number:
                        moved = xp.empty((len(pod.layer), *self.sight.view(tile)), self.sight.complex)
                        half = self.sight.canvas(tile, k, self._trusted[pod.object][0])
                        where = self.sight.window(tile, k)[1:]
                        self.on.kernels.model(*self.sight.probes(tile, k, change), half, *where, moved)
                        total += xp.vdot(moved, moved).real
            return total

        seen = self.on.total(xp.asarray(sum(self.on.sweeper.sweep(self.visited, work))))
        curvature = seen + (held * xp.abs(change) ** 2).sum()
        return xp.minimum(1.0, xp.vdot(change, slope).real / xp.maximum(curvature, 1e-30)).astype(self.sight.real)

    def seen(self, tiles: Sequence[Tile]) -> list[Any]:
        """`coverage` as the last object update saw it, if the canvases are still the same."""
        objects = self.reconstruction.objects.values()
        if [lit.shape for lit in self._lit] == [o.data.shape for o in objects]:
            return self._lit
        return self.coverage(tiles)

    def coverage(self, tiles: Sequence[Tile], first: int = 0, *, own: bool = False) -> list[Any]:
        """Σ w² |P|² on each object's canvas, (layer, y, x), by the rows of these tiles from row `first` on; `own`: of this rank
        alone."""

        def work(part: int, share: Sequence[Tile]) -> list[Any]:
            xp, real = self.on.xp, self.sight.real
            sums = [xp.zeros(o.data.shape, real) for o in self.reconstruction.objects.values()]
            for tile in share:
                skip = int(np.searchsorted(tile.rows, first)) * (len(tile.counting) // len(tile))
                for number, pod in enumerate(tile.pods):
                    (views, which), (_, origin, corner, weight) = self.sight.probes(tile, number), self.sight.window(tile, number)
                    into = self.sight.canvas(tile, number, sums[pod.object])
                    self.on.kernels.illumination(views, which[skip:], origin, corner[skip:], weight[skip:], into)
            return sums

        parts = self.on.sweeper.sweep(tiles, work)
        sums = [sum((part[n] for part in parts[1:]), parts[0][n]) for n in range(len(parts[0]))]
        return sums if own else [self.on.total(every) for every in sums]

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
        residual, window = tile.waves[number] - model, self.sight.window(tile, number)
        seen, where = window[0], window[1:]
        if self.sight.subpix == "fourier":
            half, whole = (self.sight.canvas(tile, number, o) for o in self._trusted[pod.object])
            k.probe_terms(residual, half, *where, terms, powers)
            k.probe_terms(residual, whole, *where, terms, xp.empty_like(powers))
        else:
            k.probe_terms(residual, seen, *where, terms, powers)
        k.add_shifted(powers, pod.layer, -pod.remainder, den)
        if self.sight.subpix == "linear":
            k.add_shifted(terms, pod.layer, -pod.remainder, num)
        else:
            add_adjoint(terms, pod.layer, pod.remainder, num, xp)


def trusted(xp: Any, data: Any, lit: Any) -> tuple[Any, Any]:
    """(√W O, W O) with W = min(1, 4 <|O|²> / |O|²), <> by illumination `lit`; all (layer, y, x).

    A pixel at the rim that hardly any light fell on may hold anything, and through the tails of a phase ramp the whole probe
    would follow it.
    """
    power = xp.abs(data) ** 2
    typical = (lit * power).sum() / xp.maximum(lit.sum(), 1e-30)
    weight = xp.minimum(1, 4 * typical / xp.maximum(power, 1e-30))
    return (data * xp.sqrt(weight)).astype(data.dtype), (data * weight).astype(data.dtype)


def _place(storage: Storage, lit: Any, start: Sequence[int]) -> tuple[slice, ...]:
    """Where an illumination that begins at `start` on the lattice lies in an object that may have grown since."""
    begin = (s - o for s, o in zip(start, storage.corner, strict=True))
    return tuple(slice(b, b + n) for b, n in zip(begin, lit.shape, strict=True))


def _quotient(xp: Any, num: Any, den: Any, old: Any, inertia: Any) -> Any:
    """num / den where anything to speak of was summed, elsewhere the old value; with `inertia`, which both hold, everywhere."""
    if inertia > 0:
        num *= den.dtype.type(1) / den  # a complex quotient takes four times as long
        return num
    lit = den > LEAST
    return xp.where(lit, num / xp.where(lit, den, den.dtype.type(1)), old)
