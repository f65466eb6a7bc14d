"""A run on data that are all there is the same at every repetition, to the last bit, however fast they are read."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ptystream
from ptystream.detectors.simulated.stream import SimulatedTransport
from ptystream.params.plain import merged

QUIET = {"publish": {"active": False}, "metrics": {"active": False}, "autosave": {"active": False}, "autoplot": {"active": False}}


def parameters(home: Path, **more: Any) -> dict[str, Any]:
    data = {"name": "MoonFlowerScan", "num_frames": 80, "shape": 32, "photons": 1e7}
    given = {
        "io": {"home": str(home), "recording": {"active": False}, **QUIET},
        "threads": 1,
        "device": "cpu",
        "verbose_level": 0,
        "scans": {"s": {"name": "BlockFull", "data": data}},
        "engines": {"e": {"name": "DM", "numiter": 4}},
    }
    return merged(given, more)


def same(one: ptystream.Ptycho, other: ptystream.Ptycho) -> None:
    np.testing.assert_array_equal(one.obj.data, other.obj.data)
    np.testing.assert_array_equal(one.probe.data, other.probe.data)
    np.testing.assert_array_equal(one.misfit, other.misfit)


def dawdle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let frames take their time from here on."""
    receive = SimulatedTransport.receive

    def slowly(self: SimulatedTransport, timeout_s: float) -> Any:
        time.sleep(0.05)
        return receive(self, timeout_s)

    monkeypatch.setattr(SimulatedTransport, "receive", slowly)


@pytest.mark.slow
@pytest.mark.parametrize("block", [100000, 20, 7])
def test_a_simulated_scan_repeats_to_the_same_bits_at_any_speed(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ptystream.Ptycho(parameters(tmp_path, frames_per_block=block)).run()
    dawdle(monkeypatch)
    again = ptystream.Ptycho(parameters(tmp_path, frames_per_block=block)).run()
    same(first, again)
    frames = [info["frames"] for info in first.runtime.iter_info]
    total = frames[-1]
    assert frames == [min(n, total) for n in range(block if block > 16 else 21, total, block)] + 4 * [total]


def test_a_finished_file_is_read_whole_and_a_growing_one_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saving = {"s": {"data": {"save": "append", "dfile": "moon.ptyd"}}}
    ptystream.Ptycho(parameters(tmp_path, scans=saving)).run()
    given = parameters(tmp_path)
    given["scans"]["s"]["data"] = {"name": "PtydScan", "dfile": "moon.ptyd"}
    runs = [ptystream.Ptycho(given).run() for _ in range(2)]
    same(*runs)
    assert len(runs[0].runtime.iter_info) == 4


def test_a_scan_that_makes_pauses_is_reconstructed_in_them(tmp_path: Path) -> None:
    pausing = {"s": {"data": {"block_wait_count": 1, "block_wait_s": 0.3}}}
    run = ptystream.Ptycho(parameters(tmp_path, frames_per_block=20, scans=pausing)).run()
    frames = [info["frames"] for info in run.runtime.iter_info]
    assert frames[0] < frames[-1]
