"""Position refinement: one step against a plain search, what each parameter does, and that it finds the places."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
from oracle import Problem, shift_matrix
from scipy.ndimage import gaussian_filter
from test_dm import FRAMES, SIDE, add, parameters, start
from test_dm import problem as random_problem
from test_stochastic import start as begin

from ptystream.detectors.simulated.pictures import moon
from ptystream.engine import Context
from ptystream.engines.dm import DM
from ptystream.engines.epie import EPIE
from ptystream.engines.parameters import PositionRefinementParameters
from ptystream.engines.raar import RAAR
from ptystream.engines.refinement import REACH, lattice
from ptystream.engines.sdr import SDR
from ptystream.params.errors import ConfigurationError
from ptystream.params.load import check
from ptystream.reconstruction import PodTable, Reconstruction, Storage, nearest

FIRST = {"start": 0, "amplitude_decay": False, "max_shift": 8.0}


def problem(probes: int = 1, objects: int = 1, frames: int = FRAMES) -> Problem:
    """A smooth object, nearly known, and frames that were taken up to two pixels from where they were measured."""
    q, r = random_problem(probes, objects, frames=frames), np.random.default_rng(8)
    smooth = [gaussian_filter(r.normal(size=(2, objects, 34, 35)), (0, 0, s, s)) for s in (1.5, 3.0)]
    q.object = 1 + sum(0.3 * (part[0] + 1j * part[1]) / part.std() for part in smooth)[:, 2:-2, 2:-2]
    far = r.integers(-2, 3, q.corner.shape)
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE // 2
    q.probe = q.probe * np.exp(-(y**2 + x**2) / 30)
    true = np.clip(q.corner + far, 0, np.array([30, 31]) - SIDE)
    for j, (y, x) in enumerate(true):
        waves = q.probe[:, None] * q.object[None, :, y : y + SIDE, x : x + SIDE]
        counts = (np.abs(np.fft.fft2(waves, norm="ortho")) ** 2).sum(axis=(0, 1))
        q.counts[j] = np.where(q.counts[j] >= 65535, 65535, r.poisson(counts))
    return q


def refined(q: Problem, *, refine: Any, iterations: int = 1, rows: int | None = None, threads: int = 1, **given: Any) -> Any:
    """A DM engine after some iterations, positions in object pixels."""
    engine = start(q, threads=threads, rows=rows, position_refinement=refine, **parameters_of(**given))
    engine.iterate(iterations)
    return engine


def parameters_of(**given: Any) -> dict[str, Any]:
    """With an object that hardly gives way to frames in wrong places."""
    given = {"object_inertia": 100.0, "probe_update_start": 99} | given
    return {k: v for k, v in parameters(**given).items() if k != "position_refinement"}


def places(engine: Any) -> np.ndarray:
    """(frame, pod, 2), object pixels, in the problem's own coordinates."""
    table = engine.reconstruction.pods
    return table.address[:, :, 4:] - np.array([-7, 5]) + table.remainder.astype(float)


def measured(q: Problem) -> np.ndarray:
    return q.corner + q.remainder


def misfit(q: Problem, engine: Any, j: int, place: np.ndarray, subpix: str | None, metric: str) -> float:
    """What the metric says of a frame at a place, from the formulas."""
    probe, storage = engine.reconstruction.probes["p"].data, engine.reconstruction.objects["o"]
    whole = np.floor(place + 0.5).astype(int) if subpix else np.round(place - q.remainder[j]).astype(int)
    s = [shift_matrix(SIDE, d, subpix) for d in place - whole]
    y, x = whole + np.array([-7, 5]) - np.array(storage.offset)
    intensity = np.zeros((SIDE, SIDE))
    for k in range(len(probe)):
        for o in storage.data:
            wave = q.weight[j] * (s[0] @ probe[k] @ s[1].T) * o[y : y + SIDE, x : x + SIDE]
            intensity += np.abs(np.fft.fft2(wave, norm="ortho")) ** 2
    counts, valid = q.counts[j], q.valid[j]
    if metric == "fourier":
        return float((valid * (np.sqrt(intensity) - np.sqrt(counts)) ** 2).sum() / valid.sum())
    return float((valid * (intensity - counts) ** 2 / (counts + 1)).sum() / SIDE**2)


