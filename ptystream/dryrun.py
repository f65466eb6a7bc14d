"""`dry_run`: what a run would need in memory and time, without a socket, a frame or a file.

Sizes follow from the configuration. An engine is tried on a few empty frames of its shape: what it holds for a frame, and
how long an iteration takes a frame, are measured here and now, on the device that the run would use.
"""

from __future__ import annotations

import gc
import math
import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.engine import Context, Engine
from ptystream.model.bragg_model import Bragg3d
from ptystream.model.scan_model import ScanModel
from ptystream.parallel import team
from ptystream.params.load import Configuration, ScanConfiguration
from ptystream.plan import geometry_of, make_plan
from ptystream.reconstruction import PodTable, Reconstruction
from ptystream.results import file_name
from ptystream.run_state import EngineEntry
from ptystream.scan.block import Block
from ptystream.warming import Sample

TRIAL_BYTES = 64 << 20
"""Waves of the frames that an engine is tried on."""
TRIAL_FRAMES = 64
ASSUMED = 1000
"""Frames that sums are told for where their number is not known."""


@dataclass(frozen=True, slots=True)
class ScanNeeds:
    """What the frames of one scan need, bytes."""

    label: str
    model: str
    source: str
    shape: tuple[int, int]
    frames: int | None
    """None: not known before they come."""
    counts_per_frame: int
    """As 16-bit numbers, as most detectors count."""
    probe: int
    canvas: tuple[int, int] | None
    """Object pixels (y, x); None where no positions are planned."""
    object: int | None
    frames_per_view: int = 1
    """Frames that the engine works on as one: those of a rocking curve."""


@dataclass(frozen=True, slots=True)
class EngineNeeds:
    """What one engine needs for the frames of one scan; a rocking curve counts as one here."""

    label: str
    name: str
    scan: str
    iterations: int
    bytes_per_frame: float
    bytes_beside: float
    """Whatever the number of frames, without probe and object."""
    seconds_per_frame: float
    """Of one iteration."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What a run needs."""

    run: str
    device: str
    result: str | None
    scans: Sequence[ScanNeeds]
    engines: Sequence[EngineNeeds]
    halves: bool = False
    """Whether two engines with half of the frames each run beside (`live.quality`)."""

    @property
    def known(self) -> bool:
        """Whether the number of frames of every scan is."""
        return all(scan.frames is not None for scan in self.scans)

    def frames(self, label: str) -> int:
        """Frames of a scan that sums are told for."""
        return next(scan.frames or ASSUMED for scan in self.scans if scan.label == label)

    def views(self, label: str) -> int:
        """What an engine visits of a scan in an iteration: frames, or rocking curves."""
        return self.frames(label) // next(scan.frames_per_view for scan in self.scans if scan.label == label)

    @property
    def memory_bytes(self) -> float:
        """At the peak: frames, probes, objects, the engine that needs most, and the split halves."""
        held = sum(self.frames(s.label) * s.counts_per_frame + s.probe + (s.object or 0) for s in self.scans)
        return held + self._engine_bytes + self.halves_bytes

    @property
    def halves_bytes(self) -> float:
        """What the split halves hold at the peak, of which one iterates at a time: each frame is in one of them, probe and
        object are in both."""
        if not self.halves:
            return 0.0
        return 2 * sum(s.probe + (s.object or 0) for s in self.scans) + self._engine_bytes

    @property
    def _engine_bytes(self) -> float:
        """Of the engine that needs most."""
        labels = {e.label for e in self.engines}
        needed = (
            sum(self.views(e.scan) * e.bytes_per_frame + e.bytes_beside for e in self.engines if e.label == label)
            for label in labels
        )
        return max(needed, default=0.0)

    @property
    def seconds(self) -> float:
        """Of all iterations that are guaranteed."""
        return sum(self.views(e.scan) * e.seconds_per_frame * e.iterations for e in self.engines)

    def lines(self) -> list[str]:
        """For a person."""
        said = [f"dry run of {self.run!r}: no source is opened and nothing is saved", self.device]
        for scan in self.scans:
            size = "{} × {}".format(*scan.shape)
            many = f"{scan.frames} frames" if scan.frames else f"number of frames not known: sums are for {ASSUMED}"
            said.append(f"scan {scan.label}: {scan.model}, {scan.source}; {size} pixels, {many}")
            total = self.frames(scan.label) * scan.counts_per_frame
            said.append(f"  counts: {size_of(scan.counts_per_frame)} a frame in 16 bits, {size_of(total)} in all")
            if scan.canvas is None or scan.object is None:
                said.append(f"  probe {size_of(scan.probe)}; the object grows with the positions, which are not known yet")
            else:
                canvas = "{} × {}".format(*scan.canvas)
                said.append(f"  probe {size_of(scan.probe)}; object {canvas} pixels, {size_of(scan.object)}")
        for engine in self.engines:
            frames = self.views(engine.scan)
            one = frames * engine.seconds_per_frame
            what = "frame" if frames == self.frames(engine.scan) else "rocking curve"
            said.append(
                f"engine {engine.label}: {engine.name} on {engine.scan}: {engine.iterations} iterations of {1e3 * one:.3g} ms "
                f"({1e3 * engine.seconds_per_frame:.3g} ms a {what}) for {frames} {what}s: {one * engine.iterations:.3g} s"
            )
            held = frames * engine.bytes_per_frame
            said.append(
                f"  holds {size_of(engine.bytes_per_frame)} a {what}, {size_of(held)} in all, "
                f"and {size_of(engine.bytes_beside)} beside"
            )
        if self.halves:
            said.append(f"split halves of the frames (live.quality.share): {size_of(self.halves_bytes)}")
        said.append(f"in all about {size_of(self.memory_bytes)} of memory and {self.seconds:.3g} s of iterations")
        said.append(
            "no result would be written: io.rfile is None" if self.result is None else f"the result would be {self.result}"
        )
        return said


