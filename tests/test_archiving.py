"""Results beside their own file: what is in the CXI/NeXus file, who can read it, and that nothing there costs a run anything."""

from __future__ import annotations

import json
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from drawn import result
from problems import BEAM, GEOMETRY
from test_ptycho import parameters, sources

from ptystream import Ptycho
from ptystream.archiving import Archivist, Place
from ptystream.convert import ConvertError, cxi_beside, write_cxi
from ptystream.metrics import Metrics
from ptystream.params.errors import ConfigurationError
from ptystream.params.plain import Param
from ptystream.reconstruction import Storage
from ptystream.storage import ptyr
from ptystream.storage.tiled_entry import metadata

KEV_J = 1.602176634e-16


def given(home: Path) -> Param:
    p = parameters(home, a={"numiter": 6}, b={"name": "ML", "numiter": 3})
    p.scans.MF.coherence.num_probe_modes = 2
    p.io.rfile = "%(run)s_%(engine)s.ptyr"
    p.io.cxi = True
    return p


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ptyr.Result]:
    """The CXI file of a session's last engine, and the result that it was made of."""
    home = tmp_path_factory.mktemp("archived")
    began = time.time()
    P = Ptycho(given(home), transports=sources()).run()
    assert [path.name for path in P.results] == ["t_DM.ptyr", "t_ML.ptyr"]
    assert sorted(path.name for path in home.glob("*.cxi")) == ["t_DM.cxi", "t_ML.cxi"]
    saved = ptyr.read(P.results[-1])
    assert began <= saved.started <= saved.ended <= time.time()
    return P.results[-1].with_suffix(".cxi"), saved


def text(node: Any) -> str:
    return str(node[()].decode())


def test_it_holds_everything_that_the_result_does(made: tuple[Path, ptyr.Result]) -> None:
    path, saved = made
    with h5py.File(path) as file:
        entry = file["entry_1"]
        for kind, held in (("object", saved.object), ("probe", saved.probe)):
            for name, storage in held.items():
                image = entry[f"{kind}s/{name}"]
                np.testing.assert_array_equal(image["data"][()], storage.data)
                assert image.attrs["NX_class"] == "NXdata" and image["y"].attrs["units"] == "m"
        assert entry["probe/data"].shape[0] == 2 and entry["probe/share"][()].sum() == pytest.approx(1)
        np.testing.assert_array_equal(entry["object/coverage"][()], saved.coverage["SMFG00"])
        y, x = (entry[f"object/{axis}"][()] for axis in "yx")
        np.testing.assert_allclose(y[0], saved.object["SMFG00"].offset[0] * BEAM.pixel_m)
        np.testing.assert_allclose(np.diff(x), BEAM.pixel_m)
        np.testing.assert_allclose(entry["sample_1/geometry_1/translation"][:, 0], saved.positions_m[:, 1])
        np.testing.assert_allclose(entry["positions/y"][()], saved.positions_m[:, 0])
        np.testing.assert_array_equal(entry["positions/frame"][()], np.arange(BEAM.frames))
        assert list(entry["positions/scan"].attrs["names"]) == ["MF"]
        np.testing.assert_array_equal(entry["metrics/misfit_photon"][()], saved.misfit[:, 1])
        np.testing.assert_array_equal(entry["metrics/error_fourier"][()], saved.errors[:, 0])
        counts = entry["ledger/counts"]
        assert {key: counts[key][()] for key in counts} == dict(saved.ledger) and counts["used"][()] == BEAM.frames
        state = entry["ledger/frames/state"]
        assert len(state) == BEAM.frames and {state.attrs["names"][code] for code in state[()]} == {"used"}
        instrument = entry["instrument_1"]
        np.testing.assert_allclose(instrument["source_1/energy"][()], GEOMETRY["energy"] * KEV_J)
        np.testing.assert_allclose(instrument["detector_1/x_pixel_size"][()], GEOMETRY["psize"])
        assert "definition" not in entry, "it holds no frames"
    assert path.read_bytes()[8] == 3, "the superblock of HDF5 1.10, which old programs read"


