"""`kill -9` of a session at twenty moments: the same command again finishes the same scan, and nothing is lost.

`python tests/test_survival.py` prints the table of docs/explanation/survival.md.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import victim
import yaml
from problems import BEAM, GEOMETRY, PATTERNS, PLACES

from ptystream.detectors.zmq import Sender
from ptystream.recording import Recording
from ptystream.storage import ptyr
from ptystream.verify import FACTOR, distance, verify

PAUSE_S = 0.004
"""Between two frames: the scan goes on while the engine iterates."""
MESSAGES = 2 * (BEAM.frames + 2)
LIMIT_S = 100.0
NUMITER = 80
_random = np.random.default_rng(4)


def _moments() -> list[tuple[str, int]]:
    """(moment, at its how-many-th time): those that hurt most, and twenty in all, by seed."""

    def draw(low: int, high: int) -> int:
        return int(_random.integers(low, high))

    found = [("ready", 1), ("recorded", 1), ("received", 1), ("noted", 1), ("saved", 1), ("saving", 1), ("dumping", 1)]
    found += [("recorded", draw(2, MESSAGES)) for _ in range(3)] + [("received", draw(2, MESSAGES)) for _ in range(2)]
    found += [("torn", draw(3, 40)), ("torn", draw(40, 80))] + [("iterated", draw(1, NUMITER)) for _ in range(4)]
    return [*found, ("dumped", 1), ("dumping", 2)]


KILLS = _moments()
QUICK = [("ready", 1), ("recorded", 1), ("saving", 1)]


@dataclass(frozen=True)
class Outcome:
    """What became of a scan whose session was killed."""

    moment: str
    recorded: int
    """Messages in the recording when the process was dead."""
    kept: int
    """Iterations that the second session went on from."""
    result: ptyr.Result


class Beamline:
    """Sends one small scan on the acknowledged link, from when a session is ready."""

    def __init__(self, folder: Path, numiter: int = NUMITER, cut: Any = None, **root: Any) -> None:
        self.folder = folder
        self._data, self._places = Sender(), Sender()
        self._go, self._thread = threading.Event(), threading.Thread(target=self._send, daemon=True)
        self.config = folder / "k.yaml"
        source = {"name": "ZmqScan"}
        data = {**source, "address": self._data.address, "shape": BEAM.side, **GEOMETRY, **(cut or {})}
        off = {"active": False}
        given = {
            "run": "k",
            "threads": 1,
            "io": {
                "home": str(folder),
                "rfile": "%(run)s.ptyr",
                "recording": {"file": "k.ptyrec"},
                "autosave": {"interval": 4, "rfile": "%(run)s_%(iterations)04d.dump"},
                **dict.fromkeys(("autoplot", "publish", "metrics"), off),
            },
            "scans": {
                "s": {
                    "name": "Full",
                    "data": {**data, "positions": {**source, "address": self._places.address}},
                    "illumination": {"aperture": {"size": 4e-7}},
                }
            },
            "engines": {
                "dm": {"name": "DM", "numiter": numiter, "average_last": numiter // 4},
                "ml": {"name": "ML", "numiter": numiter, "scale_precond": True},
            },
            **root,
        }
        folder.mkdir(parents=True, exist_ok=True)
        self.config.write_text(yaml.safe_dump(given))

    def __enter__(self) -> Beamline:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._go.set()
        self._thread.join(60)
        self._data.close()
        self._places.close()

    def session(self, moment: str | None = None, count: int = 1) -> int:
        """Run a session to its end, or to its death; the exit status of its process."""
        process, ready = victim.start(str(self.config), str(self.folder / "log"), moment, count)
        deadline = time.monotonic() + LIMIT_S
        while process.is_alive() and not ready.wait(0.05):
            assert time.monotonic() < deadline
        self.go()
        process.join(LIMIT_S)
        code = process.exitcode
        if code is None:
            process.kill()
            process.join()
            pytest.fail(f"{moment} {count}: the session does not end\n{(self.folder / 'log').read_text()}")
        return int(code)

    def go(self) -> None:
        """Send, if that has not begun."""
        self._go.set()

    def _send(self) -> None:
        self._go.wait()
        self._data.start("a", num_frames=BEAM.frames)
        self._places.start("a")
        for k, (pattern, place) in enumerate(zip(PATTERNS, PLACES, strict=True)):
            self._data.frames(k, pattern)
            self._places.samples(k, y=place[:1], x=place[1:])
            time.sleep(PAUSE_S)  # the rate of a detector
        self._data.end(BEAM.frames)
        self._places.end(BEAM.frames)


def undisturbed(folder: Path, numiter: int = NUMITER, **root: Any) -> ptyr.Result:
    """The scan of a session that nobody kills."""
    with Beamline(folder, numiter, **root) as beamline:
        assert beamline.session() == 0, (folder / "log").read_text()
    return ptyr.read(folder / "k.ptyr")


def wanted(folder: Path, **more: Any) -> tuple[ptyr.Result, float]:
    """An undisturbed result, and the tolerance: 1.2 × the difference between runs of `numiter` and 2 `numiter` iterations that
    begin when every frame is there, as of `ptystream verify`."""
    offline = {"min_frames_for_recon": BEAM.frames + 1, **more}
    live = undisturbed(folder / "live", **more)
    one, two = (undisturbed(folder / str(k), k * NUMITER, **offline) for k in (1, 2))
    return live, FACTOR * difference(one, two)


def killed(folder: Path, moment: str, count: int) -> Outcome:
    """The scan of a session that dies at a moment and is started again with the same configuration."""
    with Beamline(folder) as beamline:
        code = beamline.session(moment, count)
        assert code == -signal.SIGKILL, f"{moment} {count}: exit status {code}\n{(folder / 'log').read_text()}"
        recorded = sum(m.channel != "session" for m in Recording(folder / "k.ptyrec"))
        assert beamline.session() == 0, (folder / "log").read_text()
    result = ptyr.read(folder / "k.ptyr")
    entries = [entry["do"] for entry in result.schedule]
    kept = 0
    if "resume" in entries:
        before = result.schedule[: entries.index("resume")]
        kept = sum(e["iterations"] * e.get("times", 1) for e in before if e["do"] == "iterate")
    return Outcome(f"{moment} {count}", recorded, kept, result)


def difference(first: ptyr.Result, second: ptyr.Result) -> float:
    """Of two objects, relative, weighted by coverage, without shift, phase, ramp and scale."""
    return distance(first.object, second.object, first.coverage)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[ptyr.Result, float]:
    """What `wanted` gives."""
    return wanted(tmp_path_factory.mktemp("undisturbed"))


def check(outcome: Outcome, reference: tuple[ptyr.Result, float]) -> None:
    undisturbed, tolerance = reference
    ledger = outcome.result.ledger
    assert ledger["used"] == ledger["expected"] == BEAM.frames, f"{outcome.moment}: {ledger}"
    assert difference(undisturbed, outcome.result) <= tolerance, outcome.moment


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "count"), QUICK)
def test_a_killed_session_finishes_its_scan(
    tmp_path: Path, reference: tuple[ptyr.Result, float], moment: str, count: int
) -> None:
    check(killed(tmp_path, moment, count), reference)


WRONG = {"center": [18, 13], "orientation": 0, "offset": [0.0, 0.0]}
PUT_RIGHT = {"center": [16, 16], "offset": [2.4e-7, -1.1e-7]}


@pytest.fixture(scope="module")
def put_right(tmp_path_factory: pytest.TempPathFactory) -> tuple[ptyr.Result, float]:
    """A run that had the right values from the start, and what another may differ by: as one that nobody kills and that is put
    right on its way, which keeps something of its wrong beginning."""
    right, tolerance = wanted(tmp_path_factory.mktemp("right"), cut={**WRONG, **PUT_RIGHT})
    with Beamline(folder := tmp_path_factory.mktemp("late"), cut=WRONG) as beamline:
        ask(folder, 12)
        assert beamline.session() == 0, (folder / "log").read_text()
    return right, max(tolerance, FACTOR * difference(right, ptyr.read(folder / "k.ptyr")))


def ask(folder: Path, iterations: int) -> None:
    """Have the right values set after so many iterations."""
    asked = [["set", {"path": f"scans.s.data.{name}", "value": value}] for name, value in PUT_RIGHT.items()]
    (folder / "k.asked").write_text(json.dumps([iterations, *asked]))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("moment", "count", "iterations"),
    [("recutting", 1, 2), ("recutting", 15, 10), ("recut", 1, 10), ("iterated", 60, 12), ("dumped", 3, 12)],
)
def test_what_was_set_of_frames_is_so_in_the_session_behind_a_kill(
    tmp_path: Path, put_right: tuple[ptyr.Result, float], moment: str, count: int, iterations: int
) -> None:
    """Whether it was under way, just done or long since."""
    with Beamline(tmp_path, cut=WRONG) as beamline:
        ask(tmp_path, iterations)
        assert beamline.session(moment, count) == -signal.SIGKILL, (tmp_path / "log").read_text()
        assert beamline.session() == 0, (tmp_path / "log").read_text()
    result = ptyr.read(tmp_path / "k.ptyr")
    check(Outcome(moment, 0, 0, result), put_right)
    assert result.scans["s"]["center"] == [16.0, 16.0]
    assert np.abs(result.positions_m.mean(axis=0) - put_right[0].positions_m.mean(axis=0)).max() < BEAM.pixel_m / 100
    assert verify(result, Recording(tmp_path / "k.ptyrec"), offline=False).same_bits


@pytest.mark.slow
def test_frames_that_were_turned_under_the_second_engine_are_so_behind_a_kill(tmp_path: Path) -> None:
    """Everything has begun anew, or is to, with the first engine; the second one follows it."""
    numiter = 20
    with Beamline(tmp_path, numiter, cut={"orientation": 6}) as beamline:
        turned = ["set", {"path": "scans.s.data.orientation", "value": 0}]
        (tmp_path / "k.asked").write_text(json.dumps(["ml", turned]))
        assert beamline.session("recutting", 40) == -signal.SIGKILL, (tmp_path / "log").read_text()
        assert beamline.session() == 0, (tmp_path / "log").read_text()
    result = ptyr.read(tmp_path / "k.ptyr")
    assert result.ledger["used"] == result.ledger["expected"] == BEAM.frames
    at = [k for k, entry in enumerate(result.schedule) if entry["do"] in ("recut", "engine", "resume")]
    assert [result.schedule[k].get("label") for k in at][-1] == "ml"
    (recut,) = (entry for entry in result.schedule if entry["do"] == "recut")
    assert (recut["parameters"], recut["before"]) == ({"orientation": 0}, {"orientation": 6})
    report = verify(result, Recording(tmp_path / "k.ptyrec"))
    assert report.good and report.same_bits, report.lines()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_moments(tmp_path: Path, reference: tuple[ptyr.Result, float]) -> None:
    assert len(KILLS) == len(set(KILLS)) == 20
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(lambda k: killed(tmp_path / str(k[0]), *k[1]), enumerate(KILLS)))
    for outcome in outcomes:
        check(outcome, reference)
    assert any(outcome.kept for outcome in outcomes)


def main() -> None:
    """Print the kill matrix."""
    with TemporaryDirectory() as folder:
        first, tolerance = wanted(Path(folder))
        again = difference(first, undisturbed(Path(folder) / "again"))
        print(f"tolerance {tolerance:.4f}; another undisturbed run {again:.4f}\n")
        print("| moment | messages recorded | iterations kept | frames used | difference |\n| --- | ---: | ---: | ---: | ---: |")
        for k, (moment, count) in enumerate(KILLS[: int(sys.argv[1]) if len(sys.argv) > 1 else None]):
            o = killed(Path(folder) / f"k{k}", moment, count)
            numbers = o.recorded, o.kept, o.result.ledger["used"], f"{difference(first, o.result):.4f}"
            print(f"| {o.moment} | " + " | ".join(map(str, numbers)) + " |", flush=True)
    times = Path(f"/proc/{forkserver._forkserver._forkserver_pid}/stat").read_text().rpartition(")")[2].split()
    print(f"\n{sum(map(int, times[13:15])) / os.sysconf('SC_CLK_TCK'):.0f} s of processor time in all sessions", file=sys.stderr)


if __name__ == "__main__":
    main()
