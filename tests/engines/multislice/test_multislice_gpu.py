"""Everything refined together on a device: arrays that refuse to become host arrays unasked, and on a real GPU.

The engine has no kernels of its own: what it asks of a device is the array module, transforms and filters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import h5py
import numpy as np
import pytest
import test_journey as journeys
from device import DeviceArray, device, get, put
from problems import BEAM, feed
from scipy import fft
from test_spread_multislice import CASES as REFINED
from test_spread_multislice import SLICES, prepared, same, through

from ptystream.engine import Context
from ptystream.engines import backend
from ptystream.engines.backend import cpu
from ptystream.engines.multislice import byhand, regularisers
from ptystream.engines.multislice.detector import Detector
from ptystream.engines.multislice.journey import Journey, Source, Sums, View, Wanted
from ptystream.engines.multislice.losses import COMPRESSED, LOSSES, compare
from ptystream.engines.multislice.optics import Optics
from ptystream.loop import Loop, LoopSettings, Step
from ptystream.model.scan_model import Full
from ptystream.run import Run

SIDE = BEAM.side
HALF = np.zeros((SIDE, SIDE))
HALF[8:24, 8:24] = 1
RNG = np.random.default_rng(5)
SCANNED = {f"{term}_reg_weight_positions": 100.0 for term in ("fast_axis", "slow_axis", "deformation")}
CASES: dict[str, dict[str, Any]] = {
    **{name: REFINED[name] for name in ("everything", "squares, by the mean, begun from the data", "some of them")},
    "terms and constraints": {
        **SLICES,
        **SCANNED,
        "scan_size": [4, 23],
        "update_probe_pos": 1,
        "mixed_variance_weight": 50.0,
        "probe_reg_constraint_weight": 10.0,
        "probe_constraint_mask": 0.9,
        "window": [0.2, 0.5],
        "window_weight": 1e3,
        "apply_gaussian_filter": 0.5,
        "apply_gaussian_filter_amplitude": 0.5,
        "beta_wedge": 1e5,
        "damping_cutoff_multislice": 0.9,
        "smart_memory": False,
        "modes": (2, 2),
    },
    "shut in": {"probe_reg_constraint_weight": float("inf"), "aperture_mask": HALF, "smooth_rolloff": 0.3, "algorithm": "ml"},
    "a phase alone": {"phase_only_obj": True, "tune_only_probe_phase": True, "backend": "cpu", "algorithm": "lsq_sqrt_2"},
    "a modulus alone": {"tune_only_probe_abs": True, "load_one_by_one": False, "remove_fft_cache": True, "numiter_contiguous": 2},
    "plates": {"phase_plate_in_h5": "plates.h5", "probe_marker": np.arange(92) % 2, "num_slices": 3, "slice_distances": [1e6]},
}


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Devices are emulated, and as strict as CuPy: NumPy makes no host array of what lies there."""
    monkeypatch.setitem(backend.BACKENDS, "gpu", device)
    for name in ("array", "asarray", "ascontiguousarray", "asanyarray", "stack"):
        monkeypatch.setattr(np, name, strict(getattr(np, name)))


def strict(function: Callable[..., Any]) -> Callable[..., Any]:
    def checked(given: Any, *more: Any, **options: Any) -> Any:
        if isinstance(given, DeviceArray) and options.get("like") is None:
            raise TypeError("implicit conversion of a device array to a host array")
        return function(given, *more, **options)

    return checked


