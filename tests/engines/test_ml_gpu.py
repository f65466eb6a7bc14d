"""ML's body on a device: its CUDA kernels as C++ against the oracle and against the CPU, and on a real GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cuda import COMPILER
from device import device
from oracle_ml import ml
from test_dm import FRAMES, add, problem
from test_ml import CASES, near, parameters, start

from ptystream.engines import backend


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch, require: Callable[[str, bool], None]) -> None:
    require("c++", COMPILER is not None)
    monkeypatch.setitem(backend.BACKENDS, "gpu", device)


@pytest.mark.slow
@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("name", sorted(CASES))
def test_the_device_form_agrees_with_the_oracle(name: str) -> None:
    p = parameters(**CASES[name])
    engine = start(near(problem(2)), device="gpu", **p)
    progress = engine.iterate(4)
    q = ml(near(problem(2)), 4, p)
    np.testing.assert_allclose(progress.errors, q.errors, rtol=1e-6)
    np.testing.assert_allclose(engine.snapshot().probes["p"].data, q.probe, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(engine.snapshot().objects["o"].data, q.object, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("what", ["extend", "position", "withdrawn", "frame", "mask", "rest", "average", "restart"])
def test_whatever_the_loop_asks_for_gives_the_cpu_result(what: str) -> None:
    def run(where: str) -> Any:
        rows = 6 if what == "extend" else None
        more = {"ML_type": "poisson", "reg_del2": True, "floating_intensities": True, "wavefield_precond": True}
        engine = start(near(problem(2)), device=where, rows=rows, **parameters(subpix="linear", **more))
        engine.iterate(2)
        if what == "extend":
            assert engine.reconstruction.objects["o"].grow((-40, -40), (60, 60))
            engine.extend(add(engine, np.arange(6, FRAMES)))
        elif what == "restart":
            engine.restart()
        elif what == "average":
            engine.average()
        elif what == "position":
            engine.reconstruction.pods.address[4, :, 4:] += 1
        elif what == "frame":
            engine.frames[0].slab(1)[1] = 7
        elif what == "mask":
            engine.frames[0].mask[2:5] = 0
        if what in ("position", "withdrawn", "frame", "mask"):
            engine.revise(np.arange(FRAMES) if what == "mask" else np.array([4 if what == "position" else 5]), what)
        progress = engine.iterate(3, np.arange(4, 8) if what == "rest" else None)
        coverage = engine.snapshot(("coverage",)).objects["o"].data
        state = engine.state()["float_intensities"]
        engine.finish()
        held = engine.reconstruction
        return progress.errors, progress.misfit[:, :2], coverage, state, held.probes["p"].data, held.objects["o"].data

    for wanted, got in zip(run("cpu"), run("gpu"), strict=True):
        assert type(got) is np.ndarray
        np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_gpu_agrees_with_the_cpu(name: str) -> None:
    cupy = pytest.importorskip("cupy", reason="cupy is not installed: no GPU")
    if not cupy.is_available():
        pytest.skip("cupy finds no GPU")
    results = []
    for where in ("cpu", "gpu"):
        engine = start(near(problem(2, 2)), device=where, **parameters(**CASES[name]))
        progress = engine.iterate(4)
        engine.finish()
        results.append((progress.errors, engine.reconstruction.probes["p"].data, engine.reconstruction.objects["o"].data))
    for cpu, gpu in zip(*results, strict=True):
        np.testing.assert_allclose(gpu, cpu, rtol=1e-6, atol=1e-7)
