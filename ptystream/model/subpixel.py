"""Shifting views by a fraction of a pixel on a periodic frame.

S_d moves content by d = (y, x) pixels towards larger indices: 'linear' by bilinear weights, 'fourier' by a phase ramp. Both are
convolutions, so the adjoint is the shift with the mirrored kernel: for real weights S_d† = S_-d.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def shift(views: NDArray[Any], remainder: NDArray[Any], kind: str, xp: Any = np) -> NDArray[Any]:
    """S_d of each view. views (frame, y, x) real or complex; remainder (frame, 2) pixels; result in the views' dtype."""
    if kind == "fourier":
        return _ramp(views, remainder, xp)
    result = views
    for axis in (0, 1):
        d = remainder[:, axis].astype(views.real.dtype)[:, None, None]
        back = xp.roll(result, 1, axis + 1)
        ahead = xp.roll(result, -1, axis + 1)
        zero = d.dtype.type(0)
        result = (1 - xp.abs(d)) * result + xp.maximum(d, zero) * back + xp.maximum(-d, zero) * ahead
    return result


def _ramp(views: NDArray[Any], remainder: NDArray[Any], xp: Any) -> NDArray[Any]:
    fft = fft_of(xp)
    result = fft.ifft2(fft.fft2(views) * turns_of(views, remainder, xp))
    dtype = np.dtype(views.dtype)
    plain: NDArray[Any] = (result if np.issubdtype(dtype, np.complexfloating) else result.real).astype(dtype)
    return plain


def turns_of(views: NDArray[Any], remainder: NDArray[Any], xp: Any) -> NDArray[Any]:
    """exp(-2πi (d·frequency)), (frame, y, x), in the precision of the views."""
    kind = np.result_type(np.dtype(views.dtype), np.complex64)
    turns = [
        xp.exp(-2j * np.pi * remainder[:, axis : axis + 1] * xp.asarray(frequencies(length))[None]).astype(kind)
        for axis, length in enumerate(views.shape[-2:])
    ]
    factor: NDArray[Any] = turns[0][:, :, None] * turns[1][:, None, :]
    return factor


def frequencies(length: int) -> NDArray[np.float64]:
    """Of an axis, cycles per pixel, in the order of a transform."""
    return np.fft.fftfreq(length).astype(np.float64)


def fft_of(xp: Any) -> Any:
    """The transforms of a namespace of arrays."""
    if xp is np:
        import scipy.fft as library

        return library
    return xp.fft