@pytest.fixture(autouse=True)
def plates(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(tmp_path / "plates.h5", "w") as file:
        file["configs"] = np.exp(0.5j * np.random.default_rng(0).normal(size=(92, SIDE, SIDE)))
    monkeypatch.chdir(tmp_path)


def made(where: str, settings: dict[str, Any]) -> Run:
    modes = settings.get("modes", (1, 1))
    run = prepared({"compute_batch": 32, **{k: v for k, v in settings.items() if k != "modes"}}, None)
    scan = run.scans["s"]
    coherence = {"num_probe_modes": modes[0], "num_object_modes": modes[1]}
    p = Full.Parameters(illumination=scan.model.p.illumination.model_dump(), coherence=coherence)
    scan.model = Full("s", 0, p, scan.model.geometry)
    run.context = replace(run.context, device=where)
    return run


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("case", CASES)
def test_whatever_comes_and_is_asked_for_gives_the_cpu_result(case: str) -> None:
    same(through(made("cpu", CASES[case])), through(made("gpu", CASES[case])), 1e-6)


@pytest.mark.usefixtures("emulated")
def test_terms_and_constraints_with_edges_are_computed_there_too() -> None:
    """Those that turn rounding into differences, where a run would not come to the same: at one place."""
    on, o = device(Context(precision="double")), waves((2, 3, 12, 10))
    for name, given in {
        "phase_norm": (),
        "absorption_norm": (),
        "total_variation": (2.0, 1.0),
    }.items():
        wanted = getattr(regularisers, name)(np, o, *given)
        found = getattr(regularisers, name)(on.xp, put(o), *given)
        assert found[0] == pytest.approx(wanted[0])
        np.testing.assert_allclose(get(found[1]), wanted[1], rtol=1e-9)
    for sigmas in (None, ((1.0, 0.7), None), (None, ("1.0", 0.7))):
        edges = (0.2, 0.3), (0.5, 0.4)
        wanted = byhand.flipped(np, fft, o, *edges, sigmas)
        np.testing.assert_allclose(get(byhand.flipped(on.xp, on.fft, put(o), *edges, sigmas)), wanted, rtol=1e-7, atol=1e-9)
    found = get(byhand.orthogonal(on.xp, put(o)))
    np.testing.assert_allclose(np.abs(found), np.abs(byhand.orthogonal(np, o)), rtol=1e-7)


def waves(shape: tuple[int, ...]) -> np.ndarray:
    random = np.random.default_rng(2)
    return np.exp(0.3 * random.normal(size=shape) + 0.5j * random.normal(size=shape))


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("kind", [*LOSSES, *COMPRESSED])
def test_every_loss_is_computed_there_too(kind: str) -> None:
    random, xp = np.random.default_rng(1), device(Context(precision="double")).xp
    model, detectors = random.uniform(0.1, 3.0, (4, 6, 5)), random.uniform(size=(3, 6, 5)) if kind in COMPRESSED else None
    measured = random.poisson(2.0, (4, 3) if kind in COMPRESSED else model.shape).astype(float)
    valid = (random.uniform(size=measured.shape) > 0.2).astype(float)
    wanted = compare(np, kind, model, measured, valid, 0.01, detectors)
    found = compare(xp, kind, *map(put, (model, measured, valid)), 0.01, None if detectors is None else put(detectors))
    for name in ("loss", "squares", "slope", "fits"):
        np.testing.assert_allclose(get(getattr(found, name)), getattr(wanted, name), rtol=1e-12, err_msg=name)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("setup", ["near", "blurred", "near, padded and binned", "padded", "binned"])
def test_every_set_up_gives_the_patterns_and_gradients_of_the_cpu(setup: str) -> None:
    compared(setup, device, put, get)


def compared(name: str, make: Any, give: Any, take: Any) -> None:
    """Patterns and gradients of a random set-up, there and on the CPU."""
    s = journeys.setup(name)
    found = []
    for on, bring, back in (
        (cpu(Context(precision="double")), np.asarray, np.asarray),
        (make(Context(precision="double")), give, take),
    ):
        optics = Optics.of(
            s["shape"],
            s["pixel"],
            s["lam"],
            s["distances"],
            cutoff=s["cutoff"],
            real=np.dtype(float),
            put=bring,
            near=s["near"],
            spherical_m=s["cs"],
            spread=s["alpha"],
        )
        pattern = tuple(n // s["bin"] - 2 * s["pad"] for n in s["shape"])
        detector = Detector.of(on, optics, pattern, s["bin"], s["pad"])
        rows = np.arange(len(s["corner"]))
        host, source = journeys.parts(s, journeys.optics_of(s), rows)
        view = View(*(v if k == "corner" or v is None else bring(v) for k, v in vars_of(host).items()))
        source = Source(*(None if v is None else bring(v) for v in vars_of(source).values()))
        wanted = Wanted(positions=True, tilts=True, current=True)
        sums = Sums(
            *(
                bring(np.zeros(shape, kind))
                for shape, kind in (
                    (s["object"].shape, complex),
                    (s["probe"].shape, complex),
                    ((len(rows), 2), float),
                    ((len(rows), 6), float),
                    ((len(rows),), float),
                )
            )
        )
        journey = Journey(on, optics, view, source, wanted)
        exits = journey.forward()
        photons = detector.photons(exits, view.defocus, bring(s["background"]))
        told = compare(on.xp, "lsq", photons, bring(np.full(photons.shape, 0.3)), bring(np.ones((1, 1, 1))), 0.01)
        journey.backward(detector.back(told.slope, exits, view.defocus), sums)
        parts = [photons, sums.object, sums.probe, sums.positions, sums.tilts, sums.current]
        found.append([back(part) for part in parts])
    for wanted_part, part in zip(*found, strict=True):
        np.testing.assert_allclose(part, wanted_part, rtol=1e-7, atol=1e-9 * np.abs(wanted_part).max())


def vars_of(held: Any) -> dict[str, Any]:
    return {field.name: getattr(held, field.name) for field in fields(held)}


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("where", ["cpu", "gpu"])
def test_the_history_lies_on_the_host_or_the_device_as_backend_says(where: str) -> None:
    run = begun("gpu", {"backend": where, "update_probe_pos": 1})
    engine = run.engine
    pairs = engine.descent.history.pairs
    assert len(pairs) > 1
    assert all(isinstance(a, DeviceArray) == (where == "gpu") for pair in pairs for a in (*pair.s.values(), *pair.y.values()))
    assert all(isinstance(held, DeviceArray) for held in engine.at.values())
    state = engine.state()
    held = [*state["quantities"].values(), *(a for pair in state["pairs"].values() for a in pair["s"].values())]
    assert held and not any(isinstance(array, DeviceArray) for array in held)
    run.apply({"do": "resume", "label": "e0"})
    run.apply({"do": "iterate", "iterations": 1, "rows": None})
    patterns = next(run.engine.simulated())[1]
    assert not isinstance(patterns, DeviceArray)
    run.apply({"do": "finish"})
    assert not any(isinstance(s.data, DeviceArray) for s in run.reconstruction.objects.values())


def begun(where: str, settings: dict[str, Any]) -> Run:
    run = made(where, settings)
    loop = Loop(run, LoopSettings(min_frames_for_recon=20))
    feed(run, 0, BEAM.frames)
    for _ in range(4):
        assert loop.step() is Step.WORKED
    return run


@pytest.fixture
def a_gpu() -> Any:
    cupy = pytest.importorskip("cupy", reason="cupy is not installed: no GPU")
    if not cupy.is_available():
        pytest.skip("cupy finds no GPU")
    return cupy


@pytest.mark.parametrize("case", CASES)
def test_a_gpu_agrees_with_the_cpu(case: str, a_gpu: Any) -> None:
    same(through(made("cpu", CASES[case])), through(made("gpu", CASES[case])), 1e-6)


@pytest.mark.parametrize("setup", journeys.EVERYTHING)
def test_patterns_and_gradients_of_a_gpu_are_those_of_the_cpu(setup: str, a_gpu: Any) -> None:
    compared(setup, backend.gpu, a_gpu.asarray, a_gpu.asnumpy)


@pytest.mark.parametrize("where", ["cpu", "gpu"])
def test_the_history_of_a_gpu_lies_where_backend_says(where: str, a_gpu: Any) -> None:
    run = begun("gpu", {"backend": where, "update_probe_pos": 1})
    kinds = {type(a) for pair in run.engine.descent.history.pairs for a in pair.s.values()}
    assert kinds == {np.ndarray if where == "cpu" else a_gpu.ndarray}
    run.apply({"do": "finish"})
