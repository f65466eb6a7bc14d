"""PyPty's output folder, written by a whole session: its arrays, its log, its numbered files."""

from __future__ import annotations

import csv
import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
from memory import Memory, messages
from problems import BEAM, GEOMETRY

from ptystream.convert import write_cxi
from ptystream.engines.multislice.pypty import PyPty
from ptystream.metrics import Metrics
from ptystream.params.load import load
from ptystream.plan import make_plan
from ptystream.pypty_output import PyPtyOutput
from ptystream.session import Session
from ptystream.storage import ptyr
from ptystream.storage.pypty import MEMORY, PLAIN, TERMS, Arrays, files_of, read


def run(folder: Path, modes: int = 1, **parameters: Any) -> ptyr.Result:
    """The result of a session that writes its files to 'out'."""
    source = {"name": "ZmqScan"}
    data = {**source, "shape": BEAM.side, **GEOMETRY, "positions": source}
    scan = {
        "name": "Full",
        "data": data,
        "illumination": {"aperture": {"size": 4e-7}},
        "coherence": {"num_probe_modes": modes},
    }
    own = {"damping_cutoff_multislice": 2.0, "output_folder": "out"}
    quiet = {name: {"active": False} for name in ("publish", "metrics", "autosave", "autoplot", "recording")}
    given = {
        "run": "s",
        "min_frames_for_recon": BEAM.frames,
        "threads": 1,
        "io": {"home": str(folder), "rfile": "%(run)s.ptyr", **quiet},
        "scans": {"s": scan},
        "engines": {"e": {"name": "PyPty", "epoch_max": 6, **own, **parameters}},
    }
    frames, places = messages()
    transports = {"s/data": Memory("s/data", frames), "s/positions": Memory("s/positions", places)}
    session = Session(make_plan(load(given), transports=transports), metrics=Metrics())
    (path,) = session.run()
    return ptyr.read(path)


def rows(folder: Path) -> list[list[str]]:
    with open(folder / "out" / "loss.csv", newline="") as file:
        return list(csv.reader(file))


def test_a_cxi_file_holds_slices_tilts_and_aberrations(tmp_path: Path) -> None:
    tilts = np.random.default_rng(0).normal(size=(BEAM.frames, 6)) * 1e-8
    marks = [k % 2 for k in range(BEAM.frames)]
    extra = {"num_slices": 3, "slice_distances": [2e6, 3e6], "tilts": tilts.tolist(), "update_tilts": 1, "epoch_max": 4}
    lenses = {"aberration_marker": marks, "aberrations_array": [[1e5, 2.0], [-1e5, 3.0]], "static_background": 10.0}
    result = run(tmp_path, **extra, **lenses, beam_current=[1.5] * BEAM.frames)
    stack = next(iter(result.object.values()))
    write_cxi(tmp_path / "r.cxi", result)
    with h5py.File(tmp_path / "r.cxi") as file:
        entry = file["entry_1"]
        np.testing.assert_array_equal(entry["object/data"], stack.data)
        np.testing.assert_allclose(entry["object/z"], [0, 2e-4, 5e-4])
        np.testing.assert_allclose(entry["object/slice_distances"], [2e-4, 3e-4])
        whole = np.prod(stack.data, axis=0)
        np.testing.assert_allclose(entry["object_amplitude/data"], np.abs(whole), rtol=1e-4)
        found = entry["refined"]
        assert found["tilts"].attrs["units"] == "rad" and found["tilts"].attrs["columns"][2] == "y_inside"
        np.testing.assert_allclose(found["tilts"], np.load(tmp_path / "out" / "ct.npy"), rtol=1e-6)
        assert not np.allclose(found["tilts"], tilts, atol=1e-12)
        np.testing.assert_allclose(found["aberrations"], np.array(lenses["aberrations_array"]) * 1e-10, rtol=1e-6)
        assert list(found["aberrations"].attrs["columns"]) == ["C10", "C12a"]
        np.testing.assert_allclose(found["beam_current"], 1.5)
        assert found["static_background"][()].sum() == pytest.approx(10.0, rel=1e-3)
        assert entry["positions/y"].shape == (BEAM.frames,)
    silx_io = pytest.importorskip("silx.io", reason="silx is not installed")
    from silx.io import nxdata

    with silx_io.open(str(tmp_path / "r.cxi")) as file:
        shown = nxdata.get_default(file)
        assert shown.is_valid and not shown.issues and shown.axes_names == ["z (m)", "y (m)", "x (m)"]
        np.testing.assert_array_equal(file["entry_1/refined/tilts"][()], result.beside["tilts"])