def dry_run(configuration: Configuration) -> Needs:
    """Try everything but the run. Raises `ConfigurationError` for what the run would not start with."""
    plan = make_plan(configuration)
    root = configuration.root
    scans = [_scan(scan, number, root.seed, plan.context) for number, scan in enumerate(configuration.scans)]
    engines = [
        _engine(entry, scan, plan.context) for entry in plan.engines for scan in configuration.scans
    ]  # each on the shape of each scan
    last = plan.engines[-1]
    numiter = int(last.parameters.numiter)
    info = {"engine": last.name, "iteration": numiter, "numiter": numiter}
    info["iterations"] = sum(int(e.parameters.numiter) for e in plan.engines)
    result = None if root.io.rfile is None else f"{root.io.home.rstrip('/')}/{file_name(root.io.rfile, configuration.name, info)}"
    flat = not any(scan.frames_per_view > 1 for scan in scans)
    halves = flat and team() is None and root.live.quality.share > 0
    return Needs(configuration.name, plan.device, result, scans, engines, halves)


def _scan(scan: ScanConfiguration, number: int, seed: int, context: Context) -> ScanNeeds:
    p, geometry = scan.data.parameters, geometry_of(scan)
    item = 8 if context.precision == "single" else 16
    model = scan.model(scan.label, number, scan.parameters, geometry, seed)
    probes, objects = (modes * energies for modes, energies in zip(model.modes, model.coherence.storages, strict=True))
    view = _view(model)
    planned = p.planned()
    frames = p.num_frames if planned is None else len(planned)
    canvas = size = None
    if planned is not None and len(planned) and not model.volumes:
        pixels = model.to_pixels(np.asarray(planned, float))
        y, x = (np.ceil(np.ptp(pixels, axis=0)).astype(int) + 1 + view).tolist()
        canvas, size = (y, x), y * x * objects * item
    if model.probe_per_frame:
        probes *= frames or ASSUMED
    return ScanNeeds(
        scan.label,
        str(scan.parameters.name),
        scan.data.name,
        geometry.shape,
        frames,
        2 * math.prod(geometry.shape),
        probes * math.prod(view) * item,
        canvas,
        size,
        view[0] if model.volumes else 1,
    )


