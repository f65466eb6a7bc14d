"""Every fault that a replay can do, through a whole session: alive, every frame accounted for, the image as good as stated.

`make faults` prints the table of docs/reference/faults.md.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from problems import BEAM, GEOMETRY, PATTERNS, PLACES

from ptystream.detectors.zmq.link import envelope
from ptystream.detectors.zmq.protocol import NativeDecoder, frames_parts, header, samples_parts
from ptystream.events import Frames, Rejected, Samples, ScanEnded
from ptystream.faults import Faults
from ptystream.metrics import Metrics
from ptystream.params.load import load
from ptystream.plan import make_plan
from ptystream.playback import Playback
from ptystream.quality import align
from ptystream.recording import Recorder
from ptystream.session import Session
from ptystream.storage import ptyr
from ptystream.transport import Message

PACE_NS = 10_000_000
"""Between two frames of the recording."""
REGION = 40
"""Pixels about the object's middle, of which the images are compared where frames have covered them."""
SEED = 3
STATES = ("expected", "received", "decoded", "paired", "prepared", "used", "waiting")
HEAD = (
    "fault",
    "messages hit",
    "frames received",
    "used",
    "not used, and why",
    "messages rejected",
    "phase error, rad",
    "of clean",
    "allowed",
)


@dataclass(frozen=True, slots=True)
class Case:
    """A fault, and how much worse than without it the image may become."""

    name: str
    faults: Faults
    factor: float = 1.25
    positions: Mapping[str, Any] = field(default_factory=dict)
    """Parameters of the positions' source."""


def cases() -> Iterator[Case]:
    """All of them: each fault alone, then together."""
    yield Case("none", Faults())
    yield Case("rate", Faults(rate=1000))
    yield Case("jitter", Faults(jitter=0.05))
    yield Case("drop", Faults(drop=0.1))
    yield Case("drop, ends too", Faults(drop=0.1, spare=False, seed=4))
    yield Case("duplicate", Faults(duplicate=0.2))
    yield Case("reorder", Faults(reorder=0.3))
    yield Case("truncate", Faults(truncate=0.1))
    yield Case("corrupt", Faults(corrupt=0.05), 2.5)
    yield Case("clock skew", Faults(skew=5e-5), 1.5, {"interpolate": "time"})
    yield Case("clock drift", Faults(drift=100), 1.5, {"interpolate": "time"})
    yield Case("late positions", Faults(late=0.3))
    yield Case("some positions late", Faults(late=0.3, late_share=0.3))
    yield Case("early stop", Faults(stop=0.7), 1.5)
    yield Case("mid-scan join", Faults(join=0.3), 1.5)
    everything = {"drop": 0.03, "duplicate": 0.05, "reorder": 0.1, "truncate": 0.03, "jitter": 0.02, "late": 0.1}
    yield Case("most of them together", Faults(**everything), 1.5)


def record(path: Path) -> Path:
    """A scan as it came over the acknowledged link, with time stamps of a clock of the detector's."""
    recorder = Recorder(path)
    count, stamp = BEAM.frames, np.array([0])
    frames: list[list[Any]] = [[header("start", scan="a", meta={"num_frames": count}, q=0)]]
    places: list[list[Any]] = [[header("start", scan="a", meta={}, q=0)]]
    for k, pattern in enumerate(PATTERNS):
        at = stamp + 5_000_000_000 + k * PACE_NS
        part = frames_parts("a", k, [pattern.tobytes()], 1, pattern.shape, pattern.dtype, "raw", at, q=k + 1)
        frames.append(part)
        places.append(samples_parts("a", k, {"y": PLACES[k, :1], "x": PLACES[k, 1:]}, at, q=k + 1))
    frames.append([header("end", scan="a", count=count, reason="completed", q=count + 1)])
    places.append([header("end", scan="a", count=count, reason="completed", q=count + 1)])
    for k, (one, other) in enumerate(zip(frames, places, strict=True)):
        for channel, stream, parts in (("s/data", b"frames  ", one), ("s/positions", b"places  ", other)):
            recorder.write(Message(10**18 + k * PACE_NS, channel, (envelope(stream, k), *parts)))
    recorder.close(finished=True)
    return path


