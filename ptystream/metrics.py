"""What Prometheus can scrape: every metric of a session, named once."""

from __future__ import annotations

import contextlib
import math
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from ptystream import __version__
from ptystream.health import Health
from ptystream.publish.measured import CONVERGENCE
from ptystream.scan.memory import allowed_bytes
from ptystream.scraping import application, serve

LATENCY_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 1.0, 2.0, 5.0, 10.0, 30.0)
ITERATION_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
STATES = ("waiting", "running", "paused", "finished", "failed")
STAGES = ("taken", "used", "published")
"""Latency is counted from a frame's arrival: until the engine took it, an iteration used it, a picture with it was out."""
ARCHIVES = ("cxi", "tiled", "documents")
MISFITS = ("amplitude", "photon", "poisson")
AXES = ("y", "x")
FIGURES = ("frc", "coverage", "drift", "convergence")

METRICS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("ptystream_messages_received_total", "counter", "Messages that arrived.", ("channel",)),
    ("ptystream_received_bytes_total", "counter", "Bytes that arrived.", ("channel",)),
    ("ptystream_last_message_timestamp_seconds", "gauge", "Arrival of the newest message.", ("channel",)),
    ("ptystream_rejected_total", "counter", "Input that was counted and dropped.", ("reason",)),
    ("ptystream_frames", "gauge", "Frames of the current run by their place in the ledger.", ("state",)),
    ("ptystream_notes", "gauge", "What the current run counted that is no frame: samples, messages, pixels.", ("kind",)),
    ("ptystream_buffer_frames", "gauge", "Frames received and neither used nor given up.", ()),
    ("ptystream_scan_open", "gauge", "1 while frames of the current run have come and more may come.", ()),
    ("ptystream_beam", "gauge", "0 while dose or shutter of the current run say that there is no beam.", ()),
    ("ptystream_iteration_duration_seconds", "histogram", "One iteration.", ("engine",)),
    ("ptystream_iterations_total", "counter", "Iterations.", ("engine",)),
    ("ptystream_run_iterations", "gauge", "Iterations of the current run.", ()),
    ("ptystream_error", "gauge", "Errors of the last iteration, as the engine reports them.", ("kind",)),
    ("ptystream_misfit", "gauge", "Data misfit of probe times object in the last iteration.", ("kind",)),
    ("ptystream_first_misfit", "gauge", "The same in the first iteration of the current run.", ("kind",)),
    ("ptystream_convergence", "gauge", "1 for what the misfit of the current run does.", ("state",)),
    ("ptystream_resolution_meters", "gauge", "Half the period to which both halves of the frames agree; a pixel at best.", ()),
    ("ptystream_overlap_ratio", "gauge", "Linear overlap of neighbouring positions.", ()),
    ("ptystream_holes_ratio", "gauge", "Share of the hull of the positions that saw too little.", ()),
    ("ptystream_frames_per_beam", "gauge", "Frames for the area of one beam.", ()),
    ("ptystream_probe_drift_meters", "gauge", "Where the probe's centre of mass is, from where it began.", ("axis",)),
    ("ptystream_position_rms_meters", "gauge", "Rms of what refinement moved the positions by.", ()),
    ("ptystream_quality_share_ratio", "gauge", "Share of the engine thread's time that the split halves really take.", ()),
    ("ptystream_quality_timestamp_seconds", "gauge", "When a figure of the current run was measured last.", ("figure",)),
    ("ptystream_frame_latency_seconds", "histogram", "Age of the newest frame when it reached a stage.", ("stage",)),
    ("ptystream_last_frame_timestamp_seconds", "gauge", "Arrival of the newest frame in the picture.", ()),
    ("ptystream_unrecorded_messages_total", "counter", "Messages that the recording lacks because the disk was full.", ()),
    ("ptystream_recording_full", "gauge", "1 while the disk of the recording is full.", ()),
    ("ptystream_recording_free_bytes", "gauge", "Room on the disk of the recording.", ()),
    ("ptystream_frames_not_in_files_total", "counter", "Frames that io.frames could not write to a file any more.", ()),
    ("ptystream_unsaved_results", "gauge", "Results that could not be written and are only in the recording.", ()),
    ("ptystream_archived_total", "counter", "Results and documents that went to another place.", ("target", "outcome")),
    ("ptystream_viewers", "gauge", "Viewers connected to the publish socket.", ()),
    ("ptystream_steering_requests_total", "counter", "Requests to the steering socket.", ("outcome",)),
    ("ptystream_dead_part", "gauge", "1 for a part that ended of an error while the session goes on.", ("part",)),
    ("ptystream_engine_heartbeat_timestamp_seconds", "gauge", "When the engine's thread came round last.", ()),
    ("ptystream_run_state", "gauge", "1 for the state that the current run is in.", ("state",)),
    ("ptystream_runs_total", "counter", "Runs that are over.", ("outcome",)),
    ("ptystream_memory_allowed_bytes", "gauge", "Memory that slabs, canvas and probes may take, each.", ()),
    ("ptystream_build_info", "gauge", "1, with the version as label.", ("version",)),
)
"""(name, kind, meaning, labels) of every metric; docs/reference/metrics.md is held against this."""
KNOWN_LABELS = {
    "ptystream_steering_requests_total": ("done", "refused"),
    "ptystream_runs_total": ("finished", "failed"),
    "ptystream_dead_part": ("archive", "documents", "interaction", "steering"),
}
"""Values of a label that are there before anything has happened, so that the first time is an increase."""

