"""The PandABox: byte streams in any pieces, damaged ones, an independent reader, whole sessions over TCP and ZeroMQ."""

from __future__ import annotations

import itertools
import json
import struct
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
import zmq.auth
from hypothesis import given, settings
from hypothesis import strategies as st
from memory import Memory, messages
from problems import BEAM, GEOMETRY, PLACES

from ptystream.detectors.panda import PandaJsonScan, PandaScan
from ptystream.detectors.panda.protocol import CONNECTED
from ptystream.detectors.panda.simulator import PandaServer, documents, readings, stream
from ptystream.detectors.simulated.simulator import Beamline
from ptystream.events import Rejected, Samples, ScanEnded, ScanStarted
from ptystream.giving import giver_of
from ptystream.metrics import Metrics
from ptystream.params.errors import ConfigurationError
from ptystream.params.load import load, source_parameters
from ptystream.plan import make_plan
from ptystream.scan.parameters import PositionsParameters
from ptystream.session import Session
from ptystream.storage import ptyr
from ptystream.transport import Message

MANY = Beamline(frames=BEAM.frames, side=32, step_px=3.0, samples_per_frame=10)
TABLE = readings(MANY)
CHANNELS = {"y": "INENC1.VAL.Value", "x": "INENC2.VAL.Value"}
JSON_CHANNELS = {role: f"/{name}" for role, name in CHANNELS.items()}
JSON_UNITS = dict.fromkeys(JSON_CHANNELS.values(), "um")


def decoder(plugin: Any = PandaScan, **changed: Any) -> Any:
    if plugin is PandaJsonScan:
        changed = {"channels": JSON_CHANNELS, "units": JSON_UNITS} | changed
    p = source_parameters(plugin, PositionsParameters)(**({"channels": CHANNELS} | changed))
    return plugin.decoder(p, "s/positions")


def fed(to: Any, pieces: Any) -> list[Any]:
    return [event for piece in pieces for event in to.feed(Message(0, "s/positions", (piece,)))]


def table_of(events: list[Any]) -> dict[str, Any]:
    found = [e for e in events if isinstance(e, Samples)]
    assert all(a.first + len(a.channels[CHANNELS["y"]]) == b.first for a, b in itertools.pairwise(found))
    return {name: np.concatenate([e.channels[name] for e in found]) for name in found[0].channels}


