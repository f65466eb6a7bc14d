"""Several scans on one canvas: each from its own zero, one after the other from one detector, live, with one probe."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from memory import Memory
from problems import BEAM, GEOMETRY, PATTERNS, PLACES

from ptystream.detectors.zmq.protocol import frames_parts, header, samples_parts
from ptystream.metrics import Metrics
from ptystream.params.errors import ConfigurationError
from ptystream.params.load import load
from ptystream.plan import make_plan
from ptystream.quality import align
from ptystream.recording import Recorder, Recording
from ptystream.session import Session
from ptystream.storage import ptyr
from ptystream.transport import Message, TransportClosed
from ptystream.verify import verify

LEFT = PLACES[:, 1] < np.median(PLACES[:, 1])
ZERO = {True: (0.0, 0.0), False: (4e-8, 2.3e-7)}
"""Where the stage's zero lies on the sample while a half is scanned."""
ZMQ = {"name": "ZmqScan"}


def tile(scan: str, left: bool, ended: bool = True) -> tuple[list[list[bytes]], list[list[bytes]]]:
    """Frames and positions of one half, as a detector and a stage send them that count from 0."""
    chosen = np.flatnonzero(left == LEFT)
    frames, places = [[header("start", scan=scan, meta={})]], [[header("start", scan=scan, meta={})]]
    for k, index in enumerate(chosen):
        pattern, (y, x) = PATTERNS[index], PLACES[index] - ZERO[left]
        frames.append(frames_parts(scan, k, [pattern.tobytes()], 1, pattern.shape, pattern.dtype, "raw"))
        places.append(samples_parts(scan, k, {"y": np.array([y]), "x": np.array([x])}, None))
    for messages in (frames, places) if ended else ():
        messages.append([header("end", scan=scan, count=len(chosen), reason="completed")])
    return frames, places


def configured(folder: Path, *, offset: Any = ZERO[False], **root: Any) -> dict[str, Any]:
    data = {**ZMQ, "shape": BEAM.side, **GEOMETRY}
    scan = {"name": "Full", "illumination": {"aperture": {"size": 4e-7}}}
    second = {**scan, "data": {**data, "follows": "a", "offset": offset}, "share": {"probe": "a", "object": "a"}}
    return {
        "run": "t",
        "threads": 1,
        "min_frames_for_recon": 16,
        "io": {"home": str(folder), "rfile": "%(run)s.ptyr"},
        "scans": {"a": {**scan, "data": {**data, "positions": ZMQ}}, "b": second},
        "engines": {"e": {"name": "DM", "numiter": 60}},
        **root,
    }


class Following(Memory):
    """Gives the second scan's messages when the first one's frames have all been iterated on."""

    def __init__(self, channel: str, first: list[list[bytes]], second: list[list[bytes]]) -> None:
        super().__init__(channel, first + second)
        self._until, self._count = len(first), 0
        self.session: Session | None = None
        self.closes = True

    def receive(self, timeout_s: float) -> Message | None:
        if self._count == self._until:
            run = None if self.session is None else self.session.current
            if run is None or run.rows_used < LEFT.sum():
                self.given.wait(0.01)
                return None
        self._count += 1
        try:
            return super().receive(timeout_s)
        except TransportClosed:
            if self.closes:
                raise
            threading.Event().wait(timeout_s)
            return None


def mosaic(
    folder: Path, first_ends: bool = True, recorder: Recorder | None = None, **settings: Any
) -> tuple[Session, ptyr.Result]:
    first, second = tile("tile", True, first_ends), tile("other", False)
    transports = {f"a/{kind}": Following(f"a/{kind}", first[k], second[k]) for k, kind in enumerate(("data", "positions"))}
    plan = make_plan(load(configured(folder, **settings)), transports=transports, recorder=recorder)
    running = Session(plan, metrics=Metrics(), tap=recorder)
    for transport in transports.values():
        transport.session, transport.closes = running, first_ends
    (path,) = running.run()
    return running, ptyr.read(path)


def whole(folder: Path) -> ptyr.Result:
    """All frames as one scan."""
    given = configured(folder)
    given["scans"] = {"a": given["scans"]["a"]}
    frames, places = [[header("start", scan="w", meta={})]], [[header("start", scan="w", meta={})]]
    for k, pattern in enumerate(PATTERNS):
        frames.append(frames_parts("w", k, [pattern.tobytes()], 1, pattern.shape, pattern.dtype, "raw"))
        places.append(samples_parts("w", k, {"y": PLACES[k, :1], "x": PLACES[k, 1:]}, None))
    for messages in (frames, places):
        messages.append([header("end", scan="w", count=BEAM.frames, reason="completed")])
    transports = {"a/data": Memory("a/data", frames), "a/positions": Memory("a/positions", places)}
    (path,) = Session(make_plan(load(given), transports=transports), metrics=Metrics()).run()
    return ptyr.read(path)


