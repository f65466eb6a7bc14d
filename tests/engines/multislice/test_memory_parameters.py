"""Parameters that say where things are kept: each does what it says, and leaves the numbers as they are."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from test_pypty import run

from ptystream.engine import Context
from ptystream.engines.backend import cpu
from ptystream.engines.multislice import patterns
from ptystream.engines.multislice.detector import Detector
from ptystream.engines.multislice.journey import Journey, Source, Sums, View, Wanted
from ptystream.engines.multislice.losses import compare
from ptystream.engines.multislice.memory import History
from ptystream.engines.multislice.optics import Optics
from ptystream.engines.multislice.patterns import Patterns, automatic, under_way
from ptystream.engines.multislice.pypty import PyPty
from ptystream.run import Run

ON = cpu(Context(precision="double"))


def pixels(found: Run) -> np.ndarray:
    return next(iter(found.reconstruction.objects.values())).data


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often patterns are prepared, and padded."""
    counts: Counter[str] = Counter()
    real, wide = Patterns._prepared, patterns.widened

    def counting(self: Patterns, *given: Any) -> Any:
        counts["prepared"] += 1
        return real(self, *given)

    def padding(*given: Any) -> Any:
        counts["padded"] += 1
        return wide(*given)

    monkeypatch.setattr(Patterns, "_prepared", counting)
    monkeypatch.setattr(patterns, "widened", padding)
    return counts


@pytest.mark.parametrize("given", [{"load_one_by_one": False}, {"preload_to_cpu": True}])
def test_patterns_are_prepared_once_where_they_are_kept(given: dict[str, Any], prepared: Counter[str]) -> None:
    plain = run(epoch_max=6)
    always = prepared["prepared"]
    prepared.clear()
    kept = run(epoch_max=6, **given)
    assert always > 4 * prepared["prepared"] > 0
    np.testing.assert_array_equal(pixels(kept), pixels(plain))


