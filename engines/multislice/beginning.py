"""Where a reconstruction starts: optics, what is compared, and the quantities, from parameters and storages.

Errors name the parameter of the page.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ptystream.model.electrons import electron_wavelength
from ptystream.params.course import varies
from ptystream.reconstruction import Stack, Storage
from ptystream.scan.block import FrameStore

from ..backend import Backend
from .detector import Detector
from .losses import COMPRESSED
from .objective import Objective
from .optics import ANGSTROM, Optics
from .patterns import Patterns


def stack_of(p: Any, storage: Storage, on: Backend, kind: np.dtype[Any]) -> Stack:
    """An object as `num_slices` slices, each the root of it: together they are what it was."""
    if isinstance(storage, Stack):
        storage.data = on.put(np.ascontiguousarray(storage.data, kind))
        return storage
    depth, whole = int(p.num_slices), np.asarray(storage.data, np.complex128)
    root = np.abs(whole) ** (1 / depth) * np.exp(1j * np.angle(whole) / depth)
    data = on.put(np.repeat(root, depth, axis=0).astype(kind))
    made = Stack(data, storage.pixel_size_m, storage.offset, depth=depth, distances_m=distances(p, depth))
    made.energy_kev = storage.energy_kev
    return made


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
    return Objective(on, patterns.optics, detector, p.algorithm, p.poisson_floor, detectors=masks)


def quantities(p: Any, probe: Any, stack: Stack, rows: int, objective: Objective, real: np.dtype[Any]) -> dict[str, Any]:
    """What is or can be refined, as of `Objective.evaluate`. `probe`: (mode, y, x) on the device. Raises `ValueError`."""
    on, xp = objective.on, objective.on.xp
    waves = probe[None]
    if p.probe_marker is not None:
        waves = xp.repeat(waves, int(np.max(p.probe_marker)) + 1, axis=0)
    found = {"object": slices_of(stack), "probe": waves.copy(), "positions": xp.zeros((rows, 2), real)}
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
