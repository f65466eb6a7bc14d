"""A simulated beamline for a real RunEngine: motors that move, a detector that makes diffraction where they are.

`python -m ptystream.detectors.bluesky.simulator` publishes its documents over ZeroMQ, with a body of msgpack.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.chance import of_drawing

from ..simulated.exposure import Experiment
from ..simulated.simulator import Beamline
from .payload import packed

UM = 1e6


class Stage:
    """Where the sample is, micrometres (y, x), and what the detector sees of it."""

    def __init__(self, beamline: Beamline) -> None:
        self.beamline = beamline
        self.probe, self.object = beamline.probe(), beamline.object()
        self.exposures = 0

    def frame(self, y_um: float, x_um: float) -> NDArray[np.uint16]:
        """Counts with the beam at (y, x); the stage moves the sample the other way, so it stands at (-y, -x)."""
        offset = (-(self.object.shape[0] // 2), -(self.object.shape[1] // 2))
        place = np.array([[-y_um, -x_um]]) / UM / self.beamline.pixel_m
        light = Experiment(self.probe[None], self.object[None], offset, place).intensity(0)
        counts = of_drawing(self.beamline.seed, 1000 + self.exposures).poisson(light)
        self.exposures += 1
        return np.asarray(np.minimum(counts, 65534).astype(np.uint16))

    def path_um(self) -> NDArray[np.float64]:
        """Stage readings of the scan, (frame, 2), (y, x)."""
        return -self.beamline.positions_m() * UM


def motors(names: tuple[str, str] = ("stage_y", "stage_x")) -> tuple[Any, Any]:
    """Simulated motors of classic ophyd, in micrometres."""
    os.environ.setdefault("OPHYD_CONTROL_LAYER", "dummy")
    from ophyd.sim import SynAxis

    class Axis(SynAxis):  # type: ignore[misc,unused-ignore]
        def describe(self) -> Any:
            told = super().describe()
            for key in told.values():
                key["units"] = "um"
            return told

    return Axis(name=names[0]), Axis(name=names[1])


class Camera:
    """A detector of a step scan whose frames stand in the events. Protocols of a RunEngine: Readable, Triggerable."""

    parent = None

    def __init__(self, stage: Stage, where: tuple[Any, Any], name: str = "camera") -> None:
        self.name, self.stage_of_sample, self._where = name, stage, where
        self._frame: NDArray[np.uint16] | None = None

    @property
    def shape(self) -> list[int]:
        """Of a frame, (y, x)."""
        return [self.stage_of_sample.beamline.side] * 2

    def trigger(self) -> Any:
        """Expose where the motors are."""
        from ophyd.sim import NullStatus

        y, x = (next(iter(motor.read().values()))["value"] for motor in self._where)
        self._exposed(self.stage_of_sample.frame(y, x))
        return NullStatus()

    def _exposed(self, frame: NDArray[np.uint16]) -> None:
        self._frame = frame

    def read(self) -> dict[str, Any]:
        """The last frame."""
        return {self.name: {"value": self._frame, "timestamp": time.time()}}

    def describe(self) -> dict[str, Any]:
        """One picture."""
        return {self.name: {"source": "simulated", "dtype": "array", "dtype_numpy": "<u2", "shape": self.shape}}

    def read_configuration(self) -> dict[str, Any]:
        """Geometry."""
        known = self.stage_of_sample.beamline.geometry()
        values = {"photon_energy": known["energy"] * 1e3, "detector_distance": known["distance"], "pixel": known["psize"] * UM}
        return {f"{self.name}_{key}": {"value": value, "timestamp": time.time()} for key, value in values.items()}

    def describe_configuration(self) -> dict[str, Any]:
        """Their units."""
        units = {"photon_energy": "eV", "detector_distance": "m", "pixel": "um"}
        plain = {"source": "simulated", "dtype": "number", "shape": []}
        return {f"{self.name}_{key}": {**plain, "units": unit} for key, unit in units.items()}


class ResourceCamera(Camera):
    """The same with the frames in an HDF5 file, told by Resource and Datum, as areaDetector's plugins are."""

    def __init__(self, stage: Stage, where: tuple[Any, Any], folder: Path, name: str = "camera") -> None:
        super().__init__(stage, where, name)
        self._path = Path(folder) / f"{name}_{uuid.uuid4().hex[:8]}.h5"
        self._documents: list[tuple[str, dict[str, Any]]] = []
        self._written = 0
        self._file: Any = None

    def stage(self) -> list[Any]:
        """Make the file."""
        self._file, self._dataset = growing(self._path, "/entry/data/data", tuple(self.shape), "<u2")
        self._uid, self._written = str(uuid.uuid4()), 0
        self._documents.append(
            (
                "resource",
                {
                    **{"uid": self._uid, "spec": "AD_HDF5_SWMR", "root": str(self._path.parent)},
                    **{"resource_path": self._path.name, "resource_kwargs": {"frame_per_point": 1}},
                    **{"path_semantics": "posix"},
                },
            )
        )
        return [self]

    def unstage(self) -> list[Any]:
        """Close it."""
        self._file.close()
        return [self]

    def _exposed(self, frame: NDArray[np.uint16]) -> None:
        self._datum = f"{self._uid}/{self._written}"
        told = {"datum_id": self._datum, "resource": self._uid, "datum_kwargs": {"point_number": self._written}}
        self._documents.append(("datum", told))
        append(self._dataset, frame[None])
        self._written += 1

    def read(self) -> dict[str, Any]:
        """The name of the last frame's datum."""
        return {self.name: {"value": self._datum, "timestamp": time.time()}}

    def describe(self) -> dict[str, Any]:
        """One picture, elsewhere."""
        return {self.name: {**super().describe()[self.name], "external": "FILESTORE:"}}

    def collect_asset_docs(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """What is to be told of files."""
        documents, self._documents = self._documents, []
        yield from documents


class FlyingDetector:
    """Detector and encoders of a fly scan: both write growing HDF5 files (SWMR) that StreamResource and StreamDatum tell of.

    `samples_per_frame` encoder readings go with every frame. Protocols: Flyable, Collectable, WritesStreamAssets.
    """

    parent = None

    def __init__(
        self,
        stage: Stage,
        folder: Path,
        *,
        rate_hz: float,
        samples_per_frame: int = 1,
        frames_per_event: int = 1,
        name: str = "fly",
    ) -> None:
        self.name, self._stage, self._folder = name, stage, Path(folder)
        self._rate_hz, self._samples, self._per = rate_hz, samples_per_frame, frames_per_event
        self._thread: threading.Thread | None = None
        self._written = self._told = 0
        self._streams: dict[str, str] = {}

    def stage(self) -> list[Any]:
        """Make the files."""
        mark, side = uuid.uuid4().hex[:8], self._stage.beamline.side
        self._frames_path, self._encoders_path = (self._folder / f"{what}_{mark}.h5" for what in ("frames", "encoders"))
        self._frames, self._pixels = growing(self._frames_path, "/entry/data/data", (side, side), "<u2")
        self._encoders, self._y = growing(self._encoders_path, "/y", (), "<f8", also="/x")
        self._x = self._encoders["/x"]
        self._encoders.swmr_mode = True
        self._written = self._told = 0
        self._streams.clear()
        return [self]

    def unstage(self) -> list[Any]:
        """Close them."""
        self._frames.close()
        self._encoders.close()
        return [self]

    def kickoff(self) -> Any:
        """Begin to move and expose, in a thread."""
        from ophyd.sim import NullStatus

        self._thread = threading.Thread(target=self._fly, name="fly", daemon=True)
        self._thread.start()
        return NullStatus()

    def _fly(self) -> None:
        random = of_drawing(self._stage.beamline.seed, 4)
        began = time.monotonic()
        path = self._stage.path_um()
        for first in range(0, len(path) - self._per + 1, self._per):
            for y, x in path[first : first + self._per]:
                append(self._pixels, self._stage.frame(y, x)[None])
                noise = random.normal(0.0, 1e-3, (2, self._samples))
                append(self._y, y + noise[0] - noise[0].mean())
                append(self._x, x + noise[1] - noise[1].mean())
            self._written += 1
            time.sleep(max(0.0, began + (first + self._per) / self._rate_hz - time.monotonic()))

    def complete(self) -> Any:
        """Done when everything is written."""
        from ophyd.status import Status

        done, thread = Status(), self._thread
        assert thread is not None

        def wait() -> None:
            thread.join()
            done.set_finished()

        threading.Thread(target=wait, daemon=True).start()
        return done

    def describe_collect(self) -> dict[str, Any]:
        """Frames, and the encoders in micrometres."""
        side = self._stage.beamline.side
        plain = {"source": "simulated", "dtype": "array", "external": "STREAM:"}
        encoder = {**plain, "dtype_numpy": "<f8", "shape": [self._samples * self._per], "units": "um"}
        frames = {**plain, "dtype_numpy": "<u2", "shape": [self._per, side, side]}
        return {self.name: frames, f"{self.name}-y": encoder, f"{self.name}-x": encoder}

    def get_index(self) -> int:
        """Events that are written."""
        return self._written

    def collect_asset_docs(self, index: int | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
        """What has been written since the last call."""
        stop = self._written if index is None else min(index, self._written)
        if stop <= self._told:
            return
        places = {
            self.name: (self._frames_path, "/entry/data/data"),
            f"{self.name}-y": (self._encoders_path, "/y"),
            f"{self.name}-x": (self._encoders_path, "/x"),
        }
        for key, (path, dataset) in places.items():
            if key not in self._streams:
                self._streams[key] = str(uuid.uuid4())
                told = {"uid": self._streams[key], "data_key": key, "mimetype": "application/x-hdf5"}
                yield "stream_resource", {**told, "uri": f"file://localhost{path}", "parameters": {"dataset": dataset}}
        for key, uid in self._streams.items():
            rows = {"indices": {"start": self._told, "stop": stop}, "seq_nums": {"start": 0, "stop": 0}, "descriptor": ""}
            yield "stream_datum", {"uid": f"{uid}/{self._told}", "stream_resource": uid, **rows}
            assert key in places
        self._told = stop


def growing(path: Path, dataset: str, row: tuple[int, ...], dtype: str, also: str | None = None) -> tuple[Any, Any]:
    """(file, dataset) of an HDF5 file that may be read while it grows; with `also` it has a second dataset, and the caller
    switches to SWMR. Frames are chunks of their own, bitshuffle-LZ4."""
    import h5py
    import hdf5plugin

    file = h5py.File(path, "w", libver="v110")
    options = {"chunks": (1, *row), **hdf5plugin.Bitshuffle(cname="lz4")} if row else {"chunks": (1024,)}
    made = file.create_dataset(dataset, (0, *row), dtype, maxshape=(None, *row), **options)
    if also is not None:
        file.create_dataset(also, (0, *row), dtype, maxshape=(None, *row), **options)
    else:
        file.swmr_mode = True
    return file, made


def append(dataset: Any, rows: NDArray[Any]) -> None:
    """Add rows and make them visible."""
    before = dataset.shape[0]
    dataset.resize(before + len(rows), axis=0)
    dataset[before:] = rows
    dataset.flush()


def step_plan(
    camera: Camera, where: tuple[Any, Any], path_um: NDArray[np.float64], metadata: Mapping[str, Any] | None = None
) -> Any:
    """Move, stop, expose: one event per frame."""
    from bluesky.plans import list_scan

    return list_scan([camera], where[0], path_um[:, 0].tolist(), where[1], path_um[:, 1].tolist(), md=dict(metadata or {}))


def fly_plan(detector: FlyingDetector, metadata: Mapping[str, Any] | None = None, period_s: float = 0.1) -> Any:
    """Expose while moving: no events, and files that grow."""
    import bluesky.plan_stubs as bps
    import bluesky.preprocessors as bpp

    @bpp.stage_decorator([detector])  # type: ignore[untyped-decorator,unused-ignore]
    @bpp.run_decorator(md={"plan_name": "fly", **(metadata or {})})  # type: ignore[untyped-decorator,unused-ignore]
    def plan() -> Any:
        yield from bps.declare_stream(detector, name="primary", collect=True)
        yield from bps.kickoff(detector, wait=True)
        yield from bps.collect_while_completing([detector], [detector], flush_period=period_s, stream_name="primary")

    return plan()


def publisher(address: str, prefix: bytes = b"") -> Any:
    """A publisher of bluesky that sends msgpack; give it to `RE.subscribe`."""
    from bluesky.callbacks.zmq import Publisher

    def body(document: Mapping[str, Any]) -> bytes:
        return packed("", document)[2:]

    return Publisher(address, prefix=prefix, serializer=body)


def main(arguments: list[str] | None = None) -> None:
    """Run one scan with a real RunEngine and publish its documents."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "--address", default="tcp://127.0.0.1:5577", help="of the proxy's ingoing side, or of a session with bind"
    )
    parser.add_argument("--plan", choices=("step", "files", "fly"), default="step")
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--rate", type=float, default=50.0, help="frames per second of a fly scan")
    parser.add_argument("--samples", type=int, default=4, help="encoder readings per frame of a fly scan")
    parser.add_argument("--folder", default=None, help="for files; default: a temporary one")
    parser.add_argument("--delay", type=float, default=2.0, help="seconds between connecting and the scan")
    given = parser.parse_args(arguments)
    from bluesky import RunEngine

    beamline = Beamline(frames=given.frames, side=given.side, step_px=given.side / 14)
    stage = Stage(beamline)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(given.folder or scratch)
        sender = publisher(given.address)
        time.sleep(given.delay)  # who has just connected misses what is sent at once
        engine: Any = RunEngine({})
        engine.subscribe(sender)
        where = motors()
        if given.plan == "fly":
            engine(fly_plan(FlyingDetector(stage, folder, rate_hz=given.rate, samples_per_frame=given.samples)))
        else:
            camera = Camera(stage, where) if given.plan == "step" else ResourceCamera(stage, where, folder)
            engine(step_plan(camera, where, stage.path_um()))
        time.sleep(min(given.delay, 1.0))
        sender.close()


if __name__ == "__main__":
    main()
