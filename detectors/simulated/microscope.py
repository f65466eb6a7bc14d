"""What a scanning electron microscope sees of a thick sample: atoms in slices, a probe with aberrations, electrons counted.

The model is plain multislice in double precision, and shares no code with an engine: transmission exp(iσV) slice by slice, free
space between them as exp(-iπ λ d q²), both within two thirds of the largest frequency.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from ptystream.chance import generator
from ptystream.model.aberrations import chi
from ptystream.model.electrons import electron_wavelength, interaction_constant
from ptystream.scan.positions import raster_scan

from .exposure import canvas, shifted

COUNTS = np.dtype(np.uint32)
TOGETHER = 1024
"""Atoms that are drawn in one go: memory is needed for a row and a column of each."""
LIMIT = 2 / 3
"""Of waves and slices, part of the largest frequency: products do not alias."""


def places_of(p: Any) -> NDArray[np.float64]:
    """Where the beam is, (frame, 2), (y, x) in metres along the patterns' axes, the middle of the raster at 0.

    Row after row; with `flyback` so many frames more behind each row (but the last) while the beam goes back to the next one.
    """
    if p.positions_theory is not None:
        return np.asarray(p.positions_theory, np.float64)[: p.num_frames]
    (rows, columns), step = np.broadcast_to(p.steps, 2).tolist(), np.broadcast_to(p.step, 2)
    grid = raster_scan((rows, columns), (float(step[0]), float(step[1])), snake=p.snake).reshape(rows, columns, 2)
    if p.flyback:
        share = np.arange(1, p.flyback + 1)[:, None] / (p.flyback + 1)
        back = [grid[k, -1] + share * (grid[k + 1, 0] - grid[k, -1]) for k in range(rows - 1)]
        places = np.concatenate([part for k in range(rows) for part in ([grid[k], back[k]] if k < rows - 1 else [grid[k]])])
    else:
        places = grid.reshape(-1, 2)
    y, x = (places - (np.array([rows, columns]) - 1) / 2 * step).T
    turn = math.radians(p.rotation)
    # as `ptystream.scan.raster` has it: 90° takes a step to the right into one downwards
    turned = np.stack([np.cos(turn) * y + np.sin(turn) * x, np.cos(turn) * x - np.sin(turn) * y], axis=1)
    return np.asarray(turned[: p.num_frames])


def atoms_of(p: Any, seed: int, low: NDArray[np.float64], high: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Atoms of each slice between two corners (y, x), metres: (atom, 3), y, x and relative potential.

    A square lattice of columns with a lighter one in the middle of each cell, on the slices in turn; some atoms are missing, and
    each is moved by `displacement`.
    """
    first, last = (np.floor(low / p.lattice).astype(int) - 1, np.ceil(high / p.lattice).astype(int) + 1)
    y, x = (g.ravel() for g in np.meshgrid(*(np.arange(a, b + 1) for a, b in zip(first, last, strict=True)), indexing="ij"))
    corner = np.stack([y * p.lattice, x * p.lattice, np.ones(len(y))], axis=1)
    middle = corner * [1, 1, 0.6] + [p.lattice / 2, p.lattice / 2, 0]
    random, found = generator(seed, "atoms"), []
    for _ in range(p.slices):
        atoms = np.concatenate([corner, middle])
        atoms = atoms[random.random(len(atoms)) >= p.vacancies]
        found.append(atoms + np.append(random.normal(0, 1, (len(atoms), 2)) * p.displacement, np.zeros((len(atoms), 1)), axis=1))
    return found


