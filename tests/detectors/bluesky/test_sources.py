"""Where documents come from: a file, the process itself, ZeroMQ, Kafka."""

from __future__ import annotations

import itertools
import json
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq
from beamline import STEP, Documents, decoder, feed, lines, plan_of, rejected, run

from ptystream.cli.check import check
from ptystream.detectors.bluesky import BlueskyScan
from ptystream.detectors.bluesky import Documents as Feed
from ptystream.detectors.bluesky.payload import packed
from ptystream.detectors.bluesky.simulator import publisher
from ptystream.events import Event, Frames, ScanEnded
from ptystream.transport import TransportClosed


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Documents:
    return run(plan_of("step", tmp_path_factory.mktemp("documents"), 6))


def opened(**given: Any) -> tuple[Any, Any]:
    """(transport, decoder), open."""
    p = BlueskyScan.Parameters(**{"find": STEP, **given})
    held = BlueskyScan.decoder(p, "s/data")
    transport = BlueskyScan.transport(p, "s/data", held)
    transport.open()
    return transport, held


def take(transport: Any, held: Any, seconds: float = 60.0, until: type = ScanEnded) -> list[Event]:
    """Events until the end of a scan."""
    events: list[Event] = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not any(isinstance(e, until) for e in events):
        message = transport.receive(0.05)
        if message is not None:
            events += held.feed(message)
    return events


def pass_over(transport: Any, sender: Any) -> None:
    """Receive what is on its way from a sender."""
    sender("stop", {"uid": "the last of them", "run_start": "b"})
    while (message := transport.receive(60)) is not None:
        if any(b"the last of them" in bytes(part) for part in message.parts):
            return
    pytest.fail("what was sent did not come")


def count(events: list[Event]) -> int:
    return sum(len(e.payloads) for e in events if isinstance(e, Frames))


def test_a_finished_file(tmp_path: Path, documents: Documents) -> None:
    file = tmp_path / "a.jsonl"
    text = lines(documents)
    for content in (text, text.rstrip("\n"), text.replace("\n", "\n\n")):
        file.write_text(content)
        transport, held = opened(via="file", file=str(file))
        events = take(transport, held)
        assert rejected(events) == {} and count(events) == 6
        with pytest.raises(TransportClosed):
            transport.receive(1.0)
        transport.close()
    pairs = [json.loads(line) for line in text.splitlines()]
    file.write_text("\n".join(json.dumps({"name": n, "doc": d}) for n, d in pairs))
    transport, held = opened(via="file", file=str(file))
    assert count(take(transport, held)) == 6
    transport.close()


def test_a_growing_file_in_awkward_pieces(tmp_path: Path, documents: Documents) -> None:
    file, raw = tmp_path / "a.jsonl", lines(documents).encode()
    file.write_bytes(b"")

    def write() -> None:
        with open(file, "ab") as out:
            for k in range(0, len(raw), 997):
                out.write(raw[k : k + 997])
                out.flush()

    file.write_bytes(raw[:300])
    transport, held = opened(via="file", file=str(file))
    assert transport.receive(0.1) is None or held
    raw = raw[300:]
    thread = threading.Thread(target=write)
    thread.start()
    events = take(transport, held)
    thread.join()
    assert rejected(events) == {} and count(events) == 6
    transport.close()


def test_a_file_without_an_end_is_followed_as_long_as_idle_s_says(tmp_path: Path, documents: Documents) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(lines(documents[:-1]))
    transport, held = opened(via="file", file=str(file), idle_s=0.3)
    began = time.monotonic()
    with pytest.raises(TransportClosed, match=r"0\.3 s"):
        take(transport, held)
    assert time.monotonic() - began > 0.25
    transport.close()
    transport, held = opened(via="file", file=str(file))
    take(transport, held, seconds=0.7)
    with open(file, "a") as out:
        out.write(lines(documents[-1:]))
    assert any(isinstance(e, ScanEnded) for e in take(transport, held))
    transport.close()


