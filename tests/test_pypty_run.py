"""PyPty's own dictionary, whole: a simulated 4D-STEM scan of a known object, from a script, from a file and live on the wire."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from typer.testing import CliRunner

import ptystream
from ptystream.cli.app import app
from ptystream.detectors.zmq.sender import Sender
from ptystream.params.errors import ConfigurationError
from ptystream.storage import ptyr

QUIET = {part: {"active": False} for part in ("publish", "metrics", "steering", "interaction", "autosave")}
SIDE, PIXEL_A = 24, 0.4


def simulated() -> dict[str, Any]:
    """A dictionary of PyPty's, and beside it the object: with nothing of this package."""
    random = np.random.default_rng(4)
    grid = np.stack(np.meshgrid(np.arange(7.0), np.arange(6.0), indexing="ij"), -1).reshape(-1, 2)
    places = 1.7 * grid + random.uniform(-0.4, 0.4, grid.shape) + 11.0
    places[0] = 11.0 - 0.5  # the smallest along both axes, so that the object's first pixel is known
    f = np.fft.fftfreq(SIDE)
    y, x = np.indices((SIDE, SIDE)) - SIDE // 2
    probe = gaussian_filter((np.hypot(y, x) < SIDE / 6).astype(float), 0.7) * (1 + 0j)
    probe *= 150 / SIDE / np.linalg.norm(probe)
    side = int(places.max() - 10.5) + SIDE + 2
    phase = gaussian_filter(random.normal(size=(side, side)), 1.6)
    object_ = np.exp(0.4j * phase / phase.std())
    patterns = []
    for place in places - places.min(axis=0):
        whole = np.round(place).astype(int)
        rest = place - whole
        moved = np.fft.ifft2(np.fft.fft2(probe) * np.exp(-2j * np.pi * (f[:, None] * rest[0] + f * rest[1])))
        wave = moved * object_[whole[0] : whole[0] + SIDE, whole[1] : whole[1] + SIDE]
        patterns.append(np.fft.fftshift(np.abs(np.fft.fft2(wave)) ** 2))
    given = {
        "dataset": np.array(patterns, "f4").reshape(7, 6, SIDE, SIDE),
        "acc_voltage": 200,
        "pixel_size_x_A": PIXEL_A,
        "pixel_size_y_A": PIXEL_A,
        "positions": places,
        "scan_size": (7, 6),
        "probe": probe[:, :, None],
        "epoch_max": 40,
        "damping_cutoff_multislice": 1.9,
        "default_dtype": "single",
        "print_flag": 0,
    }
    return given | {"truth": object_}


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    return simulated()


