"""The progress line shows the error that the engine at work has."""

from __future__ import annotations

import numpy as np

from ptystream.cli.progress import describe
from ptystream.engine import headline


def test_engines_without_a_fourier_error_show_their_cost() -> None:
    assert headline(np.array([3.0, 2.0, 1.0])) == ("fourier error", 3.0)
    assert headline(np.array([0.0, 2.0, 0.0])) == ("cost", 2.0)
    assert headline(np.array([0.0, 0.0, 0.0])) == ("fourier error", 0.0)
    status = {"run": "r", "state": "running", "received": 3, "used": 2, "iteration": 1, "frames_per_second": 0.0}
    assert "cost 0.25  misfit 7 " in describe(status | {"error": ("cost", 0.25), "misfit": 7.0})
    assert "error" not in describe(status | {"error": None})
