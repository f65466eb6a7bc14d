"""Orthogonal probe relaxation: the probes of all frames stay in a subspace of few dimensions.

Odstrcil et al., Opt. Express 24, 8360 (2016). The model OPRModel gives each frame layers of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ptystream.engine import Context
from ptystream.params.base import Branch, parameter
from ptystream.reconstruction import Reconstruction, Storage
from ptystream.scan.block import FrameStore

from .backend import Backend
from .dm import DM, DMParameters
from .tiled import TiledEngine


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

    def _constrain(self, storage: Storage, data: Any) -> Any:
        dimensions = self.p.subspace_dim if self.curiter >= self.p.subspace_start else 1
        if storage.modes_per_frame:
            for mode in range(storage.modes_per_frame):
                data[mode :: storage.modes_per_frame] = projected(self.on, data[mode :: storage.modes_per_frame], dimensions)
        return data


class DMOPR(LowRank, DM):
    """Difference map, then the probes' best approximation in the subspace."""

    Parameters = DMOPRParameters


def projected(on: Backend, probes: Any, dimensions: int) -> Any:
    """The closest probes (frame, y, x) that lie in `dimensions` dimensions: the leading terms of a singular value
    decomposition, from the eigenvectors of their inner products."""
    xp, flat = on.xp, probes.reshape(len(probes), -1)
    if dimensions >= len(flat):
        return probes
    products = flat @ flat.conj().T
    leading = xp.linalg.eigh(products.astype(xp.complex128))[1][:, -dimensions:].astype(flat.dtype)
    return (leading @ (leading.conj().T @ flat)).reshape(probes.shape)
