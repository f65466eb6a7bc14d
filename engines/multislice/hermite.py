"""Hermite modes of a probe: the wave times Hermite polynomials of its own width.

PyPty multiplies by monomials, which leaves modes that are nearly alike; with Hermite polynomials those of a Gaussian beam are
orthogonal, and those of any other are made so here.
"""

from __future__ import annotations

import numpy as np
from numpy.polynomial.hermite_e import hermeval
from numpy.typing import NDArray


def hermite_modes(waves: NDArray[np.complex128], orders: tuple[int, ...]) -> NDArray[np.complex128]:
    """Modes of orders 0 … `orders` (x, y), for each subscan of `waves` (subscan, mode, y, x).

    Lowest order first, orthogonal, equally bright, together as many photons as the subscan had in all its modes; the first one
    is the beam's first mode. Shape (subscan, (n_x + 1) (n_y + 1), y, x).
    """
    return np.stack([_modes(each, orders[0], orders[1]) for each in waves])


def _modes(waves: NDArray[np.complex128], most_x: int, most_y: int) -> NDArray[np.complex128]:
    photons = float((np.abs(waves) ** 2).sum())
    first = waves[0]
    light = np.abs(first) ** 2
    y, x = (_own(light.sum(axis=1 - k)) for k in (0, 1))
    pairs = sorted(((a, b) for a in range(most_x + 1) for b in range(most_y + 1)), key=lambda ab: (sum(ab), ab[1]))
    rough = np.array([first * hermeval(y, _unit(b))[:, None] * hermeval(x, _unit(a)) for a, b in pairs])
    flat = rough.reshape(len(pairs), -1)
    flat = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    axes, triangle = np.linalg.qr(flat.T)
    turned = axes * np.exp(1j * np.angle(np.diag(triangle)))  # so that each keeps the sign that its polynomial gave it
    return np.asarray(turned.T.reshape(rough.shape) * np.sqrt(photons / len(pairs)))


def _own(profile: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coordinates in standard deviations from the centre of a profile."""
    at = np.arange(len(profile), dtype=float)
    middle = float((profile * at).sum() / profile.sum())
    width = float(np.sqrt((profile * (at - middle) ** 2).sum() / profile.sum()))
    return (at - middle) / max(width, 0.5)


def _unit(order: int) -> NDArray[np.float64]:
    return np.asarray(np.eye(order + 1)[order])
