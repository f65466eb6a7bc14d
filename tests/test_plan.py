"""From a configuration to models: what cannot be begun, propagated or shared is told before anything starts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from problems import BEAM, GEOMETRY, PLACES, end, feed, make_run

from ptystream.engine import Context
from ptystream.engines.dm import DM
from ptystream.loop import Loop, LoopSettings, Step
from ptystream.model.parameters import FullParameters
from ptystream.model.scan_model import Full
from ptystream.params.errors import ConfigurationError
from ptystream.params.load import load
from ptystream.plan import geometry_of, make_plan, models_of
from ptystream.run_state import EngineEntry
from ptystream.scan.memory import FRAMES
from ptystream.scan.parameters import PtyScanParameters
from ptystream.scan.ptyscan import PtyScan
from ptystream.warming import warm_up

SOURCE = {"name": "ZmqScan", "address": "tcp://127.0.0.1:5570", "shape": 32, **GEOMETRY}


def configuration(scan: dict[str, Any] | None = None, data: dict[str, Any] | None = None, **more: Any) -> Any:
    given = {"name": "Full", **(scan or {}), "data": {**SOURCE, "positions": SOURCE_OF_POSITIONS, **(data or {})}}
    return load({"scans": {"s": given} | more, "engines": {"a": {"name": "DM", "numiter": 3}}})


SOURCE_OF_POSITIONS = {"name": "ZmqScan", "address": "tcp://127.0.0.1:5571"}


def told(given: Any) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        models_of(given)
    return [str(fault) for fault in caught.value.faults]


def test_the_geometry_is_that_of_the_parameters() -> None:
    near = geometry_of(configuration({"propagation": "nearfield", "resample": 2}).scans[0])
    assert near.near
    assert near.pixel_size_m == (GEOMETRY["psize"] / 2,) * 2
    assert near.view == (64, 64)
    finer = geometry_of(configuration({"resolution": 2e-8}).scans[0])
    assert finer.pixel_size_m == (2e-8, 2e-8)
    assert finer.view == (48, 48)
    rebinned = geometry_of(configuration(data={"rebin": 2}).scans[0])
    assert rebinned.shape == (16, 16)
    assert rebinned.pixel_size_m == pytest.approx((BEAM.pixel_m,) * 2)


def test_frames_that_other_ranks_hold_too_may_take_half_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    for ranks, limit in ((None, FRAMES.limit), (SimpleNamespace(size=2, cores=1), FRAMES.limit // 2)):
        monkeypatch.setattr("ptystream.plan.team", lambda ranks=ranks: ranks)
        plan = make_plan(configuration(t={"name": "Full", "data": {**SOURCE, "positions": SOURCE_OF_POSITIONS}}))
        budgets = [entry.make(None)[0]._intake.budget for entry in plan.scans for _ in range(2)]
        assert budgets[0].limit == limit and all(budget is budgets[0] for budget in budgets)


def test_scans_with_another_transform_are_told_that_the_first_ones_counts(caplog: pytest.LogCaptureFixture) -> None:
    data = {**SOURCE, "positions": SOURCE_OF_POSITIONS}
    for kind, said in (("numpy", True), ("scipy", False)):
        caplog.clear()
        plan = make_plan(configuration(t={"name": "Full", "ffttype": kind, "data": data}))
        assert plan.context.fft == "scipy"
        assert ("scans.t.ffttype: numpy: all scans of a run use scipy, as the first one, s, does" in caplog.text) == said


@pytest.mark.parametrize(
    ("scan", "data", "path", "remedy"),
    [
        ({"propagation": "nearfield"}, {"energy": None}, "scans.s.propagation: 'nearfield'", "needs data.energy"),
        ({"propagation": "nearfield", "resolution": 1e-8}, {}, "scans.s.resolution: 1e-08", "`resample`"),
        ({"resolution": 1e-14}, {}, "scans.s.resolution: 1e-14", "pixels"),
        ({"illumination": {"model": [[1.0, 2.0]]}}, {}, "scans.s.illumination.model", "(32, 32)"),
        ({"illumination": {"aperture": {"size": 1e-6}}}, {"distance": None}, "scans.s.illumination", "data.energy"),
        (
            {"sample": {"process": {"formula": "Au"}, "model": [[0, 1]]}},
            {"energy": None},
            "scans.s.sample.process",
            "data.energy",
        ),
        ({"share": {"probe": "t"}}, {}, "scans.s.share.probe: 't'", "another scan"),
    ],
)
def test_what_cannot_be_begun_is_told_with_its_path(scan: dict[str, Any], data: dict[str, Any], path: str, remedy: str) -> None:
    found = told(configuration(scan, data))
    assert len(found) == 1
    assert found[0].startswith(path)
    assert remedy in found[0]


def test_an_abstract_model_is_no_scan() -> None:
    with pytest.raises(ConfigurationError, match="what all models have in common"):
        load({"scans": {"s": {"name": "ScanModel", "data": SOURCE}}, "engines": {"a": {"name": "DM"}}})


def test_scans_that_share_begin_alike() -> None:
    second = {"name": "BlockFull", "share": {"probe": "s", "object": "s"}, "data": {**SOURCE, "positions": SOURCE_OF_POSITIONS}}
    found = models_of(configuration({"illumination": {"photons": 9.0}}, t=second))
    assert found["t"].p.illumination.photons == 9.0
    assert found["t"].probe_ids == found["t"].object_ids == ["SsG00"]


def test_an_engine_is_compiled_for_every_set_up() -> None:
    given = configuration({"resample": 2, "coherence": {"energies": [1.0, 0.9]}, "illumination": {"model": "stxm"}})
    warm_up(models_of(given)["s"], [EngineEntry("a", "DM", given.engines[0].parameters, DM)], Context())


def test_in_the_near_field_positions_are_judged_in_its_own_pixels() -> None:
    """A far-field pixel would be a thousandth, and any honest scan would be far off the canvas."""
    parameters = PtyScanParameters(name="ZmqScan", shape=32, energy=7.2, distance=2e-5, psize=1e-6)
    reach = [PtyScan("s", parameters, pixel_m=pixel)._pairing._judge._most for pixel in (None, (1e-6, 1e-6))]
    assert (reach[1] > 1000 * reach[0]).all()


def two(**share: str) -> Any:
    run = make_run(labels=("s", "t"), engines=[{"numiter": 30}])
    second = run.scans["t"].model
    given = second.p.model_copy(update={"share": FullParameters(share=share).share})
    run.scans["t"].model = Full("t", 1, given, second.geometry)
    return run


@pytest.mark.parametrize("order", ["st", "ts"])
def test_two_scans_of_one_run_share_probe_and_object_live(order: str) -> None:
    """The second begins before the first one, or after it; frames of both come in pieces."""
    run = two(probe="s", object="s")
    loop = Loop(run, LoopSettings(min_frames_for_recon=16))
    for first in range(0, BEAM.frames, 23):
        for label in order:
            feed(run, first, min(first + 23, BEAM.frames), label=label)
            loop.step()
    for label in order:
        end(run, label=label)
    while loop.step() is not Step.DONE:
        pass
    held = run.reconstruction
    assert list(held.probes) == list(held.objects) == ["SsG00"]
    assert held.pods.length == 2 * BEAM.frames
    assert run.snapshot({}).positions.shape == (2 * BEAM.frames, 2)
    assert set(held.propagators) == {0, 1}
    assert run.misfit[-1][-1, 0] < 0.5 * run.misfit[0][0, 0]
    metres = run.snapshot({}).positions * run.pixels_m()
    wanted = np.sort(np.concatenate([PLACES, PLACES]), axis=0)
    np.testing.assert_allclose(np.sort(metres, axis=0), wanted, atol=1e-9)


def test_scans_with_other_modes_run_together_and_repeat() -> None:
    run = make_run(labels=("s", "t"), engines=[{"numiter": 2}])
    second = run.scans["t"].model
    given = second.p.model_copy(update={"coherence": FullParameters(coherence={"num_probe_modes": 2}).coherence})
    run.scans["t"].model = Full("t", 1, given, second.geometry)
    loop = Loop(run, LoopSettings(min_frames_for_recon=16))
    for label in "st":
        feed(run, 0, BEAM.frames, label=label)
        end(run, label=label)
    while loop.step() is not Step.DONE:
        pass
    assert run.reconstruction.pods.pods == 2
    assert {len(s.data) for s in run.reconstruction.probes.values()} == {1, 2}
    assert np.isfinite(run.errors[-1]).all()