def test_it_says_who_made_it_of_what_with_what_and_when(made: tuple[Path, ptyr.Result]) -> None:
    path, saved = made
    with h5py.File(path) as file:
        entry = file["entry_1"]
        assert text(entry["entry_identifier"]) == saved.uid and len(saved.uid) == 36
        for name, seconds in (("start_time", saved.started), ("end_time", saved.ended)):
            told = datetime.fromisoformat(text(entry[name]))
            assert told.tzinfo == UTC and abs(told.timestamp() - seconds) < 2e-3
        first, second = entry["process_1"], entry["process_2"]
        assert first.attrs["NX_class"] == "NXprocess" and [p["sequence_index"][()] for p in (first, second)] == [1, 2]
        assert [text(p["name"]) for p in (first, second)] == ["DM", "ML"]
        assert text(first["program"]) == "ptystream" and text(first["version"]) == saved.versions["ptystream"]
        assert datetime.fromisoformat(text(second["date"]))
        assert first["parameters/numiter"][()] == 6 and second["parameters/numiter"][()] == 3
        configuration = json.loads(text(first["configuration/data"]))
        assert configuration["scans"]["MF"]["data"]["shape"] == BEAM.side
        assert json.loads(text(first["parameters_in_force/data"]))["data_type"] == "single"
        provenance = entry["provenance"]
        assert text(provenance["versions/numpy"]) == np.__version__
        scan = provenance["scans/MF"]
        assert json.loads(text(scan["acquisition"])) == ["of MF", 0]
        schedule = json.loads(text(provenance["schedule/data"]))
        assert [entry["do"] for entry in schedule].count("engine") == 2
        assert json.loads(text(provenance["steering/data"])) == []
        assert text(provenance["made_by/host"])


def test_what_was_steered_is_told_with_who_and_when(tmp_path: Path) -> None:
    steered = {
        "do": "steer",
        "path": "live.latency",
        "value": 0.5,
        "before": None,
        "who": "anna",
        "time_ns": 1_700_000_000 * 10**9,
    }
    recut = {
        "do": "recut",
        "scan": "MF",
        "parameters": {"center": [64.0, 63.0], "offset": [1e-7, 0.0]},
        "before": {"center": [60.0, 60.0], "offset": [0.0, 0.0]},
        "decisions": {},
        "anew": False,
        "who": "bert",
        "time_ns": 1_700_000_001 * 10**9,
    }
    write_cxi(tmp_path / "r.cxi", result(schedule=[steered, recut]))
    with h5py.File(tmp_path / "r.cxi") as file:
        told, center, offset = json.loads(text(file["entry_1/provenance/steering/data"]))
    assert center == {
        "who": "bert",
        "path": "scans.MF.data.center",
        "before": [60.0, 60.0],
        "value": [64.0, 63.0],
        "time": "2023-11-14T22:13:21.000+00:00",
    }
    assert (offset["path"], offset["value"]) == ("scans.MF.data.offset", [1e-7, 0.0])
    assert [change["path"] for change in metadata(result(schedule=[steered, recut]), tmp_path)["steering"]] == [
        "live.latency",
        "scans.MF.data.center",
        "scans.MF.data.offset",
    ]
    assert told == {
        "who": "anna",
        "path": "live.latency",
        "before": None,
        "value": 0.5,
        "time": "2023-11-14T22:13:20.000+00:00",
    }


@pytest.mark.parametrize("pixel", [(3e-8, 3e-8), None])
def test_every_kind_of_result_is_written(pixel: tuple[float, float] | None, tmp_path: Path) -> None:
    for number, changed in enumerate(({}, {"coverage": {}}, {"iterations": 0}, {"misfit": np.zeros((0, 3))})):
        path = tmp_path / f"{number}.cxi"
        write_cxi(path, result(pixel=pixel, **changed))
        with h5py.File(path) as file:
            assert file["entry_1/object/y"].attrs["units"] == ("m" if pixel else "px")
            assert file["entry_1/object_phase/data"].shape == (80, 90)


def test_of_several_objects_one_is_the_default_and_all_are_there(tmp_path: Path) -> None:
    one = result()
    both = {name: Storage(one.object["S"].data * factor, (3e-8, 3e-8), (-40, -45)) for name, factor in (("S", 1), ("T", 2))}
    several = result(object=both, probe={"S": one.probe["S"], "T": one.probe["S"]})
    write_cxi(tmp_path / "a.cxi", several)
    write_cxi(tmp_path / "b.cxi", several, "T")
    for name, default in (("a", "S"), ("b", "T")):
        with h5py.File(tmp_path / f"{name}.cxi") as file:
            assert sorted(file["entry_1/objects"]) == ["S", "T"]
            np.testing.assert_array_equal(file["object"][()], both[default].data)
            assert file["entry_1/object"] == file[f"entry_1/objects/{default}"]
    with pytest.raises(ConvertError, match="'U': the result has objects S, T"):
        write_cxi(tmp_path / "c.cxi", several, "U")
    assert not (tmp_path / "c.cxi").exists()


