"""What `ptystream simulate CONFIG` sends is what `ptystream live CONFIG` takes: every source that can be played."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from ptystream.cli.app import app
from ptystream.detectors.simulated.rehearsal import Rehearsal, pieces
from ptystream.metrics import Metrics
from ptystream.params.errors import ConfigurationError
from ptystream.params.load import load, plugins
from ptystream.plan import make_plan
from ptystream.scan.parameters import PositionsParameters, PtyScanParameters
from ptystream.scan.prepare import Preparation, decide
from ptystream.session import Session
from ptystream.simulating import Simulation
from ptystream.storage import ptyr

FRAMES, SIDE = 24, 32
GEOMETRY = {"energy": 7.2, "distance": 2.0, "psize": 3.587e-4}
TURNED = [[0, -1], [1, 0]]


def free() -> str:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"tcp://127.0.0.1:{taken.getsockname()[1]}"


def native(**more: Any) -> dict[str, Any]:
    return {"name": "ZmqScan", "address": free(), "samples_per_frame": 3, **more}


def of(data: dict[str, Any], epochs: str = "order") -> dict[str, Any]:
    return {
        "run": "t",
        "threads": 1,
        "min_frames_for_recon": FRAMES + 1,
        "live": {"epochs": epochs, "timeout_s": 20},
        "scans": {"s": {"name": "Full", "data": {"shape": SIDE, **data}, "illumination": {"aperture": {"size": 4e-7}}}},
        "engines": {"e": {"name": "DM", "numiter": 2}},
    }


def cases() -> dict[str, dict[str, Any]]:
    panda = {
        **{"name": "PandaScan", "port": int(free().rpartition(":")[2]), "samples_per_frame": 4, "matrix": TURNED},
        **{"channels": {"y": "INENC2.VAL.Mean", "x": "INENC1.VAL.Mean"}, "frame_channel": "COUNTER1.OUT.Value"},
    }
    again = {
        **{"name": "PandaJsonScan", "address": free(), "samples_per_frame": 2, "units": {"/Y": "um", "/X": "mm"}},
        **{"channels": {"y": "/Y", "x": "/X"}},
    }
    documents = {
        **{"name": "BlueskyScan", "address": free(), "bind": True, "samples_per_frame": 5, "channels": {"dose": "dose"}},
        **{"find": {"y": "event:y; sign=-1", "x": "hint:1; unit=mm; offset=3 um", "dose": "event:i0"}},
    }
    found = {
        **{"y": "event:sy; sign=-1", "x": "hint:1; unit=mm", "energy": "config:mono:energy", "psize": "baseline:pix"},
        **{"distance": "start:scan.distance; unit=mm"},
    }
    return {
        "native": of(GEOMETRY | {"name": "ZmqScan", "address": free(), "positions": native(matrix=TURNED)}, "same"),
        "native, push and pub": of(
            GEOMETRY | {"name": "ZmqScan", "address": free(), "link": "push", "bind": True, "positions": native(link="pub")}
        ),
        "native, own positions": of(GEOMETRY | {"name": "ZmqScan", "address": free()}),
        "stream2": of({"name": "DectrisScan", "address": free(), "center": [20, 37], "positions": native()}, "metadata:id"),
        "several addresses": of(
            {"name": "DectrisScan", "address": [free(), free()], "positions": native(interpolate="time", samples_per_frame=1)},
            "same",
        ),
        "areaDetector": of(GEOMETRY | {"name": "AdZmqScan", "address": free(), "num_frames": FRAMES, "positions": panda}),
        "MAX IV": of(GEOMETRY | {"name": "MaxivScan", "address": free(), "positions": panda | {"scaled": False}}),
        "PSI": of(GEOMETRY | {"name": "SlsScan", "address": "tcp://127.0.0.1:30841", "ports": 2, "positions": again}),
        "documents": of({"name": "BlueskyScan", "address": free(), "frames": "cam", "find": found}),
        "positions by documents": of(
            GEOMETRY | {"name": "ZmqScan", "address": free(), "positions": documents}, "metadata:series"
        ),
    }


@pytest.mark.parametrize("name", cases())
def test_a_session_of_the_same_configuration_gets_every_frame_at_its_place(name: str, tmp_path: Path) -> None:
    tree = cases()[name] | {"io": {"home": str(tmp_path), "rfile": "%(run)s.ptyr"}}
    configuration = load(tree)
    with Simulation(configuration, frames=FRAMES, rate_hz=200.0) as simulation:
        sending = threading.Thread(target=simulation.run)
        sending.start()
        session = Session(make_plan(configuration), metrics=Metrics())
        session.run()
        sending.join(30)
        assert not sending.is_alive()
        (rehearsal,) = simulation._rehearsals.values()
    result = ptyr.read(tmp_path / "t.ptyr")
    assert result.ledger["used"] == result.ledger["received"] == FRAMES
    pixel = rehearsal.beamline.pixel_m
    assert next(iter(result.object.values())).pixel_size_m == pytest.approx((pixel, pixel), rel=1e-4)
    np.testing.assert_allclose(result.positions_m, rehearsal.beamline.positions_m(), atol=0.02 * pixel)


@pytest.mark.parametrize("orientation", range(8))
@pytest.mark.parametrize("center", ["fftshift", "geometric", "fft", (25, 13), (18.4, 40.0)])
def test_a_raw_frame_prepared_as_configured_is_the_pattern(orientation: int, center: Any) -> None:
    parameters = PtyScanParameters(shape=16, orientation=orientation, center=center)
    rehearsal = Rehearsal.of(parameters, None, 3e-8, GEOMETRY, frames=2, rate_hz=1.0, seed=1)
    raw = rehearsal.frames()
    preparation = Preparation(parameters, decide(parameters, list(raw)))
    out = np.zeros(preparation.shape, preparation.dtype)
    preparation.into(raw[1], out)
    pattern = rehearsal.beamline.pattern(1)
    made = np.fft.fftshift(out)
    cut = np.fft.fftshift(preparation.mask) > 0
    assert cut.mean() > 0.85, "a flip of an even side moves the centre by one pixel, so a row and a column may lie outside"
    np.testing.assert_array_equal(made[cut], pattern[cut])


def test_calibrations_are_gone_through_backwards_and_dark_frames_come_first() -> None:
    random = np.random.default_rng(3)
    dark, flat = random.uniform(3, 9, (16, 16)), random.uniform(0.5, 1.1, (16, 16))
    parameters = PtyScanParameters(shape=16, dark=dark, flat=flat, counts_per_photon=0.9)
    rehearsal = Rehearsal.of(parameters, None, 3e-8, GEOMETRY, frames=3, rate_hz=1.0, seed=1)
    preparation = Preparation(parameters, decide(parameters, list(rehearsal.frames())))
    out = np.zeros(preparation.shape, preparation.dtype)
    preparation.into(rehearsal.frames()[2], out)
    np.testing.assert_allclose(np.fft.fftshift(out), rehearsal.beamline.pattern(2), atol=1.2)
    begun = PtyScanParameters(shape=16, dark_frames=2)
    raw = Rehearsal.of(begun, None, 3e-8, GEOMETRY, frames=4, rate_hz=1.0, seed=1).frames()
    assert [bool(frame.any()) for frame in raw] == [False, False, True, True]


@pytest.mark.parametrize(
    "given",
    [
        {"first_sample": 7, "samples_per_frame": 3},
        {"first_sample": -4, "samples_per_frame": 2},
        {"first_frame": 2},
        {"frames_per_sample": 3, "matrix": TURNED},
    ],
)
def test_readings_join_to_the_frames_that_they_were_made_for(given: dict[str, Any]) -> None:
    positions = PositionsParameters(**given)
    rehearsal = Rehearsal.of(PtyScanParameters(shape=16), positions, 3e-8, GEOMETRY, frames=12, rate_hz=10.0, seed=1)
    samples = rehearsal.samples(positions)
    number = np.arange(len(samples.frames)) - positions.first_sample
    own = positions.first_frame + number // positions.samples_per_frame * positions.frames_per_sample
    np.testing.assert_array_equal(samples.frames[number >= 0], own[number >= 0])
    stage = np.stack([samples.channels["y"], samples.channels["x"]])
    beam = (np.asarray(positions.matrix) @ stage).T
    np.testing.assert_allclose(beam, rehearsal.beamline.positions_m()[samples.frames], atol=0.4 * 3e-8)
    cut = list(pieces(samples, 10.0))
    assert [rows.start for _, rows in cut[1:]] == [rows.stop for _, rows in cut[:-1]]
    assert (cut[0][1].start, cut[-1][1].stop) == (0, len(samples.frames))


@pytest.mark.parametrize(
    ("data", "path", "said"),
    [
        ({"name": "MoonFlowerScan"}, "scans.s.data.name", "makes its frames itself"),
        ({"name": "DectrisScan", "address": "tcp://dcu:31001"}, "scans.s.data.address", "on this machine alone"),
        ({"name": "DectrisScan", "shape": None}, "scans.s.data.shape", "side of the crop"),
        ({"name": "BlueskyScan", "via": "process"}, "scans.s.data.via", "'zmq' is"),
        ({"name": "ZmqScan", "peer_keys": "k"}, "scans.s.data.peer_keys", "leave it out of a copy"),
        ({"name": "SlsScan", "ports": 3}, "scans.s.data.ports", "must divide the 32 rows"),
        ({"name": "ZmqScan", "positions_theory": [[0, 0]]}, "scans.s.data.positions_theory", "no more frames"),
        ({"name": "ZmqScan", "positions_theory": [[0, 0], [1, 1]]}, "scans.s.data.shape", "object pixels"),
        ({"name": "ZmqScan", "psize": [1e-4, 2e-4]}, "scans.s.data.psize", "square pixels"),
        ({"name": "ZmqScan", "raster": {"flyback": 2}}, "scans.s.data.raster.flyback", "leave it out of a rehearsal"),
        ({"name": "ZmqScan", "signals": 4}, "scans.s.data.signals", "leave it out of a rehearsal"),
    ],
)
def test_what_cannot_be_simulated_is_named_with_what_to_do(data: dict[str, Any], path: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as raised:
        Simulation(load(of(data)), frames=2)
    assert [fault.path for fault in raised.value.faults] == [path]


def test_every_source_is_played_or_says_why_not() -> None:
    for name, plugin in plugins("detectors").items():
        assert hasattr(plugin, "simulator") != hasattr(plugin, "unsimulated"), name


def test_a_taken_address_is_told_and_nothing_stays_open() -> None:
    tree = of(GEOMETRY | {"name": "ZmqScan", "address": free(), "positions": native()})
    port = int(tree["scans"]["s"]["data"]["positions"]["address"].rpartition(":")[2])
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(ConfigurationError, match="what listens there already"),
    ):
        Simulation(load(tree), frames=2)
    Simulation(load(tree), frames=2).__exit__(None, None, None)


def test_options_that_the_configuration_answers_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    done = CliRunner().invoke(app, ["simulate", str(tmp_path / "a.yaml"), "--side", "64"])
    assert done.exit_code == 1
    assert "--side 64" in done.output + capfd.readouterr().err


def test_two_commands_and_nothing_else_make_a_result(tmp_path: Path) -> None:
    data = {"name": "DectrisScan", "address": free(), "positions": native()}
    tree = of(data, "same") | {"io": {"home": str(tmp_path), "rfile": "%(run)s.ptyr"}}
    tree["live"]["runs"] = 2
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(tree))
    command = [sys.executable, "-P", "-m", "ptystream"]
    asked = ["simulate", str(tmp_path / "a.yaml"), "--frames", "20", "--rate", "100", "--scans", "2", "--first", "5"]
    with subprocess.Popen([*command, *asked], stdout=subprocess.DEVNULL) as beamline:
        done = subprocess.run([*command, "live", str(tmp_path / "a.yaml")], capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        assert beamline.wait(60) == 0
    results = sorted(tmp_path.glob("*.ptyr"))
    assert [ptyr.read(path).ledger["used"] for path in results] == [20, 20]
    assert {ptyr.read(path).scans["s"]["acquisition"][0] for path in results} == {"5", "6"}