# ------------------------------------------------------------------ one step


@pytest.mark.parametrize("metric", ["fourier", "photon"])
@pytest.mark.parametrize("subpix", [None, "linear", "fourier"])
@pytest.mark.parametrize(("probes", "objects"), [(1, 1), (2, 2)])
def test_a_grid_search_finds_what_a_plain_search_finds(metric: str, subpix: str | None, probes: int, objects: int) -> None:
    q = problem(probes, objects)
    refine = {**FIRST, "method": "GridSearch", "amplitude": 2.0, "metric": metric}
    engine = refined(q, refine=refine, subpix=subpix)
    steps = np.arange(-4, 5) / 2 if subpix else np.arange(-2, 3)
    trials = [np.array([y, x]) for y in steps for x in steps if y * y + x * x <= 4 + 1e-9]
    assert len(trials) == len(lattice(2.0, np.ones(2), fine=subpix is not None)) + 1
    found, moved = places(engine), 0
    for j in range(FRAMES):
        errors = [misfit(q, engine, j, measured(q)[j] + step, subpix, metric) for step in trials]
        wanted = measured(q)[j] + trials[int(np.argmin(errors))]
        np.testing.assert_allclose(found[j], np.tile(wanted, (probes * objects, 1)), atol=1e-6)
        moved += int(np.abs(wanted - measured(q)[j]).max() > 0)
    assert moved > FRAMES // 2
    np.testing.assert_allclose(engine.reconstruction.pods.moved, found[:, 0] - measured(q), atol=1e-6)


@pytest.mark.parametrize("subpix", [None, "linear"])
def test_annealing_takes_the_best_of_its_shifts_or_stays(subpix: str | None) -> None:
    q = problem(2, 1)
    engine = refined(q, refine={**FIRST, "amplitude": 3.0, "nshifts": 8}, subpix=subpix)
    steps = np.stack([engine.refinement._steps(tile, 0, 3.0, np.ones(2))[:, 0] for tile in engine.tiles])
    assert (np.hypot(*steps[0].T) <= 3.0 + 1e-9).all()
    assert {tuple(v) for v in np.sign(steps[0, :4]).astype(int)} == {(1, 1), (1, -1), (-1, -1), (-1, 1)}
    found, moved = places(engine)[:, 0], 0
    drawn = np.concatenate([engine.refinement._steps(t, 0, 3.0, np.ones(2)).transpose(1, 0, 2) for t in engine.tiles])
    for j in range(FRAMES):
        trials = np.concatenate([np.zeros((1, 2)), drawn[j] if subpix else np.rint(drawn[j])])
        errors = [misfit(q, engine, j, measured(q)[j] + step, subpix, "fourier") for step in trials]
        np.testing.assert_allclose(found[j], measured(q)[j] + trials[int(np.argmin(errors))], atol=1e-6)
        moved += int(np.argmin(errors) > 0)
    assert moved > FRAMES // 2


def test_tiles_see_their_new_places_and_what_comes_after_is_as_if_they_had_been_there() -> None:
    given = {**FIRST, "amplitude": 2.0, "stop": 1}
    engine = start(problem(2, 2), position_refinement=given, **parameters_of(subpix="linear"))
    held = [[(pod.corner, pod.remainder) for pod in tile.pods] for tile in engine.tiles]
    engine.iterate(1)
    for tile, arrays in zip(engine.tiles, held, strict=True):
        for k, pod in enumerate(tile.pods):
            assert pod.corner is arrays[k][0]
            assert pod.remainder is arrays[k][1]
            np.testing.assert_array_equal(pod.corner, engine.reconstruction.pods.address[tile.rows, k, 4:])
            np.testing.assert_array_equal(pod.remainder, engine.reconstruction.pods.remainder[tile.rows, k])
    before = places(engine)
    engine.iterate(2)
    np.testing.assert_array_equal(places(engine), before)


def test_the_order_of_arrival_and_the_number_of_threads_change_no_step() -> None:
    q = problem(frames=40)
    refine = {**FIRST, "amplitude": 2.0}
    held = [places(refined(q, refine=refine, threads=n, iterations=2)) for n in (1, 3)]
    np.testing.assert_array_equal(held[0], held[1])
    order = np.random.default_rng(5).permutation(40)
    turned = start(q, rows=0, position_refinement=refine, **parameters_of())
    for part in np.split(order, [1, 17, 39]):
        turned.extend(add(turned, part))
    turned.iterate(2)
    np.testing.assert_allclose(places(turned)[np.argsort(order)], held[0], atol=1e-5)


