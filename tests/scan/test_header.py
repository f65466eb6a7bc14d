"""What a source says when it begins, and what becomes of it."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
from problems import BEAM, PATTERNS, PLACES

from ptystream.events import Frames, Payload, ScanEnded, ScanStarted
from ptystream.scan.header import Header, completed, header_of
from ptystream.scan.parameters import PtyScanParameters
from ptystream.scan.ptyscan import PtyScan

CENTER = (6 + BEAM.side // 2, 11 + BEAM.side // 2)
TOLD: dict[str, Any] = {"energy": 12.4, "distance": 2.5, "psize": 75e-6, "center": (20, 30), "saturation": 500, "note": object()}
RAW = (40, 60)
SIDE = BEAM.side


def test_the_known_keys_are_taken_and_the_others_left() -> None:
    header = header_of(TOLD)
    assert header.values == {
        "energy": 12.4,
        "distance": 2.5,
        "psize": [75e-6, 75e-6],
        "center": [20.0, 30.0],
        "saturation": 500.0,
    }
    assert header_of({"psize": (1e-5, 2e-5)}).values == {"psize": [1e-5, 2e-5]}
    assert header_of({}) == Header()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("energy", 12400.0),  # eV
        ("energy", -1.0),
        ("energy", "12.4"),
        ("energy", True),
        ("energy", float("nan")),
        ("energy", [1.0, 2.0]),
        ("distance", 2500.0),  # mm
        ("psize", 75.0),  # µm
        ("psize", [1e-5, 1e-5, 1e-5]),
        ("center", 5.0),
        ("center", {"y": 1, "x": 2}),
        ("saturation", 0),
        ("mask", [[1, 0]]),
        ("mask", np.zeros((2, 2, 2))),
        ("flat", np.array([["a", "b"]])),
    ],
)
def test_what_cannot_be_meant_is_named_and_not_used(key: str, value: Any) -> None:
    header = header_of({key: value})
    assert not header.values
    assert header.mask is None
    assert header.flat is None
    assert [name for name, _ in header.refused] == [key]
    p, filled, (said,) = completed(PtyScanParameters(), header, RAW)
    assert p == PtyScanParameters()
    assert not filled
    assert said.startswith(f"{key}: ")


def test_it_fills_what_is_left_out_or_null_and_nothing_else() -> None:
    header = header_of(TOLD)
    p, filled, said = completed(PtyScanParameters(), header, RAW)
    assert (p.energy, p.distance, p.psize, p.center, p.saturation) == (12.4, 2.5, (75e-6, 75e-6), (20.0, 30.0), 500.0)
    assert filled == dict(header.values)
    assert not said
    null = PtyScanParameters(energy=None, distance=None, psize=None, center=None, saturation=None)
    assert completed(null, header, RAW)[1] == dict(header.values)
    own: dict[str, Any] = {"energy": 12.45, "distance": 2.4, "psize": (75e-6, 80e-6), "center": (20, 29.9), "saturation": 500.0}
    p, filled, said = completed(PtyScanParameters(**own), header, RAW)
    assert p == PtyScanParameters(**own)
    assert not filled
    assert [line.partition(":")[0] for line in said] == ["distance", "psize"]  # the others differ by less than 1 %
    assert completed(PtyScanParameters(center="fftshift"), header_of({"center": (1, 2)}), RAW)[2] == []


def test_a_centre_is_used_where_it_lies_on_the_frame_and_none_is_asked_of_the_data() -> None:
    p, filled, said = completed(PtyScanParameters(), header_of({"center": (50, 5)}), RAW)
    assert p.center == "fftshift"
    assert not filled
    assert "lies outside" in said[0]
    assert completed(PtyScanParameters(auto_center=True), header_of(TOLD), RAW)[0].center == "fftshift"


def test_the_whole_frame_is_the_shape_of_what_comes() -> None:
    assert completed(PtyScanParameters(shape=None), Header(), RAW)[0].shape == 40
    assert completed(PtyScanParameters(shape=16), Header(), RAW)[0].shape == 16


# ------------------------------------------------------------------ in a scan


def scan(metadata: dict[str, Any] | None, patterns: np.ndarray, *, header_after: int = 0, **given: Any) -> PtyScan:
    """A scan of `patterns` with theoretical positions; the header comes behind so many frames."""
    settle, decisions = given.pop("settle", None), given.pop("decisions", None)
    data = {"shape": SIDE, "positions_theory": PLACES[: len(patterns)], **given}
    made = PtyScan("s", PtyScanParameters(**data), decide_after=4, settle=settle, decisions=decisions)
    for k, pattern in enumerate(patterns):
        if k == header_after and metadata is not None:
            made.feed("data", ScanStarted("a", metadata), 0)
        payload = Payload(pattern.tobytes(), "raw", pattern.dtype, pattern.shape)
        made.feed("data", Frames("a", np.array([k]), (payload,)), k)
    made.feed("data", ScanEnded("a", len(patterns)), 0)
    return made


def framed(count: int = 8) -> np.ndarray:
    """Patterns somewhere on a larger frame, its gaps all ones."""
    frames = np.zeros((count, SIDE + 20, SIDE + 31), "u2")
    frames[:, 6 : 6 + SIDE, 11 : 11 + SIDE] = PATTERNS[:count]
    return frames


def test_mask_and_flat_field_go_into_every_frame() -> None:
    frames = framed()
    mask, flat = np.ones(frames.shape[1:], "u1"), np.full(frames.shape[1:], 2.0)
    mask[6 + 3, 11 + 5], flat[6, 11] = 0, 0.0
    made = scan({"center": CENTER, "mask": mask, "flat": flat}, frames)
    block = made.take(100)
    valid = np.fft.fftshift(made.frames.mask)
    assert np.argwhere(valid == 0).tolist() == [[0, 0], [3, 5]]
    got = np.fft.fftshift(made.frames.slab(0)[block.slots[2]])  # type: ignore[union-attr]
    np.testing.assert_allclose(got[1:], PATTERNS[2][1:] / 2.0)
    own = np.ones(frames.shape[1:], "u1")
    own[6 + 9, 11 + 9] = 0
    made = scan({"center": CENTER, "mask": mask, "flat": flat}, frames, mask=own, flat=np.ones_like(flat))
    made.take(100)
    assert np.argwhere(np.fft.fftshift(made.frames.mask) == 0).tolist() == [[3, 5], [9, 9]]  # both masks, the own flat field


def test_saturated_and_empty_pixels_are_invalid_in_their_frame_alone() -> None:
    frames = framed()
    frames[3, 6 + 2, 11 + 2], frames[4, 6 + 2, 11 + 2] = 60000, 65535
    made = scan({"center": CENTER, "saturation": 60000}, frames)
    block = made.take(100)
    slab = np.fft.fftshift(made.frames.slab(0)[block.slots], axes=(1, 2))  # type: ignore[union-attr]
    assert (slab[:, 2, 2] >= made.frames.limit).tolist() == [False] * 3 + [True, True] + [False] * 3


def test_arrays_of_another_shape_are_named_and_left(caplog: pytest.LogCaptureFixture) -> None:
    made = scan({"mask": np.zeros((4, 4)), "flat": np.zeros((4, 4)), "center": CENTER}, framed())
    made.take(100)
    assert made.frames.mask.all()
    assert "mask: told with shape (4, 4)" in caplog.text
    assert "flat: told with shape (4, 4)" in caplog.text


def test_pixels_that_the_source_masks_do_not_move_the_centre() -> None:
    frames = framed()
    frames[:, 0, 0] = 60000
    mask = np.ones(frames.shape[1:], bool)
    mask[0, 0] = False
    plain = scan({}, framed(), auto_center=True).decisions["center"]
    assert scan({"mask": mask}, frames, auto_center=True).decisions["center"] == plain
    assert scan({}, frames, auto_center=True).decisions["center"] != plain


@pytest.mark.parametrize("after", [0, 3])
def test_a_header_may_come_behind_the_first_frames(after: int) -> None:
    told: list[PtyScanParameters] = []

    def settle(p: PtyScanParameters) -> tuple[float, float]:
        told.append(p)
        return 1e-8, 1e-8

    made = scan({"energy": 9.0, "center": CENTER}, framed(), header_after=after, settle=settle)
    assert [p.energy for p in told] == [9.0]
    assert made.decisions["header"] == {"energy": 9.0, "center": [float(c) for c in CENTER]}
    assert made.parameters.energy == 9.0
    assert len(made.take(100)) == 8  # type: ignore[arg-type]


def test_a_header_that_comes_too_late_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="ptystream"):
        made = scan({"energy": 9.0}, framed(), header_after=6)
    assert "header" not in made.decisions
    assert made.parameters.energy == 7.2
    assert made.ledger.notes()["header_late"] == 1


def test_decisions_of_an_earlier_run_hold_the_header() -> None:
    first = scan({"energy": 9.0, "center": CENTER}, framed())
    again = scan(None, framed(), decisions=first.decisions)
    assert again.parameters.energy == 9.0
    told = {"energy": 9.0, "mask": np.zeros((52, 63)), "center": CENTER}
    with_header = scan(told, framed(), decisions=first.decisions, header_after=2)
    with_header.take(100)
    assert not with_header.frames.mask.any()  # waited for it, because the earlier run had one


def test_what_cannot_be_settled_is_the_failure_of_the_scan() -> None:
    def settle(p: PtyScanParameters) -> None:
        raise ValueError("data.energy: is not told")

    made = scan({}, framed(), settle=settle)
    assert made.failure == "scans.s.data.energy: is not told"
    assert made.ended == "failed: scans.s.data.energy: is not told"


def test_positions_are_judged_by_the_pixel_that_turns_out() -> None:
    far = PLACES[:8].copy()
    far[5] += 200 * SIDE * BEAM.pixel_m
    for pixel, count in ((1e-3, 8), (1e-9, 7)):
        made = scan({}, framed(), positions_theory=far, settle=lambda p, pixel=pixel: (pixel, pixel))
        assert len(made.take(100)) == count  # type: ignore[arg-type]
