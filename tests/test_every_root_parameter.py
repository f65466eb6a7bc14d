"""Every parameter at the root of the tree and under `io`, and every choice of it, changes what a session does: none is dead.

A session from a script, its files, its log and its plan. What a parameter changes, and whether that is right, is the matter of
the tests of each part. One that is declared and has no line here is an error.
"""

from __future__ import annotations

import json
import logging
import socket as sockets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from every import Cases, digest, laid, leaves
from matplotlib.image import imread
from test_ptycho import parameters, sources

from ptystream import Ptycho, launch, plan
from ptystream.health import Health
from ptystream.interaction.namespace import Namespace
from ptystream.interaction.server import InteractionServer
from ptystream.params.branches import RootParameters
from ptystream.params.interaction import ServerParameters
from ptystream.publish.publisher import Publisher
from ptystream.recording import Recorder
from ptystream.steering.desk import Desk
from ptystream.steering.server import Server

PLOTTED = {"io": {"autoplot": {"dump": True, "threaded": False, "interval": 2, "layout": "minimal"}}}
DUMPED = {"io": {"autosave": {"interval": 1}}}
CASES: Cases = {
    "verbose_level": (["INFO", 5], {}),
    "data_type": (["double"], {}),
    "run": (["other"], {}),
    "frames_per_block": ([30], {}),
    "min_frames_for_recon": ([1000], {}),
    "dry_run": ([True], {}),
    "threads": ([2], {}),
    "seed": ([5], {}),
    "io.home": (["elsewhere"], {}),
    "io.rfile": (["%(run)s_%(iterations)04d.ptyr", None], {}),
    "io.rformat": (["dls", "used_params"], {}),
    "io.autosave.active": ([False], DUMPED),
    "io.autosave.interval": ([100], DUMPED),
    "io.autosave.rfile": (["d/%(run)s_%(iteration)d.ptyr"], DUMPED),
    "io.autoplot.active": ([False], PLOTTED),
    "io.autoplot.imfile": (["%(run)s_%(iteration)d.png"], PLOTTED),
    "io.autoplot.interval": ([1, 0], PLOTTED),
    "io.autoplot.layout": (["jupyter"], PLOTTED),
    "io.autoplot.dump": ([False], PLOTTED),
    "io.autoplot.make_movie": ([True], PLOTTED),
    "io.benchmark": (["all", "data_load"], {}),
    "io.publish.active": ([False], {}),
    "io.publish.address": (["tcp://127.0.0.1:5561"], {}),
    "io.publish.insecure": ([True], {}),
    "io.publish.interval_s": ([0.5], {}),
    "io.publish.share": ([0.5], {}),
    "io.steering.active": ([False], {}),
    "io.steering.address": (["tcp://127.0.0.1:5562"], {}),
    "io.steering.insecure": ([True], {}),
    "io.interaction.active": ([False], {}),
    "io.interaction.server.active": ([False], {}),
    "io.frames.active": ([True], {}),
    "io.frames.file": (["f/%(epoch)s.h5"], {"io": {"frames": {"active": True}}}),
    "io.cxi": ([True], {}),
    "io.documents.file": (["d.jsonl", "e/%(run)s.jsonl"], {}),
    "io.metrics.active": ([False], {}),
    "io.metrics.address": (["127.0.0.2"], {}),
    "io.metrics.port": ([9123], {}),
    "io.metrics.stuck_after_s": ([5.0], {}),
    "io.recording.active": ([False], {}),
    "io.recording.file": (["r/%(run)s.ptyrec"], {}),
    "io.recording.fsync": ([True], {}),
    "io.recording.when_full": (["stop"], {}),
    "live.latency": ([0.5], {}),
    "live.restart_probe": ([True], {}),
    "live.timeout_s": ([30.0], {}),
    "live.beam_timeout_s": ([30.0, None], {}),
    "live.runs": ([None], {}),
}
ELSEWHERE = {
    "log_format": "test_log_format.py",
    "ipython_kernel": "test_kernel.py",
    "device": "test_device.py",
    "live.epochs": "test_epochs.py",
    "live.overlap": "test_overlap.py",
    "live.aborted": "test_overlap.py",
    "live.quick_look": "assessment/test_looking.py",
    "live.quality.share": "assessment/test_assessor.py",
    "live.quality.convention_check": "assessment/test_assessor.py",
    "io.autosave.keep": "test_dumps.py",
    "io.autoplot.threaded": "test_ptycho.py",
    "io.recording.files": "detectors/bluesky/test_recorded_files.py",
    "io.steering.keys": "steering/test_launched.py",
    "io.steering.peer_keys": "steering/test_launched.py",
    "io.steering.operators": "steering/test_launched.py",
    "io.interaction.server.address": "interaction/test_server.py",
    "io.interaction.server.port": "interaction/test_server.py",
    "io.interaction.server.connections": "interaction/test_server.py",
    "io.interaction.server.poll_timeout": "interaction/test_server.py",
    "io.interaction.server.pinginterval": "interaction/test_server.py",
    "io.interaction.server.pingtimeout": "interaction/test_server.py",
    "io.interaction.client.address": "interaction/test_client.py",
    "io.interaction.client.port": "interaction/test_client.py",
    "io.interaction.client.poll_timeout": "interaction/test_client.py",
    "io.interaction.client.pinginterval": "interaction/test_client.py",
    "io.interaction.client.connection_timeout": "interaction/test_client.py",
    "io.tiled.uri": "test_tiled.py",
    "io.tiled.api_key_file": "test_tiled.py",
    "io.tiled.path": "test_tiled.py",
    "io.tiled.timeout_s": "test_tiled.py",
    "io.documents.address": "publish/test_documents.py",
    "io.documents.bind": "publish/test_documents.py",
    "io.documents.format": "publish/test_documents.py",
    "io.documents.prefix": "publish/test_documents.py",
    "io.documents.interval_s": "publish/test_documents.py",
    "io.documents.keys": "publish/test_documents.py",
    "io.documents.peer_keys": "publish/test_documents.py",
    "io.documents.insecure": "publish/test_documents.py",
    "io.publish.keys": "params/test_rules.py",
    "io.publish.peer_keys": "params/test_rules.py",
}
"""What needs another process, another machine or a socket, and the tests that look at it."""


