"""The commands under a real MPI launcher."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ptystream.cli.demo import configuration
from ptystream.storage import ptyr

BIN = Path(sys.executable).parent
LAUNCHER = shutil.which("mpiexec", path=f"{BIN}{os.pathsep}{os.environ['PATH']}")
RANK = b"\0-m\0ptystream\0live\0"
"""In the command line of every rank, and in no launcher's."""
ALONE = {"device": "cpu", "threads": 1}


def launcher() -> str:
    """mpiexec; without it, or without mpi4py, the test is skipped, or fails where the environment asks for it."""
    try:
        import mpi4py  # noqa: F401
    except ImportError:
        found = None
    else:
        found = LAUNCHER
    if found is None:
        reason = "needs mpi4py and an MPI launcher"
        if "mpi" in os.environ.get("PTYSTREAM_REQUIRE", "").split(","):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def simulated(path: Path, engines: dict[str, Any]) -> None:
    parameters = {
        "io": {"rfile": "result.ptyr", "publish": {"active": False}, "metrics": {"active": False}, "autosave": {"active": False}},
        **ALONE,
        "scans": {"s": {"name": "BlockFull", "data": {"name": "MoonFlowerScan", "num_frames": 80, "shape": 32, "photons": 1e7}}},
        "engines": engines,
        "frames_per_block": 20,
        "min_frames_for_recon": 80,
    }
    path.write_text(yaml.safe_dump(parameters))


@pytest.mark.slow
def test_live_on_three_ranks_ends_as_on_one(tmp_path: Path) -> None:
    hardly = {"start": 0, "amplitude": 1e-15, "max_shift": 1e-15}  # a reason for a warning
    asked = {"dm": {"name": "DM", "numiter": 5, "position_refinement": hardly}, "ml": {"name": "ML", "numiter": 5}}
    found, warnings = [], []
    for name, before in (("alone", []), ("ranks", [launcher(), "-n", "3"])):
        (home := tmp_path / name).mkdir()
        simulated(home / "c.yaml", asked)
        command = [*before, sys.executable, "-P", "-m", "ptystream", "live", "c.yaml"]
        done = subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        assert ("3 ranks" in done.stderr) == (name == "ranks")
        assert done.stderr.count("picture: ") == 1
        warnings.append(done.stderr.count("hardly a move"))
        found.append(ptyr.read(home / "result.ptyr"))
    one, three = found
    assert warnings[0] == warnings[1] > 0
    assert three.ledger == one.ledger
    assert three.ledger["used"] == 80
    for kind in ("probe", "object"):
        for key, storage in getattr(one, kind).items():
            there = getattr(three, kind)[key].data
            assert np.abs(there - storage.data).max() < 2e-2 * np.abs(storage.data).max()
    assert abs(three.misfit[-1, 0] / one.misfit[-1, 0] - 1) < 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("call", ["work()", "t = threading.Thread(target=work); t.start(); t.join()"], ids=["main", "thread"])
def test_a_script_goes_on_in_one_process_alone(tmp_path: Path, call: str) -> None:
    simulated(tmp_path / "c.yaml", {"dm": {"name": "EPIE", "numiter": 2}})
    (tmp_path / "s.py").write_text(
        "import ptystream, threading\ndef work():\n  for n in (2, 3):\n"
        "    P = ptystream.Ptycho('c.yaml', engines={'dm': {'name': 'EPIE', 'numiter': n}}).run()\n"
        f"    print('done', n, P.obj.data.shape[0])\n{call}\nprint('over')\n"
    )
    done = subprocess.run(
        [launcher(), "-n", "2", sys.executable, "s.py"], cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["done 2 1", "done 3 1", "over"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "said"), [("not there", "cannot be read"), ("refused", "numiter"), ("unfit", "needs a scan with `name: OPRModel`")]
)
def test_what_is_wrong_is_said_once_and_ends_all(tmp_path: Path, fault: str, said: str) -> None:
    simulated(tmp_path / "c.yaml", {"dm": {"name": "DMOPR"} if fault == "unfit" else {"name": "DM", "numiter": -3}})
    name = "missing.yaml" if fault == "not there" else "c.yaml"
    done = subprocess.run(
        [launcher(), "-n", "2", sys.executable, "-P", "-m", "ptystream", "live", name],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode != 0
    assert (done.stderr + done.stdout).count(said) == 1


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["worker", "leader"])
def test_a_dead_rank_ends_the_job(tmp_path: Path, victim: str) -> None:
    free = ["--frames-address", "tcp://127.0.0.1:*", "--positions-address", "tcp://127.0.0.1:*"]
    asked = [sys.executable, "-P", "-m", "ptystream", "simulate", "--frames", "4000", "--rate", "50", "--side", "64", "--wait"]
    with subprocess.Popen([*asked, *free], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as beamline:
        try:
            parameters = configuration(json.loads(beamline.stdout.readline()), tmp_path, 64)
            (tmp_path / "demo.yaml").write_text(yaml.safe_dump(parameters))
            command = [launcher(), "-n", "2", sys.executable, "-P", "-m", "ptystream", "live", "demo.yaml"]
            with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL) as job:
                beamline.stdin.write("go\n")
                beamline.stdin.flush()
                record, deadline = tmp_path / "demo.ptyrec", time.monotonic() + 120
                while time.monotonic() < deadline and not (record.exists() and record.stat().st_size > 60 * 8192):
                    time.sleep(0.05)
                leader = int(_holders(record)[0])
                ours = [pid for pid in _descendants(job.pid) if RANK in _command(pid)]
                worker = next(pid for pid in ours if pid != leader)
                os.kill(worker if victim == "worker" else leader, signal.SIGKILL)
                assert job.wait(60) != 0
            deadline = time.monotonic() + 60
            while any(RANK in _command(pid) for pid in (worker, leader)):
                assert time.monotonic() < deadline
                time.sleep(0.05)
        finally:
            beamline.kill()


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *_descendants(int(child))]
    return found


def _holders(file: Path) -> list[int]:
    """Processes that have the file open."""
    found = []
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if link.resolve() == file.resolve():
                found.append(int(link.parts[2]))
        except OSError:
            continue
    return found
