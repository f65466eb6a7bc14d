"""What Prometheus can scrape: every metric of a session, named once."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from ptystream import __version__

LATENCY_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 1.0, 2.0, 5.0, 10.0, 30.0)
ITERATION_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
STATES = ("waiting", "running", "paused", "finished", "failed")
STAGES = ("taken", "used", "published")
"""Latency is counted from a frame's arrival: until the engine took it, an iteration used it, a picture with it was out."""

METRICS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("ptystream_messages_received_total", "counter", "Messages that arrived.", ("channel",)),
    ("ptystream_received_bytes_total", "counter", "Bytes that arrived.", ("channel",)),
    ("ptystream_rejected_total", "counter", "Input that was counted and dropped.", ("reason",)),
    ("ptystream_frames", "gauge", "Frames of the current run by their place in the ledger.", ("state",)),
    ("ptystream_notes", "gauge", "What the current run counted that is no frame: samples, messages, pixels.", ("kind",)),
    ("ptystream_buffer_frames", "gauge", "Frames received and not yet used.", ()),
    ("ptystream_iteration_duration_seconds", "histogram", "One iteration.", ("engine",)),
    ("ptystream_iterations_total", "counter", "Iterations.", ("engine",)),
    ("ptystream_error", "gauge", "Errors of the last iteration, as the engine reports them.", ("kind",)),
    ("ptystream_misfit", "gauge", "Data misfit of probe times object in the last iteration.", ("kind",)),
    ("ptystream_frame_latency_seconds", "histogram", "Age of the newest frame when it reached a stage.", ("stage",)),
    ("ptystream_last_frame_timestamp_seconds", "gauge", "Arrival of the newest frame in the picture.", ()),
    ("ptystream_unrecorded_messages", "gauge", "Messages that the recording lacks because the disk was full.", ()),
    ("ptystream_recording_full", "gauge", "1 while the disk of the recording is full.", ()),
    ("ptystream_viewers", "gauge", "Viewers connected to the publish socket.", ()),
    ("ptystream_run_state", "gauge", "1 for the state that the current run is in.", ("state",)),
    ("ptystream_build_info", "gauge", "1, with the version as label.", ("version",)),
)
"""(name, kind, meaning, labels) of every metric; docs/reference/metrics.md is held against this."""

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
        self._of["ptystream_build_info"].labels(__version__).set(1)
        self._of_runs: dict[int, tuple[int, int | None]] = {}
        """Entries of `iter_info` counted so far, and the newest frame told, by identity of the run."""
        self._counted: dict[str, set[str]] = {}

    def received(self, channel: str, size: int) -> None:
        """A message of `size` bytes arrived."""
        self._of["ptystream_messages_received_total"].labels(channel).inc()
        self._of["ptystream_received_bytes_total"].labels(channel).inc(size)

    def dropped(self, reason: str, count: int) -> None:
        """Input was rejected before it reached a ledger."""
        self._of["ptystream_rejected_total"].labels(reason).inc(count)

    def recording(self, lost: int, full: bool) -> None:
        """Messages that are not recorded so far, and whether the disk is full."""
        self._of["ptystream_unrecorded_messages"].set(lost)
        self._of["ptystream_recording_full"].set(full)

    def viewers(self, count: int) -> None:
        """Viewers that are connected."""
        self._of["ptystream_viewers"].set(count)

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
        self._of["ptystream_buffer_frames"].set(max(0, ledger.get("received", 0) - ledger.get("used", 0)))
        for state in STATES:
            self._of["ptystream_run_state"].labels(state).set(state == run.state)
        for name, history, kinds in (
            ("ptystream_error", run.errors, ("fourier", "photon", "exit")),
            ("ptystream_misfit", run.misfit, ("amplitude", "photon", "poisson")),
        ):
            if history:
                for kind, value in zip(kinds, history[-1][-1], strict=True):
                    self._of[name].labels(kind).set(float(value))

    def serve(self, address: str = "127.0.0.1", port: int = 0) -> tuple[str, Any]:
        """Answer scrapes over HTTP; returns (url, function that ends it). Raises `OSError` where the port is taken."""
        server, thread = start_http_server(port, address, self.registry)

        def close() -> None:
            server.shutdown()
            server.server_close()
            thread.join(5.0)

        assert isinstance(thread, threading.Thread)
        return f"http://{address}:{server.server_port}/metrics", close
