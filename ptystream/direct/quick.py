"""The quick look: from what was kept of the frames that are there to a picture, without iteration.

Descan is the plane through the patterns' centres of mass: what the sample does to single ones averages out over the scan, and
below a pixel a disk that a threshold cuts out follows by half (`moments.disk_centres`). Slow curvature of a sample goes with it.
Everything here may take its while, and is left to a thread of its own; what is done for each frame is in `window` and `moments`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ptystream.model.aberrations import chi

from . import dpc
from .brightfield import Fit, Pair, Views, aligned, bright_disk, moved_back
from .moments import Plane, without_descan
from .raster import Raster, turned
from .wigner import deconvolved

Kind = Literal["icom", "dpc", "tcbf", "wdd"]
LEAST = 64
"""Frames before anything is said of the scan."""
ROWS = 12
"""Rows, and points in a row, without which aberrations are not looked for."""
BELIEVED = 0.25
"""Largest part of the field that may be curl (of noise it is 1/2) where the angle is taken."""
ENOUGH = 256
"""Points without which it is not: of fewer noise too may have as little curl by chance (of 144 every sixth time)."""
EPSILON = 0.05
"""Of the deconvolution: the probe is not known well, and the scan not periodic, which a smaller one shows as slow waves."""
CAREFUL = 1 << 15
"""Points of a picture that is integrated without taking it for periodic."""
WIDER = 1.2
"""Cells of the grid onto which free positions are put, in mean distances: so that few stay empty."""
LARGEST = 1 << 9
"""Cells along a side of that grid, at the most."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What is there of the frames of one scan."""

    places_m: NDArray[np.float64]
    """(frame, 2), (y, x); pixels where there are no metres."""
    mass: NDArray[np.float64]
    """Centres of mass, 1/metres along the patterns' axes, (frame, 2)."""
    raster: Raster | None = None
    """None: positions are free."""
    numbers: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """Which point of the raster, (frame,)."""
    patterns: NDArray[np.float32] | None = None
    """(row, y, x), zero frequency at [0, 0], of the kinds that need them."""
    frequency: Pair | None = None
    """Theirs."""
    wavelength_m: float = 0.0
    angle: float = 0.0
    """By which the configuration has it that `raster.turned` brings the patterns' axes to those of the picture, radians."""
    rows: NDArray[np.int64] | None = None
    """Row of each frame in `patterns`, (frame,); None: these are the frames' in their order."""


@dataclass(frozen=True, slots=True)
class Told:
    """What the centres say of the scan."""

    plane: Plane
    """Descan: where patterns have their centre, along their axes."""
    angle: float
    """As of `Kept.angle`, as the field's curl has it; of the two that fit the one that is nearer to that."""
    rest: float
    """Part of the field that is curl all the same."""
    mirrored: bool
    """Whether it has far less where patterns are mirrored, and so little that it can be believed."""
    points: int
    """Of the picture, that were seen."""

    @property
    def believed(self) -> bool:
        """Whether the angle may be taken."""
        return self.rest <= BELIEVED and self.points >= ENOUGH


@dataclass(frozen=True, slots=True)
class Found:
    """A picture."""

    wave: NDArray[np.complex128]
    """(y, x): exp(i phase), or what `Kind` is."""
    picture: NDArray[np.float64]
    """The same in grey: the phase (of `icom` beyond a turn too), the size of the deflection, or the bright field."""
    known: NDArray[np.bool_]
    """Where a frame was, (y, x)."""
    pixel_m: tuple[float, float]
    first: tuple[int, int]
    """(row, column) of [0, 0] on a lattice of these pixels whose [0, 0] lies at physical zero."""
    told: Told | None
    fit: Fit | None = None
    """Aberrations, of the kinds that need them."""


