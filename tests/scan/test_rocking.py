"""Rocking curves from single frames: which belong together, what a curve holds, and what becomes of incomplete ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ptystream.events import Frames, Payload, Samples, ScanEnded
from ptystream.scan.block import EOS, WAIT, Block
from ptystream.scan.parameters import ChannelsParameters, PositionsParameters, PtyScanParameters
from ptystream.scan.rocking import INCOMPLETE, NO_ANGLE, RockingScan, upwards

SIDE, ANGLES, STEP = 6, 3, 0.02


def picture(index: int) -> np.ndarray:
    return (np.arange(SIDE * SIDE).reshape(SIDE, SIDE) + 100 * index).astype("u2")


def scan(decisions: Any = None, **channels: Any) -> RockingScan:
    names = {"z": "z", "angle": "angle", **channels}
    return RockingScan(
        "s",
        PtyScanParameters(shape=SIDE, psize=1e-4, distance=1.0, energy=1.0),
        PositionsParameters(channels=ChannelsParameters(**names)),
        angles=ANGLES,
        step_deg=STEP,
        tolerance_m=1e-9,
        decisions=decisions,
    )


def come(made: RockingScan, *which: tuple[int, float, float], z: float = 0.0, **more: float) -> None:
    """(index, y in µm, angle) each."""
    for index, y, angle in which:
        frame = picture(index)
        made.feed("data", Frames("e", np.array([index]), (Payload(frame.tobytes(), "raw", frame.dtype, frame.shape),)), 1)
        channels = {"y": [y * 1e-6], "x": [0.0], "z": [z], "angle": [angle], **{k: [v] for k, v in more.items()}}
        made.feed("positions", Samples("e", index, {k: np.array(v) for k, v in channels.items()}), 1)


def finish(made: RockingScan) -> None:
    made.feed("data", ScanEnded("e", None), 1)
    made.feed("positions", ScanEnded("e", None), 1)


def closes(made: RockingScan) -> bool:
    counts = made.ledger.counts()
    return counts["received"] == counts["used"] + counts["waiting"] + sum(made.ledger.reason_counts().values())


def test_a_curve_is_handed_out_when_its_last_angle_has_come() -> None:
    made = scan()
    come(made, (0, 1, 10.0), (1, 2, 10.0), (2, 1, 10.02), (3, 2, 10.02))
    assert made.take(10) is WAIT
    assert made.ledger.counts()["waiting"] == 4
    come(made, (4, 1, 9.98))
    block = made.take(10)
    assert isinstance(block, Block)
    assert block.slots.tolist() == [0]
    assert block.indices.tolist() == [4]
    assert block.positions_m[0] == pytest.approx([1e-6, 0])
    assert made.ledger.counts()["used"] == 3
    store = made.frames
    assert store.shape == (ANGLES * SIDE, SIDE)
    curve = store.slab(0)[0].reshape(ANGLES, SIDE, SIDE)
    single = {k: upwards(np.fft.ifftshift(picture(k))) for k in (4, 0, 2)}
    assert (curve == np.stack([single[0], single[2], single[4]])).all()  # the middle angle is that of q3 = 0
    assert made.take(10) is WAIT
    assert closes(made)


def test_rows_are_turned_about_zero_frequency() -> None:
    frame = np.zeros((4, 3))
    frame[0, 0], frame[1, 2] = 5, 7
    assert upwards(frame)[0, 0] == 5
    assert upwards(frame)[3, 2] == 7
    assert (upwards(upwards(frame)) == frame).all()


def test_a_position_that_is_scanned_twice_gives_two_curves() -> None:
    made = scan()
    come(made, *((k, 1, 10 + STEP * (k % 3)) for k in range(6)))
    block = made.take(1)
    assert isinstance(block, Block)
    assert block.indices.tolist() == [0]
    again = made.take(10)
    assert isinstance(again, Block)
    assert again.indices.tolist() == [3]
    assert again.slots.tolist() == [1]


def test_positions_that_differ_in_z_are_different_and_steps_must_follow() -> None:
    made = scan()
    come(made, (0, 1, 10.0), (1, 1, 10.02))
    come(made, (2, 1, 10.04), z=5e-6)
    come(made, (3, 1, 10.08))
    assert made.take(10) is WAIT
    come(made, (4, 1, 10.04))
    block = made.take(10)
    assert isinstance(block, Block)
    assert made._members[0].tolist() == [0, 1, 4]


def test_angles_that_change_when_a_curve_is_in_use_are_noted_and_not_taken() -> None:
    made = scan()
    come(made, (0, 1, 10.0), (1, 1, 10.02), (2, 1, 10.04))
    made.take(10)
    come_again = {"y": 1e-6, "x": 0.0, "z": 0.0, "angle": 11.0}
    made.feed("positions", Samples("e", 1, {k: np.array([v]) for k, v in come_again.items()}), 1)
    assert made.ledger.notes()["corrections_late"] == 1
    assert made.ledger.further[1, 1] == 10.02


@pytest.mark.parametrize(("tolerance", "curves"), [(1e-9, 0), (2e-7, 1)])
def test_positions_within_the_tolerance_are_one(tolerance: float, curves: int) -> None:
    made = scan()
    made._tolerance = tolerance
    come(made, (0, 1.0, 10.0), (1, 1.1, 10.02), (2, 0.9, 10.04))
    block = made.take(10)
    assert (len(block) if isinstance(block, Block) else 0) == curves


def test_incomplete_curves_are_in_the_ledger_at_the_end() -> None:
    made = scan()
    come(made, (0, 1, 10.0), (1, 1, 10.02), (2, 1, 10.04), (3, 2, 10.0), (4, 2, 10.02), (5, 3, np.nan))
    finish(made)
    assert isinstance(made.take(10), Block)
    assert made.take(10) is EOS
    assert made.ledger.reason_counts() == {INCOMPLETE: 2, NO_ANGLE: 1}
    assert closes(made)


def test_a_curve_that_loses_a_frame_is_withdrawn_and_its_others_wait() -> None:
    made = scan(dose="dose")
    come(made, (0, 1, 10.0), (1, 1, 10.02), (2, 1, 10.04), dose=1.0)
    assert isinstance(made.take(10), Block)
    made.feed("positions", Samples("e", 1, {k: np.array([v]) for k, v in DARK.items()}), 1)
    (told,) = made.revisions()
    assert (told.slot, told.what) == (0, "withdrawn")
    assert made.ledger.counts()["used"] == 0
    assert made.slot_of(0) is None
    assert closes(made)
    come(made, (7, 1, 10.02), dose=1.0)
    block = made.take(10)
    assert isinstance(block, Block)
    assert block.slots.tolist() == [1]
    assert closes(made)


DARK = {"y": 1e-6, "x": 0.0, "z": 0.0, "angle": 10.02, "dose": 0.0}


def test_doses_and_positions_of_a_curve_are_means() -> None:
    made = scan(dose="dose")
    for index, dose in enumerate((0.8, 1.0, 1.5)):
        come(made, (index, 1, 10 + STEP * index), dose=dose)
    block = made.take(10)
    assert isinstance(block, Block)
    assert block.dose.tolist() == pytest.approx([1.1 / 0.8])
    changed = {"y": 4e-6, "x": 0.0, "z": 0.0, "angle": 10.02, "dose": 1.3}
    made.feed("positions", Samples("e", 1, {k: np.array([v]) for k, v in changed.items()}), 1)
    told = {revision.what: revision.value for revision in made.revisions()}
    assert told["position"] == pytest.approx((2e-6, 0.0))
    assert told["dose"] == pytest.approx((1.2 / 0.8,))


def test_a_schedule_is_repeated_by_the_lowest_angle() -> None:
    made = scan()
    come(made, *((k, 1 + k // 3, 10 + STEP * (k % 3)) for k in range(9)))
    block = made.take_exactly(np.array([6, 0]), 1.0)
    assert block.indices.tolist() == [6, 0]
    assert [made.index_of(k) for k in (0, 1)] == [6, 0]
    assert made.slot_of(6) == 0
    with pytest.raises(TimeoutError, match="rocking curve of frame 4"):
        made.take_exactly(np.array([4]), 0.01)


def test_what_the_model_refuses_is_counted_by_frames() -> None:
    made = scan()
    come(made, *((k, 1, 10 + STEP * k) for k in range(3)))
    block = made.take(10)
    assert isinstance(block, Block)
    made.refuse(block.slots, "off_canvas", block.positions_m)
    assert made.ledger.reason_counts() == {"off_canvas": 3}
    assert closes(made)


def test_masked_pixels_are_masked_at_every_angle() -> None:
    made = scan()
    come(made, *((k, 1, 10 + STEP * k) for k in range(3)))
    made.take(10)
    made.mask([[1, 2]])
    mask = made.frames.mask.reshape(ANGLES, SIDE, SIDE)
    assert (mask[:, SIDE - 1, 2] == 0).all()
    assert mask.sum() == mask.size - ANGLES


def test_angles_need_positions_from_the_same_source() -> None:
    with pytest.raises(ValueError, match="name those too"):
        ChannelsParameters(y=None, x=None, angle="angle", dose="i0")
