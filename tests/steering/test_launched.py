"""A session that is started as a user starts it is asked as a user asks it: `ptystream ctl`, keys below `io.home`."""

from __future__ import annotations

import json
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import zmq.auth
from launched import Launched
from problems import feed, make_run

from ptystream.cli.ctl import _given, ctl
from ptystream.interaction.server import InteractionServer
from ptystream.metrics import Metrics
from ptystream.params.errors import ConfigurationError
from ptystream.params.load import load
from ptystream.publish.documenting import Documents, Lines
from ptystream.steering.server import Server


def test_ctl_asks_and_steers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    running = Launched(tmp_path, {"frames": {"active": True}})

    def said(action: str, *arguments: str, as_json: bool = False) -> str:
        assert ctl(running.endpoint, action, list(arguments), None, None, 30.0, as_json) == 0
        return capsys.readouterr().out

    try:
        assert said("pause") == ""
        assert "paused: True" in said("status")
        said("resume")
        assert json.loads(said("status", as_json=True))["paused"] is False
        assert "end [reason]             operator  End the scan" in said("actions")
        with pytest.raises(RuntimeError, match="refused: action: nonsense: is unknown; there are actions, append, end"):
            said("nonsense")
        with pytest.raises(RuntimeError, match=r"refused: end\.reason: 5: Input should be a valid string"):
            said("end", "reason=5")
        with pytest.raises(RuntimeError, match="pause takes nothing; arguments look like name=value"):
            said("pause", "now")
    finally:
        running.end()
    assert (tmp_path / "frames" / "t" / "s_a.h5").exists()


def test_keys_lie_below_home_and_only_operators_steer(tmp_path: Path) -> None:
    (tmp_path / "private").mkdir()
    for folder in ("operators", "let_in"):
        (tmp_path / folder).mkdir()
    for name in ("session", "anna", "bert"):
        public, _ = zmq.auth.create_certificates(tmp_path / "private", name)
        for folder in {"anna": ("operators", "let_in"), "bert": ("let_in",)}.get(name, ()):
            (tmp_path / folder / f"{name}.key").write_text(Path(public).read_text())
    steering = {"keys": "private/session.key_secret", "peer_keys": "let_in", "operators": "operators"}
    running = Launched(tmp_path, {"steering": steering})
    try:
        for name, refused in (("anna", False), ("bert", True)):
            keys = str(tmp_path / "private" / f"{name}.key_secret"), str(tmp_path / "private" / "session.key")
            ctl(running.endpoint, "status", [], *keys, 30.0, False)
            if refused:
                with pytest.raises(RuntimeError, match="only operators may"):
                    ctl(running.endpoint, "resume", [], *keys, 30.0, False)
            else:
                ctl(running.endpoint, "resume", [], *keys, 30.0, False)
        with pytest.raises(RuntimeError, match="no answer"):
            ctl(running.endpoint, "status", [], None, None, 0.5, False)
    finally:
        running.end()


@pytest.mark.parametrize("pattern", ["frames/%(run)s.h5", "%(epoch)s.txt", "%(other)s_%(epoch)s.h5"])
def test_a_pattern_that_cannot_name_the_files_is_refused_before_anything_is_opened(pattern: str) -> None:
    with pytest.raises(ConfigurationError, match=r"io\.frames\.file"):
        load({"io": {"frames": {"file": pattern}}, "scans": {}, "engines": {}})


def test_what_is_wrong_with_an_endpoint_or_keys_is_said(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="it looks like tcp://"):
        ctl("nowhere", "status", [], None, None, 1.0, False)
    with pytest.raises(RuntimeError, match="make certificates"):
        ctl("tcp://127.0.0.1:9", "status", [], None, str(tmp_path / "no.key"), 1.0, False)


def test_ctl_says_that_it_waits(capsys: pytest.CaptureFixture[str]) -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as silent:
        port = silent.bind_to_random_port("tcp://127.0.0.1")
        with pytest.raises(RuntimeError, match="no answer"):
            ctl(f"tcp://127.0.0.1:{port}", "status", [], None, None, 1.5, False)
    assert "waiting, 1.5 s at most" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        (["scans.s.data.center", "[64.5, 63]"], {"path": "scans.s.data.center", "value": [64.5, 63]}),
        (["value=2", "a.b"], {"value": 2, "path": "a.b"}),
    ],
)
def test_arguments_are_taken_in_order(arguments: list[str], given: dict[str, Any]) -> None:
    assert _given("set", arguments, {"path": "str", "value": "Any"}) == given


def test_names_that_are_no_arguments_are_those_of_parameters() -> None:
    takes = {"engine": "str", "parameters": "dict[str, Any] | None"}
    found = _given("append", ["ML", "numiter=100", "ML_type=gaussian", "position_refinement.start=3"], takes)
    wanted = {"numiter": 100, "ML_type": "gaussian", "position_refinement": {"start": 3}}
    assert found == {"engine": "ML", "parameters": wanted}
    with pytest.raises(RuntimeError, match="was given a value already"):
        _given("append", ["ML", "a=1", "a.b=2"], takes)


class Dead:
    """Something that ends a thread."""

    def __call__(self, *_: Any) -> None:
        raise SystemExit("of an error of ours")


MORTAL: dict[str, tuple[Any, str, str]] = {
    "steering": (Server, "_take", "nobody can ask any more"),
    "interaction": (InteractionServer, "_tell", "nobody can ask any more"),
    "documents": (Lines, "put", "none are made any more"),
}
"""Parts without which a session goes on: class, what of it kills its thread, what the log says."""


@pytest.mark.parametrize("part", MORTAL)
def test_the_death_of_a_part_is_told_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, part: str
) -> None:
    where, killed, said = MORTAL[part]
    monkeypatch.setattr(where, killed, Dead())
    serve, urls = Metrics.serve, list[str]()

    def serving(self: Metrics, *arguments: Any) -> Any:
        served = serve(self, *arguments)
        urls.append(served[0].removesuffix("/metrics"))
        return served

    monkeypatch.setattr(Metrics, "serve", serving)
    running = Launched(tmp_path, {"documents": {"file": "t.jsonl"}, "interaction": {"active": True}, "cxi": True})

    def got(path: str) -> str:
        with urllib.request.urlopen(urls[0] + path, timeout=10) as answer:
            return str(answer.read().decode())

    try:
        if part == "steering":
            with pytest.raises(RuntimeError, match="no answer"):
                ctl(running.endpoint, "status", [], None, None, 0.5, False)
        deadline = time.monotonic() + 30
        while f'ptystream_dead_part{{part="{part}"}} 1.0' not in got("/metrics"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        told = got("/metrics")
        assert all(f'ptystream_dead_part{{part="{other}"}} 0.0' in told for other in {*MORTAL, "archive"} - {part})
        assert f"warning: {part}: SystemExit: of an error of ours" in got("/healthz")  # 200: no reason to start it again
    finally:
        running.end()
    assert said in caplog.text
    assert (tmp_path / "t.ptyr").exists()


def test_what_documents_are_not_told_any_more_is_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    counted: list[tuple[str, bool]] = []
    told = Documents([], count=lambda target, done: counted.append((target, done)))
    monkeypatch.setattr(told, "_tell", Dead())
    for _ in range(3):
        run = make_run()
        feed(run, 0, 3)
        told.over(run)
        told._thread.join(30)
    assert counted == [("documents", False)] * 3 and isinstance(told.failure, SystemExit)
    told.close()
