"""What parameters of the page must be beside their types: in each epoch, and together."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ptystream.params.course import varies

from ..losses import COMPRESSED
from .setup import MOST_MODES

log = logging.getLogger(__name__)


def sequence(value: Any) -> str | None:
    """What is wrong with the measurements of an epoch; None: nothing."""
    if value is None:
        return None
    given = np.asarray(value) if isinstance(value, list | tuple | range | np.ndarray) else np.zeros(0)
    if given.ndim != 1 or not given.size or given.dtype.kind not in "iu" or (given < 0).any():
        return "must be a list of the numbers of measurements, 0 or more, one at least, or None for all of them"
    return None


def loss_weight(value: Any) -> str | None:
    """What is wrong with the weight of the data."""
    if value in ("mean", "mean_full") or (isinstance(value, int | float) and 0 < value < math.inf):
        return None
    return "must be a number above 0, 'mean' or 'mean_full'"


def window(value: Any) -> str | None:
    """What is wrong with a window on the probe."""
    if value is None:
        return None
    try:
        given = np.asarray(value, float)
    except (TypeError, ValueError):
        given = np.zeros(0)
    pair = given.shape == (2,) and 0 <= given[0] <= given[1]
    if (pair or given.ndim == 2) and np.isfinite(given).all():
        return None
    return "must be [inner, outer], 0 <= inner <= outer, or a penalty (y, x) of finite numbers"


def fancy_sigma(value: Any) -> str | None:
    """What is wrong with the width of atoms."""

    def width(part: Any) -> bool:
        try:
            return not isinstance(part, bool) and 0 < float(part) < math.inf
        except (TypeError, ValueError):
            return False

    def pair(part: Any) -> bool:
        return part is None or (isinstance(part, list | tuple) and len(part) == 2 and all(map(width, part)))

    if value is None or width(value) or (isinstance(value, list | tuple) and len(value) == 2 and all(map(pair, value))):
        return None
    return "must be a number above 0, or ((sharpen, blur), (sharpen, blur)) of phase and absorption, either None"


CHECKS: Mapping[str, Callable[[Any], str | None]] = {
    "sequence": sequence,
    "loss_weight": loss_weight,
    "window": window,
    "fancy_sigma": fancy_sigma,
}
"""Parameter that is a course → what is wrong with a value of it."""

SCANNED = tuple(
    f"{axis}_reg_weight_{what}" for axis in ("fast_axis", "slow_axis", "deformation") for what in ("positions", "tilts")
)
"""Weights of terms that need to know which points make a line."""


FINITE = (
    *("slice_distances", "defocus_array", "tilts", "beam_current", "static_background", "aberrations_array", "aberrations"),
    *("defocus_spread_modes", "mean_pattern", "probe_constraint_mask", "aperture_mask"),
)
"""Arrays that are nonsense with a number in them that is none."""
OTHER_MODES = ("defocus_spread_modes", "n_hermite_probe_modes")


def arrays(p: Any) -> list[str]:
    """Faults of what single arrays hold."""
    given = {name: getattr(p, name) for name in FINITE if getattr(p, name) is not None}
    faults = [f"{name}: must be finite numbers" for name, held in given.items() if not np.isfinite(held).all()]
    if p.beam_current is not None and not np.any(p.beam_current):
        faults.append("beam_current: is 0 everywhere")
    if isinstance(p.probe, np.ndarray) and not np.any(p.probe):
        faults.append("probe: is 0 everywhere")
    if not isinstance(p.static_background, np.ndarray) and (p.static_background or 0) < 0:
        faults.append("static_background: must be 0 or more photons, or an array of roots")
    if p.defocus_spread_modes is not None and np.size(p.defocus_spread_modes) > MOST_MODES:
        faults.append(f"defocus_spread_modes: {np.size(p.defocus_spread_modes)} modes: must be {MOST_MODES} or fewer")
    for name in ("probe_marker", "aberration_marker"):
        marks = getattr(p, name)
        if marks is not None and marks.size and int(marks.max()) >= marks.size:
            faults.append(f"{name}: {int(marks.max())}: counts from 0 the subscans, of which there are fewer than measurements")
    last = -1 if p.probe_marker is None or not p.probe_marker.size else int(p.probe_marker.max())
    there = p.probe.shape[3] if isinstance(p.probe, np.ndarray) and p.probe.ndim == 4 else 1
    if 1 < there <= last:
        faults.append(f"probe_marker: {last}: probe has {there} subscans, counted from 0")
    return faults + incoherent(p)


def incoherent(p: Any) -> list[str]:
    """Faults of what makes a beam partly coherent."""
    widths = [name for name in ("focal_spread", "spatial_coh_x_A", "spatial_coh_y_A") if getattr(p, name)]
    if p.mc_n_modes is None:
        others = [name for name in ("spatial_coh_xy", "n_mc_samples") if getattr(p, name) != type(p).model_fields[name].default]
        return [f"{name}: needs mc_n_modes" for name in widths + others]
    faults = [f"mc_n_modes: {name} gives the probe its modes" for name in OTHER_MODES if getattr(p, name) is not None]
    if not widths:
        faults.append("mc_n_modes: needs focal_spread, spatial_coh_x_A or spatial_coh_y_A")
    if p.spatial_coh_xy and not (p.spatial_coh_x_A and p.spatial_coh_y_A):
        faults.append("spatial_coh_xy: needs spatial_coh_x_A and spatial_coh_y_A")
    if p.mc_n_modes > p.n_mc_samples:
        faults.append(f"mc_n_modes: {p.mc_n_modes}: must be n_mc_samples, {p.n_mc_samples}, or fewer")
    return faults


def ever(given: Any) -> bool:
    """Whether a course may be anything but 0 in some epoch."""
    return varies(given) or bool(given)


def lonely(p: Any) -> list[str]:
    """Faults of parameters that would do nothing without others; that nothing is there to be refined is warned of."""
    faults = [f"{name}: needs scan_size" for name in SCANNED if ever(getattr(p, name)) and not p.scan_size]
    if (p.masks is not None) != (p.algorithm in COMPRESSED):
        faults.append(f"algorithm: 'masks' go with {', '.join(COMPRESSED)}, and these with 'masks'")
    elif p.masks is not None and (p.masks.dtype.kind == "c" or not np.isfinite(p.masks).all()):
        faults.append("masks: must be finite real numbers")
    elif p.masks is not None and p.algorithm != "lsq_compressed" and (p.masks < 0).any():
        faults.append("masks: below 0 goes with lsq_compressed alone: a signal below 0 has no root and no logarithm")
    if ever(p.window_weight) and p.window is None:
        faults.append("window_weight: needs window")
    if ever(p.probe_reg_constraint_weight) and p.probe_constraint_mask is None and p.aperture_mask is None:
        faults.append("probe_reg_constraint_weight: needs probe_constraint_mask, or aperture_mask")
    if p.data_simulation_flag and not p.output_folder:
        faults.append("data_simulation_flag: needs output_folder, where the patterns are written")
    if ever(p.update_aberrations_array) and p.aberration_marker is None:
        log.warning("update_aberrations_array: there is nothing to refine without aberration_marker")
    if ever(p.update_static_background) and not isinstance(p.static_background, np.ndarray) and not p.static_background:
        log.warning("update_static_background: there is nothing to refine: give static_background, photons above 0")
    return faults
