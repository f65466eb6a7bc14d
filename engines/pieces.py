"""Pieces of a batch: frames that lie in one tile and see the same layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .tiles import Tile

Key = tuple[int, int]
"""(number of a probe or an object, layer)."""
Seen = tuple[int, tuple[int, ...]]
"""(number of an object, layers)."""


@dataclass(slots=True)
class Piece:
    """Frames of one batch that lie in one tile and see the same layers."""

    tile: Tile
    """Of these frames alone."""
    whole: Tile
    """The tile that they are part of."""
    places: list[int]
    """Where in it."""
    corner: tuple[int, int]
    """Lattice coordinates of the first frame's first object pixel."""
    score: slice
    """Where the errors of its frames go."""
    probe_groups: list[tuple[Key, list[int]]]
    """For each probe layer the pods that see it."""
    object_groups: list[tuple[Key, list[int]]]
    seen: list[tuple[Any, Any]] = field(default_factory=list)
    """Probe views of each pod, as of `Sight.probes`."""
    windows: list[tuple[Any, tuple[int, int], Any, Any]] = field(default_factory=list)
    """What each pod sees of the object, as of `Sight.window`."""
    residual: Any = None
    """r. Shape (pod, frame, y, x)."""


def grouped(tile: Tile, layers: tuple[int, ...]) -> tuple[list[tuple[Key, list[int]]], list[tuple[Key, list[int]]]]:
    """The pods that see each probe layer, and those that see each object layer."""
    probes: dict[Key, list[int]] = {}
    objects: dict[Key, list[int]] = {}
    for number, (pod, layer) in enumerate(zip(tile.pods, layers, strict=True)):
        probes.setdefault((pod.probe, layer), []).append(number)
        objects.setdefault((pod.object, pod.object_layer), []).append(number)
    return list(probes.items()), list(objects.items())


def layers_seen(tile: Tile, pods: Sequence[int]) -> list[Seen]:
    """For each object that these pods see its number and the layers."""
    seen: dict[int, list[int]] = {}
    for number in pods:
        seen.setdefault(tile.pods[number].object, []).append(tile.pods[number].object_layer)
    return [(number, tuple(layers)) for number, layers in seen.items()]
