"""Where a reconstruction starts: optics, what is compared, and the quantities, from parameters and storages.

Errors name the parameter of the page.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.model.electrons import electron_wavelength
from ptystream.parallel import ALONE, Ranks
from ptystream.params.course import varies
from ptystream.reconstruction import PROBE, Stack, Storage
from ptystream.scan.block import FrameStore
from ptystream.spread import mine
from ptystream.storage.pypty import unit

from ..backend import Backend
from .beam import FIRST, as_bright_as_given, subscans
from .detector import Detector
from .first import first_probe, lens_functions
from .objective import Objective
from .optics import ANGSTROM, Optics
from .patterns import Patterns
from .together import of_rank_0, rows_of

BEAM = (
    "probe",
    "mean_pattern",
    "estimate_aperture_based_on_binary",
    "extra_probe_defocus",
    "aberrations",
    "beam_ctf",
    "defocus_spread_modes",
    "n_hermite_probe_modes",
    "mc_n_modes",
)
"""Parameters of which any makes the probe the page's to say; otherwise it is the scan's illumination."""


COPIES = 6
"""Arrays as large as the object that a step needs at least: it, its gradient, a direction, and the same where a trial leads."""


def stack_of(p: Any, storage: Storage, on: Backend, kind: np.dtype[Any], first: NDArray[np.int64] | None = None) -> Stack:
    """An object as `num_slices` slices, each the root of it: together they are what it was; or the page's `obj`, whose first
    pixel lies at `first` on the lattice, continued by 1: all of it, also where no frame has seen it yet. Raises `ValueError`."""
    if isinstance(storage, Stack):
        storage.data = on.put(np.ascontiguousarray(storage.data, kind))
        return storage
    offset = storage.offset
    if p.obj is None and (need := COPIES * int(p.num_slices) * storage.data.size * kind.itemsize) > on.free():
        y, x = storage.shape
        raise ValueError(
            f"num_slices: {p.num_slices} slices of {y} × {x} pixels need {need >> 20} MiB: that is more than there is"
        )
    if p.obj is not None:
        data, offset = _given_object(p.obj, storage, first)
        depth = int(p.obj.shape[2])
    else:
        depth, whole = int(p.num_slices), np.asarray(storage.data, np.complex128)
        root = np.abs(whole) ** (1 / depth) * np.exp(1j * np.angle(whole) / depth)
        data = np.repeat(root, depth, axis=0)
    made = Stack(on.put(data.astype(kind)), storage.pixel_size_m, offset, depth=depth, distances_m=distances(p, depth))
    made.energy_kev = storage.energy_kev
    return made


def _given_object(
    given: NDArray[Any], storage: Storage, first: NDArray[np.int64] | None
) -> tuple[NDArray[np.complex128], tuple[int, int]]:
    """(layers × slices, y, x) that hold the storage's pixels and those of `given`, and the offset of the first of them."""
    if given.ndim != 4 or not np.isfinite(given).all():
        raise ValueError(f"obj: shape {given.shape}: must be finite and (y, x, slice, mode)")
    height, width, depth, modes = given.shape
    y, x = storage.offset if first is None else (int(n) for n in first)
    low = min(y, storage.offset[0]), min(x, storage.offset[1])
    high = max(y + height, storage.offset[0] + storage.shape[0]), max(x + width, storage.offset[1] + storage.shape[1])
    whole = np.ones((modes, depth, high[0] - low[0], high[1] - low[1]), complex)
    y, x = y - low[0], x - low[1]
    whole[:, :, y : y + height, x : x + width] = given.transpose(3, 2, 0, 1)
    return whole.reshape(modes * depth, *whole.shape[2:]), low


def waves_of(
    p: Any, held: Any, patterns: Patterns, rows: NDArray[np.int64], stack: Stack, store: FrameStore, ranks: Ranks = ALONE
) -> Any:
    """The first probe (subscan, mode, y, x) on the device: the page's where it says anything of it, from the first of the frames
    in `rows`, which are like those of `store`; otherwise the scan's, (mode, y, x), for every subscan. Raises `ValueError`."""
    on = patterns.on
    if p.masks is None and not any(getattr(p, name) is not None and np.any(getattr(p, name) != 0) for name in BEAM):
        return on.xp.repeat(held[None], subscans(p), axis=0)
    first = rows[patterns.pods.address[rows, 0, PROBE] >= 0][:FIRST]
    batches = patterns.batches(mine(ranks, first), stack)
    seen = [tuple(map(on.get, batch.measured())) for batch in batches]
    shape = patterns.shape(store) if p.masks is None else (len(p.masks),)
    none = np.zeros((0, *shape), patterns.real)
    frames = np.concatenate([none, *(photons for photons, _ in seen)])
    good = np.concatenate([none, *(np.broadcast_to(valid, photons.shape) for photons, valid in seen)])
    plain = p.model_copy(update={"data_multiplier": 1.0})  # `measured` has multiplied them
    made = first_probe(plain, patterns.optics, frames, good, patterns.pods.index[rows_of(batches)], total=ranks.total)
    if as_bright_as_given(p):  # for an unnormalised transform and a mean over modes
        made = made / unit(p.probe.shape[:2], (p.probe.shape[2] if p.probe.ndim > 2 else 1) * stack.layers)
    return on.put(of_rank_0(ranks, made).astype(held.dtype))


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
        bin=int(p.upsample_pattern),
    )


