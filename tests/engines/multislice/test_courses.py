"""Expressions in the epoch: read for all epochs before data come, and what holds beyond them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from problems import BEAM, end, feed, make_run
from test_pypty import SETUP

from ptystream.engines.multislice.parameters import PyPtyParameters
from ptystream.engines.multislice.pypty import PyPty
from ptystream.engines.multislice.setting import Setting
from ptystream.loop import Loop, LoopSettings, Step
from ptystream.params.course import MOST_EPOCHS, epochs


@pytest.mark.parametrize(
    ("given", "beyond"),
    [
        ("lambda x: 1 / (10 - x)", 1.0),
        ("lambda x: x", 9.0),
        ({"table": [[0, 8.0], [9, 3.0], [12, 5.0]]}, 3.0),
        (lambda epoch: [5.0, 6.0, 5.0, 6.0, 5.0, 6.0, 5.0, 6.0, 5.0, 7.0][epoch], 7.0),
    ],
)
def test_what_held_last_holds_beyond(given: Any, beyond: float) -> None:
    p = PyPtyParameters(phase_norm_weight=given, epoch_max=10)
    for epoch in (9, 10, 11, 1000):
        assert Setting.of(p, epoch, frozenset({"object"}), {})["phase_norm_weight"] == beyond


def test_the_epochs_that_are_looked_at() -> None:
    assert list(epochs(3, 6)) == [3, 4, 5] and list(epochs(3, 3)) == [3]
    assert len(epochs(0, 10**9)) == MOST_EPOCHS
    p = PyPtyParameters(update_step_bfgs=f"lambda x: 1 / ({MOST_EPOCHS} - x)", epoch_max=2 * MOST_EPOCHS)
    assert Setting.of(p, 2 * MOST_EPOCHS, frozenset(), {})["update_step_bfgs"] == 1.0
    assert Setting.of(PyPtyParameters(atv_weight="lambda x: x", epoch_prev=5, epoch_max=6), 9, frozenset(), {})["atv_weight"] == 5


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"atv_weight": "lambda x: 1 / (7 - x)"}, "atv_weight: has no value at epoch 7"),
        ({"loss_weight": "lambda x: 5 - x"}, "loss_weight: .* it is 0"),
        ({"loss_weight": "lambda x: 'men' if x > 3 else 'mean'"}, "loss_weight: .* it is 'men'"),
        ({"sequence": "lambda x: 'all' if x > 3 else None"}, "sequence: .* it is 'all'"),
        ({"sequence": "lambda x: [1, 2.5]"}, "sequence: "),
        ({"wolfe_c1_constant": "lambda x: 0.1 * x + 0.1"}, "wolfe_c1_constant"),
    ],
)
def test_what_has_no_meaning_at_some_epoch_is_refused_before_data_come(given: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        PyPtyParameters(epoch_max=10, **given)


def test_a_run_whose_frames_come_for_longer_goes_on() -> None:
    """Ten epochs before the last frame, where the page's are five."""
    own = SETUP | {"epoch_max": 5, "wolfe_c1_constant": "lambda x: 0.1 / (5 - x)", "atv_weight": "lambda x: 1e-9 / (5 - x)"}
    made = make_run(engine=PyPty, engines=[own], decide_after=32)
    loop = Loop(made, LoopSettings(min_frames_for_recon=32))
    for first, stop in [(0, 32), *((k, k + 6) for k in range(32, 92, 6))]:
        feed(made, first, stop)
        assert loop.step() is Step.WORKED
    end(made)
    assert any(loop.step() is Step.DONE for _ in range(100))
    assert made.iterations >= 15 and made.frames == BEAM.frames
    assert np.isfinite(np.concatenate(made.misfit)[:, 0]).all()
