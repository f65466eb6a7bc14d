"""`ptystream convert`: what is in one file is in the other, where others look for it, in SI units."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import faults as scans
import h5py
import numpy as np
import pytest
from problems import BEAM, GEOMETRY, PATTERNS, PLACES
from samples import sample

from ptystream.convert import ConvertError, convert, kind_of
from ptystream.faults import Faults
from ptystream.metrics import Metrics
from ptystream.params.load import load
from ptystream.plan import make_plan
from ptystream.playback import Playback
from ptystream.recording import Recorder, Recording
from ptystream.results import as_json
from ptystream.session import Session
from ptystream.storage import ptyd_reading, ptyr
from ptystream.storage.h5 import H5Error

KEV_J = 1.602176634e-16
REQUIRED = {
    "cxi_version": None,
    "entry_1/title": None,
    "entry_1/definition": None,
    "entry_1/instrument_1/source_1/name": None,
    "entry_1/instrument_1/source_1/energy": "J",
    "entry_1/instrument_1/source_1/probe": None,
    "entry_1/instrument_1/source_1/type": None,
    "entry_1/instrument_1/beam_1/energy": "J",
    "entry_1/instrument_1/beam_1/extent": "m",
    "entry_1/instrument_1/beam_1/incident_beam_divergence": "rad",
    "entry_1/instrument_1/beam_1/incident_beam_energy": "J",
    "entry_1/instrument_1/beam_1/incident_energy_spread": "J",
    "entry_1/instrument_1/detector_1/transformations/vector": None,
    "entry_1/instrument_1/detector_1/translation": "m",
    "entry_1/instrument_1/detector_1/data": None,
    "entry_1/instrument_1/detector_1/data_1": None,
    "entry_1/instrument_1/detector_1/x_pixel_size": "m",
    "entry_1/instrument_1/detector_1/y_pixel_size": "m",
    "entry_1/instrument_1/detector_1/distance": "m",
    "entry_1/instrument_1/detector_1/beam_center_x": "m",
    "entry_1/instrument_1/detector_1/beam_center_y": "m",
    "entry_1/instrument_1/monitor_1/data": None,
    "entry_1/data/data": None,
    "entry_1/data/x": "m",
    "entry_1/data/y": "m",
    "entry_1/data/x_indices": None,
    "entry_1/data/y_indices": None,
    "entry_1/data_1/data": None,
    "entry_1/data_1/translation": "m",
    "entry_1/sample_1/transformations/x": "m",
    "entry_1/sample_1/transformations/y": "m",
    "entry_1/sample_1/geometry_1/translation": "m",
}
"""What the definition asks for (minOccurs = 1), and CXI's names of the same."""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording with its configuration, as `ptystream live` leaves it."""
    folder = tmp_path_factory.mktemp("recorded")
    given = scans.configuration(folder, scans.Case("", Faults()))
    mask = np.ones((32, 32), int)
    mask[3, 4] = 0
    given["scans"]["s"]["data"]["mask"] = mask.tolist()
    recorder = Recorder(folder / "scan.ptyrec", {"configuration": as_json(given)})
    for message in Recording(scans.record(folder / "bare.ptyrec")):
        recorder.write(message)
    recorder.close(finished=True)
    return folder / "scan.ptyrec"


@pytest.fixture(scope="module")
def cxi(recorded: Path) -> Path:
    made = recorded.with_suffix(".cxi")
    assert convert(recorded, made) == f"{made}: 92 frames of 32 × 32"
    return made


