"""A dry run: nothing is opened or written, and what it says a run needs is what a run needs."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from problems import PLACES, feed, make_run
from test_ptycho import parameters, sources

from ptystream import Ptycho
from ptystream.assessment.halves import Halves
from ptystream.dryrun import ASSUMED, TRIAL_FRAMES, _grid, _Trial, dry_run, size_of
from ptystream.engine import Context
from ptystream.loop import Loop, LoopSettings
from ptystream.params.errors import ConfigurationError
from ptystream.params.load import load
from ptystream.run_state import EngineEntry


@pytest.mark.slow
def test_nothing_is_opened_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = sources()
    p = parameters(tmp_path, e={"numiter": 5})
    p.dry_run = True
    p.io.benchmark, p.io.autoplot.dump = "all", True
    P = Ptycho(p, transports=given).run()
    assert P.results == []
    assert not any(tmp_path.iterdir())
    assert given["MF/data"].acknowledged == 0
    said = capsys.readouterr().err
    assert "nothing is saved" in said
    assert f"the result would be {tmp_path}/t.ptyr" in said
    assert f"sums are for {ASSUMED}" in said
    assert "the object grows with the positions, which are not known yet" in said


def test_a_dry_run_finds_what_the_run_would_not_start_with(tmp_path: Path) -> None:
    p = parameters(tmp_path)
    p.dry_run, p.device = True, "gpu"
    from ptystream.device import find_gpu

    if find_gpu()[0] is not None:
        pytest.skip("there is a GPU here")
    with pytest.raises(ConfigurationError, match="device: 'gpu'"):
        Ptycho(p).run()


@pytest.mark.slow
@pytest.mark.parametrize(("modes", "precision", "item"), [(1, "single", 8), (3, "single", 8), (2, "double", 16)])
def test_sizes_are_those_of_the_arrays(tmp_path: Path, modes: int, precision: str, item: int) -> None:
    p = parameters(tmp_path)
    p.data_type, p.live.quality.share = precision, 0.0
    p.scans.MF.coherence.num_probe_modes = modes
    p.scans.MF.data.positions_theory = PLACES
    needs = dry_run(load(p))
    (scan,), (engine,) = needs.scans, needs.engines
    side = scan.shape[0]
    assert scan.frames == len(PLACES)
    assert needs.known
    assert scan.counts_per_frame == 2 * side**2
    assert scan.probe == modes * side**2 * item
    # What the loop's first object was is the plan's, but for the margin in which it grows.
    real = Ptycho(_live(p), transports=sources()).run().obj.data
    assert scan.canvas is not None
    covered = np.ptp(PLACES, axis=0) / 3e-8 + side
    np.testing.assert_allclose(scan.canvas, covered, atol=2)
    assert all(c <= n <= c + 2 * 32 for c, n in zip(scan.canvas, real.shape[1:], strict=True))
    assert scan.object == scan.canvas[0] * scan.canvas[1] * item
    # DM holds one wave for each mode, and a few numbers.
    wave = modes * side**2 * item
    assert 0.97 * wave < engine.bytes_per_frame < 1.1 * wave + 300
    in_all = len(PLACES) * (scan.counts_per_frame + engine.bytes_per_frame) + scan.probe + scan.object + engine.bytes_beside
    assert needs.memory_bytes == pytest.approx(in_all)


ENERGIES = {"energies": (1.0, 1.1, 1.2), "probe_dispersion": "linear", "object_dispersion": "irregular"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "probes", "objects", "scale"),
    [
        ({"resample": 2}, 1, 1, 2),
        ({"coherence": ENERGIES}, 3, 3, 1),
        ({"name": "OPRModel"}, len(PLACES), 1, 1),
    ],
)
def test_sizes_are_those_of_the_model(tmp_path: Path, given: dict, probes: int, objects: int, scale: int) -> None:
    p = parameters(tmp_path)
    p.engines.e.name = "DMOPR" if "name" in given else "DM"
    p.scans.MF.data.positions_theory = PLACES
    p.scans.MF.update(given)
    (scan,) = dry_run(load(p)).scans
    side = scan.shape[0] * scale
    assert scan.probe == probes * side**2 * 8
    assert scan.canvas is not None and scan.object == objects * scan.canvas[0] * scan.canvas[1] * 8
    np.testing.assert_allclose(scan.canvas, np.ptp(PLACES, axis=0) / 3e-8 + side, atol=2)


@pytest.mark.slow
def test_rocking_curves_are_what_an_engine_counts(tmp_path: Path) -> None:
    data = {"name": "ZmqScan", "shape": 16, "energy": 8.5, "distance": 2.0, "psize": 2e-4, "num_frames": 60}
    data["positions"] = {"name": "ZmqScan", "channels": {"angle": "rocking"}}
    rocking = {"theta_bragg": 22.32, "n_rocking_positions": 6, "rocking_step": 0.01}
    scans = {"s": {"name": "Bragg3dModel", "rocking": rocking, "data": data}}
    needs = dry_run(load({"scans": scans, "engines": {"e": {"name": "DM_3dBragg", "numiter": 7}}}))
    (scan,), (engine,) = needs.scans, needs.engines
    volume = 6 * 16 * 16
    assert (scan.frames, needs.views("s"), scan.counts_per_frame, scan.probe) == (60, 10, 2 * 16 * 16, 8 * volume)
    assert 0.97 * 8 * volume < engine.bytes_per_frame < 2 * 8 * volume  # and a few numbers of each slice
    assert needs.seconds == pytest.approx(10 * 7 * engine.seconds_per_frame)
    assert "for 10 rocking curves" in "\n".join(needs.lines())


def _live(p: dict) -> dict:
    given = dict(p)
    given["scans"] = {"MF": {**p["scans"]["MF"], "data": dict(p["scans"]["MF"]["data"].items())}}
    del given["scans"]["MF"]["data"]["positions_theory"]
    return given


@pytest.mark.slow
def test_the_memory_of_a_real_engine_is_what_was_said(tmp_path: Path) -> None:
    configuration = load(parameters(tmp_path))
    (engine,) = dry_run(configuration).engines
    entry = configuration.engines[0]
    trial_entry = EngineEntry(entry.label, entry.name, entry.parameters, entry.engine)
    gc.collect()
    tracemalloc.start()
    try:
        trial = _Trial(trial_entry, configuration.scans[0], 400, Context(threads=1), 3)
        gc.collect()
        held = tracemalloc.get_traced_memory()[0] - trial.before - trial.images
        trial.finish()
    finally:
        tracemalloc.stop()
    assert 400 * engine.bytes_per_frame <= held + 50e3
    assert held <= 400 * engine.bytes_per_frame + engine.bytes_beside + 100e3


@pytest.mark.slow
@pytest.mark.parametrize("model", ["Full", "OPRModel"])
def test_probe_and_object_are_counted_once(tmp_path: Path, model: str) -> None:
    """What is said of all together is what a run of as many frames as are tried holds, probe and object among it."""
    p = parameters(tmp_path)
    scan = p.scans.MF
    scan.name, scan.coherence.num_probe_modes = model, 3 if model == "Full" else 1
    if model == "OPRModel":
        p.engines = {"a": {"name": "DMOPR", "numiter": 3, "probe_update_start": 1}}
    p.live.quality.share = 0.0
    frames = TRIAL_FRAMES
    scan.data.positions_theory = _grid(frames) * 3e-8
    configuration = load(p)
    needs = dry_run(configuration)
    entry = configuration.engines[0]
    gc.collect()
    tracemalloc.start()
    try:
        trial = _Trial(
            EngineEntry(entry.label, entry.name, entry.parameters, entry.engine),
            configuration.scans[0],
            frames,
            Context(threads=1),
            3,
        )
        gc.collect()
        tracemalloc.reset_peak()
        trial.iterate()
        peak, images = tracemalloc.get_traced_memory()[1] - trial.before, trial.images
        trial.finish()
    finally:
        tracemalloc.stop()
    counts = frames * needs.scans[0].counts_per_frame
    assert needs.memory_bytes == pytest.approx(counts + peak, abs=0.7 * images)


@pytest.mark.slow
def test_the_split_halves_are_counted_as_large_as_they_are(tmp_path: Path) -> None:
    p = parameters(tmp_path, e={"numiter": 30})
    p.scans.MF.data.positions_theory = PLACES
    needs = dry_run(load(p))
    p.live.quality.share = 0.0
    without = dry_run(load(p))
    assert without.halves_bytes == 0 and not any(line.startswith("split halves") for line in without.lines())
    assert any(line.startswith("split halves") and size_of(needs.halves_bytes) in line for line in needs.lines())
    run = make_run(engines=[{"numiter": 30}])
    feed(run, 0, len(PLACES))
    loop = Loop(run, LoopSettings())
    for _ in range(4):
        loop.step()
    gc.collect()
    tracemalloc.start()
    try:
        halves = Halves(run)
        for _ in range(8):
            halves.step()
        gc.collect()
        peak = tracemalloc.get_traced_memory()[1]
        halves.close()
    finally:
        tracemalloc.stop()
    assert 0.6 * needs.halves_bytes < peak < 1.3 * needs.halves_bytes


@pytest.mark.slow
def test_time_grows_with_the_iterations_and_the_frames(tmp_path: Path) -> None:
    p = parameters(tmp_path, a={"numiter": 10}, b={"numiter": 30})
    p.scans.MF.data.num_frames = 500
    needs = dry_run(load(p))
    assert all(1e-7 < e.seconds_per_frame < 10.0 for e in needs.engines)
    assert needs.seconds == pytest.approx(500 * sum(e.seconds_per_frame * e.iterations for e in needs.engines))
    assert [e.iterations for e in needs.engines] == [10, 30]
    assert needs.result is not None
    text = "\n".join(needs.lines())
    assert "500 frames" in text
    assert "known" not in text.replace("not known yet", "")


@pytest.mark.parametrize(("count", "text"), [(12, "12 B"), (2048, "2 KiB"), (3 * 2**20, "3 MiB"), (2**40, "1.02e+03 GiB")])
def test_sizes_are_said_as_a_person_reads_them(count: float, text: str) -> None:
    assert size_of(count) == text
