"""Orthogonal probe relaxation: every frame has a probe of its own, which an engine keeps in a small subspace.

Odstrcil et al., Opt. Express 24, 8360 (2016).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from ptystream.model.parameters import FullParameters
from ptystream.model.scan_model import Full
from ptystream.model.subspace import PLAIN, PRESENT, leading
from ptystream.params.base import parameter
from ptystream.reconstruction import Reconstruction
from ptystream.scan.block import Block, FrameStore

FEW = 256
"""Frames whose products are decomposed at once."""


def decomposed(probes: NDArray[Any], modes: int, dimensions: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """The probes of all frames P_j = Σ_k c_jk U_k as modes U and coefficients c, the strongest first, from a singular value
    decomposition: c has orthonormal columns, U the power.

    `probes`: (frame · mode, y, x), the `modes` of a frame one after the other. Returns U (mode, dimension, y, x) and
    c (mode, frame, dimension), of at most so many dimensions and no more than there are in any mode.
    """
    found = []
    for mode in range(modes):
        own = probes[mode::modes]
        flat = own.reshape(len(own), -1)
        vectors = _every(flat, dimensions) if len(flat) <= FEW else leading(PLAIN, flat, dimensions)[0]
        inside = vectors.conj().T @ flat
        powers = (np.abs(inside.astype(np.complex128)) ** 2).sum(axis=1)
        found.append((max(1, int((powers > PRESENT * powers[0]).sum())), vectors, inside))
    count = max(there for there, _, _ in found)
    left = [inside[:count].reshape(-1, *probes.shape[1:]) for _, _, inside in found]
    return np.stack(left), np.stack([vectors[:, :count] for _, vectors, _ in found])


def _every(flat: NDArray[Any], dimensions: int) -> NDArray[Any]:
    """The leading left singular vectors (frame, dimension) of few probes (frame, pixel), from all their products."""
    precise = flat.astype(np.complex128)
    vectors = np.linalg.eigh(precise @ precise.conj().T)[1]
    return np.asarray(vectors[:, ::-1][:, :dimensions].astype(flat.dtype))


class OPRParameters(FullParameters):
    """A probe for each frame; engines: DMOPR, MLOPR."""

    name: str = parameter("Full")
    """Name of the model."""

    @model_validator(mode="after")
    def _free_probes(self) -> Self:
        if self.coherence.probe_dispersion == "linear":
            raise ValueError("coherence.probe_dispersion: linear: every frame has a probe of its own here; use 'irregular'")
        return self


class OPR(Full):
    """As Full, with layers of the probe for every frame. A new frame starts from the mean probe of those before it."""

    Parameters = OPRParameters
    probe_per_frame = True

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._placed = 0

    def start(
        self,
        reconstruction: Reconstruction,
        block: Block,
        frames: FrameStore,
        decisions: Mapping[str, Any] | None = None,
        others: Mapping[str, tuple[Block, FrameStore]] | None = None,
    ) -> dict[str, Any]:
        """See `ScanModel.start`."""
        decided = super().start(reconstruction, block, frames, decisions, others)
        for name in self.probe_ids:
            reconstruction.probes[name].modes_per_frame = self.modes[0]
        return decided

    def _probe_layers(self, reconstruction: Reconstruction, count: int) -> NDArray[np.int64]:
        modes = self.modes[0]
        first, self._placed = self._placed, self._placed + count
        for name in self.probe_ids:
            storage = reconstruction.probes[name]
            lacking = self._placed - len(storage.data) // modes
            if lacking > 0:
                storage.add_frames(lacking)
        return (first + np.arange(count))[:, None] * modes + np.arange(modes)
