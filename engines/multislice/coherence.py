"""Modes of a partly coherent beam: the image of a source of finite size, and a spread of focus.

The beam is a mixture of one wave that is moved and defocused by chance, both Gaussian; its modes are the eigenvectors of the
mean of ψψ† over these (Wolf, J. Opt. Soc. Am. 72, 343 (1982)), the strongest first. The mean is one over points that fill the
Gaussian evenly (Halton's, in pairs about its middle, with exactly its covariance), so that it is the same in every run. Of modes
that are equally strong any mixture would do; they are made to follow the beam times powers of what its chances turn it by.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.stats import norm, qmc

Wave: TypeAlias = NDArray[np.complex128]
PIECE = 4096
"""Frequencies that are worked on at a time."""
ALIKE = 1e-6
"""Relative difference of the strengths of two modes below which they are equally strong."""
SEEN = 0.1
"""Part of a direction that must lie among equally strong modes for one of them to follow it."""
DEGREES = 8
"""Powers that are tried."""
MORE = 16
"""Modes that are looked at beyond those that are wanted: they may be as strong as the last."""


def chances(widths: tuple[float, ...], correlation: float, count: int) -> NDArray[np.float64]:
    """Points (`count` rounded up to even, axis) about 0 with exactly these standard deviations, the first two axes correlated; an
    axis without width is 0 everywhere."""
    live = [axis for axis, width in enumerate(widths) if width > 0]
    half = norm.ppf(qmc.Halton(len(live), scramble=False).fast_forward(1).random((count + 1) // 2))
    points = np.concatenate([half, -half])
    even = points @ _root(points.T @ points / len(points), -0.5)  # as near to what they were as can be
    related = np.eye(len(widths))
    related[0, 1] = related[1, 0] = correlation
    found = np.zeros((len(points), len(widths)))
    found[:, live] = even @ _root(related[np.ix_(live, live)], 0.5)
    return np.asarray(found * widths)


def _root(matrix: NDArray[np.float64], power: float) -> NDArray[np.float64]:
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.maximum(values, 0.0) ** power) @ vectors.T)


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
    most = min(count + MORE, len(points))
    values, vectors = eigh(product, subset_by_index=(len(points) - most, len(points) - 1))
    values, vectors = values[::-1], vectors[:, ::-1] / np.sqrt(len(points))
    found = np.concatenate([drawn(piece) @ vectors for piece in pieces]).T
    first = 0
    while first < count:
        stop = first + int(np.count_nonzero(values[first:] > values[first] - ALIKE * values[0]))
        found[first:stop] = _settled(found[first:stop], wave, phases * points.std(axis=0)[:, None])
        first = stop
    return found[:count], float(values[:count].sum() / max(np.trace(product).real, 1e-300))


def _settled(alike: Wave, wave: Wave, phases: NDArray[np.float64]) -> Wave:
    """Modes (mode, frequency) of one strength, turned among themselves such that they do not hang on how they were found."""
    strength = np.linalg.norm(alike, axis=1, keepdims=True)
    if not strength.all():
        return alike
    basis, chosen = alike / strength, np.zeros((0, len(alike)), complex)
    for direction in _directions(wave, phases, basis):
        along = basis.conj() @ (direction / max(float(np.linalg.norm(direction)), 1e-300))
        for _ in range(2):  # twice is enough
            along = along - chosen.T @ (chosen.conj() @ along)
        size = float(np.linalg.norm(along))
        if size > SEEN:
            chosen = np.vstack([chosen, along / size])
        if len(chosen) == len(alike):
            return np.asarray((chosen @ basis) * strength)
    return alike


def _directions(wave: Wave, phases: NDArray[np.float64], basis: Wave) -> Iterator[Wave]:
    """The beam times powers of the phases, lowest first; then single frequencies, those first that the modes have most of."""
    live = [phase for phase in phases if phase.any()]
    for degree in range(DEGREES + 1):
        for chosen in itertools.combinations_with_replacement(live, degree):
            yield np.asarray(wave * np.prod(chosen, axis=0) if chosen else wave)
    for place in np.argsort(-(np.abs(basis) ** 2).sum(axis=0), kind="stable")[: 4 * len(basis)].tolist():
        only = np.zeros(len(wave), complex)
        only[place] = 1
        yield only