def test_a_file_goes_on_where_a_recording_ended(tmp_path: Path, documents: Documents) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(lines(documents))
    transport, _held = opened(via="file", file=str(file))
    recorded = [transport.receive(1.0) for _ in range(5)]
    transport.close()
    p = BlueskyScan.Parameters(via="file", file=str(file), find=STEP)
    again = BlueskyScan.decoder(p, "s/data")
    events = [e for message in recorded for e in again.feed(message)]
    transport = BlueskyScan.transport(p, "s/data", again)
    transport.open()
    events += take(transport, again)
    assert rejected(events) == {} and count(events) == 6
    transport.close()


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    for file in (tmp_path / "nowhere.jsonl", tmp_path):
        with pytest.raises(OSError, match=file.name):
            opened(via="file", file=str(file))
    long = tmp_path / "long.jsonl"
    long.write_bytes(b'["start", {"uid": "' + b"x" * 5000)
    transport, _ = opened(via="file", file=str(long), max_message_bytes=1024)
    with pytest.raises(OSError, match="max_message_bytes"):
        transport.receive(1.0)
    transport.close()


def test_in_process_several_readers_and_one_that_comes_late(documents: Documents) -> None:
    held = Feed("here")
    one, first = opened(via="process", feed="here")
    for name, document in documents[:4]:
        held(name, document)
    two, second = opened(via="process", feed="here")
    for name, document in documents[4:]:
        held(name, document)
    for transport, receiver in ((one, first), (two, second)):
        events = take(transport, receiver)
        assert rejected(events) == {} and count(events) == 6
    held.close()
    with pytest.raises(TransportClosed):
        one.receive(1.0)
    one.close()
    two.close()
    with pytest.raises(OSError, match=r"Documents\('nobody'\).*here"):
        opened(via="process", feed="nobody")


def test_in_process_what_is_too_much_is_dropped_and_shows_as_a_gap(documents: Documents) -> None:
    size = len(packed(*documents[2]))
    held = Feed("small", capacity_bytes=len(packed(*documents[0])) + len(packed(*documents[1])) + 3 * size)
    transport, receiver = opened(via="process", feed="small")
    for name, document in documents[:-1]:
        held(name, document)
    assert held.dropped == 3
    events = []
    while (message := transport.receive(0.0)) is not None:
        events += receiver.feed(message)
    held(*documents[-1])
    events += take(transport, receiver)
    assert count(events) == 3 and rejected(events) == {"gap": 3}
    held("start", {object(): 1})
    transport.close()


def test_a_publisher_of_bluesky_whose_prefix_is_wanted(documents: Documents) -> None:
    transport, receiver = opened(address="tcp://127.0.0.1:*", bind=True, prefix="mine")
    address = transport._socket.getsockopt_string(zmq.LAST_ENDPOINT)
    mine, other, bare = (publisher(address, prefix) for prefix in (b"mine", b"minor", b""))
    probe = ("descriptor", {"uid": "x", "run_start": "y", "name": "z", "data_keys": {}})
    deadline = time.monotonic() + 60
    while transport.receive(0.05) is None:  # until the subscription has arrived at the publisher
        mine(*probe)
        assert time.monotonic() < deadline
    pass_over(transport, mine)
    for name, document in documents:
        for sender in (other, bare, mine):
            sender(name, document)
    events = take(transport, receiver)
    assert rejected(events) == {} and count(events) == 6
    assert sum(receiver.documents.values()) == len(documents), "libzmq filters by prefix"
    for sender in (mine, other, bare):
        sender.close()
    transport.close()


def test_the_proxy_of_bluesky(documents: Documents) -> None:
    from bluesky.callbacks.zmq import Proxy

    proxy = Proxy()
    thread = threading.Thread(target=proxy.start, daemon=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *a, **k: None)
        ports = proxy.in_port, proxy.out_port
    thread.start()
    port = [p if isinstance(p, int) else int(str(p).rpartition(":")[2]) for p in ports]
    transport, receiver = opened(address=f"tcp://127.0.0.1:{port[1]}")
    sender = publisher(f"127.0.0.1:{port[0]}")
    deadline = time.monotonic() + 60
    while transport.receive(0.05) is None:
        sender("stop", {"uid": "a", "run_start": "b"})
        assert time.monotonic() < deadline
    pass_over(transport, sender)
    for name, document in documents:
        sender(name, document)
    events = take(transport, receiver)
    assert rejected(events) == {} and count(events) == 6
    sender.close()
    transport.close()