def test_silx_finds_the_default_plot_and_every_other(made: tuple[Path, ptyr.Result]) -> None:
    silx_io = pytest.importorskip("silx.io", reason="silx is not installed")
    from silx.io import nxdata

    path, saved = made
    with silx_io.open(str(path)) as file:
        shown = nxdata.get_default(file)
        assert shown is not None and shown.is_valid and not shown.issues
        np.testing.assert_array_equal(shown.signal[()], saved.object["SMFG00"].data)
        assert shown.axes_names == ["layer", "y (m)", "x (m)"]
        for name in ("object", "probe", "object_phase", "object_amplitude", "metrics", "positions"):
            found = nxdata.NXdata(file[f"entry_1/{name}"])
            assert found.is_valid and not found.issues, name
        curves = nxdata.NXdata(file["entry_1/metrics"])
        assert curves.signal_name == "misfit_photon" and "error_fourier" in curves.auxiliary_signals_names


def test_ptychodus_would_cut_the_same_patches(made: tuple[Path, ptyr.Result]) -> None:
    """By its rules: pixel (N - 1) / 2 of an array is its centre. What its own readers took is told in docs/reference/cxi.md."""
    path, saved = made
    with h5py.File(path) as file:
        sample, probe, own = file["object"], file["probe"], file["entry_1/ptychodus"]
        assert sample.attrs["center_y_m"] == own["object_center_y_m"][()]
        corners = {}
        for axis, size in (("y", "height"), ("x", "width")):
            place, n = "yx".index(axis) + 1, {"y": 0, "x": 1}[axis]
            pixel = sample.attrs[f"pixel_{size}_m"]
            middle = (file[f"probe_position_{axis}_m"][()] - sample.attrs[f"center_{axis}_m"]) / pixel
            theirs = middle + (sample.shape[place] - 1) / 2 - (probe.shape[place] - 1) / 2
            ours = saved.positions_m[:, n] / pixel - saved.object["SMFG00"].offset[n] - probe.shape[place] // 2
            np.testing.assert_allclose(theirs, ours, atol=1e-6)
            corners[axis] = theirs
        assert file["entry_1/image_1/data"] == file["probe"] and file["entry_1/image_2/data"] == file["object"]
        assert file.attrs["photon_energy_eV"] == pytest.approx(1000 * GEOMETRY["energy"])
        np.testing.assert_array_equal(file["probe_position_indexes"][()], np.arange(BEAM.frames))


def test_without_the_parameter_there_is_no_such_file_and_with_it_there_must_be_a_result(tmp_path: Path) -> None:
    p = given(tmp_path)
    p.io.cxi = False
    Ptycho(p, transports=sources()).run()
    assert not list(tmp_path.glob("*.cxi"))
    for rfile in (None, "%(run)s.cxi"):
        p = given(tmp_path)
        p.io.rfile = rfile
        with pytest.raises(ConfigurationError, match=r"io\.cxi.*needs an io\.rfile that ends in \.ptyr"):
            Ptycho(p)


def test_a_disk_that_takes_no_more_costs_the_run_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ptystream.archives.cxi_beside", full)
    P = Ptycho(given(tmp_path), transports=sources()).run()
    assert len(P.results) == 2
    assert caplog.text.count("is not archived there: OSError: [Errno 28] No space left") == 2


def test_one_that_hangs_is_given_up_and_the_next_is_done(tmp_path: Path) -> None:
    hung, metrics = threading.Event(), Metrics()
    places = [Place("tiled", lambda path: str(hung.wait(60)), limit_s=0.1), Place("cxi", lambda path: path.name)]
    archivist = Archivist(places, metrics.archived)
    began = time.monotonic()
    for number in range(3):
        archivist.offer(tmp_path / f"{number}.ptyr", finished=True)
    archivist.close()
    assert time.monotonic() - began < 30
    hung.set()
    assert archivist.done == ["cxi: 0.ptyr", "cxi: 1.ptyr", "cxi: 2.ptyr"]
    assert archivist.failed == 3
    value = metrics.registry.get_sample_value
    assert value("ptystream_archived_total", {"target": "tiled", "outcome": "failed"}) == 3
    assert value("ptystream_archived_total", {"target": "cxi", "outcome": "done"}) == 3


def test_a_place_for_finished_results_gets_no_others() -> None:
    archivist = Archivist([Place("tiled", str, only_finished=True), Place("cxi", str)])
    archivist.offer(Path("half"), finished=False)
    archivist.offer(Path("whole"), finished=True)
    archivist.close()
    assert archivist.done == ["cxi: half", "tiled: whole", "cxi: whole"]


def test_more_than_can_wait_are_told_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    hold, begun = threading.Event(), threading.Event()

    def put(path: Path) -> str:
        begun.set()
        hold.wait(60)
        return ""

    archivist = Archivist([Place("cxi", put)])
    archivist.offer(Path("first"), finished=True)
    assert begun.wait(30)
    for number in range(103):
        archivist.offer(Path(str(number)), finished=True)
    assert archivist.failed == 3 and "results wait already" in caplog.text
    hold.set()
    archivist.close()
    assert len(archivist.done) == 101


