"""A measured scan: ptypy's own difference map gives the numbers that ours is held against."""

import bz2
import io
from pathlib import Path

import numpy as np
import pytest

from ptystream.engine import Context
from ptystream.engines.dm import DM
from ptystream.reconstruction import PodTable, Reconstruction, Storage

DATA = Path(__file__).parents[3] / "shared" / "data" / "siemens-star-small.npz.bz2"
PTYPY = {5: 6.341, 20: 9.234, 50: 15.329}
"""Fourier error by iteration; DM of ptypy 0.9.0, all defaults, views at round(position - smallest position)."""


class Store:
    slab_frames, shape, limit = 516, (128, 128), 65535.0
    mask = np.ones((128, 128), np.uint8)

    def __init__(self, counts: np.ndarray) -> None:
        self.counts = counts.astype("u2")

    def slab(self, number: int) -> np.ndarray:
        return self.counts


@pytest.mark.slow
def test_the_fourier_errors_of_ptypy_are_met_within_one_percent() -> None:
    if not DATA.exists():
        pytest.skip(f"{DATA.name} is not here")
    with np.load(io.BytesIO(bz2.decompress(DATA.read_bytes()))) as archive:
        counts, scan, probe = archive["data"][0], archive["scan"][0], archive["probe"][0, 0, 0, 0]
    corner = np.round(scan - scan.min(axis=0)).astype(np.int32)
    scaled = probe * np.sqrt(counts.sum(axis=(1, 2)).mean() / (np.abs(probe) ** 2).sum())
    size = tuple(corner.max(axis=0) + 128)
    made = Reconstruction(
        {"p": Storage(scaled[None].astype("c8"), None)}, {"o": Storage(np.ones((1, *size), "c8"), None)}, PodTable(1)
    )
    address = np.zeros((516, 1, 6), np.int32)
    address[:, 0, 4:] = corner
    frame = np.stack([np.zeros(516, int), np.arange(516)], axis=1)
    made.pods.append(address, np.zeros((516, 1, 2), "f4"), np.ones((516, 1), "f4"), frame)
    engine = DM(DM.Parameters())
    engine.start(made, {0: Store(counts)}, Context(threads=2))
    errors = engine.iterate(50).errors[:, 0]
    for iteration, wanted in PTYPY.items():
        assert errors[iteration - 1] == pytest.approx(wanted, rel=0.01)
