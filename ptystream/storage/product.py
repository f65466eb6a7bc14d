"""A result as a file that others show and keep: NeXus below `/entry_1`, named as CXI's and ptychodus' readers expect it.

docs/reference/cxi.md has what is where. The file holds no frames, so it does not claim the definition NXcxi_ptycho; where it
tells the same as that definition (instrument, sample, positions), it does so in the same places.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ptystream import __version__
from ptystream.model.aberrations import names
from ptystream.publish.snapshot import LEDGER_CODES
from ptystream.quality import fit_ramp, remove_ramp
from ptystream.reconstruction import Stack, Storage, Volume
from ptystream.schedule import steered

from .nexus import group, moment, note, number, values
from .ptyr import Result

KEV_EV, KEV_J = 1000.0, 1.602176634e-16
IMAGES = {"probe": 1, "object": 2}
"""Which of CXI's images are what; so ptychodus numbers them."""
PACKED: dict[str, Any] = {"compression": "gzip", "compression_opts": 4, "shuffle": True}


def write_product(file: h5py.File, result: Result, name: str | None = None) -> None:
    """Everything that a result holds into an open file. The default plot, the names at the root and CXI's images are those of the
    object and probe `name`, or of the first. Raises `ValueError` where there is none."""
    name = next((key for key in result.object if key in result.probe), "") if name is None else name
    if name not in result.object or name not in result.probe:
        raise ValueError(f"{name!r}: the result has objects {', '.join(result.object)} and probes {', '.join(result.probe)}")
    told: Mapping[str, Any] = next(iter(result.scans.values()), {})
    energy = told.get("energy") or result.object[name].energy_kev
    file["cxi_version"] = 160
    file.attrs.update({"NX_class": "NXroot", "default": "entry_1", "creator": f"ptystream {__version__}"})
    entry = group(file, "entry_1", "NXentry", default="object")
    entry["title"] = result.run
    _images(entry, result, name)
    _instrument(entry, told, energy)
    entry["instrument_1/source_1/illumination"] = h5py.SoftLink("/entry_1/probe/data")
    _positions(entry, result, told)
    _beside(entry, result)
    _curves(entry, result)
    _quality(entry, result)
    _ledger(entry, result)
    _provenance(entry, result)
    _as_ptychodus(file, entry, result, name, told, energy)


def _images(entry: h5py.Group, result: Result, name: str) -> None:
    for kind, held in (("object", result.object), ("probe", result.probe)):
        every = group(entry, f"{kind}s", "NXcollection")
        for key, storage in held.items():
            made = _image(every, key, storage, centred=kind == "probe")
            if kind == "object" and key in result.coverage:
                seen = made.create_dataset("coverage", data=result.coverage[key], **PACKED)
                seen.attrs["long_name"] = "illumination relative to its maximum"
        entry[kind] = every[name]
        shown = held[name]
        image = entry[f"image_{IMAGES[kind]}"] = every[name]
        image["data_space"], image["data_type"] = "real", "illumination" if kind == "probe" else "transmission"
        y, x = shown.pixel_size_m or (1.0, 1.0)
        image["image_size"] = np.array([shown.shape[1] * x, shown.shape[0] * y])
        image["image_size"].attrs["units"] = "m" if shown.pixel_size_m else "px"
    for kind, held in result.last.items():
        every = group(entry, f"last_{kind}s", "NXcollection")
        for key, storage in held.items():
            _image(every, key, storage, centred=kind == "probe")
    _for_the_eye(entry, result.object[name], result.coverage.get(name))


