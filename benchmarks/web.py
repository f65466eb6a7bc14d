"""The web viewer: how late a frame is in a browser, what viewers cost the engine, and how many bytes each takes.

`web.py latency`, `web.py slowdown [rounds] [seconds]`, `web.py bytes`; without an argument all three. The viewers are websocket
clients in a process of its own. `CHROMIUM`: path of a browser.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from ptystream.cli.demo import PTYSTREAM, configuration
from ptystream.metrics import Metrics
from ptystream.params.load import load
from ptystream.plan import make_plan, recorder_of
from ptystream.publish.publisher import Publisher
from ptystream.session import Session
from ptystream.telling import Told
from ptystream.viewers.client import Client

FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


# ---------------------------------------------------------------- viewers without a screen


async def follow(address: str, kind: str, count: dict[str, int]) -> None:
    """One websocket client: 'tiles', 'deflated' (whole pictures), 'raw' (whole, not compressed) or 'hung' (never reads)."""
    from websockets.asyncio.client import connect

    asked = "" if kind == "raw" else "?coding=deflate-raw"
    stream = address.replace("http", "ws") + "stream" + asked
    async with connect(stream, max_size=None, compression=None, open_timeout=60) as browser:
        count["connected"] += 1
        if kind == "hung":
            browser.transport.pause_reading()
            await asyncio.Event().wait()
        answer = json.dumps({"drawn": 0} if kind == "tiles" else {"drawn": 0, "keyframe": True})
        async for message in browser:
            if not isinstance(message, bytes):
                continue
            count["pictures"] += 1
            count["bytes"] += len(message)
            await browser.send(answer)


async def clients(address: str, kinds: list[str]) -> None:
    """All of them, until standard input ends; each line there is answered with what was counted since the last one."""
    counts = {kind: {"pictures": 0, "bytes": 0, "connected": 0} for kind in set(kinds)}
    tasks = [asyncio.create_task(follow(address, kind, counts[kind])) for kind in kinds]
    while sum(count["connected"] for count in counts.values()) < len(kinds):
        await asyncio.sleep(0.01)
        for task in tasks:
            if task.done():
                task.result()
    print("connected", flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(counts), flush=True)
    os._exit(0)


@contextmanager
def viewers(address: str, kinds: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A process with so many clients."""
    command = [sys.executable, "-P", __file__, "clients", address, *kinds]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdin is not None
    if process.stdout.readline() != "connected\n":
        raise RuntimeError("the viewers did not connect")
    try:
        yield process
    finally:
        process.stdin.close()
        process.wait(30)
        process.stdout.close()


def counted(process: subprocess.Popen[str]) -> dict[str, dict[str, int]]:
    """What its clients have taken in so far."""
    assert process.stdout is not None
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    found: dict[str, dict[str, int]] = json.loads(process.stdout.readline())
    return found