def projected(
    atoms: NDArray[np.float64], volt_m3: float, width: float, axes: tuple[NDArray[np.float64], NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Projected potential, volt metres, of atoms that are Gaussians of this standard deviation. Shape (y, x)."""
    drawn = np.zeros([len(axis) for axis in axes])
    for first in range(0, len(atoms), TOGETHER):
        some = atoms[first : first + TOGETHER]
        y, x = (np.exp(-((axis - at[:, None]) ** 2) / (2 * width**2)) for axis, at in zip(axes, some.T[:2], strict=True))
        drawn += (y * some[:, 2:]).T @ x
    return drawn * (volt_m3 / (2 * np.pi * width**2))


class Microscope:
    """One scan. Raises `ValueError` for parameters that do not fit each other."""

    def __init__(self, parameters: Any, seed: int, label: str) -> None:
        p = self.p = parameters
        self._seed, self._label = seed, label
        side = p.side()
        self.shape, self.dtype = (side, side), COUNTS
        self.pixel_m = (p.pixel, p.pixel)
        self.wavelength_m = electron_wavelength(p.acc_voltage)
        self.positions_m = places_of(p)
        self.places = self.positions_m / p.pixel
        self.offset, size = canvas(self.places, self.shape)
        p.affordable(size)
        q = np.fft.fftfreq(side, p.pixel)
        square = q[:, None] ** 2 + q**2
        self._band = square <= (LIMIT * q.max()) ** 2
        open_ = np.sqrt(square) * self.wavelength_m <= p.semiangle
        if not (open_ & self._band).any() or (open_ & ~self._band).any():
            most = LIMIT * float(q.max()) * self.wavelength_m
            raise ValueError(f"semiangle: {p.semiangle:g} rad: patterns reach to {most:g} rad: take smaller pixels, or less")
        wave = open_ * np.exp(-1j * chi(p.aberrations, (q[:, None], q[None]), self.wavelength_m))
        self.probe = np.asarray(np.fft.fftshift(np.fft.ifft2(wave, norm="ortho")) * np.sqrt(p.electrons / open_.sum()))
        self.object = self._object(size)
        self._way = np.exp(-1j * np.pi * self.wavelength_m * p.slice_distance * square) * self._band

    def _object(self, size: tuple[int, int]) -> NDArray[np.complex128]:
        """Transmission of the slices, (slice, y, x)."""
        p, axes = self.p, [(np.arange(n) + first) * self.p.pixel for n, first in zip(size, self.offset, strict=True)]
        low, high = (np.array([axis[k] for axis in axes]) for k in (0, -1))
        per_volt = interaction_constant(p.acc_voltage)
        y, x = (np.fft.fftfreq(n, p.pixel) for n in size)
        reach = (LIMIT * float(np.fft.fftfreq(self.shape[1], p.pixel).max())) ** 2
        band, made = y[:, None] ** 2 + x**2 <= reach, []
        for atoms in atoms_of(p, self._seed, low, high):
            phase = per_volt * projected(atoms, p.potential, p.width, (axes[0], axes[1]))
            made.append(scipy.fft.ifft2(scipy.fft.fft2(np.exp(1j * phase)) * band))
        return np.array(made)

    def intensity(self, number: int) -> NDArray[np.float64]:
        """Expected electrons, (y, x), zero frequency in the middle."""
        place = self.places[number]
        nearest = np.floor(place + 0.5).astype(int)
        y, x = (nearest - np.array(self.shape) // 2 - self.offset).tolist()
        wave = shifted(self.probe, place - nearest)
        for k, part in enumerate(self.object):
            wave = wave * part[y : y + self.shape[0], x : x + self.shape[1]]
            if k + 1 < len(self.object):
                wave = scipy.fft.ifft2(scipy.fft.fft2(wave) * self._way)
        if any(self.p.descan):
            wave = wave * self._tilt(self.positions_m[number])
        there = scipy.fft.fft2(wave, norm="ortho") * self._band
        return np.asarray(np.fft.fftshift(np.abs(there) ** 2))

    def _tilt(self, place_m: NDArray[np.float64]) -> NDArray[np.complex128]:
        """Behind the sample, (y, x): what moves a pattern of this place as descan does."""
        p, turn = self.p, math.radians(self.p.rotation)
        y, x = place_m
        own = np.array([math.cos(turn) * y - math.sin(turn) * x, math.cos(turn) * x + math.sin(turn) * y])
        reach = np.maximum(np.broadcast_to(p.steps, 2) - 1, 1) * np.broadcast_to(p.step, 2)
        moved = (own / reach) @ np.reshape(p.descan, (2, 2))
        ramps = (np.exp(2j * np.pi * m * np.fft.fftshift(np.fft.fftfreq(n))) for m, n in zip(moved, self.shape, strict=True))
        return np.asarray(np.multiply.outer(*ramps))

    def frame(self, number: int) -> NDArray[np.uint32]:
        """Counts, (y, x); noise is keyed by (seed, scan, frame)."""
        mean = self.intensity(number)
        if self.p.add_poisson_noise:
            counts = generator(self._seed, f"electrons of {self._label}", number).poisson(mean)
        else:
            counts = np.rint(mean).astype(np.int64)
        return np.asarray(np.minimum(counts, np.iinfo(COUNTS).max - 1).astype(COUNTS))