def test_what_frames_illuminate_is_known_at_their_new_places() -> None:
    engine = start(problem(frames=40), position_refinement={**FIRST, "amplitude": 2.0}, **parameters_of(subpix="linear"))
    engine.iterate(2, np.arange(10))
    assert engine.reconstruction.pods.moved[:4].any()
    seen = engine.snapshot(("coverage",)).objects["o"].data
    engine.sight.subpix = "linear"
    summed = engine.overlap.coverage(engine.tiles)[0]
    np.testing.assert_allclose(seen.real, summed, atol=1e-9 * summed.max())


# ------------------------------------------------------------------ bounds


@pytest.mark.slow
@pytest.mark.parametrize("method", ["Annealing", "GridSearch"])
@pytest.mark.parametrize("subpix", [None, "linear"])
def test_no_frame_ever_goes_further_than_max_shift_from_where_it_was_measured(method: str, subpix: str | None) -> None:
    q = problem(2, 1)
    engine = refined(q, refine={**FIRST, "method": method, "amplitude": 2.0, "max_shift": 2.5}, subpix=subpix, iterations=12)
    far = np.hypot(*(places(engine)[:, 0] - measured(q)).T)
    assert (far <= 2.5 + 1e-5).all()
    assert far.max() > 2.0
    free = refined(q, refine={**FIRST, "method": method, "amplitude": 2.0}, subpix=subpix, iterations=12)
    assert np.hypot(*(places(free)[:, 0] - measured(q)).T).max() > 2.5 + 1e-5


def test_the_object_is_padded_by_max_shift_and_never_beyond_a_canvas_that_can_be_held(caplog: Any) -> None:
    q = problem()
    engine = refined(q, refine={"start": 50, "max_shift": 9.5})
    storage = engine.reconstruction.objects["o"]
    low, high = np.array(storage.offset), np.add(storage.offset, storage.shape)
    assert (low <= q.corner.min(axis=0) + np.array([-7, 5]) - 10).all()
    assert (high >= q.corner.max(axis=0) + np.array([-7, 5]) + SIDE + 10).all()
    with caplog.at_level(logging.WARNING):
        vast = refined(q, refine={**FIRST, "amplitude": 6.0, "max_shift": 1e9}, iterations=3)
    vast.configure(vast.p)
    assert caplog.text.count("cannot be padded") == 1
    assert vast.reconstruction.objects["o"].shape == (30, 31)
    inside = vast.reconstruction.pods.address[:, 0, 4:] - np.array([-7, 5])
    assert (inside >= 0).all() and (inside + SIDE <= (30, 31)).all()


def test_whole_pixels_where_subpix_is_off_and_a_warning_where_nothing_can_move(caplog: Any) -> None:
    q = problem()
    engine = refined(q, refine={**FIRST, "amplitude": 3.0}, subpix=None, iterations=3)
    moved = places(engine)[:, 0] - measured(q)
    np.testing.assert_allclose(moved, np.rint(moved), atol=1e-6)
    assert np.abs(moved).max() >= 1
    with caplog.at_level(logging.WARNING):
        still = refined(q, refine={**FIRST, "amplitude": 0.9}, subpix=None, iterations=3)
    assert caplog.text.count("subpix is off: nothing will move") == 1
    np.testing.assert_allclose(places(still)[:, 0], measured(q), atol=1e-6)
    with caplog.at_level(logging.WARNING):
        refined(q, refine=True, subpix="linear", iterations=3)
    assert caplog.text.count("1e-06 pixels is less than a hundredth of an object pixel") == 1
    late = refined(q, refine={**FIRST, "amplitude": 1.5}, subpix="linear", subpix_start=50, iterations=2)
    moved = places(late)[:, 0] - measured(q)
    np.testing.assert_allclose(moved, np.rint(moved), atol=1e-6)


