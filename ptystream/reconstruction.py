"""The value that is improved: probes, objects, and the table that says which frame sees which part of which."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ptystream.model.bragg import BraggGeometry
from ptystream.model.geometry import Geometry
from ptystream.model.propagate import Propagator

PROBE, PROBE_LAYER, OBJECT, OBJECT_LAYER, ROW, COLUMN = range(6)
"""Columns of `PodTable.address`."""


def nearest(pixels: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lattice coordinates as whole pixels and the remainder in [-1/2, 1/2); halves are rounded up, as ptypy does."""
    whole = np.floor(pixels + 0.5 + 1e-5)
    return whole, np.clip(pixels - whole, -0.5, np.nextafter(0.5, 0))


@dataclass(slots=True)
class Storage:
    """One probe or object: layers of complex pixels on a lattice fixed by physical zero."""

    data: NDArray[np.complexfloating[Any, Any]]
    """Shape (layer, y, x). A probe's view is centred: its pixel [N // 2, N // 2] lies on the position."""
    pixel_size_m: tuple[float, float] | None
    """(y, x) on the sample; None where only pixels are known."""
    offset: tuple[int, int] = (0, 0)
    """Lattice coordinates (row, column) of data[:, 0, 0]. Growing to the left lowers it and rewrites no address."""
    fill: complex = 1.0
    """Value of pixels that are new."""
    energy_kev: float | None = None
    shares: tuple[float, ...] = ()
    """Factor on `fill` for each layer; empty: 1."""
    modes_per_frame: int = 0
    """Layers that each frame has of its own (orthogonal probe relaxation), frame after frame; 0: frames share all layers."""
    begun: int = 0
    """How often it was begun anew: then its content is another, wherever it lies."""

    @property
    def shape(self) -> tuple[int, int]:
        """(y, x)."""
        return int(self.data.shape[-2]), int(self.data.shape[-1])

    def grow(self, low: tuple[int, int], high: tuple[int, int], margin: int = 32) -> bool:
        """Make lattice rows/columns [low, high) part of the storage; content keeps its physical place.

        Returns whether anything changed. New memory is taken in steps of `margin` pixels so that a scan that walks
        outwards does not copy the canvas at every block.
        """
        start = tuple(o if l >= o else o - -(-(o - l) // margin) * margin for l, o in zip(low, self.offset, strict=True))
        ends = (o + n for o, n in zip(self.offset, self.shape, strict=True))
        stop = tuple(e if h <= e else e + -(-(h - e) // margin) * margin for h, e in zip(high, ends, strict=True))
        if start == self.offset and (stop[0] - start[0], stop[1] - start[1]) == self.shape:
            return False
        # The data may lie on a GPU: `full_like` makes the new array where the old one is.
        data = np.full_like(self.data, self.fill, shape=(self.data.shape[0], stop[0] - start[0], stop[1] - start[1]))
        for layer, share in zip(data, self.shares, strict=False):
            layer *= share
        y, x = self.offset[0] - start[0], self.offset[1] - start[1]
        data[:, y : y + self.shape[0], x : x + self.shape[1]] = self.data
        self.data, self.offset = data, (start[0], start[1])
        return True

    @property
    def slices(self) -> int:
        """Layers that a frame sees one after the other along a third axis; 1: it sees single layers."""
        return 1

    @property
    def layers(self) -> int:
        """Layers that each stand for a whole view."""
        return len(self.data)

    def through(self) -> Any:
        """The first layer, as a beam sees it that goes straight through. Shape (y, x)."""
        return self.data[0]

    @property
    def corner(self) -> tuple[int, int, int]:
        """Lattice coordinates of data[0, 0, 0]; layers that are no axis of space count from 0."""
        return 0, *self.offset

    def add_frames(self, count: int) -> None:
        """Give `count` more frames layers of their own: the mean of those that are there."""
        modes, have = self.modes_per_frame, len(self.data)
        data = np.empty_like(self.data, shape=(have + count * modes, *self.shape))
        data[:have] = self.data
        data[have:].reshape(count, modes, *self.shape)[:] = self.mean_over_frames()
        self.data = data

    def mean_over_frames(self) -> Any:
        """What a viewer is shown of it: layers (mode, y, x), where frames have their own the mean over them."""
        if not self.modes_per_frame:
            return self.data
        return self.data.reshape(-1, self.modes_per_frame, *self.shape).mean(axis=0)

    def copy(self) -> Storage:
        """A deep copy."""
        return replace(self, data=self.data.copy())


@dataclass(slots=True)
class Volume(Storage):
    """A probe or object in three dimensions: its layers are slices along a third axis of space, (r3, r1, r2)."""

    first: int = 0
    """Lattice coordinate r3 of data[0]."""
    slice_m: float = 1.0
    """Distance of two slices along r3, metres."""
    bragg: BraggGeometry | None = None
    """What its axes mean."""

    @property
    def slices(self) -> int:
        """Slices; a frame sees all of a probe."""
        return len(self.data)

    @property
    def layers(self) -> int:
        """One view."""
        return 1

    @property
    def corner(self) -> tuple[int, int, int]:
        """Lattice coordinates (r3, r1, r2) of data[0, 0, 0]."""
        return self.first, *self.offset

    def grow_slices(self, low: int, high: int, margin: int = 4) -> bool:
        """Make lattice slices [low, high) part of the volume; returns whether anything changed."""
        stop = self.first + len(self.data)
        before = 0 if low >= self.first else -(-(self.first - low) // margin) * margin
        after = 0 if high <= stop else -(-(high - stop) // margin) * margin
        if not before and not after:
            return False
        data = np.full_like(self.data, self.fill, shape=(before + len(self.data) + after, *self.shape))
        data[before : before + len(self.data)] = self.data
        self.data, self.first = data, self.first - before
        return True


@dataclass(slots=True)
class Stack(Storage):
    """An object of several slices one behind the other: `data` holds the slices of its first layer, then those of the next."""

    depth: int = 1
    """Slices of a layer."""
    distances_m: tuple[float, ...] = ()
    """From each slice to the next, metres."""

    @property
    def layers(self) -> int:
        """Each of them a whole stack."""
        return len(self.data) // self.depth

    def through(self) -> Any:
        """The product of the first layer's slices: their phases add up, however they are shared out among the slices."""
        return self.data[: self.depth].prod(axis=0)


@dataclass(slots=True)
class PodTable:
    """Who sees what: for each frame and pod (energy × probe mode × object mode) one row of integers.

    Arrays double their capacity, so that appending costs the same however many frames are there. Properties give the
    used part as views; rows may be rewritten through them.
    """

    pods: int
    """Places for pods per frame: as many as the scan with the most pods needs."""
    length: int = 0
    _address: NDArray[np.int32] = field(init=False)
    _remainder: NDArray[np.float32] = field(init=False)
    _weight: NDArray[np.float32] = field(init=False)
    _frame: NDArray[np.int64] = field(init=False)
    _index: NDArray[np.int64] = field(init=False)
    _moved: NDArray[np.float64] = field(init=False)
    _depth: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self._address = np.zeros((0, self.pods, 6), np.int32)
        self._remainder = np.zeros((0, self.pods, 2), np.float32)
        self._weight = np.ones((0, self.pods), np.float32)
        self._frame = np.zeros((0, 2), np.int64)
        self._index = np.zeros(0, np.int64)
        self._moved = np.zeros((0, 2), np.float64)
        self._depth = np.zeros(0, np.int64)

    @property
    def address(self) -> NDArray[np.int32]:
        """[probe number, probe layer, object number, object layer, row, column]; shape (frame, pod, 6).

        Probe and object number: position in `Reconstruction.probes` / `.objects`; -1 where the frame's scan has fewer pods
        than the table has places. Row and column: lattice coordinates of the view's first pixel; subtract the storage's
        `offset` for the array index. The pods of a row that was withdrawn are all gone.
        """
        return self._address[: self.length]

    @property
    def remainder(self) -> NDArray[np.float32]:
        """Sub-pixel part (y, x) of the corner, in [-1/2, 1/2). Shape (frame, pod, 2)."""
        return self._remainder[: self.length]

    @property
    def weight(self) -> NDArray[np.float32]:
        """Factor on the model amplitude (dose, spectrum). Shape (frame, pod)."""
        return self._weight[: self.length]

    @property
    def frame(self) -> NDArray[np.int64]:
        """[number of the scan, slot in the scan's slabs]; shape (frame, 2)."""
        return self._frame[: self.length]

    @property
    def index(self) -> NDArray[np.int64]:
        """The source's own frame number: with the scan it is the key of random choices, whenever a frame came. Shape (frame,)."""
        return self._index[: self.length]

    @property
    def moved(self) -> NDArray[np.float64]:
        """How far (y, x) position refinement has taken a frame from where it was measured; address and remainder contain it.

        Metres, or object pixels where there is no pixel size. Whoever writes a measured position puts 0. Shape (frame, 2).
        """
        return self._moved[: self.length]

    REVISABLE: ClassVar[tuple[str, ...]] = ("address", "remainder", "weight", "moved", "depth")
    """What of a row may change after it was appended: a checkpoint keeps it."""

    def state(self) -> dict[str, NDArray[Any]]:
        """A copy of what may have changed, by name."""
        return {name: getattr(self, name).copy() for name in self.REVISABLE}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Rows as `state` gave them. Raises `ValueError` where there are not as many."""
        for name, held in state.items():
            getattr(self, name)[...] = held

    @property
    def depth(self) -> NDArray[np.int64]:
        """Lattice coordinate r3 of the first slice that a frame sees of a `Volume`; 0 elsewhere. Shape (frame,)."""
        return self._depth[: self.length]

    def withdraw(self, rows: NDArray[np.int64]) -> None:
        """These rows see nothing any more: their views may lie beyond any canvas. They keep their number."""
        self.address[rows[:, None], :, [[PROBE, OBJECT]]] = -1

    def append(
        self,
        address: NDArray[np.int32],
        remainder: NDArray[np.float32],
        weight: NDArray[np.float32],
        frame: NDArray[np.int64],
        index: NDArray[np.int64] | None = None,
        depth: NDArray[np.int64] | None = None,
    ) -> NDArray[np.int64]:
        """Add rows and return their numbers. Shapes as the properties' with the same leading axis; fewer pods than the table
        has places are filled up with none. `index` None: the slots; `depth` None: 0."""
        new, lacking = len(address), self.pods - address.shape[1]
        if lacking:
            nothing = np.full((new, lacking, 6), -1, np.int32)
            address = np.concatenate([address, nothing], axis=1)
            remainder = np.concatenate([remainder, np.zeros((new, lacking, 2), np.float32)], axis=1)
            weight = np.concatenate([weight, np.zeros((new, lacking), np.float32)], axis=1)
        stop = self.length + new
        if stop > len(self._address):
            capacity = max(256, 2 * len(self._address), stop)
            for name in ("_address", "_remainder", "_weight", "_frame", "_index", "_moved", "_depth"):
                old = getattr(self, name)
                grown = np.zeros((capacity, *old.shape[1:]), old.dtype)
                grown[: self.length] = old[: self.length]
                setattr(self, name, grown)
        part = slice(self.length, stop)
        self._address[part], self._remainder[part] = address, remainder
        self._weight[part], self._frame[part] = weight, frame
        self._index[part], self._moved[part] = frame[:, 1] if index is None else index, 0
        self._depth[part] = 0 if depth is None else depth
        self.length = stop
        return np.arange(stop - new, stop)


@dataclass(frozen=True, slots=True)
class Dispersion:
    """Storages, one per energy, that are one function of the energy: value = a + t b with free a and b at each pixel."""

    names: tuple[str, ...]
    t: tuple[float, ...]
    """Relative energy of each, minus one."""


@dataclass(slots=True)
class Reconstruction:
    """What is known: every probe, every object, and the pod table that joins them to frames.

    Owned by the engine's thread. While an engine runs, `data` of the storages may lie behind the engine's own arrays
    (on a GPU): `Engine.snapshot` is the way to look.
    """

    probes: dict[str, Storage]
    objects: dict[str, Storage]
    pods: PodTable
    propagators: dict[int, tuple[Propagator, ...]] = field(default_factory=dict)
    """How the pods of a scan (by number of the scan, in the order of the pod table) reach the detector; a scan that is not
    in it: the orthonormal transform."""
    geometries: dict[int, Geometry] = field(default_factory=dict)
    """Where the detector of a scan stands, by number of the scan; a scan that is not in it: everything is in object pixels."""
    probe_dispersion: list[Dispersion] = field(default_factory=list)
    """Probes that an update keeps linear in the energy."""
    object_dispersion: list[Dispersion] = field(default_factory=list)
    """Objects that an update keeps linear in the energy: same canvas for all of one entry."""
    improved: bool = False
    """Whether an engine has finished with it: what stands in the dark may be anything."""

    def copy(self, parts: Iterable[str] = ("probe", "object")) -> Reconstruction:
        """Deep copy of the named parts; the pod table is shared."""
        wanted = set(parts)
        return Reconstruction(
            {k: v.copy() for k, v in self.probes.items()} if "probe" in wanted else {},
            {k: v.copy() for k, v in self.objects.items()} if "object" in wanted else {},
            self.pods,
            self.propagators,
            self.geometries,
            self.probe_dispersion,
            self.object_dispersion,
            self.improved,
        )


def described(reconstruction: Reconstruction) -> list[str]:
    """Sizes and places of what is reconstructed, a line for each storage and one for the frames."""
    lines = []
    for kind, held in (("probe", reconstruction.probes), ("object", reconstruction.objects)):
        for name, storage in held.items():
            pixel = (
                "pixel size unknown"
                if storage.pixel_size_m is None
                else "pixel {:.4g} m × {:.4g} m".format(*storage.pixel_size_m)
            )
            size = " × ".join(str(n) for n in storage.data.shape)
            mebibytes = storage.data.nbytes / 2**20
            lines.append(
                f"{kind} {name}: {size} {storage.data.dtype}, {mebibytes:.1f} MiB, {pixel}, first pixel at {storage.offset}"
            )
    pods = reconstruction.pods
    return [*lines, f"{pods.length} frames, {pods.pods} pods each"]
