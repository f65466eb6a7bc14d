"""The stochastic engines' body on a device: its CUDA kernels as C++ against the oracle, and on a real GPU against the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cuda import COMPILER
from device import device
from test_stochastic import CASES, EACH, FRAMES, GENTLE, ITERATIONS, add, images, problem, start, wanted

from ptystream.engines import backend


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch, require: Callable[[str, bool], None]) -> None:
    require("c++", COMPILER is not None)
    monkeypatch.setitem(backend.BACKENDS, "gpu", device)


@pytest.mark.slow
@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize(("name", "case"), EACH)
def test_the_device_form_agrees_with_the_oracle(name: str, case: str) -> None:
    engine = start(name, problem(2, 2), device="gpu", **CASES[name][case])
    progress = engine.iterate(ITERATIONS)
    q = wanted(name, problem(2, 2), engine)
    for got, want in zip(images(engine), (q.probe, q.object), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(progress.errors, q.errors, rtol=1e-7, atol=1e-12)


@pytest.mark.slow
@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("name", ["EPIE", "SDR"])
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("what", ["extend", "position", "withdrawn", "mask", "rest", "centre", "average", "restart", "refine"])
def test_whatever_the_loop_asks_for_gives_the_cpu_result(name: str, batch: int, what: str) -> None:
    def run(where: str) -> Any:
        more: dict[str, Any] = {"probe_center_tol": 0.5} if what == "centre" else {}
        if what == "refine":
            more = {"position_refinement": {"start": 2, "amplitude": 2.0, "max_shift": 6.0, "amplitude_decay": False}}
        rows = 6 if what == "extend" else None
        engine = start(name, problem(2), device=where, rows=rows, batch=batch, subpix="linear", **GENTLE[name], **more)
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
        elif what == "mask":
            engine.frames[0].slab(1)[1] = 65535
            engine.frames[0].mask[2:5] = 0
        if what in ("position", "withdrawn", "mask"):
            engine.revise(np.array([4 if what == "position" else 5]), what)
        progress = engine.iterate(2, np.arange(4, 8) if what == "rest" else None)
        coverage = engine.snapshot(("coverage",)).objects["o"].data
        engine.finish()
        held = engine.reconstruction
        assert held.pods.moved.any() == (what == "refine")
        return progress.errors, coverage, held.probes["p"].data, held.objects["o"].data

    for want, got in zip(run("cpu"), run("gpu"), strict=True):
        assert type(got) is np.ndarray
        np.testing.assert_allclose(got, want, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("name", "case"), EACH)
def test_a_gpu_agrees_with_the_cpu(name: str, case: str) -> None:
    cupy = pytest.importorskip("cupy", reason="cupy is not installed: no GPU")
    if not cupy.is_available():
        pytest.skip("cupy finds no GPU")
    results = []
    for where in ("cpu", "gpu"):
        engine = start(name, problem(2, 2), device=where, **CASES[name][case])
        progress = engine.iterate(ITERATIONS)
        results.append((progress.errors, *images(engine)))
    for cpu, gpu in zip(*results, strict=True):
        np.testing.assert_allclose(gpu, cpu, rtol=1e-6, atol=1e-7)