def test_a_position_that_the_source_corrects_is_a_new_measured_one() -> None:
    q = problem()
    engine = refined(q, refine={**FIRST, "amplitude": 2.0, "max_shift": 2.0}, subpix="linear", iterations=6)
    table = engine.reconstruction.pods
    table.address[:, :, 4:] += 1
    table.moved[:] = 0
    engine.revise(np.arange(FRAMES), "position")
    anew = places(engine)[:, 0].copy()
    engine.iterate(6)
    far = np.hypot(*(places(engine)[:, 0] - anew).T)
    assert (far <= 2.0 + 1e-5).all()
    assert far.max() > 1.0
    assert np.hypot(*(places(engine)[:, 0] - measured(q)).T).max() > 2.0


# ------------------------------------------------------------------ when


def distances(count: int, complete: int | None = None, numiter: int = 20, **given: Any) -> list[float]:
    """Amplitude of each iteration, with that of the parameters as 1."""
    engine = start(problem(), numiter=numiter, position_refinement={"amplitude": 1.0, **given}, **parameters_of_when())
    found = []
    for iteration in range(count):
        if iteration == complete:
            engine.curiter = iteration
            engine.complete()
        found.append(round(engine.refinement.distance(iteration), 6))
    return found


def parameters_of_when() -> dict[str, Any]:
    return {k: v for k, v in parameters_of().items() if k != "numiter"}


@pytest.mark.parametrize(
    ("given", "complete", "wanted"),
    [
        ({"stop": 4}, None, [1, 0.75, 0.5, 0.25, 0, 0]),
        ({"start": 2, "stop": 4}, None, [0, 0, 1, 0.5, 0, 0]),
        ({"stop": 4, "amplitude_decay": False}, None, [1, 1, 1, 1, 0, 0]),
        ({"start": 1, "interval": 2, "amplitude_decay": False}, None, [0, 1, 0, 1, 0, 1]),
        ({"start": 0}, None, [1] * 6),
        ({"start": 0}, 2, [1, 1, 1, 0.75, 0.5, 0.25, 0]),
        ({"stop": {"after_last_frame": 2}}, 3, [1, 1, 1, 1, 0.5, 0]),
        ({"stop": {"after_last_frame": 2}}, None, [1] * 6),
        ({"start": {"after_last_frame": 1}}, 1, [0, 0, 1, 0.666667, 0.333333, 0]),
        ({"start": {"after_last_frame": 0}}, None, [0] * 6),
        ({"start": {"after_last_frame": 1}, "stop": {"after_last_frame": 3}, "amplitude_decay": False}, 2, [0, 0, 0, 1, 1, 0]),
        ({"start": 3, "stop": {"after_last_frame": 4}}, 1, [0, 0, 0, 1, 0.5, 0]),
    ],
)
def test_start_stop_interval_and_decay(given: dict[str, Any], complete: int | None, wanted: list[float]) -> None:
    assert distances(len(wanted), complete, numiter=4, **given) == wanted


def test_a_resumed_engine_knows_when_the_last_frame_came() -> None:
    engine = start(problem(), position_refinement={"start": {"after_last_frame": 2}}, **parameters_of())
    engine.iterate(3)
    engine.complete()
    engine.iterate(1)
    state = engine.state()
    again = start(problem(), position_refinement={"start": {"after_last_frame": 2}}, **parameters_of())
    again.start(again.reconstruction, again.frames, again.context, state)
    assert (again.curiter, again.refinement.completed) == (4, 3)
    assert again.refinement.distance(4) == 0 < again.refinement.distance(5)


# ------------------------------------------------------------------ what each parameter does


CHANGES: dict[str, dict[str, Any]] = {
    "method": {"method": "GridSearch"},
    "start": {"start": 1},
    "stop": {"stop": 2},
    "interval": {"interval": 2},
    "nshifts": {"nshifts": 8},
    "amplitude": {"amplitude": 1.0},
    "amplitude_decay": {"amplitude_decay": True, "stop": 3},
    "max_shift": {"max_shift": 1.0},
    "metric": {"metric": "photon"},
}


@pytest.mark.parametrize("name", CHANGES)
def test_each_parameter_changes_where_frames_go(name: str) -> None:
    plain = {**FIRST, "amplitude": 2.0, "stop": 3}
    a, b = (places(refined(problem(), refine=refine, iterations=3)) for refine in (plain, plain | CHANGES[name]))
    assert np.abs(a - b).max() > 0.1


