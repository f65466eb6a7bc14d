"""What a source says of an acquisition when it begins, and how it fills what the configuration leaves out.

`ScanStarted.metadata` may hold anything; of it these keys are known to the house, in the units of the parameter tree:

=========== ============================================================ ======================================
energy      photon energy, keV                                           where `data.energy` is left out
distance    sample to detector, metres                                   where `data.distance` is left out
psize       detector pixel, metres, a number or (y, x)                   where `data.psize` is left out
center      optical axis, raw pixels (y, x)                              where `data.center` is left out
saturation  counts from which on a pixel is invalid in that frame        where `data.saturation` is left out
flat        response to uniform light that counts are to be divided by   where `data.flat` is left out
count_table counts as measured and as they ought to be, (n, 2)           where `data.count_table` is left out
mask        pixels to use (not 0), array (y, x)                          with `data.mask`: a pixel needs both
num_frames  how many frames will come                                    where `data.num_frames` is left out
=========== ============================================================ ======================================

A parameter is left out where the configuration does not name it, or says null. What it does say wins, and a difference of
more than 1 % is told. All others (names, times, identifiers) are kept for the rule that joins acquisitions, and for the log.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.scan.parameters import PtyScanParameters, not_a_count_table

LIMITS = {"energy": (1e-3, 1e4), "distance": (1e-4, 1e3), "psize": (1e-8, 1e-2), "saturation": (1.0, math.inf)}
"""What can be meant, in the units of the tree: what lies outside was told in other units, or is not known there."""
TOLERATED = 0.01
"""Relative difference between configuration and source that is not worth a word."""


@dataclass(frozen=True, slots=True)
class Header:
    """What was told, checked."""

    values: Mapping[str, Any] = field(default_factory=dict)
    """Plain numbers: energy, distance, psize (y, x), center (y, x), saturation."""
    mask: NDArray[np.bool_] | None = None
    """True where a pixel is to be used, (y, x)."""
    flat: NDArray[np.float64] | None = None
    """(y, x)."""
    count_table: NDArray[np.float64] | None = None
    """Shape (n, 2)."""
    refused: Sequence[tuple[str, str]] = ()
    """(key, why) of what was told and cannot be meant."""


def header_of(metadata: Mapping[str, Any]) -> Header:
    """The known keys of `metadata`; never raises."""
    values: dict[str, Any] = {}
    refused: list[tuple[str, str]] = []
    for key in ("energy", "distance", "psize", "center", "saturation"):
        if metadata.get(key) is None:
            continue
        numbers = _numbers(metadata[key])
        pair = key in ("psize", "center")
        low, high = LIMITS.get(key, (-1e6, 1e6))
        if numbers is None or len(numbers) > 1 + pair or (key == "center" and len(numbers) != 2):
            refused.append((key, f"{metadata[key]!r:.60}: is no such number"))
        elif not all(low <= n <= high for n in numbers):
            refused.append((key, f"{metadata[key]!r:.60}: must be {low:g} to {high:g}"))
        else:
            values[key] = [*numbers, *numbers][:2] if pair else numbers[0]
    arrays: dict[str, NDArray[Any] | None] = {}
    for key in ("mask", "flat", "count_table"):
        array = metadata.get(key)
        sound = isinstance(array, np.ndarray) and array.ndim == 2 and array.dtype.kind in "buif"
        arrays[key] = array if sound else None
        if array is not None and not sound:
            refused.append((key, "is no array of real numbers of two axes"))
    mask, flat, table = arrays["mask"], arrays["flat"], arrays["count_table"]
    if table is not None and (wrong := not_a_count_table(table)) is not None:
        refused.append(("count_table", wrong))
        table = None
    return Header(
        values,
        None if mask is None else mask != 0,
        None if flat is None else flat.astype(np.float64),
        None if table is None else table.astype(np.float64),
        tuple(refused),
    )


def completed(
    parameters: PtyScanParameters, header: Header, raw_shape: tuple[int, int]
) -> tuple[PtyScanParameters, dict[str, Any], list[str]]:
    """(parameters with what the header fills, the numbers that it filled, what should be said aloud)."""
    filled: dict[str, Any] = {}
    update: dict[str, Any] = {}
    said = [f"{key}: told as {why}: not used" for key, why in header.refused]
    for key, told in header.values.items():
        own = _given(parameters, key)
        if (key == "center" and parameters.auto_center) or (key == "energy" and parameters.acc_voltage is not None):
            continue
        if own is None:
            value = tuple(told) if isinstance(told, list) else told
            if key == "center" and (wrong := parameters.model_copy(update={key: value}).off_frame(raw_shape)) is not None:
                said.append(f"center: told as {value}: {wrong}: not used")
                continue
            update[key], filled[key] = value, told
        elif not isinstance(own, str) and _differ(own, told, max(raw_shape) if key == "center" else None):
            said.append(f"{key}: the configuration says {own}, the source {told}: the configuration's is used")
    if parameters.shape is None:
        update["shape"] = min(raw_shape)
    flat = header.flat
    if flat is not None and parameters.flat is None:
        if flat.shape == raw_shape:
            update["flat"] = flat
        else:
            said.append(f"flat: told with shape {flat.shape}, frames have {raw_shape}: not used")
    if header.count_table is not None and parameters.count_table is None:
        update["count_table"] = header.count_table
    if header.mask is not None and header.mask.shape != raw_shape:
        said.append(f"mask: told with shape {header.mask.shape}, frames have {raw_shape}: not used")
    return (parameters.model_copy(update=update) if update else parameters), filled, said


def left_out(parameters: PtyScanParameters, key: str) -> bool:
    """Whether the configuration says nothing of a parameter, or null."""
    return _given(parameters, key) is None


def _given(parameters: PtyScanParameters, key: str) -> Any:
    return getattr(parameters, key) if key in parameters.model_fields_set else None


def _numbers(value: Any) -> list[float] | None:
    items = value if isinstance(value, (list, tuple)) else [value]
    if not 0 < len(items) <= 2 or not all(isinstance(n, (int, float)) and not isinstance(n, bool) for n in items):
        return None
    return [float(n) for n in items] if all(math.isfinite(n) for n in items) else None


def _differ(own: Any, told: Any, scale: float | None) -> bool:
    mine, its = (np.broadcast_to(np.asarray(v, float), 2) for v in (own, told))
    return bool((np.abs(mine - its) > TOLERATED * (np.abs(mine) if scale is None else scale)).any())
