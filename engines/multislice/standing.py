"""The page's parameters as the scan has them: where the detector stands is the scan's to say."""

from __future__ import annotations

from typing import Any

from ptystream.model.geometry import Geometry

from .optics import ANGSTROM


def standing(p: Any, geometry: Geometry | None) -> Any:
    """The parameters with pixel, voltage, padding and upsampling as the scan's geometry has them; as they are where the scan is
    in object pixels. A scan of virtual detectors' signals knows of no padding: it is in the masks."""
    if geometry is None or geometry.pixel_size_m is None:
        return p
    y, x = geometry.pixel_size_m
    known = {
        "pixel_size_y_A": y / ANGSTROM,
        "pixel_size_x_A": x / ANGSTROM,
        "upsample_pattern": geometry.resample,
        "recon_type": "near_field" if geometry.near else "far_field",
    }
    if geometry.signals is None:
        known["data_pad"] = geometry.pad * geometry.resample
    if geometry.voltage_kv is not None:
        known["acc_voltage"] = geometry.voltage_kv
    return p.model_copy(update=known)
