"""Aberrations of a lens in Krivanek's notation: C10, C12a, C12b, C21a, C21b, C23a, C23b, C30, … (a: cosine, b: sine).

χ(q) = 2π/λ Σ C_nm θ^(n+1) / (n+1) {1 | cos mφ | sin mφ} with θ = λ|q| and φ = atan2(q_y, q_x); a probe is the transform of
aperture × exp(-iχ). So C10 = D is a propagation by D, the sign of the propagators between slices.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST = 88
"""Coefficients at most: all orders up to n = 11."""


def _kinds() -> Any:
    """(n, m, whether of the sine) of one coefficient after the other."""
    n = 0
    while True:
        n += 1
        for m in range((n + 1) % 2, n + 2, 2):
            yield from ((n, m, False),) if m == 0 else ((n, m, False), (n, m, True))


def kinds(count: int) -> list[tuple[int, int, bool]]:
    """(n, m, whether of the sine) of the first `count` coefficients. Raises `ValueError` for more than `MOST`."""
    if not 0 <= count <= MOST:
        raise ValueError(f"aberrations: {count} coefficients: must be at most {MOST} (orders up to 11)")
    return list(islice(_kinds(), count))


def names(count: int) -> list[str]:
    """'C10', 'C12a', 'C12b', …"""
    return [f"C{n}{m}" + ("" if m == 0 else "b" if sine else "a") for n, m, sine in kinds(count)]


def functions(count: int, frequency: tuple[Any, Any], wavelength_m: float) -> NDArray[np.float64]:
    """∂χ/∂C_j of the first `count` coefficients, radians per metre. Shape (coefficient, *that of the frequencies).

    `frequency`: (y, x) in 1/metres, arrays that spread to one shape.
    """
    y, x = np.broadcast_arrays(*(np.asarray(q, float) for q in frequency))
    theta = wavelength_m * (x + 1j * y)
    square, found = np.abs(theta) ** 2, np.empty((count, *y.shape))
    for j, (n, m, sine) in enumerate(kinds(count)):
        turned = theta**m * square ** ((n + 1 - m) // 2)  # θ^(n+1) exp(imφ), a polynomial: smooth at zero
        found[j] = 2 * np.pi / wavelength_m / (n + 1) * (turned.imag if sine else turned.real)
    return found


def chi(coefficients_m: Any, frequency: tuple[Any, Any], wavelength_m: float) -> NDArray[np.float64]:
    """χ, radians. `coefficients_m`: metres, (…, coefficient); shape (…, *that of the frequencies)."""
    given = np.asarray(coefficients_m, float)
    return np.asarray(np.tensordot(given, functions(given.shape[-1], frequency, wavelength_m), axes=(-1, 0)))


def slopes(count: int, frequency: tuple[Any, Any], wavelength_m: float) -> NDArray[np.float64]:
    """∂/∂q (y, x) of `functions` over 2π: where the ray of a frequency arrives, per coefficient (a pure number).

    Shape (coefficient, 2, *that of the frequencies).
    """
    y, x = np.broadcast_arrays(*(np.asarray(q, float) for q in frequency))
    theta = wavelength_m * (x + 1j * y)
    square, found = np.abs(theta) ** 2, np.empty((count, 2, *y.shape))
    for j, (n, m, sine) in enumerate(kinds(count)):
        # θ^m |θ|^2p with θ = λ (q_x + i q_y): d/dq_x = λ (m θ^(m-1) |θ|^2p + θ^m p |θ|^(2p-2) 2 Re θ), and i, Im for q_y.
        p = (n + 1 - m) // 2
        outer = m * theta ** (m - 1) * square**p if m else np.zeros_like(theta)
        inner = theta**m * (p * square ** (p - 1)) if p else np.zeros_like(theta)
        for axis, slope in ((0, 1j * outer + 2 * inner * theta.imag), (1, outer + 2 * inner * theta.real)):
            found[j, axis] = (slope.imag if sine else slope.real) / (n + 1)
    return found