_KINDS: dict[str, Any] = {"counter": Counter, "gauge": Gauge, "histogram": Histogram}


class Metrics:
    """The metrics of one session, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._of: dict[str, Any] = {}
        for name, kind, meaning, labels in METRICS:
            options: dict[str, Any] = {"registry": self.registry}
            if kind == "histogram":
                options["buckets"] = ITERATION_BUCKETS if "iteration" in name else LATENCY_BUCKETS
            self._of[name] = _KINDS[kind](name.removesuffix("_total"), meaning, labels, **options)
        for stage in STAGES:
            self._of["ptystream_frame_latency_seconds"].labels(stage)
        for state in STATES:
            self._of["ptystream_run_state"].labels(state).set(0)
        for target in ARCHIVES:
            for outcome in ("done", "failed"):
                self._of["ptystream_archived_total"].labels(target, outcome)
        self._quality({}, in_metres=False)
        for name, values in KNOWN_LABELS.items():
            for value in values:
                self._of[name].labels(value)
        self._of["ptystream_build_info"].labels(__version__).set(1)
        self._of["ptystream_memory_allowed_bytes"].set(allowed_bytes())
        ProcessCollector(registry=self.registry)
        self.before_scrape: list[Callable[[], None]] = []
        """Called before each scrape, in its thread: they bring up to date what changes without a run."""
        self._lock = threading.Lock()
        self._totals: dict[str, int] = {}
        """Counters whose sums others keep: what was told last."""
        self._of_runs: dict[int, tuple[int, int | None]] = {}
        """Entries of `iter_info` counted so far, and the newest frame told, by identity of the run."""
        self._counted: dict[str, set[str]] = {}

    def received(self, channel: str, size: int) -> None:
        """A message of `size` bytes arrived."""
        self._of["ptystream_messages_received_total"].labels(channel).inc()
        self._of["ptystream_received_bytes_total"].labels(channel).inc(size)
        self._of["ptystream_last_message_timestamp_seconds"].labels(channel).set(time.time())

    def dropped(self, reason: str, count: int) -> None:
        """Input was rejected before it reached a ledger."""
        self._of["ptystream_rejected_total"].labels(reason).inc(count)

    def recording(self, lost: int, full: bool) -> None:
        """Messages that are not recorded so far, and whether the disk is full."""
        self._total("ptystream_unrecorded_messages_total", lost)
        self._of["ptystream_recording_full"].set(full)

    def disk(self, path: Path) -> None:
        """`path` is the recording. Says nothing where its disk does not tell."""
        with contextlib.suppress(OSError):
            self._of["ptystream_recording_free_bytes"].set(shutil.disk_usage(path.parent).free)

    def not_in_files(self, lost: int) -> None:
        """Frames that could not be written to files so far."""
        self._total("ptystream_frames_not_in_files_total", lost)

    def dead(self, part: str, failure: BaseException | None) -> None:
        """Whether a part without which the session goes on has ended, and of what."""
        self._of["ptystream_dead_part"].labels(part).set(failure is not None)

    def unsaved(self, count: int) -> None:
        """Results that could not be written, and were not written since."""
        self._of["ptystream_unsaved_results"].set(count)

    def heartbeat(self, at_s: float) -> None:
        """When the engine's thread came round last, seconds since the epoch."""
        self._of["ptystream_engine_heartbeat_timestamp_seconds"].set(at_s)

    def viewers(self, count: int) -> None:
        """Viewers that are connected."""
        self._of["ptystream_viewers"].set(count)

    def asked(self, done: bool) -> None:
        """A request to the steering socket was done, or refused."""
        self._of["ptystream_steering_requests_total"].labels("done" if done else "refused").inc()

    def archived(self, target: str, done: bool) -> None:
        """A result, or a run's documents, went where they were to go, or did not."""
        self._of["ptystream_archived_total"].labels(target, "done" if done else "failed").inc()

    def over(self, state: str) -> None:
        """A run is over."""
        self._of["ptystream_runs_total"].labels("failed" if state == "failed" else "finished").inc()

    def _total(self, name: str, total: int) -> None:
        """A counter has reached `total`, as who counts says."""
        with self._lock:
            more = total - self._totals.get(name, 0)
            if more > 0:
                self._totals[name] = total
                self._of[name].inc(more)

    def run(self, run: Any, ledger: Mapping[str, int], now_ns: int, *, current: bool = True) -> None:
        """Bring everything about a run up to date; called from the engine's thread. Only the `current` one sets gauges."""
        iterations, frame_told = self._of_runs.get(id(run), (0, None))
        if current:
            self._gauges(run, ledger)
        for info in run.iter_info[iterations:]:
            count = max(1, info["count"])
            self._of["ptystream_iterations_total"].labels(info["engine"]).inc(count)
            self._of["ptystream_iteration_duration_seconds"].labels(info["engine"]).observe(info["duration"] / count)
        newest = run.newest_arrival_ns
        self._of_runs[id(run)] = len(run.iter_info), newest
        if newest is not None and newest != frame_told:
            if current:
                self._of["ptystream_last_frame_timestamp_seconds"].set(newest / 1e9)
            for stage, at in (("taken", run.taken_ns), ("used", run.used_ns), ("published", now_ns)):
                self._of["ptystream_frame_latency_seconds"].labels(stage).observe(max(0.0, (at - newest) / 1e9))

    def forget(self, run: Any) -> None:
        """The run is over: nothing more of it will be told."""
        self._of_runs.pop(id(run), None)

    def _gauges(self, run: Any, ledger: Mapping[str, int]) -> None:
        for name, counts in (("ptystream_frames", ledger), ("ptystream_notes", run.notes())):
            self._counted.setdefault(name, set()).update(counts)
            for label in self._counted[name]:
                self._of[name].labels(label).set(counts.get(label, 0))
        self._of["ptystream_buffer_frames"].set(max(0, ledger.get("waiting", 0)))
        self._of["ptystream_run_iterations"].set(run.iterations)
        is_open = bool(ledger.get("received")) and not run.complete and run.state not in ("finished", "failed")
        self._of["ptystream_scan_open"].set(is_open)
        self._of["ptystream_beam"].set(all(scan.buffer.has_beam for scan in run.scans.values()))
        for state in STATES:
            self._of["ptystream_run_state"].labels(state).set(state == run.state)
        for name, history, kinds, which in (
            ("ptystream_error", run.errors, ("fourier", "photon", "exit"), -1),
            ("ptystream_misfit", run.misfit, MISFITS, -1),
            ("ptystream_first_misfit", run.misfit, MISFITS, 0),
        ):
            if history:
                for kind, value in zip(kinds, history[which][which], strict=True):
                    self._of[name].labels(kind).set(float(value))
        self._quality(run.quality, in_metres=run.in_metres)

    def _quality(self, quality: Mapping[str, Mapping[str, Any]], *, in_metres: bool) -> None:
        """Figures as of `Snapshot.quality`; what was not measured, or is no length in metres, is no number."""
        nothing = math.nan
        frc, seen, drift = (quality.get(name, {}) for name in ("frc", "coverage", "drift"))
        finest = frc["resolution_m"] or 0.5 / frc["frequency_per_m"][-1] if frc else nothing
        for name, value in (
            ("ptystream_resolution_meters", finest if in_metres else nothing),
            ("ptystream_position_rms_meters", drift.get("rms_m", 0.0) if drift and in_metres else nothing),
            ("ptystream_overlap_ratio", seen.get("overlap", nothing)),
            ("ptystream_holes_ratio", seen.get("holes", nothing)),
            ("ptystream_frames_per_beam", seen.get("frames_per_beam", nothing)),
            ("ptystream_quality_share_ratio", frc.get("share", nothing)),
        ):
            self._of[name].set(value)
        for axis, value in zip(AXES, drift.get("probe_m", (nothing, nothing)), strict=True):
            self._of["ptystream_probe_drift_meters"].labels(axis).set(value if in_metres else nothing)
        for figure in FIGURES:
            at = quality.get(figure, {}).get("measured_ns")
            self._of["ptystream_quality_timestamp_seconds"].labels(figure).set(nothing if at is None else at / 1e9)
        for state in CONVERGENCE:
            self._of["ptystream_convergence"].labels(state).set(quality.get("convergence", {}).get("state") == state)

    def serve(self, address: str = "127.0.0.1", port: int = 0, health: Health | None = None) -> tuple[str, Callable[[], None]]:
        """Answer scrapes over HTTP, and with `health` whether the session is alive and ready; returns (URL, function that ends
        it). Raises `OSError` where the port is taken."""
        return serve(application(self.registry, health, self._refresh), address, port)

    def _refresh(self) -> None:
        for bring in self.before_scrape:
            bring()
