"""From the exit wave of one energy to the detector: a plain value that an engine applies without knowing what it means.

Far field of the energy that sets the pixel on the sample: the orthonormal transform. Any other pixel or energy: the same
Fourier sums with another period. The lattice of the object stays, so that energies may share it, and the detector pixel k of
energy E sees Σ_x ψ(x) exp(-2πi k x / c)/√c with c = λ z / (pixel · psize), a real number. That matrix, cut to the pixels that
both sides sample properly (|x|, |k| <= c/2), is replaced by the nearest one that neither makes nor loses photons: its
singular values above 1/2 (Slepian's concentration: nearly all are 0 or 1) become 1, the others 0. So going to the detector
and back is an orthogonal projection, exactly, for every energy; waves that fill less than two thirds of the frame notice
nothing of the change.

Near field: angular spectrum, exp(2πi z/λ (√(1 - a²) - 1)) between two transforms; a = λ × spatial frequency.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.model.fft import Transform, transforms
from ptystream.model.geometry import Geometry

KEPT = 0.5
"""Singular values above it are those of waves that both frame and detector hold."""


@dataclass(frozen=True, slots=True, eq=False)
class Propagator:
    """Exit wave (y, x), centred, → waves on the detector, zero frequency (near field: middle of the frame) at [0, 0].

    At most one of `zoom` and `transfer` is set; with neither it is the orthonormal transform. Every form is an isometry or,
    with `zoom`, a partial one: its adjoint is its inverse where it has one. Arrays are the host's in double precision, or
    those of a device (`put`).
    """

    before: Any = None
    """Factor (y, x) of modulus 1 on the exit wave."""
    zoom: tuple[Any, Any] | None = None
    """Matrices (detector y, y) and (detector x, x) in the place of the transform."""
    transfer: Any = None
    """Factor (y, x) of modulus 1 between a transform and the inverse one."""
    resample: int = 1
    """The detector sums the intensity over blocks of so many pixels squared."""
    pad: int = 0
    """Of these blocks so many on each side lie beyond the detector."""

    @property
    def plain(self) -> bool:
        """Whether it is the orthonormal transform and nothing else."""
        return self.before is None and self.zoom is None and self.transfer is None and self.resample == 1 and self.pad == 0

    def put(self, put: Callable[[Any], Any]) -> Propagator:
        """The same with its arrays where `put` brings them."""
        before, transfer = (None if array is None else put(array) for array in (self.before, self.transfer))
        return Propagator(
            before, None if self.zoom is None else (put(self.zoom[0]), put(self.zoom[1])), transfer, self.resample, self.pad
        )

    def forward(self, waves: Any, fft2: Transform, ifft2: Transform) -> Any:
        """Waves (…, y, x) on the fine detector; may overwrite `waves`."""
        if self.before is not None:
            waves = waves * self.before
        if self.zoom is not None:
            return self.zoom[0] @ (waves @ self.zoom[1].T)
        waves = fft2(waves)
        return waves if self.transfer is None else ifft2(waves * self.transfer)

    def backward(self, waves: Any, fft2: Transform, ifft2: Transform) -> Any:
        """Adjoint of `forward`."""
        if self.zoom is not None:
            waves = self.zoom[0].conj().T @ (waves @ self.zoom[1].conj())
        elif self.transfer is not None:
            waves = ifft2(fft2(waves) * self.transfer.conj())
        else:
            waves = ifft2(waves)
        return waves if self.before is None else waves * self.before.conj()


def intensity(way: Propagator, waves: NDArray[Any]) -> NDArray[np.float64]:
    """Photons on the detector (…, y, x), zero frequency at [0, 0], of exit waves (…, y, x) on the host: for simulations."""
    fine = np.abs(way.forward(np.array(waves, complex), *transforms())) ** 2
    r, (height, width) = way.resample, fine.shape[-2:]
    blocks = fine.reshape(*fine.shape[:-2], height // r, r, width // r, r)
    photons = np.asarray(blocks.sum(axis=(-3, -1)))
    return photons if not way.pad else _cut(photons, way.pad)


def flat_phase(way: Propagator, photons: NDArray[np.float64]) -> NDArray[np.complex128]:
    """The exit wave (y, x) whose wave on the detector has these photons (y, x), spread over fine pixels, and no phase."""
    r = way.resample
    photons = photons if not way.pad else _surrounded(photons, way.pad)
    fine = np.repeat(np.repeat(np.sqrt(photons) / r, r, axis=-2), r, axis=-1).astype(complex)
    return np.asarray(way.backward(fine, *transforms()))


def _cut(photons: NDArray[np.float64], pad: int) -> NDArray[np.float64]:
    """(…, y, x) without `pad` pixels on each side, zero frequency at [0, 0] before and after."""
    centred = np.fft.fftshift(photons, axes=(-2, -1))
    return np.fft.ifftshift(centred[..., pad:-pad, pad:-pad], axes=(-2, -1))


def _surrounded(photons: NDArray[np.float64], pad: int) -> NDArray[np.float64]:
    """(y, x) with `pad` dark pixels on each side, zero frequency at [0, 0] before and after."""
    return np.fft.ifftshift(np.pad(np.fft.fftshift(photons), pad))


def propagator(geometry: Geometry, factor: float = 1.0) -> Propagator:
    """Of the energy `factor` times that of `geometry`, which sets the pixel on the sample. With `factor` 1 and no forced
    pixel the far field is one transform."""
    if geometry.near:
        return Propagator(transfer=_transfer(geometry.at(factor)), resample=geometry.resample, pad=geometry.pad)
    before = None if factor == 1.0 else geometry.curvature(factor)
    middle = (geometry.resample - 1) / 2
    cycle = tuple(c / factor for c in geometry.cycle)
    if cycle == geometry.fine == geometry.view:
        if middle:  # detector pixel k is the mean of fine pixels rk … rk + r - 1: zero frequency lies in their middle
            y, x = (np.exp(2j * np.pi * (np.arange(n) - n // 2) * middle / n) for n in geometry.fine)
            before = y[:, None] * x
        return Propagator(before=before, resample=geometry.resample, pad=geometry.pad)
    first, second = (_zoom(n, geometry.resample, m, c) for n, m, c in zip(geometry.padded, geometry.view, cycle, strict=True))
    return Propagator(before=before, zoom=(first, second), resample=geometry.resample, pad=geometry.pad)


def _zoom(detector: int, parts: int, frame: int, cycle: float) -> NDArray[np.complex128]:
    """The matrix of one axis, (detector pixel × part of it, frame): rows in the order of a transform, columns centred."""
    pixel = np.fft.fftfreq(detector, 1 / detector).round()
    row = (pixel[:, None] * parts + np.arange(parts) - (parts - 1) / 2).ravel()
    column = np.arange(frame) - frame // 2
    exact = np.exp(-2j * np.pi * np.outer(row, column) / cycle) / np.sqrt(cycle)
    exact *= (np.abs(row) <= cycle / 2)[:, None] & (np.abs(column) <= cycle / 2)[None]
    left, size, right = np.linalg.svd(exact, full_matrices=False)
    kept = size > KEPT
    return np.asarray(left[:, kept] @ right[kept])


def _transfer(geometry: Geometry) -> NDArray[np.complex128]:
    """Angular spectrum on the fine frame, with the move that brings the frame's middle to [0, 0]."""
    assert geometry.wavelength_m and geometry.distance_m and geometry.pixel_size_m
    sides = []
    for n, pixel in zip(geometry.fine, geometry.pixel_size_m, strict=True):
        frequency = np.fft.fftfreq(n)
        # The frame's centre is its pixel n // 2; that of the detector lies in the middle of the first block.
        turn = 2 * np.pi * frequency * (n // 2 - (geometry.resample - 1) / 2)
        sides.append((frequency / pixel * geometry.wavelength_m, turn))
    (y, turn_y), (x, turn_x) = sides
    cosine = np.sqrt(np.maximum(0.0, 1 - y[:, None] ** 2 - x[None] ** 2))
    phase = 2 * np.pi * geometry.distance_m / geometry.wavelength_m * (cosine - 1)
    return np.asarray(np.exp(1j * (phase + turn_y[:, None] + turn_x[None])))