def test_the_socket_has_the_limits_that_were_set() -> None:
    transport, _ = opened(address="tcp://127.0.0.1:*", bind=True, high_water_mark=7, max_message_bytes=2000)
    assert transport._socket.rcvhwm == 7
    assert transport._socket.getsockopt(zmq.MAXMSGSIZE) == 2000
    transport.close()


def test_listening_beyond_loopback_is_refused() -> None:
    with pytest.raises(OSError, match=r"beyond loopback.*insecure: true"):
        opened(address="tcp://0.0.0.0:*", bind=True)
    transport, _ = opened(address="tcp://0.0.0.0:*", bind=True, insecure=True)
    transport.close()


def test_only_who_has_a_key_is_heard(tmp_path: Path, documents: Documents) -> None:
    import zmq.auth

    (tmp_path / "friends").mkdir()
    for name in ("session", "friend", "stranger"):
        zmq.auth.create_certificates(tmp_path, name)
    (tmp_path / "friends" / "friend.key").write_text((tmp_path / "friend.key").read_text())
    keys = {"keys": str(tmp_path / "session.key_secret"), "peer_keys": str(tmp_path / "friends")}
    transport, _ = opened(address="tcp://127.0.0.1:*", bind=True, **keys)
    address = transport._socket.getsockopt_string(zmq.LAST_ENDPOINT)
    server, _ = zmq.auth.load_certificate(tmp_path / "session.key")
    context = zmq.Context()
    heard = {}
    for who in ("stranger", "friend"):
        socket = context.socket(zmq.PUB)
        socket.linger = 0
        socket.curve_publickey, socket.curve_secretkey = zmq.auth.load_certificate(tmp_path / f"{who}.key_secret")
        socket.curve_serverkey = server
        socket.connect(address)
        deadline, heard[who] = time.monotonic() + (1.0 if who == "stranger" else 60.0), False
        while time.monotonic() < deadline and not heard[who]:
            socket.send(packed(*documents[0]))
            heard[who] = transport.receive(0.05) is not None
        socket.close()
    context.term()
    transport.close()
    assert heard == {"stranger": False, "friend": True}


class FakeError:
    def __init__(self, fatal: bool) -> None:
        self._fatal = fatal

    def fatal(self) -> bool:
        return self._fatal

    def str(self) -> str:
        return "all brokers are gone"


class FakeRecord:
    def __init__(self, raw: bytes | None, error: FakeError | None = None) -> None:
        self._raw, self._error = raw, error

    def value(self) -> bytes | None:
        return self._raw

    def error(self) -> FakeError | None:
        return self._error


def fake_kafka(monkeypatch: pytest.MonkeyPatch, records: list[FakeRecord]) -> dict[str, Any]:
    """Stands in for the library's consumer; returns what it was told."""
    told: dict[str, Any] = {}

    class Consumer:
        def __init__(self, settings: dict[str, Any]) -> None:
            told["settings"] = settings

        def subscribe(self, topics: list[str]) -> None:
            told["topics"] = topics

        def poll(self, timeout: float) -> FakeRecord | None:
            return records.pop(0) if records else None

        def close(self) -> None:
            told["closed"] = True

    monkeypatch.setitem(sys.modules, "confluent_kafka", types.SimpleNamespace(Consumer=Consumer))
    return told


