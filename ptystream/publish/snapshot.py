"""What viewers see: one whole state of a run as a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Image:
    """A probe or an object, with what is needed to draw it to scale."""

    data: NDArray[np.complexfloating[Any, Any]]
    """Shape (layer, y, x), as the engine holds it: no phase ramp removed."""
    pixel_size_m: tuple[float, float] | None
    """(y, x); None where only object pixels are known."""
    offset: tuple[int, int]
    """Lattice coordinates of data[:, 0, 0]; physical zero is lattice (0, 0)."""
    ramp: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Fitted constants: phase = a + b·row + c·column (radians, radians per pixel of the array). For display only;
    fitted by the publisher. Each slice of a thick object has its share of what is fitted to all of them together."""
    depths_m: tuple[float, ...] = ()
    """How deep each slice of a thick object lies below its first one, metres: the layers are then the slices of the first mode,
    those of the next, …; empty: layers are modes."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One run at one moment."""

    run: str
    number: int
    """Counts the snapshots of this run, from 0."""
    created_ns: int
    """When it was copied out of the engine (`time.time_ns()`)."""
    engine: str
    iteration: int
    """Iterations of all engines so far."""
    state: str
    """'waiting', 'running', 'paused', 'finished', 'failed'."""
    probe: Mapping[str, Image]
    object: Mapping[str, Image]
    coverage: Mapping[str, NDArray[np.float32]]
    """Illumination of each object pixel relative to its maximum. Shape (y, x)."""
    positions: NDArray[np.float32]
    """Positions used, object pixels on the lattice (y, x). Shape (frame, 2)."""
    errors: NDArray[np.float64]
    """The engine's own errors [fourier, photon, exit], one row per iteration. Shape (iteration, 3)."""
    misfit: NDArray[np.float64]
    """Data misfit [amplitude, photon, Poisson expectation of photon] of probe × object. Shape (iteration, 3)."""
    ledger: Mapping[str, int]
    """Frames by state: expected, received, paired, used, and one entry per reason of not being used."""
    ledger_map: NDArray[np.float32]
    """Every frame whose position is known: [y, x, state code]; codes in `LEDGER_CODES`. Shape (frame, 3)."""
    newest_frame_ns: int | None
    """Arrival of the newest frame that this picture contains."""
    rates: Mapping[str, float] = field(default_factory=dict)
    """frames_per_second, iterations_per_second, latency_seconds …"""
    series: str | None = None
    """Name of the series that the scan belongs to."""
    angle: float | None = None
    """Angle of the sample, degrees."""
    started_ns: int = 0
    """When its run began (`time.time_ns()`): of several runs of a session the newest has the largest; 0: not known."""
    scans: tuple[str, ...] = ()
    """Labels of the scans that are reconstructed together."""
    quality: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What was measured of its quality, plain values by figure and name (`measured.FIGURES`); a figure that was not measured yet
    is not there."""


LEDGER_CODES = ("received", "paired", "used", "excluded", "missing", "interpolated")
"""Meaning of the third column of `Snapshot.ledger_map`, by position."""
