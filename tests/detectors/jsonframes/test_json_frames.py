"""areaDetector's plug-in, the streaming-receiver and slsDetectorPackage: orders, gaps, damaged messages, whole sessions."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ports import beside
from problems import BEAM, GEOMETRY, PATTERNS, PLACES

from ptystream.codecs import decode
from ptystream.detectors.areadetector import AdZmqScan
from ptystream.detectors.areadetector.simulator import messages as of_ioc
from ptystream.detectors.maxiv import MaxivScan
from ptystream.detectors.maxiv.simulator import messages as of_receiver
from ptystream.detectors.psi import SlsScan
from ptystream.detectors.psi.simulator import messages as of_sls
from ptystream.detectors.zmq.plain import TICK, PlainSender
from ptystream.events import Frames, Rejected, ScanEnded, ScanStarted
from ptystream.metrics import Metrics
from ptystream.params.errors import ConfigurationError
from ptystream.params.load import load, source_parameters
from ptystream.plan import make_plan
from ptystream.scan.parameters import PtyScanParameters
from ptystream.session import Session
from ptystream.storage import ptyr
from ptystream.transport import Message

RNG = np.random.default_rng(5)
SMALL = RNG.poisson(3.0, (12, 8, 6)).astype("u2")
SOURCES = {"AdZmqScan": (AdZmqScan, of_ioc), "MaxivScan": (MaxivScan, of_receiver), "SlsScan": (SlsScan, of_sls)}


def decoder(name: str, **given: Any) -> Any:
    plugin = SOURCES[name][0]
    given = ({"num_frames": len(SMALL)} if name == "AdZmqScan" else {}) | given
    return plugin.decoder(source_parameters(plugin, PtyScanParameters)(**given), "s/data")


def fed(to: Any, messages: Any, arrival_ns: int = 10**18) -> list[Any]:
    return [event for parts in messages for event in to.feed(Message(arrival_ns, "s/data", tuple(parts)))]


def pixels_of(events: list[Any]) -> dict[int, Any]:
    return {int(i): decode(p).copy() for e in events if isinstance(e, Frames) for i, p in zip(e.indices, e.payloads, strict=True)}


def told(events: list[Any]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for e in events:
        if isinstance(e, Rejected):
            found[e.reason] += e.count
    return dict(found)


def changed(parts: list[bytes], **new: Any) -> list[bytes]:
    header = json.loads(parts[0]) | new
    return [json.dumps({k: v for k, v in header.items() if v is not ...}).encode(), *parts[1:]]


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("dtype", ["u1", "u2", "u4"])
def test_what_is_sent_comes_back_and_the_scan_begins_and_ends_once(name: str, dtype: str) -> None:
    frames = SMALL.astype(dtype)
    made = decoder(name)
    for _ in range(2):
        events = fed(made, SOURCES[name][1](frames))
        assert isinstance(events[0], ScanStarted)
        assert events[-1].count == len(frames) and events[-1].reason == "completed"
        assert told(events) == {}
        got = pixels_of(events)
        np.testing.assert_array_equal([got[k] for k in range(len(frames))], frames)


@pytest.mark.parametrize("codec", ["raw", "bslz4", "lz4"])
@pytest.mark.parametrize("name", ["AdZmqScan", "MaxivScan"])
def test_every_codec_of_the_wire_is_handed_on_as_it_is(name: str, codec: str) -> None:
    events = fed(decoder(name), SOURCES[name][1](SMALL, codec=codec))
    assert {p.codec for e in events if isinstance(e, Frames) for p in e.payloads} == {codec}
    np.testing.assert_array_equal(pixels_of(events)[3], SMALL[3])


@pytest.mark.parametrize("htype", ["array-1.0", "chunk-1.0", ["chunk-1.0"], ["other", "array-1.0"]])
def test_the_kind_may_be_a_text_or_a_list(htype: Any) -> None:
    assert len(pixels_of(fed(decoder("AdZmqScan"), of_ioc(SMALL, htype=htype)))) == len(SMALL)


def test_an_ids_return_a_first_id_and_a_pause_begin_another_acquisition_of_an_ioc() -> None:
    long = np.zeros((100, 4, 4), "u2")
    made = decoder("AdZmqScan", num_frames=None)
    events = fed(made, [*of_ioc(long), *of_ioc(long)])
    assert [e for e in events if isinstance(e, ScanEnded)] == [ScanEnded("acquisition 1", 100, "another began")]
    few = SMALL[:5]
    made = decoder("AdZmqScan", num_frames=None, first_id=1)
    events = fed(made, [*of_ioc(few), *list(of_ioc(few))[2:], *of_ioc(few)])
    assert [e.count for e in events if isinstance(e, ScanEnded)] == [5]
    made = decoder("AdZmqScan", num_frames=None, first_id=1)
    events = fed(made, list(of_ioc(few))[2:])
    assert [int(e.indices[0]) for e in events if isinstance(e, Frames)] == [2, 3, 4], "the first two were missed"
    assert told(events) == {"gap": 2}
    made = decoder("AdZmqScan", num_frames=None, pause_s=2.0)
    fed(made, of_ioc(few, first_id=1))
    assert not any(isinstance(e, ScanStarted) for e in fed(made, of_ioc(few, first_id=6), 10**18 + 10**9))
    assert any(isinstance(e, ScanStarted) for e in fed(made, of_ioc(few, first_id=11), 10**18 + 4 * 10**9))


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_lost_messages_are_counted_and_every_other_frame_keeps_its_number(name: str, data: Any) -> None:
    whole = list(SOURCES[name][1](SMALL))
    lost = data.draw(st.sets(st.integers(1, len(whole) - 5), min_size=1, max_size=4))
    made = decoder(name, **({"incomplete": "reject"} if name == "SlsScan" else {}))
    events = fed(made, [parts for k, parts in enumerate(whole) if k not in lost] + [[TICK]] * (name == "MaxivScan"))
    got = pixels_of(events)
    for number, pixels in got.items():
        np.testing.assert_array_equal(pixels, SMALL[number])
    gone = {"AdZmqScan": lambda k: k, "MaxivScan": lambda k: k - 1, "SlsScan": lambda k: k // 2}[name]
    missing = {gone(k) for k in lost}
    assert set(got) == set(range(len(SMALL))) - missing
    assert sum(told(events).values()) == (len(missing) if name == "SlsScan" else len(lost))
    assert isinstance(events[-1], ScanEnded)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(order=st.permutations(range(14)), twice=st.integers(0, 13))
def test_a_receivers_messages_in_any_order_come_out_in_theirs(order: list[int], twice: int) -> None:
    whole = list(of_receiver(SMALL))
    made = decoder("MaxivScan")
    fed(made, [whole[0]])  # the number to begin with
    events = fed(made, [whole[k] for k in order if k])
    assert [int(e.indices[0]) for e in events if isinstance(e, Frames)] == list(range(12))
    assert told(events) == {}
    assert not made.waiting
    assert "out_of_order" in told(fed(made, [whole[twice or 1]]))


def test_a_receivers_window_bounds_what_is_held_and_a_tick_ends_the_wait() -> None:
    whole = list(of_receiver(SMALL))
    made = decoder("MaxivScan", window=3)
    events = fed(made, [whole[0], *whole[2:5]])
    assert made.waiting and not pixels_of(events)
    events = fed(made, [whole[5]])
    assert sorted(pixels_of(events)) == [1, 2, 3, 4] and told(events) == {"gap": 1}
    events = fed(made, [whole[7], [TICK]])
    assert sorted(pixels_of(events)) == [6] and told(events) == {"gap": 1}
    assert told(fed(made, [whole[6]])) == {"out_of_order": 1}


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.sampled_from([1, 2, 4]), columns=st.sampled_from([1, 2, 3]))
def test_ports_are_put_together_whatever_order_they_come_in(seed: int, rows: int, columns: int) -> None:
    whole = list(of_sls(SMALL, rows=rows, columns=columns, first=1000))
    body, ends = whole[: -rows * columns], whole[-rows * columns :]
    order = np.random.default_rng(seed).permutation(len(body) - rows * columns) + rows * columns
    events = fed(decoder("SlsScan"), [*body[: rows * columns], *[body[k] for k in order], *ends])
    got = pixels_of(events)
    np.testing.assert_array_equal([got[k] for k in range(len(SMALL))], SMALL)
    assert events[-1] == ScanEnded("run 0", len(SMALL), "completed")
    assert not (told(events).keys() - {"gap"})


@pytest.mark.parametrize("incomplete", ["mask", "reject"])
def test_what_is_not_whole_is_masked_or_left_out_after_a_bounded_wait(incomplete: str) -> None:
    whole = list(of_sls(SMALL))
    made = decoder("SlsScan", window=3, incomplete=incomplete)
    events = fed(made, [whole[0], *whole[2:6]])
    assert sorted(pixels_of(events)) == [1, 2], "whole frames wait for nothing"
    events = fed(made, [whole[6], whole[8], whole[10]])
    assert told(events) == {"incomplete_frame": 1}
    assert sorted(pixels_of(events)) == ([0] if incomplete == "mask" else [])
    if incomplete == "mask":
        np.testing.assert_array_equal(pixels_of(events)[0], np.vstack([SMALL[0, :4], np.full((4, 6), 65535)]))
    assert told(fed(made, [whole[1]])) == {"late_part": 1}
    events = fed(made, [[TICK]])
    assert told(events) == {"incomplete_frame": 3} and not made.waiting
    damaged = decoder("SlsScan", incomplete=incomplete)
    events = fed(damaged, [changed(whole[0], completeImage=0), whole[1]])
    assert told(events) == {"incomplete_frame": 1} and len(pixels_of(events)) == (incomplete == "mask")
    events = fed(damaged, [whole[-1], [TICK]])
    assert events[-1].reason == "completed by some of the ports"


BAD: list[tuple[str, dict[str, Any], str]] = [
    *(
        ("*", {"shape": s}, "wrong_shape")
        for s in (None, [], [3], [1.5, 2], [0, 4], [-1, 4], [1 << 20, 4], [2, 3, 4], "x", [[1], 2])
    ),
    *(("*", {"frame": v, "frameNumber": v}, "index_range") for v in (None, -1, 1 << 48, 0.5, True, "0", [0], {})),
    *(
        (n, {"type": t}, "wrong_dtype")
        for n in ("AdZmqScan", "MaxivScan")
        for t in (None, "object", "O", "<u2,<u2", 5, ["uint16"])
    ),
    *(("SlsScan", {"bitmode": b}, "wrong_dtype") for b in (None, 4, "16", 64, True, [16])),
    ("*", {"shape": [30000, 30000]}, "*"),
    ("AdZmqScan", {"htype": "dimage-1.0"}, "unknown_kind"),
    ("AdZmqScan", {"htype": None}, "unknown_kind"),
    ("AdZmqScan", {"encoding": "jpeg"}, "unknown_codec"),
    ("AdZmqScan", {"encoding": ["raw"]}, "unknown_codec"),
    ("MaxivScan", {"htype": ["image"]}, "unknown_kind"),
    ("MaxivScan", {"msg_number": None}, "index_range"),
    ("MaxivScan", {"compression": "pickle"}, "unknown_codec"),
    ("MaxivScan", {"compression": None}, "unknown_codec"),
    ("SlsScan", {"detshape": [10**6, 10**6]}, "wrong_shape"),
    ("SlsScan", {"detshape": [4000, 4000]}, "oversized"),
    ("SlsScan", {"detshape": None}, "wrong_shape"),
    ("SlsScan", {"row": 2}, "index_range"),
    ("SlsScan", {"column": -1}, "index_range"),
]


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_damaged_messages_are_rejected_by_name_and_the_next_one_is_understood(name: str) -> None:
    good = list(SOURCES[name][1](SMALL))
    image = good[1]
    bad: list[tuple[Any, str]] = [
        ([], "truncated"),
        ([b""], "malformed_header"),
        ([b"\x80\x04\x95"], "malformed_header"),
        ([b"[" * 100_000], "malformed_header"),
        ([b"[]", b""], "malformed_header"),
        ([b'"x"'], "malformed_header"),
        ([b" " * (2 << 20)], "oversized"),
        ([image[0]], "truncated"),
        ([*image, b"x"], "truncated"),
        *(([*image[:1], image[1][:cut]], "truncated") for cut in (0, 1, len(image[1]) - 1) if name != "MaxivScan"),
        *((changed(image, **new), reason) for whose, new, reason in BAD if whose in ("*", name)),
    ]
    for parts, reason in bad:
        made = decoder(name)
        events = fed(made, [good[0]] * (name == "MaxivScan") + [parts])
        rejected = [e for e in events if isinstance(e, Rejected)]
        assert len(rejected) == 1 and reason in ("*", rejected[0].reason), (parts[:1], rejected, reason)
        assert rejected[0].reason.isidentifier() and 0 < len(rejected[0].detail) < 400
        assert not pixels_of(events)
        after = fed(made, good[1:] if name == "MaxivScan" else good)
        assert len(pixels_of(after)) == len(SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_header_never_raises(name: str, data: Any) -> None:
    made = decoder(name)
    good = list(SOURCES[name][1](SMALL))
    plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.lists(st.integers(), max_size=3)
    for _ in range(5):
        parts = data.draw(st.sampled_from(good))
        keys = st.sampled_from([*json.loads(parts[0]), "addJsonHeader", "encoding", "timeStamp"])
        new = data.draw(st.dictionaries(keys, plain, max_size=4))
        for event in fed(made, [changed(parts, **new)]):
            assert isinstance(event, (ScanStarted, Frames, ScanEnded, Rejected))


def configuration(folder: Path, data: dict[str, Any]) -> dict[str, Any]:
    return {
        "run": "t",
        "min_frames_for_recon": BEAM.frames + 1,
        "threads": 1,
        "io": {"home": str(folder), "rfile": "%(run)s.ptyr"},
        "scans": {
            "s": {"name": "Full", "data": {"shape": BEAM.side, **GEOMETRY, **data}, "illumination": {"aperture": {"size": 4e-7}}}
        },
        "engines": {"e": {"name": "DM", "numiter": 5}},
    }


@pytest.mark.parametrize("name", SOURCES)
def test_a_session_over_a_socket_uses_every_frame(name: str, tmp_path: Path) -> None:
    with PlainSender("push" if name == "MaxivScan" else "pub") as sender:
        data = {"name": name, "address": sender.address, "positions_theory": PLACES.tolist()}
        data |= {"num_frames": BEAM.frames} if name == "AdZmqScan" else {}
        ready = threading.Event()
        running = Session(make_plan(load(configuration(tmp_path, data))), metrics=Metrics(), on_ready=ready.set)
        thread = threading.Thread(target=running.run)
        thread.start()
        assert ready.wait(60)
        for parts in SOURCES[name][1](PATTERNS):
            sender.send(parts)
        thread.join(60)
        assert not thread.is_alive()
    result = ptyr.read(running.results[0])
    assert result.ledger["used"] == BEAM.frames
    np.testing.assert_allclose(result.positions_m, PLACES, atol=1e-12)


def test_every_port_of_a_detector_is_listened_to_and_a_silent_wait_ends(tmp_path: Path) -> None:
    with ExitStack() as stack:
        senders = beside(stack, lambda: PlainSender("push"), lambda port: PlainSender("push", f"tcp://127.0.0.1:{port}"))
        p = source_parameters(SlsScan, PtyScanParameters)(link="push", address=senders[0].address, ports=2, late_s=1.0)
        made = SlsScan.decoder(p, "s/data")
        transport = SlsScan.transport(p, "s/data", made)
        transport.open()
        for sender in senders:
            sender.wait(60)
        whole = list(of_sls(SMALL))
        for number, parts in enumerate(whole[:9]):  # the last frame lacks a part
            senders[number % 2].send(parts)
        events: list[Any] = []
        deadline = time.monotonic() + 60
        while len(pixels_of(events)) < 5 and time.monotonic() < deadline:
            message = transport.receive(0.05)
            events += made.feed(message) if message is not None else []
        transport.close()
    assert sorted(pixels_of(events)) == [0, 1, 2, 3, 4]
    assert told(events).get("incomplete_frame") == 1
    wrong = source_parameters(SlsScan, PtyScanParameters)(address="ipc:///tmp/x", ports=2)
    with pytest.raises(OSError, match="1 ports behind it"):
        SlsScan.transport(wrong, "s/data", made).open()


def test_what_cannot_be_is_told_before_anything_runs(tmp_path: Path) -> None:
    for data, text in (
        ({"name": "AdZmqScan", "first_id": -1}, "first_id"),
        ({"name": "AdZmqScan", "pause_s": -1}, "pause_s"),
        ({"name": "MaxivScan", "window": -1}, "window"),
        ({"name": "SlsScan", "ports": 0}, "ports"),
        ({"name": "SlsScan", "incomplete": "guess"}, "incomplete"),
        ({"name": "ZmqScan", "positions": {"name": "SlsScan"}}, "no positions for others"),
    ):
        with pytest.raises(ConfigurationError, match=text):
            load(configuration(tmp_path, data))
