"""From a checked configuration to a session that is ready to run: the wiring, and nothing else."""

from __future__ import annotations

import logging
import math
import os
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ptystream import __version__
from ptystream.assessment.assessor import Assessor
from ptystream.assessment.following import lacking
from ptystream.assessment.looking import Looker
from ptystream.device import choose
from ptystream.dumping import Dumping
from ptystream.engine import Context
from ptystream.epochs import EpochMap
from ptystream.ingest import Tap
from ptystream.kept import Kept
from ptystream.loop import LoopSettings
from ptystream.model import sharing
from ptystream.model.bragg_model import Bragg3d
from ptystream.model.geometry import Geometry, GeometryError
from ptystream.model.scan_model import ScanModel
from ptystream.model.spectrum import CoherenceParameters
from ptystream.parallel import team
from ptystream.params.branches import IoParameters, RootParameters
from ptystream.params.errors import ConfigurationError, Fault
from ptystream.params.load import Configuration, EngineConfiguration, ScanConfiguration, SourceConfiguration
from ptystream.pypty_output import PyPtyOutput
from ptystream.raw import RawFrames
from ptystream.recording import Recorder, Recording
from ptystream.results import as_json, changed_files, file_name, save
from ptystream.run import Run
from ptystream.run_state import EngineEntry
from ptystream.scan.contents import contents
from ptystream.scan.header import left_out
from ptystream.scan.memory import FRAMES, Budget, allowed_bytes
from ptystream.scan.parameters import PtyScanParameters
from ptystream.scan.ptyscan import PtyScan
from ptystream.scan.rocking import RockingScan
from ptystream.scan.saver import Saver
from ptystream.spread import spread
from ptystream.stopwatch import write_benchmark
from ptystream.storage.leftovers import sweep
from ptystream.transport import Surroundings, Transport
from ptystream.warming import warm_up
from ptystream.wiring import Channel, Plan, ScanEntry

log = logging.getLogger(__name__)

NO_SPECTRUM = CoherenceParameters()
QUICK_FRAMES = 32
"""Frames from which on there is a quick look, where one is wanted."""
BEGINNING_BYTES = 120
"""Memory per pixel and mode while a probe is begun."""


