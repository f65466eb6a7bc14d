"""Orthogonal probe relaxation: every frame has a probe of its own, which an engine keeps in a small subspace.

Odstrcil et al., Opt. Express 24, 8360 (2016).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from ptystream.chance import generator
from ptystream.model.parameters import FullParameters
from ptystream.model.scan_model import Full
from ptystream.params.base import parameter
from ptystream.reconstruction import Reconstruction
from ptystream.scan.block import Block, FrameStore

PRESENT = 1e-6
"""Part of the strongest mode's power from which on probes are taken to have a dimension: what single precision tells."""

FEW = 256
"""Frames whose products are decomposed at once."""
SPARE = 7
"""Directions that the search has beside those that are wanted."""
PASSES = 6
"""Of that search: engines leave probes that have few dimensions, and one pass finds these."""


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
        basis = _basis(flat, dimensions + SPARE)
        inside = (basis.conj().T @ flat).astype(np.complex128)
        powers, vectors = np.linalg.eigh(inside @ inside.conj().T)
        powers, vectors = powers[::-1][:dimensions], basis @ vectors[:, ::-1][:, :dimensions]
        there = max(1, int((powers > PRESENT * powers[0]).sum()))
        found.append((there, vectors.astype(probes.dtype), flat))
    count = max(there for there, _, _ in found)
    left = [(vectors[:, :count].conj().T @ flat).reshape(-1, *probes.shape[1:]) for _, vectors, flat in found]
    return np.stack(left), np.stack([vectors[:, :count] for _, vectors, _ in found])


def _basis(flat: NDArray[Any], count: int) -> NDArray[Any]:
    """Orthonormal columns (frame, direction) that span the leading left singular vectors of probes (frame, pixel): of many frames
    `count` columns by subspace iteration, where a decomposition of all their products would take the cube of their number."""
    if len(flat) <= max(FEW, count):
        return np.eye(len(flat), dtype=flat.dtype)
    random = generator(0, "leading probes", len(flat), count)
    basis = random.normal(size=(len(flat), count)).astype(flat.dtype)
    for _ in range(PASSES):
        basis = np.linalg.qr(flat @ (flat.conj().T @ basis).astype(flat.dtype))[0]
    return basis


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
