"""The picture of docs/explanation/scan-models.md: what a wrong model of the beam or detector costs, and the right one gives.

    python examples/scan_models/figure.py docs/images/scan-models.png

Simulates three small scans with Poisson noise and reconstructs each with two models; about a minute on two cores.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from scipy.ndimage import gaussian_filter

from ptystream.engine import Context
from ptystream.engines.dm import DM
from ptystream.model.geometry import Geometry
from ptystream.model.pictures import flower
from ptystream.model.propagate import intensity, propagator
from ptystream.model.scan_model import Full
from ptystream.quality import align
from ptystream.reconstruction import PodTable, Reconstruction
from ptystream.scan.block import Block

OBJECT = gaussian_filter(flower((150, 150)).real, 0.7) + 1j * gaussian_filter(flower((150, 150)).imag, 0.7)


class Slabs:
    """Frames (frame, y, x) as a scan keeps them."""

    limit, weights = np.inf, None

    def __init__(self, counts: np.ndarray) -> None:
        self.slab_frames, self.shape, self.dtype = len(counts), counts.shape[1:], np.dtype("f4")
        self.mask = np.ones(self.shape, np.uint8)
        self._counts = counts.astype("f4")

    def slab(self, number: int) -> Any:
        return self._counts


def beam(shape: tuple[int, int], width: float) -> np.ndarray:
    """A structured probe that fills about `width` pixels."""
    y, x = (np.arange(n) - n // 2 for n in shape)
    bumps = gaussian_filter(np.random.default_rng(1).normal(size=shape), 2.0)
    wave = np.exp(-(((y[:, None] ** 2 + x**2) / (width / 2) ** 2) ** 2) + 1j * bumps / bumps.std())
    return wave * np.sqrt(2e5 / (np.abs(wave) ** 2).sum())


def places(steps: int, pitch: float) -> np.ndarray:
    grid = (np.arange(steps) - (steps - 1) / 2) * pitch
    where = np.stack(np.meshgrid(grid, grid, indexing="ij"), axis=-1).reshape(-1, 2)
    return np.round(where + np.random.default_rng(2).uniform(-pitch / 4, pitch / 4, where.shape))


def simulate(geometry: Geometry, where: np.ndarray, probe: np.ndarray, energies: dict[float, float]) -> np.ndarray:
    """Counts of all frames; `energies`: share of each factor."""
    ways = {factor: propagator(geometry, factor) for factor in energies}
    counts = []
    for y, x in (where + 75 - np.array(probe.shape) // 2).astype(int):
        wave = probe * OBJECT[y : y + probe.shape[0], x : x + probe.shape[1]]
        counts.append(sum(share * intensity(ways[f], wave) for f, share in energies.items()))
    return np.random.default_rng(3).poisson(np.array(counts)).astype(float)


def reconstruct(geometry: Geometry, where: np.ndarray, counts: np.ndarray, probe: np.ndarray, **scan: Any) -> Any:
    """The truth and the object, brought onto each other."""
    low = (probe.shape[0] - geometry.view[0]) // 2
    start = probe[low : low + geometry.view[0], low : low + geometry.view[1]]
    rough = start * np.exp(0.3j * gaussian_filter(np.random.default_rng(4).normal(size=start.shape), 2.0))
    model = Full("s", 0, Full.Parameters(illumination={"model": rough}, **scan), geometry)
    made, store = Reconstruction({}, {}, PodTable(model.pods)), Slabs(counts)
    slots = np.arange(len(where))
    block = Block(
        "s", slots, slots, where * np.array(geometry.pixel_size_m or (1, 1)), np.ones(len(where)), np.zeros(len(where), np.int64)
    )
    decided = model.start(made, block, store)
    model.place(made, block)
    dm = DM(DM.Parameters(subpix=None))
    photons = {"mean_photons": decided["mean_photons"], "brightest_photons": decided["brightest_photons"]}
    dm.start(made, {0: store}, Context(**photons))
    dm.iterate(150)
    held = dm.snapshot().objects["SsG00"]
    lit = dm.snapshot(("coverage",)).objects["SsG00"].data[0].real
    dm.finish()
    full, weight = np.ones(OBJECT.shape, complex), np.zeros(OBJECT.shape)
    y, x = 75 + np.array(held.offset)
    full[y : y + held.shape[0], x : x + held.shape[1]] = held.data[0]
    weight[y : y + held.shape[0], x : x + held.shape[1]] = lit
    return align(OBJECT, full, np.where(weight > 0.2 * weight.max(), weight, 0))


def main(path: str) -> None:
    far = Geometry((48, 48), 7.2, 2.0, (1e-4, 1e-4))
    coarse = Geometry((24, 24), 7.2, 2.0, (1e-4, 1e-4))
    near = Geometry((48, 48), 7.2, 0.005, (2e-7, 2e-7), near=True)
    fine, spectrum = replace(coarse, resample=2), {1.0: 0.6, 0.8: 0.4}
    coherence = {"energies": tuple(spectrum), "spectrum": tuple(spectrum.values())}
    rows: list[Any] = [
        (
            "two energies",
            far,
            beam(far.view, 20),
            spectrum,
            ("as one", far, {}),
            ("energies, spectrum", far, {"coherence": coherence}),
        ),
        ("large probe", fine, beam(fine.view, 26), {1.0: 1.0}, ("resample: 1", coarse, {}), ("resample: 2", fine, {})),
        ("near field", near, beam(near.view, 26), {1.0: 1.0}, ("as far field", Geometry((48, 48)), {}), ("nearfield", near, {})),
    ]
    figure, axes = plt.subplots(3, 3, figsize=(7.5, 7.6), layout="constrained")
    for line, (name, geometry, probe, energies, *models) in zip(axes, rows, strict=True):
        where = places(12, 4 if geometry is far else 5)
        counts = simulate(geometry, where, probe, energies)
        found = [(label, reconstruct(g, where, counts, probe, **scan)) for label, g, scan in models]
        pictures = [(f"{name}: truth", found[-1][1].first), *((label, aligned.second) for label, aligned in found)]
        for axis, (label, picture) in zip(line, pictures, strict=True):
            axis.imshow(np.angle(picture)[48:102, 48:102], cmap="viridis", vmin=-1.2, vmax=0.1)
            axis.set_title(label, fontsize=9)
            axis.set_axis_off()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:])
