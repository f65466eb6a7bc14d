"""Two-dimensional transforms behind one pair of functions: orthonormal, over the last two axes, one thread each.

The tile pipeline runs its own threads, so a transform must not start more. Plans are estimated, never measured: measured
plans change bits from process to process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Transform: TypeAlias = Callable[[NDArray[Any]], NDArray[Any]]


def transforms(kind: str = "scipy") -> tuple[Transform, Transform]:
    """(forward exp(-2πi…), backward) for the seeds' `ffttype`: 'scipy', 'numpy' or 'fftw'; on a GPU 'cupy'.

    The input may be overwritten. Raises `ValueError` for another name, `ImportError` where pyfftw or cupy is not installed.
    """
    if kind == "scipy":
        import scipy.fft as library

        return (
            lambda a: library.fft2(a, norm="ortho", overwrite_x=True, workers=1),
            lambda a: library.ifft2(a, norm="ortho", overwrite_x=True, workers=1),
        )
    if kind == "numpy":
        return (
            lambda a: np.fft.fft2(a, norm="ortho").astype(a.dtype, copy=False),
            lambda a: np.fft.ifft2(a, norm="ortho").astype(a.dtype, copy=False),
        )
    if kind == "fftw":
        import pyfftw.interfaces.numpy_fft as fftw

        options = {"norm": "ortho", "threads": 1, "planner_effort": "FFTW_ESTIMATE", "overwrite_input": True}
        return (lambda a: fftw.fft2(a, **options), lambda a: fftw.ifft2(a, **options))
    if kind == "cupy":
        import cupyx.scipy.fft as cufft

        return (
            lambda a: cufft.fft2(a, norm="ortho", overwrite_x=True),
            lambda a: cufft.ifft2(a, norm="ortho", overwrite_x=True),
        )
    raise ValueError(f"ffttype: {kind!r}: must be 'scipy', 'numpy' or 'fftw'")