def test_kafka_values_of_a_faked_consumer(monkeypatch: pytest.MonkeyPatch, documents: Documents) -> None:
    def value(name: str, document: dict[str, Any]) -> bytes:
        return msgpack.packb([name, msgpack.unpackb(packed("", document)[2:])])

    records = [FakeRecord(None, FakeError(False)), FakeRecord(b"x" * 200_000), FakeRecord(None)]
    records += [FakeRecord(value(name, document)) for name, document in documents]
    told = fake_kafka(monkeypatch, records)
    transport, receiver = opened(via="kafka", servers="broker:9092", topics=["a", "b"], max_message_bytes=100_000)
    events = take(transport, receiver)
    assert rejected(events) == {} and count(events) == 6
    transport.close()
    assert told["topics"] == ["a", "b"] and told["settings"]["bootstrap.servers"] == "broker:9092" and told["closed"]
    fake_kafka(monkeypatch, [FakeRecord(None, FakeError(True))])
    transport, _ = opened(via="kafka", topics=["a"])
    with pytest.raises(OSError, match="all brokers are gone"):
        transport.receive(0.1)
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    with pytest.raises(OSError, match=r"ptystream\[kafka\]"):
        opened(via="kafka", topics=["a"])


def test_the_real_consumer_takes_the_settings() -> None:
    pytest.importorskip("confluent_kafka", reason="confluent-kafka is not installed")
    transport, _ = opened(via="kafka", servers="127.0.0.1:1", topics=["a"])
    assert transport.receive(0.1) is None
    transport.close()


def test_check_says_what_was_found_where(tmp_path: Path, documents: Documents, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(lines(documents))
    data = {"name": "BlueskyScan", "via": "file", "file": str(file), "shape": 32}
    data["find"] = {**STEP, "energy": ["baseline:energy", "config:camera:photon_energy"], "distance": "start:distance"}
    config = tmp_path / "c.json"
    config.write_text(json.dumps({"scans": {"s": {"name": "Full", "data": data}}, "engines": {"e": {"name": "DM"}}}))
    assert check(str(config)) == 0
    said = capsys.readouterr().out
    for text in (
        "scans.s: energy, distance, psize: to be told by the source's header",
        "scans.s: object pixel not known yet",
        "6 event, 1 start, 1 stop; 6 frames, positions",
        "stream primary: camera [32, 32]",
        "stage_y [] um",
        "configuration of camera: camera_photon_energy",
        "y by event:stage_y; sign=-1: stage_y",
        "energy by config:camera:photon_energy: 7.2",
        "quantity_missing × 1: distance",
    ):
        assert text in said, said
    file.unlink()
    assert check(str(config)) == 1
    assert "a.jsonl" in capsys.readouterr().out


def test_check_listens_to_a_live_stream(capsys: pytest.CaptureFixture[str], documents: Documents, tmp_path: Path) -> None:
    from zmq import PUB, Context

    context = Context.instance()
    socket = context.socket(PUB)
    socket.linger = 0
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    data = {"name": "BlueskyScan", "address": f"tcp://127.0.0.1:{port}", "shape": 32, "find": STEP}
    config = tmp_path / "c.json"
    config.write_text(json.dumps({"scans": {"s": {"name": "Full", "data": data}}, "engines": {"e": {"name": "DM"}}}))
    stopped = threading.Event()

    def send() -> None:
        for turn in itertools.count():
            for name, document in documents:
                if stopped.wait(0.003):
                    return
                known = {key: f"{value}{turn}" for key, value in document.items() if key in ("uid", "run_start", "descriptor")}
                socket.send(packed(name, {**document, **known}))

    thread = threading.Thread(target=send)
    thread.start()
    said = ""
    for seconds in (1.5, 10.0, 60.0):  # as long as this machine needs
        if "y by event:stage_y" not in said:
            assert check(str(config), seconds) == 0
            said = capsys.readouterr().out
    stopped.set()
    thread.join()
    assert "y by event:stage_y" in said and "answers" in said
    assert check(str(config), 0.3) == 0
    assert "no document came within 0.3 s" in capsys.readouterr().out
    socket.close()


def test_documents_of_the_feed_are_those_of_the_wire(documents: Documents) -> None:
    assert count(feed(decoder(find=STEP), documents)) == 6
