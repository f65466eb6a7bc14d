"""How the CPU form is compiled, and how arrays come to it."""

from __future__ import annotations

from typing import Any

import numba
from numpy.typing import NDArray

# Reordering is allowed, ignoring infinities is not: an infinite count marks an invalid pixel.
jit = numba.njit(nogil=True, fastmath={"reassoc", "contract", "arcp", "nsz", "afn"}, error_model="numpy", cache=True)


def parts(array: NDArray[Any]) -> NDArray[Any]:
    """A contiguous complex array as its real parts: the last axis doubles."""
    return array.view(array.real.dtype)
