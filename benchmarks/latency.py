"""From a frame to the picture that contains it: a simulated beamline, a session and a viewer, on the same cores.

600 frames of 128² at 200 Hz. A frame's latency ends when another process has received the first snapshot that contains it.
"""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
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


def watch(endpoint: str, answer: Connection) -> None:
    """Process body: when each snapshot arrived, and the arrival of the newest frame in it."""
    seen = []
    with Client(endpoint, form="uint8", timeout_s=60) as client:
        for shown in client:
            seen.append((time.time_ns(), shown.about.newest_frame_ns or 0))
    answer.send(seen)


def main(frames: int = 600, rate: float = 200.0) -> None:
    """Print the latencies."""
    with tempfile.TemporaryDirectory() as name:
        asked = ["--frames", str(frames), "--rate", str(rate), "--wait"]
        free = ["--frames-address", "tcp://127.0.0.1:*", "--positions-address", "tcp://127.0.0.1:*"]
        with subprocess.Popen(
            [*PTYSTREAM, "simulate", *asked, *free], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as beamline:
            assert beamline.stdin is not None
            assert beamline.stdout is not None
            given = configuration(json.loads(beamline.stdout.readline()), Path(name), 128)
            given["engines"]["dm"]["numiter"] = 10
            loaded = load(given)
            recorder, _ = recorder_of(loaded)
            publisher = Publisher()
            here, there = multiprocessing.get_context("spawn").Pipe()
            viewer = multiprocessing.get_context("spawn").Process(target=watch, args=(publisher.endpoint, there))
            viewer.start()

            def go() -> None:
                assert beamline.stdin is not None
                beamline.stdin.write("go\n")
                beamline.stdin.flush()

            session = Session(
                make_plan(loaded, recorder=recorder), metrics=Metrics(), publisher=publisher, tap=recorder, on_ready=go
            )
            telling: list[float] = []
            tell = Told.tell

            def timed(told: Told, *given: Any, **named: Any) -> None:
                began = time.thread_time()
                tell(told, *given, **named)
                telling.append(time.thread_time() - began)

            Told.tell = timed  # type: ignore[method-assign]
            began = time.monotonic()
            session.run()
            spent = time.monotonic() - began
            if not here.poll(60.0):
                raise RuntimeError("the viewer's process did not answer")
            seen = here.recv()
            viewer.join()
            publisher.close()
            if recorder is not None:
                recorder.close(finished=True)
        assert session.current is not None
        ledger = session.current.scans["flower"].buffer.ledger
        arrivals = np.sort(ledger.arrival_ns[: ledger.length])
        received, newest = np.array(seen).T
        first = np.searchsorted(newest, arrivals)
        latency = (received[np.minimum(first, len(received) - 1)] - arrivals)[first < len(received)] / 1e6
        waited = arrivals - arrivals[0] > 0.5e9
        late = latency[waited[: len(latency)]]
        print(f"{len(latency)} frames at {rate:g} Hz: {len(seen)} snapshots")
        for name_of, values in (("all frames", latency), ("after the first half second", late)):
            half, most = np.percentile(values, [50, 95])
            print(f"frame to picture, {name_of:28s} p50 {half:.0f} ms  p95 {most:.0f} ms")
        print(f"building and offering snapshots: {sum(telling) / spent:.1%} of the engine's thread (reach 2 %)")
        print("reach: p50 <= 300 ms, p95 <= 600 ms")


if __name__ == "__main__":
    sys.exit(main())