class Opened:
    """What a session would open: nothing listens, and what it was to be is kept."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[Any] = []
        monkeypatch.setattr(launch, "Publisher", self._publisher)
        monkeypatch.setattr(launch, "Server", self._server)
        monkeypatch.setattr(launch, "InteractionServer", self._interaction)
        monkeypatch.setattr(launch.Metrics, "serve", self._serve)
        monkeypatch.setattr(plan, "Recorder", self._recorder)

    def _publisher(self, address: str, **given: Any) -> Publisher:
        self.asked.append((address, given))
        return Publisher("tcp://127.0.0.1:*", **given)

    def _server(self, desk: Desk, address: str, **given: Any) -> Server:
        self.asked.append((address, given))
        return Server(desk, "tcp://127.0.0.1:*", **given)

    def _interaction(self, namespace: Namespace, desk: Desk, p: ServerParameters, **given: Any) -> InteractionServer:
        self.asked.append((p.model_dump(), given))
        with sockets.socket() as asked:
            asked.bind(("127.0.0.1", 0))
            free = min(int(asked.getsockname()[1]), 65000)
        return InteractionServer(namespace, desk, ServerParameters(port=free), **given)

    def _serve(self, address: str, port: int, health: Health) -> tuple[str, Any]:
        self.asked.append((address, port, health.stuck_after_s))
        return "there", lambda: None

    def _recorder(self, path: Path, metadata: Any, **given: Any) -> Recorder:
        self.asked.append(given)
        return Recorder(path, metadata, **given)


class Heard(logging.Handler):
    """Levels of what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.levels: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        self.levels.add(record.levelname)


KNOWN: dict[str, str] = {}


def outcome(folder: Path, given: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch, *, again: bool = False) -> str:
    """What a session came to, in short; each is made once, but where `again` is asked for."""
    if repr(given) not in KNOWN or again:
        KNOWN[repr(given)] = _outcome(folder, given, monkeypatch)
    return KNOWN[repr(given)]


def _outcome(folder: Path, given: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch) -> str:
    folder.mkdir()
    monkeypatch.chdir(folder)
    p = parameters(Path(), e={"numiter": 4})
    p.update(dict(given), in_place_depth=3, convert=True)
    opened, heard, logger = Opened(monkeypatch), Heard(), logging.getLogger("ptystream")
    logger.addHandler(heard)
    try:
        script = Ptycho(p)
        made = plan.make_plan(script.configuration)
        if "live" not in given and "min_frames_for_recon" not in given:
            Ptycho(p, transports=sources()).run()
    finally:
        logger.removeHandler(heard)
    planned = (
        made.name,
        made.loop,
        made.context,
        made.runs,
        (made.publish_interval_s, made.publish_share),
        (made.timeout_s, made.beam_timeout_s),
    )
    return digest(planned, opened.asked, sorted(heard.levels), [told(path, folder) for path in sorted(folder.rglob("*"))])


def told(path: Path, folder: Path) -> Any:
    """A file: its name, and what can be compared of it."""
    content: Any = None
    if path.suffix == ".ptyr" and path.parent.name != "dumps":
        with h5py.File(path) as file:
            kept = [np.asarray(file[f"content/{part}/SMFG00/data"]) for part in ("probe", "obj")]
            content = sorted(file["content"]), sorted(file["content/probe/SMFG00"]), len(file["content/pars"]["engines/e"])
            content = (*content, kept)
    elif path.suffix == ".png":
        content = np.asarray(imread(path))
    elif path.name == "benchmark.json":
        content = sorted(json.loads(path.read_text()))
    return str(path.relative_to(folder)), content


def test_every_parameter_of_the_root_has_a_line_here() -> None:
    assert set(leaves(RootParameters)) == set(CASES) | set(ELSEWHERE)
    assert not set(CASES) & set(ELSEWHERE)
    for path, file in ELSEWHERE.items():
        assert path.rpartition(".")[2] in (Path(__file__).parent / file).read_text(), path


@pytest.mark.slow
@pytest.mark.parametrize("path", CASES)
def test_every_value_makes_a_difference(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values, beside = CASES[path]
    every = [beside, *(laid(beside, path, value) for value in values)]
    found = [outcome(tmp_path / str(number), given, monkeypatch) for number, given in enumerate(every)]
    assert len(set(found)) == len(found), f"{path}: {values}"


def test_the_same_parameters_come_to_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (outcome(tmp_path / str(k), {}, monkeypatch, again=True) for k in range(2))
    assert first == second