def configuration(folder: Path, case: Case) -> dict[str, Any]:
    """A session for the recording; begins when all is there, so that only what came decides the image."""
    source = {"name": "ZmqScan"}
    data = {**source, "shape": BEAM.side, **GEOMETRY, "positions": {**source, **case.positions}}
    quiet = {name: {"active": False} for name in ("publish", "metrics", "autosave", "autoplot", "recording")}
    return {
        "run": "faults",
        "min_frames_for_recon": BEAM.frames + 1,
        "threads": 1,
        "io": {"home": str(folder), "rfile": "%(run)s.ptyr", **quiet},
        "scans": {"s": {"name": "Full", "data": data, "illumination": {"aperture": {"size": 4e-7}}}},
        "engines": {"e": {"name": "DM", "numiter": 80, "average_last": 20}},
    }


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a case came to."""

    alive: bool
    ledger: Mapping[str, int]
    rejected: Mapping[str, int]
    """Messages that were counted and dropped, by reason."""
    expected: Mapping[str, int]
    """What the ledger and those counters must say, found without a session."""
    result: ptyr.Result
    hit: Mapping[str, int]
    seconds: float


@cache
def outcome(case_name: str) -> Outcome:
    """Run a case, by its name."""
    return run(next(c for c in cases() if c.name == case_name))


def run(case: Case) -> Outcome:
    """Record, damage, reconstruct, account."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.perf_counter()
        given = load(configuration(folder, case))
        playback, metrics = Playback(str(record(folder / "r.ptyrec")), faults=_seeded(case.faults)), Metrics()
        session = Session(make_plan(given, transports=playback.transports(given)), metrics=metrics)
        results = session.run()
        result = ptyr.read(results[0])
        ledger = dict(result.ledger)
        damaged = playback.damaged
        return Outcome(
            len(results) == 1,
            ledger,
            counted(metrics, "ptystream_rejected"),
            accounted(playback, bool(case.positions)),
            result,
            {} if damaged is None else {name: len(numbers) for name, numbers in damaged.hit.items() if numbers},
            time.perf_counter() - began,
        )


def _seeded(faults: Faults) -> Faults:
    return faults if faults.seed or not faults.any else replace(faults, seed=SEED)


def counted(metrics: Metrics, name: str) -> dict[str, int]:
    """Label → value of a metric with one label, without zeros and times of creation."""
    family = next(m for m in metrics.registry.collect() if m.name == name)
    samples = [s for s in family.samples if not s.name.endswith("_created")]
    return {next(iter(s.labels.values())): int(s.value) for s in samples if s.value}


def accounted(playback: Playback, by_time: bool) -> dict[str, int]:
    """What must have been counted of the messages that come: read by decoders of our own, joined here by number."""
    assert playback.pace is not None
    messages = playback.damaged.messages if playback.damaged is not None else tuple(playback.pace.recording)
    decoders = {"s/data": NativeDecoder(), "s/positions": NativeDecoder()}
    arrivals: Counter[int] = Counter()
    places: set[int] = set()
    stamps: dict[str, list[int]] = {"s/data": [], "s/positions": []}
    rejected: Counter[str] = Counter()
    ended: set[str] = set()
    late = 0
    for message in messages:
        for event in decoders[message.channel].feed(message):
            over = len(ended) == len(decoders)
            if isinstance(event, ScanEnded):
                ended.add(message.channel)
            elif over and isinstance(event, (Frames, Samples)):
                late += len(event.indices) if isinstance(event, Frames) else 0
            elif isinstance(event, Frames):
                arrivals.update(event.indices.tolist())
                stamps["s/data"] += [] if event.timestamps_ns is None else event.timestamps_ns.tolist()
            elif isinstance(event, Samples):
                places.update(range(event.first, event.first + len(event.channels["y"])))
                stamps["s/positions"] += [] if event.timestamps_ns is None else event.timestamps_ns.tolist()
            elif isinstance(event, Rejected):
                rejected[event.reason] += event.count
    placed = len(arrivals.keys() & places)
    if by_time:
        low, high = min(stamps["s/positions"]), max(stamps["s/positions"])
        placed = sum(low <= stamp <= high for stamp in stamps["s/data"])
    told = {
        "received": arrivals.total() + late,
        "late": late,
        "duplicate": arrivals.total() - len(arrivals),
        "position_missing": len(arrivals) - placed,
        "used": placed,
        **{f"rejected {reason}": count for reason, count in rejected.items()},
    }
    return {name: count for name, count in told.items() if count}


