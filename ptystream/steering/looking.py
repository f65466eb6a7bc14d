"""Frames for who looks at a session: the ledger of a scan as compact arrays, and one frame with its model and its history."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.model.frame import UNTOLD, Sight, blind_because, photons, seen_by, sight_of
from ptystream.reconstruction import Stack
from ptystream.run import Run
from ptystream.run_state import Scan
from ptystream.scan.records import Record, Records
from ptystream.scan.rocking import upwards
from ptystream.steering.arrays import carried
from ptystream.steering.desk import Refused

MOST_RECORDS = 1_000_000
"""Frames in one answer: 21 bytes each."""
MOST_PIXELS = 1024
"""On a side of a frame that is shown; of more, squares of pixels are summed."""


def scan_of(run: Run | None, label: str) -> tuple[Run, Scan]:
    """A scan of a run by its label; none: its first. Raises `Refused`."""
    if run is None:
        raise Refused("run", None, "no run of this name is under way: of one that is over nothing can be asked any more")
    if not label:
        return run, next(iter(run.scans.values()))
    if label not in run.scans:
        raise Refused("scan", label, f"{run.name} has the scans {', '.join(run.scans)}")
    return run, run.scans[label]


def ledger_of(run: Run, scan: Scan, first: int) -> dict[str, Any]:
    """`MOST_RECORDS` frames from the `first` record on: numbers, states and positions. May be called from any thread."""
    records = scan.buffer.records()
    shown = _part(records, max(0, first))
    counts = np.bincount(records.state, minlength=len(records.names))
    return {
        "run": run.name,
        "scan": scan.label,
        "scans": list(run.scans),
        "records": len(records.index),
        "first": max(0, first),
        "expected": scan.buffer.ledger.expected,
        "states": list(records.names),
        "counts": {name: int(n) for name, n in zip(records.names, counts, strict=True) if n},
        "unit": _unit(scan),
        "pixel_size_m": _pixel(scan),
        "arrays": [
            carried("index", shown.index.astype("<f8")),
            carried("state", shown.state),
            carried("y", shown.position[:, 0].astype("<f4")),
            carried("x", shown.position[:, 1].astype("<f4")),
        ],
    }


class Looked:
    """One frame as it is now, copied out of a run; `told` works out what is to be shown of it, in any thread."""

    def __init__(self, run: Run, scan: Scan, index: int) -> None:
        """Only in the engine's thread. Raises `Refused` for a number of which nothing is known."""
        record = scan.buffer.record(index)
        if record is None:
            raise Refused("frame", index, f"nothing is known of a frame of this number in {scan.label}")
        self._record: Record = record
        self._scan, self._run = scan.label, run.name
        self._unit, self._pixel = _unit(scan), _pixel(scan)
        self._iteration = run.iterations
        self._counts = scan.buffer.counts(record.slot) if record.slot >= 0 and record.prepared else None
        self._sight: Sight | None = None
        self._picture = scan.model.geometry.signals is None
        self._plane = scan.buffer.plane_of(index)
        self._side = scan.model.geometry.shape[0]
        self._own: tuple[NDArray[Any], ...] | None = None
        self._factor, self._taken, self._moved = 1.0, None, None
        self._no_model: str | None = "no probe and object see this frame now"
        self._seen: dict[str, str | None] = {"probe": None, "object": None}
        self._subpix = subpix_of(run)
        slot = scan.buffer.slot_of(index)
        row = None if slot is None else scan.model.row(slot)
        if row is None or run.reconstruction is None:
            return
        if (own := getattr(run.engine, "modelled", None)) is not None:
            self._own = own(row)
        if self._own is not None:
            self._no_model = None
        elif run.engine is None and any(isinstance(storage, Stack) for storage in run.reconstruction.objects.values()):
            self._no_model = UNTOLD
        else:
            self._sight, self._no_model = sight_of(run.reconstruction, row), blind_because(run.reconstruction, row)
        self._seen = seen_by(run.reconstruction, row)
        if (probe := self._seen["probe"]) is not None:
            self._side = run.reconstruction.probes[probe].shape[0]
        self._taken = scan.taken_at(row)
        self._moved = run.reconstruction.pods.moved[row].tolist()
        fits = getattr(run.engine_entry and run.engine_entry.parameters, "floating_intensities", False)
        if fits and run.intensities is not None and row < len(run.intensities):
            self._factor = float(run.intensities[row])

    def told(self) -> dict[str, Any]:
        """What is known of it, its pattern, what the reconstruction makes of it, and how far they are apart."""
        record, arrays, misfit, bins = self._record, [], None, 1
        counts, valid, model = self._compared()
        if counts is not None:
            pattern, bins = self._shown(np.where(valid, counts, 0).astype(np.float32))
            mask = self._shown(valid.astype(np.float32))[0] >= bins**2 - 0.5
            pattern[~mask] = 0
            arrays += [carried("pattern", pattern), carried("mask", mask)]
            if model is not None and model.shape == counts.shape:
                arrays.append(carried("model", self._shown(model)[0]))
                misfit = _misfit(model, counts, valid)
            elif model is not None:
                self._no_model = f"it has {' × '.join(map(str, model.shape))} pixels, and the frame as it is kept has others"
        elif self._no_model is None:
            self._no_model = "the frame is not kept any more"
        return {
            "run": self._run,
            "scan": self._scan,
            "frame": record.index,
            "ledger": {
                "state": record.state,
                "reason": record.state if record.slot >= 0 and record.state not in KNOWN else "",
                "history": self._history(),
                "dose": record.dose,
            },
            "position_m": None if record.position is None or self._unit != "m" else list(record.position),
            "position": None if record.position is None else list(record.position),
            "moved": self._moved,
            "unit": self._unit,
            "pixel_size_m": self._pixel,
            "iteration": self._iteration,
            "bin": bins,
            "side": self._side,
            "misfit": misfit,
            "no_model": self._no_model,
            **self._seen,
            "arrays": arrays,
        }

    def _compared(self) -> tuple[Any, Any, Any]:
        """(counts, which of them are valid, modelled photons) as far as there are any, each (y, x)."""
        if self._own is not None:  # its patterns may be wider than the frame, and multiplied
            model, counts, valid = self._own
            return counts, valid > 0, model.astype(np.float32)
        if self._counts is None:
            return None, None, None
        if self._sight is None:
            return *self._counts, None
        model = (self._factor * photons(self._sight, self._subpix)).astype(np.float32)
        if self._plane is not None:
            model = upwards(model.reshape(-1, *self._counts[0].shape)[self._plane])
        return *self._counts, model

    def _shown(self, frame: NDArray[np.float32]) -> tuple[NDArray[np.float32], int]:
        """As `shown`; signals are no picture: they stay as they are."""
        return shown(frame) if self._picture else (frame, 1)

    def _history(self) -> list[dict[str, Any]]:
        record = self._record
        steps: list[tuple[str, bool, int | None]] = [
            ("exposed", record.exposed_ns is not None, record.exposed_ns),
            ("received", record.arrival_ns is not None, record.arrival_ns),
            ("prepared", record.prepared, None),
            ("paired", record.paired, None),
            ("used", record.used, self._taken),
            (record.state, record.state not in KNOWN, None),
        ]
        return [{"state": name, "at_ns": at} for name, done, at in steps if done]