@pytest.mark.slow
@pytest.mark.parametrize("scaled", [True, False])
@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(1, 3000), min_size=1, max_size=30), together=st.integers(1, 300))
def test_any_cutting_of_the_stream_gives_the_same(scaled: bool, cuts: list[int], together: int) -> None:
    small = TABLE[:200]
    whole = b"OK\n" + b"".join(stream(small, scaled=scaled, arm_time="2026", together=together)) * 2
    pieces, at = [], 0
    while at < len(whole):
        size = cuts[len(pieces) % len(cuts)]
        pieces.append(whole[at : at + size])
        at += size
    events = fed(decoder(), pieces)
    assert not any(isinstance(e, Rejected) for e in events)
    assert [e for e in events if isinstance(e, ScanEnded)] == [ScanEnded("2026", 200, "completed")] * 2
    half = events[: len(events) // 2]
    assert isinstance(events[0], ScanStarted) and events[0].epoch == "2026"
    got = table_of(half)
    np.testing.assert_allclose(got[CHANNELS["y"]], small[:, 0] * 1e-6, atol=0.6e-9)
    np.testing.assert_allclose(got[CHANNELS["x"]], small[:, 1] * 1e-6, atol=0.6e-9)


@pytest.mark.parametrize("scaled", [True, False])
def test_an_independent_reader_reads_what_the_simulator_sends(scaled: bool) -> None:
    connections = pytest.importorskip("pandablocks.connections")
    responses = pytest.importorskip("pandablocks.responses")
    reader = connections.DataConnection()
    assert reader.connect(scaled).startswith(b"XML FRAMED")
    found = list(reader.receive_bytes(b"OK\n" + b"".join(stream(TABLE, scaled=scaled))))
    data = np.concatenate([item.data for item in found if isinstance(item, responses.FrameData)])
    factor = 1.0 if scaled else 1e-3
    np.testing.assert_allclose(data["INENC1.VAL.Value"] * factor, TABLE[:, 0], atol=0.6e-3)
    assert found[-1].samples == len(TABLE) and found[-1].reason is responses.EndReason.OK


def test_a_raw_mean_is_divided_by_the_length_of_its_sample() -> None:
    fields = (
        '<field name="PCAP.SAMPLES" type="uint32" capture="Value"/>'
        '<field name="INENC1.VAL" type="int64" capture="Mean" scale="0.5" offset="2" units="mm"/>'
    )
    header = f'<header><data missed="0" process="Raw" format="Framed" sample_bytes="12"/><fields>{fields}</fields></header>\n\n'
    rows = np.array([(4, 400), (8, 80)], [("n", "<u4"), ("s", "<i8")]).tobytes()
    pieces = [b"OK\n", header.encode(), b"BIN " + struct.pack("<I", len(rows) + 8) + rows, b"END 2 Ok\n"]
    name = "INENC1.VAL.Mean"
    events = fed(decoder(channels={"y": name, "x": name}), pieces)
    assert table_of_one(events, name) == pytest.approx([(100 * 0.5 + 2) * 1e-3, (10 * 0.5 + 2) * 1e-3])
    without = header.replace('<field name="PCAP.SAMPLES" type="uint32" capture="Value"/>', "").replace('"12"', '"8"')
    (event,) = fed(decoder(), [b"OK\n", without.encode()])
    assert event.reason == "malformed_header" and "PCAP.SAMPLES" in event.detail
    unnamed = header.replace('<field name="PCAP.SAMPLES" type="uint32" capture="Value"/>', "")
    events = fed(decoder(channels={"y": name, "x": name}), [b"OK\n", unnamed.encode(), *pieces[2:]])
    assert table_of_one(events, name) == pytest.approx([52e-3, 7e-3]), "old servers do not name the samples' length"


def table_of_one(events: list[Any], name: str) -> list[float]:
    return [float(v) for e in events if isinstance(e, Samples) for v in e.channels[name]]


def hostile() -> list[tuple[str, bytes, str]]:
    good = b"".join(stream(TABLE[:20]))
    header = next(iter(stream(TABLE[:20])))
    rng = np.random.default_rng(0)
    bomb = b'<!DOCTYPE x [<!ENTITY a "aaaa">]>'

    def changed(old: bytes, new: bytes) -> bytes:
        assert old in header
        return header.replace(old, new)

    return [
        ("refusal", b"ERR Unknown option\n", "refused"),
        ("pickle", b"\x80\x04\x95\x1a\n", "refused"),
        ("a line without end", b"x" * 70_000, "oversized"),
        ("a header without end", b"OK\n<header>" + b" " * (1 << 20) + b"   ", "oversized"),
        ("no XML", b"OK\n<header><a></header>\n\n", "malformed_header"),
        ("no fields", b'OK\n<header><data missed="0"/></header>\n\n', "malformed_header"),
        ("declarations", b"OK\n" + changed(b"<header>", b"<header>" + bomb), "malformed_header"),
        ("a type that executes", b"OK\n" + changed(b'"double"', b'"O"'), "malformed_header"),
        ("a size that does not fit", b"OK\n" + changed(b'sample_bytes="32"', b'sample_bytes="31"'), "malformed_header"),
        ("a huge size", b"OK\n" + changed(b'sample_bytes="32"', b'sample_bytes="' + b"9" * 5000 + b'"'), "malformed_header"),
        ("a negative number of missed", b"OK\n" + changed(b'missed="0"', b'missed="-3"'), "malformed_header"),
        ("unframed", b"OK\n" + changed(b'"Framed"', b'"ASCII"'), "malformed_header"),
        ("a field twice", b"OK\n" + changed(b"INENC2.VAL", b"INENC1.VAL"), "malformed_header"),
        ("a frame of 4 GB", b"OK\n" + header + b"BIN \xff\xff\xff\xff", "framing"),
        ("a frame of no samples", b"OK\n" + header + b"BIN \x08\x00\x00\x00", "framing"),
        ("half a sample", b"OK\n" + header + b"BIN \x18\x00\x00\x00" + bytes(16), "framing"),
        ("random bytes for a frame", b"OK\n" + header + rng.bytes(500), "framing"),
        ("an end without number", b"OK\n" + header + b"END many Ok\n", "framing"),
        ("an end without end", b"OK\n" + header + b"END " + b"1" * 70_000, "oversized"),
        ("a byte lost in a frame", b"OK\n" + good[: len(header) + 50] + good[len(header) + 51 :], "framing"),
    ]


@pytest.mark.parametrize(("name", "data", "reason"), hostile())
@pytest.mark.parametrize("step", [7, 1 << 20])
def test_a_damaged_stream_is_told_and_the_next_acquisition_is_understood(name: str, data: bytes, reason: str, step: int) -> None:
    made = decoder()
    events = fed(made, [data[k : k + step] for k in range(0, len(data), step)])
    told = [e for e in events if isinstance(e, Rejected)]
    assert reason in {e.reason for e in told}, (name, events)
    assert all(e.reason.isidentifier() and 0 < len(e.detail) < 400 for e in told)
    after = fed(made, [b"\n", *stream(TABLE[:50], arm_time="next")])
    assert [e for e in after if isinstance(e, ScanEnded)][-1] == ScanEnded("next", 50, "completed")
    assert sum(len(e.channels[CHANNELS["y"]]) for e in after if isinstance(e, Samples) and e.epoch == "next") == 50


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.data())
def test_changed_bytes_never_raise(data: Any) -> None:
    whole = bytearray(b"OK\n" + b"".join(stream(TABLE[:30])))
    for _ in range(data.draw(st.integers(1, 6))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    fed(decoder(), [bytes(whole[:700]), bytes(whole[700:])])
    for parts in ((), (b"", b"", b""), (b"connected", b"x")):
        assert all(isinstance(e, Rejected) for e in decoder().feed(Message(0, "s", parts)))


def test_what_was_missed_is_counted_and_keeps_its_numbers() -> None:
    events = fed(decoder(), [b"OK\n", *stream(TABLE, missed=130)])
    assert [(e.reason, e.count) for e in events if isinstance(e, Rejected)] == [("gap", 130)]
    assert next(e for e in events if isinstance(e, Samples)).first == 130
    assert events[-1] == ScanEnded("acquisition 1", len(TABLE), "completed")


def test_the_reason_of_the_end_is_told_and_samples_that_did_not_come_are_counted() -> None:
    pieces = list(stream(TABLE, reason="Data overrun"))
    events = fed(decoder(), [b"OK\n", *pieces[:3], pieces[-1]])
    assert events[-1] == ScanEnded("acquisition 1", len(TABLE), "PandA: Data overrun")
    assert [(e.reason, e.count) for e in events if isinstance(e, Rejected)] == [("gap", len(TABLE) - 200)]


def test_a_connection_lost_within_an_acquisition_goes_on_with_its_numbers() -> None:
    made = decoder()
    events = fed(made, [b"OK\n", *list(stream(TABLE, arm_time="a"))[:3], b"BIN \x00"])
    events += made.feed(Message(0, "s", (b"connected", b"")))
    assert events[-1].reason == "truncated"
    events = fed(made, [b"OK\n", *stream(TABLE, arm_time="a", missed=350)])
    assert [(e.reason, e.count) for e in events if isinstance(e, Rejected)] == [("gap", 150)]
    assert next(e.first for e in events if isinstance(e, Samples)) == 350
    assert not any(isinstance(e, ScanStarted) for e in events)
    fed(made, list(stream(TABLE, arm_time="b"))[:2])
    made.feed(Message(0, "s", (b"connected", b"")))
    events = fed(made, [b"OK\n", *list(stream(TABLE, arm_time="c"))[:1]])
    assert events[0] == ScanEnded("b", 100, "the connection was lost")


@pytest.mark.parametrize("plugin", [PandaScan, PandaJsonScan])
def test_frame_numbers_that_were_captured_place_the_samples(plugin: Any) -> None:
    frame = "COUNTER1.OUT.Value" if plugin is PandaScan else "/COUNTER1.OUT.Value"
    y = CHANNELS["y"] if plugin is PandaScan else JSON_CHANNELS["y"]
    table = TABLE[:60].copy()
    table[:, 2] = [*[4] * 10, *[7] * 10, *[5] * 3, *[5] * 7, *[6] * 12, *[-1] * 2, *[9.5] * 1, *[8] * 15]
    pieces = [b"OK\n", *stream(table, together=23)] if plugin is PandaScan else list(documents(table, together=23))
    events = fed(decoder(plugin, frame_channel=frame, samples_per_frame=10), pieces)
    found = {}
    for e in events:
        if isinstance(e, Samples):
            found |= {e.first + k: v for k, v in enumerate(e.channels[y])}
    assert sorted(found) == sorted([*range(40, 50), *range(70, 80), *range(50, 60), *range(60, 70), *range(80, 90)])
    assert found[40] == pytest.approx(table[0, 0] * 1e-6) and found[59] == pytest.approx(table[29, 0] * 1e-6)
    told = {}
    for e in events:
        if isinstance(e, Rejected):
            told[e.reason] = told.get(e.reason, 0) + e.count
    assert told == {"too_many_samples": 2 + 5, "bad_frame_number": 3}
    events = fed(decoder(plugin, frame_channel="NO.SUCH"), pieces)
    assert {e.reason for e in events if isinstance(e, Rejected)} == {"frame_channel_missing"}


def test_time_stamps_come_from_their_channel() -> None:
    (first, *_) = [
        e for e in fed(decoder(time_channel="PCAP.TS_TRIG.Value"), [b"OK\n", *stream(TABLE)]) if isinstance(e, Samples)
    ]
    np.testing.assert_allclose(first.timestamps_ns, TABLE[: len(first.timestamps_ns), 3] * 1e9, atol=1)
    events = fed(decoder(time_channel="NO.SUCH"), [b"OK\n", *stream(TABLE)])
    assert {e.reason for e in events if isinstance(e, Rejected)} == {"time_channel_missing"}


def test_units_of_the_configuration_stand_before_those_of_the_box_and_unknown_ones_are_named() -> None:
    pieces = [b"OK\n", *stream(TABLE[:5])]
    y = table_of(fed(decoder(units={CHANNELS["y"]: "mm"}), pieces))[CHANNELS["y"]]
    np.testing.assert_allclose(y, TABLE[:5, 0] * 1e-3)
    odd = [p.replace(b'units="um"', b'units="furlong"') for p in pieces]
    told = [e for e in fed(decoder(), odd) if isinstance(e, Rejected)]
    assert {e.reason for e in told} == {"unknown_unit", "channel_missing"}
    assert "furlong" in told[0].detail and "units" in told[0].detail


def hostile_documents() -> list[Any]:
    block = {"size": 1, "starting_sample_number": 0, "data": [1.0]}
    return [
        b"",
        b"\x80\x04\x95",
        b"[" * 100_000,
        b"[]",
        b'{"msg_type": "run"}',
        b'{"msg_type": ["data"]}',
        b'{"msg_type": "data"}',
        b'{"msg_type": "data", "datasets": []}',
        b'{"msg_type": "data", "datasets": {}}',
        *(
            json.dumps({"msg_type": "data", "frame_number": 0, "datasets": {"/y": {**block, **bad}}}).encode()
            for bad in (
                {"data": None},
                {"data": ["1"]},
                {"data": [True]},
                {"data": [[1.0]]},
                {"data": [10**400]},
                {"size": 2},
                {"starting_sample_number": -1},
                {"starting_sample_number": 1.5},
                {"starting_sample_number": 1 << 48},
                {"starting_sample_number": None},
            )
        ),
    ]


@pytest.mark.parametrize("number", range(len(hostile_documents())))
def test_a_damaged_document_is_rejected_and_the_next_is_understood(number: int) -> None:
    made = decoder(PandaJsonScan)
    made.feed(Message(0, "s", (b'{"msg_type": "start"}',)))
    events = made.feed(Message(0, "s", (hostile_documents()[number],)))
    assert events and all(isinstance(e, Rejected) and e.reason.isidentifier() and len(e.detail) < 400 for e in events)
    assert fed(made, documents(TABLE))[-1] == ScanEnded("acquisition 2", len(TABLE), "completed")
    assert made.feed(Message(0, "s", (b"", b"")))[0].reason == "malformed_message"


def test_documents_that_never_came_are_counted_and_the_others_keep_their_numbers() -> None:
    pieces = list(documents(TABLE, together=100))
    events = fed(decoder(PandaJsonScan), [pieces[0], pieces[1], *pieces[4:]])
    assert [(e.reason, e.count) for e in events if isinstance(e, Rejected)] == [("gap", 2)]
    assert [e.first for e in events if isinstance(e, Samples)][:2] == [0, 300]
    events = fed(decoder(PandaJsonScan), pieces[3:])
    assert isinstance(events[0], ScanStarted) and events[1].reason == "joined_late"


def session(folder: Path, positions: dict[str, Any], **data: Any) -> Session:
    frames, _ = messages()
    given = {"name": "ZmqScan", "shape": BEAM.side, **GEOMETRY, "positions": positions, **data}
    whole = {
        "run": "t",
        "min_frames_for_recon": BEAM.frames + 1,
        "threads": 1,
        "io": {"home": str(folder), "rfile": "%(run)s.ptyr"},
        "scans": {"s": {"name": "Full", "data": given, "illumination": {"aperture": {"size": 4e-7}}}},
        "engines": {"e": {"name": "DM", "numiter": 5}},
    }
    return Session(make_plan(load(whole), transports={"s/data": Memory("s/data", frames)}), metrics=Metrics())


@pytest.mark.slow
@pytest.mark.parametrize("scaled", [True, False])
def test_a_session_takes_its_positions_from_a_data_port_that_drops_the_connection_once(tmp_path: Path, scaled: bool) -> None:
    first = [list(stream(TABLE, scaled=s, arm_time="a")) for s in (True, False)]
    again = [list(stream(TABLE, scaled=s, arm_time="a", missed=300)) for s in (True, False)]
    server = PandaServer([(first[0], first[1]), (again[0], again[1])], drop_after=4)
    server.start()
    try:
        positions = {"name": "PandaScan", "port": server.port, "scaled": scaled, "channels": CHANNELS, "samples_per_frame": 10}
        (path,) = session(tmp_path, positions).run()
    finally:
        server.stop()
    result = ptyr.read(path)
    assert result.ledger["used"] == BEAM.frames
    np.testing.assert_allclose(result.positions_m, PLACES, atol=0.6e-9)
    assert server.heard == [b"XML FRAMED SCALED\n" if scaled else b"XML FRAMED RAW\n"] * 2


def test_a_session_takes_its_positions_from_a_re_publisher_with_keys(tmp_path: Path) -> None:
    public, secret = zmq.auth.create_certificates(tmp_path, "box")
    context = zmq.Context()
    socket = context.socket(zmq.XPUB)
    socket.linger = 0
    socket.curve_publickey, socket.curve_secretkey = zmq.auth.load_certificate(secret)
    socket.curve_server = True
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    positions = {
        "name": "PandaJsonScan",
        "address": f"tcp://127.0.0.1:{port}",
        "peer_keys": str(public),
        "channels": JSON_CHANNELS,
    }
    running = session(tmp_path, {**positions, "units": JSON_UNITS, "samples_per_frame": 10})
    thread = threading.Thread(target=running.run)
    thread.start()
    assert socket.recv() == b"\x01"  # it has subscribed
    for document in documents(TABLE, arm_time="a"):
        socket.send(document)
    thread.join(60)
    assert not thread.is_alive()
    socket.close()
    context.term()
    result = ptyr.read(running.results[0])
    assert result.ledger["used"] == BEAM.frames
    np.testing.assert_allclose(result.positions_m, PLACES, atol=1e-12)


def test_what_cannot_be_is_told_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="furlong"):
        session(tmp_path, {"name": "PandaScan", "channels": CHANNELS, "units": {"INENC1.VAL.Value": "furlong"}})
    with pytest.raises(ConfigurationError, match=r"data\.name.*use it as `data.positions`"):
        session(tmp_path, {"name": "PandaScan", "channels": CHANNELS}, name="PandaScan")
    p = source_parameters(PandaScan, PositionsParameters)(channels=CHANNELS, port=1, host="127.0.0.1")
    transport = PandaScan.transport(p, "s/positions", None)  # type: ignore[arg-type]
    with pytest.raises(OSError, match=r"s/positions: PandA at 127.0.0.1:1: "):
        transport.open()


