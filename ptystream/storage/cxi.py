"""Measurements in the layout of NXcxi_ptycho (NeXus over CXI): one `/entry_1`, SI units, energy in joules.

Frames are written and read piece by piece. What the definition asks for and nobody told us is NaN or 'not known'. See
docs/reference/cxi.md for what is where, and in which direction positions count.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ptystream import __version__

from . import h5
from .nexus import group, number
from .ptyd import Chunk
from .ptyd_reading import MAX_CHUNK_FRAMES, MAX_FRAME_BYTES, MAX_SIDE, PIECE_BYTES, Meta, opened

KEV_J = 1.602176634e-16
VERSION = 160
INVALID = np.uint32(1)
"""Bit of CXI's masks: the value is not valid."""
FRAMES = ("entry_1/data_1/data", "entry_1/instrument_1/detector_1/data")
TRANSLATIONS = (
    "entry_1/data_1/translation",
    "entry_1/sample_1/geometry_1/translation",
    "entry_1/instrument_1/detector_1/translation",
)
DETECTOR = "entry_1/instrument_1/detector_1"
ENERGIES = (
    "entry_1/instrument_1/beam_1/incident_beam_energy",
    "entry_1/instrument_1/beam_1/energy",
    "entry_1/instrument_1/source_1/energy",
)


