"""The panels of a figure: each draws one thing into one axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.publish.snapshot import LEDGER_CODES, Image, Snapshot
from ptystream.quality import COVERED, fit_ramp, remove_ramp

from .layouts import Layout

LEDGER_COLOURS = ("#5a6675", "#d9a441", "#4cc38a", "#e5534b", "#b06ee0", "#58b7ff")
"""Of the states of a frame, in the order of `LEDGER_CODES`; the web viewer has the same."""
MAX_MODES = 9
"""Probe modes that are drawn."""
MAX_OBJECTS = 4
"""Objects that are drawn."""
FAINT = 0.02
"""Share of the largest amplitude below which a volume's phase is not drawn."""
WEAK = 0.3
"""Radians: phases that reach no further are drawn on a scale with two ends."""
SECTIONS = (("y", "x", "depth"), ("depth", "x", "y"), ("depth", "y", "x"))
"""Axes of a section (vertical, horizontal) and the one across it."""


class Seen:
    """A snapshot and its layout, with what several panels need of one of its objects."""

    def __init__(self, snapshot: Snapshot, layout: Layout, number: int = 0) -> None:
        self.snapshot, self.layout, self.number = snapshot, layout, number

    @cached_property
    def object(self) -> tuple[str, Image] | None:
        """Name and image of the object; None before the first frames."""
        return next(islice(self.snapshot.object.items(), self.number, None), None)

    @cached_property
    def probe(self) -> tuple[str, Image] | None:
        """Name and image of the probe that belongs to the object: of the same name, or the first."""
        probes = self.snapshot.probe
        name = "" if self.object is None else self.object[0]
        return (name, probes[name]) if name in probes else next(iter(probes.items()), None)

    @cached_property
    def flat(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Amplitude over its covered median, and phase without ramp, of the covered part; NaN where no light fell."""
        assert self.object is not None
        name, image = self.object
        data, seen = volume(image)[0].astype(complex), self.snapshot.coverage.get(name)
        weight = np.ones(data.shape) if seen is None else np.asarray(seen, float)
        if not weight.any():
            weight = np.ones(data.shape)
        lit = weight > COVERED * weight.max()
        rows, columns = np.flatnonzero(lit.any(axis=1)), np.flatnonzero(lit.any(axis=0))
        part = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        data, weight, lit = data[part], weight[part], lit[part]
        flat = remove_ramp(data, fit_ramp(data, weight))
        median = float(np.median(np.abs(flat)[lit])) or 1.0
        return np.where(lit, np.abs(flat) / median, np.nan), np.where(lit, np.angle(flat), np.nan)

    def limits(self, amplitude: NDArray[Any]) -> tuple[float, float]:
        """Of the grey scale of an amplitude."""
        low, high = (float(v) for v in np.nanpercentile(amplitude, [0.5, 99.5]))
        if self.layout.weak:
            return low, max(high, low + 1e-6)
        return min(low, 0.95), max(high, 1.05)  # rounding is not contrast

    def spread(self, phase: NDArray[Any]) -> float:
        """Largest phase that the colours tell apart, radians."""
        reach = float(np.nanpercentile(np.abs(phase), 99.0 if self.layout.weak else 99.5))
        return max(reach, 1e-6 if self.layout.weak else 0.05)


def volume(image: Image) -> NDArray[Any]:
    """(layer, y, x) of an image; of one whose layers are volumes, the first."""
    data = np.asarray(image.data)
    return data[0] if data.ndim == 4 else data


def hue_image(wave: NDArray[Any]) -> NDArray[np.float64]:
    """Complex values as colours, (y, x, rgb): hue is phase, brightness is amplitude."""
    from matplotlib.colors import hsv_to_rgb

    size = np.abs(wave)
    value = size / max(float(size.max()), 1e-30)
    hue = (np.angle(wave) / (2 * np.pi)) % 1.0
    return np.asarray(hsv_to_rgb(np.stack([hue, np.full_like(value, 0.85), value], axis=-1)))


# ---------------------------------------------------------------------- pictures


def _amplitude(axis: Any, seen: Seen) -> None:
    if _nothing(axis, seen, "object amplitude"):
        return
    amplitude, _ = seen.flat
    low, high = seen.limits(amplitude)
    _picture(axis, amplitude, f"object amplitude{_which(seen)}", "gray", low, high, "over median")
    _scale_bar(axis, _pixel(seen), amplitude.shape)


def _phase(axis: Any, seen: Seen) -> None:
    if _nothing(axis, seen, "object phase"):
        return
    _, phase = seen.flat
    spread = seen.spread(phase)
    weak = seen.layout.weak or spread < WEAK  # a circle of colours has the same one at both its ends
    colours = "gray" if seen.layout.grey else "viridis" if weak else "twilight"
    _picture(axis, phase, f"object phase{_which(seen)}", colours, -spread, spread, "rad")
    _scale_bar(axis, _pixel(seen), phase.shape)


def _probe(axis: Any, seen: Seen) -> None:
    """All modes in a square, brightness over the strongest's; by hue, or in grey their amplitudes."""
    image = _image_of_probe(axis, seen, "probe")
    if image is None:
        return
    modes = volume(image)[:MAX_MODES]
    side = int(np.ceil(np.sqrt(len(modes))))
    height, width = modes.shape[-2:]
    sheet = np.zeros((-(-len(modes) // side) * height, side * width), complex)
    for k, mode in enumerate(modes):
        sheet[k // side * height :, k % side * width :][:height, :width] = mode
    grey = seen.layout.grey
    axis.imshow(np.abs(sheet) if grey else hue_image(sheet), cmap="gray" if grey else None)
    axis.set_title(f"{'probe amplitude' if grey else 'probe (hue: phase)'}{_whose(seen)}")
    power = (np.abs(volume(image).astype(complex)) ** 2).sum(axis=(1, 2))
    if len(modes) > 1:
        for k in range(len(modes)):
            share = f"{100 * power[k] / max(power.sum(), 1e-30):.1f} %"
            axis.text((k % side + 0.04) * width, (k // side + 0.04) * height, share, color="white", fontsize=8, va="top")
    axis.set_axis_off()
    _scale_bar(axis, image.pixel_size_m, sheet.shape)


def _probe_amplitude(axis: Any, seen: Seen) -> None:
    image = _image_of_probe(axis, seen, "probe amplitude")
    if image is not None:
        amplitude = np.abs(volume(image)[0])
        _picture(
            axis,
            amplitude,
            f"probe amplitude{_whose(seen)}",
            "gray",
            0.0,
            max(float(np.nanpercentile(amplitude, 99.8)), 1e-30),
            "",
        )
        _scale_bar(axis, image.pixel_size_m, amplitude.shape)


def _probe_phase(axis: Any, seen: Seen) -> None:
    """Without its ramp; transparent where there is next to no light."""
    image = _image_of_probe(axis, seen, "probe phase")
    if image is not None:
        wave = volume(image)[0].astype(complex)
        light = np.abs(wave) ** 2
        flat = remove_ramp(wave, fit_ramp(wave, light)) if light.any() else wave
        phase = np.where(light > 1e-3 * light.max(), np.angle(flat), np.nan)
        spread = max(float(np.nanpercentile(np.abs(phase), 99.5)), 0.05) if np.isfinite(phase).any() else 1.0
        _picture(axis, phase, f"probe phase{_whose(seen)}", "gray" if seen.layout.grey else "twilight", -spread, spread, "rad")


def _section(axis: Any, seen: Seen, number: int, *, phase: bool) -> None:
    """A section through the middle of the object, its layers taken as depth."""
    vertical, horizontal, across = SECTIONS[number]
    title = f"{'phase' if phase else 'amplitude'}, middle of {across}"
    if _nothing(axis, seen, title):
        return
    assert seen.object is not None
    title += _which(seen)
    name, image = seen.object
    data, light = volume(image), seen.snapshot.coverage.get(name)
    lit = np.ones(data.shape, bool)
    if light is not None and light.shape == data.shape[1:] and light.any():
        lit &= light > COVERED * light.max()
    data = np.where(lit, data, np.nan)
    part = np.take(data, data.shape[("depth", "y", "x").index(across)] // 2, axis=("depth", "y", "x").index(across))
    colours = "gray" if seen.layout.grey or not phase else "twilight"
    size = np.abs(part)
    faint = size < FAINT * np.nanmax(np.abs(data), initial=0.0)
    shown = np.where(faint, np.nan, np.angle(part)) if phase else size
    low, high = (-np.pi, np.pi) if phase else (0.0, max(float(np.nanpercentile(np.abs(data), 99.5)), 1e-30))
    picture = axis.imshow(shown, cmap=colours, vmin=low, vmax=high, aspect="auto", interpolation="nearest")
    axis.figure.colorbar(picture, ax=axis, shrink=0.8, label="rad" if phase else "")
    axis.set(title=title, xlabel=f"{horizontal} (pixel)", ylabel=f"{vertical} (pixel)")


def _picture(axis: Any, data: NDArray[Any], title: str, colours: str, low: float, high: float, unit: str) -> None:
    shown = axis.imshow(data, cmap=colours, vmin=low, vmax=high)
    axis.set_title(title)
    axis.figure.colorbar(shown, ax=axis, label=unit, shrink=0.8)
    axis.set_axis_off()


def _nothing(axis: Any, seen: Seen, title: str) -> bool:
    """Before the first frames there is nothing to draw."""
    if seen.object is None:
        axis.set_title(f"{title}: no frame yet")
        axis.set_axis_off()
    return seen.object is None


def _image_of_probe(axis: Any, seen: Seen, title: str) -> Image | None:
    if seen.probe is None:
        axis.set_title(f"{title}: no frame yet")
        axis.set_axis_off()
    return None if seen.probe is None else seen.probe[1]


def _which(seen: Seen) -> str:
    """Which object is drawn, where there are several."""
    assert seen.object is not None
    count = len(seen.snapshot.object)
    return f": {seen.object[0]}, {seen.number + 1} of {count}" if count > 1 else ""


def _whose(seen: Seen) -> str:
    """Which probe is drawn, where there are several."""
    assert seen.probe is not None
    return f": {seen.probe[0]}" if len(seen.snapshot.probe) > 1 else ""


def _pixel(seen: Seen) -> tuple[float, float] | None:
    return None if seen.object is None else seen.object[1].pixel_size_m


# ---------------------------------------------------------------------- curves


def _error(axis: Any, seen: Seen) -> None:
    """What each engine works on: photons of the Fourier error on the left, the cost of maximum likelihood on the right. They are
    different quantities, so a run that has both has two scales, and no line from one to the other."""
    from matplotlib.ticker import LogFormatter

    errors = np.asarray(seen.snapshot.errors)
    costs = (errors[:, 0] == 0) & (errors[:, 1] != 0)
    shown = [
        ("photons", "black" if seen.layout.grey else "C0", "-", np.where(costs, np.nan, errors[:, 0])),
        ("cost per pixel", "0.5" if seen.layout.grey else "C1", "--", np.where(costs, errors[:, 1], np.nan)),
    ]
    if costs.all() or not costs.any():
        shown = shown[1:] if len(errors) and costs.all() else shown[:1]
    iterations = np.arange(1, len(errors) + 1)
    for number, (label, colour, line, own) in enumerate(shown):
        scale = axis.twinx() if number else axis
        scale.semilogy(iterations, np.where(np.isnan(own), np.nan, np.maximum(own, 1e-12)), line, color=colour, label=label)
        scale.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(1, 0.4)))
        scale.set_ylabel(label, color=colour if len(shown) > 1 else "black")
    axis.set(xlabel="iteration", title="engine's error")


def _misfit(axis: Any, seen: Seen) -> None:
    misfit = seen.snapshot.misfit
    iterations = np.arange(1, len(misfit) + 1)
    if np.isfinite(misfit[:, 1]).any():
        grey = seen.layout.grey
        axis.semilogy(iterations, misfit[:, 1], "-", color="black" if grey else None, label="photon misfit")
        axis.semilogy(iterations, misfit[:, 2], "--", color="0.3" if grey else None, label="Poisson expectation")
        axis.semilogy(iterations, misfit[:, 0], "-.", color="0.5" if grey else None, label="amplitude misfit")
        axis.legend(fontsize=8)
    axis.set(xlabel="iteration", title="data misfit of probe × object")


def _map(axis: Any, seen: Seen) -> None:
    grey = seen.layout.grey
    scan_map(axis, seen.snapshot.ledger_map, _pixel(seen), marks=("o", "s", ".", "x", "+", "d") if grey else None)


def scan_map(axis: Any, frames: NDArray[Any], pixel_m: tuple[float, float] | None, marks: tuple[str, ...] | None = None) -> None:
    """Where each frame was taken, coloured by what became of it. `frames` (frame, 3): lattice pixels y, x, and code.

    `marks`: signs for the states instead of colours.
    """
    unit, (dy, dx) = ("µm", np.multiply(pixel_m, 1e6)) if pixel_m else ("object pixels", (1.0, 1.0))
    if pixel_m and len(frames) and np.ptp(frames[:, :2] * [dy, dx], axis=0).max() < 1:
        unit, (dy, dx) = "nm", np.multiply(pixel_m, 1e9)
    codes = frames[:, 2].astype(int)
    by_count = sorted(range(len(LEDGER_CODES)), key=lambda code: -np.count_nonzero(codes == code))
    for code in by_count:  # the few lie on top
        y, x = frames[codes == code, :2].T
        if len(y):
            name = f"{LEDGER_CODES[code]} {len(y)}"
            mark, colour = (".", LEDGER_COLOURS[code]) if marks is None else (marks[code], "black")
            axis.plot(x * dx, y * dy, mark, ms=4, color=colour, label=name)
    axis.set(xlabel=f"x ({unit})", ylabel=f"y ({unit})", title=f"scan map: {len(frames)} frames", aspect="equal")
    axis.locator_params(nbins=6)
    axis.invert_yaxis()
    if len(frames):
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0), "borderaxespad": 4.5}  # in letters: of any map's height
        axis.legend(fontsize=8, ncols=3, frameon=False, markerscale=2, **below)


PANELS: Mapping[str, Callable[[Any, Seen], None]] = {
    "amplitude": _amplitude,
    "phase": _phase,
    "probe": _probe,
    "probe amplitude": _probe_amplitude,
    "probe phase": _probe_phase,
    "error": _error,
    "misfit": _misfit,
    "map": _map,
    **{f"section {k + 1}": partial(_section, number=k, phase=False) for k in range(3)},
    **{f"phase {k + 1}": partial(_section, number=k, phase=True) for k in range(3)},
}
OF_ALL = ("error", "misfit", "map")
"""Panels that are the same for every object."""


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
