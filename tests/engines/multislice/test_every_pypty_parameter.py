"""Every parameter of PyPty's page that the engine itself heeds changes what a growing run comes to: none is dead.

What it changes, and whether that is right, is the matter of the other tests.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from every import Cases, digest
from problems import BEAM
from test_pypty import run

from ptystream.engines.multislice.pypty import PyPty

SIDE = BEAM.side
RNG = np.random.default_rng(4)
TILTS = (RNG.normal(size=(92, 6)) * 1e-6).tolist()
"""Small: the pixel of the test's beamline is large for electrons."""
CURRENT = RNG.uniform(0.5, 1.5, 92).tolist()
MARKS = (np.arange(92) % 2).tolist()
SLICES = {"num_slices": 3, "slice_distances": [2e6]}
FAR_TILTS = {"tilts": TILTS, "tilt_mode": 4, **SLICES}
MOVING = {"update_probe_pos": 1, "scan_size": [4, 23]}
TILTING = {**FAR_TILTS, "update_tilts": 1, "scan_size": [4, 23]}
NEAR = {"recon_type": "near_field", "defocus_array": [1e8], "scan_knows": False}
HALF = np.zeros((SIDE, SIDE))
HALF[8:24, 8:24] = 1
HILL = np.exp(-(np.hypot(*np.mgrid[-16:16, -16:16]) ** 2) / 50).tolist()
HILL_WAVE = (np.asarray(HILL)[..., None] * (1 + 0.2j)).tolist()
OBJECT = (0.9 * np.exp(1j * RNG.normal(size=(40, 40, 2, 1)))).tolist()
WAVY = RNG.normal(size=(SIDE, SIDE)).tolist()
OWN = {"scan_knows": False}
"""Of a scan in pixels: what it does not know, the page says."""
CASES: Cases = {
    "data_multiplier": ([2.0], {}),
    "force_dataset_dtype": (["uint8"], {}),
    "obj": ([OBJECT], {}),
    "probe": ([HILL_WAVE, "aperture"], {"aperture_mask": HALF.tolist()}),
    "mean_pattern": ([HILL], {"extra_probe_defocus": 1e7}),
    "extra_probe_defocus": ([1e7], {}),
    "aberrations": ([[1e7, 1e6]], {}),
    "beam_ctf": ([WAVY], {}),
    "defocus_spread_modes": ([[0.0, 1e7]], {"extra_probe_defocus": 1e7}),
    "n_hermite_probe_modes": ([[1, 0], [1, 2]], {"extra_probe_defocus": 1e7}),
    "mc_n_modes": ([2, 3], {"mc_n_modes": 1, "spatial_coh_x_A": 500.0}),
    "focal_spread": ([1e7], {"mc_n_modes": 2, "spatial_coh_x_A": 500.0}),
    "spatial_coh_x_A": ([1000.0], {"mc_n_modes": 2, "spatial_coh_y_A": 500.0}),
    "spatial_coh_y_A": ([1000.0], {"mc_n_modes": 2, "spatial_coh_x_A": 500.0}),
    "spatial_coh_xy": ([-0.7, 0.7], {"mc_n_modes": 2, "spatial_coh_x_A": 500.0, "spatial_coh_y_A": 500.0}),
    "n_mc_samples": ([16], {"mc_n_modes": 2, "spatial_coh_x_A": 500.0}),
    "estimate_aperture_based_on_binary": ([1.5], {}),
    "aberration_marker": ([MARKS], {"aberrations_array": [[1e7], [-1e7]]}),
    "aberrations_array": ([[[1e7, 0.0]]], {"aberration_marker": [0] * 92}),
    "update_aberrations_array": ([1], {"aberrations_array": [[1e7], [-1e7]], "aberration_marker": MARKS}),
    "sequence": ([[1, 5, 9, 33, 50], "lambda x: [1, 2, 3, 4] if x < 3 else None"], {}),
    "recon_type": (["near_field"], OWN),
    "alpha_near_field": ([1e-4], NEAR),
    "defocus_array": ([[2e8], (1e8 + 1e6 * np.arange(92)).tolist()], NEAR),
    "Cs": ([1e20], NEAR),
    "acc_voltage": ([300.0], {**SLICES, **OWN}),
    "pixel_size_x_A": ([5.0], {**SLICES, **OWN}),
    "pixel_size_y_A": ([5.0], {**SLICES, **OWN}),
    "num_slices": ([2, 4], {}),
    "slice_distances": ([[4e6], [2e6, 7e6]], SLICES),
    "tilts": ([TILTS, TILTS[:1]], {"tilt_mode": 4, **SLICES}),
    "tilt_mode": ([0, 1, 2, 3], FAR_TILTS),
    "static_background": ([30.0, np.full((SIDE, SIDE), 0.3).tolist()], {}),
    "beam_current": ([CURRENT], {}),
    "allow_subPixel_shift": ([False], {}),
    "dynamically_resize_yx_object": ([1e-4], {"update_probe_pos": 1}),
    "damping_cutoff_multislice": ([0.66, 0.5], {}),
    "smooth_rolloff": ([0.3], {"damping_cutoff_multislice": 0.66}),
    "update_extra_cut": ([0.2], {"damping_cutoff_multislice": 0.66}),
    "lazy_clean": ([True], {"damping_cutoff_multislice": 0.66}),
    "algorithm": (["ml", "lsq", "lsq_sqrt_2"], {}),
    "poisson_floor": ([1.0], {"algorithm": "ml"}),
    "epoch_max": ([4], {}),
    "epoch_prev": ([2], {}),
    "numiter": ([3], {}),
    "numiter_contiguous": ([2], {}),
    "average_last": ([2], {}),
    "wolfe_c1_constant": ([0.7], {"wolfe_c2_constant": 0.9}),
    "wolfe_c2_constant": ([0.11], {}),
    "loss_weight": ([0.5, "mean", "mean_full"], {"phase_norm_weight": 1.0}),
    "max_count": ([2, None], {"update_step_bfgs": 1e4, "reduce_factor": 0.7}),
    "reduce_factor": ([0.5], {"update_step_bfgs": 100.0}),
    "optimism": ([10.0], {"update_step_bfgs": 1e-2}),
    "min_step": ([50.0], {"update_step_bfgs": 100.0}),
    "hist_length": ([0, 1, math.inf, "lambda x: 2 if x else 5"], {"epoch_max": 16}),
    "update_step_bfgs": ([0.3], {}),
    "phase_only_obj": ([True, "lambda x: x > 2"], {}),
    "tune_only_probe_phase": ([True], {}),
    "tune_only_probe_abs": ([True], {}),
    "reset_history_flag": (["lambda x: x > 1"], {}),
    "update_probe": ([0], {}),
    "update_obj": ([0, "lambda x: x > 2"], {}),
    "update_probe_pos": ([1], {}),
    "update_tilts": ([1], FAR_TILTS),
    "update_beam_current": ([1], {}),
    "update_static_background": ([1], {"static_background": 30.0}),
    "probe_marker": ([MARKS], {}),
    "phase_plate_in_h5": (["one.h5", "many.h5"], {}),
    "compute_batch": ([3], {"default_dtype": "single"}),
    "default_dtype": (["double"], {}),
    "mixed_variance_weight": ([50.0], {"objects": 2}),
    "mixed_variance_sigma": ([0.1], {"objects": 2, "mixed_variance_weight": 50.0}),
    "probe_constraint_mask": ([0.5, HALF.tolist()], {"probe_reg_constraint_weight": 10.0, "probe_constraint_mask": 0.8}),
    "aperture_mask": ([HALF.tolist()], {"probe_reg_constraint_weight": 10.0, "aperture_mask": np.ones_like(HALF).tolist()}),
    "probe_reg_constraint_weight": ([1.0, math.inf], {"probe_constraint_mask": 0.5}),
    "window_weight": ([1e3], {"window": [0.2, 0.5]}),
    "window": ([[0.3, 0.6], HALF.tolist(), "lambda x: [0.3, 0.6 + x / 100]"], {"window_weight": 1e3, "window": [0.1, 0.9]}),
    "abs_norm_weight": ([10.0], {}),
    "phase_norm_weight": ([10.0], {}),
    "atv_weight": ([10.0], {}),
    "atv_q": ([0.8], {"atv_weight": 10.0}),
    "atv_p": ([1.0], {"atv_weight": 10.0}),
    "scan_size": ([[4, 23]], {"update_probe_pos": 1, "fast_axis_reg_weight_positions": 100.0, "scan_size": [23, 4]}),
    **{f"{name}_reg_weight_positions": ([100.0], MOVING) for name in ("fast_axis", "slow_axis", "deformation")},
    **{f"{name}_reg_weight_tilts": ([1e16], TILTING) for name in ("fast_axis", "slow_axis", "deformation")},
    "apply_gaussian_filter": ([1.5, True], {}),
    "apply_gaussian_filter_amplitude": ([1.5], {}),
    "beta_wedge": ([1e5], SLICES),
    "keep_probe_states_orthogonal": ([True], {"probes": 3}),
    "do_charge_flip": ([True, "lambda x: x < 2"], {}),
    "cf_delta_phase": ([0.4], {"do_charge_flip": True}),
    "cf_delta_abs": ([0.4], {"do_charge_flip": True}),
    "cf_beta_phase": ([0.5], {"do_charge_flip": True}),
    "cf_beta_abs": ([0.5], {"do_charge_flip": True}),
    "fancy_sigma": ([1.0, ((1.0, 0.7), None), (None, ("1.0", 0.7))], {"do_charge_flip": True}),
    "restart_from_vacuum": (["lambda x: x == 4"], {}),
    "reset_positions": (["lambda x: x == 4"], {"update_probe_pos": 1}),
}


