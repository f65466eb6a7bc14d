"""Live sessions scraped by a real Prometheus: every panel has data, and each planted fault fires its alert and no other."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import numpy as np
import pytest
import yaml
from deploy_parts import DEPLOY, faster
from problems import make_run
from rich.console import Console

from ptystream import loop, metrics, recording
from ptystream.detectors.simulated.simulator import Beamline
from ptystream.detectors.zmq.protocol import frames_parts, header, samples_parts
from ptystream.launch import launch
from ptystream.metrics import Metrics
from ptystream.params.load import load
from ptystream.steering.client import Steering
from ptystream.transport import Message, TransportClosed

CURVES = {
    "wrong": [(50.0, 220.0, 0.3), (16.0, 33.0, 0.8)],
    "diverged": [(50.0, 220.0, 0.3), (np.nan, np.nan, np.nan)],
    "fair": [(50.0, 220.0, 0.3), (1.6, 3.3, 0.8)],
}
"""First and last misfit of runs that are told of and not done."""
FASTER = 15.0
"""Times of the rules are divided by this."""
RATE_HZ = 20.0
BEAM = Beamline(frames=2000, side=32, photons=2e5, step_px=3.0, samples_per_frame=1)
PATTERNS = 300
"""Frames that are different; then they come again, under new numbers, so that a scan can last."""
FAULTS = {
    "fine": None,
    "down": "PtystreamDown",
    "stuck": "PtystreamEngineStuck",
    "stalled": "PtystreamStreamStalled",
    "gap": "PtystreamFallingBehind",
    "full": "PtystreamRecordingLost",
}
HEALTHY_S, FAULTY_S = 5.0, 16.0


class Paced:
    """Gives messages at a pace, from when it is opened, up to a number; then it is silent until it is let go."""

    def __init__(self, channel: str, made: Callable[[int], list[bytes]], begin: threading.Event, over: threading.Event) -> None:
        self.channel, self._made, self._begin, self._over = channel, made, begin, over
        self.last: float = float("inf")
        """Number after which nothing more comes."""
        self._sent, self._due = 0, 0.0

    def open(self) -> None:
        pass

    def receive(self, timeout_s: float) -> Message | None:
        if self._over.is_set():
            raise TransportClosed("no more")
        if not self._begin.is_set() or self._sent > self.last:
            self._over.wait(timeout_s)
            return None
        self._due = self._due or time.monotonic()
        if self._over.wait(min(max(0.0, self._due - time.monotonic()), timeout_s)) or time.monotonic() < self._due:
            return None
        self._due += 1 / RATE_HZ
        self._sent += 1
        return Message(time.time_ns(), self.channel, tuple(self._made(self._sent - 1)))

    def acknowledge(self, message: Message) -> None:
        pass

    def close(self) -> None:
        pass


@functools.cache
def pattern(k: int) -> np.ndarray:
    return BEAM.pattern(k, truth())


@functools.cache
def truth() -> Any:
    return BEAM.probe(), BEAM.object()


def frame(k: int) -> list[bytes]:
    if k == 0:
        return [header("start", scan="a", meta={"num_frames": BEAM.frames})]
    seen = pattern((k - 1) % PATTERNS)
    return frames_parts("a", k - 1, [seen.tobytes()], 1, seen.shape, seen.dtype, "raw")


@functools.cache
def places() -> np.ndarray:
    return BEAM.positions_m()


def place(k: int) -> list[bytes]:
    if k == 0:
        return [header("start", scan="a", meta={})]
    y, x = places()[(k - 1) % PATTERNS]
    return samples_parts("a", k - 1, {"y": np.array([y]), "x": np.array([x])}, None)


class Running:
    """A session in a thread, with its metrics on a port of its own."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.port = name, free_port()
        self.begin, self.over, self.said = threading.Event(), threading.Event(), threading.Event()
        self.steering = ""
        self.sources = {
            f"s/{n}": Paced(f"s/{n}", made, self.begin, self.over) for n, made in (("data", frame), ("positions", place))
        }
        data = {"name": "ZmqScan", "shape": BEAM.side, **BEAM.geometry(), "positions": {"name": "ZmqScan"}}
        given = {
            "run": name,
            "threads": 1,
            "min_frames_for_recon": 20,
            "io": {
                "home": str(folder / name),
                "autoplot": {"active": False},
                "autosave": {"active": False},
                "metrics": {"port": self.port},
            },
            "scans": {"s": {"name": "Full", "data": data, "illumination": {"aperture": {"size": 0.42 * 32 * BEAM.pixel_m}}}},
            "engines": {"e": {"name": "DM", "numiter": 4}},
        }
        self.recording = folder / name / "recordings" / f"{name}.ptyrec"
        run = functools.partial(launch, load(given), Console(quiet=True), transports=self.sources, on_steering=self._told)
        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()

    def _told(self, endpoint: str) -> None:
        self.steering = endpoint
        self.said.set()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def telling(name: str) -> tuple[int, Callable[[], None]]:
    """Metrics of a run with this misfit: (port, what ends them)."""
    metrics, run = Metrics(), make_run()
    run.iterations, run.state = 40, "running"
    run.misfit = [np.array([row]) for row in CURVES[name]]
    metrics.run(run, {"received": 100, "used": 100, "waiting": 0}, 0)
    metrics.before_scrape.append(lambda: metrics.heartbeat(time.time()))
    port = free_port()
    return port, metrics.serve("127.0.0.1", port)[1]


