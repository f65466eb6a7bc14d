"""Metrics: all are served, named by convention, and written down."""

from pathlib import Path
from urllib.request import urlopen

from problems import make_run

from ptystream.metrics import METRICS, Metrics

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
