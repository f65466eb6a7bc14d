"""What a reconstruction says that one frame should have been: the photons of |F(P·O)|², summed over its pods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.model.propagate import Propagator, intensity
from ptystream.model.subpixel import shift
from ptystream.reconstruction import COLUMN, OBJECT, OBJECT_LAYER, PROBE, PROBE_LAYER, ROW, Reconstruction, Stack, Volume

UNTOLD = "only the engine that takes the wave through this sample has its model, and it is not at work"


@dataclass(frozen=True, slots=True)
class Sight:
    """A copy of what one frame sees: its probes and its part of the objects, one of each for a pod."""

    probes: NDArray[np.complexfloating[Any, Any]]
    """Shape (pod, slice, y, x): of a rocking curve the slices of the volume that it sees, otherwise one."""
    objects: NDArray[np.complexfloating[Any, Any]]
    """Shape (pod, slice, y, x)."""
    remainder: NDArray[np.float32]
    """How far each probe is to be shifted, pixels. Shape (pod, 2)."""
    weight: NDArray[np.float32]
    """Factor on the amplitude of each. Shape (pod,)."""
    ways: tuple[Propagator, ...]
    """How each reaches the detector."""


def sight_of(reconstruction: Reconstruction, row: int) -> Sight | None:
    """What the frame of a row of the pod table sees now; None where `blind_because` says why.

    Copies as many pixels as the frame's views have, however large the objects are. Only in the thread that the reconstruction
    belongs to.
    """
    pods, probes, objects = reconstruction.pods, list(reconstruction.probes.values()), list(reconstruction.objects.values())
    address = pods.address[row]
    chosen = np.flatnonzero(address[:, PROBE] >= 0)
    if blind_because(reconstruction, row) is not None:
        return None
    views, windows = [], []
    for pod in address[chosen].tolist():
        probe, seen = probes[pod[PROBE]], objects[pod[OBJECT]]
        height, width = probe.shape
        top, left = pod[ROW] - seen.offset[0], pod[COLUMN] - seen.offset[1]
        of_probe, of_object = slice(pod[PROBE_LAYER], pod[PROBE_LAYER] + 1), slice(pod[OBJECT_LAYER], pod[OBJECT_LAYER] + 1)
        if isinstance(probe, Volume) and isinstance(seen, Volume):
            first = int(pods.depth[row]) - seen.first
            of_probe, of_object = slice(None), slice(first, first + probe.slices)
        views.append(_on_host(probe.data[of_probe]))
        windows.append(_on_host(seen.data[of_object, top : top + height, left : left + width]))
    ways = reconstruction.propagators.get(int(pods.frame[row, 0]), ())
    return Sight(
        np.stack(views),
        np.stack(windows),
        pods.remainder[row, chosen].copy(),
        pods.weight[row, chosen].copy(),
        tuple(ways[k] if k < len(ways) else Propagator() for k in chosen.tolist()),
    )


def blind_because(reconstruction: Reconstruction, row: int) -> str | None:
    """Why the frame of a row has no model here; None: it has one."""
    address, objects = reconstruction.pods.address[row], list(reconstruction.objects.values())
    seen = [objects[n] for n in address[address[:, PROBE] >= 0, OBJECT].tolist()]
    if not seen:
        return "no probe and object see this frame now"
    if any(isinstance(storage, Stack) and storage.depth > 1 for storage in seen):
        return UNTOLD
    return None


def seen_by(reconstruction: Reconstruction, row: int) -> dict[str, str | None]:
    """Names of the first probe and object that a frame sees."""
    address = reconstruction.pods.address[row]
    first = next(iter(address[address[:, PROBE] >= 0].tolist()), None)
    if first is None:
        return {"probe": None, "object": None}
    return {"probe": list(reconstruction.probes)[first[PROBE]], "object": list(reconstruction.objects)[first[OBJECT]]}


def photons(sight: Sight, subpix: str | None = None) -> NDArray[np.float64]:
    """Photons on the detector (y, x), zero frequency at [0, 0]; of a rocking curve (q3 · q1, q2).

    `subpix`: 'linear' or 'fourier', how a probe is shifted by a fraction of a pixel; None: it is not. May be called from any
    thread.
    """
    probes = sight.probes.astype(complex)
    if subpix is not None:
        slices, remainder = (
            probes.reshape(-1, *probes.shape[2:]),
            np.repeat(sight.remainder.astype(float), probes.shape[1], axis=0),
        )
        probes = shift(slices, remainder, subpix).reshape(probes.shape)
    waves = sight.weight.astype(float)[:, None, None, None] * probes * sight.objects
    return np.asarray(sum(intensity(way, wave[None])[0, 0] for way, wave in zip(sight.ways, waves, strict=True)))


def _on_host(array: Any) -> NDArray[Any]:
    """A copy on the host of an array that may lie on a GPU."""
    return np.array(array.get() if hasattr(array, "get") else array)
