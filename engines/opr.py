"""Orthogonal probe relaxation: the probes of all frames stay in a subspace of few dimensions.

Odstrcil et al., Opt. Express 24, 8360 (2016). The model OPRModel gives each frame layers of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ptystream.chance import generator
from ptystream.engine import Context
from ptystream.params.base import Branch, parameter
from ptystream.reconstruction import Reconstruction, Storage
from ptystream.scan.block import FrameStore

from .backend import Backend
from .dm import DM, DMParameters
from .fields import Fields, by_layers, scaled
from .likelihood import Descent
from .line import Taken
from .ml import ML, MLParameters
from .tiled import TiledEngine
from .tiles import Tile

PRESENT = 1e-6
"""Part of the largest squared singular value from which on probes are taken to have a dimension: what single precision tells."""
SPARE = 7
"""Directions that the search for a subspace has beside those that are wanted: the more, the fewer passes."""
RANDOM = 3
"""Of them, where the others are known."""
PASSES = 40
"""At most, over the probes."""
TOLERANCE = 1000
"""Times the precision at hand: how much of the largest singular value a pass still has to move for another to follow."""
STILL = 0.8
"""A pass that leaves more than so much of what had to change was the last: the rest is rounding, or no matter."""


Basis = tuple[Any, Any]
"""(U (frame, dimension), U† P (dimension, pixel)) of probes P (frame, pixel): see `leading`."""


class SubspaceParameters(Branch):
    """How far probes may differ from frame to frame."""

    subspace_dim: int = parameter(1, lower=1, steerable=True, ours=True)
    """Dimensions of the subspace that the probes of all frames lie in, for each probe mode; 1: they differ by a factor."""

    subspace_start: int = parameter(0, lower=0, ours=True)
    """Number of iterations with one dimension before `subspace_dim` of them"""


class DMOPRParameters(SubspaceParameters, DMParameters):
    """The difference map with a probe for each frame."""

    name: str = parameter("DMOPR", ours=True)
    """Name of the engine."""

    probe_inertia: float = parameter(1.0, lower=0.0)
    """Weight of the current probe estimate in the update

    A probe that one frame alone determines needs more of it than a shared one."""


class LowRank(TiledEngine):
    """What an engine adds that keeps probes in a subspace, for storages with layers of each frame."""

    wants_probe_per_frame: ClassVar[bool] = True

    def start(
        self,
        reconstruction: Reconstruction,
        frames: Mapping[int, FrameStore],
        context: Context,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """See `ptystream.engine.Engine.start`. Raises `ValueError` where no scan has a probe for each frame."""
        if not any(storage.modes_per_frame for storage in reconstruction.probes.values()):
            raise ValueError(f"engines.*.name: {self.p.name}: needs a scan with `name: OPRModel`, a probe for each frame")
        super().start(reconstruction, frames, context, state)
        self.overlap.constrain = self._constrain  # type: ignore[method-assign]

    def _dimensions(self) -> int:
        return int(self.p.subspace_dim) if self.curiter >= self.p.subspace_start else 1

    def _constrain(self, storage: Storage, data: Any) -> list[Basis]:
        """Project the probes, in place; what they are in for each mode."""
        modes, before = storage.modes_per_frame, storage.data
        return [project(self.on, data[mode::modes], self._dimensions(), before[mode::modes]) for mode in range(modes)]


class DMOPR(LowRank, DM):
    """Difference map, then the probes' best approximation in the subspace."""

    Parameters = DMOPRParameters


class MLOPRParameters(SubspaceParameters, MLParameters):
    """Maximum likelihood with a probe for each frame."""

    name: str = parameter("MLOPR", ours=True)
    """Name of the engine."""

    scale_precond: bool = parameter(True)
    """Whether to use the object/probe scaling preconditioner

    The gradient of a probe that one frame alone determines is small beside the object's: without it probes hardly move."""


