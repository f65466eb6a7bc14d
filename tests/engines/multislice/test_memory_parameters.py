"""Parameters that say where things are kept: each does what it says, and leaves the numbers as they are."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from test_pypty import run

from ptystream.engines.multislice import patterns
from ptystream.engines.multislice.memory import History
from ptystream.engines.multislice.patterns import WAVES, Patterns, automatic
from ptystream.engines.multislice.pypty import PyPty
from ptystream.run import Run


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
    assert automatic(1000, 8000, 1 << 40, 0.7) == 8
    assert automatic(1000, 8000, 5 * WAVES * 1000, 1.0) == 5
    assert automatic(1000, 8000, 5 * WAVES * 1000, 0.41) == 2
    assert automatic(1 << 30, 1 << 19, 1 << 20, 0.5) == 1


@pytest.mark.parametrize("flag", [0, 1, 2, 3, 4])
def test_the_log_says_as_much_as_is_wanted(flag: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        run(epoch_max=3, print_flag=flag, phase_norm_weight=1.0)
    lines = [record.message for record in caplog.records if ": epoch 1: " in record.message]
    assert len(lines) == max(0, flag - 1)
    assert any("loss" in line for line in lines) == (flag >= 2)
    assert any("trials" in line for line in lines) == (flag >= 3)
    assert any("phase_norm_weight" in line and "%" in line for line in lines) == (flag >= 4)
