"""The documents of a run as Bluesky has them: what was begun, how it goes, where the result lies, how it ended. No I/O but a look
at the result's file."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

import h5py
import numpy as np

from ptystream.engine import headline
from ptystream.results import made_by, versions
from ptystream.run import Run

Document: TypeAlias = tuple[str, dict[str, Any]]
"""('start', {…})"""
DEVICE = "ptystream"
"""Name of the object whose keys these are."""
STREAM, RESULT = "primary", "result"
NAN = float("nan")
KEYS: dict[str, tuple[str, str]] = {
    "iteration": ("integer", ""),
    "engine": ("string", ""),
    "error": ("number", ""),
    "error_kind": ("string", ""),
    "misfit": ("number", ""),
    "misfit_photon": ("number", ""),
    "frames_received": ("integer", ""),
    "frames_used": ("integer", ""),
    "latency": ("number", "s"),
}
"""Data key → type and unit."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What documents tell of a run at one moment."""

    uid: str
    run: str
    state: str
    started: float
    at: float
    """Seconds since the epoch."""
    scans: Mapping[str, Mapping[str, Any]]
    """Label → `acquisition`, `turn` (how many had that name before), `series` and `angle`."""
    engines: tuple[Mapping[str, Any], ...]
    data: Mapping[str, Any]
    """Values of `KEYS`."""
    ended: Mapping[str, str]
    """Label → why the scan was over."""
    failures: tuple[str, ...]

    @classmethod
    def of(cls, run: Run) -> Facts:
        """As it is now; called in the engine's thread, at a bounded rate."""
        errors, misfits = (history[-1] if history else np.zeros((0, 3)) for history in (run.errors, run.misfit))
        kind, error = headline(errors[-1]) if len(errors) else ("", NAN)  # a run that goes on from a dump may have none yet
        misfit = misfits[-1] if len(misfits) else (NAN, NAN)
        ledger = run.ledger()
        latency = NAN if run.newest_arrival_ns is None else (run.used_ns - run.newest_arrival_ns) / 1e9
        scans = {}
        for label, scan in run.scans.items():
            _, acquisition, turn = run.acquisitions.get(label, (label, "", 0))
            series = scan.buffer.series
            angle = {} if series is None or series.angle is None else {"angle": float(series.angle)}
            scans[label] = {"acquisition": acquisition, "turn": turn, "series": str(series.id) if series else "", **angle}
        return cls(
            uid=run.uid,
            run=run.name,
            state=run.state,
            started=run.started,
            at=time.time(),
            scans=scans,
            engines=tuple({"label": e.label, "name": e.name, "numiter": int(e.parameters.numiter)} for e in run.engines),
            data={
                "iteration": run.iterations,
                "engine": run.engine_entry.name if run.engine_entry else "",
                "error": float(error),
                "error_kind": kind,
                "misfit": float(misfit[0]),
                "misfit_photon": float(misfit[1]),
                "frames_received": int(ledger.get("received", 0)),
                "frames_used": int(ledger.get("used", 0)),
                "latency": latency,
            },
            ended={label: scan.buffer.ended or "" for label, scan in run.scans.items()},
            failures=tuple(run.failures),
        )


