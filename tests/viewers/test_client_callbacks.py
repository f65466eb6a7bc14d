"""The Python client's callbacks, its snapshots as xarray, and in a real Jupyter kernel."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread
from snapshots import snapshot

from ptystream.publish.publisher import Publisher
from ptystream.publish.snapshot import Snapshot
from ptystream.viewers.client import Client
from ptystream.viewers.notebook import as_html, show


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    made = Publisher()
    yield made
    made.close()


class Heard:
    """What a callback was given."""

    def __init__(self) -> None:
        self.snapshots: list[Snapshot] = []
        self._came = threading.Condition()

    def __call__(self, shown: Snapshot) -> None:
        with self._came:
            self.snapshots.append(shown)
            self._came.notify_all()

    def until(self, number: int) -> None:
        """Wait for a snapshot of this number."""
        with self._came:
            assert self._came.wait_for(lambda: any(shown.number == number for shown in self.snapshots), 60), number


def test_callbacks_get_every_newest_snapshot_until_they_leave(publisher: Publisher) -> None:
    first, second = Heard(), Heard()
    with Client(publisher.endpoint) as client:
        client.on_snapshot(first)
        leave = client.on_snapshot(second)
        for number in range(3):
            publisher.offer(snapshot(number))
            first.until(number)
            second.until(number)
        leave()
        publisher.offer(snapshot(3))
        first.until(3)
        leave()
        assert not client.wait(0.0)
        publisher.offer(snapshot(4, state="finished"))
        assert client.wait(60)
    assert [shown.number for shown in first.snapshots] == [0, 1, 2, 3, 4]
    assert [shown.number for shown in second.snapshots] == [0, 1, 2]
    np.testing.assert_array_equal(first.snapshots[0].object["o"].data, snapshot(0).object["o"].data)
    assert client.failed == 0


def test_one_that_raises_is_told_and_ends_nothing(publisher: Publisher, caplog: pytest.LogCaptureFixture) -> None:
    def bad(shown: Snapshot) -> None:
        raise ValueError("cannot draw")

    heard = Heard()
    with Client(publisher.endpoint) as client:
        client.on_snapshot(bad)
        client.on_snapshot(heard)
        for number in range(2):
            publisher.offer(snapshot(number))
            heard.until(number)
        assert client.failed == 2 and "cannot draw" in caplog.text


def test_one_that_is_slow_skips_and_gets_the_newest(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on, seen = threading.Event(), threading.Event(), Heard()

    def slow(shown: Snapshot) -> None:
        begun.set()
        assert go_on.wait(60)
        seen(shown)

    with Client(publisher.endpoint) as client:
        client.on_snapshot(slow)
        publisher.offer(snapshot(0))
        assert begun.wait(60)
        for number in range(1, 20):
            publisher.offer(snapshot(number))
        go_on.set()
        seen.until(19)
        assert len(seen.snapshots) < 20


def test_with_callbacks_nothing_is_left_to_loop_over_and_a_closed_one_takes_none(publisher: Publisher) -> None:
    client = Client(publisher.endpoint)
    client.on_snapshot(Heard())
    with pytest.raises(RuntimeError, match="go to callbacks"):
        client.latest(0.0)
    client.close()
    client.close()
    with pytest.raises(RuntimeError, match="is closed"):
        client.on_snapshot(Heard())


def test_a_callback_may_close_the_client(publisher: Publisher) -> None:
    client, heard = Client(publisher.endpoint), Heard()

    def once(shown: Snapshot) -> None:
        client.close()
        heard(shown)

    client.on_snapshot(once)
    publisher.offer(snapshot(0))
    heard.until(0)
    assert client._thread is not None
    client._thread.join(30)
    assert not client._thread.is_alive()


def test_a_thread_that_dies_is_noticed(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(publisher.endpoint)

    def broken(timeout_s: float | None) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(client, "_newest", broken)
    client.on_snapshot(Heard())
    with pytest.raises(RuntimeError, match="no room"):
        client.wait(60)
    client.close()


# ---------------------------------------------------------------------- xarray


def test_a_snapshot_has_its_axes_in_metres() -> None:
    pytest.importorskip("xarray", reason="xarray is not installed")
    from ptystream.viewers.labelled import image_to_xarray, to_xarray

    shown = snapshot(3, seed=5)
    tree = to_xarray(shown)
    wave = tree["object/o/wave"]
    assert wave.dims == ("layer", "y", "x") and wave.y.attrs["units"] == "m"
    np.testing.assert_allclose(wave.y, (np.arange(40) - 7) * 1e-8)
    np.testing.assert_allclose(wave.x, (np.arange(43) + 9) * 2e-8)
    np.testing.assert_array_equal(wave, shown.object["o"].data)
    assert np.shares_memory(image_to_xarray(shown.object["o"]).data, shown.object["o"].data)
    np.testing.assert_array_equal(tree["object/o/coverage"], shown.coverage["o"])
    probe = tree["probe/p/wave"]
    assert float(probe.y[10]) == 0 == float(probe.x[10]) and probe.sizes["layer"] == 2
    assert tree["object/q/wave"].x.attrs["units"] == "px" and "coverage" not in tree["object/q"]
    np.testing.assert_array_equal(tree["curves/misfit_photon"], shown.misfit[:, 1])
    assert list(tree["curves/iteration"].values) == list(range(1, len(shown.misfit) + 1))
    np.testing.assert_allclose(tree["positions/y"], shown.positions[:, 0] * 1e-8, rtol=1e-6)
    assert tree["ledger/state"].attrs["flag_meanings"].split()[2] == "used"
    assert tree.attrs["run"] == "test" and tree.attrs["iteration"] == shown.iteration
    near = wave.sel(y=0.0, x=2e-7, method="nearest")
    np.testing.assert_array_equal(near, shown.object["o"].data[:, 7, 1])


# ---------------------------------------------------------------------- Jupyter


def test_what_a_notebook_shows_of_a_snapshot_is_its_numbers_and_its_picture() -> None:
    shown = as_html(snapshot(3, run="<b>", seed=5))
    assert "&lt;b&gt;" in shown and "<b>" not in shown
    head, _, rest = shown.partition("base64,")
    assert head.count("<th>") == 5
    picture = imread(BytesIO(base64.b64decode(rest.partition('"')[0])))
    assert picture.shape[0] > 100 and picture[..., :3].std() > 0.05


def test_outside_of_a_notebook_there_is_nothing_to_show_in() -> None:
    with pytest.raises(RuntimeError, match="this is no notebook"):
        show("tcp://127.0.0.1:5580")
    with pytest.raises(ValueError, match="must be one of"):
        show("tcp://127.0.0.1:5580", layout="fancy")


@pytest.mark.slow
def test_in_a_real_kernel_snapshots_are_pictures_and_go_on_below_the_cell(
    tmp_path: Path, require: Callable[[str, bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    require("ipykernel", find_spec("ipykernel") is not None)
    from jupyter_client.manager import KernelManager

    for name in ("JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    kernel = KernelManager(kernel_name="python3")
    kernel.kernel_spec.argv[:] = [sys.executable, "-P", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel.start_kernel(cwd=str(tmp_path), stderr=subprocess.DEVNULL)
    client = kernel.client()
    client.start_channels()
    publisher = Publisher()
    try:
        client.wait_for_ready(timeout=120)
        code = f"""
        from ptystream.viewers.client import Client
        from ptystream.viewers.notebook import show
        shown = show({publisher.endpoint!r}, interval_s=0.01)
        with Client({publisher.endpoint!r}) as client:
            newest = client.latest(60)
        newest
        """
        publisher.offer(snapshot(0))
        asked = client.execute(textwrap.dedent(code))
        outputs = until(client, lambda kinds: "execute_result" in kinds, asked)
        (result,) = [content for kind, content in outputs if kind == "execute_result"]
        assert "data:image/png;base64," in result["data"]["text/html"]
        assert any(kind == "display_data" for kind, _ in outputs)
        pictures = [content for kind, content in outputs if kind == "update_display_data"]
        publisher.offer(snapshot(1, state="finished"))
        asked = client.execute("shown.wait(60), shown.drawn, shown.client.failed")
        outputs = until(client, lambda kinds: "execute_result" in kinds, asked)
        pictures += [content for kind, content in outputs if kind == "update_display_data"]
        (result,) = [content for kind, content in outputs if kind == "execute_result"]
        over, drawn, failed = json.loads(result["data"]["text/plain"].replace("(", "[").replace(")", "]").replace("True", "true"))
        assert over is True and drawn == 2 and failed == 0
        assert len(pictures) == drawn
        png = BytesIO(base64.b64decode(pictures[-1]["data"]["image/png"]))
        assert imread(png).shape[0] > 100
    finally:
        publisher.close()
        client.stop_channels()
        kernel.shutdown_kernel(now=True)


def until(client: Any, enough: Callable[[set[str]], bool], asked: str) -> list[tuple[str, dict[str, Any]]]:
    """What a kernel has put out when there was enough, and it rests."""
    outputs: list[tuple[str, dict[str, Any]]] = []
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        message = client.get_iopub_msg(timeout=120)
        kind, content = message["msg_type"], message["content"]
        assert kind != "error", "\n".join(content["traceback"])
        outputs.append((kind, content))
        own = message["parent_header"].get("msg_id") == asked
        if own and kind == "status" and content["execution_state"] == "idle" and enough({k for k, _ in outputs}):
            return outputs
    raise AssertionError(f"only {[kind for kind, _ in outputs]}")


def test_a_snapshots_figures_of_quality_come_with_it() -> None:
    pytest.importorskip("xarray", reason="xarray is not installed")
    from ptystream.viewers.labelled import to_xarray

    frc = {
        "frequency_per_m": [1e6, 2e6],
        "correlation": [1.0, 0.2],
        "threshold": [0.4, 0.3],
        "resolution_m": 4e-7,
        "iteration": 9,
    }
    shown = replace(snapshot(3, seed=5), quality={"frc": frc, "coverage": {"overlap": 0.7}})
    tree = to_xarray(shown)
    assert tree.attrs["quality"]["coverage"] == {"overlap": 0.7} and tree.attrs["quality"]["frc"]["resolution_m"] == 4e-7
    np.testing.assert_array_equal(tree["frc/correlation"], [1.0, 0.2])
    np.testing.assert_array_equal(tree["frc/frequency"], [1e6, 2e6])
    bare = to_xarray(replace(shown, quality={}))
    assert "quality" not in bare.attrs and "frc" not in bare
