"""Poisson noise on arrival and statistical weights: what PtyScan does to frames beside the plain preparation."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptystream.events import Frames, Payload, Samples, ScanEnded
from ptystream.scan.block import Block
from ptystream.scan.parameters import PtyScanParameters
from ptystream.scan.prepare import Preparation, decide
from ptystream.scan.ptyscan import PtyScan

RANDOM = np.random.default_rng(8)


def counts(frames: np.ndarray, order: list[int] | None = None, pool: Any = None, label: str = "s", **given: Any) -> np.ndarray:
    """Prepared frames by number, zero frequency in the middle, after they came in some order."""
    seed = given.pop("seed", 0)
    scan = PtyScan(label, PtyScanParameters(shape=frames.shape[1], **given), pool=pool, decide_after=3, seed=seed)
    for k in order or range(len(frames)):
        payload = Payload(frames[k].tobytes(), "raw", frames.dtype, frames.shape[1:])
        scan.feed("data", Frames("e", np.array([k]), (payload,)), 0)
        scan.feed("data", Samples("e", k, {"y": np.array([k * 1e-7]), "x": np.zeros(1)}), 0)
    scan.feed("data", ScanEnded("e", len(frames)), 0)
    found: dict[int, np.ndarray] = {}
    while len(found) < len(frames):
        block = scan.take(1000)
        if isinstance(block, Block):
            found |= {i: scan.frames.slab(0)[slot] for slot, i in zip(block.slots.tolist(), block.indices.tolist(), strict=True)}
        else:
            scan.changed(-1, 0.01)
    return np.fft.fftshift(np.stack([found[i] for i in sorted(found)]), axes=(1, 2)).astype(float)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
def test_noise_is_that_of_poisson_about_what_came(dtype: Any) -> None:
    mean = RANDOM.integers(0, 200, (40, 16, 16)).astype(dtype)
    plain, noisy = counts(mean), counts(mean, add_poisson_noise=True)
    np.testing.assert_array_equal(plain, mean)
    lit = mean > 0
    assert (noisy[~lit] == 0).all()
    chi = (noisy - mean)[lit] ** 2 / mean[lit].astype(float)
    assert chi.mean() == pytest.approx(1, abs=0.08)
    assert ((noisy - mean)[lit]).mean() == pytest.approx(0, abs=0.6)


def test_noise_is_that_of_photons_and_not_of_counts() -> None:
    mean = np.full((60, 8, 8), 5000, np.uint16)
    noisy = counts(mean, add_poisson_noise=True, counts_per_photon=50.0)
    assert noisy.mean() == pytest.approx(100, rel=0.01)
    assert noisy.var() == pytest.approx(100, rel=0.15)


def test_a_binned_pixel_has_the_noise_of_its_sum_and_saturated_pixels_stay_invalid() -> None:
    mean = np.full((60, 8, 8), 25, np.uint16)
    mean[:, 0, 0] = 65535
    noisy = counts(mean, add_poisson_noise=True, rebin=2)
    assert (noisy[:, 0, 0] >= 2**32 - 1).all()
    inner = noisy[:, 1:, 1:]
    assert inner.mean() == pytest.approx(100, rel=0.02)
    assert inner.var() == pytest.approx(100, rel=0.2)


def test_noise_depends_on_seed_scan_and_frame_and_not_on_order_or_threads() -> None:
    mean = RANDOM.integers(0, 200, (12, 16, 16)).astype(np.uint16)
    mean[1] = mean[0]
    first = counts(mean, add_poisson_noise=True)
    assert (first[0] != first[1]).any()
    np.testing.assert_array_equal(first, counts(mean, [5, 11, 0, 3, 1, 2, 4, 10, 9, 8, 7, 6], add_poisson_noise=True))
    with ThreadPoolExecutor(3) as pool:
        np.testing.assert_array_equal(first, counts(mean, pool=pool, add_poisson_noise=True))
    assert (first != counts(mean, add_poisson_noise=True, seed=1)).any()
    assert (first != counts(mean, add_poisson_noise=True, label="t")).any()


def weights(raw: np.ndarray, **given: Any) -> tuple[np.ndarray | None, np.ndarray]:
    """Weights and mask of a preparation, zero frequency in the middle."""
    parameters = PtyScanParameters(**given)
    made = Preparation(parameters, decide(parameters, [raw]))
    return None if made.weights is None else np.fft.fftshift(made.weights), np.fft.fftshift(made.mask)


@pytest.mark.parametrize("orientation", [0, 1, 2, 3, 4, 5, 6, 7, (True, False, True)])
@pytest.mark.parametrize("rebin", [1, 3])
def test_weights_are_cropped_turned_and_binned_as_frames_are(orientation: Any, rebin: int) -> None:
    raw = RANDOM.integers(1, 1000, (24, 31)).astype(np.float32)
    given = {"shape": 12, "center": (11.0, 17.0), "orientation": orientation, "rebin": rebin}
    found, mask = weights(raw, **given, weights=raw)
    parameters = PtyScanParameters(**given, rebin_mode="mean")
    frame = Preparation(parameters, decide(parameters, [raw]))
    out = np.zeros(frame.shape, frame.dtype)
    frame.into(raw, out)
    assert found is not None and found.dtype == np.float32
    np.testing.assert_allclose(found, np.fft.fftshift(out), rtol=1e-6)
    assert mask.all()


def test_pixels_of_weight_zero_are_masked_and_weights_of_another_size_lie_by_their_middle() -> None:
    raw = np.ones((16, 16), np.uint16)
    given = np.full((6, 6), 2.0)
    given[3, 4] = 0.0
    found, mask = weights(raw, shape=8, weights=given)
    expected = np.zeros((8, 8))
    expected[1:7, 1:7] = given
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(mask, expected > 0)
    assert weights(raw, shape=8)[0] is None


def test_weights_reach_the_store_from_a_file(tmp_path: Path) -> None:
    np.save(tmp_path / "w.npy", np.arange(64.0).reshape(8, 8) + 1)
    scan = PtyScan("s", PtyScanParameters(shape=8, weights=str(tmp_path / "w.npy")))
    payload = Payload(np.ones((8, 8), np.uint16).tobytes(), "raw", np.dtype(np.uint16), (8, 8))
    scan.feed("data", Frames("e", np.array([0]), (payload,)), 0)
    assert scan.frames.weights is not None
    np.testing.assert_array_equal(np.fft.fftshift(scan.frames.weights).ravel(), np.arange(64.0) + 1)


@pytest.mark.parametrize("wrong", [[[1.0, -1.0]], [[np.nan]], [1.0, 2.0], [[1j]]])
def test_weights_that_are_none_are_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="real numbers"):
        PtyScanParameters(weights=wrong)


@pytest.mark.parametrize("given", [{"center": (2.0, 2.0)}, {"center": "geometric"}, {"center": "fftshift"}])
def test_auto_center_is_enforced_whatever_center_says(given: dict[str, Any]) -> None:
    raw = np.zeros((20, 20), np.uint16)
    raw[12, 7] = 100
    assert decide(PtyScanParameters(shape=8, auto_center=True, **given), [raw])["center"] == [12.0, 7.0]
    assert decide(PtyScanParameters(shape=8, auto_center=None, **given), [raw])["center"] != [12.0, 7.0]
    assert decide(PtyScanParameters(shape=8, auto_center=False, center=None), [raw])["center"] == [10, 10]
    assert decide(PtyScanParameters(shape=8, auto_center=None, center=None), [raw])["center"] == [12.0, 7.0]


@pytest.mark.parametrize("value", ["data", "common", "all", None])
def test_load_parallel_says_whether_several_threads_prepare_frames(value: Any) -> None:
    assert PtyScanParameters(load_parallel=value).frames_in_parallel == (value in ("data", "all"))
    with pytest.raises(ValueError, match="'data', 'common' or 'all'"):
        PtyScanParameters(load_parallel="some")
