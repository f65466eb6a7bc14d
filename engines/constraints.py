"""Constraints on probe and object: supports, clipping, smoothing, centring."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.model.blur import widths
from ptystream.reconstruction import OBJECT, PROBE, Reconstruction

from .backend import Backend
from .tiles import Tile


def support(on: Backend, probe: Any, p: Any) -> Any:
    """The probe (layer, y, x) inside its discs in frequency space and then in real space; may be changed in place."""
    real = probe.real.dtype
    if p.probe_fourier_support is not None:
        inside = disc_of_frequencies(probe.shape[-2:], p.probe_fourier_support, real)
        probe = on.ifft2(on.fft2(probe) * on.put(inside))
    if p.probe_support is not None:
        probe *= on.put(disc(probe.shape[-2:], p.probe_support, real))
    return probe


@lru_cache(maxsize=16)
def disc(shape: tuple[int, int], fraction: float, dtype: np.dtype[Any]) -> NDArray[Any]:
    """1 within a disc about the middle of the frame (y, x) that covers this fraction of its area, 0 outside."""
    height, width = shape
    y, x = np.arange(height)[:, None] - height / 2 + 0.5, np.arange(width)[None] - width / 2 + 0.5
    return (np.pi * (y**2 + x**2) < fraction * height * width).astype(dtype)


@lru_cache(maxsize=16)
def disc_of_frequencies(shape: tuple[int, int], fraction: float, dtype: np.dtype[Any]) -> NDArray[Any]:
    """As `disc`, about frequency 0, which is at [0, 0]."""
    height, width = shape
    y, x = np.fft.fftfreq(height, 1 / height)[:, None], np.fft.fftfreq(width, 1 / width)[None]
    return (np.pi * (y**2 + x**2) < fraction * height * width).astype(dtype)


def smoothed(on: Backend, data: Any, std: float | None, *, along: bool = False) -> Any:
    """The object (layer, y, x) after a Gaussian filter of that standard deviation in pixels; `along`: over layers too."""
    if not std:
        return data
    sigma = widths((std if along else 0, std, std), data.shape)
    parts = (on.ndimage.gaussian_filter(part, sigma) for part in (data.real.copy(), data.imag.copy()))
    return _complex(*parts).astype(data.dtype)


def clip(xp: Any, data: Any, low: float, high: float) -> None:
    """Bring amplitudes into [low, high], in place; phases stay."""
    size = xp.abs(data)
    data *= (xp.clip(size, low, high) / xp.maximum(size, 1e-30)).astype(data.real.dtype)


def center(on: Backend, reconstruction: Reconstruction, tiles: Sequence[Tile], tolerance: float) -> None:
    """Shift probe, object and kept waves together where the probe's centre of mass is further than `tolerance` pixels out.

    An object can be shifted but once: probes that see one in common are shifted as one, by what brings the centre of mass of
    all their light to the middle; so are probes, and objects, that are linear in the energy together.
    """

    def moved(data: Any, by: Any, edge: str) -> Any:
        full = (*[0.0] * (data.ndim - 2), *by)
        parts = (on.ndimage.shift(part, full, mode=edge) for part in (data.real.copy(), data.imag.copy()))
        return _complex(*parts).astype(data.dtype)

    probes, objects = list(reconstruction.probes.values()), list(reconstruction.objects.values())
    for own, seen in _together(reconstruction):
        total, moment = 0.0, np.zeros(2)
        for number in own:
            power = on.get((on.xp.abs(probes[number].data) ** 2).sum(axis=0))
            total += float(power.sum())
            moment += [power.sum(axis=1 - axis) @ (np.arange(n) - n // 2) for axis, n in enumerate(power.shape)]
        if total <= 0 or np.hypot(*moment) < tolerance * total:
            continue
        by = -moment / total
        for number in own:
            probes[number].data = moved(probes[number].data, by, "constant")
        for number in seen:
            objects[number].data = moved(objects[number].data, by, "nearest")
        for tile in tiles:
            for k, pod in enumerate(tile.pods):
                if pod.probe in own and tile.waves is not None:
                    tile.waves[k] = moved(tile.waves[k], by, "constant")


def _together(reconstruction: Reconstruction) -> list[tuple[set[int], set[int]]]:
    """(numbers of probes, numbers of objects) that belong together, each probe in one of them, in the order of the probes."""
    probes, objects = list(reconstruction.probes), list(reconstruction.objects)
    groups: list[tuple[set[int], set[int]]] = [({number}, set()) for number in range(len(probes))]
    address = reconstruction.pods.address
    links = np.unique(address[address[..., PROBE] >= 0][:, [PROBE, OBJECT]], axis=0).tolist()
    parts = [({probe}, {seen}) for probe, seen in links]
    parts += [({probes.index(name) for name in group.names}, set()) for group in reconstruction.probe_dispersion]
    parts += [(set(), {objects.index(name) for name in group.names}) for group in reconstruction.object_dispersion]
    for own, seen in parts:
        joined = [group for group in groups if group[0] & own or group[1] & seen]
        groups = [group for group in groups if group not in joined]
        groups.append((own.union(*(g[0] for g in joined)), seen.union(*(g[1] for g in joined))))
    return sorted((group for group in groups if group[0]), key=lambda group: min(group[0]))


def _complex(real: Any, imaginary: Any) -> Any:
    return real + 1j * imaginary