class Prometheus:
    """The real one, in a folder of its own."""

    def __init__(self, folder: Path, targets: dict[str, int]) -> None:
        self.port = free_port()
        (folder / "alerts.yml").write_text(yaml.safe_dump(faster(FASTER)))
        told = [{"targets": [f"127.0.0.1:{port}"], "labels": {"instance": name}} for name, port in targets.items()]
        given = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
        given["global"] = {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "250ms"}
        given["scrape_configs"][0]["static_configs"] = told
        (folder / "prometheus.yml").write_text(yaml.safe_dump(given))
        command = [
            "prometheus",
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]
        self.log = open(folder / "prometheus.log", "w")  # noqa: SIM115
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)

    def ask(self, expression: str) -> list[dict[str, Any]]:
        """The series of an expression, now. Raises `OSError` for one that cannot be evaluated."""
        address = f"http://127.0.0.1:{self.port}/api/v1/query?" + urlencode({"query": expression})
        with urlopen(address, timeout=10) as answer:
            found: list[dict[str, Any]] = json.loads(answer.read())["data"]["result"]
        return found

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        self.log.close()


def until(what: Callable[[], Any], timeout_s: float = 150.0) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            if what():
                return
        except OSError:
            pass
        threading.Event().wait(0.1)
    raise AssertionError("it did not come to be")


class Watched:
    """The sessions and their Prometheus."""

    def __init__(self, running: dict[str, Running], prometheus: Prometheus) -> None:
        self.running, self.prometheus = running, prometheus

    def fired(self) -> dict[str, set[str]]:
        """Instance → alerts that have fired so far."""
        found: dict[str, set[str]] = {name: set() for name in (*self.running, *CURVES)}
        for series in self.prometheus.ask('count by (instance, alertname) (last_over_time(ALERTS{alertstate="firing"}[2m]))'):
            found[series["metric"]["instance"]].add(series["metric"]["alertname"])
        return found


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, require: Callable[[str, bool], None]) -> Iterator[Watched]:
    """Healthy for a while; then each session but one gets its fault."""
    require("prometheus", shutil.which("prometheus") is not None)
    folder, closers, faulty = tmp_path_factory.mktemp("watched"), {}, threading.Event()
    let_go = threading.Event()
    serve, step, write = Metrics.serve, loop.Loop.step, os.writev

    def serving(self: Metrics, address: str, port: int, *given: Any) -> Any:
        url, close = serve(self, address, port, *given)
        closers[port] = close
        return url, lambda: None if closers.pop(port, None) is None else close()

    def stepping(self: loop.Loop) -> Any:
        if self.run.name == "stuck" and faulty.is_set():
            let_go.wait(120)
        return step(self)

    def writing(file: int, buffers: Any) -> int:
        if faulty.is_set() and os.readlink(f"/proc/self/fd/{file}").endswith("full.ptyrec"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, buffers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Metrics, "serve", serving)
        patch.setattr(loop.Loop, "step", stepping)
        patch.setattr(recording.os, "writev", writing)
        patch.setattr(metrics.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**12))  # others write to it as well
        for k in range(PATTERNS):
            pattern(k)
        running = {name: Running(name, folder) for name in FAULTS}
        assert all(session.said.wait(60) for session in running.values())
        told = {name: telling(name) for name in CURVES}
        ports = {name: session.port for name, session in running.items()} | {name: port for name, (port, _) in told.items()}
        prometheus = Prometheus(folder, ports)
        try:
            until(lambda: len(prometheus.ask('up{job="ptystream"} == 1')) == len(ports))
            for session in running.values():
                session.begin.set()
            until(lambda: len(prometheus.ask("ptystream_run_iterations > 0")) >= len(ports))
            with Steering(running["fine"].steering) as steering:
                steering.ask("status")
            threading.Event().wait(HEALTHY_S)
            found = Watched(running, prometheus)
            assert not any(alerts for name, alerts in found.fired().items() if name in FAULTS)
            faulty.set()
            closers.pop(running["down"].port)()
            for source in running["stalled"].sources.values():
                source.last = 0
            running["gap"].sources["s/positions"].last = 0
            threading.Event().wait(FAULTY_S)
            yield found
        finally:
            let_go.set()
            for session in running.values():
                session.over.set()
            for session in running.values():
                session.thread.join(60)
            prometheus.close()
            for _, close in told.values():
                close()


@pytest.mark.slow
def test_each_fault_fires_its_alert_and_no_other(watched: Watched) -> None:
    wanted = {name: set() if alert is None else {alert} for name, alert in FAULTS.items()}
    wanted |= {"wrong": {"PtystreamNotConverging"}, "diverged": {"PtystreamNotConverging"}, "fair": set()}
    with contextlib.suppress(AssertionError):  # what is there then says more
        until(lambda: all(alerts <= watched.fired()[name] for name, alerts in wanted.items()), 30)
    assert watched.fired() == wanted


@pytest.mark.slow
def test_every_panel_has_data(watched: Watched) -> None:
    dashboard = json.loads((DEPLOY / "grafana" / "dashboards" / "ptystream.json").read_text())
    empty = {
        (panel["title"], target["expr"].replace("$instance", "fine").replace("$__rate_interval", "5s").replace("$__range", "30s"))
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    }
    assert len(empty) > 25

    def filled() -> bool:
        for title, asked in sorted(empty):  # a scrape that took too long leaves nothing for a moment
            found = watched.prometheus.ask(asked)
            if found and not any(series["value"][1] == "NaN" for series in found):
                empty.discard((title, asked))
        return not empty

    with contextlib.suppress(AssertionError):
        until(filled, 15)
    assert not empty
