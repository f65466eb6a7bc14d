"""PyPty's output folder: arrays as .npy files, the log of the loss, the parameters as JSON. Every file is whole or not there.

Arrays are in PyPty's layout and units: objects (y, x, slice, mode), probes (y, x, mode) or (y, x, mode, subscan) for an
unnormalised transform and patterns that are means over modes, positions of a view's first pixel. `read` reads them.
"""

from __future__ import annotations

import csv
import io
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

NAMES = {
    "co": "obj",
    "cp": "probe",
    "cg": "positions",
    "ct": "tilts",
    "cs": "stback",
    "cb": "beam_current",
    "ca": "aberrations",
}
"""File of the newest → part of the name of a numbered one."""
PLAIN = (
    "epoch",
    "time / s",
    "loss",
    "sse",
    "initial step",
    "matching step",
    "N linesearch iterations",
    "dir. derivative",
    "new dir. derivative",
)
MEMORY = ("Free GiB", "Total GiB", "Warnings")
TERMS = (
    ("fast_axis_reg_weight_positions", "F-axis postions reg."),
    ("deformation_reg_weight_positions", "Deformation positons reg."),
    ("deformation_reg_weight_tilts", "Deformation tilts reg."),
    ("fast_axis_reg_weight_tilts", "F-axis tilts reg."),
    ("phase_norm_weight", "l1 object reg. (phase)"),
    ("abs_norm_weight", "l1 object reg. (abs)"),
    ("probe_reg_constraint_weight", "Q-space probe reg."),
    ("window_weight", "R-space probe reg."),
    ("atv_weight", "TV object reg."),
    ("mixed_variance_weight", "V-object reg."),
    ("wedge", "MW-object reg."),
    ("slow_axis_reg_weight_positions", "S-axis postions reg"),
    ("slow_axis_reg_weight_tilts", "S-axis tilts reg"),
    ("probe_modulation", "Probe-Modulation"),
)
"""Weight → column of a detailed log, spelled as PyPty's readers know them; two are of terms that only PyPty has: always 0."""


@dataclass(frozen=True, slots=True)
class Arrays:
    """What a reconstruction consists of, in our layout and units."""

    object: NDArray[Any]
    """Shape (mode, slice, y, x)."""
    probe: NDArray[Any]
    """Shape (subscan, mode, y, x)."""
    positions: NDArray[np.float64]
    """First pixel of each frame's view (y, x), pixels of the object's array. Shape (frame, 2)."""
    tilts: NDArray[Any] | None = None
    background: NDArray[Any] | None = None
    """Its square root, zero frequency at [0, 0]. Shape (y, x)."""
    current: NDArray[Any] | None = None
    aberrations: NDArray[Any] | None = None


def unit(shape: Sequence[int], modes: int) -> float:
    """Factor from a probe of ours to one of PyPty's. `modes`: of probe times object."""
    return float(np.sqrt(modes / np.prod(shape[-2:])))


def files_of(held: Arrays) -> dict[str, NDArray[Any]]:
    """Name without ending → array in PyPty's layout."""
    probe = held.probe.transpose(2, 3, 1, 0) * unit(held.probe.shape, held.probe.shape[1] * held.object.shape[0])
    found: dict[str, NDArray[Any]] = {
        "co": held.object.transpose(2, 3, 1, 0),
        "cp": probe[..., 0] if probe.shape[3] == 1 else probe,
        "cg": np.asarray(held.positions, np.float64),
    }
    if held.tilts is not None:
        found["ct"] = held.tilts
    if held.background is not None:
        found["cs"] = np.fft.fftshift(held.background)
    if held.current is not None:
        found["cb"] = held.current
    if held.aberrations is not None:
        found["ca"] = held.aberrations
    return found


def read(folder: str | Path) -> Arrays:
    """The arrays in a folder, of ours or PyPty's. Raises `OSError` or `ValueError`; nothing in a file is executed."""
    where = Path(folder)
    held = {name: np.load(path, allow_pickle=False) for name in NAMES if (path := where / f"{name}.npy").exists()}
    for name, dimensions in (("co", (4,)), ("cp", (3, 4)), ("cg", (2,))):
        if name not in held or held[name].ndim not in dimensions:
            raise ValueError(f"{where / name}.npy: needs an array of {' or '.join(map(str, dimensions))} dimensions")
    probe = held["cp"] if held["cp"].ndim == 4 else held["cp"][..., None]
    modes = probe.shape[2] * held["co"].shape[3]
    waves = probe.transpose(3, 2, 0, 1)
    return Arrays(
        held["co"].transpose(3, 2, 0, 1),
        waves / unit(waves.shape, modes),
        held["cg"],
        held.get("ct"),
        None if "cs" not in held else np.fft.ifftshift(held["cs"]),
        held.get("cb"),
        held.get("ca"),
    )