def found(kept: Kept, kind: Kind) -> Found:
    """The picture of what is there. Raises `ValueError` where nothing can be made of it yet."""
    grid = _Grid.of(kept)
    said = told(kept, grid)
    angle = said.angle if said is not None and said.believed else kept.angle
    plane = None if said is None else said.plane
    fit = None
    if kind in ("icom", "dpc"):
        straight = kept.mass.mean(axis=0) if plane is None else plane(kept.places_m)
        field_ = turned(grid.put(kept.mass - straight), angle)
        if kind == "dpc":
            wave = np.nan_to_num(field_[..., 1] + 1j * field_[..., 0])
            grey = np.abs(wave)
        else:
            grey = np.nan_to_num(_phase(field_, grid.raster))
            wave = np.exp(1j * grey)
    else:
        if kept.raster is None or kept.patterns is None or kept.frequency is None:
            raise ValueError(f"{kind}: needs a raster")
        wave, fit = _from_patterns(kept, kind, angle, plane)
        grey = np.abs(wave) if kind == "tcbf" else np.angle(wave * np.exp(-1j * np.angle(wave.mean())))
    known = grid.known
    flips = tuple(slice(None, None, -1 if s < 0 else 1) for s in grid.raster.step_m)
    size = abs(grid.raster.step_m[0]), abs(grid.raster.step_m[1])
    return Found(wave[flips], grey[flips], known[flips], size, grid.first, said, fit)


def told(kept: Kept, grid: _Grid | None = None) -> Told | None:
    """What the centres say; None where too few frames are there, or they lie on a line."""
    if len(kept.places_m) < LEAST:
        return None
    grid = grid or _Grid.of(kept)
    try:
        plane = Plane.of(kept.places_m, kept.mass)
        bent = grid.put(kept.mass - plane(kept.places_m))
        angle, rest = dpc.rotation(bent, grid.raster)
        _, rest_of_other = dpc.rotation(bent * np.array([-1.0, 1.0]), grid.raster)
    except ValueError:
        return None
    turns, points = round((kept.angle - angle) / np.pi), int(grid.known.sum())
    mirrored = rest_of_other < 0.8 * rest and rest_of_other <= BELIEVED and points >= ENOUGH
    return Told(plane, angle + turns * np.pi, rest, mirrored, points)


