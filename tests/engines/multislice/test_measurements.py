"""What is given for each measurement belongs to its number, whenever it comes; what is given of the object, to its place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from problems import BEAM, end, feed, make_run
from test_pypty import SETUP

from ptystream.engines.multislice import regularisers
from ptystream.engines.multislice.pypty import PyPty
from ptystream.engines.multislice.terms import Terms
from ptystream.loop import Loop, LoopSettings, Step
from ptystream.run import Run

RNG = np.random.default_rng(3)
CURRENT = RNG.uniform(0.5, 1.5, BEAM.frames)
TILTS = RNG.normal(size=(BEAM.frames, 6)) * 1e-6


def out_of_order(**parameters: Any) -> tuple[Run, PyPty]:
    """A run whose later half of frames comes first, and in which the engine begins with few; and that engine."""
    made = make_run(engine=PyPty, engines=[SETUP | {"epoch_max": 1, "tilt_mode": 4} | parameters])
    loop = Loop(made, LoopSettings(min_frames_for_recon=16))
    for first, stop in ((0, 16), (50, 92), (16, 50)):
        feed(made, first, stop)
        loop.step()
    engine = made.engine
    assert isinstance(engine, PyPty) and (np.diff(made.reconstruction.pods.index) < 0).any()
    end(made)
    for _ in range(100):
        if loop.step() is Step.DONE:
            return made, engine
    pytest.fail("it does not end")


def test_currents_and_tilts_are_those_of_the_measurement() -> None:
    made, engine = out_of_order(beam_current=CURRENT, tilts=TILTS)
    index = made.reconstruction.pods.index
    np.testing.assert_allclose(engine.refined()["current"], CURRENT[index], rtol=1e-6)
    np.testing.assert_allclose(engine.refined()["tilts"], TILTS[index], rtol=1e-6)


def test_a_measurement_beyond_the_currents_has_one() -> None:
    made, engine = out_of_order(beam_current=CURRENT[:60])
    index = made.reconstruction.pods.index
    wanted = np.where(index < 60, CURRENT[np.minimum(index, 59)], 1.0)
    np.testing.assert_allclose(engine.refined()["current"], wanted, rtol=1e-6)


def test_an_object_is_held_whole_while_few_frames_are_there() -> None:
    """The frames that the engine begins with see a part of it."""
    given = np.exp(1j * RNG.normal(size=(110, 120, 2, 1)))
    made, _ = out_of_order(obj=given, update_obj=0, update_probe=0)
    (stack,) = made.reconstruction.objects.values()
    pods = made.reconstruction.pods
    first = pods.address[pods.index < 16, 0, 4:6].min(axis=0)  # of those that were there
    y, x = (int(a - b) for a, b in zip(first, stack.offset, strict=True))
    found = np.asarray(stack.data)[:, y : y + 110, x : x + 120]
    np.testing.assert_allclose(found, given[..., 0].transpose(2, 0, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["fast_axis", "slow_axis", "deformation"])
def test_lines_of_a_scan_are_lines_however_they_came(name: str) -> None:
    made, engine = out_of_order(scan_size=[4, 23], update_probe_pos=1, **{f"{name}_reg_weight_positions": 1.0})
    pods, x, order = made.reconstruction.pods, RNG.normal(size=(BEAM.frames, 2)), engine._order()
    np.testing.assert_array_equal(pods.index[order], np.arange(BEAM.frames))
    value, slope = getattr(regularisers, name)(np, x[order], (4, 23))
    on = type("On", (), {"xp": np})()
    key = f"{name}_reg_weight_positions"
    terms = Terms(on, None, {key: 2.0}, scan=(4, 23), order=order)
    gradient: dict[str, Any] = {"positions": np.zeros_like(x)}
    found = terms.add({"positions": x, "object": None, "probe": None}, gradient)
    assert found[key] == pytest.approx(2 * value)
    np.testing.assert_allclose(gradient["positions"][order], 2 * slope)
    assert value != pytest.approx(getattr(regularisers, name)(np, x, (4, 23))[0])
