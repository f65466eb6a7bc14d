"""DM and RAAR against the oracle, with modes, masks, blocks and sub-pixel positions; and what each parameter does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from oracle import Problem, dm, raar

from ptystream.engine import Context
from ptystream.engines.dm import DM
from ptystream.engines.raar import RAAR
from ptystream.engines.subpixel import adjoint, shift
from ptystream.reconstruction import PodTable, Reconstruction, Storage

SIDE, FRAMES = 15, 11


class Store:
    """Counts in slabs of four."""

    slab_frames, dtype, limit = 4, np.dtype("u2"), 65535.0

    def __init__(self, counts: np.ndarray, mask: np.ndarray) -> None:
        self.shape, self.mask = counts.shape[1:], mask
        padded = np.zeros((-(-len(counts) // 4) * 4, *self.shape), "u2")
        padded[: len(counts)] = counts
        self._slabs = [padded[k : k + 4] for k in range(0, len(padded), 4)]

    def slab(self, number: int) -> Any:
        return self._slabs[number]


def problem(probes: int = 1, objects: int = 1, seed: int = 0, frames: int = FRAMES) -> Problem:
    r = np.random.default_rng(seed)

    def wave(n: int, shape: tuple[int, int]) -> np.ndarray:
        return r.normal(size=(n, *shape)) + 1j * r.normal(size=(n, *shape))

    corner = r.integers(0, 12, (frames, 2))
    truth, sample = 3 * wave(probes, (SIDE, SIDE)), 1 + 0.3 * wave(objects, (30, 31))
    counts = np.zeros((frames, SIDE, SIDE))
    for j, (y, x) in enumerate(corner):
        for k in range(probes):
            for m in range(objects):
                view = truth[k] * sample[m, y : y + SIDE, x : x + SIDE]
                counts[j] += np.abs(np.fft.fft2(view, norm="ortho")) ** 2
    counts = r.poisson(counts).astype(float)
    mask = (r.random((SIDE, SIDE)) > 0.1).astype(np.uint8)
    counts[r.random(counts.shape) > 0.97] = 65535
    valid = (counts < 65535) & (mask != 0)
    photons = np.where(valid, counts, 0).sum(axis=(1, 2))
    return Problem(
        probe=truth + wave(probes, (SIDE, SIDE)),
        object=np.ones((objects, 30, 31)) + 0.05 * wave(objects, (30, 31)),
        counts=counts,
        valid=valid,
        corner=corner,
        remainder=r.uniform(-0.5, 0.5, (frames, 2)).astype("f4").astype(float),
        weight=r.uniform(0.8, 1.2, frames).astype("f4").astype(float),
        mean=float(photons.mean() / SIDE**2),
        brightest=float(photons.max()),
    )


def start(
    q: Problem,
    precision: str = "double",
    threads: int = 1,
    rows: int | None = None,
    device: str = "cpu",
    kind: Any = DM,
    **parameters: Any,
) -> Any:
    """The engine on the same problem; the lattice does not begin at zero."""
    pods = [(k, m) for k in range(len(q.probe)) for m in range(len(q.object))]
    made = Reconstruction(
        {"p": Storage(q.probe.copy(), None, (0, 0), 0.0)},
        {"o": Storage(q.object.copy(), None, (-7, 5), 1.0)},
        PodTable(len(pods)),
    )
    engine = kind(kind.Parameters(**parameters))
    mask = np.ones(q.counts.shape[1:], np.uint8)
    mask[~(q.valid | (q.counts >= 65535)).all(axis=0)] = 0
    engine.everything = (q, pods, made)
    add(engine, np.arange(len(q.counts) if rows is None else rows))
    context = Context(device=device, threads=threads, precision=precision, mean_photons=q.mean, brightest_photons=q.brightest)
    engine.start(made, {0: Store(np.minimum(q.counts, 65535), mask)}, context)
    return engine


def add(engine: Any, frames: np.ndarray) -> np.ndarray:
    q, pods, made = engine.everything
    address = np.zeros((len(frames), len(pods), 6), np.int32)
    for i, (k, m) in enumerate(pods):
        address[:, i, 1], address[:, i, 3] = k, m
    address[:, :, 4:] = (q.corner[frames] + np.array([-7, 5]))[:, None]
    remainder = np.repeat(q.remainder[frames][:, None], len(pods), axis=1).astype("f4")
    weight = np.repeat(q.weight[frames][:, None], len(pods), axis=1).astype("f4")
    return made.pods.append(address, remainder, weight, np.stack([np.zeros(len(frames), int), frames], axis=1))


def parameters(kind: Any = DM, **changed: Any) -> dict[str, Any]:
    return kind.Parameters(**({"probe_update_start": 1, "overlap_max_iterations": 3, "subpix": None} | changed)).model_dump()


CASES = {
    "plain": {},
    "linear": {"subpix": "linear"},
    "fourier": {"subpix": "fourier"},
    "late sub-pixels": {"subpix": "linear", "subpix_start": 2},
    "bound": {"fourier_power_bound": 3.0},
    "relaxed": {"fourier_relax_factor": 0.6},
    "alpha": {"alpha": 0.6},
    "clip": {"clip_object": (0.9, 1.1)},
    "smooth": {"obj_smooth_std": 1.5, "object_inertia": 0.5},
    "inertia": {"object_inertia": 0.3, "probe_inertia": 0.2},
    "support": {"probe_support": 0.3},
    "fourier support": {"probe_fourier_support": 0.3, "probe_support": None},
    "no support": {"probe_support": None},
    "probe first": {"update_object_first": False},
    "one pass": {"overlap_max_iterations": 1},
    "converged": {"overlap_converge_factor": 10.0},
    "probe at once": {"probe_update_start": 0},
    "probe never": {"probe_update_start": 100},
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("probes", "objects"), [(1, 1), (2, 2)])
def test_three_iterations_of_dm_agree_with_the_oracle(name: str, probes: int, objects: int) -> None:
    agree(DM, dm, parameters(**CASES[name]), probes, objects)


@pytest.mark.parametrize("name", [name for name in CASES if name != "alpha"] + ["beta", "reflections alone"])
@pytest.mark.parametrize(("probes", "objects"), [(1, 1), (2, 2)])
def test_three_iterations_of_raar_agree_with_the_oracle(name: str, probes: int, objects: int) -> None:
    own = {"beta": {"beta": 0.9}, "reflections alone": {"beta": 1.0}}
    agree(RAAR, raar, parameters(RAAR, **(CASES | own)[name]), probes, objects)


def agree(kind: Any, oracle: Any, given: dict[str, Any], probes: int, objects: int) -> None:
    engine = start(problem(probes, objects), kind=kind, **given)
    progress = engine.iterate(3)
    wanted = oracle(problem(probes, objects), 3, given)
    np.testing.assert_allclose(progress.errors, wanted.errors, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(engine.reconstruction.probes["p"].data, wanted.probe, rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(engine.reconstruction.objects["o"].data, wanted.object, rtol=1e-7, atol=1e-8)


def test_beta_of_one_is_the_difference_map_and_any_other_is_not() -> None:
    held = []
    for kind, own in ((DM, {}), (RAAR, {"beta": 1.0}), (RAAR, {})):
        engine = start(problem(2, 1), kind=kind, **parameters(kind, **own))
        engine.iterate(3)
        held.append(engine.reconstruction.objects["o"].data)
    np.testing.assert_allclose(held[1], held[0], rtol=1e-12)
    assert np.abs(held[2] - held[0]).max() > 1e-3


@pytest.mark.parametrize("name", [n for n in CASES if n != "plain"])
def test_every_case_differs_from_the_plain_one(name: str) -> None:
    plain, changed = start(problem(2, 1), **parameters()), start(problem(2, 1), **parameters(**CASES[name]))
    plain.iterate(3)
    changed.iterate(3)
    apart = np.abs(plain.reconstruction.probes["p"].data - changed.reconstruction.probes["p"].data).max()
    apart += np.abs(plain.reconstruction.objects["o"].data - changed.reconstruction.objects["o"].data).max()
    assert apart > 1e-3


@pytest.mark.parametrize("subpix", [None, "linear", "fourier"])
def test_single_precision_follows_double(subpix: str | None) -> None:
    single, double = (start(problem(2, 1), precision, **parameters(subpix=subpix)) for precision in ("single", "double"))
    a, b = single.iterate(3), double.iterate(3)
    np.testing.assert_allclose(a.errors, b.errors, rtol=1e-3)
    x, y = single.reconstruction.objects["o"].data, double.reconstruction.objects["o"].data
    assert x.dtype == np.complex64
    assert np.abs(x - y).max() < 2e-2 * np.abs(y).max()


@pytest.mark.parametrize("subpix", [None, "linear", "fourier"])
def test_the_number_of_threads_does_not_change_a_bit(subpix: str | None) -> None:
    held = []
    for threads in (1, 2, 3):
        engine = start(problem(2, 2, frames=40), "single", threads, **parameters(subpix=subpix))
        progress = engine.iterate(3)
        held.append((progress.errors, engine.reconstruction.objects["o"].data, engine.reconstruction.probes["p"].data))
        engine.finish()
    for other in held[1:]:
        for a, b in zip(held[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", ["linear", "fourier"])
@pytest.mark.parametrize("shape", [(15, 15), (16, 13)])
def test_the_adjoint_of_a_shift_is_exact(kind: str, shape: tuple[int, int]) -> None:
    r = np.random.default_rng(3)
    p, q = (r.normal(size=(5, *shape)) + 1j * r.normal(size=(5, *shape)) for _ in range(2))
    d = r.uniform(-0.5, 0.5, (5, 2))
    left, right = np.vdot(shift(p, d, kind), q), np.vdot(p, adjoint(q, d, kind))
    assert abs(left - right) < 1e-12 * abs(left)


@pytest.mark.parametrize("batch", [1, 4, FRAMES - 1])
def test_frames_that_come_in_blocks_end_in_the_same_state_as_at_once(batch: int) -> None:
    q = problem(2, 1)
    whole, parts = start(q, **parameters()), start(q, rows=1, **parameters())
    for first in range(1, FRAMES, batch):
        parts.extend(add(parts, np.arange(first, min(first + batch, FRAMES))))
    a, b = whole.iterate(3), parts.iterate(3)
    np.testing.assert_allclose(a.errors, b.errors, rtol=1e-9)
    np.testing.assert_allclose(
        whole.reconstruction.objects["o"].data, parts.reconstruction.objects["o"].data, rtol=1e-8, atol=1e-9
    )


def test_growing_the_canvas_while_running_changes_nothing_but_its_size() -> None:
    grown, plain = start(problem(), **parameters()), start(problem(), **parameters())
    for engine in (grown, plain):
        engine.iterate(2)
    storage = grown.reconstruction.objects["o"]
    assert storage.grow((-60, -40), (90, 80))
    a, b = grown.iterate(2), plain.iterate(2)
    np.testing.assert_allclose(a.errors, b.errors, rtol=1e-12)
    y, x = -7 - storage.offset[0], 5 - storage.offset[1]
    np.testing.assert_allclose(storage.data[:, y : y + 30, x : x + 31], plain.reconstruction.objects["o"].data, rtol=1e-10)


def test_a_withdrawn_frame_leaves_the_sums_and_a_moved_one_counts_at_its_new_place() -> None:
    q = problem()
    without = problem()
    for name in ("counts", "valid", "corner", "remainder", "weight"):
        setattr(without, name, getattr(without, name)[:-1])
    short, long = start(without, **parameters()), start(q, **parameters())
    long.revise(np.array([FRAMES - 1]), "withdrawn")
    np.testing.assert_allclose(short.iterate(3).errors, long.iterate(3).errors, rtol=1e-9)
    moved = start(problem(), **parameters())
    straight = problem()
    straight.corner[4] = (3, 9)
    moved.reconstruction.pods.address[4, :, 4:] = np.array([3 - 7, 9 + 5])
    moved.revise(np.array([4]), "position")
    np.testing.assert_allclose(moved.iterate(3).errors, start(straight, **parameters()).iterate(3).errors, rtol=1e-9)


@pytest.mark.parametrize("subpix", [None, "linear", "fourier"])
def test_rows_that_rest_count_as_probe_times_object(subpix: str | None) -> None:
    plain = {"probe_support": None, "probe_fourier_support": None}
    engine = start(problem(frames=40), **parameters(subpix=subpix, probe_update_start=0, **plain))
    fixed = engine.reconstruction.copy()
    engine._form(engine.tiles)
    engine.overlap.begin(engine.p, engine.tiles[:1], engine.tiles[1:], 1.0)
    engine.overlap.update_object()
    np.testing.assert_allclose(engine.reconstruction.objects["o"].data, fixed.objects["o"].data, rtol=1e-6, atol=1e-6)
    engine.overlap.update_probe()
    np.testing.assert_allclose(engine.reconstruction.probes["p"].data, fixed.probes["p"].data, rtol=1e-6, atol=1e-6)
    progress = engine.iterate(1, np.arange(4))
    assert 4 <= progress.frames < 40


@pytest.mark.parametrize("subpix", [None, "linear"])
def test_what_rests_weighs_as_much_as_it_illuminates_while_frames_come_and_the_canvas_grows(subpix: str | None) -> None:
    """Held against the sum over every tile that rests, which would cost as much as visiting them."""
    q = problem(frames=40)
    engine = start(q, rows=25, **parameters(subpix=subpix, probe_update_start=99, overlap_max_iterations=1))
    engine.iterate(1)
    asked = []
    resting = engine.overlap._resting

    def compare(visited: Any) -> Any:
        found = resting(visited)
        asked.append(len(engine.overlap.resting))
        for mine, exact in zip(found, engine.overlap.coverage(engine.overlap.resting), strict=True):
            np.testing.assert_allclose(mine, exact, atol=1e-9 * exact.max())
        return found

    engine.overlap._resting = compare
    engine.iterate(2, np.arange(5))
    engine.iterate(1, np.arange(20, 25))
    added = add(engine, np.arange(25, 33))
    engine.reconstruction.objects["o"].grow((-60, -40), (90, 80))
    engine.extend(added)
    engine.iterate(1, np.concatenate([np.arange(3), added]))
    engine.iterate(1, added)
    assert len(asked) == 5
    assert min(asked) > 0


def test_a_restart_takes_the_first_probe_and_keeps_the_object() -> None:
    q = problem()
    engine = start(q, **parameters(probe_update_start=0))
    engine.iterate(3)
    kept = engine.reconstruction.objects["o"].data.copy()
    assert np.abs(engine.reconstruction.probes["p"].data - q.probe).max() > 0.01
    engine.restart()
    np.testing.assert_array_equal(engine.reconstruction.probes["p"].data, q.probe)
    np.testing.assert_array_equal(engine.reconstruction.objects["o"].data, kept)
    fresh = problem()
    fresh.object = kept
    np.testing.assert_allclose(engine.iterate(2).errors, start(fresh, **parameters(probe_update_start=0)).iterate(2).errors)


def test_the_mean_of_the_last_iterates_is_what_finish_leaves() -> None:
    engine, single = start(problem(), **parameters()), start(problem(), **parameters())
    engine.iterate(2)
    engine.average()
    engine.iterate(3)
    engine.finish()
    single.iterate(2)
    seen = []
    for _ in range(3):
        single.iterate(1)
        seen.append(single.snapshot().objects["o"].data)
    np.testing.assert_allclose(engine.reconstruction.objects["o"].data, np.mean(seen, axis=0), rtol=1e-9)


def test_switches_of_what_is_computed() -> None:
    off = start(problem(), **parameters(compute_log_likelihood=False, record_local_error=True)).iterate(2)
    on = start(problem(), **parameters()).iterate(2)
    assert np.isnan(off.misfit).all()
    assert (off.errors[:, 1] == 0).all()
    np.testing.assert_allclose(off.errors[:, [0, 2]], on.errors[:, [0, 2]], rtol=1e-9)
    assert np.isfinite(on.misfit).all()
    assert on.local is None
    assert off.local is not None
    np.testing.assert_allclose(off.local[:, 0].mean(), off.errors[-1, 0])


def test_a_probe_off_centre_is_moved_back_with_its_object() -> None:
    q = problem(frames=30)
    y, x = np.mgrid[:SIDE, :SIDE]
    q.probe = 10 * np.exp(-((y - 9.0) ** 2 + (x - 5.0) ** 2) / 6)[None].astype(complex)
    moved, left = (start(q, **parameters(probe_center_tol=t, probe_support=None, probe_update_start=50)) for t in (1.0, 50.0))
    for engine in (moved, left):
        engine.iterate(1)
    power = np.abs(moved.reconstruction.probes["p"].data[0]) ** 2
    assert abs((power * y).sum() / power.sum() - SIDE // 2) < 0.3
    assert abs((power * x).sum() / power.sum() - SIDE // 2) < 0.3
    np.testing.assert_array_equal(left.reconstruction.probes["p"].data, q.probe)