class CxiWriter:
    """Fills an open HDF5 file; `finish` comes last. Frames come centred, as `Chunk` has them."""

    def __init__(self, file: h5py.File, meta: Meta, title: str) -> None:
        self.meta, self.frames = meta, 0
        self._same = True
        self._first: NDArray[np.bool_] | None = None
        self._file = file
        file["cxi_version"] = VERSION
        file.attrs.update({"default": "entry_1", "creator": f"ptystream {__version__}"})
        entry = self._entry = group(file, "entry_1", "NXentry", default="data")
        entry["title"], entry["definition"] = title, "NXcxi_ptycho"
        self._beam(group(entry, "instrument_1", "NXinstrument"))
        self._detector: Any = None

    def _beam(self, instrument: h5py.Group) -> None:
        energy = math.nan if self.meta.energy is None else self.meta.energy * KEV_J
        source = group(instrument, "source_1", "NXsource")
        source["name"], source["probe"], source["type"] = "not known", "x-ray", "not known"
        number(source, "energy", energy, "J")
        beam = group(instrument, "beam_1", "NXbeam")
        number(beam, "energy", energy, "J")
        number(beam, "incident_beam_energy", energy, "J")
        number(beam, "incident_energy_spread", math.nan, "J")
        number(beam, "incident_beam_divergence", math.nan, "rad")
        number(beam, "extent", math.nan, "m")

    def _begin(self, dtype: np.dtype[Any]) -> None:
        meta = self.meta
        detector = self._detector = group(self._entry["instrument_1"], "detector_1", "NXdetector")
        detector.attrs.update({"signal": "data", "axes": ["translation", ".", "."]})
        y, x = meta.psize or (math.nan, math.nan)
        row, column = meta.center or (meta.shape[0] // 2, meta.shape[1] // 2)
        for name, value in {
            "x_pixel_size": x,
            "y_pixel_size": y,
            "distance": math.nan if meta.distance is None else meta.distance,
            "beam_center_x": column * x,
            "beam_center_y": row * y,
        }.items():
            number(detector, name, value, "m")
        number(group(detector, "transformations", "NXtransformations"), "vector", [0.0, 0.0, 1.0])
        packed: dict[str, Any] = {"compression": "gzip", "compression_opts": 1, "shuffle": True, "chunks": (1, *meta.shape)}
        shape, most = (0, *meta.shape), (None, *meta.shape)
        detector.create_dataset("data", shape, dtype, maxshape=most, **packed).attrs["interpretation"] = "image"
        detector.create_dataset("mask", shape, np.uint32, maxshape=most, **packed)
        places = detector.create_dataset("translation", (0, 3), "<f8", maxshape=(None, 3), chunks=(1024, 3))
        places.attrs.update({"units": "m", "axes": "translation:y:x", "interpretation": "image"})
        detector.create_dataset("sequence_number", (0,), "<i8", maxshape=(None,), chunks=(1024,))

    def add(self, chunk: Chunk) -> None:
        """Write frames."""
        if self._detector is None:
            self._begin(chunk.data.dtype)
        first, stop = self.frames, self.frames + len(chunk)
        if self._first is None:
            self._first = chunk.weights[0].copy()
        self._same &= bool((chunk.weights == self._first).all())
        places = np.zeros((len(chunk), 3))
        places[:, 0], places[:, 1] = chunk.positions[:, 1], chunk.positions[:, 0]
        masks = np.where(chunk.weights, np.uint32(0), INVALID)
        for name, values in (("data", chunk.data), ("mask", masks), ("translation", places), ("sequence_number", chunk.indices)):
            self._detector[name].resize(stop, axis=0)
            self._detector[name][first:stop] = values
        self.frames = stop

    def finish(self) -> None:
        """Write what refers to all frames. Raises `ValueError` where there are none."""
        if self._detector is None or self._first is None:
            raise ValueError("there is no frame to write")
        entry, detector = self._entry, self._detector
        if self._same:  # one mask for all frames
            del detector["mask"]
            detector.create_dataset("mask", data=np.where(self._first, np.uint32(0), INVALID))
        places = detector["translation"][()]
        sample = group(entry, "sample_1", "NXsample")
        sample["name"] = self.meta.label or "not known"
        moves = group(sample, "transformations", "NXtransformations")
        for column, name in enumerate("xy"):
            made = number(moves, name, places[:, column], "m")
            made.attrs.update({"transformation_type": "translation", "vector": [float(name == "x"), float(name == "y"), 0.0]})
        moves.attrs["vector"] = [1.0, 1.0, 0.0]
        monitor = group(entry["instrument_1"], "monitor_1", "NXmonitor")
        number(monitor, "data", np.ones(self.frames)).attrs["long_name"] = "dose of each frame; 1: was not measured"
        there = "/entry_1/instrument_1/detector_1/"
        detector["data_1"] = h5py.SoftLink(there + "data")
        group(sample, "geometry_1", "NXcollection")["translation"] = h5py.SoftLink(there + "translation")
        legacy = group(entry, "data_1", "NXcollection")
        shown = group(entry, "data", "NXdata", signal="data", axes=["x", ".", "."], x_indices=[0], y_indices=[0])
        legacy["translation"] = h5py.SoftLink(there + "translation")
        for name in "xy":
            shown[name] = h5py.SoftLink(f"/entry_1/sample_1/transformations/{name}")
            shown[f"{name}_indices"] = "0"
        for place in (legacy, shown):
            place["data"] = h5py.SoftLink(there + "data")


# ---------------------------------------------------------------------- reading


@dataclass(frozen=True, slots=True)
class Found:
    """Where things are in a file of this kind, which others write a little differently."""

    meta: Meta
    frames: str
    positions_m: NDArray[np.float64]
    """(frame, 2), (y, x)."""
    indices: NDArray[np.int64]
    mask: NDArray[np.bool_] | None
    """Valid pixels, (y, x), where one mask is that of all frames; None: `frames_mask`, or every pixel is valid."""
    frames_mask: bool


def look(path: Path) -> Found:
    """Everything but the frames. Raises `OSError` or `h5.H5Error` with the path and what is wrong."""
    with opened(path) as file:
        name = next((n for n in FRAMES if _node(file, n) is not None), None)
        data = None if name is None else _node(file, name)
        if name is None or not isinstance(data, h5py.Dataset) or data.ndim != 3 or data.dtype.kind not in "biuf":
            raise h5.H5Error(f"no real numbers (frame, y, x) at {' or '.join(FRAMES)}")
        h5.check(data, MAX_CHUNK_FRAMES * MAX_FRAME_BYTES)
        if max(data.shape[1:]) > MAX_SIDE or not 0 < len(data) <= MAX_CHUNK_FRAMES:
            raise h5.H5Error(f"{name}: shape {data.shape}: 1 to {MAX_CHUNK_FRAMES} frames of at most {MAX_SIDE} pixels a side")
        shape = int(data.shape[1]), int(data.shape[2])
        y, x = (_one(file, f"{DETECTOR}/{axis}_pixel_size") for axis in "yx")
        psize = None if y is None or x is None else (y, x)
        row, column = (_one(file, f"{DETECTOR}/beam_center_{axis}") for axis in "yx")
        known = psize is not None and row is not None and column is not None
        center = (float(row or 0) / psize[0], float(column or 0) / psize[1]) if known and psize else None
        energy = next((e for n in ENERGIES if (e := _one(file, n)) is not None), None)
        label = _node(file, "entry_1/sample_1/name")
        meta = Meta(
            shape,
            len(data),
            None if label is None or label.shape != () else str(h5.read(label))[:200],
            psize,
            None if energy is None else energy / KEV_J,
            center,
            _one(file, f"{DETECTOR}/distance"),
        )
        whole, per_frame = _mask(file, data.shape)
        return Found(meta, name, _positions(file, len(data)), _indices(file, len(data)), whole, per_frame)


def frames(path: Path, found: Found) -> Iterator[Chunk]:
    """The frames, in pieces of some megabytes."""
    y, x = found.meta.shape
    with opened(path) as file:
        data = _node(file, found.frames)
        masks = _node(file, f"{DETECTOR}/mask") if found.frames_mask else None
        step = max(1, PIECE_BYTES // (y * x * max(8, data.dtype.itemsize)))
        for first in range(0, len(data), step):
            rows = slice(first, min(first + step, len(data)))
            count = rows.stop - rows.start
            common = np.ones((y, x), np.bool_) if found.mask is None else found.mask
            valid = np.broadcast_to(common, (count, y, x)) if masks is None else masks[rows] == 0
            yield Chunk(data[rows], valid, found.positions_m[rows], found.indices[rows])


def _node(file: h5py.File, path: str) -> Any:
    """A member of the same file; None where there is none."""
    node: Any = file
    for name in path.split("/"):
        if not isinstance(node, h5py.Group) or not h5.has(node, name):
            return None
        node = h5.inside(node, name)
    return node


def _one(file: h5py.File, path: str) -> float | None:
    """A number above 0 (of one element); None where there is none that is finite."""
    node = _node(file, path)
    if node is None:
        return None
    value = np.asarray(h5.read(node), float).ravel()
    return float(value[0]) if value.size == 1 and np.isfinite(value[0]) and value[0] > 0 else None


def _positions(file: h5py.File, count: int) -> NDArray[np.float64]:
    node = next((n for p in TRANSLATIONS if (n := _node(file, p)) is not None), None)
    if node is None:
        raise h5.H5Error(f"no positions at {' or '.join(TRANSLATIONS)}")
    held = np.asarray(h5.read(node), float)
    if held.shape == (3, count) and count != 3:  # so written by some
        held = held.T
    if held.shape not in ((count, 3), (count, 2)):
        raise h5.H5Error(f"{node.name}: shape {held.shape}: must be ({count}, 3)")
    return np.ascontiguousarray(held[:, 1::-1])


def _indices(file: h5py.File, count: int) -> NDArray[np.int64]:
    node = _node(file, f"{DETECTOR}/sequence_number")
    held = np.zeros(0) if node is None else np.asarray(h5.read(node))
    sound = held.shape == (count,) and held.dtype.kind in "iu" and held.min() >= 0 and len(np.unique(held)) == count
    return held.astype(np.int64) if sound else np.arange(count, dtype=np.int64)


def _mask(file: h5py.File, shape: tuple[int, ...]) -> tuple[NDArray[np.bool_] | None, bool]:
    node = _node(file, f"{DETECTOR}/mask")
    if node is None:
        return None, False
    h5.check(node, MAX_CHUNK_FRAMES * MAX_FRAME_BYTES)
    if node.dtype.kind not in "iub" or node.shape not in (shape, shape[1:]):
        raise h5.H5Error(f"{node.name}: {node.dtype} {node.shape}: must be whole numbers of shape {shape[1:]} or {shape}")
    return (None, True) if node.ndim == 3 else (node[()] == 0, False)
