"""Tilt-corrected bright field: every pixel of the bright disk sees the sample from its own angle, moved by the aberrations.

The picture of the pixel at frequency q is that of the axis, S, seen at R + d(q), with d = ∇χ(q) / 2π turned to the raster's axes.
Moved back and added up, the pictures have the dose of the whole disk; where they lie tells the aberrations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.model.aberrations import chi, slopes

from .raster import Raster, turned

Pair = tuple[NDArray[np.float64], NDArray[np.float64]]
ROUNDS = 6
"""Of correlating and fitting, for each bin."""
NEWTON = 6
"""Steps to the peak of a correlation."""


def bright_disk(mean: NDArray[np.float64], threshold: float = 0.5) -> NDArray[np.bool_]:
    """Pixels of a mean pattern above `threshold` × its 98th percentile of what is not dark."""
    lit = mean[mean > 0.05 * mean.max()] if mean.any() else mean
    return np.asarray(mean > threshold * np.percentile(lit, 98))


@dataclass(frozen=True, slots=True)
class Views:
    """Pictures of the raster by pixels, or groups of pixels, of the bright disk."""

    frequency: NDArray[np.float64]
    """Where they look from, 1/metres, (view, 2: y, x)."""
    pictures: NDArray[np.float64]
    """Relative to their mean, minus 1. Shape (view, rows, columns)."""
    weight: NDArray[np.float64]
    """Share of the counts, (view,), Σ = 1."""

    @classmethod
    def of(cls, frames: Any, frequency: Pair, disk: NDArray[np.bool_], raster: Raster, bin: int = 1) -> Views:
        """Of frames in the raster's order, pixels of the disk in groups of `bin` × `bin`. Raises `ValueError`."""
        seen = np.asarray(frames)
        if len(seen) != raster.points:
            raise ValueError(f"bright field: {len(seen)} frames for {raster.points} points of the raster")
        at = np.argwhere(disk)
        if not len(at):
            raise ValueError("bright field: the bright disk is empty")
        qy, qx = frequency[0].ravel()[at[:, 0]], frequency[1].ravel()[at[:, 1]]
        cells = [
            np.rint(q / (bin * (abs(line.ravel()[1] - line.ravel()[0])))) for q, line in zip((qy, qx), frequency, strict=True)
        ]
        _, group = np.unique(np.stack(cells, axis=1), axis=0, return_inverse=True)
        group = group.ravel()
        size = np.bincount(group)
        sums = np.zeros((len(size), raster.points))
        np.add.at(sums, group, seen[:, at[:, 0], at[:, 1]].T.astype(float))
        places = np.stack([np.bincount(group, q) / size for q in (qy, qx)], axis=1)
        mean = sums.mean(axis=1)
        lit = mean > 0
        pictures = (sums[lit] / mean[lit, None] - 1).reshape(-1, *raster.shape)
        return cls(places[lit], pictures, mean[lit] / mean[lit].sum())


@dataclass(frozen=True, slots=True)
class Fit:
    """Aberrations and rotation that shifts of views speak for."""

    coefficients_m: NDArray[np.float64]
    """In the order of `ptystream.model.aberrations`."""
    angle: float
    """Radians by which `raster.turned` brings the patterns' axes to the raster's."""
    wavelength_m: float
    offset_m: NDArray[np.float64] | None = None
    """(2,): what all views are moved by, which no aberration does."""
    used: NDArray[np.bool_] | None = None
    """Views that were not dropped."""
    rms_m: float = float("nan")
    """Of what is left of theirs."""

    def shifts(self, frequency: NDArray[np.float64]) -> NDArray[np.float64]:
        """d(q), metres along the raster's axes, of frequencies (view, 2). Shape (view, 2)."""
        unit = slopes(len(self.coefficients_m), (frequency[:, 0], frequency[:, 1]), self.wavelength_m)
        return turned(np.tensordot(self.coefficients_m, unit, axes=(0, 0)).T, self.angle)


