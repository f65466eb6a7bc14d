"""The main job, as a user runs it: three processes over real sockets."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ptystream.detectors.simulated.simulator import Beamline
from ptystream.quality import align
from ptystream.recording import Recording
from ptystream.storage import ptyr

PTYSTREAM = [sys.executable, "-P", "-m", "ptystream"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    command = [*PTYSTREAM, "demo", "--no-browser", "-o", str(folder), "--frames", "150", "--rate", "150"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "viewer: http://127.0.0.1" in done.stderr
    assert "to operate: http://127.0.0.1" in done.stderr
    return folder


@pytest.mark.slow
def test_the_demo_leaves_a_result_a_picture_a_recording_and_its_configuration(demo: Path) -> None:
    assert {"demo.ptyr", "demo.png", "demo.ptyrec", "demo.yaml"} <= {p.name for p in demo.iterdir()}
    result = ptyr.read(demo / "demo.ptyr")
    assert result.ledger["used"] == result.ledger["received"] == 150
    assert Recording(demo / "demo.ptyrec").metadata["version"]


@pytest.mark.slow
def test_the_reconstructed_flower_is_the_simulated_one(demo: Path) -> None:
    result = ptyr.read(demo / "demo.ptyr")
    storage = next(iter(result.object.values()))
    truth = Beamline(frames=150).object()
    low = -np.array(storage.offset) - np.array(truth.shape) // 2
    padded = np.ones(storage.shape, complex)
    rows = slice(max(0, low[0]), min(storage.shape[0], low[0] + truth.shape[0]))
    columns = slice(max(0, low[1]), min(storage.shape[1], low[1] + truth.shape[1]))
    padded[rows, columns] = truth[rows.start - low[0] : rows.stop - low[0], columns.start - low[1] : columns.stop - low[1]]
    weight = next(iter(result.coverage.values()))
    compared = align(padded, storage.data[0], weight**2)
    assert compared.complex_rms < 0.35


@pytest.mark.slow
def test_the_demo_verifies(demo: Path) -> None:
    command = [*PTYSTREAM, "verify", str(demo / "demo.ptyr"), str(demo / "demo.ptyrec")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_a_replay_of_the_recording_gives_the_same_frames(demo: Path, tmp_path: Path) -> None:
    config = (demo / "demo.yaml").read_text().replace(str(demo), str(tmp_path))
    (tmp_path / "again.yaml").write_text(config)
    command = [*PTYSTREAM, "live", str(tmp_path / "again.yaml"), "--replay", str(demo / "demo.ptyrec")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    again = ptyr.read(tmp_path / "demo.ptyr")
    assert again.ledger["used"] == 150
