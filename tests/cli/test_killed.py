"""A session that is killed continues its scan: nothing that the sender handed over is lost."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from ptystream.checkpoint import checkpoint_of
from ptystream.cli.demo import configuration
from ptystream.recording import Recording
from ptystream.storage import ptyr

PTYSTREAM = [sys.executable, "-P", "-m", "ptystream"]


@pytest.mark.slow
def test_after_kill_9_a_restart_finishes_the_same_scan_with_every_frame(tmp_path: Path) -> None:
    asked = ["--frames", "200", "--rate", "25", "--side", "64", "--wait"]
    free = ["--frames-address", "tcp://127.0.0.1:*", "--positions-address", "tcp://127.0.0.1:*"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([*PTYSTREAM, "simulate", *asked, *free], **pipes) as beamline:
        told = json.loads(beamline.stdout.readline())
        parameters = configuration(told, tmp_path, 64)
        parameters["engines"]["dm"] |= {"numiter": 10, "average_last": 0}
        (tmp_path / "demo.yaml").write_text(yaml.safe_dump(parameters))
        command = [*PTYSTREAM, "live", str(tmp_path / "demo.yaml")]
        first = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        beamline.stdin.write("go\n")
        beamline.stdin.flush()
        record = tmp_path / "demo.ptyrec"
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (record.exists() and record.stat().st_size > 60 * 8192):
            time.sleep(0.05)
        first.send_signal(signal.SIGKILL)
        first.wait(60)
        kept = sum(1 for _ in Recording(record))
        assert 0 < kept < 404
        second = subprocess.run(command, capture_output=True, text=True, timeout=240)
        assert second.returncode == 0, second.stderr
        assert beamline.wait(60) == 0
    result = ptyr.read(tmp_path / "demo.ptyr")
    assert result.ledger["received"] == result.ledger["used"] == 200


@pytest.mark.slow
def test_after_kill_9_iterations_go_on_from_the_dump(tmp_path: Path) -> None:
    asked = ["--frames", "120", "--rate", "100", "--side", "64", "--wait"]
    free = ["--frames-address", "tcp://127.0.0.1:*", "--positions-address", "tcp://127.0.0.1:*"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([*PTYSTREAM, "simulate", *asked, *free], **pipes) as beamline:
        told = json.loads(beamline.stdout.readline())
        parameters = configuration(told, tmp_path, 64)
        parameters["engines"]["dm"] |= {"numiter": 400, "average_last": 0, "numiter_contiguous": 1}
        parameters["io"]["autosave"] = {"interval": 5, "rfile": "%(run)s_%(iterations)04d.dump"}
        (tmp_path / "demo.yaml").write_text(yaml.safe_dump(parameters))
        command = [*PTYSTREAM, "live", str(tmp_path / "demo.yaml")]
        first = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        beamline.stdin.write("go\n")
        beamline.stdin.flush()
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not any(_complete(file) for file in tmp_path.glob("demo_*.dump")):
            time.sleep(0.05)
        first.send_signal(signal.SIGKILL)
        first.wait(60)
        kept = max(ptyr.read(file).iter_info[-1]["iterations"] for file in tmp_path.glob("demo_*.dump"))
        assert 5 <= kept < 400
        second = subprocess.run(command, capture_output=True, text=True, timeout=240)
        assert second.returncode == 0, second.stderr
        assert beamline.wait(60) == 0
    result = ptyr.read(tmp_path / "demo.ptyr")
    assert result.ledger["received"] == result.ledger["used"] == 120
    resumed = [entry["do"] for entry in result.schedule].index("resume")
    before = sum(e["iterations"] * e.get("times", 1) for e in result.schedule[:resumed] if e["do"] == "iterate")
    assert before == kept
    assert len(result.errors) == result.iter_info[-1]["iterations"] > before
    assert result.misfit[-1, 0] < 1.05 * result.misfit[before - 1, 0]
    assert result.misfit[-1, 0] < 0.5 * result.misfit[0, 0]


def _complete(dump: Path) -> bool:
    """Whether a dump is of a time when every frame had come."""
    try:
        return any(entry["do"] == "end" for entry in checkpoint_of(ptyr.read(dump)).schedule)
    except (OSError, ValueError):
        return False
