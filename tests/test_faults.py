"""Faults on purpose: each does what it says, the same at every repetition, and no session dies or loses count of it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import faults as matrix
import numpy as np
import pytest
import yaml

from ptystream.detectors.zmq import ZmqScan
from ptystream.detectors.zmq.link import envelope
from ptystream.detectors.zmq.protocol import NativeDecoder, bare, frames_parts, header, restamped, samples_parts
from ptystream.faults import REACH, Faults, damage, declarations
from ptystream.giving import sources_of
from ptystream.params.errors import ConfigurationError
from ptystream.params.load import load
from ptystream.playback import Playback
from ptystream.recording import Recorder, Recording
from ptystream.results import as_json
from ptystream.storage import ptyr
from ptystream.transport import Message

MS = 1_000_000
MESSAGES = [Message(10**18 + k * MS, ("s/data", "s/positions")[k % 2], (b"head%04d" % k, bytes(50))) for k in range(600)]


def numbers(messages):
    return [int(bytes(m.parts[0])[4:8]) for m in messages]


def test_without_faults_everything_comes_as_it_was():
    assert damage(MESSAGES, Faults()).messages == tuple(MESSAGES)
    assert not Faults(seed=7, on="s/data", spare=False, late_share=0.5).any
    assert all(Faults(**{f.name: wanted}).any for f in declarations() for wanted in CHANGES.get(f.name, []))


CHANGES = {
    "rate": [5.0],
    "jitter": [1.0],
    "drop": [0.1],
    "duplicate": [0.1],
    "reorder": [0.1],
    "truncate": [0.1],
    "corrupt": [0.1],
    "skew": [-1.0],
    "drift": [3.0],
    "late": [1.0],
    "join": [0.2],
    "stop": [0.9],
}


def test_every_fault_is_repeated_to_the_byte_and_another_seed_is_another_one():
    faults = {name: wanted[0] for name, wanted in CHANGES.items() if name not in ("skew", "drift")}
    one, again, other = (damage(MESSAGES, Faults(seed=s, **faults)) for s in (1, 1, 2))
    assert one == again
    assert one.messages != other.messages


def test_one_fault_more_does_not_change_whom_the_others_hit():
    alone, with_more = Faults(drop=0.1, seed=5), Faults(drop=0.1, corrupt=0.5, reorder=0.5, jitter=0.1, seed=5)
    assert damage(MESSAGES, alone).hit["drop"] == damage(MESSAGES, with_more).hit["drop"]


def test_shares_are_about_what_is_asked_for_and_ends_are_spared():
    for name in ("drop", "duplicate", "reorder", "truncate", "corrupt"):
        hit = damage(MESSAGES, Faults(**{name: 0.2})).hit[name]
        assert 80 < len(hit) < 160, name
        assert not {0, 1, 598, 599} & set(hit)
        assert {0, 1, 598, 599} & set(damage(MESSAGES, Faults(**{name: 1.0}, spare=False)).hit[name]), name


def test_dropped_messages_do_not_come_and_repeated_ones_come_twice():
    dropped = damage(MESSAGES, Faults(drop=0.1))
    assert sorted({*range(600)} - {*numbers(dropped.messages)}) == list(dropped.hit["drop"])
    repeated = damage(MESSAGES, Faults(duplicate=0.1))
    twice = [k for k, count in Counter(numbers(repeated.messages)).items() if count == 2]
    assert sorted(twice) == list(repeated.hit["duplicate"])
    assert len(repeated.messages) == 600 + len(twice)


def test_messages_that_are_moved_come_a_few_places_later_and_the_others_keep_their_order():
    found = damage(MESSAGES, Faults(reorder=0.2))
    moved = set(found.hit["reorder"])
    for channel in ("s/data", "s/positions"):
        order = numbers(m for m in found.messages if m.channel == channel)
        rest = [k for k in order if k not in moved]
        assert rest == sorted(rest)
        assert order != sorted(order)
        assert order[0] == min(order) and order[-1] == max(order)
        place = {k: i for i, k in enumerate(order)}
        assert all(-REACH <= place[k] - sorted(order).index(k) <= REACH for k in order)
    times = [m.arrival_ns for m in found.messages]
    assert times == sorted(times)


def test_damaged_messages_differ_and_the_recording_stays_as_it_is():
    before = [m.parts for m in MESSAGES]
    for name in ("truncate", "corrupt"):
        found = damage(MESSAGES, Faults(**{name: 0.2}, seed=2))
        for k, (old, new) in enumerate(zip(MESSAGES, found.messages, strict=True)):
            assert (tuple(map(bytes, new.parts)) != old.parts) == (k in found.hit[name])
            if k in found.hit[name]:
                sizes = [sum(map(len, m.parts)) for m in (old, new)]
                assert (sizes[1] < sizes[0]) == (name == "truncate")
    assert [m.parts for m in MESSAGES] == before
    assert damage([Message(0, "s/data", ())] * 5, Faults(truncate=1.0, corrupt=1.0)).messages[2].parts == ()


def test_the_rate_stretches_time_and_jitter_keeps_the_order_of_a_channel():
    fast = damage(MESSAGES, Faults(rate=3000)).messages
    assert (fast[-1].arrival_ns - fast[0].arrival_ns) / 1e9 == pytest.approx(0.1)
    at_once = [Message(5, m.channel, m.parts) for m in MESSAGES]
    spread = damage(at_once, Faults(rate=30)).messages
    assert (spread[-1].arrival_ns - spread[0].arrival_ns) / 1e9 == pytest.approx(10, rel=0.01)
    assert numbers(spread) == list(range(600))
    shaken = damage(MESSAGES, Faults(jitter=0.02)).messages
    assert numbers(shaken) != list(range(600))
    for channel in ("s/data", "s/positions"):
        assert numbers(m for m in shaken if m.channel == channel) == numbers(m for m in MESSAGES if m.channel == channel)
    delays = [m.arrival_ns - MESSAGES[k].arrival_ns for k, m in zip(numbers(shaken), shaken, strict=True)]
    assert min(delays) >= 0
    assert 10 * MS < max(delays) <= 20 * MS


def test_late_positions_come_later_and_frames_do_not():
    found = damage(MESSAGES, Faults(late=0.1))
    for k, message in zip(numbers(found.messages), found.messages, strict=True):
        assert message.arrival_ns - MESSAGES[k].arrival_ns == (100 * MS if k % 2 else 0)
    some = damage(MESSAGES, Faults(late=0.1, late_share=0.25))
    assert 50 < len(some.hit["late"]) < 100
    assert not {1, 599} & set(some.hit["late"])


def test_joining_and_stopping_leave_out_the_beginning_and_the_end():
    found = damage(MESSAGES, Faults(join=0.25, stop=0.75))
    assert numbers(found.messages) == list(range(150, 450))
    assert len(found.hit["left out"]) == 300


def test_only_the_channels_asked_for_are_hit():
    found = damage(MESSAGES, Faults(drop=0.5, on="*/positions"))
    assert all(k % 2 for k in found.hit["drop"])
    assert "hit by: drop" in str(found)
    with pytest.raises(ValueError, match="matches none of the channels s/data, s/positions"):
        damage(MESSAGES, Faults(drop=0.5, on="s/motors"))


def test_time_stamps_of_positions_are_shifted_and_nothing_else():
    pixels, stamps = np.arange(8, dtype="<u2"), np.array([5, 6])
    frames = frames_parts("a", 0, [pixels.tobytes()], 2, (2, 2), pixels.dtype, "raw", stamps, np.ones((2, 2)))
    samples = samples_parts("a", 3, {"y": np.ones(2), "x": np.zeros(2)}, stamps)
    for parts in (frames, samples, (envelope(b"stream  ", 4), *samples)):
        (old, *_), (new, *more) = (NativeDecoder().feed(Message(0, "c", tuple(p))) for p in (parts, restamped(parts, 1000)))
        assert all(event.timestamps_ns.tolist() == [1005, 1006] for event in (new, *more))
        if parts is frames:
            assert bytes(new.payloads[0].buffer) == bytes(old.payloads[0].buffer)
    for parts in ([header("end", scan="a", count=2)], [b"garbage"], [], samples_parts("a", 0, {"y": np.ones(2)}, None)):
        assert restamped(parts, 1000) is parts
    assert list(bare((envelope(b"stream  ", 4), b"x"))) == [b"x"]
    one = [Message(k * 10**9, f"s/{kind}", tuple(samples)) for k in range(3) for kind in ("data", "positions")]
    shifted = damage(one, Faults(skew=1e-6, drift=2e6), {"s/data": restamped, "s/positions": restamped}).messages
    told = [NativeDecoder().feed(m)[0].timestamps_ns[0] for m in shifted]
    assert told == [5, 1005, 5, 2_000_001_005, 5, 4_000_001_005]
    with pytest.raises(ValueError, match="time stamps in the messages of s/positions"):
        damage(one, Faults(skew=1.0))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"drop": 1.5}, "drop: 1.5: must be from 0 to 1"),
        ({"drop": -0.1}, "drop"),
        ({"rate": 0.0}, "rate"),
        ({"late": float("inf")}, "late"),
        ({"skew": float("nan")}, "skew: nan: must be finite"),
        ({"join": 0.5, "stop": 0.5}, "must be below stop"),
    ],
)
def test_what_cannot_be_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        Faults(**given)


def every_case() -> list[Any]:
    """All of the matrix; `make quick` does with a few."""
    few = ("drop, ends too", "corrupt", "most of them together")
    return [pytest.param(c, id=c.name, marks=[] if c.name in few else [pytest.mark.slow]) for c in matrix.cases()]


@pytest.mark.parametrize("case", every_case())
def test_a_session_survives_counts_exactly_and_the_image_stays_good(case: matrix.Case) -> None:
    assert matrix.faults_of(case, matrix.outcome(case.name)) == []


@pytest.mark.slow
def test_the_matrix_can_miss() -> None:
    """A skew of half a frame, which nobody corrects, ruins the image; where the configuration says it, it does not."""
    wrong = matrix.Case("", Faults(skew=5e-3), 1.5, {"interpolate": "time"})
    assert any(said.startswith("phase error") for said in matrix.faults_of(wrong, matrix.run(wrong)))
    known = matrix.Case("", Faults(skew=5e-3), 1.5, {"interpolate": "time", "time_offset_s": 5e-3})
    found = matrix.run(known)
    error, clean = matrix.errors(found)
    assert error < 1.25 * clean
    assert found.ledger["used"] == found.ledger["received"]


def test_the_sources_of_a_recording_are_known_from_its_configuration(tmp_path: Path) -> None:

    given = matrix.configuration(tmp_path, matrix.Case("", Faults()))
    recorder = Recorder(tmp_path / "r", {"configuration": as_json(given)})
    for channel in ("s/data", "s/positions", "t/data", "session"):
        recorder.write(Message(0, channel, (b"{}",)))
    recorder.close()
    found = sources_of(Recording(tmp_path / "r"))
    assert {name: None if plugin is None else plugin.__name__ for name, plugin in found.items()} == {
        "s/data": "ZmqScan",
        "s/positions": "ZmqScan",
        "t/data": None,
    }


def test_a_recording_of_other_channels_is_refused(tmp_path: Path) -> None:
    given = matrix.configuration(tmp_path, matrix.Case("", Faults()))
    given["scans"]["other"] = given["scans"].pop("s")
    for faults in (Faults(), Faults(drop=0.1)):
        with pytest.raises(ConfigurationError, match="holds none of these channels; it holds s/data, s/positions"):
            Playback(str(matrix.record(tmp_path / f"{faults.drop}")), faults=faults).transports(load(given))


@pytest.mark.slow
def test_the_command_replays_into_a_session(tmp_path: Path) -> None:
    recording = matrix.record(tmp_path / "scan.ptyrec")
    config = tmp_path / "scan.yaml"
    config.write_text(yaml.safe_dump(matrix.configuration(tmp_path, matrix.Case("", Faults()))))
    command = [sys.executable, "-P", "-m", "ptystream", "replay", str(recording), "--into", str(config), "--speed", "inf"]
    done = subprocess.run([*command, "--drop", "0.1", "--on", "s/data"], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    ledger = ptyr.read(tmp_path / "faults.ptyr").ledger
    assert f"drop {ledger['frame_missing']}" in done.stderr
    assert ledger["used"] + ledger["frame_missing"] == 92
    for wrong, said in ((["--to", "s/data=tcp://127.0.0.1:*"], "no use with --into"), (["--link", "tcp"], "must be one of")):
        done = subprocess.run([*command, *wrong], capture_output=True, text=True, timeout=240)
        assert done.returncode == 1 and said in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("link", ["acknowledged", "push"])
def test_the_command_gives_a_damaged_recording_back_on_the_wire(link: str, tmp_path: Path) -> None:
    recording = matrix.record(tmp_path / "scan.ptyrec")
    command = [sys.executable, "-P", "-m", "ptystream", "replay", str(recording), "--speed", "inf", "--link", link]
    expected = damage(map(as_bare, Recording(recording)), Faults(drop=0.1, reorder=0.1, seed=1)).messages
    with subprocess.Popen(
        [*command, "--drop", "0.1", "--reorder", "0.1", "--seed", "1"], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        addresses: dict[str, str] = {}
        while len(addresses) < 2:
            line = process.stderr.readline()
            assert line, "it ended"
            if " on tcp" in line:
                channel, _, address = line.split()
                addresses[channel] = address
        got: dict[str, list[tuple[bytes, ...]]] = {}
        threads = []
        for channel, address in addresses.items():
            wanted = sum(m.channel == channel for m in expected)
            parameters = ZmqScan.Parameters(address=address, link=link)
            transport = ZmqScan.transport(parameters, channel, ZmqScan.decoder(parameters, channel))
            got[channel] = []
            threads.append(threading.Thread(target=take, args=(transport, wanted, got[channel]), daemon=True, name=channel))
            threads[-1].start()
        assert process.wait(200) == 0, process.stderr.read()
        for thread in threads:
            thread.join(60)
    for channel in addresses:
        assert got[channel] == [tuple(map(bytes, m.parts)) for m in expected if m.channel == channel]


def as_bare(message: Message) -> Message:
    return Message(message.arrival_ns, message.channel, tuple(bare(message.parts)))


def take(transport, wanted, into):
    transport.open()
    while len(into) < wanted:
        message = transport.receive(0.5)
        if message is not None:
            into.append(tuple(bytes(part) for part in bare(message.parts)))
            transport.acknowledge(message)
    for _ in range(20):  # the last acknowledgement goes out with a look at the socket
        transport.receive(0.05)
    transport.close()