def make_plan(
    configuration: Configuration,
    *,
    recorder: Recorder | None = None,
    transports: Mapping[str, Transport] | None = None,
    interrupted: bool = False,
    recording: Recording | None = None,
) -> Plan:
    """Everything a `Session` needs. `transports`, by channel, stand in for the configured ones (a replay).

    `interrupted`: the recorder continues the record of a session that was cut off; its runs go on from their dumps.
    `recording`: what is given back, where something is; rows of files that it has copies of are taken from it.
    """
    root = configuration.root
    ranks = team()
    threads = root.threads or (len(os.sched_getaffinity(0)) if ranks is None else ranks.cores)
    pool = ThreadPoolExecutor(max(1, min(threads, 4)), "decode")
    channels, entries = [], []
    savers: dict[str, Saver] = {}
    _check_saving(configuration)
    _sweep(configuration)
    settings = LoopSettings(
        root.frames_per_block,
        root.min_frames_for_recon,
        root.live.latency,
        ranks=1 if ranks is None else ranks.size,
        restart_probe=root.live.restart_probe,
    )
    models = models_of(configuration)
    copies = Kept(recording, recorder if root.io.recording.files else None)
    # The other ranks together hold the frames once more, on this machine as a rule.
    memory = FRAMES if ranks is None else Budget(FRAMES.limit // 2)
    for scan in configuration.scans:
        for kind, source in scan.sources.items():
            name = f"{scan.label}/{kind}"
            decoder = source.plugin.decoder(source.parameters, name)
            given = (transports or {}).get(name)
            channels.append(Channel(name, given or transport_of(source, name, decoder, root), decoder))
        epochs = EpochMap(root.live.epochs, list(scan.sources) or ["data"])
        raw = raw_frames(configuration, scan.label, recorder, recording)
        made = _maker(scan, models[scan.label], settings, pool, root, savers, copies, memory, raw)
        entries.append(ScanEntry(scan.label, made, epochs, scan.data.parameters.follows))
    _warn(configuration)
    _warn_of_transforms(configuration)
    device, reason = choose(root.device, threads)
    context = Context(
        device=device, threads=threads, seed=root.seed, precision=root.data_type, fft=configuration.scans[0].parameters.ffttype
    )
    engines = [  # with parameters of their own: what is steered in a run is in its schedule, and so repeated with it
        EngineEntry(e.label, e.name, e.parameters.model_copy(deep=True), spread(ranks, e.name, e.engine))
        for e in configuration.engines
    ]
    dumping = Dumping(configuration, recorder)
    folders = {e.label: e.parameters for e in configuration.engines if getattr(e.parameters, "output_folder", "")}
    output = PyPtyOutput(Path(root.io.home), folders) if folders else None
    return Plan(
        name=configuration.name,
        channels=channels,
        scans=entries,
        engines=engines,
        context=context,
        loop=settings,
        runs=root.live.runs,
        overlap=_overlap(configuration, ranks is None),
        aborted=root.live.aborted,
        publish_interval_s=root.io.publish.interval_s,
        publish_share=root.io.publish.share,
        timeout_s=root.live.timeout_s,
        beam_timeout_s=root.live.beam_timeout_s,
        save=lambda run: save(run, configuration, recorder),
        benchmark=lambda run: _benchmark(run, root.io),
        autosave=dumping.autosave if root.io.autosave.active else None,
        look=(lambda run: None) if output is None else output.look,
        over=(lambda run: None) if output is None else output.finish,
        checkpoint=dumping.checkpoint if interrupted else lambda name: None,
        warm_up=lambda: warm_up(next(iter(models.values())), engines, context),
        configuration=configuration,
        assess=lambda run: Assessor(run, root.live.quality.share, root.live.quality.convention_check, alone=ranks is None),
        look_quickly=lambda run: None if root.live.quick_look == "none" else Looker(run, root.live.quick_look),
        quick_frames=_quick_frames(root, settings),
        device=reason if ranks is None else f"{ranks.size} ranks; {reason}",
        close=partial(_wait, savers, output),
    )


def _quick_frames(root: RootParameters, settings: LoopSettings) -> int | None:
    """Frames from which on there is a quick look; None: there is none."""
    return None if root.live.quick_look == "none" else min(QUICK_FRAMES, settings.frames_to_start)


def _overlap(configuration: Configuration, alone: bool) -> int:
    """Runs that are reconstructed at a time: the other ranks follow one engine, and a .ptyd file holds one scan."""
    one_file = any(scan.data.parameters.save is not None for scan in configuration.scans)
    live = configuration.root.live
    if alone and not one_file:
        return live.overlap
    if live.overlap > 1 and "overlap" in live.model_fields_set:
        why = "a .ptyd file holds one scan (data.save)" if alone else "other ranks follow one engine"
        log.warning("live.overlap: %d: one scan after another: %s", live.overlap, why)
    return 1


def _warn_of_transforms(configuration: Configuration) -> None:
    first, *others = configuration.scans
    for scan in others:
        if scan.parameters.ffttype != first.parameters.ffttype:
            told = scan.label, scan.parameters.ffttype, first.parameters.ffttype, first.label
            log.warning("scans.%s.ffttype: %s: all scans of a run use %s, as the first one, %s, does", *told)


def transport_of(source: SourceConfiguration, name: str, decoder: Any, root: RootParameters) -> Any:
    """Where the messages of a channel come from."""
    if not getattr(source.plugin, "surroundings", False):
        return source.plugin.transport(source.parameters, name, decoder)
    around = Surroundings(root.seed, root.frames_per_block, Path(root.io.home))
    return source.plugin.transport(source.parameters, name, decoder, around)


def told_later(scan: ScanConfiguration) -> list[str]:
    """What the header of the source is to tell of the geometry, because the configuration leaves it out."""
    if not getattr(scan.data.plugin, "tells_geometry", False):
        return []
    p = scan.data.parameters
    lengths = ("energy", "distance", "psize") if p.acc_voltage is None else ("distance", "psize")
    return [name for name in lengths if left_out(p, name)] + (["shape"] if p.shape is None else [])


def geometry_of(scan: ScanConfiguration) -> Geometry:
    """Geometry of an entry of `scans`; in object pixels where its positions are. What only the header will tell is assumed to be
    what the parameter tree has for it. Raises `ConfigurationError`."""
    later = [name for name in told_later(scan) if getattr(scan.data.parameters, name) is None]
    assumed = {name: PtyScanParameters.model_fields[name].default for name in later}
    return _geometry(scan, scan.data.parameters.model_copy(update=assumed) if assumed else scan.data.parameters)


def _geometry(scan: ScanConfiguration, p: Any) -> Geometry:
    model = scan.parameters
    side = p.shape if isinstance(p.shape, int) else None if p.shape is None else min(p.shape)
    if side is None:
        raise ConfigurationError([Fault(f"scans.{scan.label}.data.shape", None, "give the side of the cropped frame in pixels")])
    side //= p.rebin or 1
    pixels = scan.positions is not None and scan.positions.parameters.unit == "px"
    known = not pixels and bool((p.energy or p.acc_voltage) and p.distance and p.psize)
    y, x = np.broadcast_to(np.asarray(p.psize or 0.0, float), 2) * (p.rebin or 1)
    near, resolution, resample = model.propagation == "nearfield", getattr(model, "resolution", None), model.resample or 1
    made = partial(
        Geometry, (side, side), near=near, resample=resample, resolution_m=resolution, pad=model.pad, signals=p.signals
    )
    try:
        if not known:
            return made()
        energy = None if p.acc_voltage else p.energy
        return made(energy, p.distance, (float(y), float(x)), voltage_kv=p.acc_voltage)
    except GeometryError as error:
        raise ConfigurationError([Fault(f"scans.{scan.label}.{error.name}", error.value, error.remedy)]) from error


def models_of(configuration: Configuration) -> dict[str, ScanModel]:
    """The scan models, with what they share settled. Raises `ConfigurationError` for all that cannot be begun or shared."""
    seed = configuration.root.seed
    mixed = list(unfit(configuration))
    if mixed:
        raise ConfigurationError(mixed)
    late = {s.label for s in configuration.scans if told_later(s)}
    first = {s.label: s.model(s.label, k, s.parameters, geometry_of(s), seed) for k, s in enumerate(configuration.scans)}
    faults = [Fault(f"scans.{path}", value, remedy) for path, value, remedy in sharing.faults(first)]
    models = {}
    for label, model in first.items() if not faults else ():
        models[label] = type(model)(label, model.number, sharing.adopted(model, first), model.geometry, seed)
        if label in late:
            continue  # tried when the header is there
        side, needed = model.geometry.view, BEGINNING_BYTES * math.prod(model.geometry.view) * model.modes[0]
        if needed > allowed_bytes():
            remedy = (
                f"beginning a probe of {side} pixels takes {needed:.3g} bytes, of {allowed_bytes():.3g} allowed; crop or rebin"
            )
            faults.append(Fault(f"scans.{label}.data.shape", model.geometry.shape[0], remedy))
            continue
        try:
            models[label].try_out()
        except ValueError as error:
            path, _, remedy = str(error).partition(": ")
            faults.append(Fault(f"scans.{label}.{path}", None, remedy))
    if faults:
        raise ConfigurationError(faults)
    return models


def unfit(configuration: Configuration) -> Iterator[Fault]:
    """Models with engines that do not know them, or the other way round, or without what they need."""
    curves = [scan for scan in configuration.scans if scan.model.volumes]
    kind = configuration.root.live.quick_look
    for scan in configuration.scans if kind != "none" else ():
        if (lacks := lacking(kind, scan, geometry_of(scan))) is not None:
            yield Fault(f"scans.{scan.label}.{lacks[0]}", *lacks[1:])
    own = any(scan.model.probe_per_frame for scan in configuration.scans)
    for engine in configuration.engines:
        takes = bool(getattr(engine.engine, "takes_volumes", False))
        path = f"engines.{engine.label}.name"
        if takes and len(curves) < len(configuration.scans):
            yield Fault(path, engine.name, "works on rocking curves: every scan needs `name: Bragg3dModel`")
        elif curves and not takes:
            yield Fault(path, engine.name, "does not work on rocking curves (scans with Bragg3dModel); use DM_3dBragg")
        for scan in configuration.scans:
            yield from _for_electrons(scan, engine)
        if getattr(engine.engine, "wants_probe_per_frame", False) and not own:
            yield Fault(path, engine.name, "needs a scan with `name: OPRModel`, a probe for each frame")
    for scan in curves:
        path, p = f"scans.{scan.label}.data", scan.data.parameters
        for name in ("energy", "distance", "psize"):
            if not getattr(p, name) and name not in told_later(scan):
                yield Fault(f"{path}.{name}", getattr(p, name), "must be given: Bragg3dModel works in metres")
        if p.save is not None:
            yield Fault(f"{path}.save", p.save, "a .ptyd file holds no rocking angles; record the session instead")
        given = None if scan.positions is None else scan.positions.parameters
        if given is None or given.channels.angle is None:
            yield Fault(f"{path}.positions.channels.angle", None, "name the channel of the rocking angle (degrees)")
        elif given.unit != "m":
            yield Fault(f"{path}.positions.unit", given.unit, "Bragg3dModel needs positions in metres")


def _for_electrons(scan: ScanConfiguration, engine: EngineConfiguration) -> Iterator[Fault]:
    """What only some engines do."""
    path, p, told = f"scans.{scan.label}", scan.parameters, f"engines.{engine.label} ({engine.name})"
    if p.pad and not getattr(engine.engine, "takes_pad", False):
        yield Fault(f"{path}.pad", p.pad, f"{told} takes no model that is wider than the detector: use PyPty, or leave it out")
    if scan.data.parameters.signals is not None and not getattr(engine.engine, "takes_signals", False):
        yield Fault(f"{path}.data.signals", scan.data.parameters.signals, f"{told} takes patterns only: use PyPty")
    if p.margin and scan.model.volumes:
        yield Fault(f"{path}.margin", p.margin, "a volume has no room around it: leave it out")
    if scan.data.parameters.acc_voltage is not None and len(getattr(p, "coherence", NO_SPECTRUM).energies) > 1:
        yield Fault(f"{path}.coherence.energies", p.coherence.energies, "electrons of one voltage have one energy: leave it out")
    if scan.data.parameters.acc_voltage is not None and scan.model.volumes:
        yield Fault(f"{path}.data.acc_voltage", scan.data.parameters.acc_voltage, "Bragg3dModel is for light: give `energy`")


def _warn(configuration: Configuration) -> None:
    """Of what can be done and hardly makes sense."""
    own = any(scan.model.probe_per_frame for scan in configuration.scans)
    for engine in configuration.engines if own else ():
        if not getattr(engine.engine, "wants_probe_per_frame", False):
            log.warning(
                "engines.%s: %s leaves the probe of each frame of an OPRModel free; DMOPR and MLOPR keep them in a subspace",
                *(engine.label, engine.name),
            )


def _wait(savers: Mapping[str, Saver], output: PyPtyOutput | None) -> None:
    for saver in savers.values():
        saver.wait()
    if output is not None:
        output.close()


def _sweep(configuration: Configuration) -> None:
    """Remove what an earlier session of this name was writing when it was killed."""
    io = configuration.root.io
    saved = [scan.data.parameters.dfile for scan in configuration.scans if scan.data.parameters.save is not None]
    chunks = [f"{name.replace('%', '%%')}%(chunk)s" for name in map(str, saved)]
    for pattern in (io.rfile, io.autosave.rfile, "benchmark.json", *chunks):
        if pattern is not None:
            sweep(Path(io.home), pattern, configuration.name)


def _check_saving(configuration: Configuration) -> None:
    """Raises `ConfigurationError` where prepared frames cannot be saved as they are asked to be."""
    faults: list[Fault] = []
    files: dict[Path, str] = {}
    for scan in configuration.scans:
        p, path = scan.data.parameters, f"scans.{scan.label}.data"
        if p.save is None:
            continue
        if p.acc_voltage is not None:
            faults.append(Fault(f"{path}.save", p.save, "a .ptyd file tells a photon energy and no voltage: record instead"))
        if p.signals is not None:
            faults.append(Fault(f"{path}.save", p.save, "a .ptyd file holds pictures and no signals: record the session instead"))
        file = (Path(configuration.root.io.home) / p.dfile).resolve()
        if file in files:
            faults.append(Fault(f"{path}.dfile", p.dfile, f"is that of {files[file]} too: each scan needs a file of its own"))
        files[file] = path
        if scan.positions is not None and scan.positions.parameters.unit == "px":
            faults.append(Fault(f"{path}.save", p.save, "a .ptyd file holds positions in metres, those of this scan are pixels"))
    if faults:
        raise ConfigurationError(faults)


def _maker(
    scan: ScanConfiguration,
    model: ScanModel,
    settings: LoopSettings,
    pool: ThreadPoolExecutor,
    root: RootParameters,
    savers: dict[str, Saver],
    copies: Kept,
    memory: Budget,
    raw: RawFrames,
) -> Any:
    """Makes buffer and model of a scan. The savers, the newest of each label, are left in `savers`."""

    def make(decisions: Mapping[str, Any] | None) -> tuple[PtyScan, Any]:
        positions = None if scan.positions is None else scan.positions.parameters
        quick = _quick_frames(root, settings)
        p, saver = scan.data.parameters, None
        if p.save is not None:
            limit, before = settings.frames_per_block, savers.get(scan.label)
            saver = Saver(scan.label, p, Path(root.io.home) / p.dfile, max_frames=limit, after=before)
            savers[scan.label] = saver
        own = model.again()
        buffer = partial(
            PtyScan,
            scan.label,
            scan.data.parameters.model_copy(),  # what is set while it runs is for those to come
            positions,
            also=[source.parameters for source in scan.also],
            pool=pool if p.frames_in_parallel else None,
            decide_after=settings.frames_to_start if quick is None else quick,
            decisions=decisions,
            pixel_m=model.geometry.pixel_size_m,
            seed=model.seed,
            saver=saver,
            settle=partial(_settle, scan, own),
            copies=copies,
            budget=memory,
            raw=raw,
        )
        if isinstance(model, Bragg3d):
            p = scan.parameters.rocking
            curves = partial(RockingScan, *buffer.args, **buffer.keywords)
            angles, step = p.n_rocking_positions, p.rocking_step
            return curves(angles=angles, step_deg=step, tolerance_m=p.tolerance), own
        return buffer(), own

    return make


def raw_frames(configuration: Configuration, label: str, recorder: Recorder | None, recording: Recording | None) -> RawFrames:
    """The frames of a scan as they came, in the recording that is written or given back: of the scan that has the sources."""
    scans = {scan.label: scan for scan in configuration.scans}
    while (before := scans[label].data.parameters.follows) is not None:
        label = before
    source, channel = scans[label].data, f"{label}/data"
    bare = getattr(source.plugin, "bare", tuple)
    return RawFrames(channel, lambda: source.plugin.decoder(source.parameters, channel), recorder, recording, bare)


def _settle(scan: ScanConfiguration, model: ScanModel, parameters: PtyScanParameters) -> tuple[float, float] | None:
    """Put a model into the geometry that configuration and header make together; returns the pixel on the sample.

    Raises `ValueError` where something is not known that the configuration left to the header, or cannot be.
    """
    later = told_later(scan)
    missing = [name for name in later if getattr(parameters, name) is None]
    metres = scan.positions is None or scan.positions.parameters.unit == "m"
    if missing and metres:
        names = ", ".join(f"scans.{scan.label}.data.{name}" for name in missing)
        raise ValueError(f"{names}: left to the header of the source, which does not tell it, or was missed: give a value")
    for name in later:
        if left_out(parameters, name):
            log.warning("%s: data.%s: neither given nor told: %s is assumed", scan.label, name, getattr(parameters, name))
    geometry = _geometry(scan, parameters)
    if later or geometry != model.geometry:
        model.stand(geometry)
        if (needed := BEGINNING_BYTES * math.prod(geometry.view) * model.modes[0]) > allowed_bytes():
            raise ValueError(f"data.shape: beginning a probe of {geometry.view} pixels takes {needed:.3g} bytes; crop or rebin")
        model.try_out()
    return geometry.pixel_size_m


def recorder_of(configuration: Configuration) -> tuple[Recorder | None, Path | None]:
    """The recorder of a configuration, and the record of an interrupted session that it continues."""
    settings = configuration.root.io.recording
    if not settings.active:
        return None, None
    path = Path(configuration.root.io.home) / file_name(settings.file, configuration.name)
    interrupted = None
    if path.exists():
        existing = Recording(path)
        messages = sum(1 for _ in existing)
        if existing.finished or messages == 0:
            os.replace(path, path.with_suffix(f".{int(path.stat().st_mtime)}{path.suffix}"))
        else:
            interrupted = path
            for told in changed_files(configuration, existing.metadata.get("contents") or {}):
                log.error("%s: %s is not what it was before the interruption", path, told)
            log.warning("%s: %d messages of an interrupted session: continuing it", path, messages)
    metadata: dict[str, Any] = {
        "configuration": as_json(configuration.given),
        "version": __version__,
        "session": uuid.uuid4().hex,
    }
    metadata["contents"] = {scan.label: contents(scan.data.parameters) for scan in configuration.scans}
    return Recorder(path, metadata, fsync=settings.fsync, go_on=settings.when_full == "continue"), interrupted


def with_recorder(recorder: Recorder | None) -> Tap | None:
    """The tap of a session."""
    return recorder


def _benchmark(run: Run, io: IoParameters) -> None:
    if io.benchmark is not None:
        write_benchmark(Path(io.home) / "benchmark.json", run.stopwatch.seconds, io.benchmark)