@contextmanager
def web_server(endpoint: str) -> Iterator[tuple[str, int]]:
    """`ptystream view`: its address and process."""
    process = subprocess.Popen([*PTYSTREAM, "view", endpoint], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip(), process.pid
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


def cpu_of(pid: int) -> float:
    """Seconds of processor time that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# ---------------------------------------------------------------- a session that goes on


class Telling:
    """Times what the engine's thread spends on snapshots: wall clock, and processor."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0
        self.count = 0
        tell = Told.tell

        def timed(told: Told, *given: Any, **named: Any) -> None:
            before, began, cpu = told._pace._began, time.monotonic(), time.thread_time()
            tell(told, *given, **named)
            self.wall += time.monotonic() - began
            self.cpu += time.thread_time() - cpu
            self.count += told._pace._began != before

        Told.tell = timed  # type: ignore[method-assign]


@contextmanager
def reconstructing(frames: int = 1521, side: int = 128) -> Iterator[tuple[Session, Publisher]]:
    """Difference map on one thread, overlapping frames on a raster, an object of about 2000²; until the block is left."""
    with tempfile.TemporaryDirectory() as folder:
        data = {"name": "MoonFlowerScan", "num_frames": frames, "shape": side, "density": 0.375, "model": "raster"}
        given = {
            "run": "bench",
            "threads": 1,
            "min_frames_for_recon": frames,
            "io": {"home": folder, "rfile": None, "recording": {"active": False}, "autoplot": {"active": False}},
            "scans": {"s": {"name": "Full", "data": data}},
            "engines": {"dm": {"name": "DM", "numiter": 100_000}},
        }
        publisher = Publisher()
        session = Session(make_plan(load(given)), metrics=Metrics(), publisher=publisher)
        thread = threading.Thread(target=session.run, name="engine")
        thread.start()
        while session.status()["iteration"] < 3 and thread.is_alive():
            time.sleep(0.05)
        try:
            yield session, publisher
        finally:
            session.stop()
            thread.join(120)
            publisher.close()


def iterations(session: Session, seconds: float) -> list[float]:
    """How long each took, for so long, and for five of them at least."""
    times: list[float] = []
    last, until = session.status()["iteration"], time.monotonic() + seconds
    while (now := time.monotonic()) < until or (len(times) < 6 and now < until + 10 * seconds):
        if (number := session.status()["iteration"]) != last:
            times.append(now)
            last = number
        time.sleep(0.002)
    return list(np.diff(times))


PHASES: dict[str, list[str]] = {
    "nobody looks": [],
    "1 viewer": ["tiles"],
    "10 viewers": ["tiles"] * 10,
    "50 viewers": ["tiles"] * 50,
    "50 viewers, 5 hung": ["tiles"] * 50 + ["hung"] * 5,
}


def slowdown(rounds: int = 3, seconds: float = 12.0) -> None:
    """Iterations of a session with more and more viewers, the phases in turn, medians over all rounds."""
    telling = Telling()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ("no web server", *PHASES)}
    with reconstructing() as (session, publisher):
        assert session.current is not None
        assert session.current.reconstruction is not None
        shape = next(iter(session.current.reconstruction.objects.values())).data.shape
        for number in range(rounds):
            found["no web server"].append(_window(session, seconds, telling, None, None, 0))
            with web_server(publisher.endpoint) as (address, pid):
                for name, kinds in PHASES.items():
                    found[name].append(_phase(session, address, pid, kinds, seconds, telling))
                    print(f"round {number + 1}, {name}: {found[name][-1]['rate']:.3f} iterations/s", file=sys.stderr, flush=True)
    print(f"object {shape}, 1521 frames of 128², difference map on one thread; {rounds} rounds of {seconds:g} s each, medians")
    print("engine: iterations/s, the processor time of its whole process for one, the share of its thread's time for snapshots")
    print("server, viewers: cores that they take together; pictures/s, MB/s: of one viewer. Reach: telling below 2 %")
    columns = ("iter/s", "slower", "ms cpu/iter", "telling", "server", "viewers", "pictures/s", "MB/s")
    print(" " * 20 + "".join(f"{column:>11s}" for column in columns))
    first = float(np.median([row["rate"] for row in found["no web server"]]))
    for name, rows in found.items():
        m = {key: float(np.median([row[key] for row in rows])) for key in rows[0]}
        shares = f"{m['rate']:11.3f}{1 - m['rate'] / first:11.1%}{m['cost'] * 1e3:11.1f}{m['telling']:11.2%}"
        print(f"{name:20s}{shares}{m['server']:11.2f}{m['clients']:11.2f}", end="")
        print(f"{m['pictures']:11.2f}{m['bytes'] / 1e6:11.2f}", flush=True)


def _phase(session: Session, address: str, pid: int, kinds: list[str], seconds: float, telling: Telling) -> dict[str, float]:
    if not kinds:
        return _window(session, seconds, telling, pid, None, 0)
    with viewers(address, kinds) as process:
        time.sleep(2.0)
        return _window(session, seconds, telling, pid, process, kinds.count("tiles"))


