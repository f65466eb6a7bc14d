"""Whole sessions whose beam fails, whose shutter is closed, whose positions get lost."""

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
from ptystream.params.load import load
from ptystream.plan import make_plan
from ptystream.publish.snapshot import LEDGER_CODES
from ptystream.session import Session
from ptystream.storage import ptyr
from ptystream.transport import Message, TransportClosed

N = BEAM.frames
DARK = np.isin(np.arange(N) // 6 % 5, [2])
"""A fifth of the frames, in several outages."""
I0 = {"name": "ZmqScan", "channels": {"y": None, "x": None, "dose": "i0"}, "dose_limit": 0.5}
SHUTTER = {"name": "ZmqScan", "channels": {"y": None, "x": None, "shutter": "open"}}
Messages = list[list[bytes]]


def wrapped(messages: Messages, count: int = N) -> Messages:
    start, end = header("start", scan="a", meta={}), header("end", scan="a", count=count, reason="completed")
    return [[start], *messages, [end]]


def exposed(numbers: Any = range(N), dark: Any = None) -> Messages:
    """Frames; those that are `dark` hold the detector's noise."""
    noise = np.random.default_rng(1).poisson(0.02, PATTERNS.shape).astype(PATTERNS.dtype)
    shown = PATTERNS if dark is None else np.where(dark[:, None, None], noise, PATTERNS)
    return [frames_parts("a", k, [shown[k].tobytes()], 1, shown[k].shape, shown[k].dtype, "raw") for k in numbers]


def places(numbers: Any = range(N)) -> Messages:
    return [samples_parts("a", k, {"y": PLACES[k, :1], "x": PLACES[k, 1:]}, None) for k in numbers]


def monitored(name: str, values: Any) -> Messages:
    return [samples_parts("a", k, {name: np.array([float(v)])}, None) for k, v in enumerate(values)]


def session(folder: Path, transports: dict[str, Any], *, positions: Any = None, also: Any = (), **root: Any) -> Session:
    data = {"name": "ZmqScan", "shape": BEAM.side, **GEOMETRY, "positions": {"name": "ZmqScan", **(positions or {})}}
    given = {
        "run": "t",
        "min_frames_for_recon": N + 1,
        "threads": 1,
        "io": {"home": str(folder), "rfile": "%(run)s.ptyr"},
        "scans": {"s": {"name": "Full", "data": data | {"also": list(also)}, "illumination": {"aperture": {"size": 4e-7}}}},
        "engines": {"e": {"name": "DM", "numiter": 20}},
        **root,
    }
    return Session(make_plan(load(given), transports=transports), metrics=Metrics())


def result(folder: Path, given: dict[str, Messages], **settings: Any) -> ptyr.Result:
    memories = {f"s/{kind}": Memory(f"s/{kind}", messages) for kind, messages in given.items()}
    (path,) = session(folder, memories, **settings).run()
    return ptyr.read(path)


@pytest.mark.slow
@pytest.mark.parametrize(("also", "name", "reason"), [(I0, "i0", "beam_off"), (SHUTTER, "open", "shutter_closed")])
def test_with_the_beam_off_for_a_fifth_of_the_frames_the_image_is_that_of_the_others(
    tmp_path: Path, also: dict[str, Any], name: str, reason: str
) -> None:
    lit = np.flatnonzero(~DARK)
    monitor = wrapped(monitored(name, ~DARK))
    stream = {"data": wrapped(exposed(dark=DARK)), "positions": wrapped(places())}
    got = result(tmp_path / "off", stream | {"also.0": monitor}, also=[also])
    wanted = result(tmp_path / "without", {"data": wrapped(exposed(lit), len(lit)), "positions": wrapped(places())})
    naive = result(tmp_path / "naive", stream)
    assert got.ledger[reason] == DARK.sum() == 18
    assert got.ledger["used"] == wanted.ledger["used"] == len(lit)
    assert naive.ledger["used"] == N
    np.testing.assert_array_equal(got.object["SsG00"].data, wanted.object["SsG00"].data)
    np.testing.assert_array_equal(got.probe["SsG00"].data, wanted.probe["SsG00"].data)
    assert naive.misfit[-1, 0] > 1.5 * got.misfit[-1, 0], "the dark frames would have spoiled it"
    codes = got.ledger_frames[:, 2]
    assert np.count_nonzero(codes == LEDGER_CODES.index("excluded")) == DARK.sum()


def test_a_beam_that_varies_scales_the_model_and_not_the_counts(tmp_path: Path) -> None:
    """Frames of half the beam, with the dose told and without."""
    dose = np.where(np.arange(N) % 3 == 1, 0.5, 1.0)
    random = np.random.default_rng(3)
    weak = random.binomial(PATTERNS.astype(np.int64), dose[:, None, None]).astype(PATTERNS.dtype)
    frames = [frames_parts("a", k, [weak[k].tobytes()], 1, weak[k].shape, weak[k].dtype, "raw") for k in range(N)]
    stream = {"data": wrapped(frames), "positions": wrapped(places())}
    told = result(tmp_path / "told", stream | {"also.0": wrapped(monitored("i0", 70.0 * dose))}, also=[I0])
    hidden = result(tmp_path / "hidden", stream)
    assert told.misfit[-1, 0] < 0.7 * hidden.misfit[-1, 0]


class Paused(Memory):
    """Silent for a while before its message number `at`, and for ever at its end."""

    def __init__(self, channel: str, messages: Messages, at: int, pause_s: float) -> None:
        super().__init__(channel, messages)
        self._count, self._at, self._pause_s, self._lasts = 0, at, pause_s, threading.Event()

    def receive(self, timeout_s: float) -> Message | None:
        if self._count == self._at:
            self._lasts.wait(self._pause_s)
        self._count += 1
        try:
            return super().receive(timeout_s)
        except TransportClosed:
            self._lasts.wait(timeout_s)
            return None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lost", "live", "complete"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"beam_timeout_s": 0.2}, False),
        (True, {"beam_timeout_s": None}, True),
    ],
)
def test_a_beam_loss_suspends_the_time_out_of_the_scan(tmp_path: Path, lost: bool, live: dict[str, Any], complete: bool) -> None:
    off = np.zeros(N, np.bool_)
    off[39] = lost
    feeds = {"data": exposed(), "positions": places(), "also.0": monitored("i0", ~off)}
    paused = {f"s/{kind}": Paused(f"s/{kind}", wrapped(messages), 41, 4.5) for kind, messages in feeds.items()}
    running = session(tmp_path, paused, also=[I0], live={"timeout_s": 1.5, **live}, min_frames_for_recon=20)
    (path,) = running.run()
    made = ptyr.read(path)
    assert made.ledger["used"] == (N if complete else 40) - lost
    silent = any("nothing came" in entry["reason"] for entry in made.schedule if entry["do"] == "end")
    assert silent == (not complete)