def test_a_folder_holds_what_the_result_does(tmp_path: Path) -> None:
    extra = {"num_slices": 2, "slice_distances": [2e6], "tilts": [[0, 0, 1e-8, 0, 0, 0]], "beam_current": [1.0] * BEAM.frames}
    result = run(tmp_path, modes=2, static_background=10.0, **extra)
    held = {path.stem: np.load(path) for path in (tmp_path / "out").glob("*.npy")}
    assert set(held) == {"co", "cp", "cg", "ct", "cs", "cb"}
    stack, probe = next(iter(result.object.values())), next(iter(result.probe.values()))
    height, width = stack.shape
    assert held["co"].shape == (height, width, 2, 1)
    np.testing.assert_allclose(held["co"][:, :, 1, 0], stack.data[1], rtol=1e-6)
    assert held["cp"].shape == (BEAM.side, BEAM.side, 2)
    model = np.abs(np.fft.fft2(held["cp"][:, :, 0])) ** 2 / 2  # PyPty's: unnormalised, a mean over modes
    np.testing.assert_allclose(model, np.abs(np.fft.fft2(probe.data[0], norm="ortho")) ** 2, rtol=1e-4, atol=1e-3 * model.max())
    assert held["cg"].shape == (BEAM.frames, 2) and held["cg"].min() >= 0
    corner = result.positions_m / BEAM.pixel_m - BEAM.side // 2 - np.asarray(stack.offset)
    np.testing.assert_allclose(held["cg"], corner, atol=1e-3)
    assert held["cs"].shape == (BEAM.side, BEAM.side) and (held["cs"] ** 2).sum() == pytest.approx(10.0, rel=1e-3)
    assert held["ct"].shape == (1, 6) and held["cb"].shape == (BEAM.frames,)
    again = files_of(read(tmp_path / "out"))
    for name, array in held.items():
        np.testing.assert_allclose(again[name], array, rtol=1e-6)
    parameters = json.loads((tmp_path / "out" / "params.json").read_text())
    assert parameters["epoch_max"] == 6 and parameters["num_slices"] == 2


@pytest.mark.parametrize("kind", [True, 2, False])
def test_the_log_has_a_line_for_each_epoch(tmp_path: Path, kind: bool | int) -> None:
    run(tmp_path, save_loss_log=kind, phase_norm_weight=2.0, numiter_contiguous=2)
    if kind is False:
        assert not (tmp_path / "out" / "loss.csv").exists()
        return
    first, *lines = rows(tmp_path)
    middle = [column for _, column in TERMS] if kind == 2 else ["Constraints contribution"]
    assert first == [*PLAIN, *middle, *MEMORY] and len(first) == (26 if kind == 2 else 13)
    assert [int(line[0]) for line in lines] == list(range(len(lines))) and len(lines) >= 6
    losses = [float(line[2]) for line in lines]
    assert all(b < a for a, b in itertools.pairwise(losses))
    column = first.index("l1 object reg. (phase)" if kind == 2 else "Constraints contribution")
    assert float(lines[-1][column]) > 0
    assert all(float(line[1]) <= float(after[1]) for line, after in itertools.pairwise(lines))


def test_a_log_goes_on_where_an_earlier_one_ended(tmp_path: Path) -> None:
    run(tmp_path)
    before = rows(tmp_path)
    run(tmp_path, epoch_prev=6, epoch_max=9)
    after = rows(tmp_path)
    assert after[: len(before)] == before
    assert [int(line[0]) for line in after[len(before) :]][:3] == [6, 7, 8]


