"""Our own pictures to look at: a flower and a tree as objects, a moon as the probe. Drawn, deterministic, any size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from ptystream.chance import of_drawing


def _polar(shape: tuple[int, int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    y, x = (np.linspace(-1, 1, n) for n in shape)
    yy, xx = np.meshgrid(y, x, indexing="ij")
    return np.hypot(yy, xx), np.arctan2(yy, xx)


def flower(shape: tuple[int, int], seed: int = 0) -> NDArray[np.complex128]:
    """Transmission of a flower head, (y, x): petals in rings, veins, a seeded disc; matter has negative phase."""
    r, angle = _polar(shape)
    random = of_drawing(seed, 1)
    thickness = np.zeros(shape)
    for ring, (petals, reach) in enumerate(((8, 0.95), (11, 0.72), (14, 0.5))):
        turned = angle + 0.37 * ring
        outline = reach * (0.55 + 0.45 * np.abs(np.cos(petals * turned / 2)) ** 0.7)
        inside = 1 / (1 + np.exp((r - outline) * 60))
        vein = 0.16 * np.cos(petals * 6 * turned + 9 * r) * np.exp(-((r - 0.6 * reach) ** 2) / 0.06)
        thickness += inside * (0.42 + 0.25 * np.cos(petals * turned / 2) ** 2 + vein)
    spiral = np.cos(13 * angle + 42 * r) * np.cos(21 * angle - 42 * r)
    thickness += (r < 0.24) * (0.5 + 0.35 * spiral)
    grain = gaussian_filter(random.normal(size=shape), 1.2)
    thickness += 0.05 * grain / grain.std() * (thickness > 0.2)
    return np.asarray(np.exp(-(0.14 + 1.0j) * np.maximum(thickness, 0)))


def moon(shape: tuple[int, int], seed: int = 0) -> NDArray[np.complex128]:
    """A bright disc with craters and a curved wavefront, (y, x), to be scaled to photons: structure makes a good probe."""
    r, angle = _polar(shape)
    random = of_drawing(seed, 2)
    y, x = r * np.sin(angle), r * np.cos(angle)
    disc = 1 / (1 + np.exp((r - 0.42) * 55))
    surface = np.ones(shape)
    for _ in range(26):
        cy, cx = random.uniform(-0.4, 0.4, 2)
        size = random.uniform(0.02, 0.11)
        d = np.hypot(y - cy, x - cx) / size
        surface -= 0.42 * np.exp(-(d**2)) - 0.22 * np.exp(-(((d - 1.15) / 0.3) ** 2))
    maria = gaussian_filter(random.normal(size=shape), shape[0] / 14)
    surface *= 1 + 0.25 * maria / maria.std()
    wave = disc * np.clip(surface, 0.12, 2.2)
    return np.asarray(wave * np.exp(1j * (7.0 * r**2 + 0.7 * maria / maria.std())))


def tree(shape: tuple[int, int], seed: int = 0) -> NDArray[np.complex128]:
    """Transmission of a bare tree, (y, x): branches that fork and thin out; matter has negative phase."""
    random = of_drawing(seed, 3)
    rows, columns = (np.linspace(-1, 1, n) for n in shape)
    thickness = np.zeros(shape)
    branches = [(0.95, 0.0, -np.pi / 2, 0.55, 0.055)]
    for _ in range(7):
        grown = []
        for y, x, angle, length, width in branches:
            y1, x1 = y + length * np.sin(angle), x + length * np.cos(angle)
            near = [
                np.searchsorted(line, (min(a, b) - width, max(a, b) + width)) for line, a, b in ((rows, y, y1), (columns, x, x1))
            ]
            part = slice(*near[0]), slice(*near[1])
            yy, xx = rows[part[0], None] - y, columns[None, part[1]] - x
            along = np.clip((yy * (y1 - y) + xx * (x1 - x)) / length**2, 0, 1)
            off = (yy - along * (y1 - y)) ** 2 + (xx - along * (x1 - x)) ** 2
            thickness[part] = np.maximum(thickness[part], np.sqrt(np.maximum(width**2 - off, 0)) / 0.055)
            for side in (-1, 1):
                turn = side * random.uniform(0.25, 0.6)
                grown.append((y1, x1, angle + turn, length * random.uniform(0.62, 0.78), width * 0.68))
        branches = grown
    return np.asarray(np.exp(-(0.14 + 1.0j) * thickness))


PICTURES = {"flower": flower, "tree": tree, "moon": moon}
"""By the name that a `model` parameter takes."""