def test_the_seed_changes_the_shifts() -> None:
    held = []
    for seed in (0, 1):
        engine = start(problem(), position_refinement={**FIRST, "amplitude": 2.0}, **parameters_of())
        engine.refinement.seed = seed
        engine.iterate(1)
        held.append(places(engine))
    assert np.abs(held[0] - held[1]).max() > 0.1


@pytest.mark.parametrize(
    ("given", "active"),
    [
        ({}, False),
        (False, False),
        (True, True),
        ({"start": None, "stop": None, "method": "Annealing", "amplitude": 1e-6}, False),
        ({"start": 0}, True),
        ({"stop": 100}, True),
        ({"amplitude": 5e-7}, True),
        ({"amplitude": 1e-6}, True),
    ],
)
def test_what_turns_refinement_on(given: Any, active: bool) -> None:
    assert DM.Parameters(position_refinement=given).position_refinement.active is active
    engine = start(problem(), **(parameters_of() | {"position_refinement": given}))
    assert (engine.refinement.distance(3) > 0) is active
    assert PositionRefinementParameters().active is False
    again = DM.Parameters.model_validate(DM.Parameters(position_refinement=given).model_dump(mode="json"))
    assert again.position_refinement.active is active


def test_parameters_may_change_between_iterations() -> None:
    q = problem()
    engine = start(q, **parameters_of(subpix="linear"))
    engine.iterate(1)
    assert not engine.reconstruction.pods.moved.any()
    engine.configure(DM.Parameters(position_refinement={**FIRST, "amplitude": 2.0}, **parameters_of(subpix="linear")))
    assert (np.array(engine.reconstruction.objects["o"].shape) >= np.array([30, 31]) + 8).all()
    engine.iterate(1)
    assert engine.reconstruction.pods.moved.any()


def test_none_means_not_given_as_in_ptypys_files() -> None:
    refine = {"start": 2, "amplitude": None, "metric": None, "stop": None}
    with pytest.raises(ConfigurationError) as caught:
        check(
            {"engines": {"e": {"name": "DM", "position_refinement": refine}, "f": {"name": "DM", "position_refinement": None}}},
            "t",
        )
    assert [fault.path for fault in caught.value.faults] == ["scans"]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"nshifts": 6}, r"engines\.e\.position_refinement\.nshifts: 6: must be 4, 8, 12"),
        ({"interval": 0}, r"position_refinement\.interval: 0: must be at least 1"),
        ({"max_shift": -1e-6}, r"position_refinement\.max_shift: -1e-06: must be a length"),
        ({"amplitude": float("nan")}, r"position_refinement\.amplitude: nan: should be a finite number"),
        ({"start": {"after": 3}}, r"position_refinement\.start: .*\{after_last_frame: n\}"),
        ({"start": 5, "stop": 5}, r"position_refinement: .*stop \(5\) must be larger than start \(5\)"),
        ({"metric": "poisson"}, r"position_refinement\.metric: 'poisson': should be 'fourier' or 'photon'"),
        ({"amplitud": 1}, r"position_refinement\.amplitud: 1: unknown parameter; did you mean 'amplitude'"),
        (3, r"position_refinement: 3"),
    ],
)
def test_what_cannot_be_is_told_with_its_path(given: Any, wanted: str) -> None:
    with pytest.raises(ConfigurationError, match=wanted):
        check({"engines": {"e": {"name": "RAAR", "position_refinement": given}}}, "t")


def test_a_wide_lattice_has_no_more_points_than_can_be_tried(caplog: Any) -> None:
    for fine in (True, False):
        wide = lattice(100.0, np.ones(2), fine=fine)
        assert 600 < len(wide) <= (2 * REACH + 1) ** 2
        assert np.hypot(*wide.T).max() > 95
    assert len(lattice(0.4, np.ones(2), fine=False)) == 0
    with caplog.at_level(logging.WARNING):
        refined(problem(), refine={**FIRST, "method": "GridSearch", "amplitude": 40.0})
    assert "GridSearch leaves places out" in caplog.text


