"""What engines that work on tiles share: taking frames in, changing and losing them, means of iterates, snapshots.

An engine adds what one iteration does. Where exit waves are its state, they lie in the tiles; where they are probe × object
at every visit, nothing is kept per frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ptystream.engine import Context
from ptystream.reconstruction import PROBE, Reconstruction, Storage
from ptystream.scan.block import FrameStore
from ptystream.spread import mine

from .backend import BACKENDS, Backend
from .overlap import Overlap
from .refinement import Refinement
from .sight import Sight
from .tiles import Key, Tile, key_of, pods_of, runs

EPSILON = 1e-10
"""Added to the modelled amplitude before dividing by it (photons^1/2)."""


class TiledEngine:
    """Everything of the contract but `iterate`."""

    keeps_waves: ClassVar[bool] = True
    """Whether exit waves are state; otherwise tiles hold none."""
    spreads: ClassVar[bool] = True
    takes_volumes: ClassVar[bool] = False
    """Whether the engine works on volumes, and on nothing else."""

    def __init__(self, parameters: Any) -> None:
        self.p = parameters

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
        for name, first in (state or {}).get("first_probes", {}).items():
            self._first_probes[name] = self.on.put(np.ascontiguousarray(first, self.complex))
        self.curiter = int((state or {}).get("iteration", 0))
        self.sight = Sight(self.on, reconstruction, self.complex)
        self.overlap = self.make_overlap()
        self.tiles: list[Tile] = []
        self._masks: dict[int, Any] = {}
        self._mean: dict[str, tuple[int, Any]] | None = None
        self._decided: tuple[float, float] | None = None
        self.refinement = Refinement(self.on, self.sight, frames, self._mask, context.seed)
        self.refinement.completed = (state or {}).get("completed")
        self.refinement.configure(self.p)
        self.extend(np.arange(reconstruction.pods.length))
        if reconstruction.improved and state is None:
            self.overlap.settle(self.tiles, unlit=True)
            self._form(self.tiles)

    def extend(self, rows: NDArray[np.int64]) -> None:
        """See `ptystream.engine.Engine.extend`. New frames first fill the last tile up."""
        self._adopt()
        if not len(rows):
            return
        self.refinement.room(rows)
        if self.curiter and rows[0] and self.keeps_waves:
            self.overlap.settle(self.tiles)
        table = self.reconstruction.pods
        rows = mine(self.context.ranks, rows[table.address[rows, 0, PROBE] >= 0])
        if not len(rows):
            return
        last = None
        pixels = max(storage.slices * storage.shape[0] * storage.shape[1] for storage in self.reconstruction.probes.values())
        size = max(1, self.on.tile_bytes // (table.pods * pixels * self.complex.itemsize))
        if self.tiles and len(self.tiles[-1]) < size and self._key(self.tiles[-1].rows) == self._key(rows):
            last = self.tiles.pop()
            rows = np.concatenate([last.rows, rows])
        added = [self._tile(key[0], key[1], chosen) for key, chosen in runs(table, rows, self.frames, size)]
        self._form(added)
        if last is not None and self.keeps_waves:
            added[0].waves[:, : len(last.counting)] = last.waves
        self.tiles.extend(added)

    def revise(self, rows: NDArray[np.int64], what: str) -> None:
        """See `ptystream.engine.Engine.revise`."""
        if not len(rows):
            return
        if what in ("frame", "mask"):
            self._masks.clear()
        if what == "mask" and not self.on.resident:
            return
        if what in ("position", "dose", "withdrawn"):
            self.overlap.forget_light()
        if what == "position":
            self.refinement.room(rows)
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
        others = self.on.put(np.flatnonzero(np.repeat(~here, len(tile.counting) // len(tile))))
        if what == "withdrawn":
            if here.all():
                return None
            fresh = self._tile(tile.scan, tile.number, tile.rows[~here])
            if self.keeps_waves:
                fresh.waves[:] = tile.waves[:, others]
            return fresh
        fresh = self._tile(tile.scan, tile.number, tile.rows)
        if not self.keeps_waves:
            return fresh
        if what == "mask":
            fresh.waves = tile.waves
        else:
            self._form([fresh])
            fresh.waves[:, others] = tile.waves[:, others]
        return fresh

    def configure(self, parameters: Any) -> None:
        """See `ptystream.engine.Engine.configure`."""
        self.p = parameters
        self.refinement.configure(parameters)

    def complete(self) -> None:
        """See `ptystream.engine.Engine.complete`."""
        self.refinement.complete(self.curiter)

    def average(self) -> None:
        """See `ptystream.engine.Engine.average`."""
        self._mean = {}

    def restart(self) -> None:
        """See `ptystream.engine.Engine.restart`."""
        for name, first in self._first_probes.items():
            storage = self.reconstruction.probes[name]
            storage.data = self.on.xp.tile(first, (len(storage.data) // len(first), 1, 1))
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
        """See `ptystream.engine.Engine.state`: waves are rebuilt as P·O; `restart` needs the probes of the start."""
        first = {name: self.on.get(probe) for name, probe in self._first_probes.items()}
        return {"iteration": self.curiter, "completed": self.refinement.completed, "first_probes": first}

    def finish(self) -> None:
        """See `ptystream.engine.Engine.finish`."""
        for name, storage in self._storages():
            _, mean = (self._mean or {}).get(name, (0, None))
            fits = mean is not None and mean.shape == storage.data.shape
            storage.data = self.on.get(mean.astype(self.complex) if fits else storage.data)
        self.on.sweeper.close()
        self.tiles = []
        self.reconstruction.improved = True

    # ------------------------------------------------------------------ what an iteration needs

    def make_overlap(self) -> Overlap:
        """The overlap constraint that the engine works with."""
        return Overlap(self.on, self.reconstruction, self.sight)

    def _subpix(self) -> str | None:
        return self.p.subpix if self.curiter >= self.p.subpix_start else None

    def _tile(self, scan: int, number: int, rows: NDArray[np.int64]) -> Tile:
        """A tile with empty waves."""
        table, store = self.reconstruction.pods, self.frames[scan]
        counts, row = store.slab(number), table.frame[rows, 1] % store.slab_frames
        if self.on.resident:
            counts, row = self.on.put(counts[row]), np.arange(len(rows))
        probe = list(self.reconstruction.probes.values())[int(table.address[rows[0], 0, PROBE])]
        pods = pods_of(table, rows, self.real, self.on.put, probe.slices)
        views = len(rows) * probe.slices
        waves = self.on.xp.empty((len(pods), views, *probe.shape), self.complex) if self.keeps_waves else None
        row, index, counting = (self.on.put(v) for v in (row, rows, np.arange(views)))
        return Tile(rows, scan, number, waves, counts, row, index, counting, pods)

    def _key(self, rows: NDArray[np.int64]) -> Key:
        return key_of(self.reconstruction.pods, int(rows[0]), self.frames)

    def _form(self, tiles: Sequence[Tile]) -> None:
        """Waves as P·O, where they are kept."""
        if not self.keeps_waves:
            return
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

    def _photons(self) -> tuple[float, float]:
        """Photons per pixel of a mean frame and of the brightest: the run's decision, or taken once from the frames here."""
        if self._decided is None:
            height, width = next(iter(self.frames.values())).shape
            pixels = height * width
            mean, brightest = self.context.mean_photons, self.context.brightest_photons
            if mean is None or brightest is None:
                totals = self._totals()
                mean = float(totals.mean()) / pixels if mean is None else mean
                brightest = float(totals.max()) if brightest is None else brightest
            self._decided = mean, brightest / pixels
        return self._decided

    def _refined(self, visited: Sequence[Tile]) -> bool:
        """Refine positions if it is their turn; whether any frame, on any rank, has moved."""
        if self.refinement.distance(self.curiter) <= 0:
            return False
        return self._agree(visited, self.refinement.step(visited, self.curiter))

    def _agree(self, visited: Sequence[Tile], moved: bool) -> bool:
        """After a step of the position refinement: every rank learns where frames are now; whether any has `moved`."""
        table, ranks = self.reconstruction.pods, self.context.ranks
        if ranks.size == 1:
            return moved
        ranks.exchange(rows_of(visited), table.moved, table.address, table.remainder)
        return bool(ranks.total(np.array([float(moved)]))[0])

    def _totals(self) -> NDArray[np.float64]:
        """Photons of each frame over its valid pixels. Shape (frame,)."""
        totals = np.zeros(self.reconstruction.pods.length)
        for tile in self.tiles:
            store = self.frames[tile.scan]
            counts = self.on.get(tile.counts[tile.row]).astype(np.float64)
            totals[tile.rows] = np.where((counts < store.limit) & (store.mask != 0), counts, 0).sum(axis=(1, 2))
        rows = self.context.ranks.exchange(rows_of(self.tiles), totals)
        return totals[rows] if len(rows) else np.zeros(1)

    def _adopt(self) -> None:
        """Take storages over that are new: all at the start, those of a further scan when it comes."""
        for name, storage in self._storages():
            if name not in self._adopted:
                self._adopted.add(name)
                storage.data = self.on.put(np.ascontiguousarray(storage.data, self.complex))
        for name, storage in self.reconstruction.probes.items():
            if name not in self._first_probes:
                self._first_probes[name] = storage.data[: storage.modes_per_frame or None].copy()

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