def phase_error(result: ptyr.Result, where: ptyr.Result) -> float:
    """Standard deviation of the phase against the truth, radians, over what the frames of `where` have covered."""
    truth, half = BEAM.object(), REGION // 2
    rows, columns = (slice(n // 2 - half, n // 2 + half) for n in truth.shape)

    def here(of: ptyr.Result) -> tuple[slice, ...]:
        (found,) = of.object.values()
        return tuple(slice(-o - half, -o + half) for o in found.offset)

    ((name, found),) = result.object.items()
    weight = where.coverage[name][here(where)] > 0.3
    return float(align(truth[rows, columns], found.data[0][here(result)], weight).phase_std)


def errors(found: Outcome) -> tuple[float, float]:
    """Phase error of a case, and that of the clean run over the same part of the object."""
    return phase_error(found.result, found.result), phase_error(outcome("none").result, found.result)


def faults_of(case: Case, found: Outcome) -> list[str]:
    """What a case misses; empty where it does what is stated."""
    missed = [] if found.alive else ["no result"]
    ledger, expected = found.ledger, found.expected
    sums = ledger["used"] + ledger["waiting"] + sum(n for key, n in ledger.items() if key not in (*STATES, "frame_missing"))
    if sums != ledger["received"] or ledger["waiting"]:
        missed.append(f"the ledger does not close: {ledger}")
    if case.faults.corrupt == 0:  # a changed byte may be a pixel, an index or a scan's name
        said = {key: ledger.get(key, 0) for key in ("received", "late", "duplicate", "position_missing", "used")}
        said |= {f"rejected {reason}": count for reason, count in found.rejected.items()}
        said = {key: count for key, count in said.items() if count}
        if said != dict(expected):
            missed.append(f"counted {said}, came {dict(expected)}")
    error, clean = errors(found)
    if error > case.factor * clean:
        missed.append(f"phase error {error:.3f}, {case.factor:g} × {clean:.3f} are allowed")
    return missed


def main() -> int:
    """Print the table; 1 where a case misses something."""
    bad = 0
    logging.basicConfig(level=logging.ERROR)
    print("| " + " | ".join(HEAD) + " |")
    print("|" + " --- |" * len(HEAD))
    for case in cases():
        found = outcome(case.name)
        missed = faults_of(case, found)
        error, clean = errors(found)
        bad += bool(missed)
        reasons = ", ".join(f"{key} {n}" for key, n in found.ledger.items() if key not in STATES and n)
        cells = [
            case.name,
            ", ".join(f"{key} {n}" for key, n in found.hit.items()),
            str(found.ledger["received"]),
            str(found.ledger["used"]),
            reasons,
            ", ".join(f"{key} {n}" for key, n in found.rejected.items()),
            f"{error:.3f}",
            f"{error / clean:.2f}",
            f"{case.factor:g}",
        ]
        print("| " + " | ".join(cells) + " |" + (f" missed: {'; '.join(missed)}" if missed else ""), flush=True)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