@pytest.mark.slow
def test_two_tiles_that_arrive_one_after_the_other_become_one_picture_as_good_as_of_one_scan(tmp_path: Path) -> None:
    _, made = mosaic(tmp_path / "mosaic")
    wanted = whole(tmp_path / "whole")
    assert list(made.object) == ["SaG00"]
    assert list(made.probe) == ["SaG00"]
    assert made.ledger["used"] == BEAM.frames
    began = next(k for k, entry in enumerate(made.schedule) if entry["do"] == "take" and entry["scan"] == "b")
    assert "iterate" in [entry["do"] for entry in made.schedule[:began]], "it was live"
    assert sorted(map(tuple, np.round(made.positions_m, 12))) == sorted(map(tuple, np.round(wanted.positions_m, 12)))
    assert made.misfit[-1, 0] < 1.3 * wanted.misfit[-1, 0]
    pictures = []
    for result in (made, wanted):
        held = result.object["SaG00"]
        y, x = np.subtract((-40, -40), held.offset)
        pictures.append((held.data[0, y : y + 80, x : x + 80], result.coverage["SaG00"][y : y + 80, x : x + 80]))
    agreement = align(pictures[1][0], pictures[0][0], (pictures[1][1] > 0.1).astype(float))
    assert agreement.complex_rms < 0.15
    _, wrong = mosaic(tmp_path / "wrong", offset=(0.0, 0.0))
    assert wrong.misfit[-1, 0] > 1.5 * made.misfit[-1, 0], "without the offset the tiles lie on each other"


def test_a_tile_whose_end_was_lost_is_ended_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptystream.session.SUPERSEDED_S", 0.3)
    _, made = mosaic(tmp_path, first_ends=False)
    assert made.ledger["used"] == BEAM.frames
    reasons = {entry["scan"]: entry["reason"] for entry in made.schedule if entry["do"] == "end"}
    assert "scan 'b' began" in reasons["a"]


def test_a_mosaic_is_repeated_from_its_recording_to_the_same_bits(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "t.ptyrec")
    _, made = mosaic(tmp_path, recorder=recorder, engines={"e": {"name": "DM", "numiter": 10}})
    recorder.close(finished=True)
    assert [made.scans[label]["acquisition"] for label in "ab"] == [["tile", 0], ["other", 0]]
    began = next(k for k, entry in enumerate(made.schedule) if entry["do"] == "take" and entry["scan"] == "b")
    assert "engine" in [entry["do"] for entry in made.schedule[:began]], "the engine was started by the first tile alone"
    assert verify(made, Recording(tmp_path / "t.ptyrec"), offline=False).same_bits


def test_one_mosaic_after_another_makes_run_after_run(tmp_path: Path) -> None:
    every = [tile(f"tile {k}", left=k % 2 == 0) for k in range(4)]
    transports = {
        f"a/{kind}": Memory(f"a/{kind}", [m for pair in every for m in pair[k]]) for k, kind in enumerate(("data", "positions"))
    }
    given = configured(tmp_path, live={"runs": 2}, min_frames_for_recon=BEAM.frames, engines={"e": {"name": "DM", "numiter": 3}})
    paths = Session(make_plan(load(given), transports=transports), metrics=Metrics()).run()
    first, second = (ptyr.read(path) for path in paths)
    assert first.ledger["used"] == second.ledger["used"] == BEAM.frames
    np.testing.assert_array_equal(first.object["SaG00"].data, second.object["SaG00"].data)


@pytest.mark.parametrize(
    ("scans", "told"),
    [
        ({"b": "c"}, "known: a, c"),
        ({"b": "z"}, "known: a, c"),
        ({"b": "b"}, "must lead to a scan"),
        ({"b": "a", "c": "a"}, "'b' follows it already"),
    ],
)
def test_scans_that_follow_nothing_are_refused(tmp_path: Path, scans: dict[str, str], told: str) -> None:
    given = configured(tmp_path)
    given["scans"]["c"] = {**given["scans"]["b"], "data": {**given["scans"]["b"]["data"], "follows": "b"}}
    for label, other in scans.items():
        given["scans"][label] = {**given["scans"][label], "data": {**given["scans"][label]["data"], "follows": other}}
    with pytest.raises(ConfigurationError, match=told):
        load(given)


def test_a_follower_has_the_sources_of_its_leader_and_must_name_the_same(tmp_path: Path) -> None:
    given = configured(tmp_path)
    configuration = load(given)
    assert configuration.scans[1].positions == configuration.scans[0].positions
    assert configuration.scans[1].sources == {}
    given["scans"]["b"]["data"]["name"] = "MoonFlowerScan"
    with pytest.raises(ConfigurationError, match="ZmqScan: use that name here too"):
        load(given)
