"""Where a reconstruction starts: optics, what is compared, and the quantities, from parameters and storages.

Errors name the parameter of the page.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.model.electrons import electron_wavelength
from ptystream.params.course import varies
from ptystream.reconstruction import Stack, Storage
from ptystream.scan.block import FrameStore
from ptystream.storage.pypty import unit

from ..backend import Backend
from .beam import FIRST
from .detector import Detector
from .first import first_probe, lens_functions
from .losses import COMPRESSED
from .objective import Objective
from .optics import ANGSTROM, Optics
from .patterns import Patterns

BEAM = (
    "probe",
    "mean_pattern",
    "estimate_aperture_based_on_binary",
    "extra_probe_defocus",
    "aberrations",
    "beam_ctf",
    "defocus_spread_modes",
    "n_hermite_probe_modes",
)
"""Parameters of which any makes the probe the page's to say; otherwise it is the scan's illumination."""


def stack_of(p: Any, storage: Storage, on: Backend, kind: np.dtype[Any], first: NDArray[np.int64] | None = None) -> Stack:
    """An object as `num_slices` slices, each the root of it: together they are what it was; or the page's `obj`, whose first
    pixel lies at `first` on the lattice, continued by 1. Raises `ValueError`."""
    if isinstance(storage, Stack):
        storage.data = on.put(np.ascontiguousarray(storage.data, kind))
        return storage
    if p.obj is not None:
        data, depth = _given_object(p.obj, storage, first), int(p.obj.shape[2])
    else:
        depth, whole = int(p.num_slices), np.asarray(storage.data, np.complex128)
        root = np.abs(whole) ** (1 / depth) * np.exp(1j * np.angle(whole) / depth)
        data = np.repeat(root, depth, axis=0)
    made = Stack(on.put(data.astype(kind)), storage.pixel_size_m, storage.offset, depth=depth, distances_m=distances(p, depth))
    made.energy_kev = storage.energy_kev
    return made


def _given_object(given: NDArray[Any], storage: Storage, first: NDArray[np.int64] | None) -> NDArray[np.complex128]:
    if given.ndim != 4 or not np.isfinite(given).all():
        raise ValueError(f"obj: shape {given.shape}: must be finite and (y, x, slice, mode)")
    height, width, depth, modes = given.shape
    y, x = (0, 0) if first is None else (int(a) - b for a, b in zip(first, storage.offset, strict=True))
    whole = np.ones((modes, depth, *storage.shape), complex)
    low = max(y, 0), max(x, 0)
    high = min(y + height, storage.shape[0]), min(x + width, storage.shape[1])
    if high[0] > low[0] and high[1] > low[1]:
        part = given[low[0] - y : high[0] - y, low[1] - x : high[1] - x]
        whole[:, :, low[0] : high[0], low[1] : high[1]] = part.transpose(3, 2, 0, 1)
    return whole.reshape(modes * depth, *storage.shape)


def waves_of(p: Any, held: Any, patterns: Patterns, rows: NDArray[np.int64], stack: Stack) -> Any:
    """The first probe (subscan, mode, y, x) on the device: the page's where it says anything of it, from the first of the frames
    in `rows`; otherwise the scan's, (mode, y, x), for every subscan. Raises `ValueError`."""
    on = patterns.on
    if p.masks is None and not any(getattr(p, name) is not None and np.any(getattr(p, name) != 0) for name in BEAM):
        return on.xp.repeat(held[None], subscans(p), axis=0)
    seen: list[tuple[Any, Any]] = []
    taken: list[NDArray[np.int64]] = []
    for batch in patterns.batches(rows, stack):
        photons, valid = batch.measured()
        seen.append((on.get(photons), np.broadcast_to(on.get(valid), photons.shape)))
        taken.append(batch.rows)
        if sum(map(len, taken)) >= FIRST:
            break
    frames, good = (np.concatenate([pair[k] for pair in seen]) if seen else None for k in (0, 1))
    index = patterns.pods.index[np.concatenate(taken)] if taken else None
    plain = p.model_copy(update={"data_multiplier": 1.0})  # `measured` has multiplied them
    made = first_probe(plain, patterns.optics, frames, good, index)
    if p.skip_preprocessing and p.probe is not None:  # taken as it is: of an unnormalised transform and a mean over modes
        made = made / unit(made.shape, made.shape[1] * stack.layers)
    return on.put(made.astype(held.dtype))


def subscans(p: Any) -> int:
    """Probes that there are."""
    return 1 if p.probe_marker is None else int(np.max(p.probe_marker)) + 1


def distances(p: Any, depth: int) -> tuple[float, ...]:
    """From each slice to the next, metres. Raises `ValueError`."""
    given = np.asarray(p.slice_distances, float).ravel() * ANGSTROM
    if len(given) not in (1, depth - 1, depth):
        raise ValueError(f"slice_distances: {len(given)} of them for {depth} slices: must be 1 or {max(depth - 1, 1)}")
    return tuple(np.resize(given, depth - 1).tolist()) if depth > 1 else ()


