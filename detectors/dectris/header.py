"""What the two formats say of a series, under the names and in the units of `ptystream.scan.header`."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

MAX_COUNT = 1 << 48
MAX_READING = 1e30
MAX_TOLD = 4096
"""Longest text or list that is passed on."""
SET_UP = frozenset({"energy", "distance", "psize", "center", "saturation", "flat", "mask", "count_table"})
"""What fills the configuration."""
STANDARD = SET_UP | {"num_frames", "at_once"}


def number(value: Any) -> float | None:
    """A finite number above 0, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
        return None
    return float(value)


def told_v1(config: Mapping[str, Any], series: Any) -> dict[str, Any]:
    """Metadata from the detector configuration of a stream version 1 header (details basic and all)."""
    told = _common(
        series,
        energy_ev=number(config.get("photon_energy")),
        wavelength=number(config.get("wavelength")),
        distance=number(config.get("detector_distance")),
        pixel=(number(config.get("y_pixel_size")), number(config.get("x_pixel_size"))),
        center=(config.get("beam_center_y"), config.get("beam_center_x")),
        saturation=number(config.get("countrate_correction_count_cutoff")),
    )
    images: Any = config.get("nimages")
    triggers: Any = config.get("ntrigger", 1)
    if _whole(images) and _whole(triggers) and 0 < images * triggers < MAX_COUNT:
        told["num_frames"] = images * triggers
    for key in ("count_time", "frame_time"):
        if (value := number(config.get(key))) is not None:
            told[key] = value
    for key in ("description", "detector_number", "software_version", "trigger_mode"):
        if isinstance(config.get(key), str):
            told[key] = config[key][:MAX_TOLD]
    return told


def told_v2(start: Mapping[str, Any], series: Any) -> dict[str, Any]:
    """Metadata from a stream2 start message, but for its arrays."""
    translation = start.get("detector_translation")
    z = translation[2] if isinstance(translation, (list, tuple)) and len(translation) == 3 else None
    z = abs(z) if isinstance(z, (int, float)) and not isinstance(z, bool) else None
    told = _common(
        series,
        energy_ev=number(start.get("incident_energy")),
        wavelength=number(start.get("incident_wavelength")),
        distance=number(z),
        pixel=(number(start.get("pixel_size_y")), number(start.get("pixel_size_x"))),
        center=(start.get("beam_center_y"), start.get("beam_center_x")),
        saturation=number(start.get("saturation_value")),
    )
    if _whole(images := start.get("number_of_images")) and 0 < images < MAX_COUNT:
        told["num_frames"] = images
    for key in ("count_time", "frame_time"):
        if (value := number(start.get(key))) is not None:
            told[key] = value
    for key in ("series_unique_id", "detector_description", "detector_serial_number"):
        if isinstance(start.get(key), str):
            told[key] = start[key][:MAX_TOLD]
    return told


def usable(pixel_mask: NDArray[Any]) -> NDArray[np.bool_]:
    """Pixels without any bit of a DECTRIS pixel mask (1 gap, 2 dead, 4 and 8 under- and over-responding, 16 noisy …)."""
    return np.asarray(pixel_mask == 0)


def response(flatfield: NDArray[Any]) -> NDArray[np.float64]:
    """What counts are to be divided by: DECTRIS multiplies them with its flat field. 0, which is masked, where that is not
    above 0."""
    factors = np.asarray(flatfield, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.isfinite(factors) & (factors > 0), 1.0 / factors, 0.0)


def of_rates(table: NDArray[Any], count_time_s: float) -> NDArray[np.float64]:
    """A table of count rates, (n, 2), measured and true, both per second, as counts in an exposure."""
    return np.asarray(table, np.float64) * count_time_s


def of_lookup(table: NDArray[Any]) -> NDArray[np.float64]:
    """A lookup table, true counts by measured ones, as the rows of a table (n, 2): those where its slope changes. What it no more
    tells apart at its end, or marks with all ones, is beyond it."""
    end = int(np.flatnonzero(table != table[-1])[-1]) + 2 if (table != table[-1]).any() else len(table)
    if end > 2 and table[-1] in (np.iinfo(np.uint16).max, np.iinfo(np.uint32).max):
        end -= 1
    values = np.asarray(table[:end], np.float64)
    bends = np.flatnonzero(np.diff(values, 2)) + 1
    rows = np.unique(np.concatenate([[0], bends, [len(values) - 1]]))
    return np.stack([rows.astype(np.float64), values[rows]], axis=1)


def appended(raw: Any, told: dict[str, Any]) -> None:
    """Add what the beamline has put into an appendix (or user_data): a JSON object's entries under their own names, where they
    are none that the detector tells, anything else as 'appendix'."""
    if isinstance(raw, (bytes, bytearray, memoryview)):
        raw = bytes(raw[: MAX_TOLD + 1]).decode("utf-8", "replace")
    if isinstance(raw, str):
        if len(raw) > MAX_TOLD:
            return
        with contextlib.suppress(ValueError, RecursionError):
            raw = json.loads(raw)
    if isinstance(raw, dict):
        for key, value in raw.items():
            if isinstance(key, str) and key not in told and key not in STANDARD and _plain(value):
                told[key] = value
    elif raw and _plain(raw):
        told["appendix"] = raw


def readings_in(raw: Any, entries: Mapping[str, tuple[str, float]]) -> dict[str, float] | None:
    """Channel → reading of a JSON object (or map) that the beamline has put behind an image; `entries`: channel → (its entry,
    factor). None where it is no such object, or an entry is no finite number."""
    if isinstance(raw, (bytes, bytearray, memoryview)):
        raw = bytes(raw[: MAX_TOLD + 1])
    if isinstance(raw, (bytes, str)):
        if len(raw) > MAX_TOLD:
            return None
        try:
            raw = json.loads(raw)
        except (ValueError, RecursionError):
            return None
    found = {}
    for channel, (entry, scale) in entries.items():
        value = raw.get(entry) if isinstance(raw, dict) else None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < MAX_READING:
            return None
        found[channel] = float(value) * scale
    return found


def _common(
    series: Any,
    *,
    energy_ev: float | None,
    wavelength: float | None,
    distance: float | None,
    pixel: tuple[float | None, float | None],
    center: tuple[Any, Any],
    saturation: float | None,
) -> dict[str, Any]:
    told: dict[str, Any] = {"series": series}
    if energy_ev is not None:
        told["energy"] = energy_ev / 1000.0
    elif wavelength is not None:
        told["energy"] = 12.3984193 / wavelength
    if distance is not None:
        told["distance"] = distance
    if pixel[0] is not None and pixel[1] is not None:
        told["psize"] = [pixel[0], pixel[1]]
    y, x = (number(c) for c in center)
    if y is not None and x is not None:  # 0 is what a detector says that was never told
        told["center"] = [y, x]
    if saturation is not None:
        told["saturation"] = saturation
    return told


def _whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _plain(value: Any) -> bool:
    return isinstance(value, (bool, int, float)) or (isinstance(value, str) and len(value) <= MAX_TOLD)