def _image(parent: h5py.Group, name: str, storage: Storage, *, centred: bool) -> h5py.Group:
    stack = isinstance(storage, Stack) and storage.layers == 1
    first = "r3" if isinstance(storage, Volume) else "z" if stack else "layer"
    made = group(parent, name, "NXdata", signal="data", axes=[first, "y", "x"], interpretation="image")
    made.create_dataset("data", data=storage.data, **PACKED)
    made["data"].attrs["interpretation"] = "image"
    if isinstance(storage, Volume):
        start = -(storage.slices // 2) if centred else storage.first
        number(made, "r3", (np.arange(storage.slices) + start) * storage.slice_m, "m")
    else:
        made["layer"] = np.arange(len(storage.data))
    if isinstance(storage, Stack):
        number(made, "z", np.tile(np.concatenate([[0.0], np.cumsum(storage.distances_m)]), storage.layers), "m")
        made["mode"] = np.repeat(np.arange(storage.layers), storage.depth)
        number(made, "slice_distances", storage.distances_m, "m")
    pixel = storage.pixel_size_m or (1.0, 1.0)
    offset = [-(n // 2) for n in storage.shape] if centred else storage.offset
    for axis, n, p, o in zip("yx", storage.shape, pixel, offset, strict=True):
        number(made, axis, (np.arange(n) + o) * p, "m" if storage.pixel_size_m else "px")
    power = (np.abs(storage.data) ** 2).sum(axis=(1, 2), dtype=float)
    if centred and power.sum() > 0:
        made["share"] = power / power.sum()
        made["share"].attrs["long_name"] = "part of the light in each layer"
    return made


def _for_the_eye(entry: h5py.Group, storage: Storage, coverage: NDArray[np.float32] | None) -> None:
    """Real pictures of the first layer (of a stack all its slices together), for programs that show no complex numbers: constant
    and ramp of the phase removed."""
    image = np.asarray(storage.through())
    lit = coverage if coverage is not None and coverage.shape == image.shape else np.ones(image.shape, np.float32)
    ramp = fit_ramp(image, lit)
    flat = remove_ramp(image, ramp)
    for name, data, units in (("amplitude", np.abs(flat), ""), ("phase", np.angle(flat), "rad")):
        made = group(entry, f"object_{name}", "NXdata", signal="data", axes=["y", "x"])
        made.create_dataset("data", data=data.astype(np.float32), **PACKED)
        made["data"].attrs.update({"interpretation": "image", "units": units, "ramp": ramp})
        for axis in "yx":
            made[axis] = entry[f"object/{axis}"]


def _instrument(entry: h5py.Group, told: Mapping[str, Any], energy: float | None) -> None:
    instrument = group(entry, "instrument_1", "NXinstrument")
    source = group(instrument, "source_1", "NXsource")
    source["name"], source["probe"], source["type"] = "not known", "x-ray", "not known"
    beam = group(instrument, "beam_1", "NXbeam")
    detector = group(instrument, "detector_1", "NXdetector")
    voltage = told.get("acc_voltage")
    energy = voltage or energy
    if voltage:
        del source["probe"]
        source["probe"] = "electron"
    joules = None if energy is None else energy * KEV_J
    pixel = told.get("psize")
    y, x = (None, None) if pixel is None else np.broadcast_to(np.asarray(pixel, float), 2)
    for place, name, value, units in (
        (source, "energy", joules, "J"),
        (beam, "energy", joules, "J"),
        (beam, "incident_beam_energy", joules, "J"),
        (detector, "distance", told.get("distance"), "m"),
        (detector, "x_pixel_size", x, "m"),
        (detector, "y_pixel_size", y, "m"),
    ):
        if value is not None:
            number(place, name, value, units)


def _positions(entry: h5py.Group, result: Result, told: Mapping[str, Any]) -> None:
    """Where the beam was on the sample, as `positions_m`, x and y; and of which frame each is."""
    units = "m" if all(storage.pixel_size_m for storage in result.object.values()) else "px"
    places = np.zeros((len(result.positions_m), 3))
    places[:, 0], places[:, 1] = result.positions_m[:, 1], result.positions_m[:, 0]
    sample = group(entry, "sample_1", "NXsample")
    sample["name"] = str(told.get("label") or "not known")
    if told.get("angle") is not None:
        number(sample, "rotation_angle", told["angle"], "deg")
    geometry = group(sample, "geometry_1", "NXcollection")
    number(geometry, "translation", places, units)
    group(entry, "data_1", "NXcollection")["translation"] = h5py.SoftLink("/entry_1/sample_1/geometry_1/translation")
    shown = group(entry, "positions", "NXdata", signal="y", axes=["x"], x_indices=[0])
    shown["title"] = "where the beam was on the sample"
    for column, name in enumerate("xy"):
        number(shown, name, places[:, column], units)
    if len(result.frame_numbers) == len(places):
        shown["scan"], shown["frame"] = result.frame_numbers[:, 0], result.frame_numbers[:, 1]
        shown["scan"].attrs["names"] = list(result.scans) or [""]
        shown["frame"].attrs["long_name"] = "the source's number of each frame"
    for name, refined in result.refined_m.items():
        number(shown, f"refined_{name}", refined, units)


def _beside(entry: h5py.Group, result: Result) -> None:
    """What was refined beside object, probe and positions."""
    if not result.beside:
        return
    made, held = group(entry, "refined", "NXcollection"), result.beside
    if "tilts" in held:
        number(made, "tilts", held["tilts"], "rad")
        made["tilts"].attrs["columns"] = [f"{axis}_{where}" for where in ("before", "inside", "after") for axis in "yx"]
    if "current" in held:
        number(made, "beam_current", held["current"]).attrs["long_name"] = "factor on the amplitude of the probe"
    if "aberrations" in held:
        number(made, "aberrations", held["aberrations"] * 1e-10, "m").attrs["columns"] = names(held["aberrations"].shape[1])
    if "background" in held:
        number(made, "static_background", held["background"] ** 2).attrs["long_name"] = "photons in each pixel, centred"


def _curves(entry: h5py.Group, result: Result) -> None:
    """Engines' own errors and the data misfit; only the misfit is of one kind in all iterations."""
    held = {
        "misfit_photon": result.misfit[:, 1],
        "misfit_amplitude": result.misfit[:, 0],
        "poisson_expectation": result.misfit[:, 2],
    }
    errors = {f"error_{name}": result.errors[:, column] for column, name in enumerate(("fourier", "photon", "exit"))}
    metrics = group(entry, "metrics", "NXdata", axes=["iteration"])
    shown = {**held, **errors} if len(result.misfit) == len(result.errors) else held if len(result.misfit) else errors
    signal, *others = shown
    metrics.attrs.update({"signal": signal, "auxiliary_signals": others})
    metrics["title"] = "data misfit of probe × object, and the engines' own errors"
    for name, values_of in shown.items():
        number(metrics, name, values_of)
    metrics["iteration"] = np.arange(1, len(shown[signal]) + 1)


def _quality(entry: h5py.Group, result: Result) -> None:
    """What was measured of it last, where anything was; the ring correlation so that it can be drawn."""
    if not result.quality:
        return
    values(entry, "quality", result.quality)
    if (frc := entry["quality"].get("frc")) is not None and "correlation" in frc and "frequency_per_m" in frc:
        frc.attrs.update({"NX_class": "NXdata", "signal": "correlation", "axes": ["frequency_per_m"]})
        frc.attrs["auxiliary_signals"] = ["threshold"]
        in_metres = all(storage.pixel_size_m for storage in result.object.values())
        frc["frequency_per_m"].attrs["units"] = "1/m" if in_metres else "1/px"


def _ledger(entry: h5py.Group, result: Result) -> None:
    """What became of the frames: counts, and every frame with a known position."""
    ledger = group(entry, "ledger", "NXcollection")
    values(ledger, "counts", dict(result.ledger))
    frames = group(ledger, "frames", "NXcollection")
    for column, name in enumerate("yx"):
        number(frames, name, result.ledger_frames[:, column], "px")
    frames["state"] = result.ledger_frames[:, 2].astype(np.uint8)
    frames["state"].attrs["names"] = list(LEDGER_CODES)


def _provenance(entry: h5py.Group, result: Result) -> None:
    """Who made what of what, with what and when."""
    entry["program_name"] = "ptystream"
    entry["program_name"].attrs["version"] = result.versions.get("ptystream", __version__)
    if result.uid:
        entry["entry_identifier"] = result.uid
    if result.started:
        entry["start_time"] = moment(result.started)
    if result.ended:
        entry["end_time"] = moment(result.ended)
    if result.made_by.get("user"):
        group(entry, "user_1", "NXuser")["name"] = result.made_by["user"]
    for number_, step in enumerate((e for e in result.schedule if e["do"] == "engine"), 1):
        process = _process(entry, result, number_)
        process["name"], process["label"] = str(step.get("name", "")), str(step["label"])
        values(process, "parameters", step.get("parameters") or {})
    process = entry["process_1"] if "process_1" in entry else _process(entry, result, 1)
    note(process, "configuration", "the configuration as it was given", result.parameters)
    if result.used:
        note(process, "parameters_in_force", "every parameter with the value in force", result.used)
    told = group(entry, "provenance", "NXcollection")
    values(told, "versions", dict(result.versions))
    values(told, "made_by", dict(result.made_by))
    values(told, "scans", {label: dict(scan) for label, scan in result.scans.items()})
    note(told, "schedule", "everything that was done between iterations, in order", list(result.schedule))
    note(told, "decisions", "what was decided from the data once", result.decisions)
    note(told, "iterations", "duration and error of each pass", list(result.iter_info))
    audit = []
    for change in steered(result.schedule):
        at = change.pop("time_ns")
        audit.append({**change, "time": moment(at / 1e9)})
    note(told, "steering", "parameters that were changed while it ran", audit)


def _process(entry: h5py.Group, result: Result, sequence: int) -> h5py.Group:
    process = group(entry, f"process_{sequence}", "NXprocess")
    process["program"], process["version"] = "ptystream", result.versions.get("ptystream", __version__)
    process["sequence_index"] = sequence
    if result.ended:
        process["date"] = moment(result.ended)
    return process


def _as_ptychodus(
    file: h5py.File, entry: h5py.Group, result: Result, name: str, told: Mapping[str, Any], energy: float | None
) -> None:
    """The same under the names that ptychodus reads, at the root and in a group of its own. There pixel (N - 1) / 2 is the centre
    of an array, here N // 2: the centre of the object is given so that probe and object meet as they do here."""
    sample, probe = result.object[name], result.probe[name]
    pixel = np.array(sample.pixel_size_m or (1.0, 1.0))
    of_object, of_probe = np.array(sample.shape), np.array(probe.shape)
    y, x = (np.array(sample.offset) + (of_object - 1) / 2 + of_probe // 2 - (of_probe - 1) / 2) * pixel
    file["object"], file["probe"] = entry["object/data"], entry["probe/data"]
    for key, storage in (("object", sample), ("probe", probe)):
        height, width = storage.pixel_size_m or (1.0, 1.0)
        file[key].attrs.update({"pixel_height_m": height, "pixel_width_m": width})
    file["object"].attrs.update({"center_x_m": x, "center_y_m": y})
    numbers = result.frame_numbers[:, 1] if _one_scan(result) else np.arange(len(result.positions_m))
    file["probe_position_indexes"] = numbers
    file["probe_position_y_m"], file["probe_position_x_m"] = result.positions_m[:, 0], result.positions_m[:, 1]
    loss = result.misfit[:, 1] if len(result.misfit) and np.isfinite(result.misfit[:, 1]).all() else result.errors[:, 0]
    file["loss_epochs"], file["loss_values"] = np.arange(1, len(loss) + 1), loss
    own = group(entry, "ptychodus", "NXcollection")
    for key in ("probe_position_indexes", "loss_epochs", "loss_values"):
        own[key] = file[key]
    own["object_center_x_m"], own["object_center_y_m"] = x, y
    for key, storage in (("object", sample), ("probe", probe)):
        height, width = storage.pixel_size_m or (1.0, 1.0)
        own[f"{key}_pixel_height_m"], own[f"{key}_pixel_width_m"] = height, width
    about = {
        "name": result.run,
        "comments": "",
        "detector_object_distance_m": told.get("distance"),
        "probe_energy_eV": None if energy is None else energy * KEV_EV,
        "photon_energy_eV": None if energy is None else energy * KEV_EV,
        "tomography_angle_deg": told.get("angle"),
    }
    file.attrs.update({key: value for key, value in about.items() if value is not None})


def _one_scan(result: Result) -> bool:
    """Whether the sources' numbers tell the frames apart."""
    numbers = result.frame_numbers
    return len(numbers) == len(result.positions_m) and (not len(numbers) or bool((numbers[:, 0] == numbers[0, 0]).all()))
