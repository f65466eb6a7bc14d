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
from problems import BEAM, GEOMETRY, PATTERNS, PLACES

from ptystream.cli.demo import configuration
from ptystream.detectors.dectris.simulator import Camera, Detector, series_of
from ptystream.detectors.hdf5 import simulator as hdf5
from ptystream.storage import ptyr
from ptystream.verify import distance

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


TOGETHER = """
import sys
sys.path.insert(0, {tests!r})
from ptystream.parallel import team
ranks = team()
from test_spread_multislice import EVERYTHING, prepared, same, through
same(through(prepared(EVERYTHING, None)), through(prepared(EVERYTHING, ranks)))
print("over")
"""


@pytest.mark.slow
def test_everything_refined_together_on_two_ranks_is_what_it_is_on_one(tmp_path: Path) -> None:
    """Processes, whose sets have orders of their own: threads share them."""
    (tmp_path / "s.py").write_text(TOGETHER.format(tests=str(Path(__file__).parents[1])))
    command = [launcher(), "-n", "2", sys.executable, "s.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0 and done.stdout == "over\n", done.stderr


STEERED = """
import sys
sys.path.insert(0, {tests!r})
from rich.console import Console
from steered import after, ask_when
from ptystream.launch import launch
from ptystream.params.load import load
wishes = {{"center": [15, 16], "offset": [3e-7, 0.0]}}
asked = [("set", {{"path": f"scans.s.data.{{name}}", "value": value}}) for name, value in wishes.items()]
asked += [("append", {{"engine": "ML", "parameters": {{"numiter": 4}}}})]
replies = []
def on_session(session):
    replies.append(ask_when(session, after(6), *asked))
    replies.append(ask_when(session, after(12), ("switch", {{}})))
    replies.append(ask_when(session, after(14), ("restart", {{"anew": True}})))
launch(load("c.yaml"), Console(quiet=True), on_session=on_session)
assert all(reply.fault is None for told in replies for reply in told), replies
assert sum(map(len, replies)) == 5, replies
print("over")
"""


@pytest.mark.slow
def test_what_is_steered_on_two_ranks_is_so_on_both(tmp_path: Path) -> None:
    """Frames cut again, positions moved, engines appended and switched, and all of it begun anew."""
    hdf5.write(tmp_path / "f.h5", BEAM, codec="bslz4", together=40, wait=lambda s: False)
    samples = {"y": "/entry/stage/y", "x": "/entry/stage/x"}
    data = {"name": "Hdf5Scan", "file": str(tmp_path / "f.h5"), "frames": hdf5.FRAMES, "samples": samples, **GEOMETRY}
    found = []
    for name, before in (("alone", []), ("ranks", [launcher(), "-n", "2"])):
        (home := tmp_path / name).mkdir()
        parameters = {
            "run": "t",
            **ALONE,
            "io": {"rfile": "%(run)s.ptyr", **{off: {"active": False} for off in ("publish", "metrics", "autosave", "autoplot")}},
            "scans": {"s": {"name": "Full", "data": {"shape": BEAM.side, **data}, "illumination": {"aperture": {"size": 4e-7}}}},
            "engines": {"dm": {"name": "DM", "numiter": 20}},
        }
        (home / "c.yaml").write_text(yaml.safe_dump(parameters))
        (home / "s.py").write_text(STEERED.format(tests=str(Path(__file__).parents[1])))
        done = subprocess.run([*before, sys.executable, "s.py"], cwd=home, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0 and done.stdout == "over\n", done.stderr
        found.append(ptyr.read(home / "t.ptyr"))
    one, two = found
    for result in found:
        entries = [entry["do"] for entry in result.schedule]
        assert [entries.count(do) for do in ("recut", "append", "restart")] == [1, 1, 1]
        assert result.scans["s"]["center"] == [15.0, 16.0] and result.ledger["used"] == BEAM.frames
    assert one.iter_info[-1]["engine"] == two.iter_info[-1]["engine"] == "ML"
    assert distance(one.object, two.object, one.coverage) < 2e-2


@pytest.mark.slow
def test_what_a_header_tells_is_known_on_all_ranks_scan_after_scan(tmp_path: Path) -> None:
    stack = np.pad(PATTERNS, ((0, 0), (8, 8), (8, 8))).astype(np.uint32)
    np.save(tmp_path / "places.npy", PLACES)
    energies = (GEOMETRY["energy"], 1.25 * GEOMETRY["energy"])
    known = {"distance_m": GEOMETRY["distance"], "psize_m": (GEOMETRY["psize"],) * 2, "center": (8 + BEAM.side // 2,) * 2}
    found = []
    for name, before in (("alone", []), ("ranks", [launcher(), "-n", "2"])):
        (home := tmp_path / name).mkdir()
        with Detector("tcp://127.0.0.1:*") as detector:
            source = {"name": "DectrisScan", "address": detector.address, "positions_theory": str(tmp_path / "places.npy")}
            scan = {"name": "Full", "data": {**source, "shape": BEAM.side}, "illumination": {"aperture": {"size": 4e-7}}}
            parameters = {
                "run": "t",
                **ALONE,
                "min_frames_for_recon": BEAM.frames,
                "live": {"runs": 2, "overlap": 2},
                "io": {"rfile": "%(run)s.ptyr", **{off: {"active": False} for off in ("publish", "metrics", "autosave")}},
                "scans": {"s": scan},
                "engines": {"dm": {"name": "DM", "numiter": 5}},
            }
            (home / "c.yaml").write_text(yaml.safe_dump(parameters))
            command = [*before, sys.executable, "-P", "-m", "ptystream", "live", "c.yaml"]
            with subprocess.Popen(command, cwd=home, stderr=subprocess.PIPE, text=True) as job:
                for number, energy in enumerate(energies):
                    camera = Camera(energy_kev=energy, **known)
                    detector.send(series_of(camera, number + 1, stack), 2000.0)
                said = job.communicate(timeout=120)[1]
        assert job.returncode == 0, said
        assert ("live.overlap: 2: one scan after another: other ranks follow one engine" in said) == (name == "ranks")
        found.append([ptyr.read(home / f"{run}.ptyr") for run in ("t", "t_0002")])
    for energy, one, two in zip(energies, *found, strict=True):
        assert two.scans["s"]["energy"] == one.scans["s"]["energy"] == pytest.approx(energy)
        assert two.ledger == one.ledger and two.ledger["used"] == BEAM.frames
        alone, there = one.object["SsG00"], two.object["SsG00"]
        assert there.pixel_size_m == alone.pixel_size_m
        assert there.pixel_size_m[0] == pytest.approx(BEAM.pixel_m * energies[0] / energy)
        assert np.abs(there.data - alone.data).max() < 2e-2 * np.abs(alone.data).max()


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
