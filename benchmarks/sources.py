"""Every source into slabs: decoder, ledger, decoding threads, and the reading of files. 256² uint16, whole frames.

Messages lie in memory and files in the page cache; sockets are left out (`ingest.py` has them). *frames/s*: sustained until
every frame is in its slab, all threads at work; *cores*: what that takes of all of them together, ms per frame, which other
programs on the machine change less. *decode*: what one core needs from a message (or its file) to pixels, ms per frame.
*copied*: bytes per frame that are written from the message on, by one thread: the largest block of memory that the
receiver, the decoder and the scan each take anew for a message (tracemalloc, medians), what is decompressed into memory that is
kept (counted where the codecs run), and what lands in the slab (counted where frames are prepared). Copies whose memory was
given back before the next one was taken count once, so it is a lower bound. *Floor*: a plain copy of the same frames into a
slab by one thread. *tests*: those of the source's folder that name it, or none of the folder's sources.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ptystream import codecs
from ptystream.detectors.areadetector.simulator import messages as areadetector
from ptystream.detectors.bluesky.payload import packed
from ptystream.detectors.bluesky.simulator import append, growing
from ptystream.detectors.dectris.simulator import Camera
from ptystream.detectors.maxiv.simulator import messages as maxiv
from ptystream.detectors.panda.simulator import stream
from ptystream.detectors.psi.simulator import messages as psi
from ptystream.detectors.zmq.protocol import frames_parts, header
from ptystream.events import Frames
from ptystream.params.load import load
from ptystream.plan import make_plan
from ptystream.scan.prepare import Preparation
from ptystream.transport import Message, TransportClosed

SIDE = 256


def pictures(count: int) -> Any:
    """Counts of speckles, (frame, y, x): a few different ones, again and again."""
    random = np.random.default_rng(0)
    few = random.poisson(random.exponential(3.0, (8, SIDE, SIDE))).astype("u2")
    return few[np.arange(count) % len(few)]


# ------------------------------------------------------------------ what the sources send


def native(frames: Any) -> Iterator[list[Any]]:
    yield [header("start", scan="a", meta={"num_frames": len(frames)})]
    for k, frame in enumerate(frames):
        yield frames_parts("a", k, [frame.tobytes()], 1, frame.shape, frame.dtype, "raw")
    yield [header("end", scan="a", count=len(frames), reason="completed")]


def dectris(frames: Any, kind: str, codec: str, detail: str = "basic") -> Iterator[list[Any]]:
    camera = Camera(kind, codec, detail=detail, energy_kev=8.0, distance_m=3.0, psize_m=(75e-6, 75e-6))
    yield list(camera.header(1, len(frames), frames[0].shape, frames.dtype))
    for k, frame in enumerate(frames):
        yield list(camera.image(1, k, frame))
    yield list(camera.end(1))


def bluesky(
    frames: Any, told: dict[str, Any], each: Callable[[int], Iterator[tuple[str, dict[str, Any]]]]
) -> Iterator[list[Any]]:
    """One run whose frames `each` tells."""
    key = {"source": "here", "dtype": "array", "dtype_numpy": "<u2", "shape": list(frames.shape[1:]), **told}
    described = {"uid": "d", "run_start": "a", "name": "primary", "time": 1.7e9, "data_keys": {"cam": key}, "configuration": {}}
    documents = [("start", {"uid": "a", "time": 1.7e9, "num_points": len(frames)}), ("descriptor", described)]
    yield from ([packed(name, document)] for name, document in documents)
    for k in range(len(frames)):
        yield from ([packed(name, document)] for name, document in each(k))
    yield [packed("stop", {"uid": "e", "run_start": "a", "exit_status": "success", "num_events": {"primary": len(frames)}})]


def inline(frames: Any) -> Iterator[list[Any]]:
    def each(k: int) -> Iterator[tuple[str, dict[str, Any]]]:
        event = {"uid": f"{k}", "descriptor": "d", "seq_num": k + 1, "time": 1.7e9, "filled": {}}
        yield "event", {**event, "data": {"cam": frames[k]}, "timestamps": {"cam": 1.7e9}}

    yield from bluesky(frames, {}, each)


def stored(frames: Any, path: Path) -> None:
    """The frames in an HDF5 file as detectors write them: chunks of one frame, bitshuffle-LZ4."""
    file, data = growing(path, "/entry/data/data", frames.shape[1:], "<u2")
    append(data, frames)
    file.close()


def files(frames: Any, folder: Path) -> Iterator[list[Any]]:
    path = folder / f"stream{len(frames)}.h5"
    if not path.exists():  # somebody may still read it
        stored(frames, path)
    resource = {
        "uid": "r",
        "data_key": "cam",
        "run_start": "a",
        "mimetype": "application/x-hdf5",
        "uri": f"file://localhost{path}",
    }

    def each(k: int) -> Iterator[tuple[str, dict[str, Any]]]:
        if k == 0:
            yield "stream_resource", {**resource, "parameters": {"dataset": "/entry/data/data"}}
        rows = {"indices": {"start": k, "stop": k + 1}, "seq_nums": {"start": k + 1, "stop": k + 2}}
        yield "stream_datum", {"uid": f"r/{k}", "stream_resource": "r", "descriptor": "d", **rows}

    yield from bluesky(frames, {"external": "STREAM:"}, each)


def panda(count: int) -> Iterator[list[Any]]:
    """Four columns of readings, 100 samples to a piece, as a box sends them."""
    places = np.random.default_rng(0).normal(size=(count, 2))
    table = np.column_stack([places, np.arange(count), np.arange(count) * 1e-3])
    yield [b"OK\n"]
    yield from ([piece] for piece in stream(table, arm_time="a"))


def pva(frames: Any, codec: str) -> Iterator[list[Any]]:
    """What the transport makes of updates: the first copy is its own."""
    from ptystream.detectors.pva.protocol import parts_of
    from ptystream.detectors.pva.simulator import Ioc

    with Ioc("bench") as ioc:
        for k, frame in enumerate(frames):
            yield partial(parts_of, ioc._value(frame, k + 1, codec))  # type: ignore[misc]


@dataclass
class Case:
    """One source."""

    plugin: str
    make: Callable[..., Iterator[Any]]
    folder: str
    """Of its tests, in tests/detectors."""
    words: tuple[str, ...]
    """What names it in the tests of that folder."""
    more: dict[str, Any] = field(default_factory=dict)
    """Further parameters."""
    readings: bool = False
    """Whether it sends positions, for frames that are there."""


DECTRIS, JSON, BLUESKY = "dectris", "jsonframes", "bluesky"
CASES = {
    "native wire, raw": Case("ZmqScan", native, "zmq", ()),
    "DECTRIS v1, raw": Case("DectrisScan", partial(dectris, kind="v1", codec="none"), DECTRIS, ("v1",)),
    "DECTRIS v1, flat field": Case("DectrisScan", partial(dectris, kind="v1", codec="none", detail="all"), DECTRIS, ("v1",)),
    "DECTRIS v1, bslz4": Case("DectrisScan", partial(dectris, kind="v1", codec="bslz4"), DECTRIS, ("v1",)),
    "DECTRIS stream2, raw": Case("DectrisScan", partial(dectris, kind="stream2", codec="none"), DECTRIS, ("stream2",)),
    "DECTRIS stream2, bslz4": Case("DectrisScan", partial(dectris, kind="stream2", codec="bslz4"), DECTRIS, ("stream2",)),
    "Bluesky, frames in events": Case("BlueskyScan", inline, BLUESKY, ("step", "inline")),
    "Bluesky, StreamResource files": Case("BlueskyScan", files, BLUESKY, ("fly", "files")),
    "HDF5 file": Case("Hdf5Scan", stored, "hdf5", (), {"frames": "/entry/data/data"}),
    "PandA, positions": Case(
        "PandaScan",
        panda,
        "panda",
        (),
        {"channels": {"y": "INENC1.VAL.Value", "x": "INENC2.VAL.Value"}},
        readings=True,
    ),
    "areaDetector, raw": Case("AdZmqScan", areadetector, JSON, ("AdZmqScan", "ioc")),
    "areaDetector, bslz4": Case("AdZmqScan", partial(areadetector, codec="bslz4"), JSON, ("AdZmqScan", "ioc")),
    "MAX IV, bslz4": Case("MaxivScan", maxiv, JSON, ("MaxivScan", "receiver")),
    "slsDetectorPackage, 2 ports": Case("SlsScan", psi, JSON, ("SlsScan", "sls", "ports")),
    "PVAccess, raw": Case("PvaScan", partial(pva, codec=""), "pva", (), {"pv": "bench"}),
    "PVAccess, bslz4": Case("PvaScan", partial(pva, codec="bslz4"), "pva", (), {"pv": "bench"}),
}


# ------------------------------------------------------------------ measured


class Run:
    """One scan of a source, ready to be fed."""

    def __init__(self, case: Case, frames: Any, folder: Path, *, parallel: bool) -> None:
        self.case, self.count = case, len(frames)
        places = np.random.default_rng(0).normal(size=(self.count, 2)) * 1e-6
        common = {"shape": SIDE, "energy": 8.0, "distance": 3.0, "psize": 7.5e-5, "load_parallel": "data" if parallel else None}
        data: dict[str, Any] = {**common, "num_frames": self.count}
        if case.readings:
            data |= {"name": "ZmqScan", "positions": {"name": case.plugin, **case.more}}
        else:
            data |= {"name": case.plugin, "positions_theory": places, **case.more}
        self.messages: list[Any] = []
        if case.plugin == "Hdf5Scan":
            path = folder / f"scan{self.count}.h5"
            if not path.exists():
                case.make(frames, path)
            data["file"] = str(path)
        elif case.readings:
            self.messages = list(case.make(self.count))
        else:
            self.messages = list(case.make(frames, folder) if case.make is files else case.make(frames))
        given = {"scans": {"s": {"name": "Full", "data": data}}, "engines": {"e": {"name": "DM"}}, "live": {"epochs": "same"}}
        plan = make_plan(load(given))
        self.buffer, _ = plan.scans[0].make(None)
        self.role = "positions" if case.readings else "data"
        channel = next(one for one in plan.channels if one.name == f"s/{self.role}")
        self.decoder, self._transport = channel.decoder, channel.transport
        if case.readings:  # frames are there already
            other = next(one for one in plan.channels if one.name == "s/data")
            for parts in native(frames):
                for event in other.decoder.feed(Message(time.time_ns(), "s/data", tuple(parts))):
                    self.buffer.feed("data", event, time.time_ns())
            self.wait(lambda: self.buffer.ledger.prepared == self.count)

    def received(self) -> Iterator[Message]:
        """What the transport would give."""
        if self.case.plugin != "Hdf5Scan":
            for parts in self.messages:
                yield Message(time.time_ns(), f"s/{self.role}", tuple(parts() if callable(parts) else parts))
            return
        self._transport.open()
        try:
            while True:
                message = self._transport.receive(5.0)
                if message is not None:
                    yield message
        except TransportClosed:
            self._transport.close()

    def there(self) -> bool:
        """Whether everything has arrived."""
        if self.case.readings:
            return bool(self.buffer.ledger.counts().get("paired", 0) >= self.count)
        return self.buffer.ledger.prepared >= self.count

    def wait(self, there: Callable[[], bool]) -> None:
        seen, began = self.buffer.changed(-1, 0.0), time.monotonic()
        while not there():
            if time.monotonic() - began > 60:
                raise RuntimeError(f"{self.buffer.ledger.counts()} of {self.count} frames")
            seen = self.buffer.changed(seen, 0.05)


def sustained(case: Case, frames: Any, folder: Path) -> tuple[float, float]:
    """(frames a second, milliseconds of all cores per frame) until every frame is in its slab (readings: has its position)."""
    run = Run(case, frames, folder, parallel=True)
    began, cores = time.perf_counter(), time.process_time()
    for message in run.received():
        for event in run.decoder.feed(message):
            run.buffer.feed(run.role, event, message.arrival_ns)
    run.wait(run.there)
    spent, cores = time.perf_counter() - began, time.process_time() - cores
    run.buffer.release()
    return len(frames) / spent, 1e3 * cores / len(frames)


def decoding(case: Case, frames: Any, folder: Path) -> float:
    """Milliseconds of one core per frame, from a message, or its file, to pixels."""
    from ptystream.files import Reader

    run = Run(case, frames, folder, parallel=False)
    kept, reader, began = np.empty(frames.shape[1:], frames.dtype), Reader(), time.thread_time()
    for message in run.received():
        for event in run.decoder.feed(message):
            for found in reader.resolve(event):
                for payload in found.payloads if isinstance(found, Frames) else ():
                    codecs.decode_rows(payload, kept, slice(None))
    spent = time.thread_time() - began
    reader.close()
    run.buffer.release()
    return 1e3 * spent / len(frames)


@contextlib.contextmanager
def counted() -> Iterator[list[int]]:
    """A count of the bytes that are decompressed into kept memory, and of those that are written into slabs."""
    count = [0]
    backend, parts, into = codecs._backend, codecs._parts, Preparation.into

    def whole() -> Any:
        decode = backend()

        def body(codec: str, stream: Any, offsets: Any, block: int, frame: Any) -> None:
            count[0] += frame.nbytes
            decode(codec, stream, offsets, block, frame)

        return body

    def some() -> Any:
        decode = parts()

        def body(codec: str, stream: Any, offsets: Any, block: int, frame: Any, blocks: Any) -> None:
            count[0] += min(len(blocks) * block, frame.nbytes)
            decode(codec, stream, offsets, block, frame, blocks)

        return None if decode is None else body

    def prepared(self: Any, raw: Any, out: Any, random: Any = None) -> int:
        count[0] += out.nbytes
        return int(into(self, raw, out, random))

    codecs._backend, codecs._parts, Preparation.into = whole, some, prepared  # type: ignore[assignment,method-assign]
    try:
        yield count
    finally:
        codecs._backend, codecs._parts, Preparation.into = backend, parts, into  # type: ignore[method-assign]


def taken(act: Callable[[], Any]) -> tuple[Any, int]:
    """(what it gives, bytes of new memory at its peak)."""
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    return act(), tracemalloc.get_traced_memory()[1] - before


def copied(case: Case, frames: Any, folder: Path) -> float:
    """Bytes per frame, as the head of this file says; the median over frames, so that a slab that is made counts for nothing."""
    run, found = Run(case, frames, folder, parallel=False), []
    tracemalloc.start()
    try:
        with counted() as count:
            messages = run.received()
            while True:
                count[0] = 0
                message, received = taken(lambda: next(messages, None))
                if message is None:
                    break
                events, fed = taken(partial(run.decoder.feed, message))
                events = list(events)
                for event in events:
                    fed += taken(partial(run.buffer.feed, run.role, event, message.arrival_ns))[1]
                found.append(received + fed + count[0])
    finally:
        tracemalloc.stop()
    run.buffer.release()
    each = max(1, round(len(found) / len(frames)))
    body = found[len(found) // 4 :]
    sums = [sum(body[k : k + each]) for k in range(0, len(body) - each, each)]
    return statistics.median(sums) * len(found) / each / len(frames) if each == 1 else statistics.median(sums)


def floor(frames: Any) -> float:
    """Milliseconds of a plain copy of one frame into a slab."""
    slab = np.zeros_like(frames)
    began = time.process_time()
    for k, frame in enumerate(frames):
        slab[k] = frame
    return 1e3 * (time.process_time() - began) / len(frames)


def tests() -> dict[str, int]:
    """Tests of each source."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "tests/detectors"]
    root = Path(__file__).parent.parent
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False).stdout.splitlines()
    found = {}
    for name, case in CASES.items():
        own = [line for line in listed if line.startswith(f"tests/detectors/{case.folder}/")]
        others = {word for other in CASES.values() if other.folder == case.folder for word in other.words} - set(case.words)
        found[name] = sum(any(w in line for w in case.words) or not any(w in line for w in others) for line in own)
    return found


