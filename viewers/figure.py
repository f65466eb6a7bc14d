"""A picture of a result: object, probe, errors and positions, as a person wants to see them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.publish.snapshot import LEDGER_CODES
from ptystream.quality import COVERED, fit_ramp, remove_ramp
from ptystream.storage.ptyr import Result

LEDGER_COLOURS = ("#5a6675", "#d9a441", "#4cc38a", "#e5534b", "#b06ee0")
"""Of the states of a frame, in the order of `LEDGER_CODES`; the web viewer has the same."""


def hue_image(wave: NDArray[Any]) -> NDArray[np.float64]:
    """Complex values as colours, (y, x, rgb): hue is phase, brightness is amplitude."""
    from matplotlib.colors import hsv_to_rgb

    size = np.abs(wave)
    value = size / max(float(size.max()), 1e-30)
    hue = (np.angle(wave) / (2 * np.pi)) % 1.0
    return np.asarray(hsv_to_rgb(np.stack([hue, np.full_like(value, 0.85), value], axis=-1)))


class Figure:
    """Entry point 'figure': `save_png(result, path)`."""

    @staticmethod
    def save_png(result: Result, path: str | Path) -> Path:
        """Draw a result and write it as PNG."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as Canvas

        figure = Canvas(figsize=(13.5, 8), layout="constrained")
        FigureCanvasAgg(figure)
        name, storage = next(iter(result.object.items()))
        image, seen = storage.data[0].astype(complex), result.coverage.get(name)
        weight = np.ones(image.shape) if seen is None else np.asarray(seen, float)
        if not weight.any():
            weight = np.ones(image.shape)
        lit = weight > COVERED * weight.max()
        rows, columns = np.flatnonzero(lit.any(axis=1)), np.flatnonzero(lit.any(axis=0))
        part = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        image, weight, lit = image[part], weight[part], lit[part]
        flat = remove_ramp(image, fit_ramp(image, weight))
        amplitude = np.where(lit, np.abs(flat) / np.median(np.abs(flat)[lit]), np.nan)
        phase = np.where(lit, np.angle(flat), np.nan)
        axes = figure.subplots(2, 3)
        low, high = np.nanpercentile(amplitude, [0.5, 99.5])
        low, high = min(low, 0.95), max(high, 1.05)  # rounding is not contrast
        spread = max(float(np.nanpercentile(np.abs(phase), 99.5)), 0.05)
        for axis, data, title, colours, limits, unit in (
            (axes[0, 0], amplitude, "object amplitude", "gray", (low, high), "over median"),
            (axes[0, 1], phase, "object phase", "twilight", (-spread, spread), "rad"),
        ):
            shown = axis.imshow(data, cmap=colours, vmin=limits[0], vmax=limits[1])
            axis.set_title(title)
            figure.colorbar(shown, ax=axis, label=unit, shrink=0.8)
            axis.set_axis_off()
            _scale_bar(axis, storage.pixel_size_m, data.shape)
        probe = next(iter(result.probe.values()))
        axes[0, 2].imshow(hue_image(probe.data[0]))
        axes[0, 2].set_title("probe (hue: phase)")
        axes[0, 2].set_axis_off()
        _scale_bar(axes[0, 2], probe.pixel_size_m, probe.shape)
        iterations = np.arange(1, len(result.errors) + 1)
        axes[1, 0].semilogy(iterations, np.maximum(result.errors[:, 0], 1e-12), label="fourier error of the engine")
        axes[1, 0].set(xlabel="iteration", ylabel="photons", title="engine's error")
        if np.isfinite(result.misfit[:, 1]).any():
            axes[1, 1].semilogy(iterations, result.misfit[:, 1], label="photon misfit")
            axes[1, 1].semilogy(iterations, result.misfit[:, 2], "--", label="Poisson expectation")
            axes[1, 1].semilogy(iterations, result.misfit[:, 0], label="amplitude misfit")
            axes[1, 1].legend(fontsize=8)
        axes[1, 1].set(xlabel="iteration", title="data misfit of probe × object")
        scan_map(axes[1, 2], result.ledger_frames, storage.pixel_size_m)
        figure.suptitle(f"{result.run}: {len(result.errors)} iterations, {result.ledger.get('used', 0)} frames")
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
        return path


def scan_map(axis: Any, frames: NDArray[Any], pixel_m: tuple[float, float] | None) -> None:
    """Where each frame was taken, coloured by what became of it. `frames` (frame, 3): lattice pixels y, x, and code."""
    unit, (dy, dx) = ("µm", np.multiply(pixel_m, 1e6)) if pixel_m else ("object pixels", (1.0, 1.0))
    codes = frames[:, 2].astype(int)
    by_count = sorted(range(len(LEDGER_CODES)), key=lambda code: -np.count_nonzero(codes == code))
    for code in by_count:  # the few lie on top
        y, x = frames[codes == code, :2].T
        if len(y):
            name = f"{LEDGER_CODES[code]} {len(y)}"
            axis.plot(x * dx, y * dy, ".", ms=4, color=LEDGER_COLOURS[code], label=name)
    axis.set(xlabel=f"x ({unit})", ylabel=f"y ({unit})", title=f"scan map: {len(frames)} frames", aspect="equal")
    axis.invert_yaxis()
    if len(frames):
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3, frameon=False, markerscale=2)


def _scale_bar(axis: Any, pixel_m: tuple[float, float] | None, shape: tuple[int, ...]) -> None:
    """A bar of 1, 2 or 5 times a power of ten, about a fifth of the width."""
    target = shape[1] * (pixel_m[1] if pixel_m else 1.0) / 5
    power = 10.0 ** np.floor(np.log10(target))
    length = max(step * power for step in (1, 2, 5) if step * power <= target)
    pixels = length / (pixel_m[1] if pixel_m else 1.0)
    if pixel_m is None:
        label = f"{length:g} px"
    else:
        label = f"{length * 1e6:g} µm" if length >= 1e-6 else f"{length * 1e9:g} nm"
    y, x = shape[0] * 0.95, shape[1] * 0.05
    axis.plot([x, x + pixels], [y, y], color="white", lw=4, solid_capstyle="butt")
    axis.plot([x, x + pixels], [y, y], color="black", lw=2, solid_capstyle="butt")
    axis.text(
        x + pixels / 2,
        y - shape[0] * 0.02,
        label,
        ha="center",
        va="bottom",
        color="black",
        bbox={"facecolor": "white", "alpha": 0.6, "lw": 0, "pad": 1},
    )
