"""A measured scan: ptypy's own numbers, and what is left in a result of how the frames arrived."""

import bz2
import io
from pathlib import Path

import numpy as np
import pytest

from ptystream.engine import Context
from ptystream.engines.dm import DM
from ptystream.quality import align
from ptystream.reconstruction import PodTable, Reconstruction, Storage

DATA = Path(__file__).parents[3] / "shared" / "data" / "siemens-star-small.npz.bz2"
FRAMES = 516
PTYPY = {5: 6.341, 20: 9.234, 50: 15.329}
"""Fourier error by iteration; DM of ptypy 0.9.0, all defaults, views at round(position - smallest position)."""

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not DATA.exists(), reason=f"{DATA.name} is not here")]


class Star:
    """The scan, and an engine on its first frames."""

    slab_frames, shape, limit = FRAMES, (128, 128), 65535.0

    def __init__(self, first: int, *, masked: bool = False) -> None:
        with np.load(io.BytesIO(bz2.decompress(DATA.read_bytes()))) as archive:
            counts, scan, probe = archive["data"][0], archive["scan"][0], archive["probe"][0, 0, 0, 0]
        self.mask = np.ones((128, 128), np.uint8)
        if masked:
            self.mask[124:] = 0
            self.mask[0, 1] = 0
        self.counts = counts.astype("u2")
        self.corner = np.round(scan - scan.min(axis=0)).astype(np.int32)
        photons = (counts * self.mask).sum(axis=(1, 2))
        scaled = np.ascontiguousarray(probe * np.sqrt(photons.mean() / (np.abs(probe) ** 2).sum()), "c8")
        size = tuple(self.corner.max(axis=0) + 128)
        self.made = Reconstruction(
            {"p": Storage(scaled[None], None)}, {"o": Storage(np.ones((1, *size), "c8"), None)}, PodTable(1)
        )
        self.engine = DM(DM.Parameters(subpix=None))
        self.add(0, first)
        context = Context(threads=2, mean_photons=photons.mean() / 128**2, brightest_photons=photons.max())
        self.engine.start(self.made, {0: self}, context)

    def slab(self, number: int) -> np.ndarray:
        return self.counts

    def add(self, first: int, stop: int) -> np.ndarray:
        address = np.zeros((stop - first, 1, 6), np.int32)
        address[:, 0, 4:] = self.corner[first:stop]
        frame = np.stack([np.zeros(stop - first, int), np.arange(first, stop)], axis=1)
        nothing, ones = np.zeros((stop - first, 1, 2), "f4"), np.ones((stop - first, 1), "f4")
        return self.made.pods.append(address, nothing, ones, frame)

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """(object, coverage) after 50 more iterations, the last 20 averaged."""
        self.engine.iterate(30)
        self.engine.average()
        self.engine.iterate(20)
        coverage = self.engine.snapshot(("coverage",)).objects["o"].data[0].real
        self.engine.finish()
        return self.made.objects["o"].data[0], coverage


def test_the_fourier_errors_of_ptypy_are_met_within_one_percent() -> None:
    errors = Star(FRAMES).engine.iterate(50).errors[:, 0]
    for iteration, wanted in PTYPY.items():
        assert errors[iteration - 1] == pytest.approx(wanted, rel=0.01)


def test_with_the_probe_taken_anew_at_the_end_little_is_left_of_how_the_frames_arrived() -> None:
    offline, coverage = Star(FRAMES, masked=True).finish()
    star = Star(32, masked=True)
    for first in range(32, FRAMES, 16):
        star.engine.iterate(1)
        star.engine.extend(star.add(first, min(FRAMES, first + 16)))
    star.engine.restart()
    live, _ = star.finish()
    apart = align(offline, live, coverage)
    assert apart.phase_std < 0.04
    assert apart.complex_rms < 0.04