def written(path: Path, raw: bytes) -> None:
    """Write a file atomically."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.write_bytes(raw)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def npy(array: NDArray[Any]) -> bytes:
    """An array as the bytes of a .npy file."""
    out = io.BytesIO()
    np.save(out, np.ascontiguousarray(array), allow_pickle=False)
    return out.getvalue()


def line(epoch: int, seconds: float, told: Mapping[str, Any], memory: tuple[float, float], *, detailed: bool) -> list[str]:
    """One line of the log. `told`: what the engine says of the epoch."""
    values = (told["loss"], told["sse"], told["first_step"], told["step"])
    slopes = told["slope"], told["new_slope"]
    found = [str(epoch), f"{seconds:.3f}", *(f"{v:.10g}" for v in values), str(told["trials"]), *(f"{v:.6g}" for v in slopes)]
    terms = told["terms"]
    found += [f"{terms.get(name, 0.0):.6g}" for name, _ in TERMS] if detailed else [f"{sum(terms.values()):.6g}"]
    warning = "" if told["taken"] else "no step met both conditions: the epoch was rejected"
    return [*found, *(f"{v:.3f}" for v in memory), warning]


def header(*, detailed: bool) -> list[str]:
    """The first line of the log."""
    middle = [column for _, column in TERMS] if detailed else ["Constraints contribution"]
    return [*PLAIN, *middle, *MEMORY]


@dataclass(slots=True)
class Folder:
    """The files of one run; `epoch` is told of each epoch, `arrays` writes what is due. Not thread-safe."""

    path: Path
    log: bool | int = True
    first_epoch: int = 0
    inter: int = 1
    """Every so many epochs the newest are written; 0: at the end only."""
    numbered: int = 0
    """Every so many epochs numbered ones are; 0: never."""
    memory: Callable[[], tuple[float, float]] = lambda: (0.0, 0.0)
    """(free, total) GiB."""
    _began: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, parameters: Mapping[str, Any], epoch: int | None = None) -> None:
        """Make the folder, and write the parameters and the log's first line. Raises `OSError`.

        `epoch`: the first that will be told; a reconstruction that goes on keeps its log up to there."""
        self.path.mkdir(parents=True, exist_ok=True)
        written(self.path / "params.json", json.dumps(parameters, indent=1, default=str).encode())
        log = self.path / "loss.csv"
        first = self.first_epoch if epoch is None else epoch
        if self.log:
            written(log, _row(header(detailed=self.log == 2)) + (_lines_before(log, first) if first and log.exists() else b""))

    def epoch(self, number: int, told: Mapping[str, Any]) -> None:
        """Add a line to the log."""
        if not self.log:
            return
        seconds = time.monotonic() - self._began
        raw = _row(line(number, seconds, told, self.memory(), detailed=self.log == 2))
        with open(self.path / "loss.csv", "ab") as file:
            file.write(raw)

    def due(self, number: int) -> tuple[bool, bool]:
        """Whether the newest, and numbered files, are to be written after an epoch."""
        return bool(self.inter and number % self.inter == 0), bool(self.numbered and number % self.numbered == 0)

    def arrays(self, held: Arrays, number: int | None = None) -> None:
        """Write all arrays; with the number of the epoch under numbered names."""
        with self._lock:
            for name, array in files_of(held).items():
                file = f"{name}.npy" if number is None else f"checkpoint_{NAMES[name]}_epoch_{number}.npy"
                written(self.path / file, npy(array))


def simulated(path: Path, parts: Iterable[tuple[NDArray[np.int64], NDArray[Any]]]) -> None:
    """Write patterns, (numbers, (frame, y, x)) some at a time, as PyPty reads them: dataset 'data' (measurement, y, x)."""
    import h5py

    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with h5py.File(partial, "w", libver="v110") as file:
            data = None
            for numbers, patterns in parts:
                if data is None:
                    shape = patterns.shape[1:]
                    data = file.create_dataset("data", (0, *shape), "f4", maxshape=(None, *shape), chunks=(1, *shape))
                if int(numbers.max()) >= len(data):
                    data.resize(int(numbers.max()) + 1, 0)
                for number, pattern in zip(numbers.tolist(), patterns, strict=True):
                    data[number] = pattern
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _lines_before(log: Path, epoch: int) -> bytes:
    """Lines of a log of epochs before this one, without its first; those behind it were told by who was interrupted."""
    try:
        with open(log, newline="", encoding="utf-8", errors="replace") as file:
            return b"".join(_row(row) for row in csv.reader(file) if row and row[0].isdecimal() and int(row[0]) < epoch)
    except (csv.Error, ValueError) as error:
        raise OSError(f"{log}: is no log of ours ({error}): move it away") from error


def _row(values: Sequence[str]) -> bytes:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(values)
    return out.getvalue().encode()
