"""The same body on a device: its CUDA kernels as C++ against the oracle, and on a real GPU against the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cuda import COMPILER
from device import DeviceArray, device
from oracle import dm
from test_dm import CASES, FRAMES, add, parameters, problem, start

from ptystream.engines import backend


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch, require: Callable[[str, bool], None]) -> None:
    require("c++", COMPILER is not None)
    monkeypatch.setitem(backend.BACKENDS, "gpu", device)


def compare(engine: Any, q: Any) -> None:
    np.testing.assert_allclose(engine.snapshot().probes["p"].data, q.probe, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(engine.snapshot().objects["o"].data, q.object, rtol=1e-7, atol=1e-7)


@pytest.mark.slow
@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("name", sorted(CASES))
@pytest.mark.parametrize("modes", [(1, 1), (2, 2)])
def test_the_device_form_agrees_with_the_oracle(name: str, modes: tuple[int, int]) -> None:
    p = parameters(**CASES[name])
    engine = start(problem(*modes), device="gpu", **p)
    progress = engine.iterate(4)
    q = dm(problem(*modes), 4, p)
    compare(engine, q)
    np.testing.assert_allclose(progress.errors, q.errors, rtol=1e-7, atol=1e-12)


@pytest.mark.slow
@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize(
    "what", ["extend", "position", "withdrawn", "frame", "mask", "rest", "centre", "average", "restart", "refine", "search"]
)
def test_whatever_the_loop_asks_for_gives_the_cpu_result(what: str) -> None:
    def run(where: str) -> Any:
        refine = {"start": 1, "amplitude": 2.0, "max_shift": 3.0, "method": "GridSearch" if what == "search" else "Annealing"}
        more: dict[str, Any] = {"probe_center_tol": 0.5} if what == "centre" else {}
        more |= {"position_refinement": refine} if what in ("refine", "search") else {}
        rows = 6 if what == "extend" else None
        engine = start(problem(2), device=where, rows=rows, **parameters(subpix="linear", **more))
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
            engine.frames[0].slab(1)[1] = 65535
            engine.frames[0].mask[2:5] = 0
        if what in ("position", "withdrawn", "frame", "mask"):
            engine.revise(np.array([4 if what == "position" else 5]), what)
        progress = engine.iterate(2, np.arange(4, 8) if what == "rest" else None)
        coverage = engine.snapshot(("coverage",)).objects["o"].data
        engine.finish()
        held = engine.reconstruction
        assert held.pods.moved.any() == (what in ("refine", "search"))
        return progress.errors, coverage, held.probes["p"].data, held.objects["o"].data, held.pods.moved

    for wanted, got in zip(run("cpu"), run("gpu"), strict=True):
        assert type(got) is np.ndarray
        np.testing.assert_allclose(got, wanted, rtol=1e-7, atol=1e-9)


@pytest.mark.usefixtures("emulated")
def test_snapshots_are_host_copies() -> None:
    engine = start(problem(), device="gpu", **parameters())
    held = engine.reconstruction.objects["o"]
    assert isinstance(held.data, DeviceArray)
    shot = engine.snapshot().objects["o"].data
    before = shot.copy()
    engine.iterate(1)
    assert type(shot) is np.ndarray
    np.testing.assert_array_equal(shot, before)


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_gpu_agrees_with_the_cpu(name: str) -> None:
    cupy = pytest.importorskip("cupy", reason="cupy is not installed: no GPU")
    if not cupy.is_available():
        pytest.skip("cupy finds no GPU")
    results = []
    for where in ("cpu", "gpu"):
        engine = start(problem(2, 2), device=where, **parameters(**CASES[name]))
        progress = engine.iterate(4)
        engine.finish()
        results.append((progress.errors, engine.reconstruction.probes["p"].data, engine.reconstruction.objects["o"].data))
    for cpu, gpu in zip(*results, strict=True):
        np.testing.assert_allclose(gpu, cpu, rtol=1e-6, atol=1e-7)