PAGE, OUTPUT, MEMORY = (
    "engines/multislice/test_page_scan.py",
    "test_pypty_output.py",
    "engines/multislice/test_memory_parameters.py",
)
ELSEWHERE = {
    **dict.fromkeys(("data_path", "dataset", "masks", "data_pad", "data_bin", "flip_ky", "data_shift_vector"), PAGE),
    **dict.fromkeys(("upsample_pattern", "use_full_FOV", "positions", "puzzle_positions", "scan_step_A"), PAGE),
    **dict.fromkeys(("extra_space_on_side_px", "skip_preprocessing"), PAGE),
    **dict.fromkeys(("output_folder", "save_loss_log", "save_checkpoints_every_epoch", "save_inter_checkpoints"), OUTPUT),
    **dict.fromkeys(("strip_dataset_from_params", "data_simulation_flag"), OUTPUT),
    **dict.fromkeys(("load_one_by_one", "smart_memory", "remove_fft_cache", "preload_to_cpu", "force_pad"), MEMORY),
    **dict.fromkeys(("memory_saturation", "backend", "pad_zeros", "print_flag"), MEMORY),
}
"""Parameter → file of the tests that would fail if it did nothing."""


@pytest.fixture(scope="module", autouse=True)
def plates(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("plates")
    waves = np.exp(0.5j * RNG.normal(size=(92, SIDE, SIDE)))
    for name, data in (("one.h5", waves[0]), ("many.h5", waves)):
        with h5py.File(folder / name, "w") as file:
            file["configs"] = data
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield


@cache
def outcome(text: str) -> str:
    """What a run came to, in short."""
    given = dict(eval(text, {"inf": math.inf}))  # of the dictionaries above
    modes = {name: given.pop(name, 1) for name in ("probes", "objects")}
    knows = given.pop("scan_knows", True)
    found = run((40, 92), scan_knows=knows, modes=(modes["probes"], modes["objects"]), **{"epoch_max": 6, **given})
    made = found.reconstruction
    held = [storage.data for storage in (*made.probes.values(), *made.objects.values())]
    infos = [{k: v for k, v in info.items() if k not in ("duration", "numiter")} for info in found.iter_info]
    done = [e for e in found.schedule if e["do"] != "engine"]
    return digest(held, found.history(), infos, done, found.positions())


def test_every_parameter_has_its_tests() -> None:
    tests = Path(__file__).parents[2]
    assert set(PyPty.Parameters.model_fields) == set(CASES) | set(ELSEWHERE) | {"name", "propmethod"}
    assert not set(CASES) & set(ELSEWHERE)
    for name, file in ELSEWHERE.items():
        assert name in (tests / file).read_text(encoding="utf-8"), name


def test_there_is_one_way_through_a_specimen() -> None:
    with pytest.raises(ValueError, match="propmethod"):
        PyPty.Parameters(propmethod="paraxial")


def test_the_same_parameters_come_to_the_same() -> None:
    outcome.cache_clear()
    first = outcome("{}")
    outcome.cache_clear()
    assert outcome("{}") == first


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_value_makes_a_difference(name: str) -> None:
    values, beside = CASES[name]
    came = [outcome(repr(beside))] + [outcome(repr({**beside, name: value})) for value in values]
    assert len(set(came)) == len(came), f"{name}: {values}"