def test_its_death_is_known_and_nothing_is_lost_unsaid(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    go, counted = threading.Event(), list[tuple[str, bool]]()

    def die(*_: Any) -> None:
        go.wait(60)
        raise MemoryError("no thread to be had")

    archivist = Archivist([Place("cxi", str)], lambda place, done: counted.append((place, done)))
    monkeypatch.setattr(archivist, "_put", die)
    for name in ("first", "second"):
        archivist.offer(Path(name), finished=True)
    go.set()
    archivist._thread.join(60)
    assert isinstance(archivist.failure, MemoryError)
    archivist.offer(Path("third"), finished=True)
    began = time.monotonic()
    archivist.close()
    archivist.close()
    assert time.monotonic() - began < 30 and counted == [("cxi", False)] * 3 and archivist.failed == 3
    for name in ("first", "second", "third"):
        assert f"cxi: {name} is not archived there: nothing is archived any more: MemoryError: no thread to be had" in caplog.text


def test_one_that_dies_while_much_waits_holds_no_end_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    begun, go = threading.Event(), threading.Event()

    def die(*_: Any) -> None:
        begun.set()
        go.wait(60)
        raise MemoryError("no room")

    archivist = Archivist([Place("cxi", str)])
    monkeypatch.setattr(archivist, "_put", die)
    archivist.offer(Path("first"), finished=True)
    assert begun.wait(30)
    for number in range(100):
        archivist.offer(Path(str(number)), finished=True)
    closing = threading.Thread(target=archivist.close)
    closing.start()  # waits for room, or for the end of a thread that has died by then
    go.set()
    closing.join(60)
    assert not closing.is_alive() and archivist.failed == 101
    assert caplog.text.count("nothing is archived any more") == 101


def test_a_thread_that_cannot_be_had_costs_one_result(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    archivist, start = Archivist([Place("cxi", lambda path: path.name)]), threading.Thread.start

    def none(self: threading.Thread) -> None:
        monkeypatch.setattr(threading.Thread, "start", start)
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none)
    for name in ("first", "second"):
        archivist.offer(Path(name), finished=True)
    archivist.close()
    assert archivist.done == ["cxi: second"] and archivist.failed == 1 and archivist.failure is None
    assert "first is not archived there: can't start new thread" in caplog.text


def test_the_file_lies_beside_whatever_the_result_is_called(tmp_path: Path) -> None:
    for name, wanted in (("a.ptyr", "a.cxi"), ("b", "b.cxi"), ("c.d.ptyr", "c.d.cxi"), ("e.h5", "e.h5.cxi")):
        ptyr.write(tmp_path / name, result())
        assert cxi_beside(tmp_path / name) == str(tmp_path / wanted)
        assert (tmp_path / wanted).exists()


QUALITY: dict[str, Any] = {
    "frc": {
        "frequency_per_m": [1e6, 2e6, 3e6],
        "correlation": [1.0, 0.8, 0.1],
        "threshold": [0.4, 0.3, 0.2],
        "resolution_m": None,
        "measured_ns": 1_700_000_000 * 10**9,
        "iteration": 30,
    },
    "coverage": {"overlap": 0.7, "holes": 0.01, "frames_per_beam": 4.5, "measured_ns": 1, "iteration": 30},
    "convention": {"ranking": [{"name": "as it is", "orientation": 0, "misfit": 0.2}], "lead": 1.7, "measured_ns": 1},
}


def test_what_was_measured_of_its_quality_goes_with_it(tmp_path: Path) -> None:
    """Into the result's own file, CXI, and Tiled's metadata."""
    ptyr.write(tmp_path / "r.ptyr", result(quality=QUALITY))
    back = ptyr.read(tmp_path / "r.ptyr")
    assert back.quality == QUALITY and metadata(back, tmp_path / "r.ptyr")["quality"] == QUALITY
    write_cxi(tmp_path / "r.cxi", back)
    with h5py.File(tmp_path / "r.cxi") as file:
        held = file["entry_1/quality"]
        assert sorted(held) == ["convention", "coverage", "frc"]
        assert held["coverage/overlap"][()] == 0.7 and held["frc/measured_ns"][()] == QUALITY["frc"]["measured_ns"]
        assert held["frc/resolution_m"].shape is None, "the halves agree to the last pixel"
        assert json.loads(text(held["convention/ranking"]))[0]["name"] == "as it is"
        assert held["frc"].attrs["NX_class"] == "NXdata" and held["frc"].attrs["signal"] == "correlation"
        np.testing.assert_array_equal(held["frc/frequency_per_m"][()], QUALITY["frc"]["frequency_per_m"])
        assert held["frc/frequency_per_m"].attrs["units"] == "1/m"
    write_cxi(tmp_path / "none.cxi", result())
    with h5py.File(tmp_path / "none.cxi") as file:
        assert "quality" not in file["entry_1"]