def frames_of(path: Path) -> dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Index → (data, weights, position) of a .ptyd file."""
    found: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    parts, _ = ptyd_reading.chunks(path)
    for number, file in parts.items():
        row, rows = 0, 1
        while row < rows:
            rows, chunk = ptyd_reading.read_piece(path, number, file, row, ptyd_reading.read_meta(path).shape)
            row += len(chunk)
            for k, index in enumerate(chunk.indices.tolist()):
                found[index] = (chunk.data[k], chunk.weights[k], chunk.positions[k])
    return found


def test_everything_that_the_definition_asks_for_is_there_with_its_unit(cxi: Path) -> None:
    with h5py.File(cxi) as file:
        for path, units in REQUIRED.items():
            node = file[path]
            assert isinstance(node, h5py.Dataset), path
            assert node.attrs.get("units") == units, path
        assert file["entry_1/definition"][()] == b"NXcxi_ptycho"
        kinds = {
            path: file[f"entry_1/{path}"].attrs["NX_class"] for path in ("instrument_1/beam_1", "data", "data_1", "sample_1")
        }
        wanted = {"instrument_1/beam_1": "NXbeam", "data": "NXdata", "data_1": "NXcollection", "sample_1": "NXsample"}
        assert kinds == wanted
        assert file["entry_1"].attrs["NX_class"] == "NXentry"
        assert file.attrs["default"] == "entry_1" and file["entry_1"].attrs["default"] == "data"
        assert file["entry_1/data"].attrs["signal"] == "data"
        translation = file["entry_1/instrument_1/detector_1/translation"]
        assert translation.attrs["interpretation"] == "image" and "translation" in translation.attrs["axes"]
        same = ("entry_1/instrument_1/detector_1/data", "entry_1/data_1/data", "entry_1/data/data")
        assert len({h5py.h5o.get_info(file[path].id).addr for path in same}) == 1, "no copies"


def test_the_frames_and_their_places_are_those_recorded(cxi: Path) -> None:
    with h5py.File(cxi) as file:
        data, detector = file["entry_1/data_1/data"][()], file["entry_1/instrument_1/detector_1"]
        mask = detector["mask"][()]
        assert data.dtype.kind == "u" and mask.dtype == np.uint32
        np.testing.assert_array_equal(np.argwhere(mask), [[3, 4]])
        np.testing.assert_array_equal(data, np.where(mask == 0, PATTERNS, 0))
        places = detector["translation"][()]
        np.testing.assert_allclose(places, np.stack([PLACES[:, 1], PLACES[:, 0], 0 * PLACES[:, 0]], 1))
        np.testing.assert_array_equal(detector["sequence_number"][()], np.arange(92))
        np.testing.assert_allclose(file["entry_1/instrument_1/beam_1/energy"][()], GEOMETRY["energy"] * KEV_J)
        np.testing.assert_allclose(detector["x_pixel_size"][()], GEOMETRY["psize"])
        np.testing.assert_allclose(detector["beam_center_y"][()], 16 * GEOMETRY["psize"])
        np.testing.assert_allclose(detector["distance"][()], GEOMETRY["distance"])


def test_a_file_goes_to_ptyd_and_back_unchanged(cxi: Path, recorded: Path, tmp_path: Path) -> None:
    direct, through, back = tmp_path / "direct.ptyd", tmp_path / "through.ptyd", tmp_path / "back.cxi"
    convert(recorded, direct)
    convert(cxi, through)
    convert(through, back)
    one, other = frames_of(direct), frames_of(through)
    assert one.keys() == other.keys() == set(range(92))
    for index, parts in one.items():
        for mine, yours in zip(parts, other[index], strict=True):
            np.testing.assert_array_equal(mine, yours)
    was, now = ptyd_reading.read_meta(direct), ptyd_reading.read_meta(through)
    assert was.shape == now.shape and was.label == now.label
    for name in ("psize", "energy", "center", "distance"):
        np.testing.assert_allclose(getattr(was, name), getattr(now, name))
    with h5py.File(cxi) as first, h5py.File(back) as second:
        for path in REQUIRED:
            if path != "entry_1/title":
                np.testing.assert_array_equal(first[path][()], second[path][()], path)


@pytest.mark.slow
def test_a_converted_file_is_reconstructed_as_the_recording_is(recorded: Path, tmp_path: Path) -> None:
    convert(recorded, tmp_path / "scan.ptyd")
    given = scans.configuration(tmp_path, scans.Case("", Faults()))
    playback, configuration = Playback(str(recorded)), load(given)
    Session(make_plan(configuration, transports=playback.transports(configuration)), metrics=Metrics()).run()
    wanted = ptyr.read(tmp_path / "faults.ptyr")
    given["scans"]["s"]["data"] = {"name": "PtydScan", "dfile": "scan.ptyd"}
    given["run"] = "again"
    (path,) = Session(make_plan(load(given)), metrics=Metrics()).run()
    found = ptyr.read(path)
    assert found.ledger["used"] == 92
    error, other = (scans.phase_error(result, wanted) for result in (wanted, found))
    assert abs(error - other) < 0.3 * error


def test_masks_that_differ_between_frames_are_kept(recorded: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.ptyd"
    convert(recorded, plain)
    with h5py.File(plain, "r+") as file:
        file["chunks/0/weights"][5, 7, 8] = False
    convert(plain, tmp_path / "m.cxi")
    with h5py.File(tmp_path / "m.cxi") as file:
        mask = file["entry_1/instrument_1/detector_1/mask"]
        assert mask.shape == (92, 32, 32) and mask[5, 7, 8] == 1 and mask[4, 7, 8] == 0
    convert(tmp_path / "m.cxi", tmp_path / "m.ptyd")
    assert not frames_of(tmp_path / "m.ptyd")[5][1][7, 8]


def test_files_of_others_are_read_that_turn_the_translations_and_lack_what_we_write(tmp_path: Path) -> None:
    places = np.arange(12.0).reshape(4, 3) * 1e-6
    with h5py.File(tmp_path / "other.cxi", "w") as file:
        file["entry_1/instrument_1/detector_1/data"] = np.ones((4, 6, 8), np.float32)
        file["entry_1/sample_1/geometry_1/translation"] = places.T
        file["entry_1/instrument_1/source_1/energy"] = 8.0 * KEV_J
    convert(tmp_path / "other.cxi", tmp_path / "other.ptyd")
    meta = ptyd_reading.read_meta(tmp_path / "other.ptyd")
    assert (meta.shape, meta.psize, meta.num_frames) == ((6, 8), None, 4)
    assert meta.energy == pytest.approx(8.0)
    np.testing.assert_allclose([p for *_, p in frames_of(tmp_path / "other.ptyd").values()], places[:, 1::-1])


@pytest.mark.parametrize("name", ["moonflower_append.ptyd", "moonflower_link.ptyd"])
def test_ptypys_prepared_files_become_cxi(name: str, tmp_path: Path) -> None:
    given = sample(name)
    convert(given, tmp_path / "m.cxi")
    wanted = frames_of(given)
    with h5py.File(tmp_path / "m.cxi") as file:
        assert len(file["entry_1/data_1/data"]) == len(wanted)
        for row, index in enumerate(file["entry_1/instrument_1/detector_1/sequence_number"][()].tolist()):
            np.testing.assert_array_equal(file["entry_1/data_1/data"][row], wanted[index][0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["moonflower_minimal.ptyr", "ours"])
def test_a_result_becomes_images_that_others_find(name: str, recorded: Path, tmp_path: Path) -> None:
    given: Path
    if name == "ours":
        configuration = load(scans.configuration(tmp_path, scans.Case("", Faults())))
        transports = Playback(str(recorded)).transports(configuration)
        (given,) = Session(make_plan(configuration, transports=transports), metrics=Metrics()).run()
    else:
        given = sample(name)
    convert(given, tmp_path / "r.cxi")
    was = ptyr.read(given)
    with h5py.File(tmp_path / "r.cxi") as file:
        for part, held in (("object", was.object), ("probe", was.probe)):
            ((_, storage),) = held.items()
            np.testing.assert_array_equal(file[part][()], storage.data)
            np.testing.assert_array_equal(file[f"entry_1/{part}/data"][()], storage.data)
            y = file[f"entry_1/{part}/y"]
            assert y.attrs["units"] == "m"
            np.testing.assert_allclose(np.diff(y[()]), storage.pixel_size_m[0])
            assert file[part].attrs["pixel_width_m"] == pytest.approx(storage.pixel_size_m[1])
        assert file["entry_1/image_1/data_space"][()] == b"real"
        assert file["entry_1"].attrs["default"] == "object"
        if name == "ours":
            assert file.attrs["probe_energy_eV"] == pytest.approx(1000 * GEOMETRY["energy"])
            np.testing.assert_allclose(np.sort(file["probe_position_x_m"][()]), np.sort(was.positions_m[:, 1]))


def test_nothing_is_overwritten_without_force_and_a_failure_leaves_what_was(recorded: Path, tmp_path: Path) -> None:
    made = tmp_path / "m.ptyd"
    made.write_text("precious")
    with pytest.raises(ConvertError, match="--force"):
        convert(recorded, made)
    broken = tmp_path / "broken.cxi"
    with h5py.File(broken, "w") as file:
        file["entry_1/title"] = "nothing in it"
    with pytest.raises(H5Error, match="no real numbers"):
        convert(broken, made, force=True)
    assert made.read_text() == "precious"
    convert(recorded, made, force=True)
    assert len(frames_of(made)) == BEAM.frames
    assert {file.name for file in tmp_path.iterdir()} == {"m.ptyd", "broken.cxi"}


def test_what_cannot_be_converted_is_said_with_a_remedy(recorded: Path, cxi: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("no file of ours")
    bare = scans.record(tmp_path / "bare.ptyrec")
    cases: list[tuple[Any, str, dict[str, Any], str]] = [
        (recorded, "m.tiff", {}, "must end in .ptyd, .cxi"),
        (cxi, "m.nxs", {}, "is a cxi file already"),
        (bare, "m.ptyd", {}, "give it with --config"),
        (recorded, "m.ptyd", {"scan": "t"}, "must be one of s"),
        (recorded, "m.ptyd", {"acquisition": "b"}, "nothing of the run"),
    ]
    for given, made, more, said in cases:
        with pytest.raises(ConvertError, match=said):
            convert(given, tmp_path / made, **more)
    with pytest.raises(H5Error, match="no HDF5 file"):
        kind_of(tmp_path / "text.txt")
    with h5py.File(tmp_path / "linked.cxi", "w") as file:
        file["entry_1/data_1/translation"] = np.zeros((3, 3))
        file["entry_1/data_1/data"] = h5py.ExternalLink("/etc/hostname", "/")
    with pytest.raises(H5Error, match="another file"):
        convert(tmp_path / "linked.cxi", tmp_path / "l.ptyd")


def test_a_scan_and_an_acquisition_of_several_are_chosen(recorded: Path, tmp_path: Path) -> None:
    given = scans.configuration(tmp_path, scans.Case("", Faults()))
    given["scans"]["t"] = given["scans"]["s"]
    recorder = Recorder(tmp_path / "two.ptyrec", {"configuration": as_json(given)})
    for message in Recording(recorded):
        recorder.write(message)
        kind, half = message.channel.partition("/")[2], tuple(message.parts[1:])
        if message.arrival_ns % 10**18 < 50 * scans.PACE_NS:  # of the other scan there are but 50 frames
            recorder.write(replace(message, channel=f"t/{kind}", parts=half))
    recorder.close()
    with pytest.raises(ConvertError, match="say which with --scan"):
        convert(tmp_path / "two.ptyrec", tmp_path / "m.ptyd")
    for label, acquisition, count in (("s", "a", 92), ("t", None, 49)):
        convert(tmp_path / "two.ptyrec", tmp_path / f"{label}.ptyd", scan=label, acquisition=acquisition)
        assert len(frames_of(tmp_path / f"{label}.ptyd")) == count


@pytest.mark.slow
def test_the_command(recorded: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "ptystream", "convert"]
    done = subprocess.run([*command, str(recorded), str(tmp_path / "m.cxi")], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("92 frames of 32 × 32\n")
    done = subprocess.run([*command, str(recorded), str(tmp_path / "m.cxi")], capture_output=True, text=True, timeout=240)
    assert done.returncode == 1 and "is there already" in done.stderr
    assert Counter(file.suffix for file in tmp_path.iterdir()) == {".cxi": 1}