def test_a_box_that_is_away_is_tried_again_without_burning_time(tmp_path: Path) -> None:
    server = PandaServer([([], [])])
    server.start()
    p = source_parameters(PandaScan, PositionsParameters)(channels=CHANNELS, port=server.port)
    transport = PandaScan.transport(p, "s/positions", None)  # type: ignore[arg-type]
    transport.open()
    assert transport.receive(0.1).parts[0] == b"connected"
    server.stop()
    began, cpu = time.monotonic(), time.thread_time()
    while time.monotonic() - began < 1.5:
        message = transport.receive(0.1)
        assert message is None or message.parts[0] == b"OK\n"
    assert time.thread_time() - cpu < 0.5
    transport.close()


def received(port: int) -> list[Message]:
    """What comes from a data port until the first acquisition has ended."""
    p = source_parameters(PandaScan, PositionsParameters)(channels=CHANNELS, port=port)
    transport, listening = PandaScan.transport(p, "s/positions", decoder()), decoder(samples_per_frame=10)
    found: list[Message] = []
    deadline = time.monotonic() + 60
    transport.open()
    try:
        while not any(isinstance(e, ScanEnded) for message in found[-1:] for e in listening.feed(message)):
            message = transport.receive(0.2)
            found += [] if message is None else [message]
            assert time.monotonic() < deadline
    finally:
        transport.close()
    return found


def test_what_a_data_port_sent_is_given_back_on_one_with_its_lost_connection() -> None:
    first, again = list(stream(TABLE, scaled=True, arm_time="a")), list(stream(TABLE, scaled=True, arm_time="a", missed=300))
    server = PandaServer([(first, first), (again, again)], drop_after=4)
    server.start()
    try:
        before = received(server.port)
    finally:
        server.stop()
    giver: Any = giver_of("s/positions", {"name": "PandaScan", "channels": CHANNELS, "port": server.port})
    thread = threading.Thread(target=give, args=(giver, before))
    thread.start()
    after = received(int(giver.address.rpartition(":")[2]))
    thread.join(60)
    assert not thread.is_alive()
    one, other = (b"".join(bytes(part) for m in messages for part in m.parts) for messages in (before, after))
    assert one == other and one.count(CONNECTED) == 2


def give(giver: Any, messages: list[Message]) -> None:
    with giver:
        giver.wait(60)
        for message in messages:
            giver.again(message.parts)
        giver.flush(60)
