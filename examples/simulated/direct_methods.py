"""Pictures without iteration from a simulated 4D-STEM scan: `python examples/simulated/direct_methods.py FIGURE.png`.

Everything that is found here is known, since the scan is simulated; the numbers are printed.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ptystream.detectors.simulated.microscope import Microscope
from ptystream.detectors.simulated.stemscan import StemParameters
from ptystream.direct import brightfield, dpc, moments, virtual
from ptystream.direct.live import BrightField, Deflection
from ptystream.direct.raster import Raster, pattern_frequencies, turned
from ptystream.direct.wigner import deconvolved

SCAN: dict[str, Any] = {
    "shape": 48,
    "pixel": 0.3e-10,
    "steps": 40,
    "step": 0.4e-10,
    "rotation": -25.0,
    "slices": 1,
    "potential": 120e-30,
    "electrons": 2e4,
    "vacancies": 0.2,
}
"""One sheet of light atoms, as a two-dimensional crystal is."""
LENSES = {"in focus": [0.0], "defocused": [-120e-10, 15e-10, -10e-10]}
"""C10, C12a, C12b, metres."""


def alike(a: np.ndarray, b: np.ndarray, edge: int = 4) -> float:
    """Correlation of two pictures without their edges."""
    a, b = (each[edge:-edge, edge:-edge].ravel() for each in (a, b))
    return float(np.corrcoef(a, b)[0, 1])


def main(path: str) -> None:
    scans, frames_of = {}, {}
    for name, aberrations in LENSES.items():
        one = scans[name] = Microscope(StemParameters.model_validate(SCAN | {"aberrations": aberrations}), 0, name)
        frames_of[name] = np.fft.ifftshift([one.frame(k) for k in range(len(one.positions_m))], axes=(1, 2))
    one, frames = scans["in focus"], frames_of["in focus"]
    raster = Raster((40, 40), (0.4e-10, 0.4e-10))
    q = pattern_frequencies(one.shape, one.pixel_m)
    nearest = np.rint(one.places).astype(int) - one.offset
    truth = np.angle(one.object.prod(axis=0))[nearest[:, 0], nearest[:, 1]].reshape(raster.shape)

    field = moments.centres(frames, q).reshape(*raster.shape, 2)
    began = time.perf_counter()
    angle, rest = dpc.rotation(field, raster)
    angle = dpc.upright(field, raster, angle)
    print(f"rotation {np.rad2deg(angle):.2f}° (true 25°), curl left {rest:.3f}, {1e3 * (time.perf_counter() - began):.1f} ms")
    phase = dpc.refined(turned(field, angle), raster)
    ring = virtual.annulus(q, 45e-3 / one.wavelength_m, np.inf)
    dark = virtual.signal(frames, ring).reshape(raster.shape)
    live_phase = Deflection(raster, q, angle)
    began = time.perf_counter()
    live_phase.add(frames, np.arange(len(frames)))
    print(f"centre of mass: {1e6 * (time.perf_counter() - began) / len(frames):.0f} µs for each frame")

    one, frames = scans["defocused"], frames_of["defocused"]
    began = time.perf_counter()
    disk = brightfield.bright_disk(frames.mean(axis=0))
    search = np.linspace(-250e-10, 250e-10, 41)
    fit, _ = brightfield.aligned(frames, q, disk, raster, one.wavelength_m, angle=angle, turns=True, search_m=search)
    found = f"C10, C12a, C12b {np.round(fit.coefficients_m * 1e10, 1)} Å (true -120, 15, -10)"
    print(f"{found}, rotation {np.rad2deg(fit.angle):.2f}°, {time.perf_counter() - began:.1f} s")
    live = BrightField(raster, q, frames.mean(axis=0) * disk, fit)
    began = time.perf_counter()
    live.add(frames, np.arange(len(frames)))
    print(f"tilt-corrected bright field: {1e6 * (time.perf_counter() - began) / len(frames):.0f} µs for each frame")
    blurred = BrightField(raster, q, frames.mean(axis=0) * disk, brightfield.Fit(np.zeros(1), 0.0, one.wavelength_m))
    blurred.add(frames, np.arange(len(frames)))

    began = time.perf_counter()
    straight = turned_scan(one, frames)
    wave = deconvolved(straight, raster, rotated(one.probe, fit.angle), one.pixel_m)
    print(f"Wigner deconvolution: {time.perf_counter() - began:.2f} s")
    pictures = [
        ("the sample's phase (rad)", truth),
        (f"in focus: integrated centre of mass ({alike(phase, truth):.2f})", phase),
        (f"in focus: dark field beyond 45 mrad ({alike(dark, truth):.2f})", dark),
        (f"-120 Å: Wigner deconvolution ({alike(np.angle(wave), truth):.2f})", np.angle(wave)),
        ("-120 Å: bright field, views not moved", blurred.picture()),
        ("-120 Å: bright field, tilt-corrected", live.picture()),
    ]
    figure = Figure(figsize=(10.5, 7.0), layout="constrained")
    side = 40 * 0.4
    for axes, (title, picture) in zip(figure.subplots(2, 3).ravel(), pictures, strict=True):
        low, high = np.percentile(picture, (0.5, 99.5))
        drawn = axes.imshow(picture, cmap="gray", vmin=low, vmax=high, extent=(0, side, side, 0))
        axes.set_title(title, fontsize=8)
        axes.set_xlabel("Å")
        figure.colorbar(drawn, ax=axes, shrink=0.8)
    figure.savefig(path, dpi=110)


def rotated(wave: np.ndarray, angle: float) -> np.ndarray:
    """A centred wave along axes that are turned, by its Fourier sum."""
    n = len(wave)
    at = (np.indices(wave.shape) - n // 2).reshape(2, -1).T
    back = turned(at, -angle)
    q = np.fft.fftfreq(n)
    spectrum = np.fft.fft2(np.fft.ifftshift(wave))
    rows, columns = (np.exp(2j * np.pi * back[:, k, None] * q) for k in (0, 1))
    return np.einsum("pi,ij,pj->p", rows, spectrum, columns, optimize=True).reshape(n, n) / n**2


def turned_scan(one: Microscope, frames: np.ndarray) -> np.ndarray:
    """Patterns along the raster's axes: turned by linear interpolation."""
    from scipy.ndimage import map_coordinates

    n = frames.shape[1]
    at = np.indices((n, n)).transpose(1, 2, 0) - n // 2
    y, x = (turned(at, np.deg2rad(SCAN["rotation"])) + n // 2).transpose(2, 0, 1)
    centred = np.fft.fftshift(frames, axes=(1, 2)).astype(float)
    return np.fft.ifftshift([map_coordinates(each, [y, x], order=1) for each in centred], axes=(1, 2))


if __name__ == "__main__":
    main(sys.argv[1])
