"""Shifting a probe by a fraction of a pixel, and the exact adjoint of that shift.

S_d moves content by d = (y, x) pixels towards larger indices, on a periodic frame: 'linear' by bilinear weights, 'fourier'
by a phase ramp. Both are convolutions, so the adjoint is the shift with the mirrored kernel: for real weights S_d† = S_-d.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.model.subpixel import fft_of, frequencies, shift, turns_of

__all__ = ["add_adjoint", "adjoint", "shift", "shifted_layers", "spread"]


def adjoint(views: NDArray[Any], remainder: NDArray[Any], kind: str, xp: Any = np) -> NDArray[Any]:
    """S_d† of each view; shapes as `shift`."""
    return shift(views, -remainder, kind, xp)


def shifted_layers(layers: NDArray[Any], layer: NDArray[Any], remainder: NDArray[Any], xp: Any = np) -> NDArray[Any]:
    """S_d ('fourier') of the layer (layer, y, x) that each frame sees: a transform per layer, or per frame where those are
    fewer, and one per frame."""
    fft = fft_of(xp)
    spectra = fft.fft2(layers)[layer] if len(layers) <= len(layer) else fft.fft2(layers[layer])
    return fft.ifft2(spectra * turns_of(layers, remainder, xp))  # type: ignore[no-any-return]


def add_adjoint(terms: NDArray[Any], layer: NDArray[Any], remainder: NDArray[Any], out: NDArray[Any], xp: Any = np) -> None:
    """out[layer] += S_d† ('fourier') of each frame's term: one transform per frame and one per layer."""
    fft = fft_of(xp)
    spectra = fft.fft2(terms) * turns_of(terms, -remainder, xp)
    for number in xp.unique(layer).tolist():
        out[number] += fft.ifft2(spectra[layer == number].sum(axis=0))


def spread(powers: NDArray[Any], xp: Any = np) -> NDArray[Any]:
    """The diagonal of Σ S_d† |O|² S_d ('fourier') from Σ |O|² (layer, y, x), on average over remainders.

    It is |O|² under the squares of the weights, whose tails reach far: a bright pixel counts for its whole row and column.
    """
    fft = fft_of(xp)
    turns = []
    for length in powers.shape[-2:]:
        remainders = (np.arange(64) + 0.5) / 64 - 0.5
        weights = np.fft.ifft(np.exp(-2j * np.pi * frequencies(length)[:, None] * remainders), axis=0)
        turns.append(np.fft.fft((np.abs(weights) ** 2).mean(axis=1)).real)
    smooth = fft.ifft2(fft.fft2(powers) * xp.asarray(turns[0][:, None] * turns[1])).real
    result: NDArray[Any] = xp.maximum(smooth, 0).astype(powers.dtype)
    return result
