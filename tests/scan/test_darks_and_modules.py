"""Darks exposed at the start of a scan, detectors made of modules and chips, and the order in which a frame is corrected."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ptystream.events import Frames, Payload, Samples, ScanEnded
from ptystream.scan.block import EOS, WAIT, Signal
from ptystream.scan.intake import MAX_HELD
from ptystream.scan.modules import ModulesParameters
from ptystream.scan.parameters import ChannelsParameters, PositionsParameters, PtyScanParameters
from ptystream.scan.prepare import Preparation
from ptystream.scan.ptyscan import PtyScan

SIDE = 8
DARK = np.arange(SIDE * SIDE).reshape(SIDE, SIDE) % 7
OPTICS = {"shape": SIDE, "psize": 1e-4, "distance": 1.0, "energy": 1.0}


def sent(scan: PtyScan, index: int, image: Any) -> None:
    image = np.asarray(image, np.uint16)
    payload = Payload(image.tobytes(), "raw", image.dtype, image.shape)
    scan.feed("data", Frames("e", np.array([index]), (payload,)), 1)


def placed(scan: PtyScan, first: int, count: int) -> None:
    k = np.arange(count, dtype=float)
    scan.feed("positions", Samples("e", first, {"y": k * 1e-8, "x": -k * 1e-8}), 1)


def shown(scan: PtyScan) -> dict[int, np.ndarray]:
    """Frames handed out, zero frequency in the middle."""
    found: dict[int, np.ndarray] = {}
    while not isinstance(block := scan.take(100), Signal):
        for slot, index in zip(block.slots.tolist(), block.indices.tolist(), strict=True):
            slab = scan.frames.slab(slot // scan.frames.slab_frames)
            found[index] = np.fft.fftshift(slab[slot % scan.frames.slab_frames])
    return found


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [5, 1, 3, 4, 0, 2], [5, 4, 3, 2, 1, 0]])
def test_the_mean_of_the_first_frames_is_subtracted_from_the_others_in_any_order(order: list[int]) -> None:
    scan = PtyScan("s", PtyScanParameters(dark_frames=3, **OPTICS), PositionsParameters(first_frame=3), decide_after=2)
    images = {k: DARK + k for k in range(3)} | {k: DARK + 1 + 10 * k for k in (3, 4, 5)}
    placed(scan, 0, 3)
    for k in order:
        sent(scan, k, images[k])
    scan.feed("data", ScanEnded("e", 6), 1)
    found = shown(scan)
    assert sorted(found) == [3, 4, 5]
    for k, image in found.items():
        np.testing.assert_allclose(image, 10.0 * k)
    assert scan.ledger.reason_counts() == {"dark_frame": 3}
    assert scan.decisions["dark_frames"] == 3
    assert scan.ledger.notes() == {}
    assert scan.take(1) is EOS, "positions of dark frames are not waited for"


def test_a_lost_dark_frame_holds_the_scan_up_for_so_many_frames_and_no_longer() -> None:
    scan = PtyScan("s", PtyScanParameters(dark_frames=3, **OPTICS), PositionsParameters(), decide_after=2)
    placed(scan, 0, 200)
    for k in (0, 2):
        sent(scan, k, DARK)
    for k in range(3, 3 + MAX_HELD - 1):
        sent(scan, k, DARK + k)
    assert scan.take(1000) is WAIT
    sent(scan, 3 + MAX_HELD, DARK + 3 + MAX_HELD)
    found = shown(scan)
    assert len(found) == MAX_HELD
    np.testing.assert_allclose(found[9], 9.0)
    assert scan.decisions["dark_frames"] == 2
    sent(scan, 1, DARK + 100)
    assert scan.ledger.reason_counts() == {"dark_frame": 3}, "what comes too late changes nothing"


def test_without_any_dark_frame_the_scan_says_what_to_do() -> None:
    scan = PtyScan("s", PtyScanParameters(dark_frames=1, **OPTICS), PositionsParameters(first_frame=1))
    sent(scan, 1, DARK)
    placed(scan, 0, 1)
    scan.feed("data", ScanEnded("e", 2), 1)
    assert scan.take(1) is EOS
    assert "dark_frames" in str(scan.failure)


def test_a_pixel_that_is_saturated_in_every_dark_frame_is_masked() -> None:
    scan = PtyScan("s", PtyScanParameters(dark_frames=2, **OPTICS), PositionsParameters(), decide_after=1)
    dark = DARK.copy()
    dark[2, 5] = 65535
    once = DARK.copy()
    once[1, 1] = 65535
    for k, image in enumerate((dark, np.where(once > 9, once, dark), DARK + 4)):
        sent(scan, k, image)
    placed(scan, 0, 3)
    found = shown(scan)
    mask = np.fft.fftshift(scan.frames.mask)
    assert np.argwhere(mask == 0).tolist() == [[2, 5]]
    np.testing.assert_allclose(found[2][mask > 0], 4.0)


def test_dark_frames_and_a_dark_from_a_file_are_one_too_many() -> None:
    with pytest.raises(ValueError, match="leave one of them out"):
        PtyScanParameters(dark_frames=2, dark=DARK, **OPTICS)


def test_frames_that_are_known_to_have_had_no_beam_decide_nothing_and_are_no_measure_of_hot_pixels() -> None:
    channels = ChannelsParameters(dose="i0")
    parameters = PtyScanParameters(**OPTICS, center=None, hot_pixels=10.0)
    scan = PtyScan("s", parameters, PositionsParameters(channels=channels), decide_after=4)
    n = 80
    lit = np.arange(n) >= 40
    one = {"y": np.arange(n) * 1e-8, "x": np.zeros(n), "i0": lit.astype(float)}
    scan.feed("positions", Samples("e", 0, one), 1)
    spot = np.zeros((SIDE, SIDE))
    spot[5, 6] = 100
    spot[1, 1] = 40  # hot
    wrong = np.zeros((SIDE, SIDE))
    wrong[1, 2] = 1000
    for k in range(n):
        sent(scan, k, spot if lit[k] else wrong)
    assert scan.decisions["center"] == pytest.approx([(5 * 100 + 40) / 140, (6 * 100 + 40) / 140])
    assert len(scan.decisions["hot_pixels"]) == 1
    assert scan.ledger.reason_counts() == {"beam_off": 40}


def test_the_edges_of_an_eiger_chip_are_split_into_four_raw_pixels() -> None:
    valid = ModulesParameters(shape=(514, 1030), gap=(37, 10), chip=(256, 256)).valid((1065, 2070))
    assert valid is not None
    rows, columns = valid.any(axis=1), valid.any(axis=0)
    own = [255, 256, 257, 258]
    assert np.flatnonzero(~rows).tolist() == [*own, *range(514, 551), *(551 + k for k in own)]
    split = [k * 258 - 3 + j for k in (1, 2, 3) for j in range(4)]
    assert np.flatnonzero(~columns).tolist() == [*split, *range(1030, 1040), *(1040 + k for k in split)]
    np.testing.assert_array_equal(valid, rows[:, None] & columns[None, :])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"gap": (3, 3)}, "shape of a module"),
        ({"shape": (0, 4)}, "1 or more"),
        ({"shape": (4, 4), "gap": (-1, 0)}, "0 or more"),
        ({"shape": (514, 1031), "chip": (256, 256)}, "do not make up"),
    ],
)
def test_modules_that_cannot_be_are_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        ModulesParameters(**given)


def test_gaps_are_turned_and_cropped_as_the_frames_are() -> None:
    modules = {"shape": (6, 4), "gap": (2, 3)}
    parameters = PtyScanParameters(shape=8, center=(5, 7), orientation=4, modules=modules)
    made = Preparation(parameters, {"raw_shape": [14, 11], "raw_dtype": "uint16", "whole": True, "center": [5, 7]})
    raw = np.ones((14, 11), bool)
    raw[6:8] = False
    raw[:, 4:7] = False
    np.testing.assert_array_equal(np.fft.fftshift(made.mask), raw.T[3:11, 1:9])


def test_the_stated_order_saturated_dark_flat_photons_mask() -> None:
    """Each step's effect depends on those before it."""
    dark, flat, mask = np.full((SIDE, SIDE), 20.0), np.full((SIDE, SIDE), 0.5), np.ones((SIDE, SIDE))
    flat[3, 3], mask[4, 4], dark[5, 5] = 2.0, 0.0, 90.0
    raw = np.full((SIDE, SIDE), 60, np.uint16)
    raw[0, 0], raw[0, 1], raw[0, 2] = 65535, 110, 99
    given = {"saturation": 100.0, "dark": dark, "flat": flat, "mask": mask, "counts_per_photon": 4.0}
    decided = {"raw_shape": [SIDE] * 2, "raw_dtype": "uint16", "whole": True, "center": [4, 4]}
    made = Preparation(PtyScanParameters(**OPTICS, **given), decided)
    out = np.zeros((SIDE, SIDE), np.float32)
    negatives = made.into(raw, out)
    out, valid = np.fft.fftshift(out), np.fft.fftshift(made.mask)
    assert np.isinf(out[0, :2]).all(), "saturated before the dark was subtracted"
    assert out[0, 2] == (99 - 20) / 0.5 / 4, "not saturated, whatever it becomes"
    assert out[1, 1] == (60 - 20) / 0.5 / 4
    assert out[3, 3] == (60 - 20) / 2.0 / 4
    assert (out[5, 5], negatives) == (0, 1)
    assert np.argwhere(valid == 0).tolist() == [[4, 4]]