def _view(model: ScanModel) -> tuple[int, ...]:
    """Pixels of a probe: (y, x), or of a volume (r3, r1, r2)."""
    return model.bragg.shape if isinstance(model, Bragg3d) else model.geometry.view


def _engine(entry: EngineEntry, scan: ScanConfiguration, context: Context) -> EngineNeeds:
    model = scan.model(scan.label, 0, scan.parameters, geometry_of(scan))
    most = int(np.clip(TRIAL_BYTES // (math.prod(_view(model)) * 8 * model.pods), 4, TRIAL_FRAMES))
    few = max(2, most // 4)
    first = min(int(getattr(entry.parameters, "probe_update_start", 0)), 5) + 1
    trial = _Trial(entry, scan, most, context, first)
    spent = trial.iterate()
    trial.finish()
    on_host = replace(context, device="cpu")  # arrays are as large there, and can be counted
    tracemalloc.start()
    try:
        held = [_held(_Trial(entry, scan, frames, on_host, first)) for frames in (few, most)]
    finally:
        tracemalloc.stop()
    (fewer, _), (more, peak) = held
    slope = max(0.0, (more - fewer) / (most - few))
    beside = max(0.0, peak - slope * most)
    return EngineNeeds(entry.label, entry.name, scan.label, int(entry.parameters.numiter), slope, beside, spent / most)


def _held(trial: _Trial) -> tuple[float, float]:
    """Bytes after an iteration and at its peak, beyond what was there when the trial began and its probe and object, which are
    counted with the scan."""
    trial.iterate()
    gc.collect()
    held, peak = (size - trial.before - trial.images for size in tracemalloc.get_traced_memory())
    trial.finish()
    return float(held), float(peak)


class _Frames(Sample):
    """So many empty frames of 16 bits."""

    def __init__(self, shape: tuple[int, int], frames: int) -> None:
        super().__init__(shape, "u2")
        self.slab_frames = frames
        self._slab = np.ones((frames, *shape), np.uint16)


class _Trial:
    """An engine on empty frames."""

    def __init__(self, entry: EngineEntry, scan: ScanConfiguration, frames: int, context: Context, warm: int) -> None:
        geometry = geometry_of(scan)
        model = scan.model(scan.label, 0, scan.parameters, geometry)
        store = _Frames(model.store_shape, frames)
        gc.collect()  # an engine before this one may be part of a cycle
        self.before = tracemalloc.get_traced_memory()[0] if tracemalloc.is_tracing() else 0
        if tracemalloc.is_tracing():
            tracemalloc.reset_peak()
        made = Reconstruction({}, {}, PodTable(model.pods))
        pixel = np.asarray(geometry.pixel_size_m or (1.0, 1.0))
        block = Block(
            scan.label, np.arange(frames), np.arange(frames), _grid(frames) * pixel, np.ones(frames), np.zeros(frames, int)
        )
        model.start(made, block, store)
        model.place(made, block)
        self.engine: Engine = entry.make(entry.parameters)
        stores: Any = {0: store}
        self.engine.start(made, stores, replace(context, mean_photons=1.0, brightest_photons=float(np.prod(model.store_shape))))
        self.engine.iterate(warm)  # the probe's update is part of what is measured
        self._made = made

    @property
    def images(self) -> int:
        """Bytes of the objects and probes."""
        return sum(s.data.nbytes for held in (self._made.objects, self._made.probes) for s in held.values())

    def iterate(self) -> float:
        """Seconds of one iteration: the shortest of three."""
        took = []
        for _ in range(3):
            started = time.perf_counter()
            self.engine.iterate(1)
            took.append(time.perf_counter() - started)
        return min(took)

    def finish(self) -> None:
        """Release everything."""
        self.engine.finish()


def _grid(frames: int) -> NDArray[np.float64]:
    """Positions a few pixels apart, (frame, 2)."""
    side = int(np.ceil(np.sqrt(frames)))
    return np.stack(np.divmod(np.arange(frames), side), axis=1) * 4.0


def size_of(count: float) -> str:
    """Bytes as a person reads them."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.3g} {unit}"
