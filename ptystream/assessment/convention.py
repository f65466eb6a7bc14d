"""Which way do detector and positions lie to each other? Each of the eight ways is tried on a run's first frames.

Only the relative orientation can be observed: turning or mirroring both gives a picture that is turned or mirrored. Here the
frames stay as they are, the positions and the starting probe are turned instead: the same thing, without another copy of a frame.
Turning the detector by 180° conjugates probe and object, which a free probe fits as well: such a pair is told apart only by what
is known beforehand, the starting probe where it is not symmetric itself, and that matter has negative phase.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.engine import Engine
from ptystream.reconstruction import COLUMN, PROBE, ROW, PodTable, Reconstruction, nearest
from ptystream.run import Run

from .halves import measured

ITERATIONS = 20
"""Of each class."""
TIE = 1.1
"""Classes whose misfits differ by less than this factor fit equally well."""
LEAD = 1.5
"""Factor by which a class must be better than another one to be chosen, or a pair than the next."""
COUPLED = 0.1
"""How much absorption and phase must go together before a sign of the phase is believed, of 1."""
NAMES = {
    ((1, 0), (0, 1)): "as it is",
    ((1, 0), (0, -1)): "columns inverted",
    ((-1, 0), (0, 1)): "rows inverted",
    ((-1, 0), (0, -1)): "turned by 180°",
    ((0, 1), (1, 0)): "transposed",
    ((0, 1), (-1, 0)): "turned by 90°",
    ((0, -1), (1, 0)): "turned by 270°",
    ((0, -1), (-1, 0)): "transposed the other way",
}
Turn = NDArray[np.int64]


def matrix(orientation: int) -> Turn:
    """How `scans.*.data.orientation` maps coordinates [y, x] of the frame that it makes onto those of the raw one."""
    turn = np.diag([-1 if orientation & 2 else 1, -1 if orientation & 1 else 1])
    return turn[::-1] if orientation & 4 else turn


def code_of(operations: tuple[bool, bool, bool]) -> int:
    """`orientation` as a number, from (transpose, flipud, fliplr)."""
    transpose, flipud, fliplr = operations
    return 4 * transpose + 2 * flipud + fliplr


def turned(images: NDArray[Any], turn: Turn) -> NDArray[Any]:
    """Images (…, y, x), square, whose value at r is that of `images` at turn⁻¹ r; pixel n // 2 stays where it is."""
    n = images.shape[-1]
    back = turn.T  # its inverse
    y, x = np.einsum("ij,jyx->iyx", back, np.indices((n, n)) - n // 2) + n // 2
    return np.asarray(images[..., y % n, x % n])


@dataclass(slots=True)
class Tried:
    """One class."""

    orientation: int
    turn: Turn
    misfit: float = np.nan
    """√(Σ(|F| - √I)² / ΣI): the root of the share of the counts that is not explained."""
    phase: float = 0.0
    """Of what `coupling` gives for its object."""

    @property
    def name(self) -> str:
        """What would have to be done to the frames as they are."""
        rows = self.turn.tolist()
        return NAMES[tuple(rows[0]), tuple(rows[1])]


@dataclass(slots=True)
class Convention:
    """Tries the classes one after the other; `step` until `done`. All calls come from the engine's thread."""

    run: Run
    present: int
    """`orientation` of the frames as they are."""
    wanted: int
    """Frames that are used."""
    tried: list[Tried] = field(default_factory=list)
    done: bool = False
    _source: Reconstruction | None = None
    _cuts: int = 0
    _engine: Engine | None = None
    _made: Reconstruction | None = None
    _iterated: int = 0
    _rows: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    _waiting: list[Tried] = field(default_factory=list)

    @property
    def due(self) -> bool:
        """Whether the frames are there and not all classes are tried."""
        run = self.run
        enough = run.frames >= self.wanted or (run.complete and run.frames > 0)
        return not self.done and enough and run.engine_entry is not None and run.engine_context is not None

    @property
    def count(self) -> int:
        """Frames that are used."""
        return len(self._rows)

    @property
    def steps(self) -> int:
        """Made so far."""
        return len(self.tried) * ITERATIONS + self._iterated

    @property
    def steps_in_all(self) -> int:
        """How many it takes."""
        return (len(self.tried) + len(self._waiting)) * ITERATIONS

    @property
    def stale(self) -> bool:
        """Whether the run has begun anew since, or its frames are cut another way."""
        begun = self._source is not None
        return begun and (self._source is not self.run.reconstruction or self._cuts != self.run.cuts)

    def step(self) -> float:
        """One iteration of one class, with beginning and ending it; returns the seconds that it took."""
        started = time.perf_counter()
        if not self._waiting and not self.tried:
            self._begin()
        if self._engine is None:
            self._start(self._waiting[0])
        assert self._engine is not None and self._made is not None
        progress = self._engine.iterate(1)
        self._iterated += 1
        if self._iterated == ITERATIONS:
            now = self._waiting.pop(0)
            now.misfit = self._relative(float(progress.misfit[-1, 0]))
            picture = self._engine.snapshot(("object",)).objects
            seen = self._engine.snapshot(("coverage",)).objects
            name = next(iter(picture))
            now.phase = coupling(picture[name].data[0], np.abs(seen[name].data[0]))
            self.close()
            self.tried.append(now)
            self.done = not self._waiting
        return time.perf_counter() - started

    def close(self) -> None:
        """Release what the class that is being tried holds."""
        if self._engine is not None:
            self._engine.finish()
        self._engine = self._made = None
        self._iterated = 0

    def _begin(self) -> None:
        """The frames, from the first scan that has any; and the classes: of frames that are not square, or have pixels on the
        sample that are not, those without a transposition."""
        source = self.run.reconstruction
        assert source is not None
        self._source, self._cuts = source, self.run.cuts
        rows = self.run.rows()
        scan = source.pods.frame[rows[0], 0]
        self._rows = rows[source.pods.frame[rows, 0] == scan][: self.wanted]
        square = all(
            storage.shape[0] == storage.shape[1] and _equal(storage.pixel_size_m) for storage in self.run.starting.values()
        )
        for orientation in range(8):
            turn = matrix(self.present).T @ matrix(orientation)
            if square or turn[0, 0] != 0:
                self._waiting.append(Tried(orientation, turn))

    def _start(self, tried: Tried) -> None:
        run, entry, source = self.run, self.run.engine_entry, self.run.reconstruction
        assert source is not None and entry is not None and run.engine_context is not None
        made = Reconstruction({}, {}, PodTable(source.pods.pods), source.propagators, source.geometries)
        made.probe_dispersion, made.object_dispersion = source.probe_dispersion, source.object_dispersion
        address, remainder = measured(source, self._rows)
        for name, storage in source.probes.items():
            began = run.starting[name].data
            data = turned(began, tried.turn) if began.shape[-2] == began.shape[-1] else _flipped(began, tried.turn)
            made.probes[name] = replace(run.starting[name], data=np.ascontiguousarray(data))
            missing = len(storage.data) - len(made.probes[name].data)
            if storage.modes_per_frame and missing > 0:
                made.probes[name].add_frames(missing // storage.modes_per_frame)
        shapes = np.array([storage.shape for storage in made.probes.values()])[address[:, 0, PROBE]]
        places = (address[:, 0, ROW : COLUMN + 1] + shapes // 2 + remainder[:, 0]) @ tried.turn.T
        whole, part = nearest(places)
        corner = whole.astype(np.int64) - shapes // 2
        address[:, :, ROW : COLUMN + 1] = corner[:, None]
        remainder = np.broadcast_to(part[:, None], remainder.shape).astype(np.float32)
        low, high = corner.min(axis=0), (corner + shapes).max(axis=0)
        for name, canvas in source.objects.items():
            data = np.full((len(canvas.data), *(high - low)), canvas.fill, np.complex64)
            for layer, share in zip(data, canvas.shares, strict=False):
                layer *= share
            made.objects[name] = replace(canvas, data=data, offset=(int(low[0]), int(low[1])))
        table = source.pods
        rows = self._rows
        made.pods.append(address, remainder, table.weight[rows], table.frame[rows], table.index[rows], table.depth[rows])
        engine = entry.make(entry.parameters)
        engine.start(made, run.stores, run.engine_context)
        self._made, self._engine = made, engine

    def _relative(self, misfit: float) -> float:
        """From the mean over valid pixels."""
        context = self.run.engine_context
        assert context is not None
        mask = next(iter(self.run.stores.values())).mask
        mean = (context.mean_photons or 0.0) * mask.size / max(1, int(np.count_nonzero(mask)))
        return float(np.sqrt(max(misfit, 0.0) / max(mean, 1e-30))) if np.isfinite(misfit) else np.inf

    # ------------------------------------------------------------------ what it comes to

    def figure(self) -> dict[str, Any]:
        """`Snapshot.quality['convention']` without its age."""
        free = self._probe_is_free()
        return judged(self.tried, self.present, free=free)

    def _probe_is_free(self) -> bool:
        entry = self.run.engine_entry
        return entry is not None and int(getattr(entry.parameters, "probe_update_start", 0)) < ITERATIONS // 2


def judged(tried: list[Tried], present: int, *, free: bool) -> dict[str, Any]:
    """Ranking, ties, and what is chosen and why. `free`: the probe was updated, so that conjugation is a tie, whatever the sign
    of the starting probe made of it."""
    largest = 1e6  # of an engine that has diverged: JSON knows no infinity
    best_of: dict[int, float] = {}
    for one in tried:
        partner = _partner(tried, one)
        both = [one.misfit, partner.misfit] if free and partner is not None else [one.misfit]
        best_of[one.orientation] = min(largest, *both)
    ranked = sorted(tried, key=lambda one: (best_of[one.orientation], one.misfit))
    best = best_of[ranked[0].orientation]
    tied = [one for one in ranked if best_of[one.orientation] < TIE * best]
    others = [best_of[one.orientation] for one in ranked if one not in tied]
    lead = min(others) / max(best, 1e-30) if others else 1.0
    chosen, why = _chosen(tied, lead)
    if chosen is None and any(one.orientation == present for one in tied):
        why += "; the present orientation is among the best"
    return {
        "ranking": [
            {"name": one.name, "orientation": one.orientation, "misfit": float(best_of[one.orientation])} for one in ranked
        ],
        "ties": [[one.name for one in tied]] if len(tied) > 1 else [],
        "lead": float(lead),
        "chosen": None if chosen is None else chosen.name,
        "why": why,
    }


def _chosen(tied: list[Tried], lead: float) -> tuple[Tried | None, str]:
    """The class to take of those that fit best, or None, and why."""
    if lead < LEAD:
        return (
            None,
            f"the next class fits nearly as well ({lead:.2f}; {LEAD:g} is needed): more frames, or a better starting probe",
        )
    if len(tied) == 1:
        return tied[0], "nothing else fits as well"
    if len(tied) != 2 or (tied[0].turn != -tied[1].turn).any():
        return None, f"{len(tied)} classes fit equally well"
    first, second = sorted(tied, key=lambda one: one.misfit)
    if second.misfit > LEAD * first.misfit:
        return first, "of the two that fit, the starting probe has the sign of this one"
    phases = [one.phase for one in (first, second)]
    for one, other in ((0, 1), (1, 0)):
        if phases[one] > COUPLED and phases[other] < -COUPLED:
            return (first, second)[one], "of the two that fit, matter has negative phase in this one"
    return None, "two classes that are each other turned by 180° fit equally well"


def _partner(tried: list[Tried], one: Tried) -> Tried | None:
    return next((other for other in tried if (other.turn == -one.turn).all()), None)


def coupling(image: NDArray[Any], seen: NDArray[Any]) -> float:
    """Correlation of steps in ln|O| and in phase between neighbouring pixels, -1 to 1: positive where what absorbs has negative
    phase, as matter has. Steps, so that ramps, wraps and the zero of the phase do not matter."""
    lit = seen > 0.5 * float(np.max(seen, initial=0.0))
    amplitude = np.log(np.maximum(np.abs(image), 1e-12))
    products = np.zeros(3)
    for axis in (0, 1):
        here, there = (np.take(image, range(k, image.shape[axis] - 1 + k), axis) for k in (0, 1))
        both = np.logical_and(*(np.take(lit, range(k, image.shape[axis] - 1 + k), axis) for k in (0, 1)))
        if not both.any():
            continue
        phase = np.angle(there * here.conj())[both]
        step = np.diff(amplitude, axis=axis)[both]
        phase, step = phase - phase.mean(), step - step.mean()
        products += [phase @ step, phase @ phase, step @ step]
    return float(products[0] / np.sqrt(products[1] * products[2])) if products[1] > 0 and products[2] > 0 else 0.0


def _flipped(images: NDArray[Any], turn: Turn) -> NDArray[Any]:
    """As `turned`, of images that are not square, for turns without a transposition."""
    for axis in (0, 1):
        if turn[axis, axis] < 0:
            n = images.shape[axis - 2]
            images = np.take(images, (2 * (n // 2) - np.arange(n)) % n, axis - 2)
    return images


def _equal(pixel: tuple[float, float] | None) -> bool:
    return pixel is None or bool(np.isclose(pixel[0], pixel[1], rtol=1e-3))
