"""Orthogonal probe relaxation: the probes of all frames stay in a subspace of few dimensions.

Odstrcil et al., Opt. Express 24, 8360 (2016). The model OPRModel gives each frame layers of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from ptystream.engine import Context
from ptystream.params.base import Branch, parameter
from ptystream.reconstruction import Reconstruction, Storage
from ptystream.scan.block import FrameStore

from .backend import Backend
from .conjugate import Fields
from .dm import DM, DMParameters
from .likelihood import Descent
from .line import Taken
from .ml import ML, MLParameters
from .tiled import TiledEngine
from .tiles import Tile

PRESENT = 1e-6
"""Part of the largest squared singular value from which on probes are taken to have a dimension: what single precision tells."""


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

    def _constrain(self, storage: Storage, data: Any) -> Any:
        dimensions = self._dimensions()
        if storage.modes_per_frame:
            for mode in range(storage.modes_per_frame):
                data[mode :: storage.modes_per_frame] = projected(self.on, data[mode :: storage.modes_per_frame], dimensions)
        return data


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

    Gradient and direction keep the part that leads along such probes (`tangent`), so that the step, whose length the line
    search finds, leaves them to second order only; then it is projected back. Vandereycken, SIAM J. Optim. 23, 1214 (2013).
    """

    Parameters = MLOPRParameters

    def start(
        self,
        reconstruction: Reconstruction,
        frames: Mapping[int, FrameStore],
        context: Context,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """See `LowRank.start`."""
        self._kept: tuple[int, ...] = ()
        self._started: dict[str, Any] = {}
        super().start(reconstruction, frames, context, state)

    def _iteration(self, visited: Sequence[Tile]) -> Descent:
        kept = self._dimensions(), *(len(storage.data) for _, storage in self._own())
        if self._kept != kept and self.p.probe_update_start <= self.curiter:
            self._kept = kept
            self._retract()
            self._taken = None  # what it cost was the cost of other probes
        return super()._iteration(visited)

    def _move(self, steps: Fields, length: float) -> None:
        self._started = {name: storage.data.copy() for name, storage in self._own() if name in steps}
        super()._move(steps, length)
        if self._started:
            self._retract()

    def _move_again(self, taken: Taken, length: float) -> None:
        for name, storage in self._own():
            if name in self._started:
                storage.data = self._started[name]
        others = {name: step for name, step in taken.steps.items() if name not in self._started}
        ML._move(self, others, -taken.length)
        self._move(taken.steps, length)

    def _within(self, fields: Fields) -> dict[str, Any]:
        found = super()._within(fields)
        for name, storage in self._own():
            if name in found:
                field, modes = found[name], storage.modes_per_frame
                for mode in range(modes):
                    field[mode::modes] = tangent(self.on, storage.data[mode::modes], field[mode::modes], self._dimensions())
        return found

    def _own(self) -> list[tuple[str, Storage]]:
        """The probes that have layers of each frame."""
        return [(name, storage) for name, storage in self._probes() if storage.modes_per_frame]

    def _retract(self) -> None:
        for _, storage in self._own():
            storage.data = self._constrain(storage, storage.data)


def projected(on: Backend, probes: Any, dimensions: int) -> Any:
    """The closest probes (frame, y, x) that lie in `dimensions` dimensions: the leading terms of a singular value
    decomposition, from the eigenvectors of their inner products."""
    xp, flat = on.xp, probes.reshape(len(probes), -1)
    if dimensions >= len(flat):
        return probes
    products = flat @ flat.conj().T
    leading = xp.linalg.eigh(products.astype(np.complex128))[1][:, -dimensions:].astype(flat.dtype)
    return (leading @ (leading.conj().T @ flat)).reshape(probes.shape)


def tangent(on: Backend, probes: Any, change: Any, dimensions: int) -> Any:
    """The part of a `change` of probes, (frame, y, x) both, along which they stay in `dimensions` dimensions to first order.

    With U and V the probes' singular vectors: U U† X + X V V† - U U† X V V†, and of what is left, where the probes have fewer
    dimensions than they may, its closest in as many as they lack.
    """
    xp, flat, x = on.xp, probes.reshape(len(probes), -1), change.reshape(len(change), -1)
    if dimensions >= len(flat):
        return change
    powers, vectors = xp.linalg.eigh((flat @ flat.conj().T).astype(np.complex128))
    powers, vectors = powers[-dimensions:], vectors[:, -dimensions:]
    there = powers > PRESENT * powers[-1]
    u = vectors[:, there].astype(flat.dtype)
    v = (u.conj().T @ flat) / xp.sqrt(powers[there]).astype(flat.real.dtype)[:, None]
    along = u @ (u.conj().T @ x)
    rest = x - along
    inside = (rest @ v.conj().T) @ v
    found = (along + inside).reshape(change.shape)
    lacking = dimensions - int(there.sum())
    return found if not lacking else found + projected(on, (rest - inside).reshape(change.shape), lacking)
