"""Metrics: all are served, named by convention, and written down."""

import math
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from urllib.request import urlopen

import pytest
from problems import end, feed, make_run
from snapshots import quality

from ptystream.metrics import KNOWN_LABELS, METRICS, Metrics

ROOT = Path(__file__).parent.parent


def test_every_metric_is_in_the_reference() -> None:
    text = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    for name, kind, meaning, _ in METRICS:
        assert f"| `{name}` | {kind} |" in text
        assert meaning in text


def test_names_follow_the_conventions() -> None:
    for name, kind, _, labels in METRICS:
        assert name.startswith("ptystream_")
        assert name.endswith("_total") == (kind == "counter")
        assert not {"scan", "run", "uid", "frame"} & set(labels)


def test_what_is_no_longer_in_the_ledger_is_nought() -> None:
    metrics, run = Metrics(), make_run()
    metrics.run(run, {"received": 5, "position_refused": 3}, 0)
    metrics.run(run, {"received": 6}, 0)
    value = metrics.registry.get_sample_value
    assert value("ptystream_frames", {"state": "position_refused"}) == 0
    assert value("ptystream_frames", {"state": "received"}) == 6


def test_the_endpoint_answers_with_what_was_counted() -> None:
    metrics = Metrics()
    metrics.received("s/data", 100)
    metrics.received("s/data", 23)
    metrics.dropped("truncated", 4)
    url, close = metrics.serve()
    try:
        with urlopen(url) as answer:
            text = answer.read().decode()
    finally:
        close()
    assert 'ptystream_received_bytes_total{channel="s/data"} 123.0' in text
    assert 'ptystream_messages_received_total{channel="s/data"} 2.0' in text
    assert 'ptystream_rejected_total{reason="truncated"} 4.0' in text
    assert 'ptystream_frame_latency_seconds_count{stage="published"} 0.0' in text


def test_promtool_finds_nothing_to_say(require: Callable[[str, bool], None]) -> None:
    require("prometheus", shutil.which("promtool") is not None)
    metrics, run = Metrics(), make_run()
    feed(run, 0, 20)
    metrics.received("s/data", 1)
    metrics.dropped("truncated", 1)
    metrics.recording(1, True)
    metrics.disk(ROOT)
    metrics.run(run, run.ledger(), 0)
    url, close = metrics.serve()
    try:
        with urlopen(url) as answer:
            text = answer.read()
    finally:
        close()
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_what_was_never_counted_is_there_as_nought() -> None:
    metrics = Metrics()
    for name, values in KNOWN_LABELS.items():
        (label,) = next(labels for own, _, _, labels in METRICS if own == name)
        for value in values:
            assert metrics.registry.get_sample_value(name, {label: value}) == 0


def test_counters_follow_the_sums_that_others_keep() -> None:
    metrics = Metrics()
    for lost in (0, 3, 3, 10):
        metrics.recording(lost, lost > 3)
        metrics.not_in_files(2 * lost)
        value = metrics.registry.get_sample_value
        assert value("ptystream_unrecorded_messages_total") == lost
        assert value("ptystream_frames_not_in_files_total") == 2 * lost
        assert value("ptystream_recording_full") == (lost > 3)


def test_frames_that_are_refused_do_not_wait() -> None:
    metrics = Metrics()
    metrics.run(make_run(), {"received": 9, "used": 4, "waiting": 2, "saturated": 3}, 0)
    assert metrics.registry.get_sample_value("ptystream_buffer_frames") == 2


def test_a_scan_is_open_from_its_first_frame_to_its_end() -> None:
    metrics, run = Metrics(), make_run()
    value = metrics.registry.get_sample_value
    metrics.run(run, run.ledger(), 0)
    assert value("ptystream_scan_open") == 0
    feed(run, 0, 20)
    metrics.run(run, run.ledger(), 0)
    assert value("ptystream_scan_open") == 1
    assert value("ptystream_beam") == 1
    end(run, 20)
    run.apply({"do": "end", "scan": "s", "reason": "completed"})
    metrics.run(run, run.ledger(), 0)
    assert value("ptystream_scan_open") == 0


def test_what_is_asked_at_each_scrape_is_up_to_date() -> None:
    metrics, asked = Metrics(), []
    metrics.before_scrape.append(lambda: metrics.viewers(len(asked)))
    url, close = metrics.serve()
    try:
        for _ in range(2):
            asked.append(1)
            with urlopen(url) as answer:
                assert f"ptystream_viewers {len(asked)}.0" in answer.read().decode()
    finally:
        close()


def test_figures_of_quality_are_gauges_and_what_was_not_measured_is_no_number() -> None:
    metrics, run = Metrics(), make_run()
    value = metrics.registry.get_sample_value
    assert math.isnan(value("ptystream_resolution_meters") or 0.0)
    assert math.isnan(value("ptystream_quality_timestamp_seconds", {"figure": "frc"}) or 0.0)
    run.quality = quality()
    run.quality["frc"]["resolution_m"] = 3e-8
    metrics.run(run, {}, 0)
    assert value("ptystream_resolution_meters") == 3e-8
    assert value("ptystream_overlap_ratio") == 0.7 and value("ptystream_holes_ratio") == 0.02
    assert value("ptystream_frames_per_beam") == 9.5 and value("ptystream_quality_share_ratio") == 0.1
    assert [value("ptystream_probe_drift_meters", {"axis": axis}) for axis in "yx"] == [1e-9, -2e-9]
    assert value("ptystream_position_rms_meters") == 4e-9
    assert value("ptystream_convergence", {"state": "falling"}) == 1
    assert value("ptystream_convergence", {"state": "rising"}) == 0
    at = run.quality["frc"]["measured_ns"] / 1e9
    assert value("ptystream_quality_timestamp_seconds", {"figure": "frc"}) == at
    run.quality["frc"]["resolution_m"] = None  # they agree up to the Nyquist frequency: a pixel
    metrics.run(run, {}, 0)
    assert value("ptystream_resolution_meters") == pytest.approx(0.5 / run.quality["frc"]["frequency_per_m"][-1])
    run.quality = {}  # another run
    metrics.run(run, {}, 0)
    assert math.isnan(value("ptystream_overlap_ratio") or 0.0)
    assert value("ptystream_convergence", {"state": "falling"}) == 0