@pytest.mark.parametrize("kind", [DM, RAAR])
def test_every_engine_with_coefficients_refines(kind: Any) -> None:
    engine = start(problem(), kind=kind, position_refinement={**FIRST, "amplitude": 2.0}, subpix="linear")
    engine.iterate(2)
    assert np.hypot(*engine.reconstruction.pods.moved.T).max() > 0.5


# ------------------------------------------------------------------ it finds the places


BIG = 48


class Lost:
    """64 frames that were taken 2 pixels (rms) from where they were measured, or exactly there."""

    slab_frames, shape, limit, dtype = 16, (BIG, BIG), 65535.0, np.dtype("u2")

    def __init__(self, rms: float) -> None:
        r = np.random.default_rng(1)
        grid = np.stack(np.meshgrid(np.arange(8), np.arange(8), indexing="ij"), axis=-1).reshape(-1, 2)
        self.measured = 3.0 * grid + r.uniform(-1, 1, (64, 2))
        off = r.normal(size=(64, 2))
        off -= off.mean(axis=0)
        self.true = self.measured + off * rms / np.sqrt((off**2).sum(axis=1).mean())
        size = int(self.measured.max()) + BIG + 20

        def texture(sigma: float) -> np.ndarray:
            made = gaussian_filter(r.normal(size=(size, size)), sigma)
            return made / made.std()

        sample = np.clip(0.8 + 0.1 * texture(2), 0.1, 1) * np.exp(0.5j * (texture(2) + texture(4)))
        probe = moon((BIG, BIG), 1)
        self.probe = probe * np.sqrt(2e5 / (np.abs(probe) ** 2).sum())
        self.mask = np.ones(self.shape, np.uint8)
        self.counts = np.zeros((64, BIG, BIG), "u2")
        for j, place in enumerate(self.true + 10):
            whole = np.floor(place + 0.5).astype(int)
            s = [shift_matrix(BIG, d, "fourier") for d in place - whole]
            wave = (s[0] @ self.probe @ s[1].T) * sample[whole[0] : whole[0] + BIG, whole[1] : whole[1] + BIG]
            self.counts[j] = r.poisson(np.abs(np.fft.fft2(wave, norm="ortho")) ** 2)

    def slab(self, number: int) -> np.ndarray:
        return self.counts[16 * number : 16 * number + 16]

    def engine(self, kind: Any, rows: int = 64, **given: Any) -> Any:
        size = tuple(self.measured.max(axis=0).astype(int) + BIG + 2)
        made = Reconstruction(
            {"p": Storage(self.probe[None].copy(), None)}, {"o": Storage(np.ones((1, *size), complex), None)}, PodTable(1)
        )
        engine = kind(kind.Parameters(**given))
        engine.reconstruction = made
        self.add(engine, 0, rows)
        engine.start(made, {0: self}, Context(threads=2))
        return engine

    def add(self, engine: Any, first: int, stop: int) -> np.ndarray:
        whole, rest = nearest(self.measured[first:stop])
        address = np.zeros((stop - first, 1, 6), np.int32)
        address[:, 0, 4:] = whole
        frame = np.stack([np.zeros(stop - first, int), np.arange(first, stop)], axis=1)
        return engine.reconstruction.pods.append(address, rest[:, None].astype("f4"), np.ones((stop - first, 1), "f4"), frame)

    def apart(self, engine: Any) -> float:
        """Rms distance from the truth, pixels, without the translation that no pattern shows."""
        table = engine.reconstruction.pods
        error = table.address[:, 0, 4:] + table.remainder[:, 0] - self.true
        return float(np.sqrt(((error - error.mean(axis=0)) ** 2).sum(axis=1).mean()))


METHODS = {
    "Annealing": {"method": "Annealing", "amplitude": 1.5},
    "GridSearch": {"method": "GridSearch", "amplitude": 1.0, "interval": 3},
}


