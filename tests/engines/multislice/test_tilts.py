"""Which tilts a mode applies."""

from __future__ import annotations

import numpy as np
import pytest
from problems import BEAM
from test_pypty import run

from ptystream.engine import Context
from ptystream.engines.backend import cpu
from ptystream.engines.multislice.patterns import Patterns
from ptystream.engines.multislice.pypty import PyPty

TILTS = np.random.default_rng(0).normal(size=(BEAM.frames, 6))
APPLIED = {0: "inside", 1: "after", 2: "before", 3: "inside after", 4: "before inside after"}


@pytest.mark.parametrize("lines", [1, BEAM.frames])
@pytest.mark.parametrize("mode", APPLIED)
def test_a_mode_applies_those_that_the_page_says(mode: int, lines: int) -> None:
    on = cpu(Context(precision="double"))
    patterns = Patterns(on, PyPty.Parameters(tilt_mode=mode), None, {}, None, np.dtype("f8"))  # type: ignore[arg-type]
    rows = np.array([4, 7])
    found = dict(zip(("before", "inside", "after"), patterns._tilts(rows, {"tilts": TILTS[:lines]}), strict=True))
    assert {name for name, held in found.items() if held is not None} == set(APPLIED[mode].split())
    for k, (_, held) in enumerate(found.items()):
        if held is not None:
            np.testing.assert_array_equal(held, TILTS[rows if lines > 1 else [0, 0], 2 * k : 2 * k + 2])


def test_tilts_that_a_mode_does_not_apply_change_nothing() -> None:
    slices = {"epoch_max": 2, "num_slices": 2, "slice_distances": [2e6], "tilt_mode": 1}
    inside = np.zeros((1, 6))
    plain = run(**slices)
    inside[0, 2:4] = 1e-6
    ignored = run(**slices, tilts=inside)
    a, b = (next(iter(each.reconstruction.objects.values())).data for each in (plain, ignored))
    np.testing.assert_allclose(a, b, atol=1e-5)
