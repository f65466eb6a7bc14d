"""What goes into a result's file, and what it is called."""

from __future__ import annotations

import contextlib
import getpass
import json
import platform
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream import __version__
from ptystream.model.opr import decomposed
from ptystream.params.errors import ConfigurationError, Fault
from ptystream.params.load import Configuration, ScanConfiguration
from ptystream.params.patterns import fill
from ptystream.reconstruction import Reconstruction
from ptystream.recording import Recorder
from ptystream.run import Run
from ptystream.scan.contents import contents, differing
from ptystream.storage import ptyr


def as_json(given: Mapping[str, Any]) -> str:
    """A configuration as text: what JSON has no form for is told by its text."""
    return json.dumps(given, default=ptyr.plain)


def file_name(pattern: str, run: str, info: Mapping[str, Any] | None = None) -> str:
    """A path pattern filled in, as ptypy's: %(run)s, %(engine)s, %(iteration)d, %(iterations)04d, …

    `info` is the last entry of `iter_info`; before there is one the engine is 'None' and the numbers are 0.
    Raises `ConfigurationError` for a pattern with unknown keys.
    """
    try:
        return fill(pattern, run, info)
    except ValueError as error:
        raise ConfigurationError([Fault("io", pattern, str(error))]) from error


def changed_files(configuration: Configuration, known: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Arrays of the scans that are not what was `known` of them, by label and name: path and file of each."""
    found = []
    for scan in configuration.scans:
        for name in differing(contents(scan.data.parameters), known.get(scan.label, {})):
            found.append(f"scans.{scan.label}.data.{name}: {given_of(configuration, scan.label, name)}")
    return found


def given_of(configuration: Configuration, label: str, name: str) -> str:
    """A parameter of a scan's frames as it was given, in a few words: the name of a file, say."""
    found: Any = configuration.given
    for key in ("scans", label, "data", name):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found[:200] if isinstance(found, str) else "its value"


def versions() -> dict[str, str]:
    """Of what decides the bits of a result: packages, and the machine, because kernels are compiled for its processor."""
    packages = {name: version(name) for name in ("scipy", "numba")}
    return {
        "ptystream": __version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        **packages,
        "machine": machine(),
    }


def made_by() -> dict[str, str]:
    """Who runs this, and where; what the system does not tell is left out."""
    found = {"host": platform.node()}
    with contextlib.suppress(OSError, KeyError, ImportError):  # a container may know no name for its user
        found["user"] = getpass.getuser()
    return {name: value for name, value in found.items() if value}


def machine() -> str:
    """Kind of processor."""
    model = ""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    except (OSError, ValueError):
        pass
    return f"{platform.machine()} {model or platform.processor()}".strip()


def effective(configuration: Configuration) -> dict[str, Any]:
    """Every parameter with the value in force, nested as in a configuration."""

    def scan_of(scan: ScanConfiguration) -> dict[str, Any]:
        data = scan.data.parameters.model_dump()
        if scan.positions is not None:
            data["positions"] = scan.positions.parameters.model_dump()
        if scan.also:
            data["also"] = [source.parameters.model_dump() for source in scan.also]
        return {**scan.parameters.model_dump(), "data": data}

    return {
        **configuration.root.model_dump(),
        "run": configuration.name,
        "scans": {scan.label: scan_of(scan) for scan in configuration.scans},
        "engines": {engine.label: {**engine.parameters.model_dump(), "name": engine.name} for engine in configuration.engines},
    }


def result_of(run: Run, configuration: Configuration) -> ptyr.Result:
    """The value that is stored."""
    assert run.reconstruction is not None
    held = run.reconstruction if run.engine is None else run.engine.snapshot()  # cut short: it lies on the engine's device
    errors, misfit = run.history()
    snapshot = run.snapshot({})
    last = {} if run.last is None else {"probe": run.last.probes, "object": run.last.objects}
    return ptyr.Result(
        run=run.name,
        probe=held.probes,
        object=held.objects,
        parameters=configuration.given,
        iter_info=run.iter_info,
        positions_m=snapshot.positions * run.pixels_m(),
        errors=errors,
        misfit=misfit,
        ledger=run.ledger(),
        ledger_frames=snapshot.ledger_map,
        schedule=run.schedule.to_list(),
        decisions=run.decisions,
        versions=versions() | {"device": run.context.device},
        coverage=snapshot.coverage,
        last=last,
        refined_m=run.refined(),
        error_local=run.local_errors(),
        runtime=_runtime(run, held),
        started=run.started,
        ended=time.time(),
        uid=run.uid,
        made_by=made_by(),
        frame_numbers=run.frame_numbers(),
        scans={scan.label: _described(scan, run) for scan in configuration.scans},
        used=effective(configuration),
        quality=run.quality,
        beside=_beside(run),
    )


def _beside(run: Run) -> dict[str, NDArray[Any]]:
    """What was refined beside object, probe and positions, for the frames of the result."""
    refined = getattr(run.engine, "refined", None)  # cut short: the engine has it still
    held = run.beside | ({} if refined is None else refined())
    rows, found = run.rows(), {}
    for name in ("tilts", "current"):
        if name in held and (len(held[name]) == 1 or len(held[name]) > rows.max(initial=-1)):
            found[name] = held[name] if len(held[name]) == 1 else held[name][rows]
    if "aberrations" in held:
        found["aberrations"] = held["aberrations"]
    if "background" in held:
        found["background"] = np.fft.fftshift(held["background"])
    return found


def _runtime(run: Run, held: Reconstruction) -> dict[str, Any]:
    """What else engines leave, under ptypy's names."""
    found: dict[str, Any] = {}
    if intensities := run.floating_intensities():
        found["float_intens"] = intensities
    dimensions = 0 if run.engine_entry is None else getattr(run.engine_entry.parameters, "subspace_dim", 0)
    own = {name: storage for name, storage in held.probes.items() if storage.modes_per_frame} if dimensions else {}
    for name, storage in own.items():
        modes, coefficients = decomposed(storage.data, storage.modes_per_frame, dimensions)
        found.setdefault("OPR_modes", {})[name] = modes
        found.setdefault("OPR_coeffs", {})[name] = coefficients
    return found


def _described(scan: ScanConfiguration, run: Run) -> dict[str, Any]:
    """What a result tells of a scan, beside its pictures."""
    held = run.scans[scan.label]
    p = held.buffer.parameters
    told = {name: getattr(p, name) for name in ("experimentID", "version", "psize", "energy", "distance", "acc_voltage")}
    decided = run.decided(scan.label)
    own = run.acquisitions.get(scan.label)
    return {
        "acquisition": None if own is None else list(own[1:]),
        "label": p.label or scan.label,
        **told,
        "series": held.buffer.series.id,
        "angle": held.buffer.series.angle,
        "shape": list(held.model.geometry.shape),
        "num_frames": int(held.buffer.ledger.counts().get("used", 0)),
        "center": decided.get("center", p.center),
        "ended": held.buffer.ended or "",
        "contents": held.contents,
    }


def save(run: Run, configuration: Configuration, recorder: Recorder | None) -> Path | None:
    """Write the result of a run; what it used is recorded first."""
    if recorder is not None:
        recorder.flush()
    root = configuration.root
    if root.io.rfile is None or run.reconstruction is None:
        return None
    info = (run.iter_info[-1] if run.iter_info else {}) | run.series.keys()
    name = file_name(root.io.rfile, run.name, info)
    return ptyr.write(Path(root.io.home) / name, result_of(run, configuration), root.io.rformat)