def fitted(
    frequency: NDArray[np.float64],
    shifts_m: NDArray[np.float64],
    count: int,
    wavelength_m: float,
    *,
    angle: float | None = None,
    near: float = 0.0,
    weight: NDArray[np.float64] | None = None,
    worst: float = 3.0,
) -> Fit:
    """`count` aberrations from shifts (view, 2: y, x) of views at `frequency` (view, 2), by least squares.

    `angle`: the rotation where it is known; None: it is fitted too, within a quarter turn of `near` (half a turn more reverses
    every coefficient and fits alike). Views farther off than `worst` robust deviations are dropped. Raises `ValueError`.
    """
    if 2 * len(frequency) < count + 3:
        raise ValueError(f"aberrations: {count} cannot be found from {len(frequency)} views")
    unit = slopes(count, (frequency[:, 0], frequency[:, 1]), wavelength_m)
    used: NDArray[np.bool_] = np.asarray(np.isfinite(shifts_m).all(axis=1))
    power = np.sqrt(np.ones(len(frequency)) if weight is None else weight)

    def at(turn: float, chosen: NDArray[np.bool_]) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
        """(rest, solution, what is left (view, 2))."""
        design = turned(np.moveaxis(unit, 1, 2), turn)  # (coefficient, view, 2)
        design = np.concatenate([design, np.broadcast_to(np.eye(2)[:, None], (2, len(frequency), 2))])
        flat, wanted = (
            (design * power[:, None])[:, chosen].reshape(len(design), -1).T,
            (shifts_m * power[:, None])[chosen].ravel(),
        )
        scale = np.maximum(np.linalg.norm(flat, axis=0), 1e-300)
        solution = np.linalg.lstsq(flat / scale, wanted, rcond=None)[0] / scale
        left = shifts_m - np.tensordot(solution, design, axes=(0, 0))
        return float((power[chosen, None] ** 2 * left[chosen] ** 2).sum()), solution, left

    for _ in range(4):
        turn = near if angle is None else angle
        if angle is None:
            lower, upper, steps = near - np.pi / 2, near + np.pi / 2, 91
            for _ in range(6):
                turns = np.linspace(lower, upper, steps)
                best = float(turns[int(np.argmin([at(float(t), used)[0] for t in turns]))])
                lower, upper, steps = best - (turns[1] - turns[0]), best + (turns[1] - turns[0]), 9
            turn = best
        _, solution, left = at(turn, used)
        off = np.hypot(*left.T)
        limit = worst * max(float(np.median(off[used])) / 1.1774, 1e-15)  # of a Gaussian in two dimensions
        now = np.asarray(np.isfinite(off) & (off <= limit))
        if 2 * now.sum() < count + 3 or (now == used).all():
            break
        used = now
    rms = float(np.sqrt((left[used] ** 2).sum(axis=1).mean()))
    return Fit(solution[:count], float(turn), wavelength_m, solution[count:], used, rms)


def moved_back(spectra: NDArray[np.complex128], shifts_m: NDArray[np.float64], raster: Raster) -> NDArray[np.complex128]:
    """Transforms (view, rows, columns) of pictures S(R + d) as those of S(R)."""
    ky, kx = raster.frequencies()
    return np.asarray(spectra * np.exp(-2j * np.pi * (shifts_m[:, 0, None, None] * ky + shifts_m[:, 1, None, None] * kx)))


