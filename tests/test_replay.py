"""A replay: the original order over all channels, the original pace, and no channel that waits for ever."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from ptystream.recording import Recorder, Recording
from ptystream.replay import Replay
from ptystream.transport import Message, TransportClosed

CHANNELS = ["s/data", "s/positions", "s/also.0"]


@pytest.fixture
def recording(tmp_path):
    rng, recorder = np.random.default_rng(5), Recorder(tmp_path / "r")
    for k in range(300):
        recorder.write(Message(10**18 + k * 1_000_000, CHANNELS[int(rng.integers(3))], (bytes([k % 256]),)))
    recorder.close()
    return Recording(tmp_path / "r")


def drain(transport, into, lock, stop_after=None):
    transport.open()
    try:
        taken = 0
        while stop_after is None or taken < stop_after:
            message = transport.receive(0.2)
            if message is not None:
                with lock:
                    into.append(message)
                taken += 1
    except TransportClosed:
        pass
    finally:
        transport.close()


def run(replay, channels, stops=None):
    into, lock = [], threading.Lock()
    threads = [
        threading.Thread(target=drain, args=(replay.transport(c), into, lock, (stops or {}).get(c)), daemon=True)
        for c in channels
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return into


def test_every_channel_gets_all_of_its_messages_in_order(recording):
    got = run(Replay(recording, CHANNELS), CHANNELS)
    assert len(got) == 300
    for channel in CHANNELS:
        mine = [m.arrival_ns for m in got if m.channel == channel]
        assert mine == [m.arrival_ns for m in recording if m.channel == channel]


def test_a_message_waits_for_those_before_it_on_other_channels(recording):
    replay = Replay(recording, CHANNELS)
    transports = {channel: replay.transport(channel) for channel in CHANNELS}
    for transport in transports.values():
        assert transport.receive(0.0) is None  # not all are open
        transport.open()
    for expected in recording:
        for channel, transport in transports.items():
            if channel != expected.channel:
                assert transport.receive(0.0) is None
        assert transports[expected.channel].receive(0.0).arrival_ns == expected.arrival_ns
    for transport in transports.values():
        with pytest.raises(TransportClosed, match="over"):
            transport.receive(0.0)


def test_a_channel_that_closes_early_holds_nobody_up(recording):
    got = run(Replay(recording, CHANNELS), CHANNELS, stops={"s/data": 3})
    assert sum(m.channel == "s/data" for m in got) == 3
    others = sum(m.channel != "s/data" for m in recording)
    assert sum(m.channel != "s/data" for m in got) == others


def test_channels_that_nobody_asked_for_are_left_out(recording):
    got = run(Replay(recording, ["s/data"]), ["s/data"])
    assert [m.arrival_ns for m in got] == [m.arrival_ns for m in recording if m.channel == "s/data"]
    with pytest.raises(ValueError, match="not in this replay"):
        Replay(recording, ["s/data"]).transport("s/other")


@pytest.mark.parametrize("speed", [0.5, 1.0, 4.0])
def test_the_pace_is_the_original_one_times_the_speed(recording, speed, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("ptystream.replay.time", SimpleNamespace(monotonic=lambda: now[0]))
    replay = Replay(recording, CHANNELS, speed)
    transports = {channel: replay.transport(channel) for channel in CHANNELS}
    for transport in transports.values():
        transport.open()
    for number, message in enumerate(recording):
        due = 100.0 + (message.arrival_ns - 10**18) / 1e9 / speed
        if number:
            now[0] = due - 1e-6
            assert transports[message.channel].receive(0.0) is None
        now[0] = due + 1e-6 * (number > 0)
        assert transports[message.channel].receive(0.0).arrival_ns == message.arrival_ns


def test_a_message_that_is_not_due_is_waited_for(recording):
    began = time.monotonic()
    assert len(run(Replay(recording, CHANNELS, 1.0), CHANNELS)) == 300
    assert time.monotonic() - began >= 0.299


@pytest.mark.parametrize("speed", [0.0, -1.0, float("nan")])
def test_a_speed_that_is_none_is_refused(recording, speed):
    with pytest.raises(ValueError, match="must be above 0"):
        Replay(recording, CHANNELS, speed)