class RunDocuments:
    """The documents of one run, one after the other."""

    def __init__(self, first: Facts) -> None:
        from event_model import compose_run

        acquisitions = [str(scan["acquisition"]) for scan in first.scans.values() if scan["acquisition"]]
        told = {
            "plan_name": DEVICE,
            "plan_type": "reconstruction",
            "run": first.run,
            "scan_uid": acquisitions[0] if acquisitions else "",
            "parents": acquisitions,
            "scans": {label: dict(scan) for label, scan in first.scans.items()},
            "engines": [dict(engine) for engine in first.engines],
            "versions": versions(),
            "made_by": made_by(),
            "hints": {"dimensions": [[["iteration"], STREAM]]},
        }
        self._run: Any = compose_run(uid=first.uid, time=first.started, metadata=told, validate=False)
        self._stream: Any = None
        self._iteration = 0

    def begin(self) -> Iterator[Document]:
        """What comes first."""
        yield "start", dict(self._run.start_doc)
        keys: dict[str, Any] = {}
        for name, (kind, unit) in KEYS.items():
            keys[name] = {"source": f"{DEVICE}:{name}", "dtype": kind, "shape": []} | ({"units": unit} if unit else {})
        self._stream = self._run.compose_descriptor(
            name=STREAM,
            data_keys=keys,
            object_keys={DEVICE: list(keys)},
            hints={DEVICE: {"fields": ["misfit"]}},
            configuration={DEVICE: {"data": {}, "data_keys": {}, "timestamps": {}}},
            validate=False,
        )
        yield "descriptor", dict(self._stream.descriptor_doc)

    def progress(self, facts: Facts) -> Iterator[Document]:
        """An event, where there were iterations since the last one."""
        if facts.data["iteration"] > self._iteration:
            self._iteration = facts.data["iteration"]
            stamps = dict.fromkeys(facts.data, facts.at)
            yield (
                "event",
                dict(self._stream.compose_event(data=dict(facts.data), timestamps=stamps, time=facts.at, validate=False)),
            )

    def end(self, facts: Facts, path: Path | None) -> Iterator[Document]:
        """The last event, where the result lies, and how it ended."""
        yield from self.progress(facts)
        if path is not None:
            yield from self._result(path.absolute(), facts.at)
        status, reason = exit_of(facts)
        yield "stop", dict(self._run.compose_stop(exit_status=status, reason=reason, time=facts.at, validate=False))

    def _result(self, path: Path, at: float) -> Iterator[Document]:
        external = dict(_datasets(path))
        keys: dict[str, Any] = {"result_file": {"source": DEVICE, "dtype": "string", "shape": []}}
        for name, (_, shape, dtype, _) in external.items():
            described = {"dtype": "array", "dtype_numpy": dtype, "external": "STREAM:", "shape": list(shape)}
            keys[name] = {"source": f"file://localhost{path}", **described}
        stream = self._run.compose_descriptor(
            name=RESULT,
            data_keys=keys,
            object_keys={DEVICE: list(keys)},
            hints={},
            configuration={DEVICE: {"data": {}, "data_keys": {}, "timestamps": {}}},
            validate=False,
        )
        yield "descriptor", dict(stream.descriptor_doc)
        for name, (dataset, _, _, chunk) in external.items():
            resource = self._run.compose_stream_resource(
                mimetype="application/x-hdf5",
                uri=f"file://localhost{quote(str(path))}",
                data_key=name,
                parameters={"dataset": dataset, "chunk_shape": list(chunk)},
                validate=False,
            )
            yield "stream_resource", dict(resource.stream_resource_doc)
            which: Any = {"start": 0, "stop": 1}
            datum = resource.compose_stream_datum(indices=which, descriptor=stream.descriptor_doc, validate=False)
            yield "stream_datum", dict(datum)
        data, stamps = {"result_file": str(path)}, {"result_file": at}
        yield "event", dict(stream.compose_event(data=data, timestamps=stamps, time=at, validate=False))


def exit_of(facts: Facts) -> tuple[Any, str]:
    """(exit status, reason) of a stop document."""
    if facts.state != "finished":
        why = [*facts.failures, *(reason for reason in facts.ended.values() if reason)]
        return "fail", "; ".join(why) or "the session ended before the run did"
    stopped = [reason for reason in facts.ended.values() if "request" in reason]
    return ("abort", stopped[0]) if stopped else ("success", "")


def _datasets(path: Path) -> Iterator[tuple[str, tuple[str, tuple[int, ...], str, tuple[int, ...]]]]:
    """Data key → dataset, shape, dtype and chunks of every object and probe in a result's file."""
    with h5py.File(path, "r") as file:
        for part, kind in (("obj", "object"), ("probe", "probe")):
            for name, held in file[f"content/{part}"].items():
                data = held["data"]
                yield f"{kind}_{name}", (data.name, data.shape, data.dtype.str, data.chunks or data.shape)
