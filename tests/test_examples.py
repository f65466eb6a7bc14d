"""The examples of the documentation run."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from ptystream.storage import ptyr

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
