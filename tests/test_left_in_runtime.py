"""What engines leave in the `runtime` of a result beside errors: floating intensities, and the modes of relaxed probes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from problems import BEAM, PATTERNS, end, feed, make_run
from test_dumps import configuration, dump

from ptystream.checkpoint import checkpoint_of
from ptystream.engines.ml import ML
from ptystream.engines.opr import DMOPR
from ptystream.loop import Loop, LoopSettings, Step
from ptystream.model.opr import OPR, decomposed
from ptystream.results import result_of
from ptystream.run import Run
from ptystream.storage import ptyr

FACTORS = np.random.default_rng(4).uniform(0.6, 1.4, BEAM.frames)
FLUCTUATING = (PATTERNS * FACTORS[:, None, None]).astype("u2")
FLOATING = [{"numiter": 40, "floating_intensities": True, "scale_precond": True, "probe_update_start": 0}]
WIDE = [{"numiter": 15, "subspace_dim": 3, "probe_update_start": 2, "subpix": None}]


def begun(patterns: np.ndarray, count: int = 50, **settings: Any) -> tuple[Run, Loop]:
    run = make_run(decide_after=40, **settings)
    loop = Loop(run, LoopSettings(min_frames_for_recon=40))
    feed(run, 0, count, patterns=patterns)
    for _ in range(3):
        assert loop.step() is Step.WORKED
    return run, loop


def finished(patterns: np.ndarray, **settings: Any) -> Run:
    run, loop = begun(patterns, **settings)
    feed(run, 50, BEAM.frames, patterns=patterns)
    end(run)
    for _ in range(100):
        if loop.step() is Step.DONE:
            return run
    raise AssertionError("the loop does not end")


def resumed(path: Path, patterns: np.ndarray, **settings: Any) -> Run:
    checkpoint = checkpoint_of(ptyr.read(path))
    run = make_run(decide_after=40, decisions=checkpoint.buffer_decisions["s"], **settings)
    loop = Loop(run, LoopSettings(min_frames_for_recon=40))
    feed(run, 0, 50, patterns=patterns)
    loop.resume(checkpoint)
    return run


@pytest.mark.slow
def test_floating_intensities_are_in_the_file_and_are_those_of_the_beam(tmp_path: Path) -> None:
    run = finished(FLUCTUATING, engines=FLOATING, engine=ML)
    path = ptyr.write(tmp_path / "a.ptyr", result_of(run, configuration(tmp_path)))
    with h5py.File(path) as file:
        held = file["content/runtime/float_intens/s"]
        index, factor = held["index"][()], held["factor"][()]
    assert sorted(index) == list(range(BEAM.frames))
    # Not exactly: what changes slowly over the scan may as well be in the object.
    assert np.corrcoef(factor, FACTORS[index])[0, 1] > 0.6
    np.testing.assert_array_equal(factor, run.intensities)
    back = ptyr.read(path)
    np.testing.assert_array_equal(back.runtime["float_intens"]["s"]["factor"], factor)
    again = ptyr.read(ptyr.write(tmp_path / "b.ptyr", back))
    np.testing.assert_array_equal(again.runtime["float_intens"]["s"]["factor"], factor)


def test_a_run_that_goes_on_from_its_dump_has_the_intensities_that_it_had(tmp_path: Path) -> None:
    run, loop = begun(FLUCTUATING, engines=FLOATING, engine=ML)
    path = dump(run, loop, tmp_path)
    again = resumed(path, FLUCTUATING, engines=FLOATING, engine=ML)
    scale = run.engine.likelihood.scale  # type: ignore[union-attr]
    assert scale.std() > 0.05
    np.testing.assert_array_equal(again.engine.likelihood.scale, scale)  # type: ignore[union-attr]
    np.testing.assert_array_equal(again.floating_intensities()["s"]["factor"], scale)


def test_there_are_none_where_they_do_not_float(tmp_path: Path) -> None:
    run, _ = begun(PATTERNS, engines=[{"numiter": 5}], engine=ML)
    assert run.floating_intensities() == {}
    path = ptyr.write(tmp_path / "a.ptyr", result_of(run, configuration(tmp_path)))
    with h5py.File(path) as file:
        assert not {"float_intens", "OPR_modes", "OPR_coeffs", "OPR_allprobes"} & set(file["content/runtime"])


@pytest.mark.parametrize(("frames", "modes", "dimensions"), [(12, 1, 3), (7, 2, 2), (4, 1, 9)])
def test_modes_and_coefficients_are_the_singular_value_decomposition(frames: int, modes: int, dimensions: int) -> None:
    r = np.random.default_rng(0)
    probes = r.normal(size=(frames * modes, 5, 6)) + 1j * r.normal(size=(frames * modes, 5, 6))
    found, coefficients = decomposed(probes, modes, dimensions)
    assert found.shape == (modes, min(dimensions, frames), 5, 6)
    for mode in range(modes):
        flat = probes[mode::modes].reshape(frames, -1)
        left, values, right = np.linalg.svd(flat, full_matrices=False)
        values[dimensions:] = 0
        np.testing.assert_allclose(
            coefficients[mode] @ found[mode].reshape(-1, 30), (left * values) @ right, rtol=1e-9, atol=1e-9
        )
        np.testing.assert_allclose(np.linalg.norm(found[mode].reshape(-1, 30), axis=1), values[values > 0], rtol=1e-9)
        np.testing.assert_allclose(coefficients[mode].conj().T @ coefficients[mode], np.eye(len(found[mode])), atol=1e-9)


@pytest.mark.slow
def test_of_many_frames_the_leading_modes_are_found_as_well() -> None:
    r = np.random.default_rng(0)
    own, modes = (r.normal(size=shape) + 1j * r.normal(size=shape) for shape in ((600, 3), (3, 400)))
    probes = ((own * [1, 0.3, 0.1]) @ modes + 1e-3 * r.normal(size=(600, 400))).astype(np.complex64)
    found, coefficients = decomposed(probes.reshape(600, 20, 20), 1, 3)
    left, values, right = np.linalg.svd(probes.astype(np.complex128), full_matrices=False)
    best = (left[:, :3] * values[:3]) @ right[:3]
    np.testing.assert_allclose(coefficients[0] @ found[0].reshape(3, -1), best, rtol=0, atol=1e-5 * np.abs(best).max())
    np.testing.assert_allclose(np.linalg.norm(found[0].reshape(3, -1), axis=1), values[:3], rtol=1e-5)
    np.testing.assert_allclose(coefficients[0].conj().T @ coefficients[0], np.eye(3), atol=1e-5)
    np.testing.assert_array_equal(decomposed(probes.reshape(600, 20, 20), 1, 3)[0], found)


def test_dimensions_that_probes_lack_are_left_out() -> None:
    probes = np.arange(1, 5)[:, None, None] * np.ones((4, 3, 3), np.complex64)
    found, coefficients = decomposed(probes, 1, 3)
    assert found.shape == (1, 1, 3, 3)
    assert coefficients.shape == (1, 4, 1)


@pytest.mark.slow
def test_modes_of_relaxed_probes_are_in_the_file_and_give_the_probes_back(tmp_path: Path) -> None:
    run = finished(PATTERNS, engines=WIDE, engine=DMOPR, model=OPR)
    path = ptyr.write(tmp_path / "a.ptyr", result_of(run, configuration(tmp_path)))
    with h5py.File(path) as file:
        runtime, probes = file["content/runtime"], file["content/probe/SsG00/data"][()]
        modes, coefficients = runtime["OPR_modes/SsG00"][()], runtime["OPR_coeffs/SsG00"][()]
        every = runtime["OPR_allprobes/SsG00"]
        assert every == file["content/probe/SsG00/data"]  # the same node: no byte is there twice
        np.testing.assert_array_equal(every[()], probes)
    assert modes.shape == (1, 3, BEAM.side, BEAM.side)
    assert coefficients.shape == (1, BEAM.frames, 3)
    support = (modes[0].reshape(3, -1).T @ coefficients[0].T).T.reshape(probes.shape)
    np.testing.assert_allclose(support, probes, atol=1e-3 * np.abs(probes).max())
    np.testing.assert_array_equal(ptyr.read(path).runtime["OPR_modes"]["SsG00"], modes)


def test_probes_of_each_frame_come_back_from_a_dump(tmp_path: Path) -> None:
    run, loop = begun(PATTERNS, engines=WIDE, engine=DMOPR, model=OPR)
    again = resumed(dump(run, loop, tmp_path), PATTERNS, engines=WIDE, engine=DMOPR, model=OPR)
    before, after = (r.engine.snapshot().probes["SsG00"] for r in (run, again))  # type: ignore[union-attr]
    np.testing.assert_array_equal(before.data, after.data)
    assert after.modes_per_frame == 1
    assert len(after.data) == 50
    assert np.abs(after.data[0] - after.data[1]).max() > 0
    for one in (run, again):  # and a frame that comes then finds its own layer
        feed(one, 50, BEAM.frames)
        one.apply({"do": "take", "scan": "s", "indices": [[50, 10]]})
        assert len(one.engine.snapshot().probes["SsG00"].data) == 60  # type: ignore[union-attr]