def optics_of(
    p: Any, shape: tuple[int, int], stack: Stack, on: Backend, real: np.dtype[Any], wavelength_m: float | None = None
) -> Optics:
    """For waves of this shape. `wavelength_m` None: that of electrons of `acc_voltage`."""
    return Optics.of(
        shape,
        (p.pixel_size_y_A * ANGSTROM, p.pixel_size_x_A * ANGSTROM),
        electron_wavelength(p.acc_voltage) if wavelength_m is None else wavelength_m,
        stack.distances_m,
        cutoff=p.damping_cutoff_multislice,
        real=real,
        put=on.put,
        near=p.recon_type == "near_field",
        spherical_m=p.Cs * ANGSTROM,
        spread=p.alpha_near_field,
    )


def objective_of(p: Any, patterns: Patterns, store: FrameStore) -> Objective:
    """For frames like those of `store`. Raises `ValueError`."""
    on, real = patterns.on, patterns.real
    if (p.masks is not None) != (p.algorithm in COMPRESSED):
        raise ValueError(f"algorithm: {p.algorithm}: 'masks' go with {', '.join(COMPRESSED)}, and these with 'masks'")
    pad = 0 if p.pad_zeros or p.masks is not None else p.data_pad // p.upsample_pattern
    detector = Detector.of(on, patterns.optics, patterns.shape(store), p.upsample_pattern, pad)
    masks = None if p.masks is None else on.put(np.fft.ifftshift(p.masks, axes=(1, 2)).astype(real))
    lenses = None if p.aberration_marker is None else on.put(lens_functions(p, patterns.optics).astype(real))
    spectral = p.allow_subPixel_shift or _refined(p.update_probe_pos) or p.tilt_mode in (2, 4)
    spectral = spectral or lenses is not None or p.phase_plate_in_h5 is not None
    return Objective(on, patterns.optics, detector, p.algorithm, p.poisson_floor, lenses, masks, spectral)


def quantities(p: Any, waves: Any, stack: Stack, rows: int, objective: Objective, real: np.dtype[Any]) -> dict[str, Any]:
    """What is or can be refined, as of `Objective.evaluate`. `waves`: (subscan, mode, y, x), on the device.

    Raises `ValueError`.
    """
    on, xp = objective.on, objective.on.xp
    found = {"object": slices_of(stack), "probe": waves.copy(), "positions": xp.zeros((rows, 2), real)}
    if p.aberration_marker is not None:
        given = np.atleast_2d(np.asarray(p.aberrations_array, float))
        if np.max(p.aberration_marker) >= len(given):
            remedy = f"aberrations_array has {len(given)} lines"
            raise ValueError(f"aberration_marker: {int(np.max(p.aberration_marker))}: {remedy}")
        found["aberrations"] = on.put(given.astype(real))
    if np.any(p.tilts) or _refined(p.update_tilts):
        found["tilts"] = _tilts(p, rows, on, real)
    if p.beam_current is not None or _refined(p.update_beam_current):
        given = np.ones(rows) if p.beam_current is None else np.asarray(p.beam_current, float).ravel()
        found["current"] = on.put(np.concatenate([given[:rows], np.ones(max(rows - len(given), 0))]).astype(real))
    if (background := _background(p, objective, real)) is not None:
        found["background"] = background
    return found


def grown(p: Any, quantities: Mapping[str, Any], rows: int, on: Backend) -> dict[str, Any]:
    """The quantities that frames have of their own, with as many rows as there are now."""
    found: dict[str, Any] = {}
    current = None if p.beam_current is None else np.asarray(p.beam_current, float).ravel()
    for name in ("positions", "current", "tilts"):
        held = quantities.get(name)
        if held is None or len(held) >= rows or (name == "tilts" and len(held) == 1):
            continue
        more = np.zeros((rows - len(held), *held.shape[1:])) if name != "current" else np.ones(rows - len(held))
        if name == "current" and current is not None:
            known = current[len(held) : rows]
            more[: len(known)] = known
        if name == "tilts":
            more[:] = _lines(p.tilts, np.arange(len(held), rows))
        found[name] = on.xp.concatenate([held, on.put(more.astype(held.dtype))])
    return found


def slices_of(stack: Stack) -> Any:
    """The storage's object as (mode, slice, y, x)."""
    return stack.data.reshape(stack.layers, stack.depth, *stack.shape)


def _refined(course: Any) -> bool:
    """Whether it may be in some epoch."""
    return varies(course) or bool(course)


def _tilts(p: Any, rows: int, on: Backend, real: np.dtype[Any]) -> Any:
    given = np.atleast_2d(np.asarray(p.tilts, float))
    if given.ndim != 2 or given.shape[1] != 6:
        raise ValueError(f"tilts: shape {np.shape(p.tilts)}: must be (measurement, 6), or one line for all")
    return on.put((given if len(given) == 1 else _lines(given, np.arange(rows))).astype(real))


def _lines(given: Any, index: Any) -> Any:
    lines = np.atleast_2d(np.asarray(given, float))
    return lines[np.minimum(index, len(lines) - 1)]


def _background(p: Any, objective: Objective, real: np.dtype[Any]) -> Any:
    on, seen = objective.on, objective.detector.seen
    if isinstance(p.static_background, np.ndarray):
        if p.static_background.shape != tuple(seen.shape):
            held, wanted = p.static_background.shape, tuple(seen.shape)
            raise ValueError(f"static_background: shape {held}: must be that of the patterns, {wanted}")
        return on.put(np.fft.ifftshift(p.static_background).astype(real))
    if p.static_background:
        return (on.xp.ones_like(seen) * np.sqrt(p.static_background / float(seen.sum()))).astype(real)
    return None