@pytest.mark.slow
def test_lost_positions_are_interpolated_marked_and_put_right_when_they_come_late(tmp_path: Path) -> None:
    """A wire that loses a tenth of the positions; the same, with those that were lost sent again when the frames are over."""
    lost = np.arange(7, N - 1, 10)
    kept = np.setdiff1d(np.arange(N), lost)
    frames = wrapped(exposed())
    clean = result(tmp_path / "clean", {"data": frames, "positions": wrapped(places())})
    rules = {"interpolate_after_s": 0.1}
    left_out = result(tmp_path / "out", {"data": frames, "positions": wrapped(places(kept))})
    between = result(tmp_path / "between", {"data": frames, "positions": wrapped(places(kept))}, positions=rules)
    assert left_out.ledger["position_missing"] == len(lost)
    assert between.ledger["used"] == N
    assert np.count_nonzero(between.ledger_frames[:, 2] == LEDGER_CODES.index("interpolated")) == len(lost)

    late = Late("s/positions", [*wrapped(places(kept))[:-1], *places(lost), wrapped([])[-1]], len(kept) + 1)
    data = Memory("s/data", frames)
    running = session(tmp_path / "late", {"s/data": data, "s/positions": late}, positions=rules, min_frames_for_recon=16)
    late.until = lambda: running.current is not None and running.current.ledger().get("used", 0) == N
    (path,) = running.run()
    repaired = ptyr.read(path)
    assert repaired.ledger["used"] == N
    assert not np.count_nonzero(repaired.ledger_frames[:, 2] == LEDGER_CODES.index("interpolated"))
    moved = [entry for entry in repaired.schedule if entry["do"] == "revise" and entry["what"] == "position"]
    assert {entry["index"] for entry in moved} == set(lost.tolist())
    assert sorted(map(tuple, repaired.positions_m)) == sorted(map(tuple, clean.positions_m))


class Late(Memory):
    """Holds the messages from number `at` on back until something is true."""

    def __init__(self, channel: str, messages: Messages, at: int) -> None:
        super().__init__(channel, messages)
        self._count, self._at = 0, at
        self.until: Any = lambda: True

    def receive(self, timeout_s: float) -> Message | None:
        if self._count == self._at:
            for _ in range(6000):
                if self.until():
                    break
                threading.Event().wait(0.01)
            else:
                raise AssertionError("it did not become true")
        self._count += 1
        return super().receive(timeout_s)