def objective_of(p: Any, patterns: Patterns, store: FrameStore) -> Objective:
    """For frames like those of `store`. Raises `ValueError`."""
    on, real = patterns.on, patterns.real
    pad = 0 if p.pad_zeros or p.masks is not None else p.data_pad // p.upsample_pattern
    detector = Detector.of(on, patterns.optics, patterns.shape(store), p.upsample_pattern, pad)
    masks = None if p.masks is None else on.put(np.fft.ifftshift(p.masks, axes=(1, 2)).astype(real))
    lenses = None if p.aberration_marker is None else on.put(lens_functions(p, patterns.optics).astype(real))
    spectral = p.allow_subPixel_shift or _refined(p.update_probe_pos) or p.tilt_mode in (2, 4)
    spectral = spectral or lenses is not None or p.phase_plate_in_h5 is not None
    return Objective(on, patterns.optics, detector, p.algorithm, p.poisson_floor, lenses, masks, spectral)


def quantities(
    p: Any, waves: Any, stack: Stack, index: NDArray[np.int64], objective: Objective, real: np.dtype[Any]
) -> dict[str, Any]:
    """What is or can be refined, as of `Objective.evaluate`. `waves`: (subscan, mode, y, x), on the device; `index`: the number
    of the measurement that each row is, which may have come in any order.

    Raises `ValueError`.
    """
    on, xp, rows = objective.on, objective.on.xp, len(index)
    found = {"object": slices_of(stack), "probe": waves.copy(), "positions": xp.zeros((rows, 2), real)}
    if p.aberration_marker is not None:
        given = np.atleast_2d(np.asarray(p.aberrations_array, float))
        if np.max(p.aberration_marker) >= len(given):
            remedy = f"aberrations_array has {len(given)} lines"
            raise ValueError(f"aberration_marker: {int(np.max(p.aberration_marker))}: {remedy}")
        found["aberrations"] = on.put(given.astype(real))
    if np.any(p.tilts) or _refined(p.update_tilts):
        found["tilts"] = _tilts(p, index, on, real)
    if p.beam_current is not None or _refined(p.update_beam_current):
        found["current"] = on.put(_currents(p.beam_current, index).astype(real))
    if (background := _background(p, objective, real)) is not None:
        found["background"] = background
    return found


def grown(p: Any, quantities: Mapping[str, Any], index: NDArray[np.int64], on: Backend) -> dict[str, Any]:
    """The quantities that frames have of their own, with as many rows as there are now; `index` as of `quantities`."""
    found: dict[str, Any] = {}
    for name in ("positions", "current", "tilts"):
        held = quantities.get(name)
        if held is None or len(held) >= len(index) or (name == "tilts" and len(np.atleast_2d(p.tilts)) == 1):
            continue
        new = index[len(held) :]
        if name == "current":
            more = _currents(p.beam_current, new)
        else:
            more = _lines(p.tilts, new) if name == "tilts" else np.zeros((len(new), 2))
        found[name] = on.xp.concatenate([held, on.put(more.astype(held.dtype))])
    return found


def slices_of(stack: Stack) -> Any:
    """The storage's object as (mode, slice, y, x)."""
    return stack.data.reshape(stack.layers, stack.depth, *stack.shape)


def _refined(course: Any) -> bool:
    """Whether it may be in some epoch."""
    return varies(course) or bool(course)


def _tilts(p: Any, index: NDArray[np.int64], on: Backend, real: np.dtype[Any]) -> Any:
    given = np.atleast_2d(np.asarray(p.tilts, float))
    if given.ndim != 2 or given.shape[1] != 6:
        raise ValueError(f"tilts: shape {np.shape(p.tilts)}: must be (measurement, 6), or one line for all")
    return on.put((given if len(given) == 1 else _lines(given, index)).astype(real))


def _lines(given: Any, index: Any) -> Any:
    lines = np.atleast_2d(np.asarray(given, float))
    return lines[np.minimum(index, len(lines) - 1)]


def _currents(given: Any, index: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of measurements of these numbers; 1 where none is given."""
    found = np.ones(len(index))
    if given is not None:
        held = np.asarray(given, float).ravel()
        known = index < len(held)
        found[known] = held[index[known]]
    return found


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