def _window(
    session: Session, seconds: float, telling: Telling, server: int | None, process: subprocess.Popen[str] | None, reading: int
) -> dict[str, float]:
    def now() -> np.ndarray[Any, Any]:
        count = {"pictures": 0, "bytes": 0} if process is None else counted(process)["tiles"]
        cpu = [time.process_time(), *(0.0 if pid is None else cpu_of(pid) for pid in (server, process and process.pid))]
        number = session.status()["iteration"]
        return np.array([time.monotonic(), telling.wall, *cpu, count["pictures"], count["bytes"], number])

    before = now()
    took = iterations(session, seconds)
    spent = now() - before
    names = ("telling", "session", "server", "clients", "pictures", "bytes", "iterations")
    found = dict(zip(names, spent[1:] / spent[0], strict=True))
    for name in ("pictures", "bytes"):
        found[name] /= max(1, reading)
    return found | {"rate": float(1 / np.median(took)), "cost": found["session"] / max(found["iterations"], 1e-9)}


# ---------------------------------------------------------------- bytes


def sizes() -> None:
    """Bytes of a picture as each form of the wire has it, while a scan comes in and when all its frames are there."""
    for what, arriving in (("while frames arrive", True), ("all frames there", False)):
        print(f"{what}:")
        for name, values in _sizes(arriving).items():
            print(f"  {name:34s} {np.median(values) / 1e3:9.1f} kB a picture (median of {len(values)})", flush=True)


def _sizes(arriving: bool, frames: int = 225, iterations: int = 20) -> dict[str, list[int]]:
    from ptystream.publish.display import display
    from ptystream.viewers.web.picture import Picture
    from ptystream.viewers.web.tiles import encode

    kinds: dict[str, list[int]] = {"whole": [], "whole, deflated": [], "tiles": [], "tiles, deflated": []}
    shapes: set[Any] = set()
    with tempfile.TemporaryDirectory() as folder:
        data: dict[str, Any] = {"name": "MoonFlowerScan", "num_frames": frames, "shape": 128, "density": 0.45, "model": "raster"}
        if arriving:
            data |= {"block_wait_count": 1, "block_wait_s": 0.5, "min_frames": 8}
        given = {
            "run": "bench",
            "frames_per_block": 16,
            "min_frames_for_recon": 32 if arriving else frames,
            "io": {"home": folder, "rfile": None, "recording": {"active": False}, "autoplot": {"active": False}},
            "scans": {"s": {"name": "Full", "data": data}},
            "engines": {"dm": {"name": "DM", "numiter": 1 if arriving else iterations}},
        }
        publisher = Publisher()
        session = Session(make_plan(load(given)), metrics=Metrics(), publisher=publisher)
        thread = threading.Thread(target=session.run, name="engine")
        before: Picture | None = None
        with Client(publisher.endpoint, timeout_s=120) as client:
            thread.start()
            for snapshot in client:
                picture = Picture.of(display(snapshot))
                if before is not None and snapshot.iteration > 1 and snapshot.object:
                    for name, base, coding in (
                        ("whole", None, "none"),
                        ("whole, deflated", None, "deflate-raw"),
                        ("tiles", before, "none"),
                        ("tiles, deflated", before, "deflate-raw"),
                    ):
                        kinds[name].append(len(encode(picture, base, coding)))  # type: ignore[arg-type]
                before = picture
                shapes |= {image.data.shape for image in snapshot.object.values()}
        session.stop()
        thread.join(120)
        publisher.close()
    print(f"  object {min(shapes)} to {max(shapes)}")
    return kinds


# ---------------------------------------------------------------- latency

NOTE = """(() => {
  const send = WebSocket.prototype.send;
  window.notes = [];
  WebSocket.prototype.send = function (text) {
    const header = window.ptystream && window.ptystream.header;
    if (header && String(text).includes('"drawn"')) {
      const now = performance.timeOrigin + performance.now();
      window.notes.push([now, header.created_ns / 1e6, (header.newest_frame_ns || 0) / 1e6]);
    }
    return send.call(this, text);
  };
})()"""


