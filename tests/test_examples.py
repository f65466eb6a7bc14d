"""The examples of the documentation run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

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