def test_patterns_that_do_not_fit_are_brought_each_time(
    prepared: Counter[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = run(epoch_max=3)
    always = prepared["prepared"]
    prepared.clear()
    monkeypatch.setattr(patterns, "free_bytes", lambda: 0)
    kept = run(epoch_max=3, load_one_by_one=False)
    assert prepared["prepared"] == always
    assert len([r for r in caplog.records if "not all patterns fit" in r.message]) == 1
    np.testing.assert_array_equal(pixels(kept), pixels(plain))


def test_patterns_are_padded_once_or_whenever_they_are_compared(prepared: Counter[str]) -> None:
    given = {"epoch_max": 5, "pad": 4, "pad_zeros": True}
    always = run(**given)
    count = prepared["padded"]
    prepared.clear()
    once = run(force_pad=True, **given)
    assert count > 3 * prepared["padded"] > 0
    np.testing.assert_array_equal(pixels(once), pixels(always))
    prepared.clear()
    other = run(epoch_max=5, pad=4)  # what the detector did not see is not compared
    assert not prepared["padded"] and not np.array_equal(pixels(other), pixels(always))


def test_a_small_share_of_the_memory_makes_small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: dict[float, list[int]] = {}
    real = Patterns.batches
    for share in (0.02, 1.0):

        def batches(self: Patterns, *given: Any, share: float = share) -> Any:
            self.on = replace(self.on, free=lambda: 64 * 32**2 * 8 * under_way(self.p, 1, 1, 1))
            found = real(self, *given)
            sizes.setdefault(share, []).extend(len(batch.rows) for batch in found)
            return found

        monkeypatch.setattr(Patterns, "batches", batches)
        run(epoch_max=1, memory_saturation=share)
    assert max(sizes[0.02]) == 1 and max(sizes[1.0]) == 64


def test_a_whole_set_of_slices_or_one_at_a_time_are_cleaned(monkeypatch: pytest.MonkeyPatch) -> None:
    common = {"epoch_max": 4, "num_slices": 3, "slice_distances": [20.0], "damping_cutoff_multislice": 0.66}
    seen: dict[bool, set[int]] = {}
    found = {}
    for smart in (True, False):
        shapes: set[int] = set()
        real = PyPty._clean

        def watched(self: PyPty, name: str, held: Any, shapes: set[int] = shapes, real: Any = real) -> Any:
            on = self.on
            self.on = replace(on, fft2=lambda a: (shapes.add(a.size // (a.shape[-1] * a.shape[-2])), on.fft2(a))[1])
            try:
                return real(self, name, held)
            finally:
                self.on = on

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PyPty, "_clean", watched)
            found[smart] = pixels(run(smart_memory=smart, **common))
        seen[smart] = shapes
    assert seen[True] == {1} and 3 in seen[False]
    np.testing.assert_array_equal(found[True], found[False])


@pytest.mark.parametrize(("given", "asked"), [({"remove_fft_cache": True}, "plans"), ({"smart_memory": True}, "blocks")])
def test_caches_of_the_device_are_given_back_after_each_epoch(
    given: dict[str, Any], asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: Counter[str] = Counter()
    real = PyPty.start

    def start(self: PyPty, *arguments: Any) -> None:
        real(self, *arguments)
        self.on = replace(self.on, give_back=lambda: counts.update(["blocks"]), forget_plans=lambda: counts.update(["plans"]))

    monkeypatch.setattr(PyPty, "start", start)
    run(epoch_max=5, smart_memory=False, remove_fft_cache=False)
    assert not counts
    run(epoch_max=5, **{"smart_memory": False, **given})
    assert counts[asked] >= 5 and len(counts) == 1


def test_the_history_lies_where_it_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    moves: Counter[str] = Counter()
    history = History(lambda a: (moves.update(["kept"]), a)[1], lambda a: (moves.update(["fetched"]), a)[1])
    s, y = {"a": np.array([1.0, 2.0])}, {"a": np.array([0.5, 1.5])}
    plain = History()
    for one in (history, plain):
        one.learn(s, y, 3)
    gradient = {"a": np.array([0.3, -0.2])}
    np.testing.assert_array_equal(history.direction(gradient, {})["a"], plain.direction(gradient, {})["a"])
    assert moves["kept"] == 2 and moves["fetched"] == 4
    seen = []
    real = History.__init__

    def watching(self: History, *given: Any) -> None:
        seen.append(len(given))
        real(self, *given)

    monkeypatch.setattr(History, "__init__", watching)
    run(epoch_max=2, backend="cpu")
    run(epoch_max=2, backend="gpu")
    assert seen == [2, 0]


def test_a_batch_fills_a_tile_as_far_as_memory_allows() -> None:
    assert automatic(1000, 9000, 8000, 1 << 40, 0.7) == 8
    assert automatic(1000, 9000, 8000, 5 * 9000, 1.0) == 5
    assert automatic(1000, 9000, 8000, 5 * 9000, 0.41) == 2
    assert automatic(1 << 30, 1 << 32, 1 << 19, 1 << 20, 0.5) == 1


@pytest.mark.parametrize("refined", [False, True])
@pytest.mark.parametrize(("probes", "objects", "slices"), [(1, 1, 1), (3, 1, 1), (1, 2, 1), (1, 1, 6), (2, 2, 3)])
def test_a_pass_takes_as_much_memory_as_it_is_said_to(probes: int, objects: int, slices: int, refined: bool) -> None:
    """Measured: never more, and not much less, so that `memory_saturation` means what it says."""
    count, side, rng = 12, 48, np.random.default_rng(0)
    optics = Optics.of((side, side), (1e-10,) * 2, 2e-12, [2e-9] * (slices - 1), cutoff=0.66, real=np.dtype(float))
    detector = Detector.of(ON, optics, (side, side))
    angles = rng.normal(size=(count, 2)) * 1e-4 if refined else None
    rows, corner, none = np.arange(count), rng.integers(0, 10, (count, 2)), np.zeros(count, np.int64)
    shift = rng.normal(size=(count, 2))
    view = View(rows, corner, none, np.ones(count), before=angles, inside=angles, after=angles, shift=shift)
    o = np.exp(1j * rng.normal(size=(objects, slices, side + 10, side + 10)))
    p = rng.normal(size=(1, probes, side, side)) + 0j
    sums = Sums(np.zeros_like(o), np.zeros_like(p), np.zeros((count, 2)), np.zeros((count, 6)))
    source = Source(p, np.fft.fft2(p), o)
    tracemalloc.start()
    try:
        measured = rng.random((2, count, side, side))
        journey = Journey(ON, optics, view, source, Wanted(positions=refined, tilts=refined))
        waves = journey.forward()
        found = compare(np, "lsq_sqrt", detector.photons(waves), measured[0], measured[1], 0.01)
        journey.backward(detector.back(found.slope, waves), sums)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    given = PyPty.Parameters(**({"update_tilts": 1} if refined else {}))
    said = under_way(given, probes, objects, slices) * count * side**2 * 16
    assert peak <= said <= 1.35 * peak


@pytest.mark.parametrize("flag", [0, 1, 2, 3, 4])
def test_the_log_says_as_much_as_is_wanted(flag: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        run(epoch_max=3, print_flag=flag, phase_norm_weight=1.0)
    lines = [record.message for record in caplog.records if ": epoch 1: " in record.message]
    assert len(lines) == max(0, flag - 1)
    assert any("loss" in line for line in lines) == (flag >= 2)
    assert any("trials" in line for line in lines) == (flag >= 3)
    assert any("phase_norm_weight" in line and "%" in line for line in lines) == (flag >= 4)