def correlated(
    spectra: NDArray[np.complex128], reference: NDArray[np.complex128], raster: Raster, reach: int | None = None
) -> NDArray[np.float64]:
    """By how much each picture is moved against a reference: d (view, 2), metres, where their correlation is largest.

    `reference`: (rows, columns), or one for each view; `reach`: steps that are looked at around 0, None: all.
    """
    cross = spectra * reference.conj()
    cross[:, 0, 0] = 0
    whole = np.fft.ifft2(cross).real  # its peak lies at -d, since the picture is S(R + d)
    if reach is not None:
        away = [np.abs(np.fft.fftfreq(n, 1 / n)) > reach for n in raster.shape]
        whole[:, away[0]] = -np.inf
        whole[:, :, away[1]] = -np.inf
    peaks = np.stack(np.unravel_index(whole.reshape(len(whole), -1).argmax(axis=1), raster.shape), axis=1)
    peaks = np.where(peaks > np.array(raster.shape) // 2, peaks - np.array(raster.shape), peaks)
    found = peaks.astype(float)
    for _ in range(NEWTON):  # on the correlation as a trigonometric polynomial
        found += np.clip(_newton(cross, found), -0.5, 0.5)
    found = np.where(np.abs(found - peaks) <= 1.5, found, peaks)
    return np.asarray(-found * np.asarray(raster.step_m))


def _newton(cross: NDArray[np.complex128], at: NDArray[np.float64]) -> NDArray[np.float64]:
    """Step (view, 2) towards the peak of Re Σ cross exp(2πi f·x) near `at` (view, 2), in steps; 0 where it is no peak."""
    fy, fx = (np.fft.fftfreq(n) * 2 * np.pi for n in cross.shape[1:])
    wave = cross * np.exp(1j * fy * at[:, 0, None])[:, :, None] * np.exp(1j * fx * at[:, 1, None])[:, None]
    y, x, yy = (
        -(wave.imag.sum(axis=2) * fy).sum(axis=1),
        -(wave.imag.sum(axis=1) * fx).sum(axis=1),
        -(wave.real.sum(axis=2) * fy**2),
    )
    xx, yx = -(wave.real.sum(axis=1) * fx**2).sum(axis=1), -((wave.real * fx).sum(axis=2) * fy).sum(axis=1)
    bends = yy.sum(axis=1)
    area = bends * xx - yx**2
    peaked = (area > 0) & (bends < 0)
    area = np.where(peaked, area, 1.0)
    step = -np.stack([xx * y - yx * x, bends * x - yx * y], axis=1) / area[:, None]
    return np.asarray(np.where(peaked[:, None], step, 0.0))


def transfer(fit: Fit, frequency: NDArray[np.float64], radius: float, raster: Raster) -> NDArray[np.complex128]:
    """What a weak phase φ̂(Q) of the raster gives to the pictures of views (view, 2), relative to their mean:

    T_q(Q) = i (P̂*(q) P̂(q - Q) - P̂(q) P̂*(q + Q)), P̂ = exp(-iχ) within a disk of `radius` 1/metres. Where only one of q ± Q lies in
    the disk it is more than a shift, by which the edge of the disk would mislead. Shape (view, rows, columns).
    """
    ky, kx = np.broadcast_arrays(*raster.frequencies())
    away = turned(np.stack([ky, kx], axis=-1), -fit.angle)

    def wave(q: NDArray[np.float64]) -> NDArray[np.complex128]:
        phase = chi(fit.coefficients_m, (q[..., 0], q[..., 1]), fit.wavelength_m)
        return np.asarray((np.hypot(q[..., 0], q[..., 1]) <= radius) * np.exp(-1j * phase))

    here = frequency[:, None, None]
    own = np.exp(-1j * chi(fit.coefficients_m, (here[..., 0], here[..., 1]), fit.wavelength_m))
    return np.asarray(1j * (own.conj() * wave(here - away) - own * wave(here + away).conj()))


def defocus_of(views: Views, raster: Raster, wavelength_m: float, angle: float, defoci_m: Sequence[float]) -> float:
    """Of these defoci the one that makes the sum of all views richest in contrast, metres."""
    spectra = np.fft.fft2(views.pictures) * views.weight[:, None, None]
    best, most = 0.0, -1.0
    for defocus in defoci_m:
        shifts = Fit(np.array([defocus]), angle, wavelength_m).shifts(views.frequency)
        rich = float((np.abs(moved_back(spectra, shifts, raster).sum(axis=0)) ** 2).sum())
        if rich > most:
            best, most = float(defocus), rich
    return best


def aligned(
    frames: Any,
    frequency: Pair,
    disk: NDArray[np.bool_],
    raster: Raster,
    wavelength_m: float,
    *,
    coefficients_m: Sequence[float] = (0.0,),
    angle: float = 0.0,
    turns: bool = False,
    counts: Sequence[int] = (1, 3, 3),
    bins: Sequence[int] = (4, 2, 2),
    search_m: Sequence[float] = (),
) -> tuple[Fit, Views]:
    """Aberrations (and with `turns` the rotation) that bring the views of the bright disk together, and the last views.

    Begins at `coefficients_m` and `angle`, or at the best defocus of `search_m`; then for each of `counts` with its bin: views
    are correlated with what all others let expect of them (`transfer`), and so many aberrations are fitted to where they lie.
    The disk must lie about zero frequency (see `moments.Plane`); a sample of weak phase is assumed, and of 1 rad the defocus is
    found some percent too small. Raises `ValueError` for more aberrations than the views can tell.
    """
    fit = Fit(np.asarray(coefficients_m, float), angle, wavelength_m)
    cell = np.prod([abs(line.ravel()[1] - line.ravel()[0]) for line in frequency])
    radius = float(np.sqrt(disk.sum() * cell / np.pi))
    # shifts are made as if the raster went round, which is wrong near its edges: these count little
    window = np.hanning(raster.shape[0] + 2)[1:-1, None] * np.hanning(raster.shape[1] + 2)[1:-1]
    for stage, (count, bin) in enumerate(zip(counts, bins, strict=True)):
        views = Views.of(frames, frequency, disk, raster, bin)
        if stage == 0 and len(search_m):
            defocus = defocus_of(views, raster, wavelength_m, angle, search_m)
            fit = replace(fit, coefficients_m=np.array([defocus, *fit.coefficients_m[1:]]))
        spectra, weight = np.fft.fft2(views.pictures), views.weight[:, None, None]
        for _ in range(ROUNDS):
            through = transfer(fit, views.frequency, radius, raster)
            light, power = spectra * through.conj() * weight, np.abs(through) ** 2 * weight
            # what the other views say of the sample: one agrees too well with itself, noise and all
            below = power.sum(axis=0) - power
            phase = (light.sum(axis=0) - light) / (below + 1e-3 * below.max())
            reach = max(2, min(raster.shape) // 6)
            seen, expected = (np.fft.fft2(window * np.fft.ifft2(each).real) for each in (spectra, through * phase))
            shifts = fit.shifts(views.frequency) + correlated(seen, expected, raster, reach)
            before = fit
            fit = fitted(
                views.frequency, shifts, count, wavelength_m, angle=None if turns else angle, near=fit.angle, weight=views.weight
            )
            moved = fit.shifts(views.frequency) - before.shifts(views.frequency)
            if np.abs(moved).max() < 1e-3 * min(raster.step_m):
                break
    return fit, views