class MLOPR(LowRank, ML):
    """Conjugate gradients among probes that lie in a subspace which itself is found.

    Gradient and direction keep the part that leads along such probes (`keep_tangent`), so that the step, whose length the line
    search finds, leaves them to second order only; then it is projected back. Vandereycken, SIAM J. Optim. 23, 1214 (2013).
    """

    Parameters = MLOPRParameters

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters)
        self._kept: tuple[int, ...] = ()
        self._started: dict[str, Any] = {}
        self._bases: dict[str, tuple[Any, list[Basis]]] = {}
        """Probes as they were projected last, and what they are in for each mode."""

    def _iteration(self, visited: Sequence[Tile]) -> Descent:
        kept = self._dimensions(), *(len(storage.data) for _, storage in self._own())
        if self._kept != kept and self.p.probe_update_start <= self.curiter:
            self._kept = kept
            self._retract()
            self._taken = None  # what it cost was the cost of other probes
        return super()._iteration(visited)

    def _move(self, steps: Fields, length: float) -> None:
        own = {name: storage for name, storage in self._own() if name in steps}
        super()._move({name: step for name, step in steps.items() if name not in own}, length)
        for name, storage in own.items():
            before, spare = storage.data, self._started.get(name)
            if spare is None or spare.shape != before.shape:
                spare = self.on.xp.empty_like(before)
            storage.data = scaled(self.on, 1.0, before, length, steps[name], out=spare)
            self._started[name] = before
        if own:
            self._retract()

    def _move_again(self, taken: Taken, length: float) -> None:
        for name, storage in self._own():
            if name in taken.steps:
                storage.data, self._started[name] = self._started[name], storage.data
        others = {name: step for name, step in taken.steps.items() if name not in self._started}
        ML._move(self, others, -taken.length)
        self._move(taken.steps, length)

    def _within(self, fields: Fields) -> dict[str, Any]:
        found = super()._within(fields)
        for name, storage in self._own():
            if name not in found:
                continue
            modes, dimensions = storage.modes_per_frame, self._dimensions()
            if name not in self._bases or self._bases[name][0] is not storage.data:
                parts = (storage.data[mode::modes].reshape(len(storage.data) // modes, -1) for mode in range(modes))
                self._bases[name] = storage.data, [leading(self.on, part, dimensions) for part in parts]
            for mode, basis in enumerate(self._bases[name][1]):
                keep_tangent(self.on, basis, found[name][mode::modes], dimensions)
        return found

    def _own(self) -> list[tuple[str, Storage]]:
        """The probes that have layers of each frame."""
        return [(name, storage) for name, storage in self._probes() if storage.modes_per_frame]

    def _retract(self) -> None:
        for name, storage in self._own():
            self._bases[name] = storage.data, self._constrain(storage, storage.data)


def project(on: Backend, probes: Any, dimensions: int, before: Any = None) -> Basis:
    """Put probes (frame, y, x) to the closest ones that lie in `dimensions` dimensions, in place: the leading terms of a
    singular value decomposition. `before`: see `leading`."""
    known = None if before is None else before.reshape(len(before), -1)
    basis = leading(on, probes.reshape(len(probes), -1), dimensions, known)
    if dimensions < len(probes):
        _spread(on, *basis, probes)
    return basis


def keep_tangent(on: Backend, basis: Basis, change: Any, dimensions: int) -> None:
    """Keep of a `change` (frame, y, x), in place, the part along which probes of this basis stay in `dimensions` dimensions to
    first order.

    With U and V the probes' singular vectors: U U† X + X V V† - U U† X V V†, and of what is left, where the probes have fewer
    dimensions than they may, its closest in as many as they lack.
    """
    if dimensions >= len(change):
        return
    xp, (left, right), x = on.xp, basis, change.reshape(len(change), -1)
    sizes = xp.linalg.norm(right, axis=1)
    there = sizes**2 > PRESENT * sizes.max() ** 2
    u, v = left[:, there], right[there] / sizes[there, None]
    across, beside = _across(on, u, x), _along(on, x, xp.ascontiguousarray(v.conj().T))
    beside -= u @ (across @ v.conj().T)
    lacking, rest = dimensions - int(there.sum()), None
    if lacking:
        rest = (x - u @ across - beside @ v).reshape(change.shape)
        project(on, rest, lacking)
    _spread(on, xp.concatenate([u, beside], axis=1), xp.concatenate([across, v]), change)
    if rest is not None:
        change += rest


def _spread(on: Backend, left: Any, right: Any, out: Any) -> None:
    """out (frame, y, x) = left @ right, on the threads."""

    def work(rows: slice) -> None:
        on.xp.matmul(left[rows], right, out=out[rows].reshape(-1, right.shape[1]))

    by_layers(on, out, work)


def _along(on: Backend, rows: Any, right: Any) -> Any:
    """rows @ right, on the threads."""
    found = on.xp.empty((len(rows), right.shape[1]), rows.dtype)

    def work(part: slice) -> None:
        on.xp.matmul(rows[part], right, out=found[part])

    by_layers(on, rows, work)
    return found


def _across(on: Backend, left: Any, rows: Any) -> Any:
    """left† @ rows, on the threads: some pixels at a time, so that nothing has to be added up."""
    conjugate, found = left.conj().T, on.xp.empty((left.shape[1], rows.shape[1]), rows.dtype)
    size = -(-rows.shape[1] // on.sweeper.partial_sums)

    def work(part: int, share: Sequence[slice]) -> None:
        for pixels in share:
            on.xp.matmul(conjugate, rows[:, pixels], out=found[:, pixels])

    on.sweeper.sweep([slice(first, first + size) for first in range(0, rows.shape[1], size)], work)
    return found


def leading(on: Backend, rows: Any, dimensions: int, before: Any = None) -> Basis:
    """(U (row, dimension), U† rows): the left singular vectors of the largest singular values of `rows` (row, pixel), the
    largest first, and what the rows are in them.

    Subspace iteration with a few directions to spare: Halko, Martinsson & Tropp, SIAM Review 53, 217 (2011). It costs a few
    products with as many columns, where all inner products of frames would cost their number squared. It ends where what
    U U† rows still would change by is far below single precision's part of the power, or after `PASSES`: among singular values
    that are nearly the same any choice is nearly the best. `before` (row, pixel) are rows that lie in so few dimensions, and not
    far from these: some of them are a better beginning than random directions, of which a few remain in case they are not.
    """
    xp, spare = on.xp, min(len(rows), dimensions + SPARE)
    wide, precise = rows.dtype, np.dtype(np.complex128)
    tolerance = TOLERANCE * float(np.finfo(wide).eps)
    begin, last = on.put(directions(rows.shape[1], spare, wide)), np.inf
    if before is not None:
        some = before[np.linspace(0, len(before) - 1, max(spare - RANDOM, 0)).astype(np.int64)].conj().T
        begin = xp.concatenate([some, begin[:, : spare - some.shape[1]] * xp.abs(some).max(initial=1e-30)], axis=1)
    image = _along(on, rows, begin)
    for _ in range(PASSES):
        basis = xp.linalg.qr(image.astype(precise))[0].astype(wide)
        seen = _across(on, basis, rows)
        exact = seen.astype(precise)  # a dimension of a thousandth of the amplitude has a millionth of the power
        powers, turn = xp.linalg.eigh(exact @ exact.conj().T)
        powers, turn = powers[::-1][:dimensions], turn[:, ::-1][:, :dimensions].astype(wide)
        left, right = basis @ turn, turn.conj().T @ seen
        if spare == len(rows):
            break
        image = _along(on, rows, xp.ascontiguousarray(seen.conj().T))
        # rows rows† U - U Λ is, to first order, what U still turns by, times Λ
        rest = xp.linalg.norm(image @ turn - left * powers, axis=0) ** 2
        missing = xp.where(powers > tolerance**2 * powers[0], rest / xp.maximum(powers, 1e-300), 0).sum()
        moved = float(xp.sqrt(missing / xp.maximum(powers[0], 1e-300)))
        if moved <= tolerance or moved > STILL * last:
            break
        last = moved
    return left, right


@lru_cache(maxsize=4)
def directions(pixels: int, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Where the search for a subspace begins: random numbers (pixel, direction), always the same."""
    random = generator(0, "directions of a search for a subspace", pixels, count)
    return (random.normal(size=(pixels, count)) + 1j * random.normal(size=(pixels, count))).astype(dtype)
