"""A picture of what a simulation shows: beam, sample with positions, and a frame."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def save(path: Path, simulation: Any, near: bool = False) -> Path:
    """Draw a `SimSimulation` (or a MoonFlower's) into a PNG; written atomically."""
    from matplotlib.figure import Figure

    experiment, pixel = simulation.experiment, np.asarray(simulation.geometry.pixel_size_m) * 1e6
    figure = Figure(figsize=(12.0, 3.9), layout="constrained")
    beam, sample, frame = figure.subplots(1, 3)
    probe = experiment.probe[0]
    half = np.array(probe.shape) / 2 * pixel
    beam.imshow(coloured(probe), extent=(-half[1], half[1], half[0], -half[0]))
    beam.set(title="beam (hue: phase)", xlabel="x / µm", ylabel="y / µm")
    matter = experiment.object[0]
    low = np.array(experiment.offset) * pixel
    high = low + np.array(matter.shape) * pixel
    shown = sample.imshow(np.angle(matter), extent=(low[1], high[1], high[0], low[0]), cmap="gray")
    figure.colorbar(shown, ax=sample, shrink=0.8, label="phase / rad")
    places = simulation.positions_m * 1e6
    sample.plot(places[:, 1], places[:, 0], ".", color="tab:orange", markersize=2)
    sample.set(title=f"sample and {len(places)} positions", xlabel="x / µm", ylabel="y / µm")
    counts = simulation.frame(0).astype(float)
    counts[counts == np.iinfo(simulation.dtype).max] = np.nan
    frame.set_facecolor("0.6")  # where there are no data the picture is transparent
    shown = frame.imshow(counts if near else np.log10(counts + 1), cmap="magma")
    figure.colorbar(shown, ax=frame, shrink=0.8, label="counts" if near else "log10(counts + 1)")
    frame.set(title="frame 0; grey has no data", xlabel="pixel", ylabel="pixel")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        figure.savefig(partial, dpi=130, format="png")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def coloured(wave: NDArray[np.complex128]) -> NDArray[np.float64]:
    """A complex image (y, x) as red, green and blue: modulus is brightness, phase is hue."""
    from matplotlib.colors import hsv_to_rgb

    modulus = np.abs(wave) / max(float(np.abs(wave).max()), 1e-30)
    hue = (np.angle(wave) / (2 * np.pi)) % 1.0
    return np.asarray(hsv_to_rgb(np.stack([hue, np.full(hue.shape, 0.75), modulus], axis=-1)))
