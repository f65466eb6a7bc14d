"""A measured scan through the buffer: whole counts stored as floats, zero frequency at the corner, positions in pixels."""

from __future__ import annotations

import bz2
import io
from pathlib import Path

import numpy as np
import pytest

from ptystream.events import Frames, Payload, Samples, ScanEnded
from ptystream.scan.block import Block
from ptystream.scan.parameters import PositionsParameters, PtyScanParameters
from ptystream.scan.ptyscan import PtyScan

FILE = Path(__file__).parents[3] / "shared/data/siemens-star-small.npz.bz2"


@pytest.mark.slow
@pytest.mark.parametrize(("center", "shifted"), [((64.0, 64.0), True), ("fft", False)])
def test_the_siemens_star_lies_in_the_slabs_as_whole_counts_with_zero_frequency_at_the_corner(center, shifted) -> None:
    if not FILE.exists():
        pytest.skip(f"{FILE} is not here")
    with np.load(io.BytesIO(bz2.decompress(FILE.read_bytes())), allow_pickle=False) as archive:
        counts, positions = archive["data"][0], archive["scan"][0]
    sent = np.fft.fftshift(counts, axes=(1, 2)) if shifted else counts
    parameters = PtyScanParameters(shape=128, center=center, auto_center=False, psize=None, energy=None, distance=None)
    scan = PtyScan("star", parameters, PositionsParameters(unit="px"), decide_after=32)
    y, x = positions.T.astype(float)
    scan.feed("positions", Samples("e", 0, {"y": y, "x": x}), 1)
    for k, frame in enumerate(sent):
        scan.feed("data", Frames("e", np.array([k]), (Payload(frame.tobytes(), "raw", frame.dtype, frame.shape),)), 1)
    scan.feed("data", ScanEnded("e", len(counts)), 1)
    block = scan.take(10_000)
    assert isinstance(block, Block)
    np.testing.assert_array_equal(block.positions_m, positions)
    assert scan.ledger.reason_counts() == {}
    assert scan.frames.dtype == np.uint32
    for slot, frame in zip(block.slots.tolist(), counts, strict=True):
        slab = scan.frames.slab(slot // scan.frames.slab_frames)
        np.testing.assert_array_equal(slab[slot % scan.frames.slab_frames], frame)