@dataclass(frozen=True, slots=True)
class _Grid:
    """Where frames lie in the picture."""

    raster: Raster
    cell: NDArray[np.int64]
    """Of each frame."""
    first: tuple[int, int]

    @classmethod
    def of(cls, kept: Kept) -> _Grid:
        if not len(kept.places_m):
            raise ValueError("no frame yet")
        if kept.raster is not None:
            shape = kept.raster.shape
            return cls(kept.raster, kept.numbers, (-(shape[0] // 2), -(shape[1] // 2)))
        low, high = kept.places_m.min(axis=0), kept.places_m.max(axis=0)
        size = high - low
        pitch = WIDER * math.sqrt(float(size[0] * size[1]) / len(kept.places_m))
        if not pitch > 0:
            raise ValueError("the positions lie on a line")
        pitch = max(pitch, float(size.max()) / (LARGEST - 1))
        first = np.rint(low / pitch).astype(np.int64)
        at = np.rint(kept.places_m / pitch).astype(np.int64) - first
        rows, columns = (at.max(axis=0) + 1).tolist()
        return cls(Raster((rows, columns), (pitch, pitch)), at[:, 0] * columns + at[:, 1], (int(first[0]), int(first[1])))

    @property
    def known(self) -> NDArray[np.bool_]:
        seen = np.zeros(self.raster.points, bool)
        seen[self.cell] = True
        return seen.reshape(self.raster.shape)

    def put(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Means of (frame, 2) in each cell, (y, x, 2); NaN where nothing is."""
        good = np.isfinite(values).all(axis=1)
        cell, count = self.cell[good], self.raster.points
        share = np.bincount(cell, minlength=count)
        sums = [np.bincount(cell, values[good, k], minlength=count) for k in (0, 1)]
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.stack([np.where(share > 0, s / share, np.nan) for s in sums], axis=-1).reshape(*self.raster.shape, 2)


def _phase(bent: NDArray[np.float64], raster: Raster) -> NDArray[np.float64]:
    known = np.asarray(np.isfinite(bent).all(axis=2))
    if raster.points <= CAREFUL:
        return dpc.refined(bent, raster, known=known)
    return dpc.integrated(np.where(known[..., None], bent, 0.0), raster)


def _from_patterns(kept: Kept, kind: Kind, angle: float, plane: Plane | None) -> tuple[NDArray[np.complex128], Fit]:
    assert kept.raster is not None and kept.patterns is not None and kept.frequency is not None
    patterns = np.asarray(kept.patterns if kept.rows is None else kept.patterns[kept.rows], float)
    steps = [float(f.ravel()[1]) for f in kept.frequency]
    if plane is not None:
        patterns = without_descan(patterns, plane(kept.places_m) / steps)
    mean = patterns.mean(axis=0)
    if not mean.max() > 0:
        raise ValueError("nothing reaches the detector")
    disk = bright_disk(mean)
    whole = np.broadcast_to(mean, (kept.raster.points, *mean.shape)).copy()  # what is not there yet varies nothing
    whole[kept.numbers] = patterns
    fit = _aberrations(kept, whole, disk, angle)
    if kind == "wdd":
        phase = chi(fit.coefficients_m, kept.frequency, kept.wavelength_m)
        probe = np.fft.fftshift(np.fft.ifft2(np.sqrt(mean) * disk * np.exp(-1j * phase)))
        pixel_m = 1 / (len(mean) * steps[0]), 1 / (len(mean) * steps[1])
        return deconvolved(whole, kept.raster, probe, pixel_m, EPSILON, angle), fit
    views = Views.of(whole, kept.frequency, disk, kept.raster)
    shifts, there = fit.shifts(views.frequency), np.zeros(kept.raster.points)
    there[kept.numbers] = 1.0
    weight = views.weight[:, None, None]
    seen = np.fft.fft2(there.reshape(kept.raster.shape))[None]
    light = np.fft.ifft2((moved_back(np.fft.fft2(views.pictures) * weight, shifts, kept.raster)).sum(axis=0)).real
    share = np.fft.ifft2((moved_back(np.broadcast_to(seen, views.pictures.shape) * weight, shifts, kept.raster)).sum(axis=0)).real
    return (1 + light / np.maximum(share, 0.2)).astype(complex), fit


def _aberrations(kept: Kept, whole: NDArray[np.float64], disk: NDArray[np.bool_], angle: float) -> Fit:
    """Of the rows that are there; none, where they are too few."""
    assert kept.raster is not None and kept.frequency is not None
    raster, columns = kept.raster, kept.raster.shape[1]
    full = np.bincount(kept.numbers // columns, minlength=raster.shape[0]) >= 0.9 * columns
    rows = np.flatnonzero(full)
    none = Fit(np.zeros(1), angle, kept.wavelength_m)
    if len(rows) < ROWS or columns < ROWS or rows[-1] - rows[0] + 1 != len(rows):
        return none
    part = Raster((len(rows), columns), raster.step_m)
    cells = [abs(float(f.ravel()[1])) for f in kept.frequency]
    radius = math.sqrt(disk.sum() * cells[0] * cells[1] / np.pi)
    # a view that lies a third of the scan off has little in common with the others
    most = min(n * abs(s) for n, s in zip(part.shape, part.step_m, strict=True)) / 3 / (kept.wavelength_m * radius)
    chosen: Any = whole[rows[0] * columns : (rows[-1] + 1) * columns]
    try:
        fit, _ = aligned(
            chosen, kept.frequency, disk, part, kept.wavelength_m, angle=angle, search_m=np.linspace(-most, most, 41).tolist()
        )
    except ValueError:
        return none
    return fit if np.abs(fit.coefficients_m).max() <= 1.5 * most else none  # it has run away
