"""What parameters of the page must be beside their types is told when they are read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ptystream.engine import Context
from ptystream.engines.backend import cpu
from ptystream.engines.multislice.beginning import stack_of
from ptystream.engines.multislice.descent import Descent
from ptystream.engines.multislice.loss import Point
from ptystream.engines.multislice.losses import compare
from ptystream.engines.multislice.objective import Found
from ptystream.engines.multislice.optics import band
from ptystream.engines.multislice.pypty import PyPty
from ptystream.engines.multislice.search import Limits
from ptystream.engines.multislice.setting import Setting
from ptystream.engines.multislice.variables import Variables
from ptystream.reconstruction import Storage

P = PyPty.Parameters
MASKS = np.ones((3, 4, 4))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sequence", "lambda x: 'all'"),
        ("sequence", []),
        ("sequence", [1, -2]),
        ("sequence", [0.5]),
        ("sequence", "lambda x: [1, 2] if x < 150 else 3"),
        ("sequence", lambda epoch: {1, 2}),
        ("loss_weight", "lambda x: 'maen'"),
        ("loss_weight", "lambda x: 1 - x"),
        ("loss_weight", 0),
        ("window", [0.5, 0.2]),
        ("window", "lambda x: [0.1]"),
        ("window", "lambda x: 'round'"),
        ("fancy_sigma", -1.0),
        ("fancy_sigma", "lambda x: [1, 2, 3]"),
        ("fancy_sigma", "wide"),
        ("wolfe_c1_constant", "lambda x: 0.95 if x == 77 else 0.1"),
    ],
)
def test_a_value_of_some_epoch_that_cannot_be_is_told(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        P(**{name: value})


@pytest.mark.parametrize(
    "value", [np.int64(1), np.bool_(True), lambda x: np.bool_(x > 2), lambda x: np.float32(1), lambda x: np.int64(x % 2 == 0)]
)
def test_numbers_of_numpys_are_numbers(value: Any) -> None:
    p = P(update_probe=value)
    assert Setting.of(p, 4, frozenset({"probe"}), {}).moving == {"probe"}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"fast_axis_reg_weight_positions": 1.0}, "fast_axis_reg_weight_positions: needs scan_size"),
        ({"deformation_reg_weight_tilts": "lambda x: 1e-3 * (x > 9)"}, "deformation_reg_weight_tilts: needs scan_size"),
        ({"window_weight": 1.0}, "window_weight: needs window"),
        ({"probe_reg_constraint_weight": np.inf}, "probe_reg_constraint_weight: needs probe_constraint_mask"),
        ({"data_simulation_flag": True}, "data_simulation_flag: needs output_folder"),
        ({"slice_distances": [np.nan]}, "slice_distances: must be finite"),
        ({"tilts": np.full((3, 6), np.inf)}, "tilts: must be finite"),
        ({"defocus_array": [np.nan]}, "defocus_array: must be finite"),
        ({"beam_current": [0.0, 0.0]}, "beam_current: is 0"),
        ({"probe": np.zeros((4, 4, 1))}, "probe: is 0"),
        ({"static_background": -1.0}, "static_background: must be 0"),
        ({"data_multiplier": 0.0}, "data_multiplier"),
        ({"defocus_spread_modes": np.zeros(2000)}, "defocus_spread_modes: 2000 modes"),
        ({"mc_n_modes": 2}, "mc_n_modes: needs focal_spread"),
        ({"spatial_coh_y_A": 2.0}, "spatial_coh_y_A: needs mc_n_modes"),
        ({"n_mc_samples": 32}, "n_mc_samples: needs mc_n_modes"),
        ({"mc_n_modes": 2, "spatial_coh_x_A": 1.0, "spatial_coh_xy": 0.5}, "spatial_coh_xy: needs"),
        ({"mc_n_modes": 2, "focal_spread": 1.0, "n_hermite_probe_modes": [1, 0]}, "mc_n_modes: n_hermite_probe_modes gives"),
        ({"mc_n_modes": 20, "focal_spread": 1.0, "n_mc_samples": 16}, "mc_n_modes: 20: must be n_mc_samples, 16, or fewer"),
        ({"probe_marker": [0, 10**9]}, "probe_marker: 1000000000"),
        ({"probe_marker": [0, 2, 1], "probe": np.ones((4, 4, 1, 2))}, "probe_marker: 2: probe has 2 subscans"),
        ({"output_folder": "../elsewhere"}, "leads out of io.home"),
        ({"masks": MASKS}, "algorithm: 'masks' go with"),
        ({"algorithm": "lsq_compressed"}, "algorithm: 'masks' go with"),
        ({"masks": -MASKS, "algorithm": "gauss_compressed"}, "masks: below 0"),
        ({"masks": 1j * MASKS, "algorithm": "lsq_compressed"}, "masks: must be finite real"),
    ],
)
def test_what_would_do_nothing_or_nonsense_alone_is_told(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        P(**given)


@pytest.mark.parametrize("name", ["update_aberrations_array", "update_static_background"])
def test_nothing_to_refine_is_warned_of(name: str, caplog: pytest.LogCaptureFixture) -> None:
    P(**{name: "lambda x: x > 5"})
    assert [r for r in caplog.records if name in r.message and "nothing to refine" in r.message]


def test_the_epoch_has_no_name_in_a_plain_value() -> None:
    with pytest.raises(ValueError, match="data_pad"):
        P(data_pad="x")


def test_long_sequences_that_differ_in_their_middle_are_told_apart() -> None:
    def chosen(epoch: int) -> Any:
        numbers = np.arange(5000)
        return numbers if epoch < 3 else np.delete(numbers, 2500 + epoch)

    p = P(sequence=chosen)
    keys = [Setting.of(p, epoch, frozenset(), {}).key for epoch in range(5)]
    assert keys[0] == keys[1] == keys[2] and len(set(keys)) == 3


def test_slices_that_no_memory_holds_are_told() -> None:
    on = replace(cpu(Context(precision="double")), free=lambda: 1 << 20)
    p, storage = P(num_slices=4), Storage(np.ones((1, 40, 40), complex), None, (0, 0), 1.0)
    assert stack_of(p, storage, on, np.dtype("c16")).data.shape == (4, 40, 40)
    with pytest.raises(ValueError, match="num_slices: 12 slices"):
        stack_of(P(num_slices=12), storage, on, np.dtype("c16"))


def test_a_loss_that_is_no_number_is_told() -> None:
    at = {"probe": np.ones((1, 1, 2, 2), complex)}
    here = Point(at, np.nan, {"probe": np.full((1, 1, 2, 2), np.nan, complex)}, Found(np.nan, 0.0, {}), {})
    descent = Descent()
    variables = Variables(cpu(Context(precision="double")), {}, {})
    taken = descent.step(here, lambda given: here, variables, frozenset({"probe"}), {"probe": 1.0}, Limits(), 1.0, 5)
    assert taken.point is None and "not a number" in descent.notes[0]


def test_what_is_refined_beside_is_held_while_no_step_is_taken() -> None:
    at = {"object": np.ones((1, 1, 2, 2), complex), "positions": np.zeros((3, 2)), "tilts": np.zeros((3, 6))}
    gradient = {name: np.ones_like(held) for name, held in at.items()}
    here, worse = (Point(at, value, gradient, Found(value, 0.0, {}), {}) for value in (1.0, 2.0))
    descent, variables = Descent(), Variables(cpu(Context(precision="double")), {}, {})
    held = []
    for _ in range(14):
        descent.begin()
        moving = frozenset(at) - set(descent.held)
        given = Point(at, 1.0, {name: gradient[name] for name in moving}, here.found, {})
        descent.step(given, lambda given: worse, variables, moving, {}, Limits(most=2), 1.0, 5)
        held.append(set(descent.held))
    assert held[:3] == [set(), {"positions"}, {"positions", "tilts"}]
    assert "positions" in held[10] and any("held for 10 epochs" in note for note in descent.notes)


def test_the_edge_of_a_band_may_be_smooth() -> None:
    """A raised cosine in q² over the width of the roll-off."""
    q = np.fft.fftfreq(64)
    sharp, smooth = (band((64, 64), (1.0, 1.0), 0.6, rolloff)[0] for rolloff in (0.0, 0.3))
    top = q.max()
    inside, outside = np.abs(q) <= 0.3 * top, np.abs(q) > 0.6 * top
    np.testing.assert_array_equal(smooth[inside], 1)
    np.testing.assert_array_equal(smooth[outside], 0)
    np.testing.assert_array_equal(sharp, ~outside)
    between = q[(~inside & ~outside) & (q > 0)]
    low, high = (0.3 * top) ** 2, (0.6 * top) ** 2
    wanted = 0.5 * (1 + np.cos(np.pi * (between**2 - low) / (high - low)))
    np.testing.assert_allclose(smooth[(~inside & ~outside) & (q > 0)], wanted, atol=1e-12)


def test_a_signal_of_minus_one_is_a_number_like_others() -> None:
    model, measured = np.ones((1, 4, 4)), np.array([[-1.0, 2.0, -0.5]])
    found = compare(np, "lsq_compressed", model, measured, np.ones((1, 3)), 0.01, MASKS)
    assert np.isfinite(found.fits).all()