def rows_of(tiles: Sequence[Tile]) -> NDArray[np.int64]:
    """Rows of the pod table in these tiles."""
    return np.concatenate([tile.rows for tile in tiles]) if tiles else np.zeros(0, np.int64)


def means(
    rows: NDArray[np.int64], errors: NDArray[np.float64], fits: NDArray[np.float64] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(errors (3,), misfit (3,)) of an iteration, from those of the frames visited; `fits` None: misfits were not asked for.

    `errors` and `fits` have a line for every row of the pod table; of the Poisson expectation some know none: NaN.
    """
    mean = errors[rows].mean(axis=0) if len(rows) else np.zeros(3)
    misfit = np.full(3, np.nan)
    if len(rows) and fits is not None:
        expected = fits[rows, 2]
        expected = expected[~np.isnan(expected)]
        misfit[:2] = fits[rows, :2].mean(axis=0)
        misfit[2] = expected.mean() if len(expected) else np.nan
    return mean, misfit


def expectation_every(tiles: int) -> int:
    """The Poisson expectation of the misfit hardly differs from frame to frame: one of so many tiles is asked, four at least."""
    return min(16, max(1, tiles // 4))


def poisson_expectation(xp: Any, intensity: Any, mask: Any) -> Any:
    """Mean over valid pixels of E[(n - μ)²/(n + 1)] for n ~ Poisson(μ): (1 + μ) [(1 + μ) (1 - e^-μ)/μ - 1]."""
    valid = mask != 0
    mu = xp.maximum(intensity.astype(np.float64), 1e-12)
    exact = xp.where(mu < 1e-4, mu / 2, (1 + mu) * ((1 + mu) * -xp.expm1(-mu) / mu - 1))
    return xp.where(valid, exact, 0).sum() / xp.maximum(valid.sum(), 1)
