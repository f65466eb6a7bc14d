"""Orthogonal probe relaxation: the probes of all frames stay in a subspace of few dimensions.

Odstrcil et al., Opt. Express 24, 8360 (2016). The model OPRModel gives each frame layers of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

from ptystream.engine import Context
from ptystream.model.subspace import PRESENT, Basis, Products, leading
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


class SubspaceParameters(Branch):
    """How far probes may differ from frame to frame."""

    subspace_dim: int = parameter(1, lower=1, upper=1000, steerable=True, ours=True)
    """Dimensions of the subspace that the probes of all frames lie in, for each probe mode; 1: they differ by a factor. As many
    as there are frames: the probes are free."""

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
        """Project probes that come after the storage's, in place; what they are in for each mode."""
        return self._projected(storage, data, storage.data)

    def _projected(self, storage: Storage, data: Any, among: Any) -> list[Basis]:
        """Project probes of a storage, in place; what they are in for each mode. `among`: see `leading`."""
        modes = storage.modes_per_frame
        return [project(self.on, data[mode::modes], self._dimensions(), among[mode::modes]) for mode in range(modes)]


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
            for name, storage in self._own():
                self._retract(name, storage)
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
            self._retract(name, storage)

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
                self._bases[name] = storage.data, [leading(products(self.on), part, dimensions) for part in parts]
            for mode, basis in enumerate(self._bases[name][1]):
                keep_tangent(self.on, basis, found[name][mode::modes], dimensions)
        return found

    def _own(self) -> list[tuple[str, Storage]]:
        """The probes that have layers of each frame."""
        return [(name, storage) for name, storage in self._probes() if storage.modes_per_frame]

    def _retract(self, name: str, storage: Storage) -> None:
        """Project probes that have moved.

        Along the tangent they went into at most twice their dimensions, so that some of them span all there are: the search
        begins with these, and not with those of before the step, which have no part in what is new."""
        self._bases[name] = storage.data, self._projected(storage, storage.data, storage.data)


def products(on: Backend) -> Products:
    """Products over all frames, on the threads."""
    return Products(on.xp, on.put, partial(_along, on), partial(_across, on))


def project(on: Backend, probes: Any, dimensions: int, among: Any = None) -> Basis:
    """Put probes (frame, y, x) to the closest ones that lie in `dimensions` dimensions, in place: the leading terms of a
    singular value decomposition. `among`: see `leading`."""
    known = None if among is None else among.reshape(len(among), -1)
    basis = leading(products(on), probes.reshape(len(probes), -1), dimensions, known)
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
