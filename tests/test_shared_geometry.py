"""Scans that share a probe or an object and turn out to have different geometries: one ends, and says why."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from memory import Memory
from problems import BEAM, GEOMETRY, PATTERNS, PLACES
from test_overlap import Steered

from ptystream.cli.progress import describe
from ptystream.detectors.zmq.protocol import frames_parts, header, samples_parts
from ptystream.metrics import Metrics
from ptystream.params.load import load
from ptystream.plan import make_plan
from ptystream.recording import Recorder, Recording
from ptystream.session import Session
from ptystream.storage import ptyr
from ptystream.verify import verify

ZMQ = {"name": "ZmqScan"}
HALF = BEAM.frames // 2


def told(energy: float) -> tuple[list[list[bytes]], list[list[bytes]]]:
    """Half of the frames, and their positions; the header tells the energy."""
    frames = [[header("start", scan="a", meta={"energy": energy})]]
    places = [[header("start", scan="a", meta={})]]
    for k, pattern in enumerate(PATTERNS[:HALF]):
        frames.append(frames_parts("a", k, [pattern.tobytes()], 1, pattern.shape, pattern.dtype, "raw"))
        places.append(samples_parts("a", k, {"y": PLACES[k, :1], "x": PLACES[k, 1:]}, None))
    for messages in (frames, places):
        messages.append([header("end", scan="a", count=HALF, reason="completed")])
    return frames, places


def session(
    folder: Path, energies: dict[str, float], share: dict[str, str], tap: Recorder | None = None, frames: int = 0, later: str = ""
) -> Session:
    """`later`: the scan whose messages are given when the test says so."""
    known = {key: GEOMETRY[key] for key in ("distance", "psize")}
    data = {**ZMQ, "shape": BEAM.side, **known, "positions": ZMQ}
    scan = {"name": "Full", "data": data, "illumination": {"aperture": {"size": 4e-7}}}
    given = {
        "run": "t",
        "threads": 1,
        "min_frames_for_recon": frames or len(energies) * HALF,
        "io": {"home": str(folder), "rfile": "%(run)s.ptyr"},
        "scans": {label: scan | ({"share": share} if label == "b" else {}) for label in energies},
        "engines": {"e": {"name": "DM", "numiter": 5}},
    }
    transports = {}
    for label, energy in energies.items():
        for kind, content in zip(("data", "positions"), told(energy), strict=True):
            transports[f"{label}/{kind}"] = (Steered if label == later else Memory)(f"{label}/{kind}", content)
    return Session(make_plan(load(given), transports=transports, recorder=tap), metrics=Metrics(), tap=tap)


@pytest.mark.parametrize("part", ["probe", "object"])
def test_the_scan_that_does_not_fit_ends_and_the_run_goes_on(tmp_path: Path, part: str, caplog: Any) -> None:
    energy = GEOMETRY["energy"]
    recorder = Recorder(tmp_path / "r.ptyrec")
    running = session(tmp_path, {"a": energy, "b": 1.25 * energy, "c": energy}, {part: "a"}, recorder)
    with caplog.at_level(logging.ERROR):
        (path,) = running.run()
    recorder.close()
    result = ptyr.read(path)
    why = f"scans.b.share.{part}: SaG00 has pixels of"
    assert result.ledger["used"] == 2 * HALF and result.ledger["scan_failed"] == HALF and not result.ledger.get("waiting")
    (said,) = (record.getMessage() for record in caplog.records)
    assert said.startswith(f"t: b: the scan ends here, without a frame in the picture: {why}")
    assert result.scans["b"]["ended"].startswith(f"failed: {why}") and result.scans["b"]["num_frames"] == 0
    assert f"share no {part}" in result.scans["b"]["ended"]
    assert result.scans["a"]["num_frames"] == result.scans["c"]["num_frames"] == HALF
    assert {entry["scan"] for entry in result.schedule if entry["do"] == "take"} == {"a", "c"}
    status = running.status()
    assert status["state"] == "finished" and status["failures"][0].startswith(why) and f"FAILED: {why}" in describe(status)
    assert set(result.object) == {"SaG00", "ScG00"} == set(result.probe)
    assert verify(result, Recording(tmp_path / "r.ptyrec"), offline=False).same_bits


@pytest.mark.parametrize("late", ["a", "b"])
def test_one_that_comes_while_the_other_is_reconstructed_ends_alone(tmp_path: Path, late: str) -> None:
    energy = GEOMETRY["energy"]
    running = session(tmp_path, {"a": energy, "b": 1.25 * energy}, {"object": "a"}, frames=HALF, later=late)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()

    def until(what: Callable[[], Any]) -> None:
        deadline = time.monotonic() + 60
        while not what():
            assert time.monotonic() < deadline and thread.is_alive(), running.status()
            time.sleep(0.01)

    until(lambda: running.status()["iteration"] > 2)
    for source in running.plan.channels:
        if isinstance(source.transport, Steered):
            source.transport.give(2 * HALF)
    thread.join(60)
    result = ptyr.read(*running.results)
    assert result.ledger["used"] == HALF and 0 < result.ledger["scan_failed"] <= HALF  # others come when it is over
    (end,) = (entry["reason"] for entry in result.schedule if entry["do"] == "end" and entry["scan"] == late)
    assert end.startswith(f"failed: scans.{late}.share.object: SaG00 has pixels of") == result.scans[late]["ended"].startswith(
        "failed"
    )
    assert result.scans["a" if late == "b" else "b"]["num_frames"] == HALF
    assert next(entry["reason"] for entry in result.schedule if entry["do"] == "end" and entry["scan"] != late) == "completed"


def test_scans_that_fit_all_go_on(tmp_path: Path) -> None:
    energy = GEOMETRY["energy"]
    (path,) = session(tmp_path, {"a": 1.25 * energy, "b": 1.25 * energy}, {"object": "a"}).run()
    result = ptyr.read(path)
    assert result.ledger["used"] == 2 * HALF and set(result.object) == {"SaG00"}
