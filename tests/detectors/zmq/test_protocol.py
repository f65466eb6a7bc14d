"""The native wire: what is encoded comes back, and nothing that arrives raises."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptystream.codecs import decode, encode
from ptystream.detectors.zmq.link import envelope
from ptystream.detectors.zmq.protocol import NativeDecoder, frames_parts, header, samples_parts
from ptystream.events import Frames, Rejected, Samples, ScanEnded, ScanStarted
from ptystream.transport import Message

sys.path.insert(0, str(Path(__file__).parents[2]))
from hostile import good_frames, malformed, raw_header, strange


def message(parts):
    return Message(0, "s/data", tuple(parts))


@settings(max_examples=80, deadline=None)
@given(
    dtype=st.sampled_from(["<u1", "<u2", "<u4", "<i4", "<f4"]),
    count=st.integers(1, 9),
    shape=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    codec=st.sampled_from(["raw", "bslz4", "lz4"]),
    listed=st.booleans(),
    stamped=st.booleans(),
    placed=st.booleans(),
    enveloped=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_frames_come_back_as_they_were_sent(dtype, count, shape, codec, listed, stamped, placed, enveloped, seed):
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 200, (count, *shape)).astype(dtype)
    indices = rng.permutation(50)[:count].tolist() if listed else int(rng.integers(0, 2**47))
    numbers = np.array(indices) if listed else np.arange(indices, indices + count)
    stamps = rng.integers(0, 2**62, count) if stamped else None
    places = rng.normal(size=(count, 2)) if placed else None
    encoded = [frames.tobytes()] if codec == "raw" else [encode(f, codec) for f in frames]
    parts = frames_parts("scan ü", indices, encoded, count, shape, frames.dtype, codec, stamps, places)
    first, *rest = NativeDecoder().feed(message([envelope(b"streamBB", 5), *parts] if enveloped else parts))
    assert isinstance(first, Frames)
    assert first.epoch == "scan ü"
    np.testing.assert_array_equal(first.indices, numbers)
    np.testing.assert_array_equal([decode(p) for p in first.payloads], frames)
    assert (first.timestamps_ns is None) == (stamps is None)
    if stamped:
        np.testing.assert_array_equal(first.timestamps_ns, stamps)
    assert all(isinstance(event, Samples) for event in rest)
    if placed:
        got = {e.first + k: (e.channels["y"][k], e.channels["x"][k]) for e in rest for k in range(len(e.channels["y"]))}
        assert got == {int(n): tuple(p) for n, p in zip(numbers, places, strict=True)}
    else:
        assert rest == []


def test_payloads_are_views_on_the_message():
    parts = good_frames(4)
    (event,) = NativeDecoder().feed(message(parts))
    base = np.frombuffer(parts[1], np.uint8).ctypes.data
    assert [np.frombuffer(p.buffer, np.uint8).ctypes.data - base for p in event.payloads] == [0, 384, 768, 1152]


@given(st.integers(1, 40), st.integers(1, 5), st.booleans(), st.integers(0, 2**40))
def test_samples_come_back_as_they_were_sent(count, channels, stamped, first):
    rng = np.random.default_rng(count)
    table = {f"c{k}": rng.normal(size=count) for k in range(channels)}
    stamps = np.arange(count) if stamped else None
    (event,) = NativeDecoder().feed(message(samples_parts("s", first, table, stamps)))
    assert (event.epoch, event.first, list(event.channels)) == ("s", first, list(table))
    for name, values in table.items():
        np.testing.assert_array_equal(event.channels[name], values)
    assert stamps is None or list(event.timestamps_ns) == list(stamps)


def test_start_and_end_come_back_as_they_were_sent():
    meta = {"num_frames": 7, "deep": {"a": [1.5, None, True, b"x"]}}
    decoder = NativeDecoder()
    assert decoder.feed(message([header("start", scan="s", meta=meta)])) == [ScanStarted("s", meta)]
    assert decoder.feed(message([header("end", scan="s", count=7, reason="aborted")])) == [ScanEnded("s", 7, "aborted")]
    assert decoder.feed(message([header("end", scan="s")])) == [ScanEnded("s", None, "completed")]


@pytest.mark.parametrize(("name", "parts"), [pytest.param(n, p, id=f"{k}-{n[:40]}") for k, (n, p) in enumerate(malformed())])
def test_a_malformed_message_is_rejected_with_a_reason_and_the_next_one_is_understood(name, parts):
    decoder = NativeDecoder()
    events = decoder.feed(message(parts))
    assert events, name
    assert all(isinstance(event, Rejected) for event in events), (name, events)
    assert all(event.reason.isidentifier() and event.detail and len(event.detail) < 400 for event in events), events
    (after,) = decoder.feed(message(good_frames()))
    assert isinstance(after, Frames)


@pytest.mark.parametrize(("name", "parts"), list(strange()))
def test_an_absurd_but_sound_message_is_passed_on(name, parts):
    assert not any(isinstance(event, Rejected) for event in NativeDecoder().feed(message(parts)))


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_a_sound_message_with_changed_bytes_never_raises(data):
    parts = [bytes(p) for p in data.draw(st.sampled_from([good_frames(), [envelope(bytes(8), 0), *good_frames(2)]]))]
    number = data.draw(st.integers(0, len(parts) - 1))
    changed = bytearray(parts[number])
    for _ in range(data.draw(st.integers(1, 6))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    parts[number] = bytes(changed)
    NativeDecoder().feed(message(parts))


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5) | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(
    ["scan", "meta", "first", "indices", "n", "shape", "dtype", "codec", "ts", "pos", "names", "q", "count", "reason"]
)


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(
    kind=st.sampled_from(["start", "frames", "samples", "end"]),
    content=st.dictionaries(KEYS, PLAIN, max_size=12),
    good=st.booleans(),
    buffers=st.lists(st.binary(max_size=40), max_size=4),
)
def test_any_header_with_any_buffers_never_raises(kind, content, good, buffers):
    base = {"scan": "s", "first": 0, "n": 1, "shape": [2, 2], "dtype": "<u2", "codec": "raw", "names": ["y"]} if good else {}
    for event in NativeDecoder().feed(message([raw_header({"t": kind, **base, **content}), *buffers])):
        assert isinstance(event, (ScanStarted, Frames, Samples, ScanEnded, Rejected))


def test_what_a_plain_sender_lost_is_counted_once():
    decoder = NativeDecoder()
    events = [e for q in [0, 1, 4, 5, 9] for e in decoder.feed(message([header("start", scan="s", q=q)]))]
    assert [(e.reason, e.count) for e in events if isinstance(e, Rejected)] == [("gap", 2), ("gap", 3)]


def test_repeated_and_missing_messages_of_the_acknowledged_link_are_counted_once():
    decoder = NativeDecoder()
    got = []
    for number in [0, 1, 1, 0, 2, 5]:
        got += decoder.feed(message([envelope(b"streamAA", number), header("start", scan="s", q=number)]))
    rejected = [(e.reason, e.count) for e in got if isinstance(e, Rejected)]
    assert rejected == [("duplicate_message", 1), ("duplicate_message", 1), ("gap", 2)]
    assert sum(isinstance(e, ScanStarted) for e in got) == 4
