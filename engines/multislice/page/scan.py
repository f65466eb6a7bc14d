"""What of PyPty's page describes the scan: turned into entries of `scans.*`, and positions there and back.

The page counts positions in pixels of the reconstruction, from the first pixel of a view to the first pixel of the view at the
smallest position; we count metres, from physical zero to the middle of a view. What a view's middle is, `view // 2`, is the same
for both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.model.electrons import electron_wavelength
from ptystream.model.geometry import KEV_METRES
from ptystream.params.attached import Attached
from ptystream.params.course import at
from ptystream.params.describing import Entry
from ptystream.params.home import inside

from ..optics import ANGSTROM
from .values import SCANNED, ever

COMPLETE_S = 2.0
"""A file that PyPty is given is complete; one whose format does not tell whether it is closed was left alone for so long."""
DISTANCE_M = 1.0
"""Where the detector is said to be: the page tells the pixel on the sample, and that is what comes of it."""


def described(p: Any, given: set[str], scan: Mapping[str, Any], *, alone: bool) -> list[Entry]:
    """Entries of a scan for the page's parameters that were `given`; `p` is all of them, checked, and `scan` what the scan says
    itself. `alone`: it says nothing, and the page's defaults count too.

    Raises `ValueError`, 'name: value: remedy' of the page.
    """
    names = set(type(p).model_fields) if alone else given
    near, factor = p.recon_type == "near_field", p.upsample_pattern
    if p.data_pad % factor:
        remedy = f"must be a multiple of upsample_pattern, {factor}: the detector's own pixels are padded"
        raise ValueError(f"data_pad: {p.data_pad}: {remedy}")
    frames, setup = _Frames.of(p), _Setup.of(p, scan)
    if alone and not frames.source:
        told = "positions, and probe as an array" if p.data_simulation_flag else "dataset"
        raise ValueError(f"data_path: {p.data_path!r}: there are no measurements: give data_path or {told}")
    if frames.count is not None:
        _as_many(p, frames.count, frames.name)
    made: list[Entry] = []
    if alone:
        made.append(Entry("name", ("name",), "Full"))
    made += frames.entries()
    if {"data_pad", "masks"} & names and p.masks is None:
        made.append(Entry("data_pad", ("pad",), p.data_pad // factor))
    if "upsample_pattern" in names:
        made.append(Entry("upsample_pattern", ("resample",), factor))
    if "recon_type" in names:
        made.append(Entry("recon_type", ("propagation",), "nearfield" if near else "farfield"))
    if "acc_voltage" in names:
        made.append(Entry("acc_voltage", ("data", "acc_voltage"), p.acc_voltage, unless=(("data", "energy"),)))
    if "extra_space_on_side_px" in names:
        made.append(Entry("extra_space_on_side_px", ("margin",), 0 if p.skip_preprocessing else p.extra_space_on_side_px))
    if "data_bin" in names and p.data_bin > 1:
        made.append(Entry("data_bin", ("data", "rebin"), p.data_bin))
    if "data_shift_vector" in names and any(p.data_shift_vector):
        made.append(Entry("data_shift_vector", ("data", "shift"), tuple(p.data_shift_vector)))
    if "flip_ky" in names and p.flip_ky:
        made.append(Entry("flip_ky", ("data", "orientation"), 2))
    if p.masks is not None:
        made += _of_masks(p)
    if not p.use_full_FOV and p.sequence is not None:
        made.append(Entry("use_full_FOV", ("data", "selection"), _ever(p)))
    sizes = [name for name in ("pixel_size_x_A", "pixel_size_y_A") if name in names]
    if sizes:
        made += _lengths(p, sizes[0], frames.side or setup.side, setup)
    return made + _positions(p, frames, setup)


def _as_many(p: Any, count: int, name: str) -> None:
    """Raises `ValueError` where what is given for each measurement is not as many as these."""
    for each, common in (("tilts", True), ("defocus_array", True), *((n, False) for n in OF_EACH)):
        given = getattr(p, each)
        here = None if given is None else len(np.atleast_2d(given) if each == "tilts" else np.ravel(given))
        if here not in (None, count) and not (common and here == 1):
            raise ValueError(f"{each}: {here}: must be as many as the {count} measurements of {name}{', or 1' if common else ''}")
    if p.sequence is not None and (far := max(_ever(p, whole=False), default=0)) >= count:
        raise ValueError(f"sequence: {far}: there are {count} measurements of {name}, counted from 0")
    if p.scan_size is not None and math.prod(p.scan_size) != count and any(ever(getattr(p, term)) for term in SCANNED):
        raise ValueError(f"scan_size: {p.scan_size}: must be the points of the {count} measurements of {name}")


OF_EACH = ("beam_current", "aberration_marker", "probe_marker")
"""Parameters with a value for each measurement."""


@dataclass(frozen=True, slots=True)
class _Setup:
    """What page and scan say together of the sampling."""

    bin: int
    factor: int
    pad: int
    """Pixels of the binned detector on each side."""
    side: int | None
    """Of the crop, in raw pixels, where the scan says it."""
    wavelength_m: float
    near: bool

    @classmethod
    def of(cls, p: Any, scan: Mapping[str, Any]) -> _Setup:
        data = scan.get("data")
        data = data if isinstance(data, Mapping) else {}
        shape, voltage, energy = data.get("shape"), data.get("acc_voltage"), data.get("energy")
        side = min(shape) if isinstance(shape, (list, tuple)) and shape else shape if isinstance(shape, int) else None
        wavelength = electron_wavelength(float(voltage or p.acc_voltage))
        if isinstance(energy, (int, float)) and energy > 0:
            wavelength = KEV_METRES / energy
        near = scan.get("propagation", p.recon_type) in ("nearfield", "near_field")
        padding = 0 if p.masks is not None else p.data_pad // p.upsample_pattern
        factor, pad = int(scan.get("resample") or p.upsample_pattern), int(scan.get("pad") or padding)
        return cls(int(data.get("rebin") or p.data_bin), factor, pad, side, wavelength, near)

    def view(self, side: int) -> int:
        """Side of the model."""
        return (side // self.bin + 2 * self.pad) * self.factor


def _of_masks(p: Any) -> list[Entry]:
    masks = p.masks
    if masks.ndim != 3 or masks.shape[1] != masks.shape[2]:
        raise ValueError(f"masks: shape {masks.shape}: must be (mask, y, x), y and x alike")
    for name in ("data_bin", "data_shift_vector", "flip_ky"):
        if np.any(np.asarray(getattr(p, name)) != np.asarray(type(p).model_fields[name].default)):
            raise ValueError(f"{name}: {getattr(p, name)!r}: data are signals already: bin, shift or flip the `masks`")
    return [Entry("masks", ("data", "signals"), len(masks)), Entry("masks", ("data", "shape"), int(masks.shape[1]), follows=True)]


def _ever(p: Any, *, whole: bool = True) -> list[int]:
    """Measurements that the sequence names in some epoch; `whole`: it may not be None in any."""
    found: set[int] = set()
    for epoch in range(p.epoch_prev, min(p.epoch_max, p.epoch_prev + 10_000)):
        now = at(p.sequence, epoch)
        if now is None and not whole:
            continue
        if now is None:
            raise ValueError(f"use_full_FOV: False: `sequence` is None in epoch {epoch}: all measurements are used; leave it out")
        found.update(np.ravel(now).tolist())
        if now is p.sequence:
            break
    return sorted(found)


def _lengths(p: Any, name: str, side: int | None, setup: _Setup) -> list[Entry]:
    """Distance and detector pixel, such that the pixel on the sample is the page's."""
    y, x = p.pixel_size_y_A * ANGSTROM, p.pixel_size_x_A * ANGSTROM
    if setup.near:
        first = float(abs(np.ravel(p.defocus_array)[0])) * ANGSTROM or ANGSTROM
        scale = setup.factor / setup.bin
        return [
            Entry(name, ("data", "psize"), (y * scale, x * scale)),
            Entry(name, ("data", "distance"), first),
        ]
    if side is None:
        remedy = "the frames' side is not known: give `scans.*.data.psize` and `distance` in its place, or `scans.*.data.shape`"
        raise ValueError(f"{name}: {getattr(p, name)}: {remedy}")
    whole = setup.wavelength_m * DISTANCE_M / ((side // setup.bin + 2 * setup.pad) * setup.bin)
    return [
        Entry(name, ("data", "psize"), (whole / y, whole / x)),
        Entry(name, ("data", "distance"), DISTANCE_M),
    ]


# ---------------------------------------------------------------------- frames


class _Frames:
    """What is known of the measurements."""

    def __init__(self, name: str, source: dict[str, Any], shape: tuple[int, ...], p: Any) -> None:
        self.name, self.source, self._p = name, source, p
        self.side: int | None = None if p.masks is None else int(p.masks.shape[-1])
        self.lead: tuple[int, ...] = ()
        if not source:
            return
        axes = 2 if p.masks is None else 1
        if len(shape) not in (axes + 1, axes + 2):
            frame = "y, x" if axes == 2 else "mask"
            raise ValueError(f"{name}: shape {shape}: must be (measurement, {frame}) or (scan y, scan x, {frame})")
        self.lead = shape[:-axes]
        if axes == 1:
            return
        if shape[-1] != shape[-2]:
            raise ValueError(f"{name}: patterns of {shape[-2:]}: must be square; crop them, or pad them with zeros")
        if p.data_bin > shape[-1]:
            raise ValueError(f"data_bin: {p.data_bin}: patterns have {shape[-1]} pixels on a side")
        if max(map(abs, p.data_shift_vector)) >= shape[-1]:
            raise ValueError(f"data_shift_vector: {p.data_shift_vector}: patterns have {shape[-1]} pixels on a side")
        self.side = shape[-1] - shape[-1] % p.data_bin

    @classmethod
    def of(cls, p: Any) -> _Frames:
        if p.dataset is not None:
            return cls("dataset", {"name": "ArrayScan", "array": p.dataset}, p.dataset.shape, p)
        if not p.data_path:
            count, side = _simulated(p)
            if not count or side < 1:
                return cls("data_path", {}, (), p)
            nothing = Attached(np.broadcast_to(np.ones((), np.uint8), (count, side, side)))
            return cls("positions", {"name": "ArrayScan", "array": nothing}, nothing.shape, p)
        suffix = Path(p.data_path).suffix
        if suffix == ".npy":
            return cls("data_path", {"name": "ArrayScan", "file": p.data_path}, _shape_of_npy(p.data_path), p)
        if suffix in (".h5", ".hdf5"):
            source = {"name": "Hdf5Scan", "file": p.data_path, "frames": "/data", "idle_s": COMPLETE_S}
            return cls("data_path", source, _shape_of_h5(p.data_path), p)
        pickled = "a pickle may run any program when it is read: save the array with numpy.save; " if suffix == ".pkl" else ""
        raise ValueError(f"data_path: {p.data_path!r}: {pickled}must end in .npy, .h5 or .hdf5")

    @property
    def count(self) -> int | None:
        """Measurements."""
        return int(np.prod(self.lead)) if self.lead else None

    def entries(self) -> list[Entry]:
        made = [Entry(self.name, ("data", key), value) for key, value in self.source.items()]
        if self.source and self.side is not None and self._p.masks is None:
            made.append(Entry(self.name, ("data", "shape"), self.side, follows=True))
        return made


def _simulated(p: Any) -> tuple[int, int]:
    """(patterns, their side) that are simulated where there are no measurements; (0, 0) where there is nothing of the kind."""
    given = p.puzzle_positions if p.puzzle_positions is not None else p.positions
    if not p.data_simulation_flag or not isinstance(p.probe, np.ndarray) or p.probe.ndim < 2 or given.ndim != 2:
        return 0, 0
    return len(given), (p.probe.shape[0] // p.upsample_pattern - 2 * (p.data_pad // p.upsample_pattern)) * p.data_bin


def _shape_of_npy(name: str) -> tuple[int, ...]:
    try:
        with open(inside(name), "rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            return tuple(read(file)[0])
    except (OSError, ValueError) as error:
        why = "there is no such file" if isinstance(error, FileNotFoundError) else f"is no .npy file: {error}"
        raise ValueError(f"data_path: {name!r}: {why}") from None


def _shape_of_h5(name: str) -> tuple[int, ...]:
    import h5py

    try:
        with h5py.File(inside(name), "r") as file:
            data = file.get("data")
            if not isinstance(data, h5py.Dataset):
                raise ValueError(f"data_path: {name!r}: has no dataset 'data'")
            return tuple(int(n) for n in data.shape)
    except OSError as error:
        why = "there is no such file" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
        raise ValueError(f"data_path: {name!r}: {why}") from None


# ---------------------------------------------------------------------- positions


def _positions(p: Any, frames: _Frames, setup: _Setup) -> list[Entry]:
    key = "puzzle_positions" if p.puzzle_positions is not None else "positions"
    given = p.puzzle_positions if p.puzzle_positions is not None else p.positions
    known = key == "puzzle_positions" or given.size > 2 or bool(given.any())
    if p.scan_step_A is not None:
        if known:
            raise ValueError(f"scan_step_A: {p.scan_step_A}: `{key}` is given too: leave one of them out")
        size = p.scan_size or (frames.lead if len(frames.lead) == 2 else None)
        if size is None:
            raise ValueError(f"scan_step_A: {p.scan_step_A}: needs `scan_size`")
        raster = {"points": tuple(size), "step": p.scan_step_A * ANGSTROM}
        return [Entry("scan_step_A", ("data", "raster"), raster, unless=ELSEWHERE)]
    if not known and (not frames.source or frames.count is None):
        return []
    if given.ndim != 2 or given.shape[1] != 2 or given.dtype.kind == "c":
        raise ValueError(f"{key}: shape {given.shape}: must be real numbers (measurement, 2), (y, x)")
    if not np.isfinite(given).all():
        raise ValueError(f"{key}: must be finite numbers")
    if frames.count is not None and len(given) not in (1, frames.count):
        remedy = f"must be as many as the {frames.count} measurements of {frames.name}, or 1"
        raise ValueError(f"{key}: {len(given)}: {remedy}")
    if len(given) == 1 and frames.count is not None:
        given = np.repeat(given, frames.count, axis=0)
    side = frames.side or setup.side
    if side is None:
        raise ValueError(f"{key}: the frames' side is not known: give `scans.*.data.positions_theory` in its place")
    view = setup.view(side)
    pixel = p.pixel_size_y_A * ANGSTROM, p.pixel_size_x_A * ANGSTROM
    smallest = given.astype(float)
    if not p.skip_preprocessing:
        used = given if p.use_full_FOV or p.sequence is None else given[_ever(p)]
        smallest = smallest - used.min(axis=0)
    return [Entry(key, ("data", "positions_theory"), to_metres(smallest, pixel, (view, view)), unless=ELSEWHERE)]


ELSEWHERE = (("data", "positions_theory"), ("data", "raster"), ("data", "positions"))
"""Where a scan itself says where its frames are."""


UNDOCUMENTED: Mapping[str, str] = {
    "use_padded_intensity": "use `pad_zeros`: whether what lies beyond the detector counts as measured zeros",
    "edge_slice_thickness": "give all of `slice_distances`, the first one larger",
    "wedge_mu": "use `beta_wedge`, which takes the wedge out of the object after each epoch",
    "probe_mod_reg_weight": "leave it out: use `window` and `probe_constraint_mask` to keep the probe smooth",
    "probe_mod_tol": "leave it out: use `window` and `probe_constraint_mask` to keep the probe smooth",
    "data_simulation_exitwave": "leave it out: `data_simulation_flag` gives the patterns",
}
"""Parameters that PyPty's code reads and its page does not tell, and what to use here; `scan_step_A` is taken."""


def to_metres(pixels: NDArray[np.float64], pixel_m: tuple[float, float], view: tuple[int, int]) -> NDArray[np.float64]:
    """The page's positions (measurement, 2), (y, x), as ours: metres from physical zero to the middle of the view."""
    return np.asarray((np.asarray(pixels, float) + np.array([n // 2 for n in view])) * np.asarray(pixel_m))


def to_pixels(
    metres: NDArray[np.float64], pixel_m: tuple[float, float], view: tuple[int, int], origin: tuple[float, float] = (0.0, 0.0)
) -> NDArray[np.float64]:
    """Our positions (measurement, 2) as the page's. `origin`: lattice coordinates (y, x) of the object's first pixel, which is
    where the page counts from."""
    middle = np.array([n // 2 for n in view])
    return np.asarray(np.asarray(metres, float) / np.asarray(pixel_m) - middle - np.asarray(origin))