def test_a_resumed_run_goes_on_in_its_log(tmp_path: Path) -> None:
    """Epochs behind the checkpoint, of which the interrupted one told, are told again by the one that repeats them."""
    numbers = dict.fromkeys(("loss", "sse", "first_step", "step", "trials", "slope", "new_slope"), 1)
    told = {**numbers, "terms": {}, "taken": True}
    p = PyPty.Parameters(output_folder="out", save_inter_checkpoints=False)

    def session(epochs: list[int]) -> None:
        output = PyPtyOutput(tmp_path, {"e": p})
        for done in epochs:
            info = {"engine": "PyPty", "iteration": done, "pypty": [told]}
            entry = SimpleNamespace(label="e", name="PyPty")
            run = SimpleNamespace(name="s", engine_entry=entry, iter_info=[info], engine=None, ended=None)
            output.look(run)  # type: ignore[arg-type]
        output.close()

    session([1, 2, 3, 4])
    session([3, 4, 5])  # from a checkpoint after the second
    assert [line[0] for line in rows(tmp_path)] == ["epoch", "0", "1", "2", "3", "4"]
    session([1])  # from the beginning
    assert [line[0] for line in rows(tmp_path)] == ["epoch", "0"]


def test_numbered_files_come_every_so_many_epochs(tmp_path: Path) -> None:
    run(tmp_path, save_checkpoints_every_epoch=2, save_inter_checkpoints=False, update_probe_pos=1)
    names = {path.name for path in (tmp_path / "out").glob("checkpoint_*")}
    assert {f"checkpoint_{part}_epoch_{k}.npy" for part in ("obj", "probe", "positions") for k in (2, 4)} <= names
    assert not any("_epoch_3" in name for name in names)
    assert {"co.npy", "cp.npy", "cg.npy"} <= {path.name for path in (tmp_path / "out").glob("c?.npy")}


def test_files_hold_what_the_last_epoch_came_to(tmp_path: Path) -> None:
    """Also where the engine's last look at requests and saving was before it."""
    run(tmp_path, numiter_contiguous=6, update_beam_current=1, update_tilts=1, tilt_mode=1, static_background=3.0)
    assert {"ct.npy", "cs.npy", "cb.npy"} <= {path.name for path in (tmp_path / "out").glob("*.npy")}
    assert np.load(tmp_path / "out" / "cb.npy").std() > 0


def test_without_a_folder_nothing_is_written(tmp_path: Path) -> None:
    run(tmp_path, output_folder="")
    assert [path.name for path in tmp_path.iterdir()] == ["s.ptyr"]


def test_a_folder_that_cannot_be_written_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "out").write_text("in the way")
    result = run(tmp_path)
    assert result.ledger["used"] == BEAM.frames
    assert [r for r in caplog.records if "output_folder: no further file" in r.message]


@pytest.mark.parametrize("epochs", [1, 6])
def test_patterns_are_simulated_where_nothing_is_to_be_compared(epochs: int, tmp_path: Path) -> None:
    result = run(tmp_path, data_simulation_flag=True, epoch_max=epochs)
    probe, stack = next(iter(result.probe.values())), next(iter(result.object.values()))
    np.testing.assert_array_equal(stack.data, np.ones_like(stack.data))  # nothing was refined
    with h5py.File(tmp_path / "out" / "simulated.h5") as file:
        data = file["data"][()]
    assert data.shape == (BEAM.frames, BEAM.side, BEAM.side)
    wanted = np.fft.fftshift(np.abs(np.fft.fft2(probe.data[0], norm="ortho")) ** 2)
    np.testing.assert_allclose(data[7], wanted, rtol=1e-3, atol=1e-3 * wanted.max())


@pytest.mark.parametrize("strip", [True, False])
def test_the_dataset_is_left_out_of_the_parameters_or_not(strip: bool, tmp_path: Path) -> None:
    p = PyPty.Parameters(dataset=np.ones((2, 4, 4)), strip_dataset_from_params=strip, output_folder="out")
    output = PyPtyOutput(tmp_path, {"e": p})
    output._begin(("s", "e"), p)
    output.close()
    assert ("dataset" in json.loads((tmp_path / "out" / "params.json").read_text())) != strip


def test_no_pickle_is_read(tmp_path: Path) -> None:
    for name, array in files_of(Arrays(np.ones((1, 1, 4, 4), complex), np.ones((1, 1, 2, 2), complex), np.zeros((3, 2)))).items():
        np.save(tmp_path / f"{name}.npy", array)
    assert read(tmp_path).object.shape == (1, 1, 4, 4)
    np.save(tmp_path / "cg.npy", np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(ValueError, match="pickle"):
        read(tmp_path)
