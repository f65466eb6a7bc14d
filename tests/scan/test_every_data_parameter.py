"""Every parameter of every source of the parameter tree, and every choice of it, changes what a scan hands out, tells or saves.

From a configuration as a user writes it, over the source, to the blocks that an engine's loop takes. What a parameter changes,
and whether that is right, is the matter of the tests of each part. One that is declared and has no line here is an error.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from every import RAMP, Cases, aperture, beam_models, beam_modes, digest, laid, leaves, put_in, results, specimen

from ptystream.params.load import load, plugins, source_parameters
from ptystream.plan import make_plan
from ptystream.results import _described
from ptystream.scan.block import EOS, Signal
from ptystream.scan.parameters import PtyScanParameters
from ptystream.storage import ptyd, ptyd_reading
from ptystream.transport import TransportClosed

SIDE = 32
OPTICS = {"energy": 7.2, "distance": 2.0, "psize": 1e-4}
PIXEL = 1.23984193e-9 / 7.2 * 2.0 / (SIDE * 1e-4)
PTYD = "FILE.ptyd"
SAVING = {"dfile": "kept.ptyd", "save": "append"}
IMAGE = np.random.default_rng(1).uniform(0.5, 1.5, (SIDE, SIDE))
THEORY = np.random.default_rng(2).uniform(-3, 3, (8, 2)) * PIXEL

PREPARED: Cases = {
    "dfile": (["other.ptyd"], SAVING),
    "chunk_format": ([".part%03d"], {**SAVING, "save": "link"}),
    "save": (["append", "link", "merge"], {"dfile": "kept.ptyd"}),
    "experimentID": (["visit"], {}),
    "version": ([0.2], {}),
    "label": (["other"], {}),
    "auto_center": ([True], {}),
    "load_parallel": ([None], {"counts_per_photon": 2.0}),
    "rebin": ([2], {}),
    "rebin_mode": (["mean"], {"rebin": 2}),
    "orientation": ([1, 2, 3, 4, 5, 6, 7], {}),
    "min_frames": ([5], {}),
    "num_frames": ([7], {}),
    "positions_theory": ([THEORY], {}),
    "raster.points": ([(5, 4)], {"raster": {"points": (4, 5), "step": PIXEL}}),
    "raster.step": ([PIXEL, (PIXEL, -PIXEL)], {"raster": {"points": (4, 5), "step": 2 * PIXEL}}),
    "raster.rotation": ([20.0], {"raster": {"points": (4, 5), "step": PIXEL}}),
    "raster.snake": ([True], {"raster": {"points": (4, 5), "step": PIXEL}}),
    "selection": ([[0, 2, 3]], {}),
    "shift": ([(2, 0), (0, -3)], {}),
    "shape": ([16, (12, 16)], {}),
    "center": (["geometric", "fft", (3.0, 5.0), None], {}),
    "series.id": (["tomogram"], {}),
    "series.angle": ([12.5], {}),
    "offset": ([(PIXEL, -PIXEL)], {}),
    "psize": ([2e-4, (1e-4, 2e-4)], {}),
    "distance": ([1.0], {}),
    "energy": ([8.0], {}),
    "add_poisson_noise": ([True], {}),
    "saturation": ([30.0], {}),
    "no_data": ([(1,)], {}),
    "dark": ([IMAGE], {}),
    "dark_frames": ([2], {}),
    "modules.shape": ([(14, 14)], {"modules": {"chip": (6, 6)}}),
    "modules.gap": ([(1, 0)], {"modules": {"shape": (10, 10)}}),
    "modules.chip": ([(6, 6)], {}),
    "flat": ([IMAGE], {}),
    "count_table": ([[[0, 0], [10, 10], [1e5, 3e5]]], {}),
    "counts_per_photon": ([2.0], {}),
    "mask": ([IMAGE > 1], {}),
    "weights": ([IMAGE], {}),
}
MOON: Cases = {
    **PREPARED,
    "add_poisson_noise": ([False], {}),
    "seed": ([3], {}),
    "density": ([0.3], {}),
    "model": (["raster", "spiral"], {}),
    "photons": ([1e4], {}),
    "psf": ([1.0], {}),
    "block_wait_count": ([1, 2], {}),
}
ASIDE = {"center": (10.0, 12.0)}
QUICK: Cases = {
    **PREPARED,
    "center": (["geometric", "fft", (10.0, 12.0)], {}),
    "auto_center": ([True], ASIDE),
    "orientation": ([1, 2, 3, 4, 5, 6, 7], ASIDE),
    "no_data": ([(10_000_000,)], {}),
    "seed": ([3], {"add_poisson_noise": True}),
    "density": ([0.3], {}),
}
CAMERA = {"model": "GenericCCD32bit"}
SCINTILLATOR = {"detector": {**CAMERA, "sci_qe": 2.0}}
MODULES = {"detector": {**CAMERA, "modules": (2, 2), "module_shape": (10, 10)}}
TWO_OBJECTS = {"num_object_modes": 2, "sample": {"model": RAMP, "diversity": {"noise": (0.5, 2.0)}}}
SIM: Cases = {
    **PREPARED,
    **{path: case for path, case in aperture(PIXEL).items() if path != "illumination.photons"},
    **beam_modes(PIXEL, {"num_probe_modes": 2}),
    **beam_models(SIDE),
    **specimen(PIXEL, TWO_OBJECTS),
    "sample.fill": ([0.5], {"sample": {"model": RAMP}}),
    "illumination.photons": ([1e4], {}),
    "seed": ([3], {"add_poisson_noise": True}),
    "num_probe_modes": ([2], {}),
    "num_object_modes": ([2], laid(TWO_OBJECTS, "num_object_modes", 1)),
    "xy.override": ([THEORY], {}),
    "xy.model": (["raster", "spiral", THEORY], {}),
    "xy.extent": ([5 * PIXEL, (5 * PIXEL, 3 * PIXEL)], {}),
    "xy.spacing": ([1.5 * PIXEL], {}),
    "xy.steps": ([3], {}),
    "xy.offset": ([PIXEL, (PIXEL, -PIXEL)], {}),
    "xy.jitter": ([PIXEL], {}),
    "xy.count": ([7], {}),
    "pos_noise": ([PIXEL], {"pos_scale": 1.0}),
    "pos_scale": ([1.0, [1.0, 0.0]], {"pos_noise": PIXEL}),
    "pos_drift": ([PIXEL, [0.0, (PIXEL, 0.0)]], {}),
    "frame_size": ([40, (40, 36)], {}),
    "psf": ([1.0, (1.0, 2.0), [[0.0, 1.0], [1.0, 2.0]]], {}),
    "verbose_level": ([3, 5], {}),
    "plot": ([True], {}),
    "propagation": (["nearfield"], {}),
    "detector.model": (["FLI_PL1001", "FRELON_TAPER"], {}),
    "detector.modules": ([(2, 1)], MODULES),
    "detector.module_shape": ([(8, 10)], MODULES),
    "detector.gaps": ([(2, 1)], MODULES),
    "detector.beam": ([(4, 5)], {}),
    "detector.qe": ([0.5], {}),
    "detector.sci_qe": ([2.0], {}),
    "detector.sci_psf": ([2.0], SCINTILLATOR),
    "detector.psf": ([1.0], {}),
    "detector.dark_current": ([5.0], {}),
    "detector.shot_noise": ([3.0], {}),
    "detector.full_well": ([50.0], {}),
    "detector.adu": ([3.0], {}),
    "detector.bits": ([8], {}),
}
FILED: Cases = {
    **PREPARED,
    "dfile": (["other.ptyd"], SAVING),
    "source": (["OTHER.ptyd", "file", None], {"dfile": "THIRD.ptyd"}),
    "no_data": ([(20,)], {}),
}
CASES: Mapping[str, Cases] = {"MoonFlowerScan": MOON, "QuickScan": QUICK, "SimScan": SIM, "PtydScan": FILED}
BASE: Mapping[str, dict[str, Any]] = {
    "MoonFlowerScan": {"shape": SIDE, "num_frames": 14, "photons": 1e5, "block_wait_s": 0.001, **OPTICS},
    "QuickScan": {"shape": SIDE, "num_frames": 14, **OPTICS},
    "SimScan": {
        "shape": SIDE,
        "xy": {"model": "round", "spacing": 2 * PIXEL, "steps": 4},
        "illumination": {"photons": 1e5, "aperture": {"size": 12 * PIXEL}},
        "sample": {"model": IMAGE},
        "detector": CAMERA,
        "plot": False,
        **OPTICS,
    },
    "PtydScan": {"source": PTYD},
}
ELSEWHERE = {
    "series.id_key": "wants metadata: test_series.py",
    "series.angle_key": "wants metadata: test_series.py",
    "raster.flyback": "a simulated beam does not fly back: test_raster.py",
    "acc_voltage": "in the place of `energy`: tests/model/test_electrons.py",
    "signals": "wants frames that are no pictures: tests/detectors/arrays",
    "follows": "wants another scan: tests/test_mosaic.py",
    "hot_pixels": "wants 32 frames: test_ptyscan.py",
    "idle_s": "seconds: tests/detectors/ptyd/test_ptyd_scan.py",
    "block_wait_s": "seconds: tests/detectors/simulated/test_moonflower.py",
    "sample.stxm.label": "whose frames to estimate from, which a simulation refuses: tests/detectors/simulated/test_simscan.py",
}


def chunk(first: int, stop: int) -> ptyd.Chunk:
    r = np.random.default_rng(first)
    data = r.poisson(20.0, (stop - first, SIDE, SIDE)).astype("i4")
    data[:, 4:9, 20:26] += 60
    return ptyd.Chunk(data, np.ones(data.shape, bool), r.uniform(-3, 3, (stop - first, 2)) * PIXEL, np.arange(first, stop))


def written(path: Path, frames: int) -> None:
    head = {"version": 0.1, "num_frames": frames, "label": None, "shape": np.array([SIDE, SIDE])}
    head |= {"psize": np.array([1e-4] * 2), "energy": 7.2, "distance": 2.0, "center": np.array([SIDE / 2] * 2)}
    writer = ptyd.PtydWriter(path, "append", ".part%03d")
    for first in range(0, frames, 4):
        writer.add(chunk(first, min(first + 4, frames)), head, {})
    writer.finish(head, {})


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """What the names of files in the cases mean."""
    folder = tmp_path_factory.mktemp("files")
    written(folder / PTYD, 14)
    written(folder / "OTHER.ptyd", 10)
    written(folder / "THIRD.ptyd", 9)
    return results(folder, (1, SIDE, SIDE)) | {name: str(folder / name) for name in (PTYD, "OTHER.ptyd", "THIRD.ptyd")}


class Heard(logging.Handler):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.levelname)


def acquired(home: Path, source: str, given: dict[str, Any]) -> str:
    """What a scan comes to, in short."""
    heard = Heard()
    logger = logging.getLogger("ptystream.detectors.simulated.simulation")
    logger.addHandler(heard)
    try:
        return _acquired(home, source, given, heard)
    finally:
        logger.removeHandler(heard)


def _acquired(home: Path, source: str, given: dict[str, Any], heard: Heard) -> str:
    data = {"name": source, **given}
    root = {"threads": 1, "frames_per_block": 4, "min_frames_for_recon": 1, "io": {"home": str(home)}}
    configuration = load({**root, "scans": {"a": {"name": "Full", "data": data}}, "engines": {"e": {"name": "DM"}}})
    plan = make_plan(configuration)
    channel, (buffer, model) = plan.channels[0], plan.scans[0].make(None)
    transport, took, blocks, workers = channel.transport, [], [], set[str]()
    transport.open()
    run = buffer._intake.run

    def working(job: Any) -> Any:
        workers.add(threading.current_thread().name.partition("_")[0])
        return run(job)

    buffer._intake.run = working
    ended = time.monotonic() + 60

    def take(until: Callable[[Any], bool]) -> None:
        """As the loop does, until an answer is the one that is waited for."""
        while True:
            assert time.monotonic() < ended, "the scan does not end"
            answer = buffer.take(4)
            if not isinstance(answer, Signal):
                blocks.append(answer)
                took.append(len(answer))
            elif until(answer):
                return
            else:
                buffer.changed(-1, 0.002)

    while buffer.ended is None:
        assert time.monotonic() < ended, "the source does not end"
        try:
            message = transport.receive(0.02)
        except TransportClosed:
            buffer.end("closed")
            break
        if message is None:
            took.append("nothing")
            continue
        took.append("message")
        for event in channel.decoder.feed(message):
            buffer.feed("data", event, 0)
        while buffer.ledger.prepared < buffer.ledger.distinct:  # so that blocks do not depend on threads
            assert time.monotonic() < ended, "frames are not prepared"
            buffer.changed(-1, 0.002)
        take(lambda answer: True)
    take(lambda answer: answer is EOS)
    if source == "PtydScan":
        took = [part for part in took if part != "nothing"]  # as often as the file was looked at
    store, ledger = buffer.frames, buffer.ledger
    frames = [store.slab(s // store.slab_frames)[s % store.slab_frames] for b in blocks for s in b.slots.tolist()]
    where = [(b.indices, b.positions_m, b.dose) for b in blocks]
    held_by, decided = {"a": SimpleNamespace(buffer=buffer, model=model, contents={})}, {"a": buffer.decisions}
    told_by: Any = SimpleNamespace(scans=held_by, decided=decided.__getitem__, acquisitions={"a": ("a", "scan", 0)})
    told = _described(configuration.scans[0], told_by)
    ended_so, counts = buffer.ended, ledger.counts()
    mask, weights = store.mask.copy(), store.weights
    held = [np.array(frame) for frame in frames]
    buffer.release()
    plan.close()
    return digest(
        held, mask, weights, where, took, told, ended_so, counts, model.geometry, heard.said, sorted(workers), kept(home)
    )


def kept(home: Path) -> list[Any]:
    """What lies in a folder."""
    found: list[Any] = []
    for path in sorted(home.iterdir()):
        found.append(path.name)
        if path.suffix == ".ptyd":
            chunks, _ = ptyd_reading.chunks(path)
            meta = ptyd_reading.read_meta(path)
            found.append((meta, [str(file.name) for file in chunks.values()]))
    return found


@pytest.mark.parametrize("source", CASES)
def test_every_parameter_of_a_source_has_a_line_here(source: str) -> None:
    declared = set(leaves(source_parameters(plugins("detectors")[source], PtyScanParameters))) - {"name"}
    assert declared - set(ELSEWHERE) == set(CASES[source])
    assert set(leaves(PtyScanParameters)) - {"name"} - set(ELSEWHERE) == set(PREPARED)


def came(folder: Path, files: Mapping[str, str], source: str, given: dict[str, Any], number: int) -> str:
    home = folder / str(number)
    home.mkdir()
    return acquired(home, source, put_in({**BASE[source], **merged(BASE[source], given)}, files))


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    return {k: {**base[k], **v} if isinstance(v, dict) and isinstance(base.get(k), dict) else v for k, v in over.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("source", "path"), [(source, path) for source, cases in CASES.items() for path in cases])
def test_every_value_makes_a_difference(source: str, path: str, tmp_path: Path, files: Mapping[str, str]) -> None:
    values, beside = CASES[source][path]
    beside = merged(BASE[source], beside)
    every = [beside, *(laid({**BASE[source], **beside}, path, value) for value in values)]
    found = [came(tmp_path, files, source, given, number) for number, given in enumerate(every)]
    same = path == "source"  # 'file' and None mean the same
    assert len(set(found)) == len(found) - same, f"{path}: {values}"