@pytest.fixture(scope="module")
def lost() -> Lost:
    return Lost(2.0)


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["fourier", "photon"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", [DM, RAAR])
def test_offsets_of_two_pixels_are_found(lost: Lost, kind: Any, method: str, metric: str) -> None:
    refine = {**METHODS[method], "start": 10, "max_shift": 6.0, "metric": metric}
    engine = lost.engine(kind, numiter=100, position_refinement=refine)
    assert lost.apart(engine) == pytest.approx(2.0, abs=1e-4)
    engine.complete()
    engine.iterate(100)
    assert lost.apart(engine) <= 0.3
    assert np.hypot(*engine.reconstruction.pods.moved.T).max() <= 6.0


@pytest.mark.slow
@pytest.mark.parametrize("kind", [DM, RAAR])
def test_offsets_are_found_while_frames_come(lost: Lost, kind: Any) -> None:
    refine = {**METHODS["Annealing"], "start": 10, "max_shift": 6.0, "metric": "photon"}
    engine = lost.engine(kind, 16, numiter=100, position_refinement=refine)
    for first in range(16, 64, 6):
        engine.iterate(4)
        engine.extend(lost.add(engine, first, min(first + 6, 64)))
    engine.complete()
    engine.iterate(100)
    assert lost.apart(engine) <= 0.3


@pytest.fixture(scope="module")
def exact() -> Lost:
    return Lost(1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("metric", "worse"), [("fourier", 1.12), ("photon", 1.0)])
@pytest.mark.parametrize("kind", [DM, RAAR])
def test_positions_that_are_right_stay_within_the_noise(exact: Lost, kind: Any, metric: str, worse: float) -> None:
    """The amplitude metric sees bright pixels less: with DM, whose iterates wander, it follows their noise a little."""
    refine = {**METHODS["Annealing"], "start": 10, "max_shift": 6.0, "metric": metric}
    with_it, without = (exact.engine(kind, numiter=100, position_refinement=given) for given in (refine, False))
    with_it.complete()
    found, plain = with_it.iterate(100).misfit[-10:].mean(axis=0), without.iterate(100).misfit[-10:].mean(axis=0)
    assert exact.apart(with_it) <= 0.3
    assert (found[:2] <= worse * plain[:2]).all()


# ------------------------------------------------------------------ engines that visit frame after frame


STOCHASTIC = {
    "EPIE": (EPIE, {}),
    "SDR": (SDR, {"sigma": 1.0, "tau": 0.5}),
}
sequential = pytest.mark.parametrize("name", STOCHASTIC)


def visiting(name: str, q: Problem, *, refine: Any, iterations: int = 1, threads: int = 1, **given: Any) -> Any:
    """An engine that refines before each update, after some iterations, positions in object pixels."""
    engine = begin(name, q, threads=threads, probe_update_start=99, position_refinement=refine, **STOCHASTIC[name][1] | given)
    engine.iterate(iterations)
    return engine


HELD = {"EPIE": {"alpha": 0.0}, "SDR": {"beta_object": 0.0}}
"""An object that does not give way, so that every frame finds the same."""


@pytest.mark.slow
@sequential
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("subpix", [None, "linear"])
@pytest.mark.parametrize("metric", ["fourier", "photon"])
def test_frame_after_frame_goes_where_a_plain_search_finds_it(name: str, batch: int, subpix: str | None, metric: str) -> None:
    q = problem(2, 1)
    refine = {**FIRST, "method": "GridSearch", "amplitude": 2.0, "metric": metric}
    engine = visiting(name, q, refine=refine, subpix=subpix, batch=batch, **HELD[name])
    steps = np.arange(-4, 5) / 2 if subpix else np.arange(-2, 3)
    trials = [np.array([y, x]) for y in steps for x in steps if y * y + x * x <= 4 + 1e-9]
    found, moved = places(engine), 0
    for j in range(FRAMES):
        errors = [misfit(q, engine, j, measured(q)[j] + step, subpix, metric) for step in trials]
        np.testing.assert_allclose(found[j], np.tile(measured(q)[j] + trials[int(np.argmin(errors))], (2, 1)), atol=1e-6)
        moved += int(np.argmin(errors) != len(trials) // 2)
    assert moved > FRAMES // 2


@sequential
@pytest.mark.parametrize("batch", [1, 5, 100])
def test_a_frame_is_updated_at_the_place_it_was_just_given(name: str, batch: int) -> None:
    """One iteration that refines is one without on frames that were measured where it put them."""
    q = problem(2, 2)
    given = {"subpix": "linear", "batch": batch, "record_local_error": True}
    refine = {**FIRST, "method": "GridSearch", "amplitude": 1.0, "stop": 1}
    engine = visiting(name, q, refine=refine, iterations=0, **given)
    errors = engine.iterate(1).errors
    for tile in engine.tiles:
        for k, pod in enumerate(tile.pods):
            np.testing.assert_array_equal(pod.corner, engine.reconstruction.pods.address[tile.rows, k, 4:])
            np.testing.assert_array_equal(pod.remainder, engine.reconstruction.pods.remainder[tile.rows, k])
    moved = places(engine)[:, 0]
    assert np.abs(moved - measured(q)).max() > 0.5
    if name == "SDR":  # its waves stay those of the measured places, as they are P O there
        return
    straight = problem(2, 2)
    straight.corner, straight.remainder = (v.astype(t) for v, t in zip(nearest(moved), (int, float), strict=True))
    plain = visiting(name, straight, refine=False, iterations=0, **given)
    storage = plain.reconstruction.objects["o"]
    storage.grow(engine.reconstruction.objects["o"].offset, tuple(np.add(storage.offset, storage.shape) + 9))
    np.testing.assert_allclose(plain.iterate(1).errors, errors, rtol=1e-5)
    a, b = (e.reconstruction.objects["o"] for e in (plain, engine))
    np.testing.assert_allclose(a.data[:, : b.shape[0], : b.shape[1]], b.data[:, : a.shape[0], : a.shape[1]], atol=1e-5)


@sequential
@pytest.mark.parametrize("batch", [1, 7])
def test_threads_change_no_step_of_sequential_engines(name: str, batch: int) -> None:
    refine, q = {**FIRST, "amplitude": 2.0}, problem(frames=40)
    held = [visiting(name, q, refine=refine, iterations=2, threads=n, batch=batch, subpix="linear") for n in (1, 3)]
    np.testing.assert_array_equal(places(held[0]), places(held[1]))
    np.testing.assert_array_equal(*(engine.reconstruction.objects["o"].data for engine in held))


@sequential
@pytest.mark.parametrize("parameter", CHANGES)
def test_each_parameter_changes_where_frames_go_in_sequential_engines(name: str, parameter: str) -> None:
    plain = {**FIRST, "amplitude": 2.0, "stop": 3}
    a, b = (
        places(visiting(name, problem(), refine=refine, iterations=3, subpix="linear"))
        for refine in (plain, plain | CHANGES[parameter])
    )
    assert np.abs(a - b).max() > 0.1
    none = visiting(name, problem(), refine=False, iterations=3, subpix="linear")
    np.testing.assert_allclose(places(none)[:, 0], measured(problem()), atol=1e-6)


@pytest.mark.slow
@sequential
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("metric", ["fourier", "photon"])
@pytest.mark.parametrize("method", METHODS)
def test_sequential_engines_find_offsets_of_two_pixels(lost: Lost, name: str, batch: int, method: str, metric: str) -> None:
    kind, given = STOCHASTIC[name]
    refine = {**METHODS[method], "start": 3, "max_shift": 6.0, "metric": metric}
    engine = lost.engine(kind, numiter=60, probe_update_start=20, batch=batch, position_refinement=refine, **given)
    assert lost.apart(engine) == pytest.approx(2.0, abs=1e-4)
    engine.complete()
    engine.iterate(60)
    assert lost.apart(engine) <= 0.3
    assert np.hypot(*engine.reconstruction.pods.moved.T).max() <= 6.0
    shot = engine.snapshot()
    np.testing.assert_array_equal(shot.pods.address, engine.reconstruction.pods.address)
    np.testing.assert_array_equal(shot.pods.moved, engine.reconstruction.pods.moved)


@pytest.mark.slow
@sequential
def test_sequential_engines_find_offsets_while_frames_come(lost: Lost, name: str) -> None:
    kind, given = STOCHASTIC[name]
    refine = {**METHODS["Annealing"], "start": 3, "max_shift": 6.0, "metric": "photon"}
    engine = lost.engine(kind, 16, numiter=60, probe_update_start=30, position_refinement=refine, **given)
    for first in range(16, 64, 6):
        engine.iterate(3)
        engine.extend(lost.add(engine, first, min(first + 6, 64)))
    engine.complete()
    engine.iterate(60)
    assert lost.apart(engine) <= 0.3