def look(endpoint: str, answer: Connection) -> None:
    """Process body: a Chromium on a web viewer; when each picture was drawn, was made, and its newest frame had come (ms)."""
    from playwright.sync_api import sync_playwright

    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    with web_server(endpoint) as (address, _), sync_playwright() as player:
        browser = player.chromium.launch(executable_path=found, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.add_init_script(NOTE)
        page.goto(address)
        answer.send("ready")
        over = ("finished", "failed")
        while (page.evaluate("window.ptystream?.header?.state") or "") not in over:
            page.wait_for_timeout(200)
        page.wait_for_timeout(500)
        answer.send(page.evaluate("window.notes"))
        browser.close()


def latency(frames: int = 1200, rate: float = 100.0) -> None:
    """From a frame's arrival, and from a snapshot's publication, to the browser's acknowledgement that it is drawn."""
    telling = Telling()
    with tempfile.TemporaryDirectory() as name:
        asked = ["--frames", str(frames), "--rate", str(rate), "--wait"]
        free = ["--frames-address", "tcp://127.0.0.1:*", "--positions-address", "tcp://127.0.0.1:*"]
        with subprocess.Popen(
            [*PTYSTREAM, "simulate", *asked, *free], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as beamline:
            assert beamline.stdin is not None
            assert beamline.stdout is not None
            given = configuration(json.loads(beamline.stdout.readline()), Path(name), 128)
            given["engines"]["dm"] = {"name": "DM", "numiter": 10}
            loaded = load(given)
            recorder, _ = recorder_of(loaded)
            publisher = Publisher()
            here, there = multiprocessing.get_context("spawn").Pipe()
            viewer = multiprocessing.get_context("spawn").Process(target=look, args=(publisher.endpoint, there))
            viewer.start()

            def go() -> None:
                assert beamline.stdin is not None
                if not here.poll(120) or here.recv() != "ready":
                    raise RuntimeError("no browser")
                beamline.stdin.write("go\n")
                beamline.stdin.flush()

            session = Session(
                make_plan(loaded, recorder=recorder), metrics=Metrics(), publisher=publisher, tap=recorder, on_ready=go
            )
            began = time.monotonic()
            session.run()
            spent = time.monotonic() - began
            if not here.poll(60.0):
                raise RuntimeError("the browser's process did not answer")
            notes = np.array(here.recv())
            viewer.join()
            publisher.close()
            if recorder is not None:
                recorder.close(finished=True)
        assert session.current is not None
        ledger = session.current.scans["flower"].buffer.ledger
        arrivals = np.sort(ledger.arrival_ns[: ledger.length]) / 1e6
        drawn, made, newest = notes[notes[:, 2] > 0].T
        first = np.searchsorted(newest, arrivals)
        shown = first < len(drawn)
        late = drawn[first[shown]] - arrivals[shown]
        late = late[arrivals[shown] - arrivals[0] > 2000]  # the engine starts at 32 frames
        print(
            f"{frames} frames of 128² at {rate:g} Hz, session, web server and Chromium on the same cores: {len(drawn)} pictures"
        )
        for what, values in (("frame's arrival to drawn", late), ("snapshot made to drawn", drawn - made)):
            half, most = np.percentile(values, [50, 95])
            print(f"{what:28s} p50 {half:.0f} ms  p95 {most:.0f} ms")
        print(f"snapshots: {telling.wall / spent:.2%} of the engine's thread")


def main(arguments: list[str]) -> None:
    """What is asked for."""
    if arguments[:1] == ["clients"]:
        asyncio.run(clients(arguments[1], arguments[2:]))
        return
    wanted = arguments[:1] or ["latency", "slowdown", "bytes"]
    if "latency" in wanted:
        latency()
    if "slowdown" in wanted:
        slowdown(*(int(text) for text in arguments[1:]))
    if "bytes" in wanted:
        sizes()


if __name__ == "__main__":
    main(sys.argv[1:])
