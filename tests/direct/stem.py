"""A thin sample in a scanning microscope: patterns by plain sums, with everything that is to be found known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ptystream.direct.raster import Raster, pattern_frequencies, turned
from ptystream.model.aberrations import chi
from ptystream.model.electrons import electron_wavelength

LAMBDA = electron_wavelength(60.0)


@dataclass
class Stem:
    """Waves lie along the patterns' axes; the raster is turned against them by `angle`."""

    raster: Raster
    coefficients: tuple[float, ...] = (0.0,)
    angle: float = 0.0
    side: int = 32
    semiangle: float = 30e-3
    pixel: float = 0.4e-10
    strength: float = 0.3
    electrons: float = 0.0
    seed: int = 0
    atoms: int = 60
    width: float = 0.7e-10

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        reach = np.abs(self.raster.places_m()).max(axis=0) + 2e-10
        self.places = rng.uniform(-1, 1, (self.atoms, 2)) * reach
        self.shape = (self.side, self.side)
        self.frequency = pattern_frequencies(self.shape, (self.pixel, self.pixel))
        q = np.hypot(*np.broadcast_arrays(*self.frequency))
        self.disk = q * LAMBDA <= self.semiangle
        wave = np.fft.ifft2(self.disk * np.exp(-1j * chi(self.coefficients, self.frequency, LAMBDA)), norm="ortho")
        self.probe = np.fft.fftshift(wave) / np.sqrt(self.disk.sum())

    def phase(self, at: np.ndarray) -> np.ndarray:
        """Of the sample at places (…, 2) along the raster's axes."""
        found = np.zeros(at.shape[:-1])
        for place in self.places:
            found += self.strength * np.exp(-((at - place) ** 2).sum(axis=-1) / (2 * self.width**2))
        return found

    def frames(self) -> np.ndarray:
        own = (np.arange(self.side) - self.side // 2) * self.pixel
        rng, found = np.random.default_rng(self.seed + 1), []
        for place in self.raster.places_m():
            away = turned(self.places - place, -self.angle)  # round atoms: along the patterns' axes they are products
            y, x = (np.exp(-((own - away[:, k, None]) ** 2) / (2 * self.width**2)) for k in (0, 1))
            seen = np.exp(1j * self.strength * (y.T @ x))
            found.append(np.abs(np.fft.fft2(self.probe * seen, norm="ortho")) ** 2)
        patterns = np.array(found)
        return rng.poisson(patterns * self.electrons).astype(float) if self.electrons else patterns

    def truth(self, finer: int = 1) -> np.ndarray:
        """The phase on the raster."""
        (ny, nx), (sy, sx) = self.raster.shape, self.raster.step_m
        y, x = (np.arange(n * finer) / finer - (n - 1) / 2 for n in (ny, nx))
        return self.phase(np.stack(np.meshgrid(y * sy, x * sx, indexing="ij"), axis=-1))


def alike(a: np.ndarray, b: np.ndarray, edge: int = 3) -> float:
    """Correlation of two pictures, without their edges."""
    a, b = (each[edge : len(each) - edge, edge : each.shape[1] - edge] for each in (a, b))
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])