def main() -> int:
    """Print the table, in Markdown."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--frames", type=int, default=2000)
    asked.add_argument("--repeats", type=int, default=3)
    asked.add_argument("--only", default="", help="sources whose name has this in it")
    given = asked.parse_args()
    frames, known = pictures(given.frames), tests()
    print(f"plain copy into a slab: {statistics.median(floor(frames) for _ in range(5)):.3f} ms a frame; {os.cpu_count()} cores")
    print(f"a frame has {frames[0].nbytes} bytes\n")
    print("| source | tests | frames/s | cores, ms | decode, ms | copied, bytes | frames |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as scratch:
        for name, case in CASES.items():
            if given.only not in name:
                continue
            try:
                sustained(case, frames[:40], Path(scratch))  # imports
            except ValueError as error:
                print(f"| {name} | {known[name]} | {error!s:.100} | | | | |", flush=True)
                continue
            runs = [sustained(case, frames, Path(scratch)) for _ in range(given.repeats)]
            rate, cores = (statistics.median(values) for values in zip(*runs, strict=True))
            costs = [decoding(case, frames[:500], Path(scratch)) for _ in range(given.repeats)]
            size = copied(case, frames[:400], Path(scratch))
            cells = f"{rate:.0f} | {cores:.3f} | {statistics.median(costs):.3f} | {size:.0f} | {size / frames[0].nbytes:.2f}"
            print(f"| {name} | {known[name]} | {cells} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