KNOWN = ("received", "paired", "used", "interpolated")
"""States that are steps on a frame's way; any other ends it."""


def subpix_of(run: Run) -> str | None:
    """How probes are shifted by fractions of a pixel in the engine at work, or the last that was."""
    if run.engine_entry is None:
        return None
    p, last = run.engine_entry.parameters, run.iter_info[-1] if run.iter_info else {}
    done = last["iteration"] if last.get("engine") == run.engine_entry.name else 0
    kind: str | None = getattr(p, "subpix", None)
    return kind if done >= getattr(p, "subpix_start", 0) else None


def _part(records: Records, first: int) -> Records:
    part = slice(first, first + MOST_RECORDS)
    return Records(records.index[part], records.state[part], records.position[part], records.names)


def _unit(scan: Scan) -> str:
    return "px" if scan.model.geometry.pixel_size_m is None else "m"


def _pixel(scan: Scan) -> list[float] | None:
    pixel = scan.model.geometry.pixel_size_m
    return None if pixel is None else [float(pixel[0]), float(pixel[1])]


def shown(frame: NDArray[np.float32]) -> tuple[NDArray[np.float32], int]:
    """The frame with zero frequency in its middle, and how many pixels squared were summed to one."""
    centred = np.fft.fftshift(frame)
    bins = -(-max(centred.shape) // MOST_PIXELS)
    if bins == 1:
        return centred, 1
    height, width = (n // bins for n in centred.shape)
    blocks = centred[: height * bins, : width * bins].reshape(height, bins, width, bins)
    return blocks.sum(axis=(1, 3), dtype=np.float32), bins


def _misfit(model: NDArray[np.float32], counts: NDArray[Any], valid: NDArray[np.bool_]) -> dict[str, float] | None:
    """As of `Progress.misfit`, of this frame alone."""
    if not valid.any():
        return None
    there, measured = model[valid].astype(float), counts[valid].astype(float)
    bright = np.maximum(measured, 0)  # signals may be below 0
    amplitude = float(np.mean((np.sqrt(np.maximum(there, 0)) - np.sqrt(bright)) ** 2))
    return {"amplitude": amplitude, "photon": float(np.mean((there - measured) ** 2 / (bright + 1)))}
