"""The examples of the documentation run."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from snapshots import snapshot

from ptystream.publish.publisher import Publisher
from ptystream.storage import ptyr
from ptystream.viewers.client import Client

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.slow
def test_a_script_reconstructs_what_a_simulated_detector_sends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(sys, "argv", ["from_a_script.py"])
    from from_a_script import main

    P = main(str(tmp_path), 150)
    assert P.runtime.ledger["used"] == 150
    assert P.probe["SflowerG00"].shape == (2, 64, 64)
    assert P.misfit[-1, 1] < 5 * P.misfit[-1, 2]
    assert {f.name for f in tmp_path.iterdir()} == {"dumps", "plots", "recons", "recordings", "benchmark.json"}


@pytest.mark.slow
def test_the_film_is_found_in_its_rocking_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from rocking_curves import film

    monkeypatch.setattr(film, "STEPS", 7)
    P = film.main(str(tmp_path), 50)
    assert {f.name for f in tmp_path.iterdir()} == {"film.ptyr", "film.png"}
    assert P.runtime.ledger["used"] == 7 * 7 * film.ANGLES
    assert P.misfit[-1, 0] < 0.1 * P.misfit[0, 0]
    held = ptyr.read(P.results[0]).object["SfilmG00"]
    index = np.stack(np.indices(held.data.shape), axis=-1) + np.array(held.corner)
    r3, r1, y = np.moveaxis(index * np.array([held.slice_m, *held.pixel_size_m]), -1, 0)
    theta = np.deg2rad(film.ROCKING["theta_bragg"])
    x, z = r3 * np.cos(theta), r1 + r3 * np.sin(theta)

    def agreement(depth: float) -> float:
        truth = film.film(x, y, z - depth)
        lit = (np.abs(truth) > 0) & (np.hypot(x, y) < 0.3e-6)
        mine, its = held.data[lit], truth[lit]
        return float(abs(np.vdot(mine, its)) / np.linalg.norm(mine) / np.linalg.norm(its))

    assert max(map(agreement, (-6e-8, 0.0, 6e-8))) > 0.95  # a shift along the beam cannot be seen


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["grid", "spiral", "fermat", "fly"])
def test_a_run_engine_is_reconstructed_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import bluesky_demo

    session = bluesky_demo.main(str(tmp_path), kind, 40)
    result = ptyr.read(session.results[0])
    assert result.ledger["used"] == result.ledger["expected"] > 150
    assert result.misfit[-1, 0] < 2.0, "the truth has 1"


def test_silx_gets_the_object_at_its_place_in_micrometres(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from watch_silx import shown_of

    shown = snapshot(0)
    found = shown_of(shown)
    assert found is not None
    data, origin, scale = found
    np.testing.assert_allclose(np.abs(data), np.abs(shown.object["o"].data[0]), rtol=1e-5)
    np.testing.assert_allclose(origin, (0.18, -0.07))
    np.testing.assert_allclose(scale, (0.02, 0.01))
    assert shown_of(replace(shown, object={})) is None


def test_silx_follows_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("PySide6", reason="silx has no Qt here")
    pytest.importorskip("silx", reason="silx is not installed")
    monkeypatch.setenv("QT_QPA_PLATFORM", "offscreen")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from silx.gui import qt
    from watch_silx import watch

    publisher, application = Publisher(), qt.QApplication.instance() or qt.QApplication([])
    with Client(publisher.endpoint) as client:
        view = watch(client)
        publisher.offer(snapshot(0))
        deadline = time.monotonic() + 60
        while not view.getGraphTitle() and time.monotonic() < deadline:
            application.processEvents()
        assert view.getData(copy=False).shape == (40, 43) and view.getGraphTitle().startswith("test: running")
        assert client.failed == 0
    publisher.close()


def test_napari_gets_layers_at_their_place_in_micrometres(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from watch_napari import layers_of

    shown = snapshot(0)
    held, place = layers_of(shown)
    assert set(held) == {"amplitude", "phase"}
    np.testing.assert_allclose(held["amplitude"], np.abs(shown.object["o"].data[0]), rtol=1e-5)
    np.testing.assert_allclose(place["scale"], (0.01, 0.02))
    np.testing.assert_allclose(place["translate"], (-0.07, 0.18))
    assert layers_of(replace(shown, object={})) == ({}, {})


def test_napari_follows_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    components = pytest.importorskip("napari.components", reason="napari is not installed")
    monkeypatch.setenv("QT_QPA_PLATFORM", "offscreen")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from qtpy.QtWidgets import QApplication
    from watch_napari import follow

    publisher, application = Publisher(), QApplication.instance() or QApplication([])
    viewer = components.ViewerModel()  # without a window: those need OpenGL
    with Client(publisher.endpoint) as client:
        worker = follow(viewer, client)
        deadline = time.monotonic() + 60
        for number in range(2):
            publisher.offer(snapshot(number))
            wanted = f"iteration {snapshot(number).iteration}"
            while wanted not in viewer.title and time.monotonic() < deadline:
                application.processEvents()
        worker.quit()
        while worker.is_running and time.monotonic() < deadline:
            application.processEvents()
        assert not worker.is_running
    publisher.close()
    assert {layer.name for layer in viewer.layers} == {"amplitude", "phase", "positions"}
    np.testing.assert_allclose(viewer.layers["phase"].translate, (-0.07, 0.18))