def page(made: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {key: value for key, value in (made | more).items() if key != "truth" and value is not None}


def wrong(found: Any, made: dict[str, Any]) -> float:
    """Complex rms between a reconstructed object and the true one, where the scan has seen it, apart from a common factor."""
    truth = made["truth"]
    y, x = (-o for o in found.offset)
    inside = slice(10, 24)
    mine = found.data[0][y : y + truth.shape[0], x : x + truth.shape[1]][inside, inside]
    its = truth[inside, inside]
    return float(np.sqrt(np.mean(np.abs(mine * (np.vdot(mine, its) / np.vdot(mine, mine)) - its) ** 2)))


def files(made: dict[str, Any], home: Path) -> dict[str, Any]:
    """The dictionary as a file can hold it."""
    for name in ("dataset", "probe", "positions"):
        np.save(home / f"{name}.npy", made[name])
    own = {key: value for key, value in page(made).items() if key not in ("dataset", "probe", "positions")}
    names = {"data_path": "dataset.npy", "probe": "probe.npy", "positions": "positions.npy"}
    return own | names | {"io": {"home": str(home), **QUIET}, "threads": 1}


def test_a_dictionary_in_a_script_gives_the_object(made: dict[str, Any], tmp_path: Path) -> None:
    given = page(made)
    before = {key: np.array(value) for key, value in given.items()}
    done = ptystream.pypty_run(given, io={"home": str(tmp_path), **QUIET}, threads=1)
    result = ptyr.read(done.results[0])
    found = next(iter(result.object.values()))
    assert found.pixel_size_m == pytest.approx((PIXEL_A * 1e-10,) * 2)
    assert wrong(found, made) < 0.06
    assert all(np.array_equal(before[key], value) for key, value in given.items())
    assert done.positions.shape == (42, 2)


def test_signals_of_virtual_detectors_give_it_too(made: dict[str, Any], tmp_path: Path) -> None:
    """A quarter of the numbers: squares of 2 × 2 pixels, and one detector that tells up from down, which may be negative."""
    half = SIDE // 2
    masks = np.zeros((half * half, SIDE, SIDE))
    for k, (y, x) in enumerate(np.ndindex(half, half)):
        masks[k, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2] = 1.0
    masks[0] = ((np.arange(SIDE) - half) / half)[:, None]
    signals = np.einsum("skyx,myx->skm", made["dataset"], masks)
    assert (signals < 0).any()
    given = page(made, dataset=signals, masks=masks, algorithm="lsq_compressed", epoch_max=150)
    done = ptystream.pypty_run(given, io={"home": str(tmp_path), **QUIET}, threads=1)
    assert wrong(next(iter(ptyr.read(done.results[0]).object.values())), made) < 0.06


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_a_file_of_it_runs_from_the_command_line_and_can_be_verified(suffix: str, made: dict[str, Any], tmp_path: Path) -> None:
    import yaml

    text = files(made, tmp_path)
    file = tmp_path / f"graphene.{suffix}"
    file.write_text(json.dumps(text) if suffix == "json" else yaml.safe_dump(json.loads(json.dumps(text))))
    done = CliRunner().invoke(app, ["live", str(file)])
    assert done.exit_code == 0, done.output
    (result,) = tmp_path.glob("recons/graphene/*.ptyr")
    assert wrong(next(iter(ptyr.read(result).object.values())), made) < 0.06
    verified = CliRunner().invoke(app, ["verify", str(result), *map(str, tmp_path.glob("recordings/*.ptyrec"))])
    assert verified.exit_code == 0 and "the same bits" in verified.output, verified.output


@pytest.mark.parametrize("more", [{"data_shift_vector": [0, 2]}, {"flip_ky": True}, {"positions": None, "scan_step_A": 0.9}])
def test_what_does_not_fit_the_data_spoils_the_fit(more: dict[str, Any], made: dict[str, Any], tmp_path: Path) -> None:
    done = ptystream.pypty_run(page(made, **more), io={"home": str(tmp_path), **QUIET}, threads=1)
    assert done.misfit[-1][0] > 0.03  # 0.0003 where everything fits


def test_the_same_scan_comes_live_on_the_wire(made: dict[str, Any], tmp_path: Path) -> None:
    """The page's parameters beside a source: frames come while it runs, and there is no stream of positions."""
    own = page(made, dataset=None)
    configuration = {
        "scans": {"s": {"name": "Full", "data": {"name": "ZmqScan", "shape": SIDE}}},
        "engines": {"e": {"name": "PyPty", **own}},
        "io": {"home": str(tmp_path), **QUIET},
        "threads": 1,
    }
    done = streamed(configuration, made["dataset"].reshape(-1, SIDE, SIDE))
    found = next(iter(ptyr.read(done.results[0]).object.values()))
    assert wrong(found, made) < 0.06


def streamed(configuration: dict[str, Any], frames: np.ndarray) -> Any:
    with Sender("tcp://127.0.0.1:*") as sender:
        configuration["scans"]["s"]["data"]["address"] = sender.address

        def send() -> None:
            sender.start("stem")
            for first in range(0, len(frames), 6):
                sender.frames(first, frames[first : first + 6])
            sender.end(len(frames))
            sender.flush()

        thread = threading.Thread(target=send)
        thread.start()
        try:
            return ptystream.Ptycho(configuration).run()
        finally:
            thread.join(60)


@pytest.mark.parametrize("room", [0, 5])
@pytest.mark.parametrize("skip", [False, True])
def test_an_object_lies_where_the_positions_say(room: int, skip: bool, made: dict[str, Any], tmp_path: Path) -> None:
    """As it was before the scan, or with all room that it was given, as PyPty's output folder has it."""
    places = made["positions"] - made["positions"].min(axis=0) + (room if skip else 3.0)
    truth = np.pad(made["truth"], room if skip else 0, constant_values=1)
    more = {"obj": truth[:, :, None, None], "positions": places, "skip_preprocessing": skip}
    more["extra_space_on_side_px"] = 0 if skip else room
    done = ptystream.pypty_run(page(made, **more, epoch_max=1), io={"home": str(tmp_path), **QUIET}, threads=1)
    assert done.misfit[0][0] < 1e-9


def test_it_goes_on_from_its_output_folder(made: dict[str, Any], tmp_path: Path) -> None:
    quiet, folder = {"io": {"home": str(tmp_path), **QUIET}, "threads": 1}, tmp_path / "out"
    common = {"output_folder": "out", "data_pad": 2}
    ptystream.pypty_run(page(made, **common, epoch_max=10, extra_space_on_side_px=3), **quiet)
    held = {name: np.load(folder / f"{file}.npy") for name, file in (("obj", "co"), ("probe", "cp"), ("positions", "cg"))}
    ptystream.pypty_run(page(made, **common, **held, epoch_prev=10, epoch_max=12, skip_preprocessing=True), **quiet)
    rows = [line.split(",") for line in (folder / "loss.csv").read_text().splitlines()[1:]]
    assert [int(row[0]) for row in rows] == list(range(12))
    losses = [float(row[2]) for row in rows]
    assert losses[10] == pytest.approx(losses[9], rel=0.2) and losses[11] < losses[10] <= losses[9]


@pytest.mark.parametrize("pad", [0, 4])
def test_patterns_are_simulated_without_any_data(pad: int, made: dict[str, Any], tmp_path: Path) -> None:
    more = {"dataset": None, "data_simulation_flag": True, "output_folder": "out", "epoch_max": 1, "data_pad": pad}
    given = page(made, obj=made["truth"][:, :, None, None], **more)
    ptystream.pypty_run(given, io={"home": str(tmp_path), **QUIET}, threads=1)
    with h5py.File(tmp_path / "out" / "simulated.h5") as file:
        data = file["data"][()]
    wanted = made["dataset"].reshape(-1, SIDE, SIDE)[:, pad : SIDE - pad, pad : SIDE - pad]
    np.testing.assert_allclose(data, wanted, atol=1e-5 * wanted.max())


@pytest.mark.parametrize(("mask", "told"), [(np.ones((20, SIDE)), "aperture_mask: shape"), (np.ones((SIDE, SIDE)), "")])
def test_an_aperture_may_have_the_size_of_patterns(mask: Any, told: str, made: dict[str, Any], tmp_path: Path) -> None:
    given = page(made, probe=None, data_pad=6, aperture_mask=mask, probe_reg_constraint_weight=1e-3, epoch_max=2)
    if told:
        with pytest.raises(ValueError, match=told):
            ptystream.pypty_run(given, io={"home": str(tmp_path), **QUIET}, threads=1)
    else:
        assert ptystream.pypty_run(given, io={"home": str(tmp_path), **QUIET}, threads=1).results


def test_currents_are_those_of_the_measurements_that_are_selected(made: dict[str, Any], tmp_path: Path) -> None:
    current = np.random.default_rng(1).uniform(0.5, 1.5, 42)
    data = made["dataset"] * (current**2).reshape(7, 6, 1, 1)
    part = {"sequence": list(range(10, 42)), "use_full_FOV": False, "beam_current": current, "dataset": data}
    done = ptystream.pypty_run(page(made, **part), io={"home": str(tmp_path), **QUIET}, threads=1)
    assert done.misfit[-1][0] < 0.01  # 7 where they are those of others


def test_faults_of_a_dictionary_are_all_told_at_once(made: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as found:
        ptystream.pypty_run(page(made, epoch_mx=3, wedge_mu=5.0, hist_length=-1))
    assert {fault.path for fault in found.value.faults} >= {"epoch_mx", "wedge_mu"}
