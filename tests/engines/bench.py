"""Simulated scans of any set-up, written from the physics in metres: no propagator of the package is used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

from ptystream.engine import Context
from ptystream.engines.dm import DM
from ptystream.model.geometry import Geometry
from ptystream.model.scan_model import Full
from ptystream.quality import align
from ptystream.reconstruction import PodTable, Reconstruction
from ptystream.scan.block import Block


class Slabs:
    """Counts (frame, y, x) as a frame store."""

    slab_frames, limit, weights = 16, np.inf, None

    def __init__(self, counts: np.ndarray) -> None:
        self.shape, self.dtype = counts.shape[1:], np.dtype("f4")
        self.mask = np.ones(self.shape, np.uint8)
        padded = np.zeros((-(-len(counts) // 16) * 16, *self.shape), "f4")
        padded[: len(counts)] = counts
        self._slabs = padded.reshape(-1, 16, *self.shape)

    def slab(self, number: int) -> Any:
        return self._slabs[number]


def on_detector(wave: np.ndarray, geometry: Geometry, factor: float = 1.0) -> np.ndarray:
    """Photons on the detector, zero at [0, 0], of an exit wave on the pixel of `geometry` at `factor` times its energy."""
    r, n = geometry.resample, geometry.shape
    if geometry.near:
        return _near(wave, geometry, factor)
    length = geometry.wavelength_m / factor
    z = geometry.distance_m
    sides = []
    for axis in (0, 1):
        pixel, psize = geometry.pixel_size_m[axis], geometry.detector_pixel_m[axis] / r
        x = (np.arange(wave.shape[axis]) - wave.shape[axis] // 2) * pixel
        v = (np.arange(n[axis] * r) - (n[axis] // 2) * r - (r - 1) / 2) * psize
        pre = np.exp(1j * np.pi * x**2 / z * (1 / length - 1 / geometry.wavelength_m))
        sides.append(np.exp(-2j * np.pi * np.outer(v, x) / (length * z)) * pre * np.sqrt(pixel * psize / (length * z)))
    return _binned(np.abs(sides[0] @ wave @ sides[1].T) ** 2, n, r)


def _near(wave: np.ndarray, geometry: Geometry, factor: float) -> np.ndarray:
    """Fresnel propagation on a frame twice as large, so that nothing comes round; only for odd r or whole-pixel centres."""
    r, n = geometry.resample, geometry.shape
    length, z, pixel = geometry.wavelength_m / factor, geometry.distance_m, geometry.pixel_size_m
    big = np.zeros((2 * wave.shape[0], 2 * wave.shape[1]), complex)
    big[: wave.shape[0], : wave.shape[1]] = wave
    fy, fx = (np.fft.fftfreq(s, p) for s, p in zip(big.shape, pixel, strict=True))
    half = [(r - 1) / 2 * p for p in pixel]
    kernel = np.exp(-1j * np.pi * length * z * (fy[:, None] ** 2 + fx[None] ** 2))
    kernel = kernel * np.exp(-2j * np.pi * (fy[:, None] * half[0] + fx[None] * half[1]))
    out = np.fft.ifft2(np.fft.fft2(big) * kernel)[: wave.shape[0], : wave.shape[1]]
    fine = np.abs(out) ** 2
    if any((s // 2) % r for s in wave.shape):
        raise ValueError("the oracle wants the middle at a block's edge")
    return _binned(fine, n, r)


def _binned(fine: np.ndarray, n: tuple[int, int], r: int) -> np.ndarray:
    blocks = fine.reshape(n[0], r, n[1], r).sum(axis=(1, 3))
    return np.fft.ifftshift(blocks)


def specimen(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    """A smooth random object of moderate phase and absorption."""
    r = np.random.default_rng(seed)
    a, b = (gaussian_filter(r.normal(size=shape), 2.0) for _ in range(2))
    return np.exp(-0.15 * np.abs(a / a.std()) + 0.7j * b / b.std())


def beam(shape: tuple[int, int], width: float, photons: float = 1e5, seed: int = 1) -> np.ndarray:
    """A structured probe that fills about `width` pixels."""
    y, x = (np.arange(n) - n // 2 for n in shape)
    r = np.random.default_rng(seed)
    bumps = gaussian_filter(r.normal(size=shape), 2.0)
    wave = np.exp(-(((y[:, None] ** 2 + x**2) / (width / 2) ** 2) ** 2)) * np.exp(1.0j * bumps / bumps.std())
    wave = wave * np.exp(0.02j * (y[:, None] ** 2 + 1.3 * x**2))
    return wave * np.sqrt(photons / (np.abs(wave) ** 2).sum())


def raster(steps: int, pitch: float, seed: int = 2) -> np.ndarray:
    """Whole-pixel positions (frame, 2) about zero, jittered."""
    grid = (np.arange(steps) - (steps - 1) / 2) * pitch
    places = np.stack(np.meshgrid(grid, grid, indexing="ij"), axis=-1).reshape(-1, 2)
    return np.round(places + np.random.default_rng(seed).uniform(-pitch / 4, pitch / 4, places.shape))


def scan(
    geometry: Geometry,
    places: np.ndarray,
    probes: Sequence[np.ndarray],
    objects: Sequence[np.ndarray],
    factors: Sequence[float] = (1.0,),
    noise: int | None = None,
) -> np.ndarray:
    """Counts (frame, y, x): Σ over energies, the objects' middle at physical zero. `noise`: seed of Poisson statistics."""
    frames = []
    for place in places.astype(int):
        total = 0.0
        for probe, sample, factor in zip(probes, objects, factors, strict=True):
            y, x = place + np.array(sample.shape) // 2 - np.array(probe.shape) // 2
            total = total + on_detector(probe * sample[y : y + probe.shape[0], x : x + probe.shape[1]], geometry, factor)
        frames.append(total)
    counts = np.array(frames)
    return counts if noise is None else np.random.default_rng(noise).poisson(counts).astype(float)


