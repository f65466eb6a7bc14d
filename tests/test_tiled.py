"""Results in a real Tiled server, on loopback, and documents there by its own writer. Needs the extra `test-tiled`."""

from __future__ import annotations

import importlib.util
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
import yaml
from drawn import result
from test_ptycho import parameters, sources

from ptystream import Ptycho
from ptystream.cli.check import check
from ptystream.params.errors import ConfigurationError
from ptystream.params.plain import Param, plain
from ptystream.storage import ptyr, tiled_entry

KEY = "secretofthistest"
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
"""Tiled's client leaves its sockets to the garbage collector where it is refused."""


@pytest.fixture(scope="module")
def server(require: Callable[[str, bool], None], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server whose only key is `KEY`."""
    there = all(importlib.util.find_spec(name) for name in ("tiled", "sqlalchemy", "zarr", "duckdb", "ndindex"))
    require("tiled", there)
    folder = tmp_path_factory.mktemp("tiled")
    catalog = {
        "uri": f"sqlite:///{folder}/catalog.db",
        "init_if_not_exists": True,
        "writable_storage": [f"file://localhost{folder}/data", f"duckdb:///{folder}/tables.db"],
        "readable_storage": [f"file://localhost{folder.parent}"],
    }
    config = {"trees": [{"path": "/", "tree": "catalog", "args": catalog}], "authentication": {"single_user_api_key": KEY}}
    (folder / "config.yml").write_text(yaml.safe_dump(config))
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        port = asked.getsockname()[1]
    command = [sys.executable, "-m", "tiled", "serve", "config", str(folder / "config.yml"), "--host", "127.0.0.1"]
    with open(folder / "log", "w") as log:
        process = subprocess.Popen([*command, "--port", str(port)], stdout=log, stderr=log, cwd=folder)
    try:
        deadline = time.monotonic() + 120
        while not answers(f"http://127.0.0.1:{port}/healthz"):
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=5):
            return True
    except OSError:
        return False


@pytest.fixture
def catalog(server: str) -> Iterator[Any]:
    from tiled.client import from_uri

    opened = from_uri(server, api_key=KEY, remember_me=False)
    yield opened
    opened.context.close()


def given(home: Path, **tiled: Any) -> Param:
    p = parameters(home, e={"numiter": 5})
    p.io.tiled.update(tiled)
    return p


def test_a_finished_run_is_in_the_server(
    server: str, catalog: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TILED_API_KEY", KEY)
    caplog.set_level(logging.DEBUG, "ptystream")
    P = Ptycho(given(tmp_path, uri=server, path="ptycho/2026"), transports=sources(), verbose_level="DEBUG").run()
    saved = ptyr.read(P.results[0])
    entry = catalog["ptycho/2026"][f"t_{saved.uid[:8]}"]
    told = dict(entry.metadata)
    assert told["complete"] is True and told["uid"] == saved.uid and told["iterations"] == 5
    assert told["misfit_photon"] == pytest.approx(saved.misfit[-1, 1]) and told["ledger"]["used"] == 92
    assert told["scans"]["MF"]["acquisition"] == ["of MF", 0] and told["configuration"]["run"] == "t"
    assert told["file"] == str(P.results[0]) and [spec.name for spec in entry.specs] == [tiled_entry.SPEC]
    wanted = saved.object["SMFG00"].data
    np.testing.assert_array_equal(entry["object_SMFG00"].read(), wanted)
    np.testing.assert_array_equal(entry["probe_SMFG00"].read(), saved.probe["SMFG00"].data)
    np.testing.assert_array_equal(entry["positions_m"].read(), saved.positions_m)
    np.testing.assert_array_equal(entry["misfit"].read(), saved.misfit)
    np.testing.assert_allclose(entry["object_SMFG00_amplitude"].read(), np.abs(wanted[0]), rtol=1e-5)
    assert entry["object_SMFG00"].metadata["pixel_size_m"] == list(saved.object["SMFG00"].pixel_size_m)
    assert entry["object_SMFG00"].dims == ("layer", "y", "x")
    assert KEY not in caplog.text and KEY not in P.results[0].read_bytes().decode("latin-1")


def test_a_key_in_a_file_is_taken_and_a_wrong_one_is_told_and_costs_nothing(
    server: str, catalog: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")
    Ptycho(given(tmp_path, uri=server, path="byfile", api_key_file="key"), transports=sources()).run()
    assert len(catalog["byfile"]) == 1
    (tmp_path / "key").write_text("thisiswrong")
    P = Ptycho(given(tmp_path, uri=server, path="wrong", api_key_file="key"), transports=sources()).run()
    assert P.results[0].exists()
    assert "is not archived there" in caplog.text and "401" in caplog.text
    assert KEY not in caplog.text and "thisiswrong" not in caplog.text


def test_check_says_whether_the_server_would_take_it(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TILED_API_KEY", KEY)
    configuration = given(tmp_path, uri=server)
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(plain(configuration)))
    check(str(tmp_path / "t.yaml"))
    assert f"io.tiled: {server}: answers, and lets the key in" in capsys.readouterr().out
    monkeypatch.setenv("TILED_API_KEY", "thisiswrong")
    assert check(str(tmp_path / "t.yaml")) == 1
    said = capsys.readouterr().out
    assert "401" in said and "correct uri and key" in said and "thisiswrong" not in said
    monkeypatch.delenv("TILED_API_KEY")
    assert check(str(tmp_path / "t.yaml")) == 1
    assert "set the environment variable TILED_API_KEY" in capsys.readouterr().out


def test_every_kind_of_result_is_taken(server: str, catalog: Any, tmp_path: Path) -> None:
    for number, changed in enumerate(({}, {"coverage": {}}, {"misfit": np.full((12, 3), np.nan)}, {"iterations": 0})):
        path = ptyr.write(tmp_path / f"{number}.ptyr", result(run=f"kind{number}", uid=f"{number}" * 8, **changed))
        put = tiled_entry.put(path, server, key=KEY, container="kinds", timeout_s=60)
        assert put.startswith(server)
        assert catalog["kinds"][f"kind{number}_{str(number) * 8}"].metadata["complete"] is True


def test_blueskys_writer_puts_a_run_with_its_pictures_there(catalog: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    plugins = pytest.importorskip("bluesky_tiled_plugins", reason="bluesky-tiled-plugins is not installed")
    p = parameters(tmp_path_factory.mktemp("written"), e={"numiter": 5})
    p.scans.MF.coherence.num_probe_modes = 2
    p.io.documents.interval_s = 0.0
    writer, failures = plugins.TiledWriter(catalog), list[BaseException]()

    def write(name: str, document: dict[str, Any]) -> None:
        try:
            writer(name, document)
        except BaseException as error:
            failures.append(error)

    P = Ptycho(p, transports=sources())
    P.subscribe(write)
    P.run()
    assert not failures
    saved = ptyr.read(P.results[0])
    run = catalog[saved.uid]
    assert run.metadata["start"]["scan_uid"] == "of MF" and run.metadata["stop"]["exit_status"] == "success"
    assert run["primary"]["iteration"].read()[-1] == 5
    assert run["primary"]["misfit"].read()[-1] == pytest.approx(saved.misfit[-1, 0])
    for key, held in (("object_SMFG00", saved.object), ("probe_SMFG00", saved.probe)):
        np.testing.assert_array_equal(np.squeeze(run["result"][key].read()), np.squeeze(held["SMFG00"].data))


def test_a_server_that_does_not_answer_is_given_up(tmp_path: Path, require: Callable[[str, bool], None]) -> None:
    require("tiled", tiled_entry.is_installed())
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        path, uri = ptyr.write(tmp_path / "a.ptyr", result()), f"http://127.0.0.1:{silent.getsockname()[1]}"
        p = given(tmp_path, uri=uri, timeout_s=1.0, api_key_file="key")
        (tmp_path / "key").write_text(KEY)
        began = time.monotonic()
        P = Ptycho(p, transports=sources()).run()
        assert P.results[0].exists() and path.exists()
        assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    ("tiled", "said"),
    [
        ({"uri": "127.0.0.1:8000"}, "must be an address like"),
        ({"uri": "http://me:pw@127.0.0.1"}, "would be kept with every result"),
        ({"uri": "http://127.0.0.1?api_key=abc"}, "would be kept with every result"),
        ({"uri": "http://127.0.0.1", "timeout_s": 0}, "timeout_s"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_loaded(tiled: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=said):
        Ptycho(given(tmp_path, **tiled))


def test_what_is_missing_is_told_before_anything_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, require: Callable[[str, bool], None]
) -> None:
    monkeypatch.delenv("TILED_API_KEY", raising=False)
    p = given(tmp_path, uri="http://127.0.0.1:9")
    p.io.rfile = None
    with pytest.raises(ConfigurationError, match=r"tiled\.uri.*needs io\.rfile"):
        Ptycho(p)
    monkeypatch.setattr(tiled_entry, "is_installed", lambda: False)
    with pytest.raises(ConfigurationError, match=r"pip install 'ptystream\[tiled\]'"):
        Ptycho(given(tmp_path, uri="http://127.0.0.1:9"), transports=sources()).run()
    monkeypatch.setattr(tiled_entry, "is_installed", lambda: True)
    with pytest.raises(ConfigurationError, match="set the environment variable TILED_API_KEY"):
        Ptycho(given(tmp_path, uri="http://127.0.0.1:9"), transports=sources()).run()
    (tmp_path / "empty").write_text("\n")
    for name, said in (("empty", "first line is empty"), ("nowhere", "No such file")):
        with pytest.raises(ConfigurationError, match=said):
            Ptycho(given(tmp_path, uri="http://127.0.0.1:9", api_key_file=name), transports=sources()).run()
