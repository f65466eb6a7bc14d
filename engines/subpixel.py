"""Shifting a probe by a fraction of a pixel, and the exact adjoint of that shift.

S_d moves content by d = (y, x) pixels towards larger indices, on a periodic frame: 'linear' by bilinear weights, 'fourier'
by a phase ramp. Both are convolutions, so the adjoint is the shift with the mirrored kernel: for real weights S_d† = S_-d.
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


def adjoint(views: NDArray[Any], remainder: NDArray[Any], kind: str, xp: Any = np) -> NDArray[Any]:
    """S_d† of each view; shapes as `shift`."""
    return shift(views, -remainder, kind, xp)


def _ramp(views: NDArray[Any], remainder: NDArray[Any], xp: Any) -> NDArray[Any]:
    fft = _fft(xp)
    y, x = (xp.asarray(_frequencies(length)) for length in views.shape[-2:])
    turns = remainder[:, :1] * y[None]
    along = remainder[:, 1:] * x[None]
    factor = xp.exp(-2j * np.pi * turns)[:, :, None] * xp.exp(-2j * np.pi * along)[:, None, :]
    result = fft.ifft2(fft.fft2(views) * factor)
    dtype = np.dtype(views.dtype)
    plain: NDArray[Any] = (result if np.issubdtype(dtype, np.complexfloating) else result.real).astype(dtype)
    return plain


def _frequencies(length: int) -> NDArray[np.float64]:
    return np.fft.fftfreq(length).astype(np.float64)


def _fft(xp: Any) -> Any:
    if xp is np:
        import scipy.fft as library

        return library
    return xp.fft