def block(geometry: Geometry, places: np.ndarray, first: int = 0, label: str = "a") -> Block:
    slots = np.arange(first, first + len(places))
    metres = places * np.array(geometry.pixel_size_m or (1.0, 1.0))
    return Block(label, slots, slots, metres, np.ones(len(places)), np.zeros(len(places), np.int64))


def begin(
    geometry: Geometry,
    places: np.ndarray,
    counts: np.ndarray,
    *,
    precision: str = "single",
    threads: int = 1,
    first: int | None = None,
    where: str = "cpu",
    scan_parameters: dict[str, Any] | None = None,
    **engine: Any,
) -> DM:
    """A difference map on these frames (the first `first`; the others with `arrive`)."""
    model = Full("a", 0, Full.Parameters(**(scan_parameters or {})), geometry)
    made, store = Reconstruction({}, {}, PodTable(model.pods)), Slabs(counts)
    part = block(geometry, places[: first or len(places)])
    decided = model.start(made, part, store)
    model.place(made, part)
    dm = DM(DM.Parameters(**({"subpix": None} | engine)))
    photons = {"mean_photons": decided["mean_photons"], "brightest_photons": decided["brightest_photons"]}
    dm.start(made, {0: store}, Context(device=where, precision=precision, threads=threads, **photons))
    dm.model = model
    return dm


def arrive(dm: DM, geometry: Geometry, places: np.ndarray, first: int) -> None:
    """Further frames, whose slots begin at `first`."""
    rows, refused = dm.model.place(dm.reconstruction, block(geometry, places, first))
    assert not len(refused)
    dm.extend(rows)


def difference(dm: DM, truth: np.ndarray, name: str = "SaG00") -> float:
    """Relative distance of an object from the truth, aligned, where it was well lit."""
    held = dm.reconstruction.objects[name]
    lit = dm.snapshot(("coverage",)).objects[name].data[0].real
    y, x = np.array(held.offset) + np.array(truth.shape) // 2
    part = truth[max(y, 0) : y + held.shape[0], max(x, 0) : x + held.shape[1]]
    image = held.data[0][max(-y, 0) :, max(-x, 0) :][: part.shape[0], : part.shape[1]]
    lit = lit[max(-y, 0) :, max(-x, 0) :][: part.shape[0], : part.shape[1]]
    found = align(part, image, np.where(lit > 0.3 * lit.max(), lit, 0))
    w = found.weight
    return float(np.sqrt((w * np.abs(found.first - found.second) ** 2).sum() / (w * np.abs(found.first) ** 2).sum()))
