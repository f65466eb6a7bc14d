"""A blur costs memory in proportion to its width: what is wider than flat is computed as flat."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ptystream.detectors.simulated.exposure import blurred
from ptystream.engine import Context
from ptystream.engines.backend import cpu
from ptystream.engines.constraints import smoothed
from ptystream.engines.sample_support import smoothed_profile
from ptystream.model.blur import widths
from ptystream.model.diversity import noise

PICTURE = np.random.default_rng(0).random((24, 17))


def test_usual_widths_stay_as_they_are() -> None:
    assert widths((0.0, 2.5, 60.0), (3, 24, 17)) == (0.0, 2.5, 60.0)
    assert widths(1e9, (24, 17)) == (96.0, 68.0)
    np.testing.assert_allclose(blurred(PICTURE, 4.0 * 24), blurred(PICTURE, 8.0 * 17), rtol=1e-12)


@pytest.mark.parametrize(
    ("blur", "flat"),
    [
        (lambda: blurred(PICTURE, 1e9), PICTURE.mean()),
        (lambda: smoothed(cpu(Context(threads=1)), PICTURE[None].astype(complex), 1e9)[0].real, PICTURE.mean()),
        (lambda: smoothed_profile(PICTURE[0], 1e9), (PICTURE[0, 0] + PICTURE[0, -1]) / 2),
        (lambda: noise((24, 17), 1.0, 1e9, np.random.default_rng(0)).mean(), 0.0),
    ],
)
def test_an_endless_blur_is_flat_and_needs_no_endless_memory(blur: Callable[[], Any], flat: float) -> None:
    tracemalloc.start()
    made = blur()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_allclose(made, flat, atol=0.1)
    assert peak < 1e8
