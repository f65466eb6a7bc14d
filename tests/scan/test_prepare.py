"""Preparation against a plain float64 oracle that treats one pixel at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ptystream.scan.header import completed, header_of
from ptystream.scan.parameters import PtyScanParameters
from ptystream.scan.prepare import Preparation, PrepareError, decide, find_hot_pixels


def prepared(raw: np.ndarray, **settings: Any) -> tuple[np.ndarray, Preparation, int]:
    """The frame as it would lie in a slab (garbage before), its preparation, and the negative pixels."""
    parameters = PtyScanParameters(**settings)
    preparation = Preparation(parameters, decide(parameters, [raw]))
    out = np.full(preparation.shape, 77, preparation.dtype)
    negatives = preparation.into(raw, out)
    return out, preparation, negatives


def oracle(raw: np.ndarray, center: tuple[int, int], side: int, **settings: Any) -> tuple[np.ndarray, np.ndarray]:
    """(counts with NaN where this frame is invalid, mask): both with zero frequency at [0, 0]."""
    transpose, ud, lr = settings.get("orientation", (False, False, False))
    dark = settings.get("dark", np.zeros(raw.shape))
    flat = settings.get("flat", np.ones(raw.shape))
    mask = settings.get("mask", np.ones(raw.shape))
    top = settings.get("saturation", np.inf)
    largest = np.iinfo(raw.dtype).max if raw.dtype.kind in "ui" else np.inf
    r = settings.get("rebin", 1)
    counts, valid = np.zeros((side, side)), np.zeros((side, side), bool)
    for i in range(side):
        for j in range(side):
            dy, dx = i - side // 2, j - side // 2
            dy, dx = (-dy if ud else dy), (-dx if lr else dx)
            if transpose:
                dy, dx = dx, dy
            y, x = center[0] + dy, center[1] + dx
            if not (0 <= y < raw.shape[0] and 0 <= x < raw.shape[1]):
                continue
            valid[i, j] = mask[y, x] > 0 and flat[y, x] > 0
            value = float(raw[y, x])
            bad = not np.isfinite(value) or value >= top or value == largest or value in settings.get("no_data", ())
            light = (value - float(dark[y, x])) / flat[y, x] / settings.get("gain", 1.0) if flat[y, x] > 0 else 0.0
            counts[i, j] = np.nan if bad else max(light, 0.0)
    m = side // r
    counts = counts.reshape(m, r, m, r).sum(axis=(1, 3))
    if settings.get("mean"):
        counts /= r * r
    return np.fft.ifftshift(counts), np.fft.ifftshift(valid.reshape(m, r, m, r).all(axis=(1, 3)))


def compare(out: np.ndarray, preparation: Preparation, counts: np.ndarray, mask: np.ndarray) -> None:
    np.testing.assert_array_equal(preparation.mask > 0, mask)
    limit = np.inf if out.dtype.kind == "f" else np.iinfo(out.dtype).max
    invalid = out.astype(np.float32) >= np.float32(limit)
    np.testing.assert_array_equal(invalid, np.isnan(counts))
    np.testing.assert_allclose(out[~invalid], counts[~invalid], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "i2", "i4", "f4", "f8", "u8"])
@pytest.mark.parametrize("orientation", [None, 1, 2, 5, (True, True, False), 7])
def test_every_dtype_and_orientation_agrees_with_the_oracle(dtype: str, orientation: Any) -> None:
    rng = np.random.default_rng(3)
    raw = rng.poisson(20.0, (23, 31)).astype(dtype)
    raw[9, 12] = np.iinfo(dtype).max if raw.dtype.kind in "ui" else np.nan
    raw[10, 13] = 99
    out, preparation, _ = prepared(raw, shape=12, center=(11, 14), orientation=orientation, saturation=99)
    code = orientation or 0
    triple = (bool(code & 4), bool(code & 2), bool(code & 1)) if isinstance(code, int) else code
    compare(out, preparation, *oracle(raw, (11, 14), 12, orientation=triple, saturation=99))
    wanted = {"u1": "uint8", "u2": "uint16", "i2": "uint16", "i4": "int32"}.get(dtype, "uint32")
    assert out.dtype.name == wanted, "whole counts stay integers"


@pytest.mark.parametrize("begins", [0, 5])
def test_counts_missed_at_high_rates_are_put_right_before_dark_and_flat(begins: int) -> None:
    table = np.array([[begins, begins], [20, 20], [60, 100], [80, 200]])
    raw = np.random.default_rng(5).integers(0, 90, (16, 16)).astype(np.uint16)
    dark, flat = np.full(raw.shape, 3.0), np.full(raw.shape, 0.5)
    out, preparation, _ = prepared(raw, shape=16, count_table=table, dark=dark, flat=flat, counts_per_photon=2.0)
    true = np.interp(raw.astype(float), [0, *table[:, 0]], [0, *table[:, 1]])
    assert (raw > 80).any() and (raw < 5).any()
    expected = np.where(raw > 80, np.nan, np.maximum(true - 3.0, 0.0))
    compare(out, preparation, np.fft.ifftshift(expected), np.ones(raw.shape, bool))


@pytest.mark.parametrize(
    "table", [[[0, 0]], [[0, 0, 1], [1, 2, 1]], [[0, 0], [0, 1]], [[0, 5], [1, 3]], [[0, -1], [1, 3]], [[0, 0], [1, np.inf]]]
)
def test_a_table_of_counts_that_does_not_rise_is_refused(table: Any) -> None:
    with pytest.raises(ValueError, match="count_table"):
        PtyScanParameters(count_table=table)
    header = header_of({"count_table": np.array(table, float)})
    assert header.count_table is None and header.refused[0][0] == "count_table"


def test_a_table_of_counts_in_the_header_fills_what_the_configuration_leaves_out() -> None:
    told = header_of({"count_table": np.array([[0, 0], [10, 11], [20, 30]])})
    filled, _, said = completed(PtyScanParameters(), told, (16, 16))
    np.testing.assert_array_equal(filled.count_table, told.count_table)
    own = PtyScanParameters(count_table=[[0, 0], [9, 9]])
    assert completed(own, told, (16, 16))[0].count_table is own.count_table
    assert said == []


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize(("rebin", "side", "center"), [(2, 12, (8, 9)), (3, 27, (2, 20)), (None, 15, (0, 22))])
def test_corrections_padding_and_rebinning_agree_with_the_oracle(mode: str, rebin: int | None, side: int, center) -> None:
    rng = np.random.default_rng(4)
    raw = rng.poisson(8.0, (19, 23)).astype(np.uint16)
    raw[7, 9] = 65535
    dark, flat = rng.uniform(0, 9, raw.shape), rng.uniform(0.5, 2.0, raw.shape)
    flat[10, 11] = 0.0
    mask = (rng.random(raw.shape) > 0.05).astype(int)
    settings = {"dark": dark, "flat": flat, "mask": mask, "orientation": (False, True, False)}
    out, preparation, negatives = prepared(
        raw, shape=side, center=center, rebin=rebin, rebin_mode=mode, counts_per_photon=3.0, **settings
    )
    counts, valid = oracle(raw, center, side, rebin=rebin or 1, gain=3.0, mean=mode == "mean", **settings)
    compare(out, preparation, counts, valid)
    assert out.dtype == np.float32
    assert negatives > 0


def test_a_rebinned_sum_of_bytes_gets_a_type_in_which_it_fits() -> None:
    raw = np.full((8, 8), 250, np.uint8)
    out, _, _ = prepared(raw, shape=8, rebin=2)
    assert out.dtype == np.uint16
    assert (out == 1000).all()


def test_negative_counts_become_zero_and_are_counted_unless_they_mean_no_data() -> None:
    raw = np.full((6, 6), 5, np.int32)
    raw[1, 1], raw[2, 2] = -1, -2
    out, _, negatives = prepared(raw, shape=6)
    assert negatives == 2
    assert sorted(np.unique(out)) == [0, 5]
    out, _, negatives = prepared(raw, shape=6, no_data=(-1,))
    assert negatives == 1
    assert np.count_nonzero(out == np.iinfo(np.int32).max) == 1


def test_frames_with_zero_frequency_at_the_corner_wrap_round() -> None:
    raw = np.random.default_rng(0).integers(0, 100, (16, 16)).astype(np.uint16)
    out, _, _ = prepared(raw, shape=16, center="fft")
    np.testing.assert_array_equal(out, raw)
    cut, _, _ = prepared(raw, shape=8, center="fft")
    np.testing.assert_array_equal(np.fft.fftshift(cut), np.fft.fftshift(raw)[4:12, 4:12])


@pytest.mark.parametrize(
    ("center", "auto", "expected"),
    [
        ("fftshift", None, (10, 12)),
        ("geometric", None, (10, 12)),
        (None, None, (6, 17)),
        ("fftshift", True, (6, 17)),
        (None, False, (10, 12)),
        ((3.2, 4.7), None, (3.2, 4.7)),
    ],
)
def test_the_centre_follows_center_and_auto_center(center: Any, auto: bool | None, expected: tuple[float, float]) -> None:
    raw = np.zeros((20, 24), np.uint16)
    raw[5:8, 16:19] = 9
    damaged = raw.copy()
    damaged[0, 0] = 65534
    decided = decide(PtyScanParameters(center=center, auto_center=auto), [raw, raw, damaged])["center"]
    assert decided == pytest.approx(expected, abs=0.51 if center == "geometric" else 1e-9)


def test_one_frame_of_another_shape_does_not_decide_for_all() -> None:
    frames = [np.ones((4, 4), np.uint8), np.ones((8, 8), np.uint16), np.ones((8, 8), np.uint16)]
    assert decide(PtyScanParameters(), frames)["raw_shape"] == [8, 8]


def test_fractions_make_float_slabs_and_are_refused_among_whole_counts() -> None:
    raw = np.full((6, 6), 0.5)
    out, _, _ = prepared(raw, shape=6)
    assert out.dtype == np.float32
    parameters = PtyScanParameters(shape=6)
    preparation = Preparation(parameters, decide(parameters, [np.ones((6, 6))]))
    assert preparation.dtype == np.uint32
    with pytest.raises(PrepareError, match="fractions") as caught:
        preparation.into(raw, np.zeros((6, 6), np.uint32))
    assert caught.value.reason == "not_whole"


def test_a_mask_of_another_size_is_laid_over_the_middle_of_the_crop() -> None:
    mask = np.zeros((3, 5))
    mask[1, 2] = 1
    _, preparation, _ = prepared(np.ones((20, 20), np.uint8), shape=8, center=(7, 9), mask=mask)
    np.testing.assert_array_equal(np.argwhere(preparation.mask), [[0, 0]])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"center": (40.0, 3.0)}, r"data\.center: \(40\.0, 3\.0\): lies outside the frames of \(20, 20\)"),
        ({"dark": np.zeros((3, 3))}, r"data\.dark: shape \(3, 3\): frames have \(20, 20\)"),
        ({"shape": None, "rebin": 3}, r"data\.rebin: 3: does not divide the crop of 20 pixels"),
        ({"shape": 64, "center": "fft"}, r"data\.shape: 64: .*wrap round"),
        ({"center": None}, r"auto_center: the first frames have no counts"),
    ],
)
def test_settings_that_do_not_fit_the_frames_are_refused_with_path_and_value(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PrepareError, match=message):
        prepared(np.zeros((20, 20), np.uint16), **{"shape": 8, **settings})


def test_a_hot_pixel_is_found_and_the_direct_beam_and_speckles_are_not() -> None:
    rng = np.random.default_rng(1)
    y, x = np.fft.fftfreq(32)[:, None] * 32, np.fft.fftfreq(32)[None] * 32
    smooth = 2000.0 * np.exp(-(y**2 + x**2) / 20.0)
    frames = rng.poisson(smooth, (33, 32, 32)).astype(np.uint16)
    frames[:, 0, 0] = 60000
    frames[:, 20, 11] = 500
    frames[0, 15, 15] = 9000
    mask = np.ones((32, 32), np.uint8)
    frames[:, 5, 25] = 700
    mask[5, 25] = 0
    assert find_hot_pixels(frames, mask, 10.0) == [[20, 11]]
