"""DM_3dBragg against a plain float64 difference map on three-dimensional arrays, and what each parameter does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from cuda import COMPILER
from device import device
from oracle import shift_matrix

from ptystream.engine import Context
from ptystream.engines import backend
from ptystream.engines.bragg import DMBragg3d, SampleSupportParameters
from ptystream.engines.sample_support import Lattice, bounds, layer_profile, smoothed_profile
from ptystream.model.bragg import BraggGeometry, extrusion, rocking_curve
from ptystream.reconstruction import PodTable, Reconstruction, Storage, Volume

SHAPE, CANVAS, FIRST = (8, 16, 15), (13, 27, 24), (-4, -11, 3)
GEOMETRY = BraggGeometry(SHAPE, 8.5, 2.0, (200e-6, 200e-6), 0.02, 22.32)
R3, R1, R2 = GEOMETRY.resolution_m
ROWS = SHAPE[0] * SHAPE[1]


@dataclass
class Problem:
    probe: np.ndarray
    object: np.ndarray
    counts: np.ndarray
    mask: np.ndarray
    corner: np.ndarray
    remainder: np.ndarray
    weight: np.ndarray
    waves: Any = None

    @property
    def photons(self) -> np.ndarray:
        return (self.counts * self.mask).sum(axis=(1, 2, 3))

    def window(self, j: int) -> tuple[slice, ...]:
        return tuple(slice(c, c + n) for c, n in zip(self.corner[j], SHAPE, strict=True))


def problem(frames: int = 5, seed: int = 0) -> Problem:
    r = np.random.default_rng(seed)

    def noise(*shape: int) -> np.ndarray:
        return r.normal(size=shape) + 1j * r.normal(size=shape)

    corner = np.column_stack([r.integers(0, c - n + 1, frames) for c, n in zip(CANVAS, SHAPE, strict=True)])
    q = Problem(
        5 * GEOMETRY.extruded(noise(GEOMETRY.plane().view[0], SHAPE[2])),
        1 + 0.4 * noise(*CANVAS),
        np.zeros((frames, *SHAPE)),
        (r.random(SHAPE) > 0.1).astype(np.uint8),
        corner,
        r.uniform(-0.5, 0.5, (frames, 2)).astype("f4").astype(float),
        r.uniform(0.8, 1.2, frames).astype("f4").astype(float),
    )
    for j in range(frames):
        wave = q.weight[j] * q.probe * q.object[q.window(j)]
        q.counts[j] = r.poisson(np.abs(np.fft.fftn(wave, norm="ortho")) ** 2)
    q.probe, q.object = q.probe + noise(*SHAPE), 1 + 0.05 * noise(*CANVAS)
    return q


class Store:
    slab_frames, dtype, limit, shape = 3, np.dtype("u2"), 65535.0, (ROWS, SHAPE[2])

    def __init__(self, q: Problem) -> None:
        self.mask = q.mask.reshape(self.shape)
        self._counts = np.zeros((-(-len(q.counts) // 3) * 3, *self.shape), "u2")
        self._counts[: len(q.counts)] = q.counts.reshape(-1, *self.shape)

    def slab(self, number: int) -> np.ndarray:
        return self._counts[3 * number : 3 * number + 3]


OFF: dict[str, Any] = {"subpix": None, "probe_support": None, "sample_support": None, "extruded": False, "probe_update_start": 1}


def add(made: Reconstruction, q: Problem, frames: np.ndarray) -> np.ndarray:
    address = np.zeros((len(frames), 1, 6), np.int32)
    address[:, 0, 4:] = q.corner[frames, 1:] + FIRST[1:]
    frame = np.stack([np.zeros(len(frames), int), frames], axis=1)
    part, weight = q.remainder[frames][:, None].astype("f4"), q.weight[frames][:, None].astype("f4")
    return made.pods.append(address, part, weight, frame, None, q.corner[frames, 0] + FIRST[0])


def volumes(q: Problem) -> Reconstruction:
    """Probe and object of a problem, and no frame yet."""
    common: dict[str, Any] = {"slice_m": R3, "bragg": GEOMETRY}
    return Reconstruction(
        {"p": Volume(q.probe.copy(), (R1, R2), (0, 0), 0.0, **common)},
        {"o": Volume(q.object.copy(), (R1, R2), FIRST[1:], 1.0, first=FIRST[0], **common)},
        PodTable(1),
        {0: (rocking_curve(SHAPE[0]),)},
    )


def start(
    q: Problem, rows: int | None = None, precision: str = "double", threads: int = 1, device: str = "cpu", **parameters: Any
) -> DMBragg3d:
    made = volumes(q)
    engine = DMBragg3d(DMBragg3d.Parameters(**{**OFF, **parameters}))
    add(made, q, np.arange(len(q.counts) if rows is None else rows))
    mean, brightest = float(q.photons.mean() / np.prod(SHAPE)), float(q.photons.max())
    engine.start(
        made, {0: Store(q)}, Context(precision=precision, threads=threads, mean_photons=mean, brightest_photons=brightest)
    )
    return engine


def moved(q: Problem, j: int, kind: str | None) -> np.ndarray:
    y, x = (shift_matrix(n, d, kind) for n, d in zip(SHAPE[1:], q.remainder[j], strict=True))
    return q.weight[j] * np.stack([y @ part @ x.T for part in q.probe])


def oracle(q: Problem, iterations: int, **changed: Any) -> tuple[Problem, list[list[float]]]:
    """Formulas of the difference map, three-dimensional transforms, loops over frames."""
    p = DMBragg3d.Parameters(**{**OFF, **changed})
    q = replace(q, probe=q.probe.copy(), object=q.object.copy())
    q.waves = [moved(q, j, p.subpix) * q.object[q.window(j)] for j in range(len(q.counts))]
    errors = []
    mean = q.photons.mean() / np.prod(SHAPE)
    bound = 0.25 * p.fourier_relax_factor**2 * q.photons.max() / np.prod(SHAPE)
    previous = np.zeros_like(q.probe)
    for iteration in range(iterations):
        found = []
        for j in range(len(q.counts)):
            po = moved(q, j, p.subpix) * q.object[q.window(j)]
            f = np.fft.fftn((1 + p.alpha) * po - p.alpha * q.waves[j], norm="ortho")
            a, m = np.abs(f), np.sqrt(q.counts[j])
            error = (q.mask * (a - m) ** 2).sum() / q.mask.sum()
            photon = (q.mask * (np.abs(np.fft.fftn(po, norm="ortho")) ** 2 - q.counts[j]) ** 2 / (q.counts[j] + 1)).mean()
            if error <= bound:
                change = po - q.waves[j]
            else:
                factor = np.where(q.mask, (m + np.sqrt(bound / error) * (a - m)) / (a + 1e-10), 1)
                change = np.fft.ifftn(factor * f, norm="ortho") - p.alpha * po - (1 - p.alpha) * q.waves[j]
            q.waves[j] = q.waves[j] + change
            found.append([error, photon, (np.abs(change) ** 2).mean()])
        errors.append(np.mean(found, axis=0).tolist())
        do_probe = p.probe_update_start <= iteration
        for inner in range(p.overlap_max_iterations):
            if p.update_object_first or inner > 0 or not do_probe:
                _object(q, p, mean, iteration)
            if not do_probe:
                break
            _probe(q, p)
            change = np.sqrt((np.abs(q.probe - previous) ** 2).sum() / (np.abs(q.probe) ** 2).sum())
            previous = q.probe.copy()
            if change < p.overlap_converge_factor:
                break
    return q, errors


def _object(q: Problem, p: Any, mean: float, iteration: int) -> None:
    from scipy.ndimage import gaussian_filter

    old, s = q.object, p.obj_smooth_std
    if s:
        old = gaussian_filter(old.real, s) + 1j * gaussian_filter(old.imag, s)
    top, bottom = p.object_inertia * mean * old, np.full(CANVAS, p.object_inertia * mean)
    for j, wave in enumerate(q.waves):
        view = moved(q, j, p.subpix)
        top[q.window(j)] += view.conj() * wave
        bottom[q.window(j)] += np.abs(view) ** 2
    q.object = top / bottom
    if p.clip_object:
        size = np.abs(q.object)
        q.object *= np.clip(size, *p.clip_object) / size
    support = p.sample_support
    if support is None:
        return
    index = np.stack(np.meshgrid(*(np.arange(n) for n in CANVAS), indexing="ij"), axis=-1)
    x, z, y = np.moveaxis(GEOMETRY.to_cartesian((index + FIRST) * (R3, R1, R2)), -1, 0)
    if support.shrinkwrap is None:
        far = np.abs(z) if support.type == "thinlayer" else np.hypot(x, y)
        q.object[far > support.size / 2] *= support.coefficient
    elif iteration >= support.shrinkwrap.start:
        light = bottom - p.object_inertia * mean
        profile = layer_profile(np.abs(q.object), light, Lattice(FIRST, CANVAS, (R3, R1, R2), GEOMETRY.theta_deg))
        value = smoothed_profile(profile.value, support.shrinkwrap.smooth)
        low, high = bounds(profile.s, value, support.shrinkwrap.cutoff, monotonic=support.shrinkwrap.monotonic)
        q.object[(z < low) | (z > high)] *= support.coefficient


def _probe(q: Problem, p: Any) -> None:
    inertia = p.probe_inertia * len(q.waves)
    top, bottom = np.zeros(SHAPE, complex), np.zeros(SHAPE)
    for j, wave in enumerate(q.waves):
        y, x = (shift_matrix(n, d, p.subpix) for n, d in zip(SHAPE[1:], q.remainder[j], strict=True))
        seen = q.weight[j] * q.object[q.window(j)]
        residual = seen.conj() * (wave - moved(q, j, p.subpix) / q.weight[j] * seen)
        top += np.stack([y.T @ part @ x for part in residual])
        bottom += np.stack([(y.T @ part @ x).real for part in np.abs(seen) ** 2 + 0j])
    weight = bottom + inertia
    q.probe = q.probe + top / weight
    matrix = extrusion(GEOMETRY).toarray()
    if p.extruded:
        root = np.sqrt(np.repeat(weight.mean(axis=(1, 2)), SHAPE[1]))[:, None]
        flat = np.linalg.lstsq(root * matrix, root * q.probe.reshape(ROWS, -1), rcond=None)[0]
        q.probe = (matrix @ flat).reshape(SHAPE)
    if p.probe_support is not None:
        y, x = np.arange(matrix.shape[1])[:, None] - matrix.shape[1] // 2, np.arange(SHAPE[2]) - SHAPE[2] // 2
        disc = np.pi * (y**2 + x**2) < p.probe_support * SHAPE[1] * SHAPE[2]
        q.probe = q.probe * ((matrix @ disc).reshape(SHAPE) > 0.5)


FIXED = {"size": 12 * R1, "shrinkwrap": None}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "alpha": {"alpha": 0.7},
    "linear": {"subpix": "linear"},
    "probe first": {"update_object_first": False},
    "bound": {"fourier_relax_factor": 0.5},
    "clip": {"clip_object": (0.9, 1.1)},
    "smooth": {"obj_smooth_std": 1.5, "object_inertia": 0.5},
    "inertia": {"probe_inertia": 0.5},
    "one inner iteration": {"overlap_max_iterations": 1},
    "until it rests": {"overlap_converge_factor": 1e-4},
    "late probe": {"probe_update_start": 3},
    "extruded": {"extruded": True},
    "probe support": {"probe_support": 0.3},
    "layer": {"sample_support": FIXED},
    "coefficient": {"sample_support": {**FIXED, "coefficient": 0.6}},
    "rod": {"sample_support": {**FIXED, "type": "rod", "size": 10 * R2}},
    "shrunk": {"sample_support": {"shrinkwrap": {"start": 2}}},
    "shrunk, sharp": {"sample_support": {"shrinkwrap": {"start": 1, "smooth": None, "cutoff": 0.9}}},
    "shrunk, not monotonic": {"sample_support": {"shrinkwrap": {"start": 0, "cutoff": 0.6, "monotonic": False}}},
}


@pytest.mark.parametrize("case", CASES)
def test_iterations_are_those_of_the_oracle(case: str) -> None:
    q, given = problem(), CASES[case]
    engine = start(q, **given)
    progress = engine.iterate(4)
    engine.finish()
    wanted, errors = oracle(q, 4, **given)
    assert progress.errors == pytest.approx(np.array(errors), rel=1e-7)
    assert np.abs(engine.reconstruction.probes["p"].data - wanted.probe).max() < 1e-7 * np.abs(wanted.probe).max()
    assert np.abs(engine.reconstruction.objects["o"].data - wanted.object).max() < 1e-7 * np.abs(wanted.object).max()


PLAIN = oracle(problem(), 4)[0]


@pytest.mark.parametrize("case", [case for case in CASES if case != "plain"])
def test_each_case_differs_from_the_plain_one(case: str) -> None:
    other = oracle(problem(), 4, **CASES[case])[0]
    assert not np.allclose(other.object, PLAIN.object, rtol=1e-3)


@pytest.mark.parametrize(
    "given",
    [
        {"probe_fourier_support": 0.2},
        {"probe_center_tol": 1e-3, "subpix": None},
        {"fourier_power_bound": 30.0},
        {"subpix": "fourier"},
        {"subpix": "linear", "subpix_start": 2},
    ],
)
def test_parameters_shared_with_the_flat_engine_act(given: dict[str, Any]) -> None:
    found = []
    for parameters in ({}, given):
        engine = start(problem(), **parameters)
        engine.iterate(4)
        engine.finish()
        found.append(engine.reconstruction.objects["o"].data)
    assert np.isfinite(found[1]).all()
    assert not np.allclose(*found, rtol=1e-3)


def test_plot_gives_the_profile_and_switches_say_what_is_told() -> None:
    support = {"shrinkwrap": {"start": 1, "plot": True}}
    engine = start(problem(), sample_support=support, record_local_error=True)
    assert "shrinkwrap" not in engine.iterate(1).more
    told = engine.iterate(1)
    s, profile, low, high = told.more["shrinkwrap"]
    assert len(s) == len(profile)
    assert s[0] <= low < high <= s[-1]
    assert told.local is not None
    assert told.local.shape == (5, 3)
    assert not np.isnan(told.misfit[:, :2]).any()
    quiet = start(problem(), sample_support={"shrinkwrap": {"start": 0}}, compute_log_likelihood=False).iterate(1)
    assert quiet.more == {}
    assert np.isnan(quiet.misfit).all()


def test_precision_and_threads_change_little_and_nothing() -> None:
    given = {"subpix": "linear", "extruded": True, "sample_support": {"shrinkwrap": {"start": 1}}}
    results = []
    for precision, threads in (("double", 1), ("single", 1), ("single", 2)):
        engine = start(problem(9), precision=precision, threads=threads, **given)
        engine.iterate(3)
        engine.finish()
        results.append(engine.reconstruction.objects["o"].data)
    assert np.abs(results[1] - results[0]).max() < 1e-3 * np.abs(results[0]).max()
    assert (results[1] == results[2]).all()


@pytest.mark.parametrize("case", ["plain", "extruded", "probe support", "shrunk", "rod", "linear", "smooth"])
def test_the_device_form_gives_the_cpu_result(
    case: str, monkeypatch: pytest.MonkeyPatch, require: Callable[[str, bool], None]
) -> None:
    require("c++", COMPILER is not None)
    monkeypatch.setitem(backend.BACKENDS, "gpu", device)
    results = []
    for where in ("cpu", "gpu"):
        refine = {"position_refinement": SEARCH} if case == "linear" else {}
        engine = start(problem(4), device=where, rows=3, **CASES[case], **refine)
        engine.iterate(2)
        engine.reconstruction.objects["o"].grow_slices(FIRST[0] - 2, FIRST[0] + 3)
        engine.extend(add(engine.reconstruction, problem(4), np.arange(3, 4)))
        engine.revise(np.array([0]), "withdrawn")
        engine.iterate(2)
        engine.finish()
        results.append(engine.reconstruction.objects["o"].data)
    assert np.abs(results[0] - results[1]).max() < 1e-7 * np.abs(results[0]).max()


def test_frames_come_grow_the_volume_move_and_go() -> None:
    q = problem(6)
    engine = start(q, rows=4)
    engine.iterate(2)
    held = engine.reconstruction.objects["o"]
    before = held.data.copy()
    held.grow_slices(FIRST[0] - 3, FIRST[0] + CANVAS[0])
    held.grow((FIRST[1] - 2, FIRST[2]), (FIRST[1] + CANVAS[1], FIRST[2] + CANVAS[2] + 5), margin=1)
    assert held.corner == (FIRST[0] - 4, FIRST[1] - 2, FIRST[2])
    assert (held.data[4:, 2:, : CANVAS[2]] == before).all()
    engine.extend(add(engine.reconstruction, q, np.arange(4, 6)))
    assert engine.iterate(1).frames == 6
    assert engine.iterate(1, np.array([5])).frames < 6
    engine.reconstruction.pods.depth[2] -= 1
    engine.revise(np.array([2]), "position")
    engine.revise(np.array([0]), "withdrawn")
    assert engine.iterate(2).frames == 5
    lit = engine.snapshot(("coverage",)).objects["o"].data
    assert lit.shape == (1, *held.shape)
    assert np.isfinite(engine.iterate(1).errors).all()


def test_growing_is_complete_at_the_end() -> None:
    """Waves that are made from the same probe and object: the same sums."""
    q = problem(6)
    q.object = np.ones(CANVAS, complex)
    growing, whole = start(q, rows=2), start(q)
    growing.extend(add(growing.reconstruction, q, np.arange(2, 6)))
    for engine in (growing, whole):
        engine.iterate(3)
        engine.finish()
    mine, other = (e.reconstruction.objects["o"].data for e in (growing, whole))
    assert mine == pytest.approx(other, abs=1e-9)


def known_problem() -> Problem:
    """Probe and object are what the frames were made of."""
    q = problem(6)
    r = np.random.default_rng(4)
    q.object = 1 + 0.4 * (r.normal(size=CANVAS) + 1j * r.normal(size=CANVAS))
    for j in range(len(q.counts)):
        q.counts[j] = np.rint(np.abs(np.fft.fftn(moved(q, j, "linear") * q.object[q.window(j)], norm="ortho")) ** 2)
    return q


HELD = {"object_inertia": 1e9, "probe_update_start": 99, "subpix": "linear"}
SEARCH = {"method": "GridSearch", "start": 0, "amplitude": 1.5 * R1, "max_shift": 2.5 * R1, "amplitude_decay": False}


@pytest.mark.parametrize(
    ("change", "iterations", "found"),
    [
        ({}, 1, True),
        ({"metric": "photon"}, 1, True),
        ({"method": "Annealing", "nshifts": 40, "amplitude": 0.6 * R1}, 25, True),
        ({"start": 1}, 1, False),
        ({"max_shift": 0.2 * R1}, 1, False),
        ({"amplitude": 0.3 * R1}, 1, False),
        ({"interval": 2, "start": 0, "amplitude": 0.5 * R1}, 2, False),
    ],
)
def test_frames_are_brought_back_to_where_they_were(change: dict[str, Any], iterations: int, found: bool) -> None:
    """Sub-pixel places in (r1, r2): a step along the beam, which r3 would be for, changes nothing."""
    q = known_problem()
    truth = q.corner[:, 1:] + q.remainder
    engine = start(q, position_refinement={**SEARCH, **change}, **HELD)
    pods = engine.reconstruction.pods
    pods.address[2, 0, 4:] += np.array([1, 0])
    engine.revise(np.array([2]), "position")
    assert engine.tiles[0].pods[0].corner.shape == (SHAPE[0] * len(engine.tiles[0]), 2)
    engine.iterate(iterations)
    now = pods.address[:, 0, 4:] - np.array(FIRST[1:]) + pods.remainder[:, 0]
    off = np.abs(now - truth).max(axis=1)
    assert (off[2] < 0.3) == found
    assert off[[0, 1, 3, 4, 5]].max() < 0.5
    assert np.hypot(*pods.moved[2]) <= {**SEARCH, **change}["max_shift"] * (1 + 1e-9)


def test_refinement_stops_where_it_is_told_to() -> None:
    engine = start(known_problem(), position_refinement={**SEARCH, "start": 0, "stop": 1}, **HELD)
    engine.reconstruction.pods.address[2, 0, 4:] += np.array([1, 1])
    engine.revise(np.array([2]), "position")
    engine.iterate(1)
    first = engine.reconstruction.pods.moved.copy()
    assert np.abs(first).max() > 0
    engine.iterate(2)
    assert (engine.reconstruction.pods.moved == first).all()


def test_flat_storages_are_refused() -> None:
    made = Reconstruction({"p": Storage(np.ones((1, 8, 8)), None)}, {"o": Storage(np.ones((1, 8, 8)), None)}, PodTable(1))
    with pytest.raises(ValueError, match="Bragg3dModel"):
        DMBragg3d(DMBragg3d.Parameters()).start(made, {}, Context())


@pytest.mark.parametrize("given", [{"type": "ball"}, {"size": 0.0}, {"coefficient": 1.5}, {"shrinkwrap": {"cutoff": 1.0}}])
def test_supports_that_cannot_be_are_errors(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(given))):
        SampleSupportParameters(**given)
