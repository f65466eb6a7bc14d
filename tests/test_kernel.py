"""`ipython_kernel`: from another process the session's objects can be looked at, and nobody else can."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from test_ptycho import parameters, sources

from ptystream import Ptycho
from ptystream.params.errors import ConfigurationError


def test_without_ipykernel_the_remedy_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipykernel.kernelapp", None)
    p = parameters(tmp_path)
    p.ipython_kernel = True
    with pytest.raises(ConfigurationError, match=r"ipython_kernel.*pip install 'ptystream\[ipython\]'"):
        Ptycho(p, transports=sources()).run()


@pytest.mark.slow
def test_a_client_looks_at_the_running_session(tmp_path: Path, require: Callable[[str, bool], None]) -> None:
    require("ipykernel", find_spec("ipykernel") is not None)
    from jupyter_client import BlockingKernelClient

    code = f"""
    import sys
    sys.path.insert(0, {str(Path(__file__).parent)!r})
    from test_ptycho import *
    p = parameters(Path({str(tmp_path)!r}))
    p.ipython_kernel, p.min_frames_for_recon = True, 20
    p.verbose_level = "WARNING"
    P = Ptycho(p, transports=unending())
    P.run()
    """
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(code))
    env = {"JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"), "IPYTHONDIR": str(tmp_path / "ipython"), "HOME": str(tmp_path)}
    with subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE, text=True, env=env) as process:
        assert process.stderr is not None
        said = ""
        for line in process.stderr:
            said += line
            found = re.search(r"--existing (\S+)", line)
            if found:
                break
        else:
            pytest.fail(said)
        file = Path(found[1])
        assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0
        about = json.loads(file.read_text())
        assert about["ip"] == "127.0.0.1"
        assert len(about["key"]) > 16
        client = BlockingKernelClient(connection_file=str(file))
        client.load_connection_file()
        client.start_channels()
        try:
            client.wait_for_ready(timeout=60)
            looked = "import time\nwhile session.status()['iteration'] < 3: time.sleep(0.05)\nsession.stop()"
            told = {"told": "(session.plan.name, configuration.root.ipython_kernel)"}
            # Answered on the shell channel: what a subscriber to the output channel is told may come before it listens.
            reply = client.execute(looked, user_expressions=told, reply=True, timeout=200)
        finally:
            client.stop_channels()
        assert reply["content"]["status"] == "ok"
        assert reply["content"]["user_expressions"]["told"]["data"]["text/plain"] == "('t', True)"
        process.stderr.read()
        assert process.wait(60) == 0
    assert (tmp_path / "t.ptyr").exists()  # it was stopped from there, and saved


@pytest.mark.slow
def test_a_notebook_shows_plots_below_the_cell(tmp_path: Path, require: Callable[[str, bool], None]) -> None:
    require("ipykernel", find_spec("ipykernel") is not None)
    from jupyter_client import BlockingKernelClient

    cell = f"""
    import sys
    sys.path.insert(0, {str(Path(__file__).parent)!r})
    from test_ptycho import *
    p = parameters(Path({str(tmp_path)!r}))
    p.io.autoplot = Param(interval=2, layout="jupyter")
    P = Ptycho(p, transports=sources()).run()
    """
    file = tmp_path / "kernel.json"
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", str(file), "--HistoryManager.enabled=False"]
    env = {"JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"), "IPYTHONDIR": str(tmp_path / "ipython"), "HOME": str(tmp_path)}
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 60
            while not (file.exists() and file.stat().st_size):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            client = BlockingKernelClient(connection_file=str(file))
            client.load_connection_file()
            client.start_channels()
            shown: list[dict] = []
            try:
                client.wait_for_ready(timeout=60)
                reply = client.execute_interactive(textwrap.dedent(cell), timeout=200, output_hook=shown.append)
            finally:
                client.stop_channels()
        finally:
            process.terminate()
    assert reply["content"]["status"] == "ok", reply["content"]
    pictures = [m for m in shown if "image/png" in m["content"].get("data", {})]
    assert pictures
    assert {m["msg_type"] for m in pictures} == {"update_display_data"}  # one place, the newest in it
    assert pictures[-1]["content"]["data"]["image/png"].startswith("iVBORw0KGgo")
