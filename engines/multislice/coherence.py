"""Modes of a partly coherent beam: the image of a source of finite size, and a spread of focus.

The beam is a mixture of one wave that is moved and defocused by chance, both Gaussian; its modes are the eigenvectors of the
mean of ψψ† over these (Wolf, J. Opt. Soc. Am. 72, 343 (1982)), the strongest first. The mean is one over points that fill the
Gaussian evenly (Halton's, in pairs about its middle, with exactly its covariance), so that it is the same in every run.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.stats import norm, qmc

Wave: TypeAlias = NDArray[np.complex128]
PIECE = 4096
"""Frequencies that are worked on at a time."""


def chances(covariance: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Points (count rounded up to even, axis) about 0 with this covariance, exactly."""
    axes = len(covariance)
    half = norm.ppf(qmc.Halton(axes, scramble=False).fast_forward(1).random((count + 1) // 2))
    points = np.concatenate([half, -half])
    values, vectors = np.linalg.eigh(points.T @ points / len(points))
    even = points @ vectors / np.sqrt(values)
    spread, turned = np.linalg.eigh(covariance)
    return np.asarray(even @ (np.sqrt(np.maximum(spread, 0.0))[:, None] * turned.T))


def modes(wave: Wave, phases: NDArray[np.float64], points: NDArray[np.float64], count: int) -> tuple[Wave, float]:
    """(the `count` strongest modes of a beam (mode, frequency), the share of its photons that they have).

    `wave`: its spectrum (frequency,); `phases`: what a unit of each chance turns it by, (axis, frequency), radians; `points`:
    chances (point, axis).
    """
    pieces = [slice(first, first + PIECE) for first in range(0, len(wave), PIECE)]

    def drawn(piece: slice) -> NDArray[Any]:
        return np.asarray(wave[piece, None] * np.exp(-1j * phases[:, piece].T @ points.T))

    product = np.zeros((len(points), len(points)), complex)
    for piece in pieces:
        part = drawn(piece)
        product += part.conj().T @ part
    values, vectors = eigh(product, subset_by_index=(len(points) - count, len(points) - 1))
    vectors = vectors[:, ::-1] / np.sqrt(len(points))
    found = np.concatenate([drawn(piece) @ vectors for piece in pieces]).T
    turn = found @ wave.conj()  # eigenvectors have any phase: here that of the beam itself
    found *= np.exp(-1j * np.angle(turn))[:, None]
    return found, float(values.sum() / max(np.trace(product).real, 1e-300))
